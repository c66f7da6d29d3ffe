"""The files of the state directory: their names, how a database is opened, replaced and backed up, and what
an error of the disk means."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from agent.errors import StoreError
from agent.store import wal

DATABASE = "agent.db"
WAL = "agent.db-wal"
BACKUP = "agent.db.backup"
BUILDING = "agent.db.building"
REPLAYED = "agent.db.building.replayed"
READY = "agent.db.ready"
NODE_UID = "node.uid"

#: What SQLite makes of one database in WAL mode (the journal only ever while it changes to that mode).
PARTS = (DATABASE, WAL, "agent.db-shm", "agent.db-journal")

#: What reading a damaged file raises. Python cannot decode a message of SQLite's that quotes a damaged schema.
DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)

#: Free space, bytes, without which a start would fail half-way: SQLite's `-shm` file (32 KiB) and a first commit.
HEADROOM = 64 * 1024


def connect(path: Path, deadline: float) -> sqlite3.Connection:
    """Open (or create, mode 0600) a database for durable writing. Each commit is on disk when it returns.

    Half of `deadline` is spent on waiting for another program's lock, so that a writer gets its answer in time.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=deadline / 2, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {wal.CHECKPOINT_FRAMES}")
        return prepare(connection)
    except BaseException:
        connection.close()
        raise


def prepare(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Expect damage: no statement stored in the file is run, and text that is no UTF-8 can still be looked at."""
    connection.text_factory = lambda text: text.decode("utf-8", "backslashreplace")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def replace(source: Path, target: Path) -> None:
    """Rename durably: the content is on disk before the name, and the name when this returns."""
    sync(source)
    source.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def size(path: Path) -> int:
    """The bytes of a regular file; 0 for anything else, and where nothing is."""
    return path.stat().st_size if path.is_file() else 0


def content(path: Path) -> bytes:
    """What a regular file holds; nothing where there is none."""
    return path.read_bytes() if path.is_file() else b""


def inode(path: str) -> int:
    """The number of the file that has this name now; 0 where there is none. On the way of every write."""
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - 4 times as fast as a Path
    except FileNotFoundError:
        return 0


def traces(directory: Path) -> bool:
    """Whether there was a database here before, whatever is left of it: it is older than the node's identity."""
    return any(os.path.lexists(directory / name) for name in (*PARTS, BACKUP, NODE_UID))


def write_text(path: Path, text: str) -> None:
    """Replace a small file durably."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    replace(temporary, path)


def require_writable(directory: Path) -> None:
    """Find out what SQLite would report in riddles. Raises `StoreError`."""
    probe = directory / "probe"
    try:
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(fd, 0, HEADROOM)
        finally:
            os.close(fd)
            probe.unlink()
        for part in PARTS:
            if (directory / part).is_file():
                os.close(os.open(directory / part, os.O_RDWR))
    except OSError as error:
        raise refusal(error, directory) from error


_HINTS = {
    errno.ENOSPC: "free disk space there",
    errno.EDQUOT: "free disk space there, or raise this user's quota",
    errno.EROFS: "remount the file system writable",
    errno.EACCES: "give this user the directory and all files in it",
    errno.EPERM: "give this user the directory and all files in it",
}

_MEANINGS = {
    sqlite3.SQLITE_FULL: ("the disk is full", _HINTS[errno.ENOSPC]),
    sqlite3.SQLITE_READONLY: ("it is read-only", _HINTS[errno.EROFS]),
    sqlite3.SQLITE_BUSY: ("another program has locked the database", "close the program that has agent.db open"),
    sqlite3.SQLITE_LOCKED: ("another program has locked the database", "close the program that has agent.db open"),
    sqlite3.SQLITE_CORRUPT: ("the database is damaged", "restart agentd: it salvages what can be read"),
    sqlite3.SQLITE_NOTADB: ("the database is damaged", "restart agentd: it salvages what can be read"),
    sqlite3.SQLITE_IOERR: ("the disk reports an error", "look into the kernel's log for the disk"),
}


def result_code(error: BaseException) -> int:
    """SQLite's primary result code; 0 for other errors."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def refusal(error: Exception, directory: Path) -> StoreError:
    """The error for callers: which directory, what is wrong with it, what to do."""
    if isinstance(error, OSError):
        meaning, hint = error.strerror or str(error), _HINTS.get(error.errno or 0, "look into the kernel's log")
    else:
        meaning, hint = _MEANINGS.get(result_code(error), (str(error), "look into the kernel's log for the disk"))
    return StoreError(f"the state in {directory} cannot be written: {meaning}", hint=hint)


def back_up(directory: Path) -> None:
    """Copy the live database into `agent.db.backup`, atomically, and only if the copy is whole.

    Safe beside a writer. Raises `sqlite3.Error`, `OSError`.
    """
    temporary = directory / f"{BACKUP}.new"
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    uri = (directory / DATABASE).absolute().as_uri()
    with closing(sqlite3.connect(f"{uri}?mode=ro", uri=True)) as source, closing(sqlite3.connect(temporary)) as copy:
        copy.execute("PRAGMA synchronous = OFF")  # `replace` syncs once, at the end
        source.backup(copy)
        (verdict,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        temporary.unlink()
        raise sqlite3.DatabaseError(f"the backup is not whole: {verdict}")
    replace(temporary, directory / BACKUP)
