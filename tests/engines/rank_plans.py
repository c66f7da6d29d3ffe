"""Plans and models for the tests of adapters of engines with ranks, made by the adapters' own estimates."""

from __future__ import annotations

from dataclasses import replace

from agent.engines.base import RanksEngine
from agent.models.catalog import shipped
from agent.models.profile import ModelProfile
from agent.planning.memory.base import GIB, Card, Estimate
from agent.planning.plan import Capacity, Limits, MemoryBudget, Placement, Plan, Variant

LIMITS = Limits(
    max_num_seqs=24,
    max_model_len=8192,
    kv_cache_dtype="auto",
    max_num_batched_tokens=4096,
    threads=4,
    gpu_memory_utilization=0.85,
)


def profile(model: str, variant: str) -> ModelProfile:
    """Out of the catalog."""
    catalog = shipped()
    entry = catalog.lookup(model)
    assert entry is not None
    published = catalog.variant(entry, variant)
    assert published is not None
    return catalog.profile(entry, published)


def plan(
    engine: RanksEngine,
    estimate: Estimate | None = None,
    card: Card | None = None,
    limits: Limits = LIMITS,
    placement: Placement | None = None,
    task: str = "chat",
) -> Plan:
    """A plan of this estimate on such devices, its budgets as the planner makes them."""
    card = card or Card(80 * GIB)
    placement = placement or Placement(accelerator="cuda", environment={"CUDA_VISIBLE_DEVICES": "GPU-1"})
    count = placement.tensor * placement.pipeline * placement.data
    terms = () if estimate is None else estimate.terms
    if estimate is not None and estimate.pool is not None:
        terms = (*terms, replace(estimate.pool, name="KV cache", uncertainty=0))
    claimed = int((limits.gpu_memory_utilization or 0) * card.total)
    device = MemoryBudget("GPU-1", terms, claimed=claimed, free=card.free)
    tokens = 0 if estimate is None else int(estimate.concurrency * limits.max_model_len) * placement.data
    return Plan(
        deployment="d",
        generation=1,
        model_name="served",
        task=task,
        engine=engine.name,
        engine_version="1",
        binary=(f"/usr/bin/{engine.executable}",),
        runtime="process",
        variant=Variant("file:/m", "/m", "safetensors", "bf16", 1, "llama"),
        devices=tuple(f"GPU-{index + 1}" for index in range(count)),
        limits=limits,
        budgets=(MemoryBudget("host", ()), *(replace(device, pool=f"GPU-{index + 1}") for index in range(count))),
        extra_args=(),
        placement=placement,
        capacity=Capacity(kv_bytes=1, kv_tokens=tokens, requests=1.0) if estimate is not None else None,
    )


def value(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def flags(argv: tuple[str, ...]) -> list[str]:
    return [item for item in argv if item.startswith("-")]
