"""What is done about a damaged database: save the rows that prove themselves, keep the file, begin a new one.

A new database is always built aside and renamed into place when it is whole and on disk, so that a crash at any
instant leaves either the old state or the new one:

    agent.db.building   being filled; worthless after a crash
    agent.db.ready      complete; the next start goes on from here, whatever else lies in the directory
    agent.db            in use; before this rename the old files went to quarantine/<time>/

Sources are read without a lock, a write or a shared-memory file, so that damage is not made worse and a
read-only disk can be read.
"""

# ruff: noqa: S608 - the names in our SQL are constants of this package

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from agent.frozen import frozen
from agent.store import files, rows, schema, wal
from agent.store.rows import QUARANTINE, Damaged, Row, SetAside

#: Damaged databases that are kept; older ones are removed, because a sick disk must not fill itself with copies.
KEPT = 5

#: Above this an event's number is not exact in JSON, so that it can only be the fruit of damage.
SEQ_LIMIT = 2**53


@dataclass(slots=True)
class Salvaged:
    """What came of copying: whether anything could be read, whether the first source gave all, the bad rows."""

    readable: bool = False
    whole: bool = False
    bad: dict[tuple[str, str], SetAside] = field(default_factory=dict)  # by table and content


@frozen
class Source:
    """A database file to read from, and the way to open it."""

    path: Path
    mode: str


def sources(directory: Path) -> tuple[Source, ...]:
    """Everything that may hold our rows, the newest state first."""
    candidates = (
        live(directory),
        Source(directory / files.DATABASE, "immutable=1"),  # without its WAL
        Source(directory / files.BACKUP, "immutable=1"),
    )
    # SQLite takes an empty file for a new database and removes its WAL, so that one is not even opened.
    return tuple(source for source in candidates if files.size(source.path))


def live(directory: Path) -> Source:
    """The database with its WAL, whose index this reader keeps in its own memory instead of a `-shm` file."""
    return Source(directory / files.DATABASE, "mode=ro&vfs=unix-none")


def open_source(source: Source, deadline: float) -> sqlite3.Connection:
    """Open it for reading. After `deadline` seconds every query on it fails with `sqlite3.OperationalError`."""
    uri = f"{source.path.absolute().as_uri()}?{source.mode}"
    connection = files.prepare(sqlite3.connect(uri, uri=True, timeout=deadline / 2, isolation_level=None))
    if "unix-none" in source.mode:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    end = time.monotonic() + deadline
    connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
    return connection


def problem_of(connection: sqlite3.Connection, table: str = "") -> str:
    """The first thing that SQLite's own check finds, indexes included; "" for a whole database or table.

    It costs 5 ms for 10,000 events. Raises `sqlite3.DatabaseError` where the check itself comes to grief.
    """
    (verdict,) = connection.execute(f"PRAGMA integrity_check({table or 1})").fetchone()
    return "" if verdict == "ok" else str(verdict).replace("\n", " ")


def copy(candidates: Sequence[Source], target: sqlite3.Connection, deadline: float) -> Salvaged:
    """Copy every row that proves itself into the empty database `target`, and bring that to today's schema.

    A table that one source gives completely is not asked of the next, older one; of a table with losses, the
    missing rows are. Raises `FailedPrecondition` where a source is of a newer release, and what SQLite raises where
    a source cannot be opened or the target not be written.
    """
    salvaged = Salvaged()
    complete: set[str] = set()
    for source in candidates:
        with closing(open_source(source, deadline)) as connection:
            version = _version(connection)
            if not version or (salvaged.readable and version != schema.version_of(target)):
                continue
            schema.migrate(target, version)
            salvaged.readable = True
            target.execute("BEGIN")
            for table in schema.tables_of(target):
                if table not in complete and _copy_table(connection, target, table, salvaged):
                    complete.add(table)
            _copy_sequence(connection, target)
            target.execute("COMMIT")
        if complete.issuperset(schema.tables_of(target)):
            salvaged.whole = source == candidates[0]
            break
    schema.migrate(target)
    for line in salvaged.bad.values():
        target.execute(QUARANTINE.put, QUARANTINE.encode(line))
    return salvaged


def _version(source: sqlite3.Connection) -> int:
    """The schema version to read the source with; 0 where it cannot be read at all."""
    try:
        # Lets SQLite open a file that is shorter than its header says.
        source.execute("PRAGMA writable_schema = ON")
        return schema.version_of(source)
    except Damaged:
        (header,) = source.execute("PRAGMA user_version").fetchone()
        return int(header) if 0 < header < schema.SCHEMA_VERSION else schema.SCHEMA_VERSION
    except files.DAMAGE:
        return 0


def _copy_table(source: sqlite3.Connection, target: sqlite3.Connection, table: str, salvaged: Salvaged) -> bool:
    """Whether the table was copied completely: each of its rows is good, and none can be missing."""
    try:
        whole = not problem_of(source, table)
    except files.DAMAGE:
        whole = False
    columns = len(target.execute(f"PRAGMA table_info({table})").fetchall())
    insert = f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * columns)})"
    for rowid in _rowids(source, table):
        try:
            row = source.execute(f"SELECT * FROM {table} NOT INDEXED WHERE rowid = ?", (rowid,)).fetchone()
        except files.DAMAGE:
            row = None
        if row is None:
            whole = False
        elif len(row) == columns and rows.checksum(row[1:]) == row[0]:
            target.execute(insert, row)
        else:
            line = set_aside(table, row, "its checksum does not match")
            salvaged.bad.setdefault((table, line.row_json), line)
            whole = False
    return whole


def _rowids(source: sqlite3.Connection, table: str) -> Iterator[int]:
    """From both ends of the table towards a broken page in between; the end first, where the newest rows are."""
    seen: set[int] = set()
    for forward in (False, True):
        try:
            for rowid in _walk(source, table, forward=forward):
                if rowid in seen:
                    return
                seen.add(rowid)
                yield rowid
        except files.DAMAGE:
            continue
        return


def _walk(source: sqlite3.Connection, table: str, *, forward: bool) -> Iterator[int]:
    """One query for each row, because a longer one fails before it gives the last row that it could read."""
    comparison, order, rowid = (">", "ASC", -(2**63)) if forward else ("<", "DESC", 2**63 - 1)
    query = f"SELECT rowid FROM {table} NOT INDEXED WHERE rowid {comparison} ? ORDER BY rowid {order} LIMIT 1"
    while found := source.execute(query, (rowid,)).fetchone():
        (rowid,) = found
        yield rowid


def _copy_sequence(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    try:
        known = source.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchall()
    except files.DAMAGE:
        return
    raise_sequence(target, max((seq for (seq,) in known if isinstance(seq, int) and seq < SEQ_LIMIT), default=0))


def raise_sequence(connection: sqlite3.Connection, seq: int) -> None:
    """See to it that the next event's number is above `seq`."""
    (known,) = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'event'").fetchone()
    connection.execute("DELETE FROM sqlite_sequence WHERE name = 'event'")
    connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('event', ?)", (max(seq, known or 0),))


def set_aside(table: str, row: Row, problem: str) -> SetAside:
    """A row of any table as the line of the quarantine that describes it."""
    return SetAside(table, str(row[1]), json.dumps(row, default=repr), problem, time.time())


def quarantine(connection: sqlite3.Connection, table: str, rowid: int, row: Row, problem: str) -> None:
    """Move one row to the quarantine, within the caller's transaction."""
    connection.execute(QUARANTINE.put, QUARANTINE.encode(set_aside(table, row, problem)))
    connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (rowid,))


def build(directory: Path, deadline: float) -> Salvaged:
    """Build the database that `finish` puts into place, with all that can be salvaged from what is there."""
    building = directory / files.BUILDING
    for leftover in directory.glob(f"{files.BUILDING}*"):
        leftover.unlink()
    with closing(files.connect(building, deadline)) as target:
        if files.traces(directory):
            salvaged = copy((*_replayed(directory), *sources(directory)), target, deadline)
            # Numbers of lost events must not be given again. Milliseconds since 1970 are above any number that
            # was reached one by one.
            raise_sequence(target, int(time.time() * 1000))
        else:
            salvaged = copy((), target, deadline)
    files.replace(building, directory / files.READY)  # closing has emptied its WAL
    return salvaged


def _replayed(directory: Path) -> Iterator[Source]:
    """Files with what SQLite would leave out: all commits of the WAL (see `wal`), applied to the database, to the
    database with the first page of the backup (it holds the header and the schema), and to the backup."""
    database, backup = (files.content(directory / name) for name in (files.DATABASE, files.BACKUP))
    # Without the count of pages in the header, SQLite goes by the size of the file.
    first_page = backup[:28] + bytes(4) + backup[32 : wal.PAGE] if backup else b""
    bases = (database, first_page + database[wal.PAGE :], backup)
    for number, base in enumerate(bases):
        content = wal.replay(base, directory / files.WAL)
        source = Source(directory / f"{files.REPLAYED}.{number}", "immutable=1")
        source.path.touch(mode=0o600)
        source.path.write_bytes(content)
        if content:
            yield source


def finish(directory: Path) -> Path | None:
    """Put a built database into place; where the old files were moved to, if there were any."""
    ready = directory / files.READY
    if not ready.exists():
        return None
    aside = _move_aside(directory) if files.traces(directory) else None
    files.replace(ready, directory / files.DATABASE)
    for leftover in directory.glob(f"{files.BUILDING}*"):
        leftover.unlink()
    return aside


def _move_aside(directory: Path) -> Path:
    quarantine = directory / "quarantine"
    quarantine.mkdir(mode=0o700, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()), dir=quarantine))
    backup = directory / files.BACKUP
    if backup.exists():  # the next backup replaces it
        shutil.copyfile(backup, aside / files.BACKUP)
    for part in files.PARTS:
        if os.path.lexists(directory / part):
            (directory / part).rename(aside / part)
    files.sync(aside)
    files.sync(quarantine)
    for old in sorted(path for path in quarantine.iterdir() if path.is_dir())[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)  # litter is no reason not to start
    return aside
