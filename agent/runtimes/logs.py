"""Logs of instances: engines write them directly, this rotates, reads and follows them.

An engine keeps its log file open and never reopens it, so rotation copies the file and truncates it
("copytruncate"); that is sound because it is open for appending. What is written between the last look for new bytes
and the truncation, some microseconds, is lost. LOG.1 is the newest rotated part, LOG.2 the one before. On a full disk
the log gives its room back all the same: of what cannot be copied only the end stays.

This process is the only one that rotates, so it can count the rotations of each log, and a follower knows in which
part its place is now. Everything but `follow` is synchronous.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from agent.runtimes.threads import in_thread

_log = structlog.get_logger(__name__)

POLL_SECONDS = 0.2  # how late a follower sees a line; nothing polls while nobody follows
READ_DEADLINE_SECONDS = 10.0  # for one chunk; a sick disk must not hold a client for ever
_CHUNK_BYTES = 64 * 1024  # fits into a gRPC message many times
_COPY_BYTES = 1024 * 1024
_CATCH_UP_BYTES = 64 * _COPY_BYTES  # nobody writes as much while we copy, unless to keep us busy for ever
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

Ended = Callable[[], bool]


@dataclass(slots=True)
class _Rotations:
    """Of one log in the life of this process. `lock` is held while bytes change their place, and while one reads."""

    count: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


_rotations: dict[Path, _Rotations] = {}


def _of(path: Path) -> _Rotations:
    return _rotations.setdefault(path, _Rotations())


def size(path: Path) -> int:
    """Bytes of the unrotated part; 0 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def remove(path: Path) -> None:
    """The log and its rotated parts."""
    for part in (*_rotated(path), _unfinished(path), path):
        part.unlink(missing_ok=True)
    _rotations.pop(path, None)


def rotate(path: Path, max_bytes: int, files: int) -> bool:
    """If the log is larger than `max_bytes`, move its content to LOG.1; with all parts there are at most `files`.

    Where there is no room for the copy, the oldest parts go first, then all of the log but its end. Raises other
    `OSError`s. A crash in between leaves some lines twice, none lost.
    """
    if size(path) <= max_bytes:
        return False
    rotations = _of(path)
    for kept in range(min(max(0, files - 2), len(list(_rotated(path)))), -1, -1):
        with rotations.lock:
            for part in list(_rotated(path))[kept:]:
                part.unlink()  # first of all: the disk may be full
        try:
            _move(path, files, rotations)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
        else:
            return True
    _cut(path, files, rotations)
    return True


def _move(path: Path, files: int, rotations: _Rotations) -> None:
    """Raises `OSError`: then everything is where it was."""
    try:
        with path.open("r+b", buffering=0) as log, _unfinished(path).open("wb", buffering=0) as copy:
            copied = _copy(log.fileno(), copy.fileno(), 0, size(path)) if files > 1 else 0
            with rotations.lock:
                if files > 1:
                    for number, part in reversed(list(enumerate(_rotated(path), start=1))):
                        part.rename(_part(path, number + 1))
                    _unfinished(path).rename(_part(path, 1))
                    with contextlib.suppress(OSError):  # what came meanwhile, as far as there is room
                        _copy(log.fileno(), copy.fileno(), copied, copied + _CATCH_UP_BYTES)
                log.truncate(0)
                rotations.count += 1
    finally:
        _unfinished(path).unlink(missing_ok=True)


def _cut(path: Path, files: int, rotations: _Rotations) -> None:
    """Keep what says why an engine ended, and give the rest of the room back. Raises `OSError`."""
    with rotations.lock:
        written = size(path)
        end = _read_at(path, max(0, written - _CHUNK_BYTES)) if files > 1 else b""
        os.truncate(path, 0)
        rotations.count += 1
        if end:
            with contextlib.suppress(OSError):  # somebody else took the room at once
                _part(path, 1).write_bytes(end)
    _log.warning("no room to rotate a log: only its end is kept", path=str(path), dropped=written - len(end))


def tail_text(path: Path, max_bytes: int = 64 * 1024) -> str:
    """The end of the log, rotated parts included; "" when there is none."""
    data = b""
    for part in (path, *_rotated(path)):
        with contextlib.suppress(OSError), part.open("rb") as file:
            missing = max_bytes - len(data)
            file.seek(max(0, os.fstat(file.fileno()).st_size - missing))
            data = file.read(missing) + data
        if len(data) >= max_bytes:
            break
    return data.decode(errors="replace")


def head_text(path: Path, max_bytes: int) -> str:
    """The beginning of what is kept of the log, rotated parts included; "" when there is none."""
    data = b""
    for part in (*reversed(list(_rotated(path))), path):
        with contextlib.suppress(OSError), part.open("rb") as file:
            data += file.read(max_bytes - len(data))
        if len(data) >= max_bytes:
            break
    return data.decode(errors="replace")


async def follow(path: Path, *, tail_lines: int, follow: bool, ended: Ended) -> AsyncIterator[bytes]:
    """The log in chunks of at most 64 KiB: its last `tail_lines` lines (0: all, rotated parts too; -1: none), then,
    with `follow`, what is written until `ended()`. Nothing is doubled by rotations in between, and nothing lost but
    what a full disk had no room for.

    Raises `TimeoutError` when the disk does not answer in time.
    """
    reader = _Reader(path)
    await in_thread(lambda: reader.seek(tail_lines), deadline=READ_DEADLINE_SECONDS)
    while True:
        last = not follow or ended()  # asked before reading: what was written before the end is read, too
        while data := await in_thread(reader.read, deadline=READ_DEADLINE_SECONDS):
            yield data
        if last:
            return
        await asyncio.sleep(POLL_SECONDS)


class _Reader:
    """A place in the log that stays right when the log is rotated, because bytes keep their offset in LOG.1."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rotations = _of(path)
        self._sequence = 0  # of the part we are in: it becomes LOG.1 with rotation `_sequence` + 1
        self._offset = 0

    def seek(self, lines: int) -> None:
        with self._rotations.lock:
            number, self._offset = _find(self._path, lines)
            self._sequence = self._rotations.count - number

    def read(self) -> bytes:
        """The next bytes; b"" at the end of all that is written."""
        with self._rotations.lock:
            while True:
                number = self._rotations.count - self._sequence
                if data := _read_at(_part(self._path, number), self._offset):
                    self._offset += len(data)
                    return data
                if number == 0:
                    break
                self._sequence, self._offset = self._sequence + 1, 0  # read to its end, or removed meanwhile
            if size(self._path) < self._offset:
                self._offset = 0  # truncated by somebody else
            return b""


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.rotating")


def _rotated(path: Path) -> Iterator[Path]:
    """The rotated parts that exist, newest first."""
    number = 1
    while (part := _part(path, number)).exists():
        yield part
        number += 1


def _read_at(part: Path, offset: int, length: int = _CHUNK_BYTES) -> bytes:
    try:
        with part.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)
    except OSError:
        return b""


def _copy(source: int, target: int, offset: int, end: int) -> int:
    """Copy from `offset` to `end` or the end of the file; returns how far it came."""
    while offset < end and (count := os.sendfile(target, source, offset, min(_COPY_BYTES, end - offset))):
        offset += count
    return offset


def _find(path: Path, lines: int) -> tuple[int, int]:
    """Where the last `lines` lines begin (0: all, -1: none): the number of the part and an offset in it."""
    parts = [path, *_rotated(path)]
    if lines <= 0:
        return (0, size(path)) if lines else (len(parts) - 1, 0)
    skip = 1  # the line feed at the very end starts no line
    for number, part in enumerate(parts):
        end = size(part)
        if end:
            end, skip = end - skip, 0
        while end > 0:
            begin = max(0, end - _CHUNK_BYTES)
            block = _read_at(part, begin, end - begin)
            found = block.count(b"\n")
            if found >= lines:
                return number, begin + _nth_last(block, lines) + 1
            lines, end = lines - found, begin
    return len(parts) - 1, 0


def _nth_last(block: bytes, count: int) -> int:
    """The place of the `count`-th line feed from the end."""
    place = len(block)
    for _ in range(count):
        place = block.rfind(b"\n", 0, place)
    return place
