"""One daemon per state directory: an exclusive flock that the kernel gives back when its owner dies.

The file says who holds it (pid and start time), only so that a refusal can name the owner; the lock decides.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from agent.errors import FailedPrecondition, StoreError


class StateLock:
    """The held lock. Engines never inherit it: Python opens files close-on-exec."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def acquire(cls, directory: Path) -> StateLock:
        """Take the lock of `directory`, which is created (mode 0700) where it is missing.

        Raises `FailedPrecondition` where another process holds it, `StoreError` where the directory cannot be
        created or read.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = _open(directory)
        except OSError as error:
            raise StoreError(
                f"the state directory {directory} cannot be used: {error.strerror}",
                hint="make it a directory that this user can write, or configure directories.state",
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(fd)
            os.close(fd)
            raise FailedPrecondition(
                f"the state directory {directory} is in use by {owner}",
                hint="stop that daemon first, or give this one another state directory",
            ) from None
        _sign(fd)
        return cls(fd)

    def release(self) -> None:
        """Give the lock back; the file stays, because removing it would let two daemons lock different files."""
        os.close(self._fd)


def _open(directory: Path) -> int:
    try:
        return os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        # A read-only or full disk: an existing file, or else the directory itself, can still be locked.
        try:
            return os.open(directory / "lock", os.O_RDONLY)
        except FileNotFoundError:
            return os.open(directory, os.O_RDONLY | os.O_DIRECTORY)


def _sign(fd: int) -> None:
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {_start_time(os.getpid())}\n".encode(), 0)
    except OSError:
        return  # read-only or full: we hold the lock all the same, and a refusal then names no pid


def _owner(fd: int) -> str:
    """Name the owner, if what the file says is still true: a pid may have been reused since."""
    try:
        pid, start_time = (int(word) for word in os.pread(fd, 64, 0).split())
        if _start_time(pid) == start_time:
            return f"the daemon with pid {pid}"
    except (OSError, ValueError):
        pass
    return "another process"


def _start_time(pid: int) -> int:
    """Clock ticks between boot and the start of the process: field 22 of proc(5) stat, after the `(comm)`."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[19])
