"""What an actor and the store know, as the pictures that status shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from agent.hardware.inventory import Device
from agent.runtimes.base import Handle, Usage
from agent.status import (
    DeploymentStatus,
    DeviceCondition,
    DeviceStatus,
    DeviceUse,
    InstanceStatus,
    Phase,
    ProbeVerdict,
)
from agent.store.records import InstanceRecord
from agent.supervision import clock, codec

if TYPE_CHECKING:
    from agent.supervision.actor import Actor


def instance(
    record: InstanceRecord,
    *,
    pid: int | None = None,
    probes: tuple[ProbeVerdict, ...] = (),
    usage: Usage | None = None,
    enforcement: tuple[str, ...] = (),
    device_uses: tuple[DeviceUse, ...] = (),
) -> InstanceStatus:
    """One run; the keyword arguments are what only the supervising actor knows."""
    return InstanceStatus(
        id=record.id, deployment=record.deployment, generation=record.generation, attempt=record.attempt,
        runtime=record.runtime, live=record.handle_json != "" and record.ended_at is None, pid=pid, port=record.port,
        created_at=record.created_at, started_at=record.started_at, ready_at=record.ready_at,
        ended_at=record.ended_at, exit=codec.exit_status(record), diagnosis=codec.diagnosis(record), probes=probes,
        log_path=record.log_path, memory_bytes=usage.memory_bytes if usage else None, enforcement=enforcement,
        device_uses=device_uses, measured=None, **(_container(record) if record.runtime == "docker" else {}),
    )  # fmt: skip


def _container(record: InstanceRecord) -> Mapping[str, str]:
    """What is said of an instance in a container: its id, and the image."""
    handle = codec.handle(record)
    return {**_image(record.plan_json), "container": str(handle.data.get("id", "")) if handle is not None else ""}


@lru_cache(maxsize=64)
def _image(plan_json: str) -> Mapping[str, str]:
    image = json.loads(plan_json).get("image")
    return {} if image is None else {"image": f"{image['repository']}:{image['tag']}", "image_digest": image["digest"]}


def current(actor: Actor) -> InstanceStatus | None:
    """The actor's present (or last) instance."""
    record, handle = actor.instance, actor.handle
    if record is None:
        return None
    pid, enforcement = _process(actor, handle) if record.ended_at is None else (None, ())
    shown = instance(
        record, pid=pid, probes=tuple(actor.verdicts.values()), usage=actor.usage, enforcement=enforcement,
        device_uses=actor.device_uses,
    )  # fmt: skip
    return replace(shown, measured=actor.measured)


def _process(actor: Actor, handle: Handle | None) -> tuple[int | None, tuple[str, ...]]:
    if handle is None:
        return None, ()
    runtime = actor.services.runtime
    return runtime.main_pid(handle), runtime.enforcement(handle)


def simulated_device(device: Device, used: Mapping[str, int]) -> DeviceStatus:
    """A device that is not there, as it was described."""
    return DeviceStatus(
        id=device.id, index=device.index, vendor=device.vendor, name=device.name, condition=DeviceCondition.HEALTHY,
        reason="Simulated", message="described, not detected", since=0.0, memory_total=device.memory_bytes,
        memory_used=used.get(device.id, 0), detail_json=json.dumps(asdict(device)),
    )  # fmt: skip


def deployment(actor: Actor) -> DeploymentStatus:
    """The observed state of a deployment."""
    state, record = actor.state, actor.record
    waiting = state.phase is Phase.BACKOFF and state.deadline is not None
    return DeploymentStatus(
        name=record.name, uid=record.uid, generation=record.generation, observed_generation=state.tried[0],
        etag=record.etag, desired=record.desired, phase=state.phase, reason=state.reason,
        message=actor.held or state.message,
        since=round(clock.as_wall(state.entered), 3), created_at=record.created_at, updated_at=record.updated_at,
        spec_json=record.spec_json,
        plan_json=actor.plan_json, restarts=state.restarts,
        endpoint=f"http://{actor.services.config.policy.bind}:{actor.port}" if actor.port else "",
        next_attempt_at=clock.as_wall(state.deadline) if waiting and state.deadline is not None else None,
        progress=actor.progress, granted=actor.granted, diagnosis=state.diagnosis, instance=current(actor),
        previous=instance(actor.journal.older[-1]) if actor.journal.older else None,
        conditions=tuple(actor.conditions.values()),
    )  # fmt: skip
