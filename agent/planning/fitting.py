"""Whether it fits: where the instance runs, the budgets against the memory that is free, and smaller defaults where
nobody asked for more.

For `devices: auto`, in this order: all layers on devices; the same with a shorter default context; some layers on
devices, if that gains something; the CPU; and all of these again with fewer sequences too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from agent.engines.base import Engine, LayersEngine, Located
from agent.hardware.inventory import Device
from agent.planning.amounts import Free, gib, mib, need
from agent.planning.devices import Offer, Offers, Sets, label, largest_sets
from agent.planning.layout import Designer, Layout, largest
from agent.planning.ledger import CACHE, Experience, Fixed
from agent.planning.limits import STEP, Choice, choose_limits, with_length
from agent.planning.plan import Capacity, Limits, Reason, Rejected
from agent.planning.refusing import lines, too_big
from agent.planning.request import MisfitError, PlanRequest, RefusedError
from agent.planning.supply import Supply
from agent.status import Diagnosis, DiagnosisCode

#: A context that nobody asked for is not reduced below: with less, a conversation ends after a few turns.
SHORTEST_DEFAULT = 1024
#: With a smaller part of the layers on devices that nobody asked for, the CPU stays what decides the speed.
LEAST_PART = 1 / 4

_Make = Callable[[Limits], Layout | None]


class _Reduce(Enum):
    """What may become smaller for a way to run it, where nobody asked for more."""

    NOTHING = "nothing"
    CONTEXT = "context"
    ALL = "all"


class _Where(Enum):
    WHOLE = "all layers on devices"
    PART = "some layers on devices"
    CPU = "none"


@dataclass(frozen=True, slots=True)
class Fitted:
    """What fits, and why it is this."""

    choice: Choice
    layout: Layout
    devices: Reason
    reasons: tuple[Reason, ...]  # of placement, budgets and capacity
    rejected: tuple[Rejected, ...]
    capacity: Capacity
    assured: bool = True
    whole: bool = True  # all of it on devices; or there is none, or none is wanted


def fit(
    request: PlanRequest, engine: LayersEngine, located: Located, supply: Supply, *, whole: bool, alone: bool = True
) -> Fitted:
    """Where it runs, with limits that fit. `whole`: only with all layers on devices, where it may use some. `alone`: no
    other candidate could do better. Raises `RefusedError` with the numbers, and if it is alone with what would fit.
    """
    choice, free = choose_limits(request, engine), supply.free
    found = supply.offers(located, choice.utilization)
    most = engine.capabilities.most_devices
    if request.spec.devices != "auto" and len(found.usable) > most:
        message = f"{engine.name} uses {most} device{'s' * (most > 1)} at most, and the spec names {len(found.usable)}"
        raise RefusedError(Diagnosis(DiagnosisCode.DOES_NOT_FIT, message, hint="name fewer, or another engine"))
    designer = Designer(request, engine, free.bytes, experience(request, engine, located))
    targets = _targets(request, designer, found, supply.sets(found), cpu="cpu" in located.accelerators)
    needs_devices = whole and bool(found.usable)
    layout, limits = _first(_whole_only(targets) if needs_devices else targets, choice, request.spec.task)
    if layout is None or limits is None:
        others = supply.offers(located, choice.utilization, "auto") if alone and not supply.brief else None
        raise _misfit(designer, found, choice, supply, others)
    return Fitted(
        choice=_explain(choice, limits, layout, free),
        layout=layout,
        devices=_devices_reason(request, designer, found, layout),
        reasons=(
            *_layers_reason(designer, layout),
            *numa_reason(request, [offer.device for offer in layout.offers]),
            *_budget_reasons(layout, free),
            *_measured_reasons(layout),
            _capacity_reason(held := _capacity(limits, layout)),
        ),
        rejected=(*found.rejected, *_passed_over(request, designer, found, layout, choice, free)),
        capacity=held,
        whole=not supply.devices or sum(layout.placement.layers) == designer.layers,
    )


def _misfit(designer: Designer, found: Offers, choice: Choice, supply: Supply, others: Offers | None) -> MisfitError:
    """`others`: all that there is, to say what would fit; None where nobody asks."""
    if supply.brief:
        return MisfitError(Diagnosis(DiagnosisCode.DOES_NOT_FIT, "does not fit"), 0)
    request, nothing = designer.request, designer.on_cpu(choice.limits)
    diagnosis = too_big(request, choice, designer, found, others, supply.free)
    rejected = found.rejected
    if others is not None:
        rejected += tuple(_passed_over(request, designer, found, nothing, choice, supply.free))
    most = max(sum(offer.free for offer in found.usable), supply.free.bytes)
    return MisfitError(diagnosis, max(1, nothing.host_bytes - most), rejected)


def _capacity(limits: Limits, layout: Layout) -> Capacity:
    """Every sequence has its whole context reserved."""
    cache = sum(term.bytes for budget in layout.budgets for term in budget.terms if term.name == CACHE)
    return Capacity(cache, limits.max_num_seqs * limits.max_model_len, float(limits.max_num_seqs))


def _capacity_reason(held: Capacity) -> Reason:
    sentence = f"{gib(held.kv_bytes)} GiB of cache, reserved for {held.requests:g} sequences of the whole context"
    return Reason("capacity", f"{held.kv_tokens} tokens", "computed", sentence)


def experience(request: PlanRequest, engine: Engine, located: Located) -> Experience:
    """What was measured of this model with this engine, here and elsewhere."""
    profile, spec = request.profile, request.spec
    fixed = Fixed(
        request.digest, profile.file_bytes, profile.architecture, profile.quantization, engine.name, located.version,
        spec.task.value, spec.extra_args, request.inventory.cpu_model,
    )  # fmt: skip
    return Experience(request.measurements, fixed)


def _targets(
    request: PlanRequest, designer: Designer, found: Offers, sets: Sets, *, cpu: bool
) -> Iterable[tuple[_Make, _Reduce, _Where]]:
    """Ways to run it, best first. `cpu`: the build has code for it."""
    capabilities = designer.engine.capabilities
    only_cpu = [designer.only_cpu] if cpu else []
    if request.spec.devices == "cpu":
        yield from ((make, _Reduce.ALL, _Where.CPU) for make in only_cpu)
        return
    if request.spec.devices != "auto":
        yield _whole(designer, found.usable), _Reduce.ALL, _Where.WHOLE
        if capabilities.offload:
            yield _part(designer, (found.usable,), least=1), _Reduce.ALL, _Where.PART
        return
    groups = []
    # With less than the weights, whatever the limits, no closer look is needed.
    for group in sets.with_free(designer.least):
        if len(group) <= capabilities.most_devices:
            groups.append(group)
            yield _whole(designer, group), _Reduce.NOTHING, _Where.WHOLE
    most_free = largest_sets(groups)
    # The CPU would serve as many sequences as asked for, so a device must not serve fewer.
    yield from ((_whole(designer, group), _Reduce.CONTEXT, _Where.WHOLE) for group in most_free)
    parts, least = sets.largest if capabilities.offload else (), designer.layers * LEAST_PART
    parts = tuple(group for group in parts if len(group) <= capabilities.most_devices)
    yield _part(designer, parts, least), _Reduce.NOTHING, _Where.PART
    yield from ((make, _Reduce.NOTHING, _Where.CPU) for make in only_cpu)
    yield from ((_whole(designer, group), _Reduce.ALL, _Where.WHOLE) for group in most_free)
    yield _part(designer, parts[-1:], least), _Reduce.ALL, _Where.PART
    yield from ((make, _Reduce.ALL, _Where.CPU) for make in only_cpu)


def _whole_only(targets: Iterable[tuple[_Make, _Reduce, _Where]]) -> Iterator[tuple[_Make, _Reduce, _Where]]:
    """All layers on devices, for as many sequences as asked for."""
    return (way for way in targets if way[2] == _Where.WHOLE and way[1] != _Reduce.ALL)


def _whole(designer: Designer, group: tuple[Offer, ...]) -> _Make:
    return lambda limits: designer.all_layers(limits, group)


def _part(designer: Designer, groups: Sequence[tuple[Offer, ...]], least: float) -> _Make:
    """Some layers on the set that takes the most of them; of equals the smallest. The largest is tried first, and
    smaller ones for as long as they take no fewer.
    """

    def make(limits: Limits) -> Layout | None:
        best, most = None, least
        if groups and not designer.may_share(groups[-1], limits):
            return None
        for group in reversed(groups):
            layout = designer.filled(limits, group)
            count = 0 if layout is None else sum(layout.placement.layers)
            if (best is not None and count < most) or (layout is not None and not designer.fits(layout)):
                break
            if layout is not None and count >= most:
                best, most = layout, count
        return best

    return make


def _first(
    targets: Iterable[tuple[_Make, _Reduce, _Where]], choice: Choice, task: str
) -> tuple[Layout, Limits] | tuple[None, None]:
    """The first way that fits."""
    for make, reduce, _ in targets:
        layout = make(choice.limits)
        if layout is not None:
            return layout, choice.limits
        limits = None if reduce is _Reduce.NOTHING else _reduced(choice, make, task, reduce)
        if limits is not None and (layout := make(limits)) is not None:
            return layout, limits
    return None, None


def _reduced(choice: Choice, make: _Make, task: str, reduce: _Reduce) -> Limits | None:
    """A shorter context; where the shortest is not enough, fewer sequences too. None: the user's values do not fit."""

    def fits(limits: Limits) -> bool:
        return make(limits) is not None

    limits = choice.limits
    shortest = limits.max_model_len if "max_model_len" in choice.fixed else min(SHORTEST_DEFAULT, limits.max_model_len)
    keeps = "max_num_seqs" in choice.fixed or reduce is _Reduce.CONTEXT
    fewest = limits.max_num_seqs if keeps else 1
    small = with_length(limits, shortest, task)
    seqs = largest(lambda n: fits(replace(small, max_num_seqs=n)), fewest, limits.max_num_seqs)
    if seqs is None:
        return None
    fewer = replace(limits, max_num_seqs=seqs)
    length = largest(lambda n: fits(with_length(fewer, n, task)), shortest, limits.max_model_len, STEP)
    return None if length is None else with_length(fewer, length, task)


def _explain(choice: Choice, limits: Limits, layout: Layout, free: Free) -> Choice:
    """Reasons for what was reduced, and for the part of the devices."""
    reasons = dict(choice.reasons)
    where = "; ".join((*(f"on {label(o.device)} {o}" for o in layout.offers), str(free)))
    for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens"):
        before, after = getattr(choice.limits, name), getattr(limits, name)
        if before != after:
            sentence = f"reduced from {before} to fit: {where}"
            reasons[f"limits.{name}"] = Reason(f"limits.{name}", str(after), "computed", sentence)
    if layout.offers:
        limits = replace(limits, gpu_memory_utilization=choice.utilization)
        reasons["limits.gpu_memory_utilization"] = choice.utilization_reason
    return replace(choice, limits=limits, reasons=reasons)


def _devices_reason(request: PlanRequest, designer: Designer, found: Offers, layout: Layout) -> Reason:
    asked, offered = request.spec.devices, layout.offers
    value = ",".join(offer.device.id for offer in offered) or "cpu"
    names = ", ".join(label(offer.device) for offer in offered)
    if asked != "auto":
        return Reason("devices", value, "from-spec", f"the spec names {names}" if names else "the spec says so")
    if not offered:
        sentence = "this node has no device that an engine could use"
        if found.usable or found.rejected:
            sentence = "no device of this node can take it; what was rejected says why"
    elif sum(layout.placement.layers) < designer.layers:
        sentence = f"no devices hold all of it; {names} hold{'s' * (len(offered) == 1)} the most layers"
    elif len(found.usable) == 1:
        sentence = f"{names} holds all of it"
    elif len(offered) == 1:
        sentence = f"{names} has the least free memory of the devices that hold all of it"
    else:
        island = " of one island" if found.are_island(offered) else ""
        sentence = f"no smaller number of devices holds all of it; {names} are the tightest fit{island}"
    return Reason("devices", value, "computed", sentence)


def _layers_reason(designer: Designer, layout: Layout) -> Iterable[Reason]:
    layers, total = layout.placement.layers, designer.layers
    if not layers:
        return
    value = "+".join(map(str, layers))
    if sum(layers) < total:
        sentence = f"{sum(layers)} of {total}: as many as fit; the CPU computes the others, and more slowly"
    else:
        sentence = f"all {total}, the output counting as one"
    if len(layers) > 1:
        even = max(layers) - min(layers) <= 1
        sentence += ", in equal parts" if even else ", each device filled in turn"
    yield Reason("layers", value, "computed", sentence)


def _budget_reasons(layout: Layout, free: Free) -> Iterable[Reason]:
    for budget, available in zip(layout.budgets, (free, *layout.offers), strict=True):
        sentence = f"needs {need(budget)}; {available}"
        yield Reason(f"budgets.{budget.pool}", str(budget.bytes), "computed", sentence)


def _measured_reasons(layout: Layout) -> Iterable[Reason]:
    """Which terms are measured, by whom, and how far the formulas were off."""
    for budget in layout.budgets:
        measured = [term for term in budget.terms if term.formula is not None]
        if not measured:
            continue
        by_source: dict[str, list[str]] = {}
        for term in measured:
            by_source.setdefault(term.source, []).append(
                f"{term.name} {mib(term.bytes)} MiB (the formula: {mib(term.formula or 0)})"
            )
        sentence = "; ".join(f"{source}: {', '.join(terms)}" for source, terms in by_source.items())
        names = ", ".join(term.name for term in measured)
        yield Reason(f"budgets.{budget.pool}.terms", names, "measured", sentence)


def _passed_over(
    request: PlanRequest, designer: Designer, found: Offers, layout: Layout, choice: Choice, free: Free
) -> Iterable[Rejected]:
    """Why each device that could be used is not in the plan."""
    if request.spec.devices != "auto":
        return
    for offer in found.usable:
        if offer in layout.offers:
            continue
        single = designer.evenly(choice.limits, (offer,), designer.layers)
        if designer.fits(single):
            sentence = f"{label(offer.device)}: {offer}; a tighter fit leaves it to larger models"
            yield Rejected(offer.device.id, "best-fit", sentence)
        else:
            yield Rejected(offer.device.id, "too-small", "; ".join(lines(single, designer, free)))


def numa_reason(request: PlanRequest, devices: Iterable[Device]) -> Iterator[Reason]:
    """Which CPUs and memory are near the devices."""
    nodes = {device.numa_node for device in devices}
    known = {node.id: node for node in request.inventory.numa}
    if len(known) < 2 or len(nodes) != 1 or (node := known.get(next(iter(nodes)) or 0)) is None or None in nodes:
        return
    sentence = f"near the devices: CPUs {_ranges(node.cpus)} and {gib(node.memory_bytes)} GiB of memory"
    yield Reason("numa_node", str(node.id), "computed", sentence)


def _ranges(cpus: tuple[int, ...]) -> str:
    found: list[list[int]] = []
    for cpu in sorted(cpus):
        if found and cpu == found[-1][1] + 1:
            found[-1][1] = cpu
        else:
            found.append([cpu, cpu])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in found)
