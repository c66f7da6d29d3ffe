"""Whether it fits: the budget against the memory that is free, and smaller defaults where nobody asked for more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.engines.base import Engine
from agent.planning.limits import POOLING_TASKS, Choice
from agent.planning.plan import GIB, Limits, MemoryBudget, Reason
from agent.planning.request import PlanRequest, RefusedError
from agent.status import Diagnosis, DiagnosisCode

#: Context is reduced in steps of this many tokens, which engines allocate in blocks anyway.
STEP = 256
#: A context that nobody asked for is not reduced below: with less, a conversation ends after a few turns.
SHORTEST_DEFAULT = 1024


@dataclass(frozen=True, slots=True)
class Free:
    """Host memory that a plan may take, and how it comes about. Bytes."""

    bytes: int
    total: int
    reserve: int
    reserved: int
    cap: int | None  # the spec's own limit, where it is the smaller one

    def __str__(self) -> str:
        if self.cap is not None:
            return f"limits.memory_bytes allows {_gib(self.cap)} GiB"
        parts = [f"{_gib(self.reserve)} GiB reserved for the host"]
        if self.reserved:
            parts.append(f"{_gib(self.reserved)} GiB for other deployments")
        return f"{_gib(self.bytes)} GiB is free of {_gib(self.total)} GiB ({', '.join(parts)})"


def free_memory(request: PlanRequest) -> Free:
    """The smaller of two views. What is promised counts whole against the total, because mapped weights look
    available though they are in use; what is available counts too, because others than us use memory.
    """
    memory, reserve = request.inventory.memory, request.policy.host_memory_reserve_bytes
    outstanding = max(0, request.reserved_bytes - request.resident_bytes)
    promised = memory.total - reserve - request.reserved_bytes
    available = memory.available + request.released_bytes - reserve - outstanding
    free = max(0, min(promised, available))
    cap = request.spec.limits.memory_bytes
    if cap is not None and cap < free:
        return Free(cap, memory.total, reserve, request.reserved_bytes, cap)
    return Free(free, memory.total, reserve, request.reserved_bytes, None)


def fit(request: PlanRequest, engine: Engine, choice: Choice) -> tuple[Choice, MemoryBudget, Reason]:
    """Limits that fit, the budget, and its reason. Raises `RefusedError` with the numbers."""
    free = free_memory(request)

    def budget(limits: Limits) -> MemoryBudget:
        return MemoryBudget("host", engine.memory_terms(request.profile, limits, request.spec.task))

    def fits(limits: Limits) -> bool:
        return budget(limits).bytes <= free.bytes

    limits = choice.limits if fits(choice.limits) else _reduce(choice, fits, request.spec.task)
    if limits is None:
        raise RefusedError(_too_big(request, choice, budget, fits, free))
    chosen = budget(limits)
    sentence = f"needs {_need(chosen)}; {free}"
    reason = Reason("budgets.host", str(chosen.bytes), "computed", sentence)
    return _explain(choice, limits, free), chosen, reason


def _reduce(choice: Choice, fits: Callable[[Limits], bool], task: str) -> Limits | None:
    """A shorter context; where the shortest is not enough, fewer sequences too. None: the user's values do not fit."""
    limits = choice.limits
    shortest = limits.max_model_len if "max_model_len" in choice.fixed else min(SHORTEST_DEFAULT, limits.max_model_len)
    fewest = limits.max_num_seqs if "max_num_seqs" in choice.fixed else 1
    small = with_length(limits, shortest, task)
    seqs = _largest(lambda n: fits(replace(small, max_num_seqs=n)), fewest, limits.max_num_seqs)
    if seqs is None:
        return None
    fewer = replace(limits, max_num_seqs=seqs)
    length = _largest(lambda n: fits(with_length(fewer, n, task)), shortest, limits.max_model_len, STEP)
    return None if length is None else with_length(fewer, length, task)


def with_length(limits: Limits, length: int, task: str) -> Limits:
    """The limits for another context, and the batch that follows from it."""
    batched = length if task in POOLING_TASKS else limits.max_num_batched_tokens
    return replace(limits, max_model_len=length, max_num_batched_tokens=batched)


def _largest(fits: Callable[[int], bool], smallest: int, largest: int, step: int = 1) -> int | None:
    """The largest number that fits: one of the bounds, or a multiple of `step` between. More never needs less."""
    if not fits(smallest):
        return None
    if fits(largest):
        return largest
    low, high = smallest // step, -(-largest // step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle)
    return max(smallest, low * step)


def _explain(choice: Choice, limits: Limits, free: Free) -> Choice:
    """Reasons for what was reduced."""
    reasons = dict(choice.reasons)
    for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens"):
        before, after = getattr(choice.limits, name), getattr(limits, name)
        if before != after:
            sentence = f"reduced from {before} to fit: {free}"
            reasons[f"limits.{name}"] = Reason(f"limits.{name}", str(after), "computed", sentence)
    return replace(choice, limits=limits, reasons=reasons)


def _too_big(
    request: PlanRequest,
    choice: Choice,
    budget: Callable[[Limits], MemoryBudget],
    fits: Callable[[Limits], bool],
    free: Free,
) -> Diagnosis:
    limits, task = choice.limits, request.spec.task
    shortest = min(STEP, limits.max_model_len)
    length = _largest(lambda n: fits(with_length(limits, n, task)), shortest, limits.max_model_len, STEP)
    seqs = _largest(lambda n: fits(replace(limits, max_num_seqs=n)), 1, limits.max_num_seqs)
    options = []
    if length is not None:
        options.append(f"max_model_len {length}")
    if seqs is not None:
        options.append(f"max_num_seqs {seqs}")
    if options:
        hint = f"what would fit: {' or '.join(options)}"
    elif fits(replace(with_length(limits, shortest, task), max_num_seqs=1)):
        hint = "what would fit: fewer sequences and a shorter context together"
    else:
        hint = "no limits make it fit: use a smaller model or quantization, or free memory"
    return Diagnosis(DiagnosisCode.DOES_NOT_FIT, f"needs {_need(budget(limits))}; {free}", hint=hint)


def _need(budget: MemoryBudget) -> str:
    terms = ", ".join(f"{term.name} {_gib(term.bytes + term.uncertainty)}" for term in budget.terms)
    return f"{_gib(budget.bytes)} GiB ({terms})"


def _gib(size: int) -> str:
    """Two digits below 10 GiB: small models differ in hundredths."""
    value = size / GIB
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
