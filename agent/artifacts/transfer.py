"""Brings files into the cache: several connections, parts of large files side by side, digests while they come.

A thread a connection takes the next part that nobody has, first of the files that were begun. A thread a file hashes
what lies on the disk without a gap, new or left by an earlier attempt: one way for both, and what is verified is what
an engine will read. The main thread watches and tells. Everything that may pass is tried again until nothing has moved
for `stall_seconds`.
"""

from __future__ import annotations

import collections
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from agent.artifacts import cache, locks
from agent.artifacts.access import SourceAccess
from agent.artifacts.answers import asked
from agent.artifacts.cache import Folder, KeptFile
from agent.artifacts.coming import ComingFile, StartOver, Task, Wanted
from agent.artifacts.connections import Answer, ConnectionFailed, Connections
from agent.artifacts.errors import ArtifactError, corrupt, unavailable
from agent.artifacts.intake import InMemory, InPipe, Intake, Unspliceable
from agent.artifacts.throttle import Throttle
from agent.frozen import frozen
from agent.origins import NotFollowed
from agent.retries import Again

#: Seconds after which what came is written, however little it is: a slow connection loses no more when it is killed.
_FLUSH = 0.5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0
#: A file that changes on the other side while it comes is begun anew so often.
_CHANGES = 3
#: So often in a row a connection obeys "later", before the pull ends with it.
_REFUSALS = 8
#: Seconds that threads have to end after a failure; one that hangs in a dead disk is left behind, with its locks.
_END_DEADLINE = 2.0
#: Seconds that a disk has to take a file that it only has in memory so far: what is dirty of 60 GiB on a slow one.
_SYNC_DEADLINE = 900.0
_TICK = 0.2
#: Seconds between two looks at a lock that another process holds.
_LOCK_PAUSE = 0.3


@frozen
class Options:
    """How to transfer."""

    access: SourceAccess
    connections: int
    stall_seconds: float
    subject: str  # the reference, for people


#: Called by the main thread: step, bytes that are here, bytes of all files.
Report = Callable[[str, int, int], None]


class Transfer:
    """Fetches lists of files into one folder of the cache."""

    def __init__(self, folder: Folder, options: Options, throttle: Throttle, report: Report) -> None:
        self._folder, self._options, self._throttle, self._report = folder, options, throttle, report
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()  # guards what follows
        self._pending: collections.deque[ComingFile] = collections.deque()
        self._open: list[ComingFile] = []
        self._busy: dict[ComingFile, tuple[float, int]] = {}  # when to look again, and what its owner had by then
        self._found: dict[str, KeptFile] = {}
        self._error: BaseException | None = None
        self._left = 0
        self._active = time.monotonic()  # when something moved
        self._not_before = 0.0  # monotonic: nothing is asked for until then
        self._told_until = 0.0  # the same, where the other side asked for it: no stall
        self._syncing: dict[ComingFile, float] = {}  # since when
        self._failures, self._last = 0, ""  # in a row, and what the last one was
        self._waited_for = ""

    def needed(self, files: Sequence[Wanted]) -> int:
        """Bytes of the disk that these will take beyond what they have by now."""
        different = {file.blob or file.url: file for file in files}.values()
        begun = [ComingFile(file, self._folder, self._ended) for file in different]
        return sum(max(0, one.wanted.size - one.begun()) for one in begun if one.existing() is None)

    def fetch(self, files: Sequence[Wanted]) -> Mapping[str, KeptFile]:
        """All of them, verified, by name. Raises `ArtifactError` and `OSError`; what came stays for the next time."""
        known = self._folder.verified()
        total = sum(found.size for found in self._found.values()) + sum(file.size for file in files)
        wanted: dict[str, list[Wanted]] = {}  # by content: a repository may have it under several names
        for file in files:
            if (found := known.get(file.blob)) is not None and found.size == file.size:
                self._found[file.name] = replace(found, name=file.name)
            else:
                wanted.setdefault(file.blob or file.url, []).append(file)
        self._folder.blobs.mkdir(parents=True, exist_ok=True)
        self._pending.extend(ComingFile(several[0], self._folder, self._ended) for several in wanted.values())
        self._left, self._active = len(wanted), time.monotonic()
        for _ in range(self._options.connections if wanted else 0):
            self._start(self._work)
        try:
            self._watch(total)
        except BaseException as error:
            self._fail(error)
            self._let_go()
            raise
        for first, *others in wanted.values():
            for file in others:
                self._found[file.name] = replace(self._found[first.name], name=file.name)
        return self._found

    # The main thread

    def _watch(self, total: int) -> None:
        while True:
            with self._changed:
                if self._left and self._error is None:
                    self._changed.wait(_TICK)
                error, left, waited_for = self._error, self._left, self._waited_for
                done = sum(file.size for file in self._found.values()) + sum(file.received for file in self._open)
                stalled = self._stalled(time.monotonic())
            if error is not None:
                raise error
            if not left:
                return
            step = f"waiting for {waited_for}" if waited_for else "fetching" if done < total else "verifying"
            self._report(step, done, total)
            if stalled is not None:
                raise stalled

    def _stalled(self, now: float) -> ArtifactError | None:
        subject, patience = self._options.subject, self._options.stall_seconds
        if self._syncing:
            since = min(self._syncing.values())
            return unavailable(f"{subject}: the disk hangs", "look at it") if now - since > _SYNC_DEADLINE else None
        if now - max(self._active, self._told_until) <= patience:
            return None
        if self._waited_for:
            return unavailable(
                f"{subject}: {self._waited_for} holds a file of it and did nothing for {patience:g} s",
                "end that process, if it hangs",
            )
        return unavailable(
            f"{subject}: nothing came for {patience:g} s" + (f"; last: {self._last}" if self._last else "")
        )

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        with self._changed:
            self._threads.append(thread)
        thread.start()

    def _let_go(self) -> None:
        """End what is under way; what came stays where it is."""
        deadline = time.monotonic() + _END_DEADLINE
        for thread in tuple(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            for file in self._open:
                file.close()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
            begun = tuple(self._open)
        for file in begun:
            with file.changed:
                file.changed.notify_all()

    def _ended(self) -> bool:
        return self._error is not None

    def _moved(self) -> None:
        self._active = time.monotonic()

    # The connections' threads

    def _work(self) -> None:
        options = self._options
        silence = min(30.0, max(0.5, options.stall_seconds / 3))
        connections = Connections(options.access, silence)
        memory: Intake = InMemory()
        pipe: Intake | None = InPipe() if sys.platform == "linux" else None
        while (taken := self._take()) is not None:
            file, task = taken
            try:
                answer = asked(connections, file, task, options.access, options.subject)
                self._receive(answer, pipe if pipe and answer.spliceable else memory, file, task)
            except Unspliceable:
                pipe = None
            except Again as error:
                self._pause(error)
            except StartOver as error:
                self._start_over(file, task, error)
            except NotFollowed as error:
                self._fail(unavailable(f"{file.wanted.name} of {options.subject}: {error}", ""))
            except Exception as error:  # noqa: BLE001 - raised again by the main thread
                self._fail(error)
            finally:
                file.give_back(task)
        connections.close()
        if pipe is not None:
            pipe.close()

    def _take(self) -> tuple[ComingFile, Task] | None:
        """The next part to fetch; None when nothing is left to do."""
        while True:
            with self._changed:
                if not self._left or self._error is not None:
                    return None
                now = time.monotonic()
                for file in self._open if now >= self._not_before else ():
                    if (task := file.claim()) is not None:
                        return file, task
                next_one = self._next(now)
                if next_one is None:
                    self._changed.wait(min(_TICK, max(0.01, self._not_before - now)))
                    continue
            try:
                self._begin(*next_one)
            except Exception as error:  # noqa: BLE001 - raised again by the main thread
                self._fail(error)

    def _next(self, now: float) -> tuple[ComingFile, int] | None:
        """A file to begin: of those whose lock somebody else held (and what that one had), then a new one."""
        for file, (again_at, had) in self._busy.items():
            if again_at <= now:
                del self._busy[file]
                return file, had
        # Files whose last bytes are being hashed are open too.
        if self._pending and len(self._open) < 2 * self._options.connections:
            return self._pending.popleft(), -1
        return None

    def _begin(self, file: ComingFile, had: int) -> None:
        """Lock it, and take up what is there of it."""
        if not file.held.acquire():
            self._note_owner(file, had)
            return
        try:
            existing = file.existing()
            if existing is None:
                file.open()
        except BaseException:
            file.close()
            raise
        with self._changed:
            self._waited_for = ""
            self._open.append(file)
            self._moved()
            self._changed.notify_all()
        self._start(self._verify, file, existing)

    def _note_owner(self, file: ComingFile, had: int) -> None:
        """Another process fetches it. As long as that gets on, it is waited for."""
        has, who = file.elsewhere(), locks.owner(file.held.path) or "another process"
        with self._changed:
            self._busy[file] = (time.monotonic() + _LOCK_PAUSE, has)
            self._waited_for = "" if self._open else who
            if has != had:
                self._moved()

    def _receive(self, answer: Answer, came: Intake, file: ComingFile, task: Task) -> None:
        """Read the rest of a part; what came is written, also when more does not."""
        piece, written_at = self._throttle.piece, time.monotonic()
        try:
            start, end, *_ = file.span(task)
            missing = end - start
            while missing > came.size and not self._ended():
                before = came.size
                if not came.take(answer, min(missing, piece) - before):
                    raise ConnectionFailed(f"the connection ended {missing - before} bytes early")
                self._throttle.spend(came.size - before)
                now = time.monotonic()
                if came.full or came.size >= min(missing, piece) or now - written_at > _FLUSH:
                    missing, written_at = missing - came.size, now
                    self._write(file, task, came)
        finally:
            answer.close()
            try:
                if came.size:
                    self._write(file, task, came)
            finally:
                came.drop()

    def _write(self, file: ComingFile, task: Task, came: Intake) -> None:
        file.write(task, came)
        self._moved()
        self._failures = 0

    def _pause(self, error: Again) -> None:
        """Nobody asks for a while: what ails one connection mostly ails all."""
        with self._changed:
            self._last, now = str(error), time.monotonic()
            self._failures += 1
            told = error.wait
            if told and self._failures > _REFUSALS * self._options.connections:
                self._error = self._error or unavailable(f"{self._options.subject}: {error}, again and again")
            if told:
                self._told_until = max(self._told_until, now + told)
            elif self._failures > 1:  # the first time at once: connections do break
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(10, self._failures - 2))
                self._not_before = max(self._not_before, now + pause * random.uniform(0.75, 1.25))
            self._not_before = max(self._not_before, self._told_until)
            self._changed.notify_all()

    def _start_over(self, file: ComingFile, task: Task, why: StartOver) -> None:
        if file.start_over(task, parts=why.parts):
            file.changes += 1
            if file.changes > _CHANGES:
                self._fail(unavailable(f"{file.wanted.name} of {self._options.subject}: {why}, again and again"))
        with self._changed:
            self._changed.notify_all()

    # The files' threads

    def _verify(self, file: ComingFile, existing: Path | None) -> None:
        try:
            found = self._verified(file, existing) if existing else None
            while found is None and not self._ended():
                with self._changed:
                    self._changed.notify_all()  # it was begun, or begun anew
                found = file.verified(self._moved, partial(self._sync, file))
            if found is not None:
                self._done(file, *found)
        except Exception as error:  # noqa: BLE001 - raised again by the main thread
            self._fail(error)

    def _verified(self, file: ComingFile, blob: Path) -> tuple[Path, str] | None:
        """The content that is there; None where it is not what it must be: then it comes again."""
        with blob.open("rb", buffering=0) as opened:
            digest = file.digest(opened.fileno(), file.all_of_it, self._moved)
        if digest == file.wanted.digest:
            return blob, digest
        if digest and not file.wanted.url:
            raise corrupt(f"{blob}, {file.wanted.name} of {self._options.subject}, is damaged")
        if digest:  # what an engine has opened stays as it is
            file.open()
        return None

    def _sync(self, file: ComingFile) -> None:
        """From now on the disk decides how long it takes."""
        with self._changed:
            self._syncing[file] = time.monotonic()

    def _done(self, file: ComingFile, blob: Path, digest: str) -> None:
        found = cache.identify(blob, file.wanted.name, digest)
        file.held.release()
        with self._changed:
            self._syncing.pop(file, None)
            self._found[file.wanted.name] = found
            self._open.remove(file)
            self._left -= 1
            self._moved()
            self._changed.notify_all()
