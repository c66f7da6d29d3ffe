"""Reading a GGUF header without its contents. Imports numpy and gguf: only `agent.models.inspect` may import this."""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt

from agent.models.reader import Reader

#: Arrays up to this many numbers are read (a value per layer); longer ones, and all arrays of strings, are the
#: vocabulary and only counted.
_LONGEST_ARRAY = 4096
#: What no model comes near: damaged counts end here instead of in a long loop.
_MOST_KEYS, _MOST_TENSORS, _MOST_STRINGS = 1 << 14, 1 << 17, 1 << 24
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
#: Bytes of a remote file that are read first, and four times as many while its header goes on; the longest have 30 MB.
_FIRST, _MOST = 2 * 1024**2, 64 * 1024**2


class Corrupt(Exception):
    """The file is not what a GGUF file must be; the message says where."""


class TooShort(Exception):
    """The header goes on behind the bytes that are there."""


class Unsupported(Exception):
    """The file is a GGUF file that cannot be served."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One row of the tensor table."""

    name: str
    kind: str
    elements: int
    bytes: int


def begun(file: Reader) -> Header:
    """The header of a file of which only the beginning is read. Raises `Corrupt` and `Unsupported`."""
    size, length = file.size(), _FIRST
    while True:
        with tempfile.NamedTemporaryFile() as beginning:
            beginning.write(file.read(0, min(size, length)))
            beginning.flush()
            try:
                return Header(Path(beginning.name), size)
            except TooShort:
                if length >= _MOST:
                    raise Corrupt(f"its header has more than {_MOST >> 20} MiB; a real one has less") from None
        length = min(_MOST, 4 * length)


class Header(gguf.GGUFReader):
    """gguf's reader with two methods replaced: it builds several numpy views for every token of the vocabulary and
    for every tensor, which takes seconds and hundreds of MiB; a plan needs neither.
    """

    rows: list[Tensor]

    def __init__(self, path: Path, size: int = 0) -> None:
        """`size`: of the whole file, where `path` holds only its beginning."""
        self._size = size or path.stat().st_size
        super().__init__(path)

    def _get(
        self,
        offset: int,
        dtype: npt.DTypeLike,
        count: int = 1,
        override_order: Literal["I", "S", "<"] | None = None,
    ) -> npt.NDArray[Any]:
        """The base's gives less than was asked for where the data ends."""
        self._reach(offset + int(count) * np.dtype(dtype).itemsize)
        found: npt.NDArray[Any] = super()._get(offset, dtype, count, override_order)
        return found

    def _reach(self, end: int) -> None:
        if end > self._size:
            raise Corrupt("the file ends inside of its header: it is truncated")
        if end > len(self.data):
            raise TooShort

    def _build_fields(self, offs: int, count: int) -> int:
        if count > _MOST_KEYS:
            raise Corrupt(f"its header claims {count} keys; a real one has less than {_MOST_KEYS}")
        end: int = super()._build_fields(offs, count)
        return end

    def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[gguf.ReaderField]]:
        if count > _MOST_TENSORS:
            raise Corrupt(f"its header claims {count} tensors; a real one has less than {_MOST_TENSORS}")
        found: tuple[int, list[gguf.ReaderField]] = super()._build_tensor_info(offs, count)
        return found

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[gguf.GGUFValueType]]:
        if gguf.GGUFValueType(raw_type) != gguf.GGUFValueType.ARRAY:
            result: tuple[int, list[npt.NDArray[Any]], list[int], list[gguf.GGUFValueType]]
            result = super()._get_field_parts(orig_offs, raw_type)
            return result
        item = gguf.GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        start = orig_offs + 12
        if item == gguf.GGUFValueType.STRING:
            end = self._skip_strings(start, count)
        elif item in self.gguf_scalar_to_np:
            end = start + count * np.dtype(self.gguf_scalar_to_np[item]).itemsize
        else:
            raise Corrupt(f"an array of arrays at byte {orig_offs}")
        self._reach(end)
        parts = [np.array([count], dtype=np.uint64)]
        if item in self.gguf_scalar_to_np and count <= _LONGEST_ARRAY:
            parts.append(self._get(start, self.gguf_scalar_to_np[item], count))
        return end - orig_offs, parts, [len(parts) - 1], [gguf.GGUFValueType.ARRAY, item]

    def _skip_strings(self, offset: int, count: int) -> int:
        """The offset behind `count` strings."""
        if count > _MOST_STRINGS:
            raise Corrupt(f"an array claims {count} strings; a real one has less than {_MOST_STRINGS}")
        length_of = struct.Struct(("<" if self.endianess == gguf.GGUFEndian.LITTLE else ">") + "Q").unpack_from
        data: Any = self.data
        view = memoryview(data)
        try:
            for _ in range(count):
                offset += 8 + length_of(view, offset)[0]
        except struct.error:
            self._reach(offset + 8)
            raise
        return offset

    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        self.rows = []
        for field in fields:
            *_, dims, raw_type, offset = field.parts
            try:
                kind = gguf.GGMLQuantizationType(int(raw_type[0]))
            except ValueError:
                raise Unsupported(f"tensor {field.name} has the unknown type {raw_type[0]}") from None
            if len(dims) > _MOST_DIMENSIONS:
                raise Corrupt(f"tensor {field.name} has {len(dims)} dimensions; {_MOST_DIMENSIONS} are allowed")
            elements = 1
            for dimension in dims.tolist():
                elements *= dimension  # Python's integers: a product of damaged dimensions must not wrap around
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            tensor = Tensor(field.name, kind.name, elements, elements // block * block_bytes)
            if start_offs + int(offset[0]) + tensor.bytes > self._size:
                raise Corrupt(f"the file ends before its tensor {tensor.name} does: it is truncated")
            self.rows.append(tensor)

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number. Raises `Corrupt` when it is missing and there is no default."""
        values = self.numbers(key)
        if values:
            return values[0]
        if default is None:
            raise Corrupt(f"its header lacks {key}")
        return default

    def numbers(self, key: str) -> list[int]:
        """A number, or an array of them, as a list; empty when the key is missing."""
        field = self.fields.get(key)
        if field is None or field.types[-1] == gguf.GGUFValueType.STRING:
            return []
        return [int(value) for value in field.parts[-1].tolist()]

    def real(self, key: str, default: float) -> float:
        """A number."""
        field = self.fields.get(key)
        if field is None or field.types[-1] == gguf.GGUFValueType.STRING:
            return default
        values = field.parts[-1].tolist()
        return float(values[0]) if values else default

    def text(self, key: str) -> str:
        """A string; "" when the key is missing."""
        field = self.fields.get(key)
        if field is None or field.types != [gguf.GGUFValueType.STRING]:
            return ""
        return bytes(field.parts[-1]).decode(errors="replace")

    def level(self) -> str:
        """The file type's name (Q4_K_M); "" when the header does not say, or it is unknown."""
        try:
            name = gguf.LlamaFileType(self.number("general.file_type", -1)).name
        except ValueError:
            return ""
        return name.removeprefix("MOSTLY_").removeprefix("ALL_")

    def count(self, key: str) -> int:
        """How many elements the array has; 0 when the key is missing."""
        field = self.fields.get(key)
        # parts: length of the key, the key, its type, and then what `_get_field_parts` returned
        return int(field.parts[3][0]) if field is not None and field.types[0] == gguf.GGUFValueType.ARRAY else 0
