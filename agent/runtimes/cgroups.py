"""Groups of the kernel for instances: limits that hold, and a member list that nothing escapes from.

Controllers live in cgroup v2, in v1, or some in each (hybrid); `Cgroups.detect` finds for each of them where this
agent may make groups, or the reason why it may not. An instance gets one group for tracking and one in each further
hierarchy that holds a limit of it. Whatever is not possible becomes a sentence in `enforcement`, never an error: an
engine without a limit is better than none, if it is said.

Once made, groups are plain paths: the functions below work on those, so that a handle needs no `Cgroups`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Literal, NamedTuple

from agent.frozen import frozen
from agent.mounts import mounted
from agent.runtimes import procfs
from agent.runtimes.base import Resources

CONTROLLERS = ("memory", "cpu", "pids")
CPU_PERIOD_MICROSECONDS = 100_000  # the kernel's default
CPU_QUOTA_MIN_MICROSECONDS = 1_000  # the kernel's minimum
REMOVE_RETRY_SECONDS = (0.01, 0.05, 0.2)  # a group stays busy for some milliseconds after its last member died
SWEEP_MIN_AGE_SECONDS = 60.0  # younger groups may be empty because their instance is just being launched


class _Unusable(Exception):
    """Why groups cannot be made in a hierarchy."""


@frozen
class Mount:
    """A mounted hierarchy: where, and the agent's own group in it."""

    point: Path
    own: Path


@frozen
class Location:
    """Where groups of instances are made."""

    version: int
    parent: Path

    @property
    def entrance(self) -> str:
        """The file to join by. `cgroup.procs` makes the kernel wait for all CPUs, often for 10 to 20 ms; a process of
        one thread, as the shim is, can join by `tasks` in 0.1 ms, but only v1 has that."""
        return "tasks" if self.version == 1 else "cgroup.procs"


@frozen
class Group:
    """What was made for an instance: `paths[0]` is for tracking; every member is in all of them.

    A process joins by writing 0 to each of `entrances`.
    """

    paths: tuple[str, ...] = ()
    entrances: tuple[str, ...] = ()
    enforcement: tuple[str, ...] = ()


@frozen
class Cgroups:
    """Where groups can be made, per controller, and why not where they cannot."""

    locations: Mapping[str, Location] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    tracking: Location | None = None

    @staticmethod
    def none(reason: str) -> Cgroups:
        return Cgroups(problems=dict.fromkeys(CONTROLLERS, reason))

    @staticmethod
    def detect(mode: Literal["auto", "off"], name: str, proc: Path = Path("/proc/self")) -> Cgroups:
        """Look for writable hierarchies and make the parent group `name` there. Raises nothing; takes milliseconds."""
        if mode == "off":
            return Cgroups.none("cgroups are switched off by configuration")
        mounts = _mounts(proc)
        locations: dict[str, Location] = {}
        problems = dict.fromkeys(CONTROLLERS, "the kernel offers no such cgroup controller")
        second = None
        if (unified := mounts.get("")) is not None and (len(mounts) == 1 or _offered(unified.point)):
            try:
                second = Location(2, _place_v2(unified, name))
                enabled = _enable(second.parent)
                locations |= {controller: second for controller in CONTROLLERS if controller in enabled}
                inside = second.parent.parent
                reason = f"no writable cgroup (cannot be enabled in {inside}: does it hold processes?)"
                problems |= dict.fromkeys(_offered(inside), reason)
            except (_Unusable, OSError) as error:
                problems |= dict.fromkeys(_offered(unified.point), f"no writable cgroup ({error})")
        for controller in CONTROLLERS:
            if (mount := mounts.get(controller)) is not None:
                try:
                    locations[controller] = Location(1, _make(mount.own / name))
                except OSError as error:
                    problems[controller] = f"no writable cgroup ({error})"
        # Tracking is for nothing in a group that is needed anyway; of these, pids is the cheapest to be a member of.
        tracking = next((locations[c] for c in ("pids", "cpu", "memory") if c in locations), second)
        return Cgroups(locations, {c: p for c, p in problems.items() if c not in locations}, tracking)

    def create(self, instance: str, resources: Resources) -> Group:
        """Make the groups of an instance, with its limits set. Raises nothing: see `enforcement`."""
        made: dict[str, str] = {}  # path: entrance, in this order
        enforcement = []
        if self.tracking is not None:
            with contextlib.suppress(OSError):
                made[str(_make(self.tracking.parent / instance))] = self.tracking.entrance
        for controller, sentence, settings in _limits(resources):
            location = self.locations.get(controller)
            if location is None:
                enforcement.append(f"{sentence} not enforced: {self.problems[controller]}")
                continue
            try:
                path = _make(location.parent / instance)
                remark = _apply(path, settings[location.version])
            except OSError as error:
                enforcement.append(f"{sentence} not enforced: {error}")
                continue
            made[str(path)] = location.entrance
            enforcement.append(f"{sentence} enforced by cgroup v{location.version}{remark}")
        entrances = (f"{path}/{entrance}" for path, entrance in made.items())
        return Group(tuple(made), tuple(entrances), tuple(enforcement))

    def sweep_empty(self, live: set[str]) -> tuple[str, ...]:
        """Remove groups that a crash left behind: empty, old enough, of no instance in `live`. Returns their paths."""
        removed = []
        oldest = time.time() - SWEEP_MIN_AGE_SECONDS
        parents = {location.parent for location in (*self.locations.values(), self.tracking) if location is not None}
        for parent in parents:
            with contextlib.suppress(OSError):
                for entry in os.scandir(parent):
                    if (
                        entry.is_dir(follow_symlinks=False)
                        and entry.name not in live
                        and entry.stat().st_mtime < oldest
                    ):
                        with contextlib.suppress(OSError):  # EBUSY: it has members, so the stray sweep's matter
                            Path(entry.path).rmdir()
                            removed.append(entry.path)
        return tuple(removed)


def members(paths: tuple[str, ...]) -> tuple[int, ...] | None:
    """Every process in the group, without zombies; None where there is no group that could say."""
    data = procfs.read(f"{paths[0]}/cgroup.procs") if paths else None
    return None if data is None else tuple(pid for pid in map(int, data.split()) if pid != 0)


def kill(paths: tuple[str, ...]) -> None:
    """SIGKILL to every member in one atomic step, where the kernel can (cgroup v2, Linux 5.14)."""
    if paths:
        with contextlib.suppress(OSError):
            _write(Path(paths[0]) / "cgroup.kill", "1")


def oom_killed(paths: tuple[str, ...]) -> bool:
    """Whether the OOM killer ended a member, ever."""
    for path in paths:
        data = procfs.read(f"{path}/memory.events") or procfs.read(f"{path}/memory.oom_control") or b""
        if any(line.startswith(b"oom_kill ") and int(line.split()[1]) > 0 for line in data.splitlines()):
            return True
    return False


def remove(paths: tuple[str, ...]) -> None:
    """Remove the groups of an ended instance. One that stays busy is left to `sweep_empty`. May sleep 0.3 s."""
    for path in paths:
        for delay in (*REMOVE_RETRY_SECONDS, None):
            try:
                Path(path).rmdir()
            except FileNotFoundError:
                break
            except OSError:
                if delay is not None:
                    time.sleep(delay)
            else:
                break


class _Setting(NamedTuple):
    """A value to write into a file of a group; `absent` is what to say if there is no such file (None: an error)."""

    file: str
    value: str
    absent: str | None = None


_NO_SWAP_LIMIT = ", swap not limited (the kernel does not account for it)"


def _limits(resources: Resources) -> Iterable[tuple[str, str, dict[int, tuple[_Setting, ...]]]]:
    """Each limit that is set: controller, sentence, and what to write in v1 and in v2, in this order."""
    if (memory := resources.memory_bytes) is not None:
        v1 = (
            _Setting("memory.limit_in_bytes", str(memory)),
            _Setting("memory.memsw.limit_in_bytes", str(memory), absent=_NO_SWAP_LIMIT),
        )
        v2 = (_Setting("memory.max", str(memory)), _Setting("memory.swap.max", "0", absent=_NO_SWAP_LIMIT))
        yield "memory", f"memory limit {memory / 2**20:.0f} MiB", {1: v1, 2: v2}
    if resources.cpus is not None:
        quota = str(max(CPU_QUOTA_MIN_MICROSECONDS, round(resources.cpus * CPU_PERIOD_MICROSECONDS)))
        period = str(CPU_PERIOD_MICROSECONDS)
        v1 = (_Setting("cpu.cfs_period_us", period), _Setting("cpu.cfs_quota_us", quota))
        yield "cpu", f"CPU limit {resources.cpus:g} cores", {1: v1, 2: (_Setting("cpu.max", f"{quota} {period}"),)}
    if resources.pids is not None:
        both = (_Setting("pids.max", str(resources.pids + 1)),)  # the shim is a member, too
        yield "pids", f"process limit {resources.pids}", {1: both, 2: both}


def _apply(group: Path, settings: tuple[_Setting, ...]) -> str:
    """Write the settings in their order; returns what to add to the sentence."""
    remark = ""
    for setting in settings:
        path = group / setting.file
        if setting.absent is None or path.exists():
            _write(path, setting.value)
        else:
            remark += setting.absent
    return remark


def _write(path: Path, value: str) -> None:
    """One write(2), as the kernel's files want it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _make(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _words(path: Path) -> list[str]:
    return (procfs.read(str(path)) or b"").decode().split()


def _mounts(proc: Path) -> dict[str, Mount]:
    """Mounted hierarchies by controller; the unified one (v2) is ""."""
    own: dict[str, str] = {}
    for line in (procfs.read(str(proc / "cgroup")) or b"").decode().splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    mounts: dict[str, Mount] = {}
    for root, point, kind, options in mounted(procfs.read(str(proc / "mountinfo")) or b""):
        if kind not in ("cgroup", "cgroup2"):
            continue
        for controller in [""] if kind == "cgroup2" else set(options.split(",")) & set(CONTROLLERS):
            if controller in own:
                mounts.setdefault(controller, Mount(Path(point), _locate(own[controller], root, point)))
    return mounts


def _locate(own: str, root: str, point: str) -> Path:
    """The directory of a group. In a container the mount may show only a part of the hierarchy: `root`."""
    relative = own.removeprefix(root.rstrip("/")).lstrip("/") if own.startswith(root) else ""
    directory = Path(point, relative)
    return directory if directory.is_dir() else Path(point)


def _offered(group: Path) -> set[str]:
    """Our controllers that a v2 group has, and may enable for those in it."""
    return set(CONTROLLERS).intersection(_words(group / "cgroup.controllers"))


def _place_v2(mount: Mount, name: str) -> Path:
    """Make and return the parent of the instances' groups.

    In v2 a group with controllers for its children can hold no process, so beside a unit's own process there is
    no room: systemd could not restart the agent into its unit while engines live below it. That leaves, in this
    order: the unit that was delegated to us, if systemd put the agent into a leaf of it; the root of the hierarchy, as
    Docker does; and a scope or container that holds nothing but us, where we move into a leaf ourselves.
    """
    own, top = mount.own, mount.point
    if own != top and _delegated(own.parent):
        return _make(own.parent / "engines")
    if not (top / "cgroup.type").exists() and os.access(top / "cgroup.subtree_control", os.W_OK):
        return _make(top / name)
    if own != top and not _delegated(own):
        raise _Unusable(f"{own} is not delegated to the agent")
    if own.suffix == ".service":
        raise _Unusable(f"{own} is a delegated service, but without DelegateSubgroup= (systemd 254 or newer)")
    if _words(own / "cgroup.procs") != [str(os.getpid())]:
        raise _Unusable(f"{own} is shared with other processes")
    _write(_make(own / "agent") / "cgroup.procs", "0")
    return _make(own / "engines")


def _delegated(group: Path) -> bool:
    """What systemd delegates (Delegate=) it marks with these attributes; only root can read the second."""
    for attribute in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, attribute) == b"1":
                return True
    return False


def _enable(parent: Path) -> set[str]:
    """Enable what is available for the groups in `parent`; returns what they really have."""
    for group in (parent.parent, parent):
        for controller in _offered(group):
            with contextlib.suppress(OSError):
                _write(group / "cgroup.subtree_control", f"+{controller}")
    return set(_words(parent / "cgroup.subtree_control"))
