"""Supervision's data to and from the JSON columns of the store. Reading raises `ValueError` for damaged text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from agent.planning.plan import Plan
from agent.runtimes.base import Handle
from agent.status import Diagnosis, ExitStatus, Granted, ProbeKind, ProbeVerdict
from agent.store.records import DeploymentRecord, InstanceRecord
from agent.supervision import clock
from agent.supervision.machine import State, Want


@dataclass(frozen=True, slots=True)
class _Saved:
    """A state with the boot whose clock its times belong to."""

    boot: str
    state: State = field(kw_only=True)


_SAVED: TypeAdapter[_Saved] = TypeAdapter(_Saved)
_HANDLE: TypeAdapter[Handle] = TypeAdapter(Handle)
_EXIT: TypeAdapter[ExitStatus] = TypeAdapter(ExitStatus)
_DIAGNOSIS: TypeAdapter[Diagnosis] = TypeAdapter(Diagnosis)
_GRANTED: TypeAdapter[Granted] = TypeAdapter(Granted)
_VERDICTS: TypeAdapter[tuple[ProbeVerdict, ...]] = TypeAdapter(tuple[ProbeVerdict, ...])


def want(record: DeploymentRecord) -> Want:
    return Want(record.desired, record.generation, record.restart_serial)


def state(record: DeploymentRecord) -> State:
    """The stored state, with what is wanted now; a new one where none was stored yet."""
    if record.supervision_json in ("", "{}"):
        return State(record.uid, want(record), entered=clock.now())
    return replace(_SAVED.validate_json(record.supervision_json).state, want=want(record))


def same_boot(record: DeploymentRecord) -> bool:
    """Whether the stored times are of this boot; true where nothing was stored."""
    if record.supervision_json in ("", "{}"):
        return True
    return _SAVED.validate_json(record.supervision_json).boot == clock.boot_id()


def with_state(record: DeploymentRecord, state: State) -> DeploymentRecord:
    return replace(record, supervision_json=_SAVED.dump_json(_Saved(clock.boot_id(), state=state)).decode())


def handle(record: InstanceRecord) -> Handle | None:
    return _HANDLE.validate_json(record.handle_json) if record.handle_json else None


def dump_handle(handle: Handle) -> str:
    return _HANDLE.dump_json(handle).decode()


def plan(record: InstanceRecord) -> Plan:
    return Plan.from_json(record.plan_json)


def exit_status(record: InstanceRecord) -> ExitStatus | None:
    return _EXIT.validate_json(record.exit_json) if record.exit_json else None


def dump_exit(status: ExitStatus) -> str:
    return _EXIT.dump_json(status).decode()


def diagnosis(record: InstanceRecord) -> Diagnosis | None:
    return _DIAGNOSIS.validate_json(record.diagnosis_json) if record.diagnosis_json else None


def dump_diagnosis(diagnosis: Diagnosis | None) -> str:
    return _DIAGNOSIS.dump_json(diagnosis).decode() if diagnosis else ""


def granted(record: InstanceRecord) -> Granted | None:
    return _GRANTED.validate_json(record.granted_json) if record.granted_json else None


def dump_granted(granted: Granted | None) -> str:
    return _GRANTED.dump_json(granted).decode() if granted else ""


def verdicts(record: InstanceRecord) -> dict[ProbeKind, ProbeVerdict]:
    """The last verdicts: a new agent shows them until its own first results."""
    stored = _VERDICTS.validate_json(record.probes_json) if record.probes_json else ()
    return {verdict.kind: verdict for verdict in stored}


def dump_verdicts(verdicts: Mapping[ProbeKind, Any]) -> str:
    return _VERDICTS.dump_json(tuple(verdicts.values())).decode()
