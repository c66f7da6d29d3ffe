"""The host without devices: CPU, memory and kernel, as far as this process may use them.

Inside of a container or slice, cgroup limits are smaller than the machine: the smallest of all levels holds.
Everything is read from /proc and /sys; what is not there is left out, never guessed.
"""

from __future__ import annotations

import os
import platform
import re
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from agent.hardware.inventory import Inventory, Memory

#: Instruction sets that decide which binaries and kernels run; names as in /proc/cpuinfo.
FLAGS_OF_INTEREST = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
#: A cgroup v1 limit this large means "none": the kernel rounds LONG_MAX down to a page.
_UNLIMITED = 1 << 62


def inventory(root: Path = Path("/")) -> Inventory:
    """Look at everything, once at start. `root` is where /proc and /sys are found."""
    usable = os.sched_getaffinity(0)
    cores = list(_cores((root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")))
    mine = [core for core in cores if int(core.get("processor", -1)) in usable] or cores[:1] or [{}]
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
    )


def memory(root: Path = Path("/")) -> Memory:
    """Sample the memory: three small files in the common case, so that it may be called every few seconds."""
    fields = _meminfo(root)
    total, available = fields["MemTotal"], fields.get("MemAvailable", fields["MemFree"])
    for limit, used in _memory_limits(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return Memory(total, min(total, available), fields.get("SwapTotal", 0))


def _meminfo(root: Path) -> dict[str, int]:
    """Bytes by name."""
    rows = (line.split() for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3}


def _cores(cpuinfo: str) -> Iterator[dict[str, str]]:
    """One dictionary a logical CPU."""
    for block in cpuinfo.strip().split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        yield {key.strip(): value.strip() for key, _, value in pairs}


def _os_name(root: Path) -> str:
    try:
        release = (root / "etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return platform.system()
    match = re.search(r'^PRETTY_NAME="?(.*?)"?$', release, re.MULTILINE)
    return match[1] if match else platform.system()


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used without reclaimable page cache) of each cgroup above this process that limits memory."""
    for folder in _limiting(root, "", "memory.max"):
        limit = _number(folder / "memory.max")
        if limit is not None:
            yield limit, max(0, (_number(folder / "memory.current") or 0) - _stat(folder, "inactive_file"))
    for folder in _limiting(root, "memory", "memory.limit_in_bytes"):
        limit = _number(folder / "memory.limit_in_bytes")
        if limit is not None and limit < _UNLIMITED:
            used = _number(folder / "memory.usage_in_bytes") or 0
            yield limit, max(0, used - _stat(folder, "total_inactive_file"))


@cache
def _limiting(root: Path, controller: str, file: str) -> tuple[Path, ...]:
    """The groups with that file, looked for once: the agent stays in its cgroup, and is sampled every few seconds."""
    return tuple(folder for folder in _cgroups(root, controller) if (folder / file).is_file())


def _cpu_quota(root: Path) -> float | None:
    """Cores' worth of CPU time, the smallest of all levels."""
    quotas = []
    for folder in _cgroups(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    for folder in _cgroups(root, "cpu"):
        quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota_us is not None and quota_us > 0 and period_us:
            quotas.append(quota_us / period_us)
    return min(quotas, default=None)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The cgroup of this process for a v1 `controller` ("" is v2), and each one above it, where mounted."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if (controller in controllers.split(",")) if controller else not controllers:
            for mount in ("unified", "") if not controller else (controller, "cpu,cpuacct"):
                top = root / "sys/fs/cgroup" / mount
                folder = top / path.lstrip("/")
                # Inside a container the path may be the host's, which is not mounted: then the mount is our own.
                if not folder.is_dir():
                    folder = top
                yield from (level for level in (folder, *folder.parents) if level.is_relative_to(top))


def _stat(folder: Path, name: str) -> int:
    match = re.search(rf"^{name} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
    return int(match[1]) if match else 0


def _number(path: Path) -> int | None:
    """A whole number; None when the file is missing or says "max"."""
    try:
        return int(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
