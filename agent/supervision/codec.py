"""Supervision's data to and from the JSON columns of the store. Reading raises `ValueError` for damaged text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import TypeAdapter

from agent.frozen import frozen
from agent.planning.plan import Plan
from agent.runtimes.base import Handle
from agent.status import Diagnosis, ExitStatus, Granted, ProbeKind, ProbeVerdict
from agent.store.records import DeploymentRecord, InstanceRecord
from agent.supervision import clock
from agent.supervision.machine import State, Want

T = TypeVar("T")


@frozen
class _Saved:
    """A state with the boot whose clock its times belong to."""

    boot: str
    state: State


@frozen
class _Verdicts:
    probes: tuple[ProbeVerdict, ...]


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    """Built at first use (some 5 ms each): a daemon without deployments starts without them."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _load(kind: type[T], text: str) -> T | None:
    return _adapter(kind).validate_json(text) if text else None


def _dump(kind: type[T], value: T | None) -> str:
    return "" if value is None else _adapter(kind).dump_json(value).decode()


def want(record: DeploymentRecord) -> Want:
    return Want(record.desired, record.generation, record.restart_serial)


def state(record: DeploymentRecord) -> State:
    """The stored state, with what is wanted now; a new one where none was stored yet."""
    saved = _saved(record)
    if saved is None:
        return State(record.uid, want(record), entered=clock.now())
    return replace(saved.state, want=want(record))


def same_boot(record: DeploymentRecord) -> bool:
    """Whether the stored times are of this boot; true where nothing was stored."""
    saved = _saved(record)
    return saved is None or saved.boot == clock.boot_id()


def _saved(record: DeploymentRecord) -> _Saved | None:
    return None if record.supervision_json == "{}" else _load(_Saved, record.supervision_json)


def with_state(record: DeploymentRecord, state: State) -> DeploymentRecord:
    return replace(record, supervision_json=_dump(_Saved, _Saved(clock.boot_id(), state)))


def plan(record: InstanceRecord) -> Plan:
    return Plan.from_json(record.plan_json)


def handle(record: InstanceRecord) -> Handle | None:
    return _load(Handle, record.handle_json)


def dump_handle(handle: Handle) -> str:
    return _dump(Handle, handle)


def exit_status(record: InstanceRecord) -> ExitStatus | None:
    return _load(ExitStatus, record.exit_json)


def dump_exit(status: ExitStatus) -> str:
    return _dump(ExitStatus, status)


def diagnosis(record: InstanceRecord) -> Diagnosis | None:
    return _load(Diagnosis, record.diagnosis_json)


def dump_diagnosis(diagnosis: Diagnosis | None) -> str:
    return _dump(Diagnosis, diagnosis)


def granted(record: InstanceRecord) -> Granted | None:
    return _load(Granted, record.granted_json)


def dump_granted(granted: Granted | None) -> str:
    return _dump(Granted, granted)


def verdicts(record: InstanceRecord) -> dict[ProbeKind, ProbeVerdict]:
    """The last verdicts: a new agent shows them until its own first results."""
    stored = _load(_Verdicts, record.probes_json)
    return {verdict.kind: verdict for verdict in stored.probes} if stored else {}


def dump_verdicts(verdicts: Mapping[ProbeKind, ProbeVerdict]) -> str:
    return _dump(_Verdicts, _Verdicts(tuple(verdicts.values())))
