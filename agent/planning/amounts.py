"""Host memory that a plan may take, and bytes in the sentences of plans and refusals."""

from __future__ import annotations

from dataclasses import dataclass

from agent.planning.plan import GIB, MemoryBudget
from agent.planning.request import PlanRequest


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
            return f"limits.memory_bytes allows {gib(self.cap)} GiB"
        parts = [f"{gib(self.reserve)} GiB reserved for the host"]
        if self.reserved:
            parts.append(f"{gib(self.reserved)} GiB for other deployments")
        return f"{gib(self.bytes)} GiB is free of {gib(self.total)} GiB ({', '.join(parts)})"


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


def gib(size: int) -> str:
    """Two digits below 10 GiB: small models differ in hundredths."""
    value = size / GIB
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def mib(size: int) -> str:
    return f"{size / 1024**2:.1f}"


def need(budget: MemoryBudget) -> str:
    terms = ", ".join(f"{term.name} {gib(term.bytes + term.uncertainty)}" for term in budget.terms)
    return f"{gib(budget.bytes)} GiB ({terms})"
