"""An inventory of a machine that one does not have: the same data that detection gives, out of a description.

`parse` is the only way in. A description that contradicts itself is refused, with every field that does and why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from agent.frozen import frozen
from agent.hardware import catalog
from agent.hardware.contradictions import contradictions
from agent.hardware.description import AMDGPU, CUDA, NVIDIA, ROCM, Description
from agent.hardware.inventory import Device, Driver, Inventory, Link, LinkKind, Memory, NumaNode, PciLink
from agent.hardware.machine import ROOT, Gpu, Host, Machine, link, resolve
from agent.strict import MAX_VIOLATIONS, Strict, invalid, validate


@frozen
class Simulated:
    """A described machine. `used`: bytes in use on each device, by id; `source`: the description, on one line."""

    inventory: Inventory
    used: Mapping[str, int]
    source: str


class _Request(Strict):
    """So that paths in errors begin with `hardware`."""

    hardware: Annotated[Description, Field(description="What a machine is described by.")]


def parse(description: str | Mapping[str, Any]) -> Simulated:
    """The machine of a short form or a mapping. Raises `InvalidArgument` that names every broken rule."""
    data: Any = {"short": description} if isinstance(description, str) else description
    told = validate(_Request, {ROOT: dict(data) if isinstance(data, Mapping) else data}, ROOT).hardware
    machine = resolve(told)
    violations = list(contradictions(machine))
    if violations:
        raise invalid(*violations[:MAX_VIOLATIONS], more=len(violations) - 1)
    source = _source(told)
    devices = list(_devices(machine.gpus))
    return Simulated(
        _inventory(machine, tuple(device for device, _ in devices), source),
        MappingProxyType({device.id: used for device, used in devices}),
        source,
    )


def _source(told: Description) -> str:
    """The short form where it says all, otherwise JSON of what was written."""
    written = told.model_dump(mode="json", exclude_unset=True)
    return str(told.short) if set(written) == {"short"} else json.dumps(written, ensure_ascii=False)


def _inventory(machine: Machine, devices: tuple[Device, ...], source: str) -> Inventory:
    host, apple = machine.host, "apple" in machine.vendors
    return Inventory(
        hostname="simulated",
        os="macOS" if apple else "Linux",
        kernel="",
        machine=host.machine,
        cpu_model=devices[0].name if apple else host.machine,
        physical_cores=host.cores,
        logical_cores=host.logical_cores,
        cpu_quota=None,
        cpu_flags=host.cpu_flags,
        memory=Memory(host.memory, host.memory - machine.told.host.memory_used),
        numa=tuple(_numa(host)),
        devices=devices,
        links=tuple(_links(machine)),
        drivers=tuple(_drivers(machine)),
        simulated=source,
    )


def _devices(gpus: Sequence[Gpu]) -> Iterator[tuple[Device, int]]:
    """Each device, and the bytes in use on it."""
    for gpu in gpus:
        whole = _device(gpu)
        parts = _slices(gpu, whole) if gpu.entry.mig else [(whole, gpu.entry.memory_used)]
        for device, used in parts:
            yield catalog.complete(device), used


def _device(gpu: Gpu) -> Device:
    on_chip = gpu.model.form == "soc"
    return Device(
        id=f"GPU-sim-{gpu.number}",
        index=gpu.number,
        vendor=gpu.model.vendor,
        name=gpu.model.name,
        memory_bytes=gpu.memory,
        memory_kind=gpu.model.memory_kind,
        architecture=gpu.model.architecture,
        compute_capability=gpu.model.compute_capability,
        pci=None if on_chip else PciLink(f"0000:{0x10 + gpu.number:02x}:00.0"),
        numa_node=None if on_chip else gpu.numa,
        facts=gpu.model.facts,
    )


def _slices(gpu: Gpu, whole: Device) -> Iterator[tuple[Device, int]]:
    each = [entry for entry in gpu.entry.mig for _ in range(entry.count)]
    for number, entry in enumerate(each):
        device = replace(
            whole,
            id=f"MIG-sim-{gpu.number}-{number}",
            index=number,
            name=f"{whole.name} MIG {entry.profile}",
            memory_bytes=gpu.slice_memory(entry.profile),
            parent=whole.id,
            slice_profile=entry.profile,
            facts=None,  # its share of the GPU's
        )
        yield device, entry.memory_used


def _numa(host: Host) -> Iterator[NumaNode]:
    """Cores and memory divided evenly. The second threads of all cores are numbered after the first ones."""
    count, cores = host.numa_nodes, host.cores
    for node in range(count):
        mine = range(node * cores // count, (node + 1) * cores // count)
        cpus = tuple(first + core for first in range(0, host.logical_cores, cores) for core in mine)
        yield NumaNode(node, cpus, host.memory // count)


def _drivers(machine: Machine) -> Iterator[Driver]:
    told = machine.told.driver
    if "nvidia" in machine.vendors:
        yield Driver("nvidia", told.nvidia or NVIDIA, f"CUDA {told.cuda or CUDA}")
    if "amd" in machine.vendors:
        yield Driver("amd", told.amdgpu or AMDGPU, f"ROCm {told.rocm or ROCM}")


def _links(machine: Machine) -> Iterator[Link]:
    """Between whole GPUs: slices reach each other through the host only."""
    joined = _joined(machine)
    for one, other in combinations([gpu for gpu in machine.gpus if not gpu.entry.mig], 2):
        way = joined.get((one.number, other.number))
        if machine.told.topology.matrix is not None:
            way = link(machine.told.topology.matrix[one.number][other.number])
        kind, lanes = way or (_through_host(machine.host, one, other), 0)
        a, b = sorted((f"GPU-sim-{one.number}", f"GPU-sim-{other.number}"))
        yield Link(a, b, kind, lanes)


def _through_host(host: Host, one: Gpu, other: Gpu) -> LinkKind:
    if host.numa_nodes == 1:
        return "phb"
    return "node" if one.numa == other.numa else "sys"


def _joined(machine: Machine) -> dict[tuple[int, int], tuple[LinkKind, int]]:
    """Pairs of GPUs that NVLink or XGMI joins, with the lanes between them."""
    topology = machine.told.topology
    told: Mapping[LinkKind, Sequence[Sequence[int]] | None] = {"nvlink": topology.nvlink, "xgmi": topology.xgmi}
    found: dict[tuple[int, int], tuple[LinkKind, int]] = {}
    for kind, groups in told.items():
        for group in _usual_groups(kind, machine.gpus) if groups is None else groups:
            model = machine.gpus[group[0]].model
            # A switch gives all lanes to each pair; a bridge divides them among the peers.
            lanes = model.lanes // (len(group) - 1) if kind == "nvlink" and model.bridge else model.lanes
            found |= dict.fromkeys(combinations(sorted(group), 2), (kind, lanes))
    return found


def _usual_groups(kind: LinkKind, gpus: Sequence[Gpu]) -> Sequence[Sequence[int]]:
    """All GPUs of a model are one island if its module or a switch joins them; a bridge is an extra."""
    groups: dict[str, list[int]] = {}
    for gpu in gpus:
        if gpu.model.link == kind and not gpu.model.bridge:
            groups.setdefault(gpu.model.id, []).append(gpu.number)
    return tuple(groups.values())
