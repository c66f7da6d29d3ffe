"""PCI as sysfs shows it: which GPUs there are, where they sit, how wide their links are, what they are called.

Files: Documentation/ABI/testing/sysfs-bus-pci of the kernel. A function's real folder is a path through the bridges
above it (/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0), so the distance of two devices is read off their paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from agent.frozen import frozen
from agent.hardware import sysfs
from agent.hardware.inventory import LinkKind, PciLink

AMD, INTEL, NVIDIA = 0x1002, 0x8086, 0x10DE
#: Base classes of GPUs: display controllers, and processing accelerators (Instinct from MI200 on, for one).
_DISPLAY, _ACCELERATOR = 0x03, 0x12
_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
#: GT/s of a lane, by generation.
_GENERATIONS = {"2.5": 1, "5": 2, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}
#: Where distributions put the list of names; hwdata's path and Debian's.
_NAMES = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")


@frozen
class Function:
    """One function of a PCI device."""

    folder: Path  # the real one, below /sys/devices
    address: str  # "0000:1b:00.0"
    vendor: int
    device: int
    revision: int
    driver: str  # "amdgpu"; "" when none is bound


def graphics(root: Path, vendor: int) -> Iterator[Function]:
    """The vendor's GPUs, by address."""
    for entry in sorted(sysfs.folders(root / "sys/bus/pci/devices")):
        kind = sysfs.number(entry / "class")
        if sysfs.number(entry / "vendor") == vendor and kind and kind >> 16 in (_DISPLAY, _ACCELERATOR):
            yield Function(
                folder=entry.resolve(),
                address=entry.name,
                vendor=vendor,
                device=sysfs.number(entry / "device") or 0,
                revision=sysfs.number(entry / "revision") or 0,
                driver=Path(sysfs.link(entry / "driver")).name,
            )


def link(folder: Path) -> PciLink:
    """The link between a card and the host.

    Many cards carry a switch of their own; the GPU's own link is then one inside of the card, and the one that matters
    is that of the switch.
    """
    outside = _own_switch(folder) or folder
    return PciLink(
        address=folder.name,
        generation=_generation(outside / "current_link_speed"),
        max_generation=_generation(outside / "max_link_speed"),
        width=_width(outside / "current_link_width"),
        max_width=_width(outside / "max_link_width"),
    )


def numa_node(folder: Path) -> int | None:
    """None where the firmware does not say (-1), as on most machines with one socket."""
    node = sysfs.number(folder / "numa_node")
    return node if node is not None and node >= 0 else None


def asleep(folder: Path) -> bool:
    """Whether the kernel has suspended the device for want of use. Many a read would wake it up."""
    return sysfs.text(folder / "power/runtime_status") == "suspended"


def gone(folder: Path) -> bool:
    """Whether the device has left the bus: its folder is gone, or its registers read as all ones ("fallen off")."""
    if not folder.is_dir():
        return True
    if asleep(folder):
        return False
    try:
        with (folder / "config").open("rb", buffering=0) as file:
            return file.read(4) == b"\xff\xff\xff\xff"
    except OSError:
        return False


def relation(a: Path, b: Path) -> LinkKind:
    """How two functions reach each other over PCI, in the words of `nvidia-smi topo -m`."""
    above_a, above_b = _bridges(a), _bridges(b)
    if not above_a or above_a[:1] != above_b[:1]:
        near, far = numa_node(a), numa_node(b)
        return "node" if near is not None and near == far else "sys"
    common = sum(1 for _ in _common(above_a, above_b))
    if common == 1:  # only the host bridge itself
        return "phb"
    return "pix" if max(len(above_a), len(above_b)) - common <= 1 else "pxb"


def name(root: Path, vendor: int, device: int) -> str:
    """The device's name in the host's pci.ids; "" where there is no such file, or the file is older than the device."""
    lines = next((found for path in _NAMES if (found := sysfs.text(root / path))), "").splitlines()
    heading, entry = f"{vendor:04x}  ", f"\t{device:04x}  "
    inside = False
    for line in lines:
        if line.startswith(entry) and inside:
            return line[len(entry) :].strip()
        if line[:1] not in {"\t", "#", ""}:
            inside = line.startswith(heading)
    return ""


def _bridges(folder: Path) -> list[str]:
    """From the host bridge ("pci0000:00") down to the slot; a card's own switch is part of the card."""
    card = _own_switch(folder) or folder
    parts = card.parent.parts
    start = next((index for index, part in enumerate(parts) if part.startswith("pci")), len(parts))
    return list(parts[start:])


def _common(a: list[str], b: list[str]) -> Iterator[str]:
    for one, other in zip(a, b, strict=False):
        if one != other:
            return
        yield one


def _own_switch(folder: Path) -> Path | None:
    """The upstream port of the switch on the card, if it has one: the topmost bridge of the card's own vendor that is
    no root port, since that belongs to the host."""
    vendor = sysfs.number(folder / "vendor")
    found = None
    for bridge in folder.parents:
        is_root_port = not _ADDRESS.fullmatch(bridge.parent.name)
        if not _ADDRESS.fullmatch(bridge.name) or is_root_port or sysfs.number(bridge / "vendor") != vendor:
            return found
        found = bridge
    return found


def _generation(path: Path) -> int | None:
    return _GENERATIONS.get(sysfs.text(path).split(" ", 1)[0])


def _width(path: Path) -> int | None:
    """Lanes; 0 and 255 are the kernel's and the hardware's "unknown"."""
    lanes = sysfs.number(path)
    return lanes if lanes is not None and 0 < lanes <= 32 else None
