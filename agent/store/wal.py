"""The write-ahead log as bytes, to see and to save what SQLite leaves out without a word.

SQLite replays a WAL up to the first frame whose checksum fails, because after a power loss the last commit may be
torn, and that one was never acknowledged. Where whole commits follow the bad frame, acknowledged ones are lost:
that is damage. Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Frames (4 KiB pages) after which SQLite moves the WAL into the database: 2 ms every hundred writes or so, for a
#: WAL of about 1 MiB, which `problem_of` reads in some 20 ms.
CHECKPOINT_FRAMES = 256

#: Bytes above which a WAL is left to SQLite alone: it grows past some MiB only while another program reads.
CHECKED = 16 * 1024 * 1024

PAGE = 4096  # SQLite's default, which we never change

_HEADER = struct.Struct(">8I")  # magic, version, page size, checkpoint, salt, salt, checksum, checksum
_FRAME = struct.Struct(">6I")  # page number, size of the database after a commit or 0, salt, salt, checksum, checksum
_MAGIC = 0x377F0682  # + 1: the checksums read big-endian words


@dataclass(frozen=True, slots=True)
class Frame:
    """One page as it was written. `valid`: its checksum continues the previous one's."""

    page: int
    commit: int  # pages of the database after this commit; 0 within a transaction
    valid: bool
    content: bytes


def problem_of(path: Path) -> str:
    """What is wrong with a WAL beyond a torn last commit; "" if nothing is, or if there is no WAL."""
    log = _read(path)
    if not log.strip(b"\0"):
        return ""
    if not _header_valid(log):
        return "the header of its WAL is damaged"
    lost = 0
    broken = False
    for frame in frames(path):
        broken = broken or not frame.valid
        lost += bool(broken and frame.commit)
    return f"{lost} commits in its WAL follow a damaged frame" if lost > 1 else ""


def frames(path: Path) -> Iterator[Frame]:
    """The frames since the WAL was last begun anew, good and bad, until one of an earlier round."""
    log = _read(path)
    if len(log) < _HEADER.size + _FRAME.size:
        return
    words = "<" if log[3] & 1 == 0 else ">"
    # The first frame repeats the header's salts, and is believed where the header is damaged.
    salts = log[_HEADER.size + 8 : _HEADER.size + 16]
    previous = _HEADER.unpack_from(log)[6:]
    for start in range(_HEADER.size, len(log) - _FRAME.size - PAGE + 1, _FRAME.size + PAGE):
        page, commit, *_, first, second = _FRAME.unpack_from(log, start)
        if log[start + 8 : start + 16] != salts:
            return
        content = log[start + _FRAME.size : start + _FRAME.size + PAGE]
        valid = _checksum(log[start : start + 8] + content, words, previous) == (first, second)
        previous = (first, second)
        yield Frame(page, commit, valid, content)


def replay(database: bytes, path: Path) -> bytes:
    """The database with all commits of the WAL applied, the doubtful ones too. Every row must prove itself."""
    pages = bytearray(database)
    transaction: list[Frame] = []
    for frame in frames(path):
        transaction.append(frame)
        if frame.commit * PAGE > len(pages) + len(transaction) * PAGE:
            continue  # a size that cannot be: this frame's header is damaged
        if frame.commit:
            pages = pages[: frame.commit * PAGE].ljust(frame.commit * PAGE, b"\0")
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
