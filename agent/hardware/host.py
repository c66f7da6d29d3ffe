"""The host without devices: CPU, memory and kernel, as far as this process may use them.

Inside of a container or slice, cgroup limits are smaller than the machine: the smallest of all levels holds.
Everything is read from /proc and /sys; what is not there, or cannot be understood, is left out, never guessed.
"""

from __future__ import annotations

import os
import platform
import re
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from agent.hardware import sysfs
from agent.hardware.inventory import Inventory, Memory, NumaNode

#: Instruction sets that decide which binaries and kernels run; names as in /proc/cpuinfo.
FLAGS_OF_INTEREST = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
#: A cgroup v1 limit this large means "none": the kernel rounds LONG_MAX down to a page.
_UNLIMITED = 1 << 62


def inventory(root: Path = Path("/")) -> Inventory:
    """Look at everything, once at start. `root` is where /proc and /sys are found."""
    usable = os.sched_getaffinity(0)
    cores = list(_cores(sysfs.text(root / "proc/cpuinfo")))
    mine = [core for core in cores if sysfs.integer(core.get("processor", "")) in usable] or cores[:1] or [{}]
    flags = set(mine[0].get("flags", "").split())
    return Inventory(
        hostname=socket.gethostname(),
        os=_os_name(root),
        kernel=platform.release(),
        machine=platform.machine(),
        cpu_model=mine[0].get("model name", platform.machine()),
        physical_cores=len({(core.get("physical id"), core.get("core id", core.get("processor"))) for core in mine}),
        logical_cores=len(usable),
        cpu_quota=_cpu_quota(root),
        cpu_flags=tuple(flag for flag in FLAGS_OF_INTEREST if flag in flags),
        memory=memory(root),
        numa=tuple(_numa(root)),
    )


def memory(root: Path = Path("/")) -> Memory:
    """Sample the memory: three small files in the common case, so that it may be called every few seconds."""
    fields = _meminfo(root)
    total = fields.get("MemTotal", 0)
    available = fields.get("MemAvailable", fields.get("MemFree", 0))
    for limit, used in _memory_limits(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return Memory(total, min(total, available), fields.get("SwapTotal", 0))


def _meminfo(root: Path) -> dict[str, int]:
    """Bytes by name."""
    rows = (line.split() for line in sysfs.text(root / "proc/meminfo").splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3 and row[1].isdecimal()}


def _numa(root: Path) -> Iterator[NumaNode]:
    """Nodes of the machine, also those without CPUs (memory on CXL) or without memory."""
    for folder in sysfs.folders(root / "sys/devices/system/node", "node[0-9]*"):
        total = re.search(r"MemTotal:\s+([0-9]+) kB", sysfs.text(folder / "meminfo"))
        yield NumaNode(
            id=int(folder.name.removeprefix("node")),
            cpus=tuple(_numbers(sysfs.text(folder / "cpulist"))),
            memory_bytes=int(total[1]) * 1024 if total else 0,
        )


def _numbers(ranges: str) -> Iterator[int]:
    """0, 1, 2, 3, 8 of "0-3,8"."""
    for first, last in re.findall(r"([0-9]+)(?:-([0-9]+))?", ranges):
        yield from range(int(first), int(last or first) + 1)


def _cores(cpuinfo: str) -> Iterator[dict[str, str]]:
    """One dictionary a logical CPU."""
    for block in cpuinfo.strip().split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        yield {key.strip(): value.strip() for key, _, value in pairs}


def _os_name(root: Path) -> str:
    match = re.search(r'^PRETTY_NAME="?(.*?)"?$', sysfs.text(root / "etc/os-release"), re.MULTILINE)
    return match[1] if match else platform.system()


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used without reclaimable page cache) of each cgroup above this process that limits memory."""
    for folder in _limiting(root, "", "memory.max"):
        limit = sysfs.number(folder / "memory.max")
        if limit is not None:
            yield limit, max(0, (sysfs.number(folder / "memory.current") or 0) - _stat(folder, "inactive_file"))
    for folder in _limiting(root, "memory", "memory.limit_in_bytes"):
        limit = sysfs.number(folder / "memory.limit_in_bytes")
        if limit is not None and limit < _UNLIMITED:
            used = sysfs.number(folder / "memory.usage_in_bytes") or 0
            yield limit, max(0, used - _stat(folder, "total_inactive_file"))


@cache
def _limiting(root: Path, controller: str, file: str) -> tuple[Path, ...]:
    """The groups with that file, looked for once: the agent stays in its cgroup, and is sampled every few seconds."""
    return tuple(folder for folder in _cgroups(root, controller) if (folder / file).is_file())


def _cpu_quota(root: Path) -> float | None:
    """Cores' worth of CPU time, the smallest of all levels."""
    quotas = []
    for folder in _cgroups(root, ""):
        quota, _, period = sysfs.text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    for folder in _cgroups(root, "cpu"):
        quota_us, period_us = sysfs.number(folder / "cpu.cfs_quota_us"), sysfs.number(folder / "cpu.cfs_period_us")
        if quota_us is not None and quota_us > 0 and period_us:
            quotas.append(quota_us / period_us)
    return min(quotas, default=None)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The cgroup of this process for a v1 `controller` ("" is v2), and each one above it, where mounted."""
    for line in sysfs.text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if (controller in controllers.split(",")) if controller else not controllers:
            for mount in ("unified", "") if not controller else (controller, "cpu,cpuacct"):
                top = root / "sys/fs/cgroup" / mount
                folder = top / path.lstrip("/")
                # Inside a container the path may be the host's, which is not mounted: then the mount is our own.
                if not folder.is_dir():
                    folder = top
                yield from (level for level in (folder, *folder.parents) if level.is_relative_to(top))


def _stat(folder: Path, name: str) -> int:
    return sysfs.table(folder / "memory.stat").get(name, 0)
