"""What would make it fit: the same question asked otherwise, one change at a time, and what is answered then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from agent.hardware.inventory import Device
from agent.planning.amounts import gib
from agent.planning.devices import label
from agent.planning.limits import POOLING_TASKS
from agent.planning.plan import GIB, Plan
from agent.planning.request import DeviceState, PlanRequest, Refusal, RefusedError
from agent.planning.supply import Supply

#: More devices than this are in few machines.
_MOST_DEVICES = 16
#: Less than this that others use is the driver's own, or a desktop's.
_NOTICEABLE = GIB // 2

#: Makes a plan. Raises `RefusedError`.
_Ask = Callable[[Supply], Plan]


def with_remedies(refusal: Refusal, request: PlanRequest, ask: _Ask) -> Refusal:
    """The refusal with what would help in its hint."""
    known = [part for part in refusal.diagnosis.hint.split("; ") if part]
    found = list(_remedies(request, ask, limits_told=bool(known)))
    if found:
        known = [part for part in known if not part.startswith("no limits make it fit")]
    hint = "; ".join((*known, *found)) or "nothing that was tried makes it fit: use a smaller model or quantization"
    return replace(refusal, diagnosis=replace(refusal.diagnosis, hint=hint))


def _remedies(request: PlanRequest, ask: _Ask, *, limits_told: bool) -> Iterator[str]:
    spec = request.spec
    if not limits_told:
        yield from _limits(request, ask)
    if spec.quantization != "auto" and (found := _asked(request, ask, quantization="auto")):
        yield f"quantization {found.variant.quantization}"
    if spec.engine != "auto" and (found := _asked(request, ask, engine="auto")):
        yield f"engine {found.engine}"
    if spec.devices != "auto" and (found := _asked(request, ask, devices="auto")):
        yield f"devices auto: it fits on {', '.join(found.devices) or 'the CPU'}"
    yield from _unbounded(request, ask)
    yield from _spared(request, ask)
    yield from _emptied(request, ask)
    if spec.devices == "auto":
        yield from _more_devices(request, ask)


def _limits(request: PlanRequest, ask: _Ask) -> Iterator[str]:
    """Of what the spec insists on, what is too much; and a smaller cache for what it asks for."""
    limits, workload = request.spec.limits, request.spec.workload
    if limits.max_model_len is not None:
        hint = workload.model_copy(update={"context_tokens": limits.max_model_len, "concurrency": None})
        changed = limits.model_copy(update={"max_model_len": None})
        if found := _asked(request, ask, limits=changed, workload=hint):
            yield f"max_model_len {found.limits.max_model_len}"
    for name in ("max_num_seqs", "gpu_memory_utilization"):
        if getattr(limits, name) is not None:
            changed = limits.model_copy(update={name: None})
            if found := _asked(request, ask, limits=changed):
                yield f"{name} {getattr(found.limits, name)}"
    asked_for_room = limits.max_model_len is not None or limits.max_num_seqs is not None
    if limits.kv_cache_dtype is None and asked_for_room:
        for kind in ("fp8", "q8_0"):
            if _asked(request, ask, limits=limits.model_copy(update={"kv_cache_dtype": kind})):
                yield f"kv_cache_dtype {kind}"
                return


def _unbounded(request: PlanRequest, ask: _Ask) -> Iterator[str]:
    """A bound of host memory that is enough, where the spec's is not."""
    limits = request.spec.limits
    if limits.memory_bytes is None:
        return
    if found := _asked(request, ask, limits=limits.model_copy(update={"memory_bytes": None})):
        needed = sum(budget.bytes for budget in found.budgets if budget.pool == "host" or budget.unified)
        yield f"limits.memory_bytes {-(-needed // 1024**2)}MiB"


def _spared(request: PlanRequest, ask: _Ask) -> Iterator[str]:
    """A device that is left to models that generate, unless the spec names one."""
    if request.spec.task in POOLING_TASKS and request.spec.devices == "auto":
        for device in request.inventory.devices:
            if _asked(request, ask, devices=(device.id,)):
                yield f"devices [{device.id}]: embeddings and scores are put on a device only where the spec names it"
                return


def _emptied(request: PlanRequest, ask: _Ask) -> Iterator[str]:
    """Devices without what others hold of them."""
    used = {id: max(0, each.used - each.resident - each.released) for id, each in request.devices.items()}
    reserved = {id: each.reserved for id, each in request.devices.items()}
    for what, sizes in (("that others than the agent use", used), ("of other deployments", reserved)):
        taken = {id: size for id, size in sizes.items() if size > _NOTICEABLE}
        if not taken:
            continue
        states = {id: _without(each, used=sizes is used) for id, each in request.devices.items()}
        if (found := _answered(replace(request, devices=states), ask)) and (needed := set(found.devices) & set(taken)):
            yield f"without the {gib(sum(taken[id] for id in needed))} GiB {what} on {', '.join(sorted(needed))}"
            return


def _without(state: DeviceState, *, used: bool) -> DeviceState:
    if used:
        return replace(state, used=state.resident + state.released)
    return replace(state, used=max(0, state.used - state.resident), reserved=0, resident=0)


def _more_devices(request: PlanRequest, ask: _Ask) -> Iterator[str]:
    """More of the largest kind of device that could be used."""
    usable = Supply(request).devices
    best = max(usable, key=lambda device: (device.memory_bytes, device.id), default=None)
    if best is None or best.memory_kind == "unified" or best.parent:
        return
    have = sum(device.name == best.name for device in usable)
    smallest = min(option.profile.tensor_bytes for option in request.options)
    count = 1
    while count <= have or count * best.memory_bytes < smallest:
        count *= 2
    for more in (count, 2 * count):
        if more > _MOST_DEVICES:
            return
        devices = (*request.inventory.devices, *(_another(best, number) for number in range(more - have)))
        names = [device.id for device in devices if device.name == best.name]
        asked = replace(request, inventory=replace(request.inventory, devices=devices))
        found = _asked(asked, ask, whole=True, devices=tuple(names[-more:]))
        if found is not None:
            yield f"{more} devices like {label(best)}: {found.engine} with {found.variant.quantization}"
            return


def _another(device: Device, number: int) -> Device:
    return replace(device, id=f"{device.id}-more-{number}", index=device.index + 1000 + number)


def _asked(request: PlanRequest, ask: _Ask, *, whole: bool = False, **changes: Any) -> Plan | None:
    return _answered(replace(request, spec=request.spec.model_copy(update=changes)), ask, whole=whole)


def _answered(request: PlanRequest, ask: _Ask, *, whole: bool = False) -> Plan | None:
    try:
        return ask(Supply(request, brief=True, whole=whole))
    except RefusedError:
        return None
