"""Records that are damaged or gone are mended from what runs: an engine that serves outlives its database."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import structlog

from agent.errors import StoreError
from agent.runtimes.base import Identity
from agent.status import Desired, Event, Phase, Severity
from agent.store.records import DeploymentRecord, InstanceRecord, PutDeployment, PutEvent, PutInstance
from agent.supervision import clock, codec, launching
from agent.supervision.machine import State
from agent.supervision.services import Services

log = structlog.get_logger(__name__)


def mended(record: DeploymentRecord, runs: Iterable[InstanceRecord]) -> DeploymentRecord:
    """The record, with a state derived from its runs where the stored one is unreadable or missing."""
    last = max(runs, key=lambda run: run.attempt, default=None)
    try:
        state = codec.state(record)
    except ValueError as error:
        log.error("supervision state unreadable; derived from its runs", deployment=record.name, error=str(error))
        state = State(record.uid, codec.want(replace(record, supervision_json="{}")), entered=clock.now())
    if last is None or state.attempt >= last.attempt:
        return record if state.attempt else codec.with_state(record, state)
    return codec.with_state(record, _derived(state, record, last))


def _derived(state: State, record: DeploymentRecord, last: InstanceRecord) -> State:
    """A run without a state that knows it: it may still live, so it is adopted before anything is started."""
    tried = (last.generation, record.restart_serial)
    phase = Phase.PENDING if last.ended_at is not None else Phase.READY if last.ready_at else Phase.LOADING
    return replace(
        state, phase=phase, attempt=last.attempt, tried=tried, was_ready=bool(last.ready_at), ready_at=clock.now(),
        reason="Recovered", message="taken over without its stored state",
    )  # fmt: skip


async def from_engines(
    services: Services, deployments: tuple[DeploymentRecord, ...], instances: tuple[InstanceRecord, ...]
) -> tuple[tuple[DeploymentRecord, ...], tuple[InstanceRecord, ...]]:
    """After the database was lost: add the deployments and runs that live engines carry beside them."""
    try:
        live = await services.runtime.find_all(services.node_uid)
    except OSError as error:  # who cannot be seen goes on, and is reported as a stray once it can
        log.error("live engines not looked for", error=str(error) or "the look at processes does not end")
        live = {}
    by_name = {record.name: record for record in deployments}
    by_id = {record.id: record for record in instances}
    for identity in live:
        if identity.instance in by_id:
            continue
        found = _read(services, identity)
        if found is None or found[1].id in by_id:
            continue
        deployment, run = found
        # An older salvaged record with another generation is kept: the engine is then replaced in due form.
        deployment = by_name.setdefault(deployment.name, deployment)
        by_id[run.id] = run
        event = Event("Recovered", f"instance {run.id} taken over from its own record", Severity.WARNING,
                      deployment.name, run.id, clock.wall())  # fmt: skip
        try:
            await services.store.write(PutDeployment(deployment), PutInstance(run), PutEvent(event))
        except StoreError as error:
            services.store_failed(error)
    return tuple(by_name.values()), tuple(by_id.values())


def _read(services: Services, identity: Identity) -> tuple[DeploymentRecord, InstanceRecord] | None:
    path = services.instances / identity.instance / launching.RECORD
    if not path.exists():  # a container may have been started again for a later instance
        path = next(iter(_bearing(services, identity.instance)), path)
    try:
        data = json.loads(path.read_text())
        deployment = DeploymentRecord(**data["deployment"])
        deployment = replace(deployment, desired=Desired(deployment.desired), supervision_json="{}")
        return deployment, InstanceRecord(**data["instance"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.error("engine's own record unreadable", instance=identity.instance, path=str(path), error=str(error))
        return None


def _bearing(services: Services, name: str) -> list[Path]:
    """The records of instances whose container bears the name of an earlier one."""
    return [path for path in services.instances.glob(f"*/{launching.RECORD}") if _container(path) == name]


def _container(path: Path) -> str:
    try:
        handle = json.loads(path.read_text())["instance"]["handle_json"]
        return str(json.loads(handle)["data"]["name"]) if handle else ""
    except (OSError, ValueError, TypeError, KeyError):
        return ""
