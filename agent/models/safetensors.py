"""The header of a safetensors file: names, types, shapes and bytes of its tensors, and no weights.

The format: a little-endian u64 with the header's length, then that many bytes of JSON, then the tensors' data without
holes (https://github.com/huggingface/safetensors, README, "Format"). Everything in it is checked: the file may be
truncated, damaged or made to hurt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from agent.models.errors import corrupt
from agent.models.reader import Reader

#: Bytes of JSON that the format allows (`MAX_HEADER_SIZE` in safetensors/src/tensor.rs).
MAX_HEADER = 100_000_000
MAX_DIMENSIONS = 16
#: Bits of one element, by type (`Dtype` in safetensors/src/tensor.rs).
BITS = MappingProxyType(
    {
        **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
        **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
        **dict.fromkeys(("I32", "U32", "F32"), 32),
        **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
        **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
        "F4": 4,
    }
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the header. `bytes` is what it takes in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    tensors: tuple[Tensor, ...]
    metadata: dict[str, str]


def read_header(reader: Reader, name: str) -> Header:
    """The header of the file that `name` stands for in errors. Raises `ProfileError`."""
    size = reader.size()
    start = reader.read(0, 8)
    if len(start) < 8:
        raise corrupt(f"{name} is no safetensors file: it has {size} bytes, and its header's length alone takes 8")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER:
        raise corrupt(f"{name}: its header claims {length} bytes; the format allows {MAX_HEADER}")
    if 8 + length > size:
        raise corrupt(f"{name} is truncated: its header claims {length} bytes, and the file has {size}")
    text = reader.read(8, length)
    if len(text) < length:
        raise corrupt(f"{name} is truncated inside of its header")
    if not text.startswith(b"{"):
        raise corrupt(f"{name} is no safetensors file: its header begins with {text[:1]!r}, not with an object")
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise corrupt(f"{name}: its header is not JSON ({error})") from None
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise corrupt(f"{name}: __metadata__ must be an object of strings")
    tensors = tuple(_tensors(entries, size - 8 - length, name))
    return Header(tensors, metadata)


def _tensors(entries: dict[str, Any], room: int, file: str) -> Iterator[Tensor]:
    """The entries, checked: each by itself, and that together they fill the `room` without holes or overlaps."""
    spans = []
    for name, entry in entries.items():
        where = f"{file}: tensor {name[:120]!r}"
        if not isinstance(entry, dict):
            raise corrupt(f"{where} is no object")
        begin, end = _offsets(entry.get("data_offsets"), where)
        dtype, shape = entry.get("dtype"), _shape(entry.get("shape"), where)
        if not isinstance(dtype, str) or dtype not in BITS:
            raise corrupt(f"{where} has the unknown dtype {str(dtype)[:40]!r}")
        bits = math.prod(shape) * BITS[dtype]
        if bits != 8 * (end - begin):
            raise corrupt(f"{where}: {list(shape)} of {dtype} do not take the {end - begin} bytes of its data_offsets")
        spans.append((begin, end))
        yield Tensor(name, dtype, shape, end - begin)
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise corrupt(f"{file}: its data_offsets leave a hole or overlap at byte {at} of the data")
        at = end
    if at > room:
        raise corrupt(f"{file} is truncated: its tensors need {at} bytes of data, and it has {room}")
    if at < room:
        raise corrupt(f"{file}: {room - at} bytes follow its last tensor")


def _offsets(value: object, where: str) -> tuple[int, int]:
    match value:
        case [int(begin), int(end)] if not isinstance(begin, bool) and not isinstance(end, bool) and 0 <= begin <= end:
            return begin, end
    raise corrupt(f"{where}: data_offsets must be [begin, end] with 0 <= begin <= end")


def _shape(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        raise corrupt(f"{where}: shape must be a list of at most {MAX_DIMENSIONS} sizes")
    for size in value:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 48:
            raise corrupt(f"{where}: shape holds {str(size)[:40]!r}, which is no size")
    return tuple(value)
