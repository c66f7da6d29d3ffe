"""`describe NAME`: everything that is known of one deployment, for the person who has to find out why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import click
from google.protobuf.struct_pb2 import Struct

from agent.api.structs import struct_to_dict
from agent.ctl import options, plans, rows
from agent.ctl.app import App
from agent.ctl.names import suggesting
from agent.ctl.output import Column, Format, age, emit, fields, size, table
from agent.ctl.values import plain, short
from agent.v1 import agent_pb2 as pb

EVENTS: Final = 10  # the last ones: what led here, on one screen
CONTAINER: Final = 12  # of an id: as many digits as container engines show, and take


@options.with_help
@click.command()
@options.name
@options.output(wide=False)
@options.connects()
@click.pass_obj
def describe(app: App, *, name: str, form: Format) -> None:
    """Show all of one deployment.

    Spec, plan with its reasons, instance, probes, diagnosis, and the last events.

    Example:
      agentctl describe chat
    """
    client = app.reader()
    with suggesting(client, name):
        deployment = client.get_deployment(name)
    events = client.list_events(name, limit=EVENTS)
    if not form.for_people:
        emit({"deployment": plain(deployment), "events": [plain(event) for event in events]}, form)
        return
    now = app.now()
    sections = (
        fields(_head(deployment, now)),
        _section("DIAGNOSIS", fields(_diagnosis(deployment.diagnosis), "  ")),
        _section("SPEC", _indent(_yaml(deployment.spec))),
        *_plan(deployment),
        _section("INSTANCE", fields(_instance(deployment.instance, now), "  ")),
        _section("DEVICES", _devices(deployment.instance)),
        _section("PROBES", _probes(deployment.instance, now)),
        _section("PREVIOUS INSTANCE", fields(_instance(deployment.previous, now), "  ")),
        _section("EVENTS", _indent(table(rows.events(now), events)) if events else ""),
    )
    click.echo("\n\n".join(section for section in sections if section))


def _head(deployment: pb.Deployment, now: float) -> Iterator[tuple[str, str]]:
    generation = str(deployment.generation)
    if deployment.observed_generation != deployment.generation:
        generation += f" (running or last tried: {deployment.observed_generation or 'none'})"
    yield "name", short(deployment.name)
    yield "phase", f"{rows.coloured(rows.phase(deployment))} for {rows.since(deployment.phase_time, now)}"
    yield "desired", rows.desired(deployment)
    yield "reason", ": ".join(filter(None, (deployment.reason, deployment.message)))
    yield "conditions", "\n".join(map(_condition, deployment.conditions))
    yield "progress", rows.progress(deployment)
    if deployment.HasField("next_attempt_time"):
        yield "next attempt", f"in {age(rows.seconds(deployment.next_attempt_time) - now)}"
    granted, tokens = rows.granted(deployment), rows.number(deployment.granted, "kv_tokens")
    yield "endpoint", rows.endpoint(deployment)
    yield "granted", granted
    yield "cache", f"{tokens} tokens" if granted and tokens else ""
    yield "restarts", str(deployment.restarts)
    yield "generation", generation
    yield "etag", deployment.etag
    yield "created", f"{rows.since(deployment.create_time, now)} ago"


def _diagnosis(diagnosis: pb.Diagnosis) -> Iterator[tuple[str, str]]:
    if diagnosis.code:
        yield "code", diagnosis.code + (" (a retry cannot help)" if diagnosis.fatal else "")
        yield "message", diagnosis.message
        yield "evidence", diagnosis.evidence
        yield "hint", diagnosis.hint


def _instance(instance: pb.Instance, now: float) -> Iterator[tuple[str, str]]:
    if not instance.name:
        return
    yield "id", short(instance.name)
    yield "attempt", f"{instance.attempt} of generation {instance.generation}"
    yield "live", "yes" if instance.live else "no"
    yield "pid", rows.number(instance, "pid")
    yield "port", rows.number(instance, "port")
    yield "memory", rows.memory(instance)
    yield "work", rows.work(instance, now)
    yield "runtime", instance.runtime
    yield "container", instance.container[:CONTAINER]
    yield "image", "@".join(filter(None, (instance.image, instance.image_digest)))
    moments = {"started": instance.start_time, "ready": instance.ready_time, "ended": instance.end_time}
    for word, moment in moments.items():
        yield word, f"{passed} ago" if (passed := rows.since(moment, now)) else ""
    yield "exit", rows.ended(instance)
    yield "cause", instance.diagnosis.message
    yield "evidence", instance.diagnosis.evidence
    yield "limits", "\n".join(instance.enforcement)
    yield "log", instance.log_path


def _condition(condition: pb.Condition) -> str:
    """`WithinDeviceBudget: no: OffBudget: 2.0 GiB too many`."""
    known = {pb.TERNARY_TRUE: "yes", pb.TERNARY_FALSE: click.style("no", fg="red")}
    return f"{condition.type}: {known.get(condition.status, 'not known')}: {condition.reason}: {condition.message}"


def _devices(instance: pb.Instance) -> str:
    """What it was last seen to hold on each device, against its plan."""
    columns: tuple[Column[pb.DeviceUse], ...] = (
        Column("DEVICE", lambda use: short(use.device)),
        Column("PLANNED", lambda use: "yes" if use.planned else click.style("no", fg="red")),
        Column("BUDGET", lambda use: size(use.budget_bytes) if use.planned else "", right=True),
        Column("USED", lambda use: size(use.used_bytes) if use.HasField("used_bytes") else "?", right=True),
        Column("OVER", _over, right=True),
    )
    return _indent(table(columns, instance.device_uses)) if instance.device_uses else ""


def _over(use: pb.DeviceUse) -> str:
    beyond = use.used_bytes - use.budget_bytes
    return click.style(size(beyond), fg="red") if beyond > 0 else ""


def _probes(instance: pb.Instance, now: float) -> str:
    columns: tuple[Column[pb.ProbeVerdict], ...] = (
        Column("PROBE", lambda probe: probe.kind),
        Column("VERDICT", lambda probe: probe.verdict),
        Column("AGE", lambda probe: rows.since(probe.time, now)),
        Column("FAILURES", lambda probe: str(probe.failures), right=True),
        Column("DETAIL", lambda probe: probe.detail),
    )
    return _indent(table(columns, instance.probes)) if instance.probes else ""


def _plan(deployment: pb.Deployment) -> Iterator[str]:
    if deployment.HasField("plan"):
        plan = plans.plan_of(deployment.plan)
        yield _section("PLAN", _indent(plans.decision(plan)))
        yield from (_indent(part) for part in (*plans.memory(plan), *plans.explanation(plan)))


def _yaml(spec: Struct) -> str:
    import yaml  # noqa: PLC0415  (25 ms that other commands do not pay)

    text: str = yaml.safe_dump(struct_to_dict(spec), allow_unicode=True)
    return text.rstrip()


def _section(title: str, body: str) -> str:
    return f"{title}\n{body}" if body else ""


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.splitlines())
