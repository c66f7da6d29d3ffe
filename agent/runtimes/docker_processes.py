"""The processes of a container as the host sees them: the members of the cgroup that bears the container's id.

So they are known, measured and killed even while the container engine hangs. An agent that sees no cgroups of
containers (without root, or in a container itself) goes without: then only the engine can say.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from agent.frozen import frozen
from agent.mounts import mounted
from agent.runtimes import cgroups, procfs
from agent.runtimes.instance import START_SECONDS, send


@frozen
class Box:
    """What a handle holds: the container, and its first process (0 where the host does not show it).

    `started` is the engine's own word for when this run of it began: somebody may restart a container, and `id`
    stays the same.
    """

    id: str
    name: str
    config: str
    directory: str
    started: str = ""
    pid: int = 0
    start: int = 0  # clock ticks since `boot`
    boot: str = ""
    cgroups: tuple[str, ...] = ()
    enforcement: tuple[str, ...] = ()

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Box:
        """Whoever stored it may have added something. Raises `ValueError` for what `data()` did not make."""
        try:
            known = {field.name: data[field.name] for field in fields(Box)}
            return Box(**{**known, "cgroups": tuple(data["cgroups"]), "enforcement": tuple(data["enforcement"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not the handle of a container: {error}") from error

    def data(self) -> dict[str, Any]:
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**known, "cgroups": list(self.cgroups), "enforcement": list(self.enforcement)}

    @property
    def visible(self) -> bool:
        """Whether the host shows its processes; as long as there are any."""
        return bool(self.cgroups) and self.boot == procfs.boot_id()

    def members(self) -> tuple[int, ...]:
        return (cgroups.members(self.cgroups) or ()) if self.visible else ()

    @property
    def frozen(self) -> bool:
        """Paused: what is sent to it arrives when it goes on."""
        states = (procfs.read(f"{path}/{file}") for path in self.cgroups for file in ("cgroup.freeze", "freezer.state"))
        return any((state or b"").strip() in {b"1", b"FROZEN", b"FREEZING"} for state in states)

    def owns(self, pid: int) -> bool:
        return pid in self.members()

    def open(self) -> int | None:
        """A pidfd of the first process, for the caller to close; None when it is gone or was never seen."""
        if not self.visible or not self.pid:
            return None
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return None
        found = procfs.stat(self.pid)
        if found is None or found.start != self.start:
            os.close(fd)
            return None
        return fd

    def signal(self, sig: signal.Signals) -> bool:
        """To every process once, but not to the init, which would pass it on a second time. False if the agent is not
        allowed to, or sees nobody."""
        members = self.members() if sig == signal.SIGKILL else self._started()
        if sig == signal.SIGKILL:
            cgroups.kill(self.cgroups)
        elif engines := tuple(pid for pid in members if inner_pid(pid) != 1):
            members = engines
        try:
            for pid in members:
                send(pid, sig, self.owns)
        except PermissionError:
            return False
        return bool(members)

    def _started(self) -> tuple[int, ...]:
        """Until there is an engine beside the init, a signal would be lost: the kernel keeps such from an init that has
        not asked for them yet."""
        deadline = time.monotonic() + START_SECONDS
        while len(members := self.members()) == 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        return members

    def thaw(self) -> None:
        """Let frozen processes die, where the engine cannot be asked to."""
        for path in self.cgroups:
            for file, value in (("cgroup.freeze", b"0"), ("freezer.state", b"THAWED")):
                with contextlib.suppress(OSError):
                    fd = os.open(f"{path}/{file}", os.O_WRONLY | os.O_CLOEXEC)
                    try:
                        os.write(fd, value)
                    finally:
                        os.close(fd)


def inner_pid(pid: int) -> int:
    """The pid that a process has in its container; 0 when it is gone."""
    for line in (procfs.read(f"/proc/{pid}/status") or b"").splitlines():
        if line.startswith(b"NSpid:"):
            return int(line.split()[-1])
    return 0


def groups(pid: int, id: str) -> tuple[str, ...]:
    """The cgroup directories of a container, by its first process: one for the members first, then the freezer's (v1).
    () where they cannot be seen: the path must bear the container's id."""
    points = _mounts()
    found: dict[str, str] = {}
    for line in (procfs.read(f"/proc/{pid}/cgroup") or b"").decode().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            point = points.get(controller)
            if point is not None and id in path and Path(f"{point}{path}/cgroup.procs").exists():
                found[controller] = f"{point}{path}"
    ordered = [found[name] for name in ("", "pids", "memory", "freezer") if name in found]
    return tuple(dict.fromkeys(ordered))


def _mounts() -> dict[str, str]:
    """Where the hierarchies are mounted, by controller; the unified one (v2) is ""."""
    points: dict[str, str] = {}
    for mount in mounted(procfs.read("/proc/self/mountinfo") or b""):
        if mount.kind == "cgroup2":
            points.setdefault("", mount.point)
        elif mount.kind == "cgroup":
            for controller in mount.options.split(","):
                points.setdefault(controller, mount.point)
    return points
