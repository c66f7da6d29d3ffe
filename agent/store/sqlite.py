"""The durable state: what `write` acknowledges is on disk, and the event loop never waits for that disk.

This is the face towards the event loop and the SQL of each request; `writer` has the thread that runs it.
"""

# ruff: noqa: S608 - the names in our SQL are constants of this package

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import time
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, assert_never

from agent.errors import NotFound, StoreError
from agent.status import Event, Severity
from agent.store import files, salvage
from agent.store.lock import StateLock
from agent.store.opening import UNMOVED, Opened, open_state, quarantine_of
from agent.store.records import (
    Change,
    DropDeployment,
    DropInstance,
    DropMeasurement,
    Loaded,
    PutDeployment,
    PutEvent,
    PutInstance,
    PutMeasurement,
    PutMeta,
    PutRequest,
    Quarantined,
    RequestRecord,
)
from agent.store.rows import (
    DEPLOYMENTS,
    EVENTS,
    INSTANCES,
    MEASUREMENTS,
    META,
    PLANS,
    REFERENCE,
    REQUESTS,
    Damaged,
    Meta,
    Table,
    plan_row,
    referring,
)
from agent.store.writer import Job, Writer

#: Where a change writes its record to.
_TABLE_OF: Mapping[type, Table[Any]] = {
    PutDeployment: DEPLOYMENTS,
    PutRequest: REQUESTS,
    PutMeasurement: MEASUREMENTS,
}

#: Rows that one transaction of `prune` deletes: about a millisecond, so that no other write waits longer.
CHUNK = 500
#: Bytes that a disk which was full must have again: a change or two fit into what the files have anyway, and an
#: instance with its plan and its events takes some 40 KiB, the log included.
ROOM = 128 * 1024


class Store:
    """The open store. Use from one event loop; make it with `open`."""

    def __init__(self, directory: Path, lock: StateLock, opened: Opened, deadline: float) -> None:
        self._directory = directory
        self._lock = lock
        self._deadline = deadline
        self._closed = False
        self._oldest_seq = _oldest_seq(opened.connection)
        self._writer = Writer(directory, opened, deadline)

    @classmethod
    def open(cls, directory: Path, *, deadline: float = 5.0) -> tuple[Store, Loaded]:
        """Lock and open the state directory; blocks, so call it in a thread.

        What is damaged is set aside, replaced as far as possible, and reported in `Loaded`. A disk that refuses
        writes gives a store that is not `writable`, if there is anything to read.

        `deadline` is the longest wait for one answer, in seconds. Raises `FailedPrecondition` where another
        daemon uses the directory or a newer release wrote it, `StoreError` where nothing can be read or begun.
        """
        lock = StateLock.acquire(directory)
        try:
            opened = open_state(directory, deadline)
        except BaseException:
            lock.release()
            raise
        return cls(directory, lock, opened, deadline), opened.loaded

    @property
    def writable(self) -> bool:
        """Whether the last attempt to write succeeded."""
        return self._writer.refusal is None

    @property
    def problem(self) -> str:
        """Why the state cannot be written and what to do; "" while it can."""
        refusal = self._writer.refusal
        return f"{refusal.message}; {refusal.hint}" if refusal else ""

    @property
    def last_seq(self) -> int:
        """The number of the newest event."""
        return self._writer.last_seq

    @property
    def oldest_seq(self) -> int:
        """The number of the oldest event that is kept; `last_seq` + 1 when there is none."""
        return self._oldest_seq or self.last_seq + 1

    def write(self, *changes: Change) -> Awaitable[tuple[Event, ...]]:
        """Make all changes in one transaction, begun by this call; on disk once the answer was awaited. The events come
        back with their `seq`.

        Raises `StoreError`; then nothing was written, unless the message says that the outcome is unknown.
        """
        desired = any(isinstance(change, PutDeployment | DropDeployment) for change in changes)
        return self._do(Job(lambda connection: self._apply(connection, changes), change=True, desired=desired))

    async def events(self, deployment: str, *, before_seq: int, limit: int) -> tuple[Event, ...]:
        """The newest `limit` events with seq < `before_seq` (0: no bound), oldest first; of all deployments for ""."""
        bound = before_seq or salvage.SEQ_LIMIT
        return (await self._select_events("seq < ?", bound, deployment, "seq DESC", limit))[::-1]

    async def events_after(self, seq: int, deployment: str, limit: int) -> tuple[Event, ...]:
        """The oldest `limit` events with a number above `seq`, oldest first; of all deployments for ""."""
        return await self._select_events("seq > ?", seq, deployment, "seq", limit)

    async def _select_events(self, bound: str, seq: int, deployment: str, order: str, limit: int) -> tuple[Event, ...]:
        where, parameters = (f"{bound} AND deployment = ?", (seq, deployment)) if deployment else (bound, (seq,))
        query = f"{EVENTS.select} WHERE {where} ORDER BY {order} LIMIT ?"
        rows = await self._do(Job(lambda connection: connection.execute(query, (*parameters, limit)).fetchall()))
        return tuple(_event(row) for row in rows)

    async def request(self, request_id: str) -> RequestRecord | None:
        """The answered change of that id; None where there is none. A damaged row answers no request."""
        query = f"{REQUESTS.select} WHERE request_id = ?"
        row = await self._do(Job(lambda connection: connection.execute(query, (request_id,)).fetchone()))
        try:
            return None if row is None else REQUESTS.decode(row)
        except Damaged:
            return None

    async def prune(self, *, events: int, request_age_seconds: float) -> None:
        """Keep the newest `events` events (at least one), the requests that are younger than the given age, and the
        plans of instances."""
        horizon = time.time() - request_age_seconds
        while await self._do(Job(lambda connection: self._prune(connection, max(events, 1), horizon), change=True)):
            pass

    async def quarantine(
        self, what: Literal["deployment", "instance", "ledger"], key: str, problem: str
    ) -> Quarantined:
        """Set a record aside that the caller cannot use. Works, until the next start, without a writable disk too.

        Raises `NotFound`, `StoreError`.
        """
        tables: tuple[Table[Any], ...] = (DEPLOYMENTS, INSTANCES, MEASUREMENTS)
        table = next(table for table in tables if table.name == what)

        def work(connection: sqlite3.Connection) -> Quarantined:
            query = f"SELECT rowid, {table.names} FROM {table.name} WHERE {table.key} = ?"
            found = connection.execute(query, (key,)).fetchone()
            if found is None:
                raise NotFound(f"there is no record of {what} {key}")
            salvage.quarantine(connection, table.name, found[0], found[1:], problem)
            where = UNMOVED if self._writer.in_memory else quarantine_of(self._directory)
            return Quarantined(f"{what} {key}", where, problem)

        quarantined: Quarantined = await self._do(Job(work, change=not self._writer.in_memory))
        return quarantined

    async def check(self) -> None:
        """Prove that the state can be made durable, by doing it, and that more can. Raises `StoreError`."""
        await self.write(PutMeta("checked_at", repr(time.time())))

        def full() -> bool:
            status = os.statvfs(self._directory)
            return status.f_bavail * status.f_frsize < ROOM

        try:
            if await asyncio.to_thread(full):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise files.refusal(error, self._directory) from None

    async def close(self) -> None:
        """Finish what is queued, close the database and give the lock back."""
        if self._closed:
            return
        self._closed = True
        if await asyncio.to_thread(self._writer.close):
            self._lock.release()

    def _do(self, job: Job) -> Awaitable[Any]:
        """Queue the job at once; its result is to be awaited."""
        if self._closed:
            job.future.set_exception(StoreError("the store is closed"))
        else:
            self._writer.submit(job)
        return self._answer(job)

    async def _answer(self, job: Job) -> Any:
        try:
            async with asyncio.timeout(self._deadline):
                return await asyncio.wrap_future(job.future)
        except TimeoutError:
            outcome = "nothing was written" if job.future.cancel() else "the outcome is unknown"
            raise StoreError(
                f"the disk of {self._directory} did not answer within {self._deadline:g} s; {outcome}",
                hint="look into the kernel's log for the disk",
            ) from None

    def _apply(self, connection: sqlite3.Connection, changes: tuple[Change, ...]) -> tuple[Event, ...]:
        events: list[Event] = []
        for change in changes:
            match change:
                case PutInstance(instance):
                    connection.execute(PLANS.keep, plan_row(instance.plan_json))
                    connection.execute(INSTANCES.put, INSTANCES.encode(referring(instance)))
                case PutDeployment(record) | PutRequest(record) | PutMeasurement(record):
                    table = _TABLE_OF[type(change)]
                    connection.execute(table.put, table.encode(record))
                case DropDeployment(name):
                    connection.execute("DELETE FROM deployment WHERE name = ?", (name,))
                    connection.execute("DELETE FROM instance WHERE deployment = ?", (name,))
                case DropInstance(id):
                    connection.execute("DELETE FROM instance WHERE id = ?", (id,))
                case PutEvent(event):
                    events.append(replace(event, seq=self._writer.give_seq()))
                    connection.execute(EVENTS.put, EVENTS.encode(events[-1]))
                case PutMeta(key, value):
                    connection.execute(META.put, META.encode(Meta(key, value)))
                case DropMeasurement(id):
                    connection.execute("DELETE FROM ledger WHERE id = ?", (id,))
                case _:
                    assert_never(change)
        return tuple(events)

    def _prune(self, connection: sqlite3.Connection, events: int, horizon: float) -> bool:
        """Delete one chunk of each table; whether there may be more."""
        newest = "SELECT seq FROM event ORDER BY seq DESC LIMIT 1 OFFSET ?"
        chunk = f"SELECT seq FROM event WHERE seq <= ({newest}) ORDER BY seq LIMIT {CHUNK}"
        gone = connection.execute(f"DELETE FROM event WHERE seq IN ({chunk})", (events,)).rowcount
        chunk = f"SELECT rowid FROM request WHERE at < ? LIMIT {CHUNK}"
        old = connection.execute(f"DELETE FROM request WHERE rowid IN ({chunk})", (horizon,)).rowcount
        connection.execute(f"DELETE FROM plan WHERE {REFERENCE} NOT IN (SELECT plan_json FROM instance)")
        self._oldest_seq = _oldest_seq(connection)
        return CHUNK in (gone, old)


def _oldest_seq(connection: sqlite3.Connection) -> int:
    """0 where there is no event."""
    (oldest,) = connection.execute("SELECT ifnull(min(seq), 0) FROM event").fetchone()
    return int(oldest)


def _event(row: tuple[Any, ...]) -> Event:
    """An event as it was written; a damaged line says so, because it must not hide the others."""
    try:
        return EVENTS.decode(row)
    except Damaged as error:
        return Event(
            "EventDamaged", f"this line of the history is damaged: {error}", Severity.WARNING, seq=int(row[-1])
        )
