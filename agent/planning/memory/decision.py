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
class _Finding:
    verdict: Verdict
    shortfall: int
    reason: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class _Situation:
    request: Request
    weights: int
    pool: MemoryTerm
    needed: int
    beyond: MemoryTerm | None

    @property
    def free(self) -> int:
        if self.request.card.free is not None:
            return self.request.card.free
        shared = self.request.tensor * self.request.data > 1
        return self.request.card.total - (SHARED_CONTEXT if shared else CONTEXT)

    @property
    def budget(self) -> int:
        return int((self.request.utilization or 0) * self.request.card.total)


def decided(
    request: Request,
    terms: tuple[MemoryTerm, ...],
    pool: MemoryTerm,
    layout: Layout,
    beyond: MemoryTerm | None,
    per_token: float,
) -> Estimate:
    """Whether one request of the longest length fits the pool, and whether the start survives what comes after it."""
    needed = layout.needed
    weights = sum(term.bytes for term in terms if term.name.startswith("weights"))
    situation = _Situation(request, weights, pool, needed, beyond)
    found = _too_little_free(situation) or _too_small_pool(situation) or _too_much_later(situation)
    if found is None:
        requests = f"{pool.bytes / needed:.1f} requests of {request.max_model_len} tokens" if needed else "any request"
        found = _Finding(Verdict.FITS, 0, f"the pool of {gib(pool.bytes)} holds {requests}")
    return Estimate(
        terms=terms,
        pool=pool,
        tokens=int(max(0, pool.bytes) / per_token) if per_token else 0,
        concurrency=max(0, pool.bytes) / needed if needed else 0.0,
        bytes_per_token=per_token,
        needed=needed,
        beyond=beyond,
        verdict=found.verdict,
        shortfall=found.shortfall,
        reason=found.reason,
        remedy=found.remedy,
    )


def fullest(stages: Sequence[Estimate]) -> Estimate:
    """The stage of a pipeline that holds the fewest requests: the others can hold no more."""
    return min(stages, key=lambda found: (found.concurrency, found.pool.bytes if found.pool is not None else 0))


def _too_little_free(at: _Situation) -> _Finding | None:
    """Engines refuse to start where less is free than they may use."""
    total, free = at.request.card.total, at.free
    if at.weights > free:
        return _Finding(
            Verdict.TOO_LARGE,
            at.weights - free,
            f"the weights alone take {gib(at.weights)} of each device, and {gib(free)} are free",
            "more devices, or a smaller quantization",
        )
    if at.request.card.free is not None and at.budget > free and at.request.engine == "vllm":
        return _Finding(
            Verdict.CONDITIONAL,
            at.budget - free,
            f"{gib(free)} of the device are free, less than the {gib(at.budget)} that the engine is told to use",
            f"let it use at most {int(1000 * free / total) / 10:g} % of the device",
        )
    return None


def _too_small_pool(at: _Situation) -> _Finding | None:
    pool, length = at.pool, at.request.max_model_len
    most, least = pool.bytes + pool.uncertainty, pool.bytes - pool.uncertainty
    if least >= at.needed and least > 0:
        return None
    remedy = "more devices, a smaller quantization, or a larger share of memory"
    if pool.bytes <= 0:
        reason = f"nothing is left for the cache: the other terms are {gib(-pool.bytes)} more than may be used"
    else:
        reason = f"one request of {length} tokens needs {gib(at.needed)} of cache, and the pool is {gib(pool.bytes)}"
        remedy = f"at most about {length * pool.bytes // max(1, at.needed)} tokens a request, or {remedy}"
    if most < at.needed or most <= 0:
        return _Finding(Verdict.TOO_LARGE, at.needed - pool.bytes, reason, remedy)
    doubt = f"{reason}, give or take {gib(pool.uncertainty)}"
    return _Finding(Verdict.UNSURE, max(0, at.needed - least), doubt, remedy)


def _too_much_later(at: _Situation) -> _Finding | None:
    """What is allocated after the cache comes out of what the engine was told to leave."""
    if at.beyond is None:
        return None
    left = at.free - at.budget
    most = at.beyond.bytes + at.beyond.uncertainty
    if most <= left:
        return None
    sure = at.beyond.bytes > left
    size = gib(at.beyond.bytes) if sure else f"up to {gib(most)}"
    return _Finding(
        Verdict.CONDITIONAL if sure else Verdict.UNSURE,
        (at.beyond.bytes if sure else most) - left,
        f"{size} are taken after the cache is sized ({at.beyond.source}), and {gib(max(0, left))} are left for it",
        "a smaller share of memory, fewer sequences at once, or no CUDA graphs",
    )
