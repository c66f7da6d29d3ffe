"""Safetensors files with real headers and no data: sparse, so that the largest model costs nothing on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from agent.models.safetensors import BITS

#: Name to type and shape.
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


def header_of(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> tuple[dict[str, object], int]:
    """The header as data, and the bytes that the tensors take."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return entries, at


def write_safetensors(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    entries, size = header_of(tensors, metadata)
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    return path


class Bytes:
    """A `Reader` over bytes, with `size` pretended where a file is larger than what is there. Remembers its reads."""

    def __init__(self, content: bytes, size: int | None = None) -> None:
        self._content, self._size = content, len(content) if size is None else size
        self.reads: list[tuple[int, int]] = []

    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return self._content[offset : offset + length]
