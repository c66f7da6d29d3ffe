"""Reading `/proc`: who is there, since when, in which session, with which environment, using how much.

Processes vanish at any moment, so every function answers "not there" (None, or leaves it out) instead of
raising. `environment` takes the process's memory lock, which a process that hangs in a driver may hold for ever:
call it, and what uses it, in a thread with a deadline; so does `mapped`. Nothing else in here can block.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache

from agent.frozen import frozen

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CHUNK_BYTES = 64 * 1024


@frozen
class Stat:
    """The fields of `/proc/PID/stat` that matter here; `start` is in clock ticks since boot."""

    pid: int
    alive: bool  # False for a zombie: its memory and files are gone, only the exit status is left
    start: int
    cpu_seconds: float


@frozen
class Sample:
    """What one process uses. `mapped_bytes` are resident pages of files, `read_bytes` came through read(2)."""

    resident_bytes: int
    mapped_bytes: int
    read_bytes: int
    cpu_seconds: float


def read(path: str) -> bytes | None:
    """The whole of a small kernel file; None when it is gone or not ours to read. (`open` costs twice as much.)"""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, _CHUNK_BYTES)
        # Of a list the kernel gives what fits into a page, however much is asked for: only nothing is the end.
        while chunk := os.read(fd, _CHUNK_BYTES):
            data += chunk
        return data
    except OSError:  # ESRCH: it vanished between the two calls
        return None
    finally:
        os.close(fd)


@cache
def boot_id() -> str:
    """Changes with every boot: start times are comparable only within one."""
    return (read("/proc/sys/kernel/random/boot_id") or b"").decode().strip()


def pids() -> Iterator[int]:
    """Every process except this one."""
    own = os.getpid()
    for name in os.listdir("/proc"):  # noqa: PTH208 - a Path for each would double the time
        if name.isdigit() and (pid := int(name)) != own:
            yield pid


def stat(pid: int) -> Stat | None:
    data = read(f"/proc/{pid}/stat")
    if not data:
        return None
    # The name, in parentheses, may itself contain parentheses and spaces; fields count from 3 after it.
    fields = data.rpartition(b")")[2].split()
    # A leader that ended before its other threads looks like a zombie, but the process lives.
    alive = fields[0] not in (b"Z", b"X") or int(fields[17]) > 1
    ticks = int(fields[11]) + int(fields[12])
    return Stat(pid, alive, int(fields[19]), ticks / TICKS_PER_SECOND)


def living(candidates: Iterable[int]) -> tuple[int, ...]:
    """Those that exist and are no zombies, in ascending order."""
    return tuple(pid for pid in sorted(candidates) if (found := stat(pid)) is not None and found.alive)


def in_session(pid: int, session: int) -> bool:
    """Costs a thirtieth of reading `stat`."""
    try:
        return os.getsid(pid) == session
    except OSError:
        return False


def session_members(session: int) -> tuple[int, ...]:
    """Pids in a session, zombies included."""
    return tuple(pid for pid in pids() if in_session(pid, session))


def has_program(pid: int) -> bool:
    """Whether it executes a file: kernel threads and zombies do not."""
    try:
        return bool(os.readlink(f"/proc/{pid}/exe"))  # noqa: PTH115 - a Path would double the time
    except OSError:
        return False


def environment(pid: int) -> bytes:
    """The environment as it was at exec, NUL-separated; empty when unreadable (gone, a zombie, of another user)."""
    return read(f"/proc/{pid}/environ") or b""


def mapped(pid: int) -> dict[str, tuple[int, int]] | None:
    """Bytes mapped and bytes resident of each file that a process maps, "" for all other memory; None when it is gone
    or not ours to see. Takes the process's memory lock, as `environment` does, and milliseconds for a large process."""
    found: dict[str, tuple[int, int]] = {}
    file = ""
    try:
        with open(f"/proc/{pid}/smaps", "rb") as lines:  # noqa: PTH123 - as in `read`
            for line in lines:
                words = line.split(maxsplit=5)
                if words[0] in (b"Size:", b"Rss:"):
                    size, resident = found.get(file, (0, 0))
                    kib = int(words[1]) * 1024
                    found[file] = (size + kib, resident) if words[0] == b"Size:" else (size, resident + kib)
                elif not words[0].endswith(b":"):  # "7f1c...-7f1d... r--p 00000000 08:01 4711 /models/m.gguf"
                    name = os.fsdecode(words[5].rstrip(b"\n")) if len(words) > 5 else ""
                    file = name if name.startswith("/") else ""
    except OSError:
        return None
    return found


def sample(pid: int) -> Sample | None:
    """None when it is gone. Without permission to see its I/O, `read_bytes` is 0."""
    found, memory = stat(pid), read(f"/proc/{pid}/statm")
    if found is None or not found.alive or not memory:
        return None
    _, resident, shared, *_ = memory.split()
    io = read(f"/proc/{pid}/io") or b"rchar: 0\n"
    read_bytes = int(io.partition(b"\n")[0].split()[1])  # the first line is rchar
    return Sample(int(resident) * PAGE_BYTES, int(shared) * PAGE_BYTES, read_bytes, found.cpu_seconds)
