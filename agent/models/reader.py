"""Where the bytes of a model's files come from: a local file here, ranged requests to a hub elsewhere.

Headers are read, never weights: the largest read is one safetensors header.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from agent.models.errors import missing


class Reader(Protocol):
    """One file, of which ranges can be read."""

    def size(self) -> int:
        """Bytes of the whole file."""

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer only where the file ends."""


class FileReader:
    """A local file, open only while it is read: a model may have more files than a process may hold."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._opened() as descriptor:
            self._size = os.fstat(descriptor).st_size

    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        with self._opened() as descriptor:
            while length > 0 and (part := os.pread(descriptor, length, offset)):
                parts.append(part)
                offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """Without blocking, because what is named may be a FIFO, and nothing but a regular file."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise missing(f"{self._path} cannot be opened: {error.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise missing(f"{self._path} is not a regular file")
            yield descriptor
        except OSError as error:
            raise missing(f"{self._path} cannot be read: {error.strerror}") from None
        finally:
            os.close(descriptor)
