"""A file that is being fetched: what came lies in `BLOB.incomplete`, and beside it is written how much of each part.

A byte is counted after it was written, in a line of its own for each part: whatever is killed between the two, at
most one buffer of a connection comes again. After a power loss the counts may be ahead of the data: they are believed
only where a digest will be checked at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from agent.artifacts import cache
from agent.artifacts.intake import Intake

#: Bytes of a part: a few seconds of a fast connection, and few enough requests for the largest file.
PART = 64 * 1024**2
_HEAD = 1024
_LINE = 20


class Partial:
    """Opened by the holder of the blob's lock; its methods are called under its user's own lock."""

    def __init__(self, path: Path, size: int, *, has_digest: bool) -> None:
        """Takes up what was left of an earlier attempt. Raises `OSError`."""
        self.path, self.size = path, size
        self.etag = ""  # of the answers that the data came from
        self.part = PART
        self._notes = path.with_name(path.name + ".parts")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor = _open(path)
        self._counts = _open(self._notes)
        self.done = self._remembered(has_digest=has_digest)
        if not self.done or not self.received:
            self.reset()

    @property
    def received(self) -> int:
        return sum(self.done)

    def span(self, index: int) -> tuple[int, int]:
        """Where a part begins and ends."""
        return index * self.part, min(self.size, (index + 1) * self.part)

    def whole(self) -> int:
        """Bytes from the beginning on that are there without a gap."""
        for index, count in enumerate(self.done):
            start, end = self.span(index)
            if start + count < end:
                return start + count
        return self.size

    def write(self, index: int, came: Intake) -> None:
        """The next bytes of a part. Raises `OSError`."""
        count = came.size
        came.write(self.descriptor, self.span(index)[0] + self.done[index])
        self.done[index] += count
        self._count(index)

    def learn(self, etag: str) -> None:
        self.etag = etag
        self._head()

    def reset(self, *, parts: bool = True) -> None:
        """Begin anew, in one part where the source cannot send others. The old bytes are written over."""
        self.part, self.etag = PART if parts else max(1, self.size), ""
        self.done = [0] * -(-self.size // self.part)
        os.ftruncate(self._counts, 0)
        self._head()
        for index in range(len(self.done)):
            self._count(index)
        os.ftruncate(self.descriptor, self.size)

    def finish(self, blob: Path) -> None:
        """The whole file, verified: durable, then visible. Raises `OSError`."""
        os.fchmod(self.descriptor, 0o644)
        os.fsync(self.descriptor)
        self.path.replace(blob)
        cache.sync(blob.parent)
        self._notes.unlink(missing_ok=True)
        self.close()

    def discard(self) -> None:
        for path in (self.path, self._notes):
            with contextlib.suppress(OSError):
                path.unlink()
        self.close()

    def close(self) -> None:
        for descriptor in (self.descriptor, self._counts):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor = self._counts = -1

    def _head(self) -> None:
        data = {"size": self.size, "part": self.part, "etag": self.etag, "boot": _boot()}
        os.pwrite(self._counts, json.dumps(data).encode().ljust(_HEAD - 1)[: _HEAD - 1] + b"\n", 0)

    def _count(self, index: int) -> None:
        os.pwrite(self._counts, b"%019d\n" % self.done[index], _HEAD + index * _LINE)

    def _remembered(self, *, has_digest: bool) -> list[int]:
        """How much of each part is there; [] for what is of another file, damaged, or not to be believed."""
        try:
            head: dict[str, Any] = json.loads(os.pread(self._counts, _HEAD, 0))
            believed = has_digest or head["boot"] == _boot()
            part, etag = head["part"], head["etag"]
            if head["size"] != self.size or part not in {PART, self.size} or not isinstance(etag, str) or not believed:
                return []
            count = -(-self.size // part)
            lines = os.pread(self._counts, count * _LINE, _HEAD).split(b"\n")
            self.part, done = part, [int(line) for line in lines[:-1]]
            spans = [self.span(index) for index in range(count)]
            fits = len(done) == count and all(
                0 <= count <= end - start for count, (start, end) in zip(done, spans, strict=True)
            )
        except (ValueError, KeyError, TypeError):
            return []
        if not fits or os.fstat(self.descriptor).st_size != self.size:
            return []
        self.etag = etag
        return done


def _open(path: Path) -> int:
    """A regular file, made where there is none; no link is followed. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileExistsError(0, "it is no regular file", str(path))
    return descriptor


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
