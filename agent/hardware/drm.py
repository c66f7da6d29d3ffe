"""Who uses a GPU of the kernel's own graphics stack (amdgpu, i915, xe), and how much of its memory.

The drivers tell it in /proc/PID/fdinfo of each process that has the device's file open
(Documentation/gpu/drm-usage-stats.rst). Other users' processes are seen by root only.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from agent.frozen import frozen
from agent.hardware import sysfs

#: Seconds for which one look through all processes serves: the devices of one round of samples share it.
_FRESH = 2.0
_UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_MEMORY = re.compile(r"^drm-(total|memory|resident)-(\S+):\s*([0-9]+)[ \t]*(\S*)$", re.MULTILINE)
_CLIENT = re.compile(r"^drm-client-id:\s*(\S+)$", re.MULTILINE)


@frozen
class Usage:
    """Bytes by process and memory region ("vram", "vram0", "local0", "gtt"). `complete`: no process was hidden."""

    by_pid: dict[int, dict[str, int]]
    complete: bool

    def of(self, *prefixes: str) -> dict[int, int]:
        """Bytes by process in the regions whose names begin so; processes that hold none are left out."""
        sums = {
            pid: sum(size for region, size in regions.items() if region.startswith(prefixes))
            for pid, regions in self.by_pid.items()
        }
        return {pid: size for pid, size in sums.items() if size}


class Clients:
    """The processes that have device files open. Used from several threads, one a device.

    Looking for them asks the kernel's file tables only and cannot hang on a driver; fdinfo asks the driver, and is read
    by the thread of that device alone.
    """

    def __init__(self, root: Path = Path("/"), fresh: float = _FRESH) -> None:
        self._root = root
        self._fresh = fresh
        self._lock = threading.Lock()
        self._holders: dict[str, list[tuple[int, str]]] = {}
        self._complete = False
        self._until = 0.0

    def usage(self, files: Iterable[str]) -> Usage:
        """Of the device with those files ("/dev/dri/renderD128")."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._look()
                self._until = time.monotonic() + self._fresh
            holders = sorted(holder for file in files for holder in self._holders.get(file, ()))
            complete = self._complete
        by_pid: dict[int, dict[str, int]] = {}
        seen: set[str] = set()
        for pid, descriptor in holders:
            info = sysfs.text(self._root / "proc" / str(pid) / "fdinfo" / descriptor)
            client = _CLIENT.search(info)
            # A descriptor that was duplicated or inherited is the same client: it is counted once.
            if client is None or client[1] in seen:
                continue
            seen.add(client[1])
            regions = by_pid.setdefault(pid, {})
            for region, size in _regions(info).items():
                regions[region] = regions.get(region, 0) + size
        return Usage(by_pid, complete)

    def _look(self) -> None:
        self._holders, self._complete = {}, True
        for pid in filter(str.isdecimal, _names(f"{self._root}/proc") or ()):
            folder = f"{self._root}/proc/{pid}/fd"  # text, not Path: there are thousands of them
            descriptors = _names(folder)
            if descriptors is None:
                self._complete = False
                continue
            for descriptor in descriptors:
                try:
                    target = os.readlink(f"{folder}/{descriptor}")  # noqa: PTH115 - see above
                except OSError:  # closed meanwhile
                    continue
                if target.startswith("/dev/dri/"):
                    self._holders.setdefault(target, []).append((int(pid), descriptor))


def _names(folder: str) -> list[str] | None:
    """None when we may not look; nothing when it is gone."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are all that is asked for
    except PermissionError:
        return None
    except OSError:
        return []


def _regions(info: str) -> dict[str, int]:
    """Bytes by region: what is resident; `memory` is its older name, and `total` counts what was evicted too."""
    found: dict[str, dict[str, int]] = {}
    for kind, region, size, unit in _MEMORY.findall(info):
        if unit in _UNITS:
            found.setdefault(region, {})[kind] = int(size) * _UNITS[unit]
    return {
        region: next(sizes[kind] for kind in ("resident", "memory", "total") if kind in sizes)
        for region, sizes in found.items()
    }
