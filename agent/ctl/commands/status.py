"""`status`: the node and everything on it, at one look."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import click

from agent.api.structs import struct_to_dict
from agent.ctl import options, rows
from agent.ctl.app import App
from agent.ctl.output import Format, age, emit, fields, size, table
from agent.ctl.values import plain, short
from agent.ctl.versions import warn_if_different
from agent.errors import Unavailable
from agent.v1 import agent_pb2 as pb

REFRESH_SECONDS: Final = 1.0  # ages are shown in seconds

#: Phases whose cause is told below the table.
_TROUBLE: Final = frozenset({pb.PHASE_FAILED, pb.PHASE_BACKOFF, pb.PHASE_STUCK, pb.PHASE_UNREADY})


@options.with_examples
@click.command()
@options.output()
@click.option("-w", "--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
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
    if watch:
        _refresh(app, form)
        return
    answer = app.reader().get_status()
    _show(answer, form, app.now())
    warn_if_different(answer.node.version)


def _show(snapshot: pb.GetStatusResponse, form: Format, now: float) -> None:
    if form.for_people:
        click.echo("\n".join(_lines(snapshot, now, wide=form is Format.WIDE)))
    else:
        emit(plain(snapshot), form)


def _refresh(app: App, form: Format) -> None:
    """On a terminal the screen is drawn over; elsewhere a state is printed when it differs from the one before."""
    client, revision, screen = app.reader(), -1, sys.stdout.isatty() and form.for_people
    while True:
        try:
            answer = client.get_status()
        except Unavailable as error:  # a restarting daemon comes back, and whoever watches wants to see it
            click.echo(f"{error.message.splitlines()[0]}; trying again", err=True)
            revision = -1
        else:
            if screen:
                lines = _lines(answer, app.now(), wide=form is Format.WIDE)
                click.echo("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J", nl=False)
            elif answer.revision != revision:
                _show(answer, form, app.now())
            revision = answer.revision
        time.sleep(REFRESH_SECONDS)


def _lines(snapshot: pb.GetStatusResponse, now: float, *, wide: bool) -> list[str]:
    lines = [fields(node_fields(snapshot.node, now)), *conditions(snapshot.node, now), ""]
    if not snapshot.deployments:
        return [*lines, "no deployments yet: agentctl serve MODEL starts one"]
    lines.append(table(rows.deployments(now), snapshot.deployments, wide=wide))
    trouble = [line for deployment in snapshot.deployments for line in _trouble(deployment, now)]
    return "\n".join([*lines, *([""] if trouble else []), *trouble]).splitlines()


def node_fields(node: pb.Node, now: float) -> Iterator[tuple[str, str]]:
    """What the head of `status` and `get node` say of the node."""
    yield "node", f"{node.host} ({node.scope}), agentd {node.version}, up {rows.since(node.start_time, now)}"
    available, total = size(node.memory_available_bytes), size(node.memory_total_bytes)
    yield "memory", f"{available} available of {total}, {size(node.memory_reserved_bytes)} reserved"
    devices = struct_to_dict(node.inventory).get("devices") or []
    yield "devices", "\n".join(map(_device, devices)) or "none: engines run on the CPU"


def conditions(node: pb.Node, now: float) -> Iterator[str]:
    """A line for each condition that is not known to be good."""
    for condition in node.conditions:
        if condition.status != pb.TERNARY_TRUE:
            word, colour = ("bad", "red") if condition.status == pb.TERNARY_FALSE else ("not known", "yellow")
            text = f"! {condition.type} is {word} for {rows.since(condition.since, now)}: "
            yield click.style(text, fg=colour) + f"{condition.reason}: {condition.message}"


def _device(device: dict[str, Any]) -> str:
    memory = device.get("memory_bytes")
    parts = (device.get("id"), device.get("name"), size(memory) if memory else None)
    return " ".join(str(part) for part in parts if part)


def _trouble(deployment: pb.Deployment, now: float) -> Iterator[str]:
    if deployment.phase not in _TROUBLE:
        return
    diagnosis = deployment.diagnosis
    phase = rows.coloured(rows.phase(deployment))
    yield f"! {short(deployment.name)} {phase}: {diagnosis.message or deployment.message}"
    if deployment.phase == pb.PHASE_BACKOFF and deployment.HasField("next_attempt_time"):
        yield f"    next attempt in {age(rows.seconds(deployment.next_attempt_time) - now)}"
    if diagnosis.hint:
        yield f"    hint: {diagnosis.hint}"
