"""Disk space that is promised to pulls before their first byte, over all processes that fetch into one cache.

Each pull writes what it still needs into a file of its own and holds a lock on it. A number without a holder counts
for nothing: a pull that was killed holds no space back.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from agent.artifacts.errors import ArtifactError, refused
from agent.artifacts.locks import Lock
from agent.status import DiagnosisCode

_GIB = 1024**3
#: Seconds that another pull may take to count what is promised.
_DEADLINE = 30.0


class Reservation:
    """What one pull still needs of the disk of `cache`. `keep` bytes of it stay free."""

    def __init__(self, cache: Path, keep: int) -> None:
        self._cache, self._keep = cache, keep
        self._folder = cache / "reserved"
        self._own = Lock(self._folder / f"{os.getpid()}-{time.monotonic_ns()}")
        self.lacking = 0  # bytes, after a refusal: with so many more free it would have been none

    def take(self, needed: int, what: str) -> None:
        """Promise `needed` bytes. Raises `ArtifactError` with the numbers, and `OSError`."""
        with _counting(self._folder / "lock"):
            others = self._others()
            status = os.statvfs(self._cache)
            free = status.f_bavail * status.f_frsize
            if needed > max(0, free - others - self._keep):
                self.lacking = needed + others + self._keep - free
                raise full(self._cache, needed, free, others, self._keep, what)
            if self._own.descriptor >= 0 or self._own.acquire():
                self.left(needed)

    def left(self, needed: int) -> None:
        """So much is still to be written. Raises `OSError`."""
        os.pwrite(self._own.descriptor, b"%019d\n" % max(0, needed), 0)

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._own.path.unlink()
        self._own.release()

    def _others(self) -> int:
        """Bytes that are promised to others; the files of those who ended are removed."""
        total = 0
        for path in self._folder.iterdir():
            if path == self._own.path or path.name == "lock":
                continue
            with contextlib.suppress(OSError, ValueError):
                lock = Lock(path)
                if lock.acquire():
                    path.unlink()
                    lock.release()
                else:
                    total += int(path.read_text() or 0)
        return total


def full(cache: Path, needed: int, free: int, others: int, keep: int, what: str) -> ArtifactError:
    """The refusal with its numbers."""
    parts = [f"{_gib(free)} are free"]
    parts += [f"{_gib(others)} of it promised to other pulls"] if others else []
    parts += [f"{_gib(keep)} must stay free"] if keep else []
    lacking = needed + others + keep - free
    hint = f"free {_gib(lacking)} on that disk, or move directories.cache to a larger one"
    if lacking <= 0:
        hint = "look at the quota and the limits on the size of files that the agent's user has there"
    return refused(DiagnosisCode.DISK_FULL, f"{what} needs {_gib(needed)} in {cache}, where {', '.join(parts)}", hint)


def _gib(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB // 100 else f"{count / 1024**2:.2f} MiB"


@contextlib.contextmanager
def _counting(path: Path) -> Iterator[None]:
    lock, deadline = Lock(path), time.monotonic() + _DEADLINE
    while not lock.acquire():
        if time.monotonic() > deadline:
            raise TimeoutError(0, f"{path} is held by another process")
        time.sleep(0.01)
    try:
        yield
    finally:
        lock.release()
