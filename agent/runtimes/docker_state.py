"""What the engine's answer about a container (GET /containers/ID/json) says in our words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from agent.runtimes import docker_processes, procfs
from agent.runtimes.docker_config import CONFIG
from agent.runtimes.docker_processes import Box
from agent.runtimes.instance import exit_status
from agent.status import ExitStatus

Found = Mapping[str, Any]

_NANO = 10**9
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)$")
#: What a container that was never started says of its end.
_NEVER = "0001-01-01"


def box(found: Found, directory: str) -> Box:
    """How to find this container again; `directory` is its instance's."""
    id, pid = str(found["Id"]), int(found["State"].get("Pid") or 0)
    first = procfs.stat(pid) if pid else None
    groups = docker_processes.groups(pid, id) if first is not None else ()
    if first is None or not groups:  # of another namespace, or of a machine that the engine's socket leads to
        pid, start = 0, 0
    else:
        start = first.start
    return Box(
        id=id,
        name=str(found["Name"]).lstrip("/"),
        config=str((found["Config"].get("Labels") or {}).get(CONFIG, "")),
        directory=directory,
        started=str(found["State"].get("StartedAt", "")),
        pid=pid,
        start=start,
        boot=procfs.boot_id(),
        cgroups=groups,
        enforcement=_enforcement(found["HostConfig"]),
    )


def running(found: Found) -> bool:
    """Also while it is paused."""
    return bool(found["State"].get("Running") or found["State"].get("Paused"))


def never_started(found: Found) -> bool:
    return not running(found) and str(found["State"].get("StartedAt") or _NEVER).startswith(_NEVER)


def severed(found: Found) -> bool:
    """Whether it runs and nobody can reach it: dockerd, killed while it starts a container, later finds that this runs,
    and forgot its network."""
    ports = found["NetworkSettings"].get("Ports") or {}
    return running(found) and bool(found["HostConfig"].get("PortBindings")) and not any(ports.values())


def restarted(found: Found, box: Box) -> bool:
    """Whether somebody started it again after the run that `box` is of."""
    return bool(box.started) and found["State"].get("StartedAt") != box.started


def ended(found: Found) -> ExitStatus:
    if never_started(found):
        return ExitStatus()
    state = found["State"]
    at = nanoseconds(str(state.get("FinishedAt", "")))
    status = exit_status(int(state.get("ExitCode") or 0), at / _NANO)
    return ExitStatus(status.code, status.signal, bool(state.get("OOMKilled")), status.at if at else None)


def restart_policy(found: Found) -> str:
    return str((found["HostConfig"].get("RestartPolicy") or {}).get("Name") or "no")


def remarks(found: Found, box: Box) -> tuple[str, ...]:
    """What somebody else did to it."""
    said = []
    name = str(found["Name"]).lstrip("/")
    if found["State"].get("Paused"):
        said.append(f"somebody paused it: `docker unpause {name}` lets it go on")
    if (policy := restart_policy(found)) != "no":
        said.append(
            f"somebody gave it the restart policy {policy}: the container engine would start it beside the agent; "
            f"`docker update --restart=no {name}` takes it back"
        )
    if name != box.name:
        said.append(f"somebody renamed it from {box.name} to {name}")
    if running(found) and restarted(found, box):
        said.append(f"somebody restarted it at {found['State'].get('StartedAt')}")
    return tuple(said)


def nanoseconds(text: str) -> int:
    """Since the epoch, of a time as engines write it (RFC 3339, up to nine digits); 0 for anything else."""
    match = _TIME.match(text)
    if match is None:
        return 0
    whole = datetime.fromisoformat(match[1] + match[3])
    return max(0, int(whole.timestamp())) * _NANO + int((match[2] or "0").ljust(9, "0"))


def _enforcement(host: Mapping[str, Any]) -> tuple[str, ...]:
    """What the engine took on; it drops a limit that its kernel does not have."""
    said = []
    if memory := host.get("Memory"):
        swap = "" if host.get("MemorySwap") == memory else ", swap not limited"
        said.append(f"memory limit {memory / 2**20:.0f} MiB{swap}")
    if cpus := host.get("NanoCpus"):
        said.append(f"CPU limit {cpus / _NANO:g} cores")
    if (pids := host.get("PidsLimit")) and pids > 0:
        said.append(f"process limit {pids}")
    return tuple(said)
