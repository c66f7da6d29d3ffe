"""Plans and refusals as text: the decision, what it holds and takes, why, and what was not chosen."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from typing import Final

from google.protobuf.struct_pb2 import Struct

from agent.api.structs import struct_to_dict
from agent.ctl.bars import bars, picture
from agent.ctl.output import Column, fields, size, table
from agent.ctl.versions import HINT
from agent.errors import FailedPrecondition
from agent.planning.plan import MemoryTerm, Plan, Reason, Rejected
from agent.status import DiagnosisCode
from agent.v1 import agent_pb2 as pb

BAR: Final = 24  # characters; a share of 2 % still shows


def text(answer: pb.PlanDeploymentResponse, *, explain: bool) -> str:
    """All that a person is told of a plan."""
    plan = plan_of(answer.plan)
    parts = [decision(plan, answer), *(picture(bar) for bar in bars(plan, answer.pools))]
    if answer.notes:
        parts.append("\n".join(["assumed, or in doubt:", *(f"  * {note}" for note in answer.notes)]))
    if explain:
        parts += [*memory(plan), *explanation(plan)]
    return "\n\n".join(parts)


def refusal(answer: pb.PlanDeploymentResponse) -> str:
    """Why each candidate was rejected, and what would make it fit; "" where there is no more than one reason."""
    parts = []
    if answer.rejected:
        parts.append(rejections(Rejected(one.candidate, one.code, one.message) for one in answer.rejected))
    if len(answer.remedies) > 1:
        parts.append("\n".join(["what would make it fit:", *(f"  * {one}" for one in answer.remedies)]))
    return "\n\n".join(parts)


#: What a verdict says, in a table's cell.
VERDICTS: Final[Mapping[pb.FitVerdict, str]] = {
    pb.FIT_VERDICT_FITS: "fits",
    pb.FIT_VERDICT_UNSURE: "unsure",
    pb.FIT_VERDICT_PARTLY: "fits partly on the CPU",
    pb.FIT_VERDICT_ON_CPU: "fits on the CPU",
    pb.FIT_VERDICT_DOES_NOT_FIT: "does not fit",
    pb.FIT_VERDICT_NOT_SERVED: "is not served",
}


#: The same where memory is not the reason, by the refusal's code.
_NOT_SERVED: Final[Mapping[str, str]] = {
    DiagnosisCode.BINARY_MISSING: "no engine here that serves it",
    DiagnosisCode.MODEL_UNSUPPORTED: "no engine serves it",
    DiagnosisCode.MODEL_MISSING: "not known",
    DiagnosisCode.POLICY_DENIED: "the policy forbids it",
}


def verdict(answer: pb.PlanDeploymentResponse | pb.FitCatalogResponse) -> str:
    """`fits`, `does not fit by 1.3 GiB`, `no engine here that serves it`."""
    said = VERDICTS.get(answer.verdict, "")
    if answer.verdict == pb.FIT_VERDICT_DOES_NOT_FIT and answer.HasField("missing_bytes"):
        return f"{said} by {size(answer.missing_bytes)}"
    known = _NOT_SERVED.get(answer.refusal.code, f"{said}: {answer.refusal.code}")
    return known if answer.verdict == pb.FIT_VERDICT_NOT_SERVED else said


def holds(plan: Plan) -> str:
    """`87392 tokens of cache: 2.1 requests of 40960 tokens at the same time, or 16 of 5462`."""
    capacity, limits = plan.capacity, plan.limits
    if capacity is None or not capacity.kv_tokens:
        return ""
    fewer = f", or {limits.max_num_seqs} of {capacity.kv_tokens // limits.max_num_seqs}"
    return (
        f"{capacity.kv_tokens} tokens of cache: {capacity.requests:.1f} requests of {limits.max_model_len} tokens "
        f"at the same time{fewer if capacity.requests < limits.max_num_seqs else ''}"
        f"{'' if capacity.assured else '; not assured'}"
    )


def plan_of(message: Struct) -> Plan:
    """Raises `FailedPrecondition` for a plan of a version whose plans are others."""
    try:
        return Plan.from_json(json.dumps(struct_to_dict(message)))
    except ValueError as error:
        raise FailedPrecondition("the daemon's plan is not one that this agentctl understands", hint=HINT) from error


def decision(plan: Plan, answer: pb.PlanDeploymentResponse | None = None) -> str:
    """What was chosen, as lines; with `answer` as it would be done."""
    variant, answer = plan.variant, answer or pb.PlanDeploymentResponse()
    # A gateway computes nothing: most limits say so.
    limits = {name: value for name, value in asdict(plan.limits).items() if value and value != "none"}
    return fields(
        (
            ("deployment", f"{plan.deployment}, served as {plan.model_name} ({plan.task})"),
            ("engine", " ".join(filter(None, (plan.engine, plan.engine_version, f"({plan.runtime})")))),
            ("image", _image(plan)),
            ("model", variant.source),
            ("variant", f"{variant.format} {variant.quantization}, {variant.architecture}, {size(variant.bytes)}"),
            ("devices", "\n".join(_devices(plan)) or "none: CPU"),
            ("limits", "\n".join(f"{name} {value}" for name, value in limits.items())),
            ("holds", holds(plan)),
            ("verdict", verdict(answer)),
            ("command", shlex.join(answer.argv)),
            ("environment", "\n".join(_variables(answer))),
        )
    )


def _variables(answer: pb.PlanDeploymentResponse) -> Iterator[str]:
    """What the command gets besides its arguments."""
    for name, value in sorted(answer.environment.items()):
        yield f"{name}={shlex.quote(value)}"
    for name in answer.secrets:
        yield f"{name} from secrets"


def _image(plan: Plan) -> str:
    """`docker.io/vllm/vllm-openai:v0.33.0, 10.2 GiB to pull`; with its digest where that is known."""
    if (image := plan.image) is None:
        return ""
    name = f"{image.name}@{image.digest}" if image.digest else image.name
    return name + (f", about {size(image.bytes)} to pull" if image.bytes and not image.id else "")


def _devices(plan: Plan) -> Iterator[str]:
    """`GPU-5a1b… by cuda, 33 layers`."""
    placement = plan.placement
    for device, layers in zip_longest(plan.devices, placement.layers[: len(plan.devices)]):
        yield f"{device} by {placement.accelerator}" + ("" if layers is None else f", {layers} layers")


def memory(plan: Plan) -> Iterator[str]:
    """A table for each budget: its terms, with a bar for the share of each."""
    for budget in plan.budgets:
        columns: tuple[Column[MemoryTerm], ...] = (
            Column(f"MEMORY ({budget.pool}{', of the host' if budget.unified else ''})", lambda term: term.name),
            Column("SIZE", lambda term: size(term.bytes), right=True),
            Column("+/-", lambda term: size(term.uncertainty) if term.uncertainty else "", right=True),
            Column("SHARE", partial(_share, whole=budget.bytes or 1)),
            Column("SOURCE", lambda term: term.source),
        )
        total = MemoryTerm("total", budget.bytes, "all terms, at their upper ends")
        yield table(columns, [*budget.terms, total])


def _share(term: MemoryTerm, whole: int) -> str:
    return bar((term.bytes + term.uncertainty) / whole)


def bar(share: float) -> str:
    """`######..................  25%`; blocks where the output can show them."""
    full, empty = ("█", "░") if "utf" in (sys.stdout.encoding or "").lower() else ("#", ".")
    length = round(share * BAR)
    return full * length + empty * (BAR - length) + f"{share * 100:4.0f}%"


def explanation(plan: Plan) -> Iterator[str]:
    """Why each value is what it is, and what was not chosen."""
    if plan.reasons:
        yield table(_REASONS, plan.reasons)
    if plan.rejected:
        yield rejections(plan.rejected)


def rejections(rejected: Iterable[Rejected]) -> str:
    """What was not chosen; candidates that broke the same rule in the same way are told together."""
    groups: dict[str, list[str]] = {}
    for one in rejected:
        groups.setdefault(f"  {one.code}: {one.sentence}", []).append(f"      {one.candidate}")
    return "\n".join(["rejected:", *(line for why, names in groups.items() for line in (why, *dict.fromkeys(names)))])


_REASONS: Final[tuple[Column[Reason], ...]] = (
    Column("FIELD", lambda reason: reason.field),
    Column("VALUE", lambda reason: reason.value),
    Column("BECAUSE", lambda reason: reason.code),
    Column("WHY", lambda reason: reason.sentence),
)
