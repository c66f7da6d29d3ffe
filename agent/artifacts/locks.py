"""Locks that the kernel gives back when their owner ends, however it ends: a stale one cannot be.

The same `flock` on the same files as the hub's own tools (filelock's UnixFileLock), so that these and we do not fetch
one file twice. Such a lock is a file that stays; only the lock on it comes and goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path


class Lock:
    """Exclusive, not inherited by children."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1  # of the file, while the lock is held

    def acquire(self) -> bool:
        """At once, or not. Raises `OSError`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # As filelock does it: never truncated, links are not followed, a lease on the file does not block.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, 0o664)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(descriptor).st_nlink > 0  # else it was removed meanwhile: that lock guards no name
        except BlockingIOError:
            held = False
        except OSError:
            os.close(descriptor)
            raise
        if held:
            self.descriptor = descriptor
        else:
            os.close(descriptor)
        return held

    def release(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def owner(path: Path) -> str:
    """Who holds the lock by now, for people; "" where that cannot be seen."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = path.stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == device:
                name = Path(f"/proc/{fields[4]}/comm").read_text().strip()
                return f"process {fields[4]} ({name})"
    return ""
