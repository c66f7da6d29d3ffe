"""Plans side by side: one column each."""

from __future__ import annotations

from collections.abc import Sequence

from agent.ctl.output import Column, size, table
from agent.ctl.plans import plan_of, verdict
from agent.frozen import frozen
from agent.planning.plan import Plan
from agent.v1 import agent_pb2 as pb


@frozen
class Candidate:
    """One of what is compared: what the person called it, and the answer."""

    title: str
    answer: pb.PlanDeploymentResponse

    @property
    def plan(self) -> Plan | None:
        return plan_of(self.answer.plan) if self.answer.HasField("plan") else None


def side_by_side(candidates: Sequence[Candidate]) -> str:
    """A line for each property."""
    facts = [_facts(candidate) for candidate in candidates]
    columns: list[Column[str]] = [Column("", lambda name: name)]
    for candidate, found in zip(candidates, facts, strict=True):
        columns.append(Column(candidate.title, lambda name, found=found: found.get(name, "")))  # type: ignore[misc]
    names = list(dict.fromkeys(name for found in facts for name in found))
    return table(columns, names)


def _facts(candidate: Candidate) -> dict[str, str]:
    plan, answer = candidate.plan, candidate.answer
    if plan is None:
        return {"verdict": verdict(answer), "why not": answer.refusal.message}
    limits, capacity = plan.limits, plan.capacity
    devices = plan.device_bytes
    return {
        "verdict": verdict(answer),
        "engine": plan.engine,
        "variant": f"{plan.variant.format} {plan.variant.quantization}",
        "weights": size(plan.variant.bytes),
        "devices": _devices(plan),
        "parallelism": _parallelism(plan),
        "max_model_len": str(limits.max_model_len),
        "max_num_seqs": str(limits.max_num_seqs),
        "kv_cache_dtype": limits.kv_cache_dtype,
        "gpu_memory_utilization": "" if limits.gpu_memory_utilization is None else f"{limits.gpu_memory_utilization:g}",
        "memory of a device": size(max(devices.values())) if devices else "",
        "memory of the host": size(plan.host_bytes),
        "tokens of cache": "" if capacity is None else str(capacity.kv_tokens),
        "requests at a time": "" if capacity is None else f"{capacity.requests:.1f}",
    }


def _devices(plan: Plan) -> str:
    return f"{len(plan.devices)} by {plan.placement.accelerator}" if plan.devices else "none: CPU"


def _parallelism(plan: Plan) -> str:
    """`tensor 4 with whole experts x pipeline 2`; nothing where it is 1."""
    placement = plan.placement
    parts = {"tensor": placement.tensor, "pipeline": placement.pipeline, "data": placement.data}
    whole = {"tensor": " with whole experts"} if placement.experts else {}
    return " x ".join(f"{name} {count}{whole.get(name, '')}" for name, count in parts.items() if count > 1)
