"""What is said of an engine of ranks: why each value is what it is, what it costs in bytes, and why it does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from agent.planning.amounts import Free, gib
from agent.planning.devices import Offer, Offers, label
from agent.planning.joint import Way
from agent.planning.ledger import CACHE, CONTEXT
from agent.planning.limits import POOLING_TASKS, Choice
from agent.planning.plan import Capacity, MemoryBudget, MemoryTerm, Reason
from agent.planning.request import PlanRequest
from agent.planning.shapes import Shape, Shapes
from agent.planning.trial import shown

#: Terms that grow with sequences and batch.
_ACTIVE = frozenset({"activation peak", "CUDA graphs", "beyond the budget"})


def capacity(way: Way) -> Capacity:
    """Of all devices together."""
    estimate, replicas = way.estimate, way.placement.data
    size = max(0, estimate.pool.bytes) if estimate.pool is not None else 0
    return Capacity(
        kv_bytes=size * max(1, len(way.offers)),
        kv_tokens=replicas
        * (int(estimate.concurrency * way.limits.max_model_len) if estimate.needed else estimate.tokens),
        requests=round(estimate.concurrency * replicas, 2),
        assured=way.assured,
        doubt=way.doubt,
    )


def budgets(way: Way) -> tuple[MemoryBudget, ...]:
    """Of each device: all have the same terms."""
    estimate = way.estimate
    terms = [*estimate.terms]
    if estimate.pool is not None:
        terms.append(cache(way))
    if estimate.beyond is not None:
        terms.append(estimate.beyond)
    if way.context:
        terms.append(MemoryTerm(CONTEXT, way.context, "driver and libraries, before the engine counts"))
    each = tuple(terms)
    return tuple(
        MemoryBudget(
            offer.device.id, each, unified=offer.device.memory_kind == "unified", claimed=way.claimed, free=offer.free
        )
        for offer in way.offers
    )


def cache(way: Way) -> MemoryTerm:
    pool = way.estimate.pool or MemoryTerm(CACHE, 0, "not known")
    return replace(pool, name=CACHE, bytes=max(0, pool.bytes), uncertainty=0)


def limit_reasons(request: PlanRequest, way: Way, choice: Choice, shared: Reason, pool: str) -> dict[str, Reason]:
    """By field. `shared`: why the engine's share would be what was asked for. `pool`: what the cache has."""
    asked = any(reason.code == "from-spec" for reason in choice.reasons.values())
    limits, costs = way.limits, _costs(way) if asked else {}
    found = {}
    for field, reason in choice.reasons.items():
        name = field.removeprefix("limits.")
        before, after = getattr(choice.limits, name), getattr(limits, name)
        if name != "gpu_memory_utilization" and before != after:
            found[field] = Reason(field, str(after), "computed", f"reduced from {before} to fit: {pool}")
        elif reason.code == "from-spec" and name in costs:
            found[field] = replace(reason, sentence=f"{reason.sentence}; {costs[name]}")
        else:
            found[field] = reason
    if way.offers:
        found["limits.gpu_memory_utilization"] = _share_reason(request, way, choice.utilization, shared, pool)
    return found


def _costs(way: Way) -> dict[str, str]:
    """What limits take, by their names."""
    where = "on each device" if way.offers else "of host memory"
    estimate = way.estimate
    active = [term for term in estimate.terms if term.name in _ACTIVE]
    return {
        "max_model_len": f"one request of that length takes {gib(estimate.needed)} GiB of cache {where}",
        "kv_cache_dtype": f"a token takes {estimate.bytes_per_token / 1024:.4g} KiB of cache {where}",
        "max_num_seqs": f"{', '.join(f'{t.name} {gib(t.bytes)} GiB' for t in active)} {where}, which the cache lacks",
    }


def _share_reason(request: PlanRequest, way: Way, asked: float, shared: Reason, pool: str) -> Reason:
    share = way.limits.gpu_memory_utilization or 0.0
    sizes = f"{gib(int(share * shown(way.offers[0])))} GiB of each device, of which the cache has {pool}"
    if share == asked:
        return replace(shared, value=str(share), sentence=f"{shared.sentence}; {sizes}")
    workload = request.spec.workload
    stated = workload.concurrency is not None and workload.context_tokens is not None
    if way.claimed < way.room and (stated or request.spec.task in POOLING_TASKS):
        why = "what the workload needs; the rest is left to others"
    else:
        tightest = min(way.offers, key=lambda offer: offer.free)
        why = f"what is free: on {label(tightest.device)} {tightest}, less what is taken on top of the share"
    return Reason(shared.field, str(share), "computed", f"{why}: {sizes}")


def pool_told(way: Way, held: Capacity) -> str:
    """What the cache has."""
    size = gib(cache(way).bytes)
    return f"{size} GiB: {held.kv_tokens} tokens, {held.requests:g} requests of {way.limits.max_model_len} tokens"


def devices_reason(request: PlanRequest, found: Offers, way: Way) -> Reason:
    offers = way.offers
    value = ",".join(offer.device.id for offer in offers) or "cpu"
    names = ", ".join(label(offer.device) for offer in offers)
    if request.spec.devices != "auto":
        return Reason("devices", value, "from-spec", f"the spec names {names}" if names else "the spec says so")
    if not offers:
        usable = found.usable or found.rejected
        sentence = "no device of this node can take it" if usable else "this node has no device that it could use"
    elif len(found.usable) == 1:
        sentence = f"{names} holds all of it"
    elif len(offers) == 1:
        sentence = f"{names} has the least free memory of the devices that hold all of it"
    else:
        island = " of one island" if found.are_island(offers) else ""
        why = (
            "one replica does not hold all requests"
            if way.placement.data > 1
            else "fewer devices do not hold all of it"
        )
        sentence = f"{why}; {names} are the tightest fit{island}"
    return Reason("devices", value, "computed", sentence)


def shape_reason(way: Way, shapes: Shapes) -> Iterator[Reason]:
    """How ranks lie on several devices."""
    if len(way.offers) < 2:
        return
    shape = Shape.of(way.placement)
    problem = shapes.problem(shape.tensor * shape.pipeline)  # why not all of them share each layer; "" where they could
    parts = []
    if shape.tensor > 1:
        parts.append("the ranks of a stage share each layer")
    if shape.experts:
        parts.append(f"each has whole experts, for {problem}")
    elif shape.tensor > 1 and shapes.offers_experts:
        parts.append("experts are sliced: whole ones would take as much, and wait for the rank that is asked most")
    if shape.pipeline > 1:
        parts.append("each stage has some of the layers" + (f", for {problem}" if problem else ""))
    if shape.data > 1:
        parts.append("each replica holds the whole model, and serves a part of the requests")
    yield Reason("placement", str(shape), "computed", "; ".join(parts))


def budget_reasons(way: Way, each: Sequence[MemoryBudget], host: MemoryBudget, free: Free) -> Iterator[Reason]:
    """`each`: of the devices."""
    yield Reason("budgets.host", str(host.bytes), "computed", f"needs {_terms(host)}; {free}")
    taken = _terms(each[0]) if each else ""
    for budget, offer in zip(each, way.offers, strict=True):
        yield Reason(f"budgets.{budget.pool}", str(budget.bytes), "computed", f"takes {taken}; {offer}")


def capacity_reason(request: PlanRequest, held: Capacity, pool: str) -> Reason:
    workload = request.spec.workload
    sentence = f"the cache has {pool}"
    if not held.assured:
        sentence += f"; not assured: {held.doubt}"
    if workload.concurrency and workload.context_tokens and held.requests < workload.concurrency:
        sentence += f"; of {workload.concurrency} requests of that length some will wait"
    return Reason("capacity", f"{held.kv_tokens} tokens", "computed", sentence)


def shortage(way: Way) -> str:
    """The numbers of what came closest, and does not fit."""
    estimate = way.estimate
    parts = ", ".join(f"{term.name} {gib(term.bytes)}" for term in estimate.terms)
    request = f"one request of {way.limits.max_model_len} tokens {gib(estimate.needed)}"
    if not way.offers:
        return f"does not fit by {gib(way.missing)} GiB: {parts}, {request}; {gib(way.room)} GiB of host memory is free"
    tightest = min(way.offers, key=lambda offer: offer.free)
    where = f"on {label(tightest.device)} {tightest}"
    return f"does not fit by {gib(way.missing)} GiB {_spread(way)}: {parts}, {request}; {where}"


def too_heavy(weights: int, missing: int, group: tuple[Offer, ...], shape: Shape) -> str:
    """Where the weights alone are too large. Bytes of each device."""
    tightest = min(group, key=lambda offer: offer.free)
    where = f" on each of {len(group)} devices ({shape})" if len(group) > 1 else ""
    text = f"does not fit by {gib(missing)} GiB{where}: the weights alone take {gib(weights)} GiB"
    return f"{text}; on {label(tightest.device)} {tightest}"


def _spread(way: Way) -> str:
    shape = Shape.of(way.placement)
    return f"on each of {len(way.offers)} devices ({shape})" if len(way.offers) > 1 else "on one device"


def _terms(budget: MemoryBudget) -> str:
    return f"{gib(budget.bytes)} GiB ({', '.join(f'{term.name} {gib(term.bytes)}' for term in budget.terms)})"
