"""The write-ahead log as bytes, to see and to save what SQLite leaves out without a word.

SQLite replays a WAL up to the first frame whose checksum fails, because after a power loss the last commit may be
torn, and that one was never acknowledged. Where whole commits follow the bad frame, acknowledged ones are lost:
that is damage. Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from agent.frozen import frozen

#: Frames (4 KiB pages) after which SQLite moves the WAL into the database: 2 ms every hundred writes or so, for a
#: WAL of about 1 MiB, which `problem_of` reads in some 20 ms.
CHECKPOINT_FRAMES = 256

#: Bytes above which a WAL is left to SQLite alone: it grows past some MiB only while another program reads.
CHECKED = 16 * 1024 * 1024

PAGE = 4096  # SQLite's default, which we never change

_HEADER = struct.Struct(">8I")  # magic, version, page size, checkpoint, salt, salt, checksum, checksum
_FRAME = struct.Struct(">6I")  # page number, size of the database after a commit or 0, salt, salt, checksum, checksum
_FIRST = _HEADER.size
_STEP = _FRAME.size + PAGE
_MAGIC = 0x377F0682  # + 1: the checksums read big-endian words


@frozen
class Frame:
    """One page as it was written. `valid`: it belongs here, and its checksum continues the previous one's."""

    page: int
    commit: int  # pages of the database after this commit; 0 within a transaction
    valid: bool
    content: bytes


def problem_of(path: Path) -> str:
    """What is wrong with a WAL beyond a torn last commit; "" if nothing is, or if there is no WAL."""
    log = _read(path)
    if not log.strip(b"\0"):
        return ""
    if not _header_valid(log) and len(log) >= _FIRST + _STEP:
        return "the header of its WAL is damaged"
    lost = 0
    broken = False
    for frame in _frames(log):
        broken = broken or not frame.valid
        lost += bool(broken and frame.commit)
    return f"{lost} commits in its WAL follow a damaged frame" if lost > 1 else ""


def _frames(log: bytes) -> Iterator[Frame]:
    """The frames since the WAL was last begun anew, good and bad."""
    if len(log) < _FIRST + _STEP:
        return
    words = "<" if log[3] & 1 == 0 else ">"
    salts = log[16:24] if _header_valid(log) else log[_FIRST + 8 : _FIRST + 16]
    # What follows the last frame with these salts is of an earlier round.
    starts = range(_FIRST, len(log) - _STEP + 1, _STEP)
    end = max((start + 1 for start in starts if log[start + 8 : start + 16] == salts), default=0)
    previous = _HEADER.unpack_from(log)[6:]
    for start in range(_FIRST, end, _STEP):
        page, commit, *_, first, second = _FRAME.unpack_from(log, start)
        content = log[start + _FRAME.size : start + _STEP]
        proved = _checksum(log[start : start + 8] + content, words, previous) == (first, second)
        previous = (first, second)
        yield Frame(page, commit, proved and log[start + 8 : start + 16] == salts, content)


def replay(database: bytes, path: Path) -> bytes:
    """The database with all commits of the WAL applied, the doubtful ones too. Every row must prove itself."""
    pages = bytearray(database)
    transaction: list[Frame] = []
    for frame in _frames(_read(path)):
        transaction.append(frame)
        # Our databases never shrink; and no damaged size may take all memory.
        if 0 < frame.commit * PAGE <= len(pages) + CHECKED:
            pages = pages.ljust(frame.commit * PAGE, b"\0")
            for written in transaction:
                if 0 < written.page <= frame.commit:
                    pages[(written.page - 1) * PAGE : written.page * PAGE] = written.content
            transaction.clear()
    return bytes(pages)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() and path.stat().st_size <= CHECKED else b""


def _header_valid(log: bytes) -> bool:
    if len(log) < _HEADER.size:
        return False
    magic, _, page, _, _, _, first, second = _HEADER.unpack_from(log)
    words = "<" if magic == _MAGIC else ">"
    return magic | 1 == _MAGIC | 1 and page == PAGE and _checksum(log[:24], words, (0, 0)) == (first, second)


def _checksum(content: bytes, words: str, start: tuple[int, ...]) -> tuple[int, int]:
    first, second = start
    numbers = iter(struct.unpack(f"{words}{len(content) // 4}I", content))
    for even, odd in zip(numbers, numbers, strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
