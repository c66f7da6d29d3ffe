"""The host around the devices: space, limits, clock, instruction sets, and what the agent itself complains of."""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.hardware.checks.base import Case, Check, error, note, ok, size, unknown, warning
from agent.status import Finding

GIB = 1024**3

#: Free bytes below which a directory's disk is called low. Models and the cache: one model of 8 billion parameters in
#: 16 bits has 16 GB. Others: the store and its backup have some MiB, a deployment's logs 150 MiB by default.
LOW_DISK = {"models": 20 * GIB, "cache": 20 * GIB}
LOW_DISK_ELSEWHERE = 1 * GIB
#: The same for an error: so little that the store soon refuses every change.
FULL_DISK = 64 * 1024**2

SHARED_MEMORY = "/dev/shm"  # noqa: S108  (named to people, not written to)
#: NCCL and the workers of one engine exchange data there; containers get 64 MiB unless told otherwise.
LOW_SHARED_MEMORY = 1 * GIB

#: What vLLM raises its own limit to, and warns when it cannot. Each connection of a client is an open file.
OPEN_FILES = 65535


def disks(case: Case) -> Iterator[Finding]:
    """Space where the agent's directories lie."""
    well = []
    if not case.inventory.disks:
        yield unknown("disk-space", "none of the agent's directories could be looked at")
    for disk in case.inventory.disks:
        message = f"{disk.purpose} ({disk.path}, {disk.filesystem}): {size(disk.free)} free of {size(disk.total)}"
        low = LOW_DISK.get(disk.purpose, LOW_DISK_ELSEWHERE)
        remedy = f"free space on it, or move directories.{disk.purpose} to a larger disk"
        if disk.free < FULL_DISK:
            yield error("disk-space", message, remedy)
        elif disk.free < low:
            yield warning("disk-space", f"{message}; less than {size(low)}", remedy)
        else:
            well.append(message)
    if well:
        yield ok("disk-space", "; ".join(well))


def shared_memory(case: Case) -> Iterator[Finding]:
    """Shared memory, through which the parts of an engine that runs on devices talk."""
    found = case.inventory.system.shm_bytes
    if found is None:
        yield unknown("shared-memory", f"the size of {SHARED_MEMORY} is not known")
    elif found < LOW_SHARED_MEMORY and case.inventory.devices:
        yield warning(
            "shared-memory",
            f"{SHARED_MEMORY} has {size(found)}; engines on several devices need {size(LOW_SHARED_MEMORY)} or more",
            f"in a container, `--shm-size=8g` or `--ipc=host`; else `mount -o remount,size=8G {SHARED_MEMORY}`",
        )
    else:
        yield ok("shared-memory", f"{SHARED_MEMORY} has {size(found)}")


def limits(case: Case) -> Iterator[Finding]:
    """Resource limits that engines inherit from the agent."""
    files, locked = case.inventory.system.open_files, case.inventory.system.locked_memory
    if files is None:
        yield unknown("open-files", "the limit of open files is not known")
    elif 0 <= files < OPEN_FILES:  # -1: not limited
        yield warning(
            "open-files",
            f"a process may open {files} files; engines want {OPEN_FILES}, one for each connection and model file",
            f"`LimitNOFILE={OPEN_FILES}` in the unit of agentd, or `ulimit -n {OPEN_FILES}` before a start by hand",
        )
    else:
        yield ok("open-files", f"a process may open {files} files" if files >= 0 else "not limited")
    if locked == -1:
        yield ok("locked-memory", "not limited")
    elif locked is not None:
        yield note("locked-memory", f"limited to {size(locked)}: matters only to RDMA and to models locked in memory")


def clock(case: Case) -> Iterator[Finding]:
    """Certificates, and comparing events of two hosts, need one time."""
    match case.inventory.system.clock_synchronized:
        case None:
            yield unknown("clock", "whether the clock is synchronised is not known")
        case True:
            yield ok("clock", "synchronised")
        case False:
            yield warning(
                "clock",
                "the clock is not synchronised: times of events cannot be compared, and certificates may be refused",
                "`timedatectl set-ntp true`, or start chronyd",
            )


def cpu(case: Case) -> Iterator[Finding]:
    """Instruction sets without which engines that were built elsewhere end with SIGILL."""
    found = case.inventory
    if found.machine == "x86_64" and "avx2" not in found.cpu_flags:
        yield warning(
            "cpu-flags",
            f"{found.cpu_model} has no AVX2 (flags: {' '.join(found.cpu_flags) or 'none'}): prebuilt engines may end "
            "with SIGILL",
            "in a virtual machine, pass the host's CPU through; else build llama.cpp on this machine",
        )
    else:
        yield ok("cpu-flags", " ".join(found.cpu_flags) or found.machine)


def surroundings(case: Case) -> Iterator[Finding]:
    """Facts that are no fault, and explain others."""
    found = case.inventory
    if found.simulated:
        yield note("simulated", f"this is no real machine but a described one: {found.simulated}")
    if found.memory.swap:
        yield note("swap", f"{size(found.memory.swap)} of swap: an engine that is swapped out answers very slowly")
    if found.system.in_container:
        yield note("container", "the agent runs in a container: it sees what it was given, not the whole host")


#: Reasons of conditions for which something that is asked for is refused.
_ERRORS = frozenset({"StateReadOnly", "StateNotWritable"})


#: Conditions that stand on what other checks look at one by one.
_SAID_ELSEWHERE = frozenset({"DevicesDetected", "DevicesHealthy"})


def conditions(case: Case) -> Iterator[Finding]:
    """What the agent itself says of the node."""
    for condition in case.conditions:
        check = re.sub(r"(?<!^)(?=[A-Z])", "-", condition.type).lower()
        message = f"{condition.reason}: {condition.message}"
        if condition.type in _SAID_ELSEWHERE or condition.reason == "NoDevices":
            continue
        if condition.status:
            yield ok(check, message)
        elif condition.type == "LimitsEnforced":
            yield warning(
                check, message, "start agentd by its systemd unit, which delegates a cgroup to it, or as root"
            )
        elif condition.status is None:
            yield unknown(check, message)
        else:
            told = error if condition.reason in _ERRORS else warning
            yield told(check, message, "`agentctl events` tells when it began, and the log of agentd more")


CHECKS: tuple[Check, ...] = (disks, shared_memory, limits, clock, cpu, surroundings, conditions)
