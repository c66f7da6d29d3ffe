"""How near two devices are by their places on the bus, and what the bus says of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.hardware import pci
from tests.hardware.trees import write

ROOT_PORT, OTHER_PORT = "pci0000:00/0000:00:01.0", "pci0000:00/0000:00:02.0"
SWITCH = f"{ROOT_PORT}/0000:01:00.0"


def function(root: Path, chain: str, vendor: str = "0x10de", numa: int = 0) -> Path:
    """A GPU below bridges of another vendor."""
    for bridge in list(Path(chain).parents)[:-2]:
        write(root, f"sys/devices/{bridge}/vendor", "0x1022")
    write(root, f"sys/devices/{chain}/vendor", vendor)
    write(root, f"sys/devices/{chain}/numa_node", str(numa))
    return root / "sys/devices" / chain


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        (f"{SWITCH}/0000:02:00.0/0000:03:00.0", f"{SWITCH}/0000:02:01.0/0000:04:00.0", "pix"),
        (f"{SWITCH}/0000:02:00.0/0000:03:00.0", f"{SWITCH}/0000:02:01.0/0000:04:00.0/0000:06:00.0", "pxb"),
        (f"{ROOT_PORT}/0000:03:00.0", f"{ROOT_PORT}/0000:03:00.1", "pix"),
        (f"{ROOT_PORT}/0000:03:00.0", f"{OTHER_PORT}/0000:04:00.0", "phb"),
        ("pci0000:00/0000:00:05.0", "pci0000:00/0000:00:06.0", "phb"),
        (f"{ROOT_PORT}/0000:03:00.0", "pci0000:40/0000:40:01.0/0000:41:00.0", "node"),
    ],
)
def test_devices_are_as_near_as_the_bridge_that_they_share(tmp_path: Path, a: str, b: str, kind: str) -> None:
    assert pci.relation(function(tmp_path, a), function(tmp_path, b)) == kind


def test_devices_on_two_sockets_are_far(tmp_path: Path) -> None:
    near = function(tmp_path, f"{ROOT_PORT}/0000:03:00.0", numa=0)
    far = function(tmp_path, "pci0000:80/0000:80:01.0/0000:81:00.0", numa=1)

    assert pci.relation(near, far) == "sys"


def test_devices_whose_sockets_are_not_known_are_taken_to_be_far(tmp_path: Path) -> None:
    a = function(tmp_path, f"{ROOT_PORT}/0000:03:00.0", numa=-1)
    b = function(tmp_path, "pci0000:80/0000:80:01.0/0000:81:00.0", numa=-1)

    assert pci.relation(a, b) == "sys"


def test_the_switches_on_two_cards_do_not_count_as_way_between_them(tmp_path: Path) -> None:
    """Both hang on one switch of the board; each card adds two bridges of its own."""
    cards = []
    for slot, bus in (("0000:02:00.0", 3), ("0000:02:01.0", 6)):
        chain = f"{SWITCH}/{slot}/0000:0{bus}:00.0/0000:0{bus + 1}:00.0/0000:0{bus + 2}:00.0"
        cards.append(function(tmp_path, chain, vendor="0x1002"))
        for bridge in list(cards[-1].parents)[:2]:
            (bridge / "vendor").write_text("0x1002\n")

    assert pci.relation(*cards) == "pix"


def test_an_unknown_speed_or_width_is_left_out(tmp_path: Path) -> None:
    folder = function(tmp_path, f"{ROOT_PORT}/0000:03:00.0")
    write(folder, "current_link_speed", "Unknown")
    write(folder, "current_link_width", "0")
    write(folder, "max_link_speed", "64.0 GT/s PCIe")
    write(folder, "max_link_width", "255")

    assert pci.link(folder) == pci.PciLink("0000:03:00.0", max_generation=6)


def test_names_are_those_of_the_vendors_own_part_of_the_list(tmp_path: Path) -> None:
    write(
        tmp_path,
        "usr/share/misc/pci.ids",
        "# list\n1001  Else\n\t74a1  Wrong\n1002  AMD\n\t74a1  Right\n\t\t74a1 0 Board\n",
    )

    assert pci.name(tmp_path, 0x1002, 0x74A1) == "Right"
    assert pci.name(tmp_path, 0x1002, 0x74A2) == ""


def test_only_displays_and_accelerators_count_as_gpus(tmp_path: Path) -> None:
    for address, kind in (("0000:03:00.0", "0x030000"), ("0000:04:00.0", "0x120000"), ("0000:03:00.1", "0x040300")):
        write(tmp_path, f"sys/bus/pci/devices/{address}/vendor", "0x1002")
        write(tmp_path, f"sys/bus/pci/devices/{address}/class", kind)
    write(tmp_path, "sys/bus/pci/devices/0000:05:00.0/vendor", "0x10de")

    assert [one.address for one in pci.graphics(tmp_path, pci.AMD)] == ["0000:03:00.0", "0000:04:00.0"]
