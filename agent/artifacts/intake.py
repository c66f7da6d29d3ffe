"""What came of an answer and is not written yet: in memory, or in a pipe, which the kernel fills and empties without
a copy (docs/decisions/0010-fetching.md)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from typing import Protocol

from agent.artifacts.connections import Answer

#: Bytes that are read before they are written and counted, and that are hashed at once. Each piece costs its thread
#: some waits for Python's lock: with a quarter of them, a pull took a quarter more CPU. A larger pipe needs a right.
BUFFER = 1024**2
#: What a file system or a kernel without `splice` says.
_NO_SPLICE = frozenset({errno.EINVAL, errno.ENOSYS})


class Unspliceable(Exception):
    """The kernel does not do this between these two: memory does."""


class Intake(Protocol):
    """One thread's."""

    size: int  # bytes

    @property
    def full(self) -> bool:
        """Whether nothing more is taken before it was written."""
        ...

    def take(self, answer: Answer, most: int) -> bool:
        """Whether more came, at most so many bytes. Raises `ConnectionFailed`."""
        ...

    def write(self, descriptor: int, at: int) -> None:
        """All of it, into a file; nothing is held then. Raises `OSError`."""
        ...

    def drop(self) -> None:
        """None of it is wanted."""
        ...

    def close(self) -> None:
        """It is not used any more."""
        ...


class InMemory:
    def __init__(self) -> None:
        self.size = 0
        self._buffer = page_aligned(BUFFER)

    @property
    def full(self) -> bool:
        return self.size == len(self._buffer)

    def take(self, answer: Answer, most: int) -> bool:
        count = answer.readinto(self._buffer[self.size : self.size + most])
        self.size += count
        return bool(count)

    def write(self, descriptor: int, at: int) -> None:
        data, self.size = self._buffer[: self.size], 0
        write_all(descriptor, data, at)

    def drop(self) -> None:
        self.size = 0

    def close(self) -> None:
        self.drop()


class InPipe:
    """Linux only."""

    def __init__(self) -> None:
        self.size = 0
        self._filled = False
        self._into_files = True  # until one refuses
        self._open()

    def _open(self) -> None:
        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # a user has that many pipes: a small one does as well
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, BUFFER)

    @property
    def full(self) -> bool:
        return self._filled or self.size >= BUFFER

    def take(self, answer: Answer, most: int) -> bool:
        """Raises `Unspliceable`, too."""
        try:
            count = answer.splice(self._in, most)
        except OSError as error:
            if error.errno in _NO_SPLICE and not self.size:
                raise Unspliceable from None
            raise
        self._filled = count is None
        self.size += count or 0
        return count != 0

    def write(self, descriptor: int, at: int) -> None:
        try:
            while self.size:
                count = self._spliced(descriptor, at) if self._into_files else self._copied(descriptor, at)
                self.size, at = self.size - count, at + count
        finally:
            self.drop()

    def _spliced(self, descriptor: int, at: int) -> int:
        try:
            return os.splice(self._out, descriptor, self.size, offset_dst=at)
        except OSError as error:
            if error.errno not in _NO_SPLICE:
                raise
            self._into_files = False
            return 0

    def _copied(self, descriptor: int, at: int) -> int:
        data = os.read(self._out, BUFFER)
        write_all(descriptor, memoryview(data), at)
        return len(data)

    def drop(self) -> None:
        if self.size:  # it goes with its pipe
            self.close()
            self._open()
        self.size, self._filled = 0, False

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)


def page_aligned(size: int) -> memoryview:
    """Where memory begins some bytes behind a page, as other one does, some processors take three times as long to copy
    into it (AMD's Zen 3, `rep movsb`)."""
    return memoryview(mmap.mmap(-1, size))


def write_all(descriptor: int, data: memoryview, at: int) -> None:
    """Raises `OSError`."""
    while len(data):
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written
