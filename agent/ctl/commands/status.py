"""`status`: the node and everything on it, at one look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import click

from agent.ctl import devices, options, rows
from agent.ctl.app import App
from agent.ctl.output import Format, age, fields, size, table
from agent.ctl.refreshing import View, refresh, show
from agent.ctl.values import plain, short
from agent.ctl.versions import warn_if_different
from agent.v1 import agent_pb2 as pb

#: Phases whose cause is told below the table.
_TROUBLE: Final = frozenset({pb.PHASE_FAILED, pb.PHASE_BACKOFF, pb.PHASE_STUCK, pb.PHASE_UNREADY})


@options.with_help
@click.command()
@options.output()
@options.watch
@options.connects()
@click.pass_obj
def status(app: App, *, form: Format, watch: bool) -> None:
    """Show the node, its devices and its deployments.

    LIMITS is sequences x tokens for each. What is not well is told below the table.

    Examples:
      agentctl status
      agentctl status -o wide --watch
      agentctl status -o json | jq '.deployments[] | {id, phase}'
    """
    client = app.reader()
    view = View(client.get_status, lambda found: _text(found, app.now(), wide=form is Format.WIDE), plain)
    if watch:
        refresh(view, form)
    answer = client.get_status()
    show(view, answer, form)
    warn_if_different(answer.node.version)


def _text(snapshot: pb.GetStatusResponse, now: float, *, wide: bool) -> str:
    lines = [fields(node_fields(snapshot.node, now)), *node_trouble(snapshot.node, now), ""]
    if not snapshot.deployments:
        return "\n".join([*lines, "no deployments yet: agentctl serve MODEL starts one"])
    lines.append(table(rows.deployments(now), snapshot.deployments, wide=wide))
    trouble = [line for deployment in snapshot.deployments for line in _trouble(deployment, now)]
    return "\n".join([*lines, *([""] if trouble else []), *trouble])


def node_fields(node: pb.Node, now: float) -> Iterator[tuple[str, str]]:
    """What the head of `status` and `get node` say of the node."""
    yield "node", f"{node.host} ({node.scope}), agentd {node.version}, up {rows.since(node.start_time, now)}"
    available, total = size(node.memory_available_bytes), size(node.memory_total_bytes)
    yield "memory", f"{available} available of {total}, {size(node.memory_reserved_bytes)} reserved"
    yield "devices", "\n".join(devices.lines(node.devices)) or "none: engines run on the CPU"


def node_trouble(node: pb.Node, now: float, said: str = "") -> Iterator[str]:
    """A line for each condition that is not known to be good, except the one `said` elsewhere, and each sick device."""
    yield from conditions((one for one in node.conditions if one.type not in {"DevicesHealthy", said}), now)
    yield from devices.trouble(node.devices, now)


def conditions(found: Iterable[pb.Condition], now: float, whose: str = "") -> Iterator[str]:
    """A line for each condition that is not known to be good."""
    for condition in found:
        if condition.status != pb.TERNARY_TRUE:
            word, colour = ("bad", "red") if condition.status == pb.TERNARY_FALSE else ("not known", "yellow")
            text = f"! {whose}{condition.type} is {word} for {rows.since(condition.since, now)}: "
            yield click.style(text, fg=colour) + f"{condition.reason}: {condition.message}"


def _trouble(deployment: pb.Deployment, now: float) -> Iterator[str]:
    bad = [condition for condition in deployment.conditions if condition.status == pb.TERNARY_FALSE]
    yield from conditions(bad, now, f"{short(deployment.name)} ")
    if deployment.phase not in _TROUBLE:
        return
    diagnosis = deployment.diagnosis
    phase = rows.coloured(rows.phase(deployment))
    yield f"! {short(deployment.name)} {phase}: {diagnosis.message or deployment.message}"
    if deployment.phase == pb.PHASE_BACKOFF and deployment.HasField("next_attempt_time"):
        yield f"    next attempt in {age(rows.seconds(deployment.next_attempt_time) - now)}"
    if diagnosis.hint:
        yield f"    hint: {diagnosis.hint}"
