"""The rows of the store, as frozen data, and the changes that are written.

Several changes go into one transaction: `await store.write(PutInstance(...), PutEvent(...))`. What is
acknowledged is on disk (WAL, synchronous=FULL).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from agent.frozen import frozen
from agent.status import Desired, Event


@frozen
class DeploymentRecord:
    """A deployment as it is desired, with the part of the supervisor's state that must outlive the agent."""

    name: str
    uid: str
    generation: int
    etag: str
    desired: Desired
    restart_serial: int  # raised by each `restart`: a new value asks for a new instance
    spec_json: str
    supervision_json: str  # agent.supervision.machine.State, without what is only in memory
    created_at: float
    updated_at: float


@frozen
class InstanceRecord:
    """One run. Written before the launch (handle_json empty, or that of the run before, whose container is started
    again), right after it, at READY, and at its end."""

    id: str
    deployment: str
    generation: int
    attempt: int
    runtime: str
    plan_json: str
    port: int
    directory: str
    log_path: str
    created_at: float
    handle_json: str = ""
    started_at: float | None = None
    ready_at: float | None = None
    ended_at: float | None = None
    exit_json: str = ""
    diagnosis_json: str = ""
    probes_json: str = ""  # last verdicts: kept over the agent's restart, so that readiness does not flap
    granted_json: str = ""


@frozen
class RequestRecord:
    """An answered change, for idempotency: the same request id with the same digest gets the same answer."""

    request_id: str
    method: str
    digest: str  # sha256 of the request without its id
    deployment: str
    generation: int
    at: float


@frozen
class MeasurementRecord:
    """What one start of an engine was seen to use of memory; agent.planning.ledger says what the columns mean."""

    id: str  # the instance's: unique over nodes
    node: str  # uid of the node that it was made on
    host: str
    imported: int  # 1: made on another node
    at: float
    model: str
    key_json: str
    terms_json: str


@frozen
class PutDeployment:
    record: DeploymentRecord


@frozen
class DropDeployment:
    """Removes the deployment and its instances; its events stay."""

    name: str


@frozen
class PutInstance:
    record: InstanceRecord


@frozen
class DropInstance:
    id: str


@frozen
class PutEvent:
    event: Event


@frozen
class PutRequest:
    record: RequestRecord


@frozen
class PutMeta:
    key: str
    value: str


@frozen
class PutMeasurement:
    record: MeasurementRecord


@frozen
class DropMeasurement:
    id: str


Change = (
    PutDeployment
    | DropDeployment
    | PutInstance
    | DropInstance
    | PutEvent
    | PutRequest
    | PutMeta
    | PutMeasurement
    | DropMeasurement
)


@frozen
class Quarantined:
    """A damaged record or file that was set aside: what it was, where it is now, what was wrong."""

    what: str
    where: str
    problem: str


@frozen
class Loaded:
    """Everything that was readable at start."""

    node_uid: str
    deployments: tuple[DeploymentRecord, ...]
    instances: tuple[InstanceRecord, ...]
    last_event_seq: int
    quarantined: tuple[Quarantined, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)  # what `PutMeta` wrote
    measurements: tuple[MeasurementRecord, ...] = ()
    recreated: bool = False  # the database itself was unreadable, and a new one was begun
