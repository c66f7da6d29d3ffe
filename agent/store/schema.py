"""The tables of the store and how an older database becomes a newer one.

Every table starts with `sum`, a checksum over the row's other columns in order (`rows.checksum`): SQLite has
no checksums of its own, and a row that proves itself can be salvaged from a file that is otherwise broken.
The version stands in `PRAGMA user_version` and again in a row of `meta`. Only when both agree is it believed,
so that a flipped bit is never taken for "written by a newer release". The shape of `meta` is therefore fixed
for ever. A migration is never edited once released; one that adds a column adds it at the end and rewrites `sum`.
"""

from __future__ import annotations

import sqlite3

from agent.errors import FailedPrecondition
from agent.store.rows import Damaged, checksum

VERSION_1 = (
    "CREATE TABLE meta (sum INTEGER NOT NULL, key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) STRICT",
    """CREATE TABLE deployment (
        sum INTEGER NOT NULL, name TEXT NOT NULL PRIMARY KEY, uid TEXT NOT NULL, generation INTEGER NOT NULL,
        etag TEXT NOT NULL, desired TEXT NOT NULL, restart_serial INTEGER NOT NULL, spec_json TEXT NOT NULL,
        supervision_json TEXT NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL) STRICT""",
    """CREATE TABLE instance (
        sum INTEGER NOT NULL, id TEXT NOT NULL PRIMARY KEY, deployment TEXT NOT NULL, generation INTEGER NOT NULL,
        attempt INTEGER NOT NULL, runtime TEXT NOT NULL, plan_json TEXT NOT NULL, port INTEGER NOT NULL,
        directory TEXT NOT NULL, log_path TEXT NOT NULL, created_at REAL NOT NULL, handle_json TEXT NOT NULL,
        started_at REAL, ready_at REAL, ended_at REAL, exit_json TEXT NOT NULL, diagnosis_json TEXT NOT NULL,
        probes_json TEXT NOT NULL, granted_json TEXT NOT NULL) STRICT""",
    "CREATE INDEX instance_by_deployment ON instance (deployment)",
    """CREATE TABLE event (
        sum INTEGER NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL, severity TEXT NOT NULL,
        deployment TEXT NOT NULL, instance TEXT NOT NULL, at REAL NOT NULL,
        seq INTEGER PRIMARY KEY AUTOINCREMENT) STRICT""",
    "CREATE INDEX event_by_deployment ON event (deployment, seq)",
    """CREATE TABLE request (
        sum INTEGER NOT NULL, request_id TEXT NOT NULL PRIMARY KEY, method TEXT NOT NULL, digest TEXT NOT NULL,
        deployment TEXT NOT NULL, generation INTEGER NOT NULL, at REAL NOT NULL) STRICT""",
    """CREATE TABLE quarantine (
        sum INTEGER NOT NULL, what TEXT NOT NULL, key TEXT NOT NULL, row_json TEXT NOT NULL, problem TEXT NOT NULL,
        at REAL NOT NULL, PRIMARY KEY (what, key, at)) STRICT""",
)

VERSION_2 = (
    """CREATE TABLE ledger (
        sum INTEGER NOT NULL, id TEXT NOT NULL PRIMARY KEY, node TEXT NOT NULL, host TEXT NOT NULL,
        imported INTEGER NOT NULL, at REAL NOT NULL, model TEXT NOT NULL, key_json TEXT NOT NULL,
        terms_json TEXT NOT NULL) STRICT""",
)

# A plan has 15 KB, and an instance is written five times. From here on its plan_json names a row of this table; the
# instances of before have the plan itself there, and are read as they are.
VERSION_3 = (
    """CREATE TABLE plan (
        sum INTEGER NOT NULL, digest TEXT NOT NULL PRIMARY KEY, plan_json TEXT NOT NULL) STRICT""",
)

MIGRATIONS = (VERSION_1, VERSION_2, VERSION_3)
SCHEMA_VERSION = len(MIGRATIONS)


def migrate(connection: sqlite3.Connection, version: int = SCHEMA_VERSION) -> None:
    """Bring the database to `version`, one transaction per step; does nothing where it is there already."""
    for step in range(version_of(connection), version):
        with connection:  # commits, or rolls back what failed
            connection.execute("BEGIN IMMEDIATE")
            for statement in MIGRATIONS[step]:
                connection.execute(statement)
            row = ("schema_version", str(step + 1))
            connection.execute("INSERT OR REPLACE INTO meta (sum, key, value) VALUES (?, ?, ?)", (checksum(row), *row))
            connection.execute(f"PRAGMA user_version = {step + 1}")


def version_of(connection: sqlite3.Connection) -> int:
    """The schema version of a database; 0 for an empty one.

    Raises `FailedPrecondition` for a newer version than this release knows, `Damaged` where the two records of
    the version disagree, `sqlite3.DatabaseError` where the file cannot be read.
    """
    (pragma,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables and pragma == 0:
        return 0
    row = connection.execute("SELECT sum, key, value FROM meta WHERE key = 'schema_version'").fetchone()
    if row is None or checksum(row[1:]) != row[0] or row[2] != str(pragma):
        raise Damaged(f"the schema version {pragma} in the file's header is not the one that was recorded")
    if pragma > SCHEMA_VERSION:
        raise FailedPrecondition(
            f"the state was written by a newer release: its schema version is {pragma}, this release knows "
            f"versions up to {SCHEMA_VERSION}",
            hint="run the newer release again, or use another state directory",
        )
    return int(pragma)


def tables_of(connection: sqlite3.Connection) -> tuple[str, ...]:
    """The names of our tables, in the order of their creation."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
    return tuple(name for (name,) in rows)
