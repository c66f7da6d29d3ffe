"""How NVIDIA GPUs of one host reach each other: NVLink, directly or by way of NVSwitch, or the nearest PCIe bridge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pynvml as nvml

from agent.frozen import frozen
from agent.hardware.inventory import Link, LinkKind
from agent.hardware.nvidia_nvml import ask, pci_address

#: Where two GPUs meet, by NVML's level; the words of `nvidia-smi topo -m`. The first is one board with two GPUs.
_LEVELS: dict[int, LinkKind] = {
    nvml.NVML_TOPOLOGY_INTERNAL: "pix",
    nvml.NVML_TOPOLOGY_SINGLE: "pix",
    nvml.NVML_TOPOLOGY_MULTIPLE: "pxb",
    nvml.NVML_TOPOLOGY_HOSTBRIDGE: "phb",
    nvml.NVML_TOPOLOGY_NODE: "node",
    nvml.NVML_TOPOLOGY_SYSTEM: "sys",
}
#: The far end of a link that leads to NVSwitch. All GPUs of a host are on the same switches.
_SWITCH = "switch"


@frozen
class End:
    """A whole GPU, and where its NVLinks lead."""

    id: str
    handle: Any
    address: str  # on the PCI bus
    lanes: Counter[str]  # by far end: a PCI address, or _SWITCH


def lanes(handle: Any) -> Counter[str]:
    """The GPU's NVLinks that are up, counted by where they lead."""
    return Counter(end for link in range(_count(handle)) if (end := _far_end(handle, link)))


def between(ends: Sequence[End], found: list[Link]) -> None:
    """Put the nearest way between each two into `found`; what was found until a call hangs is there."""
    for a, b in combinations(sorted(ends, key=lambda end: end.id), 2):
        direct = a.lanes[b.address] or min(a.lanes[_SWITCH], b.lanes[_SWITCH])
        if direct:
            found.append(Link(a.id, b.id, "nvlink", direct))
        elif (kind := _LEVELS.get(ask(nvml.nvmlDeviceGetTopologyCommonAncestor, a.handle, b.handle))) is not None:
            found.append(Link(a.id, b.id, kind))


def _count(handle: Any) -> int:
    """How many NVLinks the GPU has, whether or not they lead anywhere."""
    values = ask(nvml.nvmlDeviceGetFieldValues, handle, [nvml.NVML_FI_DEV_NVLINK_LINK_COUNT])
    return int(values[0].value.uiVal) if values and values[0].nvmlReturn == nvml.NVML_SUCCESS else 0


def _far_end(handle: Any, link: int) -> str:
    """A PCI address, or _SWITCH; "" for a link that is down or leads to neither."""
    if not ask(nvml.nvmlDeviceGetNvLinkState, handle, link):
        return ""
    if ask(nvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link) == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
        return _SWITCH
    remote = ask(nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
    return pci_address(remote) if remote else ""
