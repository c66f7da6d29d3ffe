"""`plan`: what would be done, within which memory, and why, without doing it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from typing import Any, Final

import click
from google.protobuf.struct_pb2 import Struct

from agent.api.structs import struct_to_dict
from agent.ctl import options
from agent.ctl.app import App
from agent.ctl.hardware import described
from agent.ctl.output import Column, Format, emit, fields, size, table
from agent.ctl.specs import build, read_all, spec_flags
from agent.ctl.values import plain
from agent.ctl.versions import HINT
from agent.errors import FailedPrecondition
from agent.planning.plan import MemoryTerm, Plan, Reason, Rejected
from agent.v1 import agent_pb2 as pb

BAR: Final = 24  # characters; a share of 2 % still shows


@options.with_examples
@click.command()
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("-f", "--file", metavar="FILE", help="A spec instead of MODEL; - is standard input.")
@spec_flags
@options.hardware
@click.option("--explain", is_flag=True, help="Also each reason, and the alternatives that were rejected.")
@options.output(wide=False)
@options.connects()
@click.pass_obj
def plan(
    app: App,
    /,
    *,
    model: str | None,
    file: str | None,
    sets: tuple[str, ...],
    explain: bool,
    form: Format,
    **flags: Any,
) -> None:
    """Show what would be done for MODEL or a spec, without doing it.

    Examples:
      agentctl plan /models/chat.gguf --max-model-len 8192
      agentctl plan -f chat.yaml --explain
      agentctl plan -f chat.yaml --hardware h100-sxm:8
    """
    hardware = flags.pop("hardware")
    specs = _specs(model, file, flags, sets)
    machine = None if hardware is None else described(hardware)
    client = app.writer()  # planning opens the files that the caller names: not for those who may only look
    answers = [client.plan_deployment(spec, hardware=machine) for spec in specs]
    if form.for_people:
        if machine is not None and any(answer.HasField("plan") for answer in answers):
            click.echo(f"for described hardware, not for this node: {hardware}\n")
        for answer in answers:
            if answer.HasField("plan"):
                click.echo(_text(answer, explain=explain) + "\n" * (len(answers) > 1))
    else:
        emit(plain(answers[0]) if len(answers) == 1 else {"plans": [plain(answer) for answer in answers]}, form)
    for spec, answer in zip(specs, answers, strict=True):
        if answer.HasField("refusal"):
            refusal = answer.refusal
            raise FailedPrecondition(f"{spec.get('name')}: {refusal.code}: {refusal.message}", hint=refusal.hint)


def _specs(model: str | None, file: str | None, flags: dict[str, Any], sets: tuple[str, ...]) -> list[dict[str, Any]]:
    if (model is None) == (file is None):
        raise click.UsageError("give either MODEL or --file")
    if model is not None:
        return [build(model, flags, sets)]
    if sets or any(value is not None for value in flags.values()):
        raise click.UsageError("with --file the spec comes from the file; flags that change it go with MODEL")
    return read_all([file or "-"])


def _text(answer: pb.PlanDeploymentResponse, *, explain: bool) -> str:
    plan = plan_of(answer.plan)
    parts = [decision(plan, answer.argv), *memory(plan)]
    if explain:
        parts += explanation(plan)
    return "\n\n".join(parts)


def plan_of(message: Struct) -> Plan:
    """Raises `FailedPrecondition` for a plan of a version whose plans are others."""
    try:
        return Plan.from_json(json.dumps(struct_to_dict(message)))
    except ValueError as error:
        raise FailedPrecondition("the daemon's plan is not one that this agentctl understands", hint=HINT) from error


def decision(plan: Plan, argv: Sequence[str] = ()) -> str:
    """What was chosen, as lines."""
    variant = plan.variant
    limits = {name: value for name, value in asdict(plan.limits).items() if value is not None}
    return fields(
        (
            ("deployment", f"{plan.deployment}, served as {plan.model_name} ({plan.task})"),
            ("engine", " ".join(filter(None, (plan.engine, plan.engine_version, f"({plan.runtime})")))),
            ("model", variant.source),
            ("variant", f"{variant.format} {variant.quantization}, {variant.architecture}, {size(variant.bytes)}"),
            ("devices", "\n".join(_devices(plan)) or "none: CPU"),
            ("limits", "\n".join(f"{name} {value}" for name, value in limits.items())),
            ("command", shlex.join(argv)),
        )
    )


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
        yield table(_REJECTED, plan.rejected)


_REASONS: Final[tuple[Column[Reason], ...]] = (
    Column("FIELD", lambda reason: reason.field),
    Column("VALUE", lambda reason: reason.value),
    Column("BECAUSE", lambda reason: reason.code),
    Column("WHY", lambda reason: reason.sentence),
)
_REJECTED: Final[tuple[Column[Rejected], ...]] = (
    Column("REJECTED", lambda candidate: candidate.candidate),
    Column("BECAUSE", lambda candidate: candidate.code),
    Column("WHY", lambda candidate: candidate.sentence),
)
