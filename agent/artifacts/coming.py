"""One file on its way: its parts, which somebody fetches, and its digest, which follows what lies on the disk.

Several threads use it. What they share is guarded by `changed`, which nobody holds for long.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from agent.artifacts import intake, locks
from agent.artifacts.cache import Folder, below
from agent.artifacts.errors import corrupt
from agent.artifacts.intake import Intake
from agent.artifacts.partial import Partial
from agent.frozen import frozen

#: Bytes that lie on the disk before the hashing thread is woken for them.
_BATCH = 2 * 1024**2


@frozen
class Wanted:
    """One file: where it is, and what it must be. `digest` is sha256:..., md5:..., git:... (a blob's of git), or ""."""

    name: str
    url: str
    size: int
    digest: str
    blob: str  # the name of its content in the cache; of what is not announced: "", and its digest names it
    etag: str = ""  # of the version that was listed, where no other one may come


@frozen
class Listing:
    """What a source has at one commit: the files that may lie in a cache, by name."""

    commit: str  # "": the source has none, and the contents of what was chosen name one
    files: Mapping[str, Wanted]
    #: What only a question for each file tells, asked for those that were chosen. Raises as listing does.
    detailed: Callable[[Sequence[Wanted]], Sequence[Wanted]] = list


class StartOver(Exception):
    """What came so far is of another file than what comes now. `parts`: whether this one can be had in parts."""

    def __init__(self, message: str, *, parts: bool) -> None:
        super().__init__(message)
        self.parts = parts


class Task(NamedTuple):
    """A part that one thread fetches. `generation`: of the file's beginnings, when it was taken."""

    part: int
    generation: int


class Span(NamedTuple):
    """What of a part is still to come, and where it is."""

    start: int
    end: int
    etag: str
    url: str


class ComingFile:
    """`ended` says whether all is over: then nobody waits any more."""

    def __init__(self, wanted: Wanted, folder: Folder, ended: Callable[[], bool]) -> None:
        self.wanted = wanted
        self.blob = folder.blobs / wanted.blob if wanted.blob else None
        self.key = wanted.blob or hashlib.sha256(wanted.url.encode()).hexdigest()
        self.held = locks.Lock(folder.locks / f"{self.key}.lock")
        self.changed = threading.Condition()
        self.changes = 0  # so often it became another one
        self._incomplete = folder.blobs / f"{self.key}.incomplete"
        self._ended = ended
        self._partial: Partial | None = None
        self._claimed: set[int] = set()
        self._generation = 0  # counts beginnings: what was asked for before the last one is not written
        self._fresh = True  # all of it came in this attempt
        self._target = ""  # where redirects led to
        self._wake_at = 0  # bytes without a gap from which on the hashing thread goes on

    @property
    def received(self) -> int:
        return self._partial.received if self._partial else 0

    def begun(self) -> int:
        """Bytes of the disk that it has by now."""
        return self._incomplete.stat().st_blocks * 512 if self._incomplete.is_file() else 0

    def elsewhere(self) -> int:
        """Bytes of the disk that somebody else has of it by now, the hub's own tool above all."""
        total = 0
        for path in below(self._incomplete.parent, 1, ".incomplete"):
            if path.name.startswith(self.key):
                with contextlib.suppress(FileNotFoundError):  # it is whole by now
                    total += path.stat().st_blocks * 512
        return total

    def existing(self) -> Path | None:
        """The content, where it is there and may be whole."""
        blob = self.blob
        return blob if blob is not None and blob.is_file() and blob.stat().st_size == self.wanted.size else None

    def open(self) -> None:
        """Take up what came of it so far. Raises `OSError`."""
        taken = Partial(self._incomplete, self.wanted.size, has_digest=bool(self.wanted.digest))
        if self.wanted.etag and taken.etag not in {"", self.wanted.etag}:
            taken.reset()
        with self.changed:
            self._partial, self._fresh = taken, not taken.received

    def close(self) -> None:
        with self.changed:
            if self._partial is not None:
                self._partial.close()
        self.held.release()

    # The connections' threads

    def claim(self) -> Task | None:
        """A part that nobody fetches."""
        with self.changed:
            if self._partial is None:
                return None
            for index, count in enumerate(self._partial.done):
                start, end = self._partial.span(index)
                if start + count < end and index not in self._claimed:
                    self._claimed.add(index)
                    return Task(index, self._generation)
        return None

    def give_back(self, task: Task) -> None:
        with self.changed:
            if task.generation == self._generation:
                self._claimed.discard(task.part)

    def span(self, task: Task) -> Span:
        with self.changed:
            taken = self._opened(task)
            start, end = taken.span(task.part)
            return Span(start + taken.done[task.part], end, taken.etag, self._target or self.wanted.url)

    def forget_target(self) -> bool:
        """Whether there was one: an address that the hub named, and that was good for a while."""
        with self.changed:
            had, self._target = bool(self._target), ""
        return had

    def identify(self, task: Task, etag: str, target: str) -> None:
        """What the other side calls the file, and where it was. Raises `StartOver` for another one."""
        with self.changed:
            taken = self._opened(task)
            if taken.etag and etag and etag != taken.etag:
                raise StartOver("it changed while it came", parts=True)
            if etag and not taken.etag:
                taken.learn(etag)
            self._target = target or self._target

    def write(self, task: Task, came: Intake) -> None:
        """The next bytes of a part. Raises `StartOver` for what nobody wants any more, and `OSError`."""
        with self.changed:
            taken = self._opened(task)
            taken.write(task.part, came)
            if taken.whole() >= self._wake_at:
                self.changed.notify_all()

    def start_over(self, task: Task | None, *, parts: bool) -> bool:
        """Begin anew, unless that was done since `task` was taken."""
        with self.changed:
            if self._partial is None or (task is not None and task.generation != self._generation):
                return False
            self._generation += 1
            self._fresh, self._target = True, ""
            self._claimed.clear()
            self._partial.reset(parts=parts)
            self.changed.notify_all()
        return True

    def _opened(self, task: Task) -> Partial:
        if self._partial is None or task.generation != self._generation:
            raise StartOver("it was begun anew", parts=True)
        return self._partial

    # The hashing thread

    def verified(self, moved: Callable[[], None], syncs: Callable[[], None]) -> tuple[Path, str] | None:
        """The content and its digest, when all of it has come and is durable; None when it was begun anew, or all is
        over. `moved` is called whenever something was hashed, `syncs` when the disk is asked to keep it. Raises
        `ArtifactError` and `OSError`."""
        taken, generation = self._partial, self._generation
        assert taken is not None
        digest = self.digest(taken.descriptor, lambda at: self._grown(at, generation), moved)
        if not digest:
            return None
        if digest == self.wanted.digest or not self.wanted.digest:
            blob = self.blob or self._incomplete.with_name(digest.removeprefix("sha256:"))
            syncs()
            taken.finish(blob)
            return blob, digest
        if self._fresh:
            taken.discard()
            raise corrupt(
                f"{self.wanted.name} is not what its source announces", f"{digest}, announced {self.wanted.digest}"
            )
        self.start_over(None, parts=True)  # what an earlier attempt left was damaged
        return None

    def digest(self, descriptor: int, grown: Callable[[int], int], moved: Callable[[], None]) -> str:
        """Of the file as far as it grows; "" when it was begun anew, or all is over."""
        size, form = self.wanted.size, self.wanted.digest.partition(":")[0] or "sha256"
        digest = hashlib.new("sha1" if form == "git" else form, usedforsecurity=False)
        digest.update(b"blob %d\0" % size if form == "git" else b"")
        at, buffer = 0, intake.page_aligned(min(intake.BUFFER, size) or 1)
        while at < size:
            whole = grown(at)
            if whole < 0:
                return ""
            while at < whole and not self._ended():
                count = os.preadv(descriptor, [buffer[: whole - at]], at)
                if not count:
                    raise OSError(0, "somebody cut it while it was read", str(self._incomplete))
                digest.update(buffer[:count])
                at += count
                moved()
        return f"{form}:{digest.hexdigest()}"

    def all_of_it(self, _: int) -> int:
        """For `digest`: it does not grow any more."""
        return -1 if self._ended() else self.wanted.size

    def _grown(self, at: int, generation: int) -> int:
        """Wait for bytes behind `at`; how far they go, or -1."""
        with self.changed:
            while self._generation == generation and not self._ended():
                assert self._partial is not None
                whole = self._partial.whole()
                self._wake_at = min(self.wanted.size, at + _BATCH)
                if whole >= self._wake_at:
                    return whole
                self.changed.wait(1.0)
        return -1
