"""A described machine with its defaults filled in: what an inventory of it is made of, and what is checked in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from agent.frozen import frozen
from agent.hardware import catalog
from agent.hardware.catalog import Model
from agent.hardware.description import Description, Devices
from agent.hardware.inventory import LinkKind
from agent.quantities import GIB

#: What descriptions are called in errors.
ROOT = "hardware"

_FLAGS = ("avx", "avx2", "fma", "f16c")
_PCIE: Mapping[str, LinkKind] = MappingProxyType(
    {"PIX": "pix", "PXB": "pxb", "PHB": "phb", "NODE": "node", "SYS": "sys"}
)


class Host(NamedTuple):
    """Memory in bytes; physical cores."""

    memory: int
    cores: int
    numa_nodes: int
    machine: str
    cpu_flags: tuple[str, ...]

    @property
    def logical_cores(self) -> int:
        return self.cores * (2 if self.machine == "x86_64" else 1)


#: Defaults of hosts, by the kind of machine that a model is usually found in; the first kind present decides. A "soc"
#: has the memory of its model. Without devices it is a desktop.
HOSTS: Mapping[str, Host] = MappingProxyType(
    {
        "superchip": Host(480 * GIB, 72, 1, "aarch64", ()),
        "server": Host(1024 * GIB, 64, 2, "x86_64", (*_FLAGS, "avx512f", "avx512_vnni", "avx512_bf16")),
        "soc": Host(0, 10, 1, "aarch64", ()),
        "desktop": Host(64 * GIB, 16, 1, "x86_64", _FLAGS),
    }
)
#: macOS lets the GPU use two thirds of up to this much memory, and three quarters of more (`agent.hardware.apple`).
_SMALL_MAC = 32 * GIB


@frozen
class Gpu:
    """One whole GPU: its number, the entry that it comes from, and that one's path."""

    number: int
    model: Model
    entry: Devices
    path: str
    numa: int
    memory: int

    def slice_memory(self, profile: str) -> int:
        """Bytes. Of a GPU whose memory was described otherwise than its model's: its share."""
        known = self.model.slices[profile]
        return known.memory_bytes if self.entry.memory is None else self.memory * known.parts // self.parts[1]

    @property
    def parts(self) -> tuple[int, int]:
        """Compute slices and memory parts that it can be cut into: the largest MIG profile has them all."""
        return max((part.compute, part.parts) for part in self.model.slices.values())


@frozen
class Machine:
    """What was told of it, and what follows from that."""

    told: Description
    host: Host
    gpus: tuple[Gpu, ...]

    @property
    def vendors(self) -> frozenset[str]:
        return frozenset(gpu.model.vendor for gpu in self.gpus)

    @property
    def devices_field(self) -> str:
        """Where its devices were written."""
        return f"{ROOT}.short" if self.told.devices is None else f"{ROOT}.devices"


def resolve(told: Description) -> Machine:
    """Fill in what was not told. The result may contradict itself (`agent.hardware.contradictions`)."""
    single = [
        (entry, f"{ROOT}.short" if told.devices is None else f"{ROOT}.devices[{place}]")
        for place, entry in enumerate(told.entries())
        for _ in range(entry.count)
    ]
    host = _host(told)
    gpus = []
    for number, (entry, path) in enumerate(single):
        model = _model(entry)
        numa = number * host.numa_nodes // len(single) if entry.numa is None else entry.numa
        gpus.append(Gpu(number, model, entry, path, numa, entry.memory or _usual_memory(model, host)))
    return Machine(told, host, tuple(gpus))


def _model(entry: Devices) -> Model:
    model = catalog.find(entry.model)
    assert model is not None  # the entry was validated
    return model


def _host(told: Description) -> Host:
    models = [_model(entry) for entry in told.entries()]
    kinds = {model.host for model in models} or {"desktop"}
    usual = next(host for kind, host in HOSTS.items() if kind in kinds)
    if not usual.memory:
        machine = "arm64" if any(model.vendor == "apple" for model in models) else usual.machine
        usual = usual._replace(memory=max(model.memory_bytes for model in models), machine=machine)
    given = told.host
    machine = given.machine or usual.machine
    flags = given.cpu_flags if given.cpu_flags is not None else usual.cpu_flags if machine == usual.machine else ()
    return Host(
        given.memory or usual.memory, given.cores or usual.cores, given.numa_nodes or usual.numa_nodes, machine, flags
    )


def _usual_memory(model: Model, host: Host) -> int:
    if model.memory_kind == "dedicated":
        return model.memory_bytes
    if model.vendor != "apple":
        return host.memory
    return host.memory * 2 // 3 if host.memory <= _SMALL_MAC else host.memory * 3 // 4


def link(word: str) -> tuple[LinkKind, int] | None:
    """Kind and lanes of a word of the matrix; None if it is none."""
    if match := re.fullmatch(r"NV([1-9][0-9]?)", word, re.ASCII):
        return "nvlink", int(match[1])
    if word == "XGMI":
        return "xgmi", 1
    return (_PCIE[word], 0) if word in _PCIE else None
