"""What in a described machine cannot be: each field that contradicts another one, and the rule that it breaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from agent.errors import FieldViolation
from agent.hardware.description import MAX_DEVICES
from agent.hardware.inventory import LinkKind
from agent.hardware.machine import ROOT, Gpu, Machine, link
from agent.quantities import GIB, MIB
from agent.strict import echo, plain, unknown

_NAMES: Mapping[LinkKind, str] = MappingProxyType({"nvlink": "NVLink", "xgmi": "XGMI"})


def contradictions(machine: Machine) -> Iterator[FieldViolation]:
    """All of them."""
    yield from _numbers(machine)
    yield from _host(machine)
    for gpu in {gpu.path: gpu for gpu in machine.gpus}.values():  # equal devices have equal problems
        yield from _device(machine, gpu)
    yield from _drivers(machine)
    topology = machine.told.topology
    if topology.matrix is not None:
        yield from _matrix(machine, topology.matrix)
    else:
        yield from _groups("nvlink", topology.nvlink or (), machine.gpus)
        yield from _groups("xgmi", topology.xgmi or (), machine.gpus)


def _numbers(machine: Machine) -> Iterator[FieldViolation]:
    count = sum(sum(entry.count for entry in gpu.entry.mig) or 1 for gpu in machine.gpus)
    if count > MAX_DEVICES:
        rule = f"must be at most {MAX_DEVICES} devices, slices included (has {count})"
        yield FieldViolation(machine.devices_field, rule)
    chip = next((gpu.model.id for gpu in machine.gpus if gpu.model.form == "soc"), None)
    if chip and len(machine.gpus) > 1:
        rule = f"{chip} is a system on a chip: it is the only device of its machine"
        yield FieldViolation(machine.devices_field, rule)


def _host(machine: Machine) -> Iterator[FieldViolation]:
    told, host = machine.told.host, machine.host
    if told.memory_used > host.memory:
        yield _at_most(f"{ROOT}.host.memory_used", "the host's memory", host.memory, told.memory_used)
    if host.numa_nodes > host.cores:
        rule = f"must be at most the number of cores, which is {host.cores} (got {host.numa_nodes})"
        yield FieldViolation(f"{ROOT}.host.numa_nodes", rule)
    if host.machine != "x86_64" and told.cpu_flags:
        yield FieldViolation(f"{ROOT}.host.cpu_flags", f"must be empty: {host.machine} has none of them")
    if told.machine and ("apple" in machine.vendors) != (told.machine == "arm64"):
        yield FieldViolation(f"{ROOT}.host.machine", "must be arm64 where the device is Apple's, and nowhere else")


def _device(machine: Machine, gpu: Gpu) -> Iterator[FieldViolation]:
    entry, host = gpu.entry, machine.host
    if entry.numa is not None and entry.numa >= host.numa_nodes:
        rule = f"must be less than the number of NUMA nodes, which is {host.numa_nodes} (got {entry.numa})"
        yield FieldViolation(f"{gpu.path}.numa", rule)
    if gpu.model.memory_kind == "unified" and gpu.memory > host.memory:
        yield _at_most(f"{gpu.path}.memory", "the host's memory, which is the same", host.memory, gpu.memory)
    if entry.mig:
        yield from _slices(gpu)
    elif entry.memory_used > gpu.memory:
        yield _at_most(f"{gpu.path}.memory_used", "the device's memory", gpu.memory, entry.memory_used)


def _slices(gpu: Gpu) -> Iterator[FieldViolation]:
    path, known = f"{gpu.path}.mig", gpu.model.slices
    if gpu.entry.memory_used:
        yield FieldViolation(f"{gpu.path}.memory_used", "must be said of each slice: the GPU is sliced")
    if not known:
        yield FieldViolation(path, f"must be empty: {gpu.model.id} cannot be sliced")
        return
    compute = parts = 0
    for place, entry in enumerate(gpu.entry.mig):
        if entry.profile not in known:
            rule = unknown(f"MIG profile of {gpu.model.id}", entry.profile, tuple(known))
            yield FieldViolation(f"{path}[{place}].profile", rule)
            return
        compute += known[entry.profile].compute * entry.count
        parts += known[entry.profile].parts * entry.count
        memory = gpu.slice_memory(entry.profile)
        if entry.memory_used > memory:
            yield _at_most(f"{path}[{place}].memory_used", "the slice's memory", memory, entry.memory_used)
    most = gpu.parts
    if compute > most[0] or parts > most[1]:
        need = f"need {compute} and {parts}"
        yield FieldViolation(path, f"must fit {most[0]} compute slices and {most[1]} parts of memory (these {need})")


def _drivers(machine: Machine) -> Iterator[FieldViolation]:
    for key, vendor in (("nvidia", "nvidia"), ("cuda", "nvidia"), ("amdgpu", "amd"), ("rocm", "amd")):
        if getattr(machine.told.driver, key) is not None and vendor not in machine.vendors:
            yield FieldViolation(f"{ROOT}.driver.{key}", f"must be left out: there is no device of {vendor}")


def _groups(kind: LinkKind, groups: Sequence[Sequence[int]], gpus: Sequence[Gpu]) -> Iterator[FieldViolation]:
    taken: set[int] = set()
    for place, group in enumerate(groups):
        field = f"{ROOT}.topology.{kind}[{place}]"
        for number in group:
            if number >= len(gpus):
                there = f"0 to {len(gpus) - 1}" if gpus else "none"
                yield FieldViolation(field, f"names device {number}, which is not there: numbers are {there}")
            elif number in taken:
                yield FieldViolation(field, f"names device {number} again: a device is in one group, once")
            elif reason := _unlinked(kind, gpus[number]):
                yield FieldViolation(field, f"names device {number}, {reason}")
            taken.add(number)
        yield from _company(kind, field, [gpus[number] for number in group if number < len(gpus)])


def _company(kind: LinkKind, field: str, members: Sequence[Gpu]) -> Iterator[FieldViolation]:
    models = {gpu.model.id: gpu.model for gpu in members if gpu.model.link == kind}
    if len(models) > 1:
        yield FieldViolation(field, f"joins {' and '.join(models)}: {_NAMES[kind]} joins devices of one model")
    for model in models.values():
        if model.bridge and len(members) > model.bridge:
            rule = f"joins {len(members)} devices: a bridge of {model.id} joins at most {model.bridge}"
            yield FieldViolation(field, rule)


def _matrix(machine: Machine, matrix: Sequence[Sequence[str]]) -> Iterator[FieldViolation]:
    field, size = f"{ROOT}.topology.matrix", len(machine.gpus)
    if machine.told.topology.nvlink is not None or machine.told.topology.xgmi is not None:
        yield FieldViolation(field, "must be left out where groups are given: it says the same")
    if {len(matrix), *map(len, matrix)} != {size}:
        yield FieldViolation(field, f"must have {size} rows of {size} words, one a GPU")
        return
    for row, column in ((row, column) for row in range(size) for column in range(size)):
        if rule := _word(matrix, row, column, machine.gpus):
            yield FieldViolation(f"{field}[{row}][{column}]", rule)


def _word(matrix: Sequence[Sequence[str]], row: int, column: int, gpus: Sequence[Gpu]) -> str:
    text, mirrored = matrix[row][column], matrix[column][row]
    if row == column:
        return "" if text == "X" else f"must be X: it is the device itself (got {echo(text)})"
    way = link(text)
    if way is None:
        return f"must be NV with a number, XGMI, PIX, PXB, PHB, NODE or SYS (got {echo(text)})"
    if column < row:  # of two that differ, the second is told of
        same = text == mirrored or link(mirrored) is None
        return "" if same else f"must be {echo(mirrored)}, as in [{column}][{row}] (got {echo(text)})"
    return _pair(*way, gpus[row], gpus[column]) if way[1] else ""


def _pair(kind: LinkKind, lanes: int, one: Gpu, other: Gpu) -> str:
    for gpu in (one, other):
        if reason := _unlinked(kind, gpu):
            return f"joins device {gpu.number}, {reason}"
    if one.model != other.model:
        return f"joins {one.model.id} and {other.model.id}: {_NAMES[kind]} joins devices of one model"
    if lanes > one.model.lanes:
        return f"must be at most NV{one.model.lanes}, the lanes of a {one.model.id} (got NV{lanes})"
    return ""


def _unlinked(kind: LinkKind, gpu: Gpu) -> str:
    """Why a GPU cannot be joined with others by this kind of link; "" if it can."""
    if gpu.model.link != kind:
        return f"a {gpu.model.id}, which has no {_NAMES[kind]}"
    return f"which is sliced: MIG has no {_NAMES[kind]}" if gpu.entry.mig else ""


def _at_most(field: str, what: str, most: int, got: int) -> FieldViolation:
    return FieldViolation(field, f"must be at most {what}, {_size(most)} (got {_size(got)})")


def _size(count: int) -> str:
    unit, name = (GIB, "GiB") if count >= GIB else (MIB, "MiB")
    return f"{plain(round(count / unit, 2))}{name}"
