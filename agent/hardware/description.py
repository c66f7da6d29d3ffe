"""A machine as a person describes it: `h100-sxm:8`, or a mapping with devices, drivers, topology and host.

What can be said of one field alone is checked here; whether the fields fit each other, in
`agent.hardware.contradictions`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from agent.hardware import catalog
from agent.hardware.host import FLAGS_OF_INTEREST
from agent.quantities import GIB, MIB, Bytes, Matches, NonEmptyLine
from agent.strict import Strict, broken, echo, unknown

#: Versions where nothing is said: those of autumn 2025.
NVIDIA, CUDA, AMDGPU, ROCM = "580.95.05", "13.0", "6.14.14", "7.0"

#: Devices of one machine, slices included: twice the largest machines that are sold.
MAX_DEVICES = 64

#: As it is documented, and as people say it: `8xh100`.
_SHORT = re.compile(r"(?:([0-9]{1,6})x(?=[a-z]))?([^:\s]+?)(?::([0-9]{1,6}))?", re.ASCII | re.IGNORECASE)


def _model(id: str) -> str:
    if catalog.find(id) is None:
        near = catalog.nearest(id)
        advice = f"nearest: {', '.join(near)}" if near else "docs/reference/hardware.md lists those that are known"
        raise broken(f"unknown GPU {echo(id)}; {advice}", "")
    return id


def _flag(word: str) -> str:
    if word not in FLAGS_OF_INTEREST:
        raise broken(unknown("CPU flag", word, FLAGS_OF_INTEREST), "")
    return word


def _short(text: str) -> str:
    entries(text)
    return text


Version = Annotated[
    str, Matches(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}", "must be a version, such as '580.95.05' or '13.0'", "version")
]
_Number = Annotated[int, Field(ge=0, lt=MAX_DEVICES)]
_Group = Annotated[tuple[_Number, ...], Field(strict=False, min_length=2)]
_Groups = Annotated[tuple[_Group, ...], Field(strict=False, max_length=MAX_DEVICES)]
_Row = Annotated[tuple[str, ...], Field(strict=False)]


class Slices(Strict):
    """MIG slices of one profile."""

    profile: Annotated[NonEmptyLine, Field(description="MIG profile, such as 1g.10gb.")]
    count: Annotated[int, Field(ge=1, le=7, description="How many. Default: 1.")] = 1
    memory_used: Annotated[int, Bytes(), Field(description="Memory in use on each. Default: 0.")] = 0


class Devices(Strict):
    """Equal devices. They are numbered from 0, in their order."""

    model: Annotated[str, AfterValidator(_model), Field(description="GPU model, by its id in the list below.")]
    count: Annotated[int, Field(ge=1, le=MAX_DEVICES, description="How many. Default: 1.")] = 1
    memory: Annotated[
        Annotated[int, Bytes(minimum=MIB)] | None, Field(description="Total memory of each. Default: the model's.")
    ] = None
    memory_used: Annotated[int, Bytes(), Field(description="Memory in use on each. Default: 0.")] = 0
    numa: Annotated[int | None, Field(ge=0, description="NUMA node. Default: spread evenly over all.")] = None
    mig: Annotated[
        tuple[Slices, ...],
        Field(strict=False, max_length=7, description="MIG slices of each; a sliced GPU is no device itself."),
    ] = ()


class Drivers(Strict):
    """Versions, each for the devices of its vendor."""

    nvidia: Annotated[Version | None, Field(description=f"Of NVIDIA's kernel driver. Default: {NVIDIA}.")] = None
    cuda: Annotated[Version | None, Field(description=f"Newest CUDA that it can serve. Default: {CUDA}.")] = None
    amdgpu: Annotated[Version | None, Field(description=f"Of AMD's kernel driver. Default: {AMDGPU}.")] = None
    rocm: Annotated[Version | None, Field(description=f"Of ROCm. Default: {ROCM}.")] = None


class Topology(Strict):
    """How devices reach each other: groups, or the whole matrix. Default: all devices of a model whose module or switch
    joins them are one group; the others, and bridges, are not joined."""

    nvlink: Annotated[
        _Groups | None, Field(description="Groups of device numbers that NVLink joins: [[0, 1], [2, 3]].")
    ] = None
    xgmi: Annotated[_Groups | None, Field(description="The same for AMD's XGMI.")] = None
    matrix: Annotated[
        tuple[_Row, ...] | None,
        Field(
            strict=False,
            max_length=MAX_DEVICES,
            description="One row a GPU, in the words of `nvidia-smi topo -m`: X, NV18, PIX, PXB, PHB, NODE, SYS; XGMI.",
        ),
    ] = None


class Host(Strict):
    """The machine around the devices. Defaults: those of the machines that its devices are usually found in."""

    memory: Annotated[Annotated[int, Bytes(minimum=GIB)] | None, Field(description="Host memory.")] = None
    memory_used: Annotated[int, Bytes(), Field(description="Host memory in use. Default: 0.")] = 0
    cores: Annotated[int | None, Field(ge=1, le=1024, description="Physical cores.")] = None
    numa_nodes: Annotated[int | None, Field(ge=1, le=64, description="NUMA nodes, of equal size.")] = None
    machine: Annotated[Literal["x86_64", "aarch64", "arm64"] | None, Field(description="Architecture of the CPU.")] = (
        None
    )
    cpu_flags: Annotated[
        tuple[Annotated[str, AfterValidator(_flag)], ...] | None,
        Field(strict=False, max_length=len(FLAGS_OF_INTEREST), description="Instruction sets that decide on binaries."),
    ] = None


class Description(Strict):
    """Either `short` or `devices`; all else has defaults."""

    short: Annotated[
        Annotated[str, Field(max_length=1000), AfterValidator(_short)] | None,
        Field(description="h100-sxm:8, rtx4090, or h100-sxm:4,l40s:2; cpu is a machine without devices."),
    ] = None
    devices: Annotated[
        tuple[Devices, ...] | None,
        Field(strict=False, max_length=MAX_DEVICES, description="The devices, equal ones together."),
    ] = None
    driver: Annotated[Drivers, Field(description="Versions of the drivers.")] = Field(default_factory=Drivers)
    topology: Annotated[Topology, Field(description="How devices reach each other.")] = Field(default_factory=Topology)
    host: Annotated[Host, Field(description="The machine around them.")] = Field(default_factory=Host)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.short is None) == (self.devices is None):
            raise broken("must have either `short` or `devices`: {short: h100-sxm:8}, {devices: [{model: l4}]}", "")
        if self.devices == ():
            raise broken("must have at least 1 entry; a machine without devices is {short: cpu}", "devices")
        return self

    def entries(self) -> tuple[Devices, ...]:
        """The devices, however they were written."""
        return self.devices or entries(self.short or "")


def entries(short: str) -> tuple[Devices, ...]:
    """The devices of a short form. Raises a broken rule, to be raised in a validator."""
    if short.strip() == "cpu":
        return ()
    found = []
    for item in short.split(","):
        match = _SHORT.fullmatch(item.strip())
        if match is None or (match[1] and match[3]):
            raise broken(f"must be MODEL or MODEL:COUNT, joined by commas, such as h100-sxm:8 (got {echo(item)})", "")
        count = int(match[1] or match[3] or 1)
        if not 1 <= count <= MAX_DEVICES:
            raise broken(f"must have 1 to {MAX_DEVICES} devices of a model (got {echo(item)})", "")
        found.append(Devices(model=_model(match[2]), count=count))
    return tuple(found)
