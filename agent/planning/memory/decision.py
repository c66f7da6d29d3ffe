"""From terms and a pool to a verdict with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.planning.memory.base import MIB, Estimate, Request, Verdict, gib
from agent.planning.memory.kv_cache import Layout
from agent.planning.plan import MemoryTerm

#: What the driver keeps of a device before a process allocates anything: 0.55 to 0.6 GiB less than the total were free
#: on devices of one process, 0.6 to 1.5 GiB less where several ranks had opened them.
CONTEXT, SHARED_CONTEXT = 600 * MIB, 1000 * MIB


@dataclass(frozen=True, slots=True)
class Finding:
    """What an estimate says in the end."""

    verdict: Verdict
    shortfall: int
    reason: str
    remedy: str = ""


def decided(
    request: Request,
    terms: tuple[MemoryTerm, ...],
    pool: MemoryTerm,
    layout: Layout,
    beyond: MemoryTerm | None,
    per_token: float,
) -> Estimate:
    """Of an engine that counts tokens and requests by their bytes."""
    needed, size = layout.needed, max(0, pool.bytes)
    found = judged(request, terms, pool, needed, beyond)
    return Estimate(
        terms=terms,
        pool=pool,
        tokens=int(size / per_token) if per_token else 0,
        concurrency=size / needed if needed else 0.0,
        bytes_per_token=per_token,
        needed=needed,
        beyond=beyond,
        verdict=found.verdict,
        shortfall=found.shortfall,
        reason=found.reason,
        remedy=found.remedy,
    )


def judged(
    request: Request, terms: tuple[MemoryTerm, ...], pool: MemoryTerm, needed: int, beyond: MemoryTerm | None
) -> Finding:
    """Whether one request of the longest length, which needs so much, fits the pool, and whether the start survives
    what comes after it.
    """
    free = _free(request)
    budget = int((request.utilization or 0) * request.card.total)
    weights = sum([term.bytes for term in terms if term.name.startswith("weights")])
    found = (
        _too_little_free(request, weights, free, budget)
        or _too_small_pool(pool, needed, request.max_model_len)
        or (_too_much_later(beyond, free - budget) if beyond is not None else None)
    )
    if found is not None:
        return found
    requests = f"{pool.bytes / needed:.1f} requests of {request.max_model_len} tokens" if needed else "any request"
    return Finding(Verdict.FITS, 0, f"the pool of {gib(pool.bytes)} holds {requests}")


def fullest(stages: Sequence[Estimate]) -> Estimate:
    """The stage of a pipeline that holds the fewest requests: the others can hold no more."""
    return min(stages, key=lambda found: (found.concurrency, found.pool.bytes if found.pool is not None else 0))


def _free(request: Request) -> int:
    """Of the device."""
    if request.card.free is not None:
        return request.card.free
    return request.card.total - (SHARED_CONTEXT if request.tensor * request.data > 1 else CONTEXT)


def _too_little_free(request: Request, weights: int, free: int, budget: int) -> Finding | None:
    """Engines refuse to start where less is free than they may use."""
    if weights > free:
        return Finding(
            Verdict.TOO_LARGE,
            weights - free,
            f"the weights alone take {gib(weights)} of each device, and {gib(free)} are free",
            "more devices, or a smaller quantization",
        )
    if request.card.free is not None and budget > free and request.engine == "vllm":
        return Finding(
            Verdict.CONDITIONAL,
            budget - free,
            f"{gib(free)} of the device are free, less than the {gib(budget)} that the engine is told to use",
            f"let it use at most {int(1000 * free / request.card.total) / 10:g} % of the device",
        )
    return None


def _too_small_pool(pool: MemoryTerm, needed: int, length: int) -> Finding | None:
    """`needed` by one request of so many tokens."""
    most, least = pool.bytes + pool.uncertainty, pool.bytes - pool.uncertainty
    if least >= needed and least > 0:
        return None
    remedy = "more devices, a smaller quantization, or a larger share of memory"
    if pool.bytes <= 0:
        reason = f"nothing is left for the cache: the other terms are {gib(-pool.bytes)} more than may be used"
    else:
        reason = f"one request of {length} tokens needs {gib(needed)} of cache, and the pool is {gib(pool.bytes)}"
        remedy = f"at most about {length * pool.bytes // max(1, needed)} tokens a request, or {remedy}"
    if most < needed or most <= 0:
        return Finding(Verdict.TOO_LARGE, needed - pool.bytes, reason, remedy)
    doubt = f"{reason}, give or take {gib(pool.uncertainty)}"
    return Finding(Verdict.UNSURE, max(0, needed - least), doubt, remedy)


def _too_much_later(beyond: MemoryTerm, left: int) -> Finding | None:
    """What is allocated after the cache comes out of what the engine was told to leave."""
    most = beyond.bytes + beyond.uncertainty
    if most <= left:
        return None
    sure = beyond.bytes > left
    size = gib(beyond.bytes) if sure else f"up to {gib(most)}"
    return Finding(
        Verdict.CONDITIONAL if sure else Verdict.UNSURE,
        (beyond.bytes if sure else most) - left,
        f"{size} are taken after the cache is sized ({beyond.source}), and {gib(max(0, left))} are left for it",
        "a smaller share of memory, fewer sequences at once, or no CUDA graphs",
    )
