"""How the store is opened: whole and writable; or salvaged first; or, where the disk refuses, for reading only.

Nothing is written to a database that was not found whole. No stored record keeps the daemon from starting: a
bad row goes to the table `quarantine`, and its last good version comes back from the backup where there is one.
"""

# ruff: noqa: S608 - the names in our SQL are constants of this package

from __future__ import annotations

import re
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from agent.errors import StoreError
from agent.frozen import frozen
from agent.store import files, salvage, schema, wal
from agent.store.records import Loaded, Quarantined
from agent.store.rows import (
    DEPLOYMENTS,
    EVENTS,
    INSTANCES,
    MEASUREMENTS,
    META,
    PLANS,
    QUARANTINE,
    REQUESTS,
    Damaged,
    Meta,
    Table,
    reference,
    resolved,
)

R = TypeVar("R")

#: Salvaged rows that are reported one by one; the rest of a large loss is one line.
REPORTED = 20

#: Where damaged rows are while the disk takes no writes.
UNMOVED = "left in place: nothing can be written"

TABLES: tuple[Table[Any], ...] = (META, DEPLOYMENTS, INSTANCES, EVENTS, REQUESTS, QUARANTINE, MEASUREMENTS, PLANS)

_UID = re.compile(r"[0-9a-f]{32}")


@frozen
class Opened:
    """A connection and what was read through it. `problem` is set where it leads to a copy in memory only."""

    connection: sqlite3.Connection
    loaded: Loaded
    problem: StoreError | None = None


def open_state(directory: Path, deadline: float) -> Opened:
    """Open the database of a locked state directory.

    Raises `StoreError` where the disk refuses and there is nothing to read either, `FailedPrecondition` where a
    newer release wrote it. `deadline` (seconds) bounds each scan of a file and the wait for another program's lock.
    """
    try:
        return open_writable(directory, deadline)
    except StoreError as refused:
        try:
            return _open_copy(directory, deadline, refused)
        except (sqlite3.Error, OSError) as error:
            raise refused from error


def open_writable(directory: Path, deadline: float) -> Opened:
    """Open it for writing, after building it anew where it is missing or damaged. Raises `StoreError`."""
    files.require_writable(directory)
    try:
        reports = _make_whole(directory, deadline)
        opened = _open_whole(directory, deadline)
    except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: `Damaged`, or text that is none
        raise files.refusal(error, directory) from error
    found = (*reports, *opened.loaded.quarantined)
    return replace(opened, loaded=replace(opened.loaded, quarantined=found, recreated=bool(reports)))


def _make_whole(directory: Path, deadline: float) -> tuple[Quarantined, ...]:
    """See to it that there is a whole database; what was set aside on the way."""
    salvaged = salvage.Salvaged()
    problem = "it was damaged"
    aside = salvage.finish(directory)
    if aside is None:
        problem = _damage(directory, deadline)
        if problem:
            salvaged = salvage.build(directory, deadline)
            aside = salvage.finish(directory)
    if aside is None:
        return ()
    return (Quarantined("database", str(aside), problem), *_reports(salvaged, quarantine_of(directory)))


def _damage(directory: Path, deadline: float) -> str:
    """What is wrong with the database; "" if nothing is. Leaves its files as they are.

    Raises `sqlite3.OperationalError` where another program has locked it.
    """
    database = directory / files.DATABASE
    if not files.size(database):
        return "it is missing or empty"
    try:
        with closing(salvage.open_source(salvage.Source(database, "mode=ro"), deadline)) as connection:
            return _doubts(connection) or wal.problem_of(directory / files.WAL)
    except Damaged as error:
        return str(error)
    except files.DAMAGE as error:
        if files.result_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise
        if files.result_code(error) == sqlite3.SQLITE_INTERRUPT:
            return ""  # too large to be checked in time: every row still has its checksum
        return str(error)


def _doubts(connection: sqlite3.Connection) -> str:
    version = schema.version_of(connection)
    if version == 0:
        return "it holds no tables"
    if version == schema.SCHEMA_VERSION:
        for table in TABLES:
            connection.execute(f"{table.select} LIMIT 0")  # fails where a column's name is damaged
    if _last_seq(connection) >= salvage.SEQ_LIMIT:
        return "the number of its last event is impossible"
    return salvage.problem_of(connection)


def _open_whole(directory: Path, deadline: float) -> Opened:
    connection = files.connect(directory / files.DATABASE, deadline)
    try:
        schema.migrate(connection)
        return Opened(connection, _load(connection, directory))
    except BaseException:
        connection.close()
        raise


def _open_copy(directory: Path, deadline: float, refused: StoreError) -> Opened:
    """Read all there is into memory, so that what runs can be adopted and shown though nothing can be written."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        files.prepare(connection)
        sources = salvage.sources(directory)
        salvaged = salvage.copy(sources, connection, deadline)
        if not salvaged.readable:
            raise refused
        loaded = _load(connection, directory, writable=False)
    except BaseException:
        connection.close()
        raise
    found = (*_reports(salvaged, UNMOVED), *loaded.quarantined)
    recreated = not (salvaged.whole and sources[0] == salvage.live(directory))
    return Opened(connection, replace(loaded, quarantined=found, recreated=recreated), refused)


def _load(connection: sqlite3.Connection, directory: Path, *, writable: bool = True) -> Loaded:
    bad: list[Quarantined] = []
    where = quarantine_of(directory) if writable else UNMOVED
    backup = salvage.Source(directory / files.BACKUP, "immutable=1")
    plans = {reference(row.digest): row.plan_json for row in _rows(connection, PLANS, backup, where, bad)}
    meta = {row.key: row.value for row in _rows(connection, META, backup, where, bad)}
    return Loaded(
        deployments=_rows(connection, DEPLOYMENTS, backup, where, bad),
        instances=_rows(connection, INSTANCES, backup, where, bad, lambda record: resolved(record, plans)),
        measurements=_rows(connection, MEASUREMENTS, backup, where, bad),
        last_event_seq=_last_seq(connection),
        node_uid=_node_uid(connection, directory, meta.get("node_uid", ""), writable),
        quarantined=tuple(bad),
        meta=meta,
    )


def _rows(
    connection: sqlite3.Connection, table: Table[R], backup: salvage.Source, where: str, bad: list[Quarantined],
    completed: Callable[[R], R] = lambda record: record,
) -> tuple[R, ...]:  # fmt: skip
    """The records of a table, each `completed` by what other tables have of it; that raises `Damaged` too."""
    good: list[R] = []
    for rowid, *row in connection.execute(f"SELECT rowid, {table.names} FROM {table.name}").fetchall():
        try:
            good.append(completed(table.decode(row)))
        except Damaged as error:
            problem = str(error)
            earlier = _from_backup(backup, table, row[1], completed)
            connection.execute("BEGIN IMMEDIATE")
            salvage.quarantine(connection, table.name, rowid, row, problem)
            if earlier is not None:
                connection.execute(table.put, table.encode(earlier))
                good.append(completed(earlier))
                problem = f"{problem}; its version in the last backup is used"
            connection.execute("COMMIT")
            bad.append(Quarantined(f"{table.name} {row[1]}", where, problem))
    return tuple(good)


def _from_backup(backup: salvage.Source, table: Table[R], key: object, completed: Callable[[R], R]) -> R | None:
    """The record as it stands there; None where there is none that could be completed."""
    if not files.size(backup.path):
        return None
    try:
        with closing(salvage.open_source(backup, deadline=1.0)) as connection:
            row = connection.execute(f"{table.select} WHERE {table.key} = ?", (key,)).fetchone()
            if row is None:
                return None
            completed(record := table.decode(row))
            return record
    except (sqlite3.Error, ValueError):  # ValueError: `Damaged`, or text that is none
        return None


def _last_seq(connection: sqlite3.Connection) -> int:
    (kept,) = connection.execute("SELECT ifnull(max(seq), 0) FROM event").fetchone()
    # This table has no types: a flipped bit may have made a number a text.
    given = "SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE typeof(seq) = 'integer'"
    return int(max(kept, *connection.execute(given).fetchone()))


def quarantine_of(directory: Path) -> str:
    """The place of rows that were set aside, for people."""
    return f"{directory / files.DATABASE}, table quarantine"


def _reports(salvaged: salvage.Salvaged, where: str) -> Iterator[Quarantined]:
    lines = tuple(salvaged.bad.values())
    for line in lines[:REPORTED]:
        yield Quarantined(f"{line.what} {line.key}", where, line.problem)
    if len(lines) > REPORTED:
        yield Quarantined(f"{len(lines) - REPORTED} more rows", where, "their checksums do not match")


def _node_uid(connection: sqlite3.Connection, directory: Path, stored: str, writable: bool) -> str:
    """The node's identity, which running engines carry: kept twice, so that it survives a lost database."""
    file = directory / files.NODE_UID
    try:
        written = file.read_text(errors="replace").strip()
    except OSError:
        written = ""
    uid = next((text for text in (stored, written) if _UID.fullmatch(text)), "")
    if not writable:
        return uid
    uid = uid or uuid.uuid4().hex
    if written != uid:
        files.write_text(file, f"{uid}\n")
    if stored != uid:
        connection.execute(META.put, META.encode(Meta("node_uid", uid)))
    return uid
