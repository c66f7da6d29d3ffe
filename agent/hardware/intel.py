"""Intel's graphics cards (Arc, Flex, Max), from what the drivers i915 and xe say of them.

Graphics inside of an Intel processor is no device: it shares the processor's memory and its bandwidth, and no engine
serves a model faster on it than on the processor's cores. It always sits at 0000:00:02.0, cards never do.

Memory: out-of-tree i915 shows it in sysfs (`lmem_total_bytes`), so do some xe (`tile0/physical_vram_size_bytes`), but
not mainline: then the driver is asked (`agent.hardware.intel_memory`). Per process: `agent.hardware.drm`. Clocks, power
and temperature: Documentation/ABI/testing/sysfs-driver-intel-{i915,xe}-hwmon, xe_gt_freq.c and i915's gt/gtN. Neither
driver tells of its load, of errors of the memory, or of faults by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from agent.frozen import frozen
from agent.hardware import drm, intel_memory, pci, processes, sysfs
from agent.hardware.inventory import Detection, Device, Driver, Fault, Link, Problem, Sample

_DRIVERS = ("i915", "xe")
_INTEGRATED = "0000:00:02.0"
#: Sustained for the card or its package; newer cards have the one for bursts alone.
_POWER_LIMITS = ("power1_max", "power2_max", "power1_cap", "power2_cap")
#: The drivers' reasons for a lower clock, in the words that all vendors share; what is missing here is named as it is.
_THROTTLING = {
    "pl1": "sw-power-cap",
    "pl2": "sw-power-cap",
    "pl4": "hw-power-brake-slowdown",
    "vr_tdc": "hw-power-brake-slowdown",
    "thermal": "hw-thermal-slowdown",
    "prochot": "hw-thermal-slowdown",
    "ratl": "hw-thermal-slowdown",
    "vr_thermalert": "hw-thermal-slowdown",
}

#: Why a card could not be asked.
_CODES: dict[type[OSError], str] = {PermissionError: "NoPermission", FileNotFoundError: "NoDeviceFile"}


@frozen
class _Card:
    """What sampling needs of a device that was found."""

    device: Device
    function: pci.Function
    files: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.function.folder


class Intel:
    """Intel's part of the inventory. `root` is where /sys, /proc and /dev are found."""

    name = "intel"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._cards: dict[str, _Card] = {}
        self._clients = drm.Clients(root)
        self._energy: dict[str, tuple[float, int]] = {}  # when, and the counter's microjoules, at the last sample
        self._closed = threading.Event()

    def present(self) -> bool:
        return any(self._functions())

    def detect(self) -> Detection:
        devices: list[Device] = []
        problems: list[Problem] = []
        cards = {}
        for function in self._functions():
            found = self._card(len(devices), function)
            if isinstance(found, Problem):
                problems.append(found)
            elif found is not None:
                devices.append(found.device)
                cards[found.device.id] = found
        self._cards = cards
        return Detection(
            vendor=self.name,
            devices=tuple(devices),
            links=tuple(_links(list(cards.values()))),
            driver=self._driver(list(cards.values())),
            problems=tuple(problems),
        )

    def sample(self, device: str) -> Sample:
        now = time.time()
        card = self._cards.get(device)
        if card is None or pci.gone(card.folder):
            message = f"{device} is no longer on the PCI bus, or never was"
            return Sample(device, now, problem=Problem("DeviceLost", message, device, self.name))
        usage = self._clients.usage(card.files)
        held = usage.of("vram", "local")
        asleep = pci.asleep(card.folder)  # then whatever asks the card itself would wake it up
        try:
            memory = None if asleep else self._ask(card.function)
        except PermissionError:
            memory = None
        except OSError as error:  # a card that has given up ("wedged") refuses every question
            message = f"{device} does not answer its driver: {error.strerror}; see the kernel log"
            return Sample(device, now, problem=Problem("NoAnswer", message, device, self.name))
        used = memory.used if memory else None
        if used is None and usage.complete:
            used = sum(held.values())
        sample = Sample(
            device,
            now,
            memory_used=used,
            memory_total=card.device.memory_bytes,
            # Nobody seen, and some not to be looked at: that is not "none".
            processes=tuple(processes.describe(self._root, pid, size) for pid, size in sorted(held.items()))
            if held or usage.complete
            else None,
        )
        return sample if asleep else self._with_sensors(sample, card)

    def faults(self, timeout: float) -> tuple[Fault, ...]:
        self._closed.wait(timeout)
        return ()

    def close(self) -> None:
        self._closed.set()

    def _functions(self) -> Iterator[pci.Function]:
        return (one for one in pci.graphics(self._root, pci.INTEL) if one.address != _INTEGRATED)

    def _card(self, index: int, function: pci.Function) -> _Card | Problem | None:
        """None for a card that was given to somebody else (vfio-pci), or is none."""
        if not function.driver:
            message = "has no driver: it needs i915 or xe, of a kernel that knows it"
            return Problem("DriverNotLoaded", f"the Intel card at {function.address} {message}", vendor=self.name)
        if function.driver not in _DRIVERS:
            return None
        files = tuple(
            f"/dev/dri/{entry.name}"
            for pattern in ("renderD*", "card*")
            for entry in sysfs.folders(function.folder / "drm", pattern)
        )
        try:
            memory = _shown_memory(function.folder) or self._ask(function)
        except OSError as error:
            message = f"the Intel card at {function.address} cannot be asked for its memory: {error.strerror}"
            return Problem(_CODES.get(type(error), "NoAnswer"), message, vendor=self.name)
        if memory is None:
            return None
        limit = _first_number(_hwmon(function), *_POWER_LIMITS)
        device = Device(
            id=f"intel-{function.address}",
            index=index,
            vendor=self.name,
            name=pci.name(self._root, function.vendor, function.device)
            or f"Intel card ({function.vendor:04x}:{function.device:04x})",
            memory_bytes=memory.total,
            pci=pci.link(function.folder),
            numa_node=pci.numa_node(function.folder),
            files=files[:1],
            power_limit_watts=limit / 1e6 if limit else None,
        )
        return _Card(device, function, files)

    def _ask(self, function: pci.Function) -> intel_memory.CardMemory | None:
        """By its render node. Raises `OSError`."""
        for node in sysfs.folders(function.folder / "drm", "renderD*"):
            return intel_memory.ask(self._root / "dev/dri" / node.name, function.driver)
        return None

    def _driver(self, cards: list[_Card]) -> Driver | None:
        """Both come with the kernel; an out-of-tree i915 has a version of its own."""
        if not cards:
            return None
        driver = cards[0].function.driver
        version = sysfs.text(self._root / "sys/module" / driver / "version")
        return Driver(self.name, f"{driver} {version or sysfs.text(self._root / 'proc/sys/kernel/osrelease')}")

    def _with_sensors(self, sample: Sample, card: _Card) -> Sample:
        monitor = _hwmon(card.function)
        degrees = _first_number(monitor, "temp2_input", "temp1_input")  # xe: the package; i915: the only one
        limit = _first_number(monitor, *_POWER_LIMITS)
        engines = list(_engines(card.folder))
        return replace(
            sample,
            power_watts=self._watts(sample, _first_number(monitor, "energy1_input", "energy2_input")),
            power_limit_watts=limit / 1e6 if limit else None,
            temperature_celsius=degrees / 1000 if degrees is not None else None,
            clock_mhz=max((mhz for engine in engines if (mhz := engine.clock) is not None), default=None),
            max_clock_mhz=max((mhz for engine in engines if (mhz := engine.max_clock) is not None), default=None),
            throttling=tuple(sorted({_THROTTLING.get(why, why) for engine in engines for why in engine.throttling})),
        )

    def _watts(self, sample: Sample, energy: int | None) -> float | None:
        """Mean since the last sample: the drivers count energy and do not tell power."""
        if energy is None:
            return None
        before = self._energy.get(sample.device)
        self._energy[sample.device] = (sample.at, energy)
        if before is None or sample.at <= before[0] or energy < before[1]:
            return None
        return (energy - before[1]) / 1e6 / (sample.at - before[0])


@frozen
class _Engine:
    """A part of the card with a clock of its own ("GT")."""

    clock: int | None
    max_clock: int | None
    throttling: tuple[str, ...]


def _engines(folder: Path) -> Iterator[_Engine]:
    for frequency in sysfs.folders(folder, "tile*/gt*/freq0"):  # xe
        yield _Engine(
            sysfs.number(frequency / "act_freq"),
            sysfs.number(frequency / "rp0_freq"),
            _reasons(frequency / "throttle", "reason_"),
        )
    for engine in sysfs.folders(folder, "drm/card*/gt/gt*"):  # i915
        yield _Engine(
            sysfs.number(engine / "rps_act_freq_mhz"),
            sysfs.number(engine / "rps_RP0_freq_mhz"),
            _reasons(engine, "throttle_reason_"),
        )


def _reasons(folder: Path, prefix: str) -> tuple[str, ...]:
    """Files with 1 in them; `status` only says that there is one."""
    names = (path.name.removeprefix(prefix) for path in sysfs.folders(folder, f"{prefix}*") if sysfs.number(path) == 1)
    return tuple(name for name in names if name != "status")


def _shown_memory(folder: Path) -> intel_memory.CardMemory | None:
    """As sysfs has it, where it has it."""
    shown = [
        *sysfs.folders(folder, "drm/card*/lmem_total_bytes"),
        *sysfs.folders(folder, "tile*/physical_vram_size_bytes"),
    ]
    total = sum(sysfs.number(path) or 0 for path in shown)
    return intel_memory.CardMemory(total, None) if total > 0 else None


def _links(cards: list[_Card]) -> Iterator[Link]:
    for index, card in enumerate(cards):
        for other in cards[index + 1 :]:
            a, b = sorted((card, other), key=lambda one: one.device.id)
            yield Link(a.device.id, b.device.id, pci.relation(a.folder, b.folder))


def _hwmon(function: pci.Function) -> Path:
    """The whole card's; i915 has others for parts of it ("i915_gt0")."""
    monitors = sysfs.folders(function.folder / "hwmon", "hwmon*")
    whole = (path for path in monitors if sysfs.text(path / "name") == function.driver)
    return next(whole, function.folder / "hwmon")


def _first_number(folder: Path, *names: str) -> int | None:
    return next((value for name in names if (value := sysfs.number(folder / name)) is not None), None)
