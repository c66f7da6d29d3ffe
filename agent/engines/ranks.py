"""What adapters of engines with ranks share: a plan's share of each device, host memory of their processes, and what
an installed Python package says of itself.

`limits.gpu_memory_utilization` is the part of a device's memory that the engine may take as a whole. Flags of engines
are shares of something else: of what was free before the start, or of what is left after loading. To translate one
needs what was free, and what the engine takes beside weights and cache.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.planning.ledger import CACHE, PROCESS, WEIGHTS
from agent.planning.memory.base import GIB, Card
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan

#: Flags get shares in thousandths, rounded down: a plan and its command mean the same share.
STEPS = 1000
#: A Python process that has imported PyTorch and Transformers, resident: vLLM's three on a CPU were 0.52 to 0.63 GB.
PYTHON_PROCESS = int(0.6e9)
#: What a process with a device holds beside: CUDA's libraries and kernels, its context's side on the host, pinned
#: buffers. Not measured by us; 1 to 3 GB resident are usual for a rank of PyTorch.
DEVICE_PROCESS = int(1.5e9)


@dataclass(frozen=True, slots=True)
class Room:
    """One device as a plan sees it, in bytes."""

    total: int
    free: int  # before the start
    budget: int  # the engine's as a whole

    @classmethod
    def on(cls, card: Card, limits: Limits) -> Room:
        free = card.total if card.free is None else min(card.total, card.free)
        return cls(card.total, free, int((limits.gpu_memory_utilization or 0) * card.total))

    @classmethod
    def of(cls, plan: Plan) -> Room | None:
        """The least of the plan's devices: engines measure what is free on all, and take the same of each."""
        utilization = plan.limits.gpu_memory_utilization
        budgets = [budget for budget in plan.budgets if budget.claimed is not None]
        if not budgets or not utilization:
            return None
        claimed = min(budget.claimed or 0 for budget in budgets)
        total = round(claimed / utilization)
        free = min(total if budget.free is None else budget.free for budget in budgets)
        return cls(total, min(total, free), claimed)


def share(plan: Plan, of_room: Callable[[Room, Sequence[MemoryTerm]], float]) -> float:
    """The flag's value for a plan; without budgets, for a plan that nobody made by an estimate, the share itself."""
    room = Room.of(plan)
    terms = next((budget.terms for budget in plan.budgets if budget.claimed is not None), ())
    return rounded(plan.limits.gpu_memory_utilization or 0) if room is None else of_room(room, terms)


def rounded(value: float, most: float = 1.0) -> float:
    """What a flag gets of a share. The engine refuses 0; a budget that leaves nothing is refused by the estimate."""
    # A total that is computed back from a budget is off by a byte, which must not cost a step.
    return min(most, max(1 / STEPS, math.floor(value * STEPS + 1e-6) / STEPS))


def is_weight(term: MemoryTerm) -> bool:
    return term.name == WEIGHTS or term.name.startswith(f"{WEIGHTS}:")


def beside(terms: Sequence[MemoryTerm]) -> int:
    """What is neither weights nor cache."""
    return sum(term.bytes for term in terms if not is_weight(term) and term.name != CACHE)


def other_weights(plan: Plan, device: int) -> int:
    """Terms of weights beside the first one, which engines count with them when they report."""
    budgets = [budget for budget in plan.budgets if budget.pool != "host"]
    terms = budgets[device].terms if device < len(budgets) else ()
    return sum(term.bytes for term in terms if is_weight(term) and term.name != WEIGHTS)


def processes(placement: Placement, helpers: int, source: str) -> tuple[MemoryTerm, ...]:
    """Host memory of an engine with a process for each device and `helpers` without one."""
    ranks = placement.tensor * placement.pipeline * placement.data
    size = (ranks + helpers) * PYTHON_PROCESS + ranks * DEVICE_PROCESS
    text = f"{source}: {ranks + helpers} processes of {PYTHON_PROCESS / GIB:.2f} GiB, and "
    text += f"{DEVICE_PROCESS / GIB:.2f} GiB for each device"
    return (MemoryTerm(PROCESS, size, text, uncertainty=ranks * DEVICE_PROCESS // 2),)


def package_version(executable: str, distribution: str) -> str:
    """Of the Python environment that a script like `bin/sglang` belongs to; "" where that cannot be told.

    Read from its metadata: asking the engine would import PyTorch, which takes longer than a question may.
    """
    name = re.escape(distribution).replace("_", "[-_]").replace(r"\-", "[-_]")
    metadata = re.compile(rf"{name}-(.+)\.dist-info", re.IGNORECASE)
    for prefix in dict.fromkeys((Path(executable).parent.parent, Path(executable).resolve().parent.parent)):
        for folder in sorted(prefix.glob("lib/python3*/*-packages")):
            found = [match[1] for entry in folder.glob("*.dist-info") if (match := metadata.fullmatch(entry.name))]
            if found:
                return found[0]
    return ""


def accelerators(executable: str, default: frozenset[str]) -> frozenset[str]:
    """By what its PyTorch was built for: "2.14.1+rocm7.2", "2.14.1+cu130", "2.14.1+cpu"."""
    build = package_version(executable, "torch").partition("+")[2]
    if build.startswith("rocm"):
        return frozenset({"rocm"})
    if build.startswith("xpu"):
        return frozenset({"sycl"})
    return frozenset({"cpu"}) if build == "cpu" else default
