"""The columns of each resource, used by `status`, `get`, `events` and `describe` alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import click
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from agent.api.structs import struct_to_dict
from agent.ctl.output import Column, Format, age, emit, size, table
from agent.ctl.values import plain, short
from agent.v1 import agent_pb2 as pb

Listed = TypeVar("Listed", bound=Message)

COLOURS: Final = {
    "READY": "green",
    "OK": "green",
    "HEALTHY": "green",
    "DEGRADED": "yellow",
    "QUARANTINED": "red",
    "LOST": "red",
    "UNKNOWN": "yellow",
    "FAILED": "red",
    "STUCK": "red",
    "BACKOFF": "yellow",
    "UNREADY": "yellow",
    "WARNING": "yellow",
    "ERROR": "red",
}


def show(kind: str, items: Sequence[Listed], columns: Sequence[Column[Listed]], form: Format) -> None:
    """Prints a list of resources; an empty one is said on stderr, so that a pipe stays empty."""
    if not form.for_people:
        emit({kind: [plain(item) for item in items]}, form)
    elif items:
        click.echo(table(columns, items, wide=form is Format.WIDE))
    else:
        click.echo(f"no {kind}", err=True)


def phase(deployment: pb.Deployment) -> str:
    """`READY`; a number for a phase that only a newer daemon knows."""
    return word(pb.Phase.DESCRIPTOR, deployment.phase)


def desired(deployment: pb.Deployment) -> str:
    return word(pb.Desired.DESCRIPTOR, deployment.desired).lower()


def severity(event: pb.Event) -> str:
    return word(pb.Severity.DESCRIPTOR, event.severity)


def device_condition(device: pb.Device) -> str:
    return word(pb.DeviceCondition.DESCRIPTOR, device.condition)


def level(finding: pb.Finding) -> str:
    return word(pb.FindingLevel.DESCRIPTOR, finding.level)


def coloured(word: str) -> str:
    """A phase, condition, level or severity: green where all is well, red for what needs a person."""
    return click.style(word, fg=COLOURS.get(word))


def since(moment: Timestamp, now: float) -> str:
    """The age of a moment; empty where it never came."""
    return age(now - seconds(moment)) if moment.seconds else ""


def seconds(moment: Timestamp) -> float:
    return moment.seconds + moment.nanos / 1e9


def progress(deployment: pb.Deployment) -> str:
    """`fetching 45% of 1.2 GiB`, `loading 90.1 MiB`, or nothing."""
    step, done, total = deployment.progress.step, deployment.progress.done_bytes, deployment.progress.total_bytes
    if total > 0:
        return f"{step} {min(done, total) * 100 // total}% of {size(total)}"
    return f"{step} {size(done)}" if done else step


def limits(deployment: pb.Deployment) -> str:
    """The planned limits as `4 x 2048`: sequences at a time, tokens for each."""
    chosen = struct_to_dict(deployment.plan).get("limits")
    return f"{chosen['max_num_seqs']} x {chosen['max_model_len']}" if chosen else ""


def endpoint(deployment: pb.Deployment) -> str:
    """Empty where no engine runs that could listen there; the port is kept for the next one."""
    return deployment.endpoint if deployment.instance.live else ""


def granted(deployment: pb.Deployment) -> str:
    """The same as read back from the engine that runs; `?` for what it does not tell."""
    given = deployment.granted
    if not deployment.HasField("granted") or not deployment.instance.live:
        return ""
    seqs = given.max_num_seqs if given.HasField("max_num_seqs") else "?"
    return f"{seqs} x {given.max_model_len if given.HasField('max_model_len') else '?'}"


def engine(deployment: pb.Deployment) -> str:
    """The planned engine, or what the spec asks for as long as there is no plan."""
    return str(struct_to_dict(deployment.plan).get("engine") or struct_to_dict(deployment.spec).get("engine", ""))


def model(deployment: pb.Deployment) -> str:
    """The reference, as in the spec."""
    return str(struct_to_dict(deployment.spec).get("model", ""))


def why(deployment: pb.Deployment) -> str:
    """The diagnosis' code where there is one, or else the reason code; and how far it is."""
    reason = deployment.diagnosis.code or deployment.reason
    return f"{reason} ({progress(deployment)})" if progress(deployment) else reason


def number(message: Message, field: str) -> str:
    """An optional number of `message`; empty where it is not set."""
    return str(getattr(message, field)) if message.HasField(field) else ""


def memory(instance: pb.Instance) -> str:
    return size(instance.memory_bytes) if instance.HasField("memory_bytes") else ""


def work(instance: pb.Instance, now: float) -> str:
    """What the engine last said of its work; what it does not offer is left out."""
    found = [form.format(instance.metrics[name]) for name, form in _WORK.items() if name in instance.metrics]
    return f"{', '.join(found)} ({since(instance.metrics_time, now)} ago)" if found else ""


#: By the one set of names (`agent.engines.base.Metric`).
_WORK: Final = {
    "running": "{:.0f} running",
    "waiting": "{:.0f} waiting",
    "cache_usage": "cache {:.0%} in use",
    "first_token_seconds": "first token after {:.3g} s",
    "inter_token_seconds": "then one each {:.3g} s",
    "prompt_tokens": "{:.0f} tokens read",
    "generated_tokens": "{:.0f} generated",
    "preemptions": "{:.0f} preemptions",
}


def ended(instance: pb.Instance) -> str:
    """How an instance ended, with its diagnosis; empty while it lives."""
    code, status = instance.diagnosis.code, instance.exit
    if not instance.HasField("exit"):
        return code
    if status.oom_killed:
        how = "out of memory"
    elif status.HasField("signal"):
        how = f"signal {status.signal}"
    else:
        how = f"exit status {status.code if status.HasField('code') else 'unknown'}"
    return f"{how} ({code})" if code else how


def deployments(now: float) -> tuple[Column[pb.Deployment], ...]:
    """The columns of `status` and `get deployments`."""
    return (
        Column("NAME", lambda d: short(d.name)),
        Column("PHASE", lambda d: coloured(phase(d))),
        Column("ENGINE", engine),
        Column("MODEL", lambda d: short(model(d))),
        Column("LIMITS", limits),
        Column("GRANTED", granted, wide=True),
        Column("ENDPOINT", endpoint),
        Column("RESTARTS", lambda d: str(d.restarts), right=True),
        Column("PID", lambda d: number(d.instance, "pid"), wide=True, right=True),
        Column("MEMORY", lambda d: memory(d.instance) if d.instance.live else "", wide=True, right=True),
        Column("GENERATION", lambda d: str(d.generation), wide=True, right=True),
        Column("ATTEMPT", lambda d: str(d.instance.attempt or ""), wide=True, right=True),
        Column("SINCE", lambda d: since(d.phase_time, now), wide=True),
        Column("AGE", lambda d: since(d.create_time, now)),
        Column("REASON", why),
    )


def instances(now: float) -> tuple[Column[pb.Instance], ...]:
    return (
        Column("ID", lambda i: short(i.name)),
        Column("DEPLOYMENT", lambda i: short(i.deployment)),
        Column("GENERATION", lambda i: str(i.generation), right=True),
        Column("ATTEMPT", lambda i: str(i.attempt), right=True),
        Column("LIVE", lambda i: "yes" if i.live else "no"),
        Column("PID", lambda i: number(i, "pid"), right=True),
        Column("PORT", lambda i: number(i, "port"), right=True),
        Column("MEMORY", memory, right=True),
        Column("AGE", lambda i: since(i.create_time, now)),
        Column("ENDED", ended),
        Column("LOG", lambda i: i.log_path, wide=True),
    )


def events(now: float) -> tuple[Column[pb.Event], ...]:
    return (
        Column("SEQ", lambda e: str(e.seq), wide=True, right=True),
        Column("AGE", lambda e: since(e.time, now)),
        Column("SEVERITY", lambda e: coloured(severity(e))),
        Column("DEPLOYMENT", lambda e: short(e.deployment)),
        Column("INSTANCE", lambda e: short(e.instance), wide=True),
        Column("REASON", lambda e: e.reason),
        Column("MESSAGE", lambda e: e.message),
    )


def word(descriptor: Any, value: int) -> str:
    """`PHASE_READY` -> `READY`: proto wants the enum's name before each of its values, people do not."""
    names = {number: known.name for number, known in descriptor.values_by_number.items()}
    return names[value].removeprefix(names[0].removesuffix("UNSPECIFIED")) if value in names else str(value)
