"""Apple silicon on macOS: one GPU in the processor, which uses the host's memory, up to a limit.

What macOS tells comes out of its own commands, each with a deadline: sysctl, system_profiler (what GPU it is) and ioreg
(what it uses, in the PerformanceStatistics of IOAccelerator). None tells of power, temperature or processes without the
administrator's rights.

The limit is how much memory the GPU may hold at once (Metal's recommendedMaxWorkingSetSize): `iogpu.wired_limit_mb` if
the operator has set it, else two thirds of the memory up to 32 GiB, three quarters of more. Metal says it for itself in
llama.cpp's logs: 22906.50 MB of 32 GiB, 28991.03 MB of 36 GiB, 103079.22 MB of 128 GiB.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from agent.hardware.inventory import Detection, Device, Driver, Fault, Problem, Sample

_ID = "apple-gpu"  # there is one
_MIB = 1024**2
#: Up to here macOS leaves a third of the memory to everything else, above it a quarter.
_LARGE = 32 * 1024 * _MIB
#: Seconds. system_profiler starts helpers of its own; the others read one table of the kernel.
_SLOW, _QUICK = 20.0, 2.0
_METAL = {"spdisplays_metal3": "Metal 3", "spdisplays_metal4": "Metal 4"}


class Apple:
    """Apple's part of the inventory. `root` is where the commands and /System are found."""

    name = "apple"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._memory = 0
        self._closed = threading.Event()

    def present(self) -> bool:
        return self._system_version.is_file()

    def detect(self) -> Detection:
        if (
            not self.present() or self._sysctl("hw.optional.arm64") != "1"
        ):  # a Mac with an Intel processor has no such key
            return Detection(self.name)
        gpu = displays(self._run("usr/sbin/system_profiler", "SPDisplaysDataType", "-json", timeout=_SLOW))
        size = _whole(self._sysctl("hw.memsize"))
        if not size:
            message = "sysctl does not say how much memory there is (hw.memsize)"
            return Detection(self.name, problems=(Problem("NoAnswer", message, vendor=self.name),))
        self._memory = working_set(size, _whole(self._sysctl("iogpu.wired_limit_mb")) or 0)
        device = Device(
            id=_ID,
            index=0,
            vendor=self.name,
            name=gpu.get("sppci_model") or self._sysctl("machdep.cpu.brand_string") or "Apple GPU",
            memory_bytes=self._memory,
            memory_kind="unified",
            architecture="apple-silicon",
        )
        metal = _METAL.get(gpu.get("spdisplays_mtlgpufamilysupport", ""), "")
        return Detection(self.name, (device,), driver=Driver(self.name, f"macOS {self._macos()}".strip(), metal))

    def sample(self, device: str) -> Sample:
        now = time.time()
        listing = self._run("usr/sbin/ioreg", "-r", "-d", "1", "-c", "IOAccelerator", "-a", timeout=_QUICK)
        statistics = performance(listing)
        used = statistics.get("In use system memory")
        if device != _ID or not isinstance(used, int):
            message = "ioreg does not say what the GPU uses (IOAccelerator, PerformanceStatistics)"
            return Sample(device, now, problem=Problem("NoAnswer", message, device, self.name))
        busy = statistics.get("Device Utilization %")
        return Sample(
            device,
            now,
            memory_used=used,
            memory_total=self._memory or None,
            utilization=float(busy) if isinstance(busy, int) else None,
        )

    def faults(self, timeout: float) -> tuple[Fault, ...]:
        """A GPU that hangs is reset by macOS, which tells only its log."""
        self._closed.wait(timeout)
        return ()

    def close(self) -> None:
        self._closed.set()

    @property
    def _system_version(self) -> Path:
        return self._root / "System/Library/CoreServices/SystemVersion.plist"

    def _macos(self) -> str:
        try:
            return str(_plist(self._system_version.read_bytes())["ProductVersion"])
        except (OSError, LookupError, TypeError):
            return ""

    def _sysctl(self, name: str) -> str:
        """Empty for a key that this Mac does not have."""
        return self._run("usr/sbin/sysctl", "-n", name, timeout=_QUICK).decode(errors="replace").strip()

    def _run(self, command: str, *arguments: str, timeout: float) -> bytes:
        """What it prints; nothing when it fails or takes too long."""
        try:
            done = subprocess.run(
                [self._root / command, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return b""
        return done.stdout


def working_set(memory: int, limit_mib: int) -> int:
    """Bytes that the GPU may hold: of so much memory, with that limit set by the operator (0: none)."""
    if limit_mib > 0:
        return min(limit_mib * _MIB, memory)
    return memory * 2 // 3 if memory <= _LARGE else memory * 3 // 4


def displays(listing: bytes) -> dict[str, str]:
    """The text fields of the GPU in `system_profiler SPDisplaysDataType -json`; none in anything else."""
    try:
        entries = json.loads(listing)["SPDisplaysDataType"]
        gpu = next(entry for entry in entries if "sppci_model" in entry)
        return {name: value for name, value in gpu.items() if isinstance(value, str)}
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return {}


def performance(listing: bytes) -> dict[str, Any]:
    """PerformanceStatistics out of `ioreg -r -c IOAccelerator -a`; none out of anything else."""
    entries = _plist(listing)
    found = (entry.get("PerformanceStatistics") for entry in entries or () if isinstance(entry, dict))
    return next((statistics for statistics in found if isinstance(statistics, dict)), {})


def _plist(data: bytes) -> Any:
    """None for what is no property list."""
    import plistlib  # noqa: PLC0415 - brings an XML parser, which no other host needs
    from xml.parsers.expat import ExpatError  # noqa: PLC0415

    try:
        return plistlib.loads(data)
    except (ExpatError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return None


def _whole(value: str) -> int | None:
    return int(value) if value.isdecimal() else None
