"""One native instance as the kernel shows it: which processes are its own, proved, and how it ended.

Synchronous; what reads environments (see `procfs`) is called in a thread by `ProcessRuntime`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from agent.frozen import frozen
from agent.runtimes import cgroups, identity, procfs
from agent.runtimes.base import Identity
from agent.status import ExitStatus

#: From the shim's first instant to the engine's: a few milliseconds, of which a loaded machine makes many.
START_SECONDS = 1.0
#: Before each look at environments (seconds): an exec takes a fraction of a millisecond, some of them under load.
EXEC_PAUSES = (0.0, 0.001, 0.004)

#: The signals of Linux end here; what sh reports above 128 + 64 can only be an exit code.
_SIGNALS = 64


@frozen
class Instance:
    """What a handle holds. `pid` is the shim's, and so the id of its session and group; 0 if it was never seen.

    `boot` and `start` (clock ticks) say which process had that pid: pids are used again, these pairs are not.
    """

    id: str
    directory: str
    cgroups: tuple[str, ...] = ()
    enforcement: tuple[str, ...] = ()
    boot: str = ""
    pid: int = 0
    start: int = 0

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Instance:
        """Raises `ValueError` for anything that `data()` did not make."""
        try:
            return Instance(**{**data, "cgroups": tuple(data["cgroups"]), "enforcement": tuple(data["enforcement"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not the handle of a process instance: {error}") from error

    def data(self) -> dict[str, Any]:
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**known, "cgroups": list(self.cgroups), "enforcement": list(self.enforcement)}

    def prepare(self) -> None:
        """Keep what is known before the launch, for the case that the handle is never stored."""
        Path(self.directory, "launch.json").write_text(json.dumps(self.data()))

    @staticmethod
    def prepared(directory: Path) -> Instance | None:
        with contextlib.suppress(OSError, ValueError):
            return Instance.from_data(json.loads((directory / "launch.json").read_text()))
        return None

    @property
    def same_boot(self) -> bool:
        return self.boot == procfs.boot_id()

    def shim(self) -> procfs.Stat | None:
        """The shim, or its zombie; None once it is gone, even if another process has its pid by now."""
        found = procfs.stat(self.pid) if self.pid and self.same_boot else None
        return found if found is not None and found.start == self.start else None

    def open(self) -> int | None:
        """A pidfd of the shim, for the caller to close; None when it is gone."""
        try:
            fd = os.pidfd_open(self.pid) if self.pid else None
        except ProcessLookupError:
            return None
        # Checked after the opening: from now on the descriptor cannot come to mean another process.
        if fd is not None and self.shim() is None:
            os.close(fd)
            return None
        return fd

    def session(self) -> tuple[int, ...]:
        """The members of the shim's session. A session's id is not used again before its last member is gone, so
        one proof holds for all of them: the shim itself, or any member that carries the instance's id."""
        if not self.pid or not self.same_boot:
            return ()
        leader = procfs.stat(self.pid)
        if leader is not None and leader.start != self.start:
            return ()
        members = procfs.session_members(self.pid)
        return members if leader is not None or any(map(self.carried_by, members)) else ()

    def carried_by(self, pid: int) -> bool:
        return identity.carries(procfs.environment(pid), self.id)

    def carriers(self) -> tuple[int, ...]:
        """Every process that carries the instance's id, wherever it went. A process within an exec shows no environment
        for a moment: those that show none are looked at again."""
        found: list[int] = []
        unclear = list(procfs.pids()) if self.same_boot else []
        for pause in EXEC_PAUSES:
            if unclear:
                time.sleep(pause)
            shown = {pid: procfs.environment(pid) for pid in unclear}
            found += [pid for pid, environment in shown.items() if identity.carries(environment, self.id)]
            unclear = [pid for pid, environment in shown.items() if not environment and procfs.has_program(pid)]
        return tuple(found)

    def tracked(self) -> tuple[int, ...] | None:
        """The members of the instance's cgroup, and its shim, which joins only some time after its start. None if
        there is no such group."""
        members = cgroups.members(self.cgroups) if self.same_boot else ()
        if members is None or self.pid in members or self.shim() is None:
            return members
        return (self.pid, *members)

    def living(self) -> tuple[int, ...]:
        """Pids of the instance, zombies excluded. Looks through all environments only if nothing else answers."""
        if (tracked := self.tracked()) is not None:
            return procfs.living(tracked)
        return procfs.living(self.session()) or procfs.living(self.carriers())

    def signal(self, sig: signal.Signals) -> None:
        """To every process once: some engines take a second SIGTERM as the order to skip the orderly end."""
        if not self.same_boot:
            return
        if sig == signal.SIGKILL:
            cgroups.kill(self.cgroups)
        else:
            self._wait_for_start()
        session, tracked = self.session(), self.tracked()
        elsewhere = tracked if tracked is not None else self.carriers()
        outside = {pid for pid in (*session, *elsewhere) if not _in_group(pid, self.pid)}
        if session:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, sig)
        for pid in outside:
            send(pid, sig, self._owns)

    def _wait_for_start(self) -> None:
        """Until there is an engine, or what becomes it, the shim alone would get a signal, and swallow it."""
        deadline = time.monotonic() + START_SECONDS
        while not self.started() and (shim := self.shim()) is not None and shim.alive:
            if time.monotonic() > deadline:
                return
            time.sleep(0.001)

    def _owns(self, pid: int) -> bool:
        return self.carried_by(pid) or pid in (self.tracked() or ()) or pid in self.session()

    def exit(self, seen: ExitStatus | None = None) -> ExitStatus:
        """How the engine ended, as the shim wrote it down, or else as `seen`; unknown if nobody saw it."""
        path = Path(self.directory, "exit")
        with contextlib.suppress(OSError, ValueError):
            text = path.read_text()
            if text.endswith("\n"):
                seen = exit_status(int(text), path.stat().st_mtime)
        if seen is None:
            seen = ExitStatus()
        return replace(seen, oom_killed=True) if seen.code != 0 and cgroups.oom_killed(self.cgroups) else seen

    def started(self) -> bool:
        """Whether the shim ever came to do something."""
        return any(Path(self.directory, name).exists() for name in ("engine.pid", "exit"))


def exit_status(status: int, at: float) -> ExitStatus:
    """From sh's number, which says 128 + n for signal n: an engine that exits with such a code looks like that."""
    number = status - 128
    if 0 < number <= _SIGNALS:
        return ExitStatus(signal=number, at=at)
    return ExitStatus(code=status, at=at)


def send(pid: int, sig: signal.Signals, ours: Callable[[int], bool]) -> None:
    """Signal one process if it is `ours`, asked when the pid can no longer come to mean another."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            if ours(pid):
                signal.pidfd_send_signal(fd, sig)
        finally:
            os.close(fd)


def find_all(node: str) -> dict[Identity, tuple[int, ...]]:
    """Every process on this host that carries an identity of the node."""
    found: dict[Identity, tuple[int, ...]] = {}
    for pid in procfs.pids():
        environment = procfs.environment(pid)
        if identity.PREFIX.encode() in environment:
            who = identity.parse(environment)
            if who is not None and who.node == node:
                found[who] = (*found.get(who, ()), pid)
    return found


def kill_stray(who: Identity, pids: Iterable[int]) -> None:
    """SIGKILL to those that still carry this identity."""
    for pid in pids:
        send(pid, signal.SIGKILL, lambda pid: identity.parse(procfs.environment(pid)) == who)


def leads(pid: int, shim: str) -> bool:
    """Whether a process that carries an instance's id is its shim: leads a session and executes that script."""
    with contextlib.suppress(OSError):
        command = (procfs.read(f"/proc/{pid}/cmdline") or b"").split(b"\0")
        return os.getsid(pid) == pid and len(command) > 1 and command[1].endswith(f"/{shim}".encode())
    return False


def _in_group(pid: int, group: int) -> bool:
    with contextlib.suppress(OSError):
        return os.getpgid(pid) == group
    return False
