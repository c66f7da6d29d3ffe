"""The thread that owns the database: a queue, group commit, and what is done when the disk refuses.

Writes that wait together share one commit, and so one fsync; each has a savepoint of its own, so that one that
fails takes no other with it.

Where the disk refused at the start, the state is a copy in memory: it can be read, and every write raises but
tries first whether the disk has become writable again. So a disk that was full heals without a restart.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from agent import failpoints
from agent.errors import StoreError
from agent.frozen import frozen
from agent.store import files
from agent.store.backup import BackupKeeper
from agent.store.opening import Opened, open_writable

#: Writes that share one commit, at most: bounds how long the first of them waits for the others.
GROUP = 64


@frozen
class Job:
    """Work on the connection. That of a `change` is committed; other work only reads."""

    work: Callable[[sqlite3.Connection], Any]
    change: bool = False
    desired: bool = False  # changes what the operator wants: worth a backup
    future: Future[Any] = field(default_factory=Future)


class Writer:
    """Runs jobs, in order within one kind; `submit` and `close` may be called from any thread."""

    def __init__(self, directory: Path, opened: Opened, deadline: float) -> None:
        self._directory = directory
        self._database = str(directory / files.DATABASE)
        self._deadline = deadline
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._keeper: BackupKeeper | None = None
        self.last_seq = self._given_seq = 0  # durable; given within a transaction
        self.refusal = opened.problem
        self._adopt(opened)
        self._thread = Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue the job. One whose future is cancelled before its turn is not begun."""
        self._jobs.put(job)

    def close(self) -> bool:
        """Finish what is queued and close the database; False if the disk does not let it end in time. Blocks."""
        self._jobs.put(None)
        self._thread.join(self._deadline)
        return not self._thread.is_alive()

    def give_seq(self) -> int:
        """The number of the next event, for a job that runs now. Taken back if the job fails."""
        self._given_seq += 1
        return self._given_seq

    def _run(self) -> None:
        going = True
        while going:
            jobs, going = self._take()
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            self._commit([job for job in jobs if job.change])
            for job in jobs:
                if not job.change:
                    self._read(job)
        if self._keeper:
            self._keeper.close(self._deadline)
        self._connection.close()

    def _take(self) -> tuple[list[Job], bool]:
        """Everything that waits, at least one job; False with the last jobs ever."""
        jobs: list[Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == GROUP:
                return jobs, True
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return jobs, True
        return jobs, False

    def _read(self, job: Job) -> None:
        try:
            job.future.set_result(job.work(self._connection))
        except Exception as error:  # noqa: BLE001 - whatever it is, a caller waits for the answer
            job.future.set_exception(self._explain(error))

    def _commit(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        try:
            self._require_store()
            self._connection.execute("BEGIN IMMEDIATE")
            done = [(job, result) for job in jobs for result in self._attempt(job)]
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whatever it is, callers wait for the answer
            self._roll_back()
            self._given_seq = self.last_seq
            self._fail([job for job in jobs if not job.future.done()], error)
            return
        self.refusal = None
        self.last_seq = self._given_seq
        for job, result in done:
            job.future.set_result(result)
        if self._keeper and any(job.desired for job, _ in done):
            self._keeper.poke()

    def _attempt(self, job: Job) -> list[Any]:
        """The result of a job that succeeded, or nothing: a failed one is undone and answered."""
        self._connection.execute("SAVEPOINT job")
        given = self._given_seq
        try:
            result = job.work(self._connection)
        except Exception as error:
            if not self._connection.in_transaction:
                raise  # SQLite gave up all of it: the others must be done again
            self._connection.execute("ROLLBACK TO job")
            self._given_seq = given
            job.future.set_exception(self._explain(error))
            return []
        finally:
            if self._connection.in_transaction:
                self._connection.execute("RELEASE job")
        return [result]

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        if len(jobs) > 1 and files.result_code(error) == sqlite3.SQLITE_FULL:
            for job in jobs:  # a small one may still fit
                self._commit([job])
            return
        for job in jobs:
            job.future.set_exception(self._explain(error))

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            with suppress(sqlite3.Error):  # SQLite undoes it at the latest when the connection is closed
                self._connection.execute("ROLLBACK")

    def _explain(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.Error | OSError):
            error = files.refusal(error, self._directory)
        if isinstance(error, StoreError):
            self.refusal = error
        return error

    def _adopt(self, opened: Opened) -> None:
        self._connection = opened.connection
        self.in_memory = opened.problem is not None
        self.last_seq = self._given_seq = opened.loaded.last_event_seq
        self._inode = files.inode(self._database)
        self._keeper = None if self.in_memory else BackupKeeper(self._directory)
        if self._keeper:
            self._keeper.poke()

    def _require_store(self) -> None:
        """Raises `StoreError` where a commit would go nowhere."""
        failpoints.hit("store-write")
        if self.in_memory:
            opened = open_writable(self._directory, self._deadline)
            self._connection.close()
            self._adopt(opened)
        # A commit to a file that was unlinked or replaced succeeds, and is lost.
        if files.inode(self._database) != self._inode:
            raise StoreError(f"{self._database} was removed or replaced", hint="restart agentd")
