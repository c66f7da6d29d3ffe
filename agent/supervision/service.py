"""The seam between the API and the node: what a control API may ask of a running agent.

`agent.supervision.node.Node` implements it; `agent.api` maps it to gRPC and knows nothing else of the agent.
All methods raise `agent.errors.AgentError`s. A change returns only when it is durable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from agent.planning.ledger import Measurement
from agent.planning.plan import Plan, Variant
from agent.status import (
    DeploymentStatus,
    DeviceStatus,
    Diagnosis,
    Event,
    Finding,
    InstanceStatus,
    NodeStatus,
    Snapshot,
)


@dataclass(frozen=True, slots=True)
class Applied:
    outcome: Literal["created", "replaced", "unchanged"]
    deployment: DeploymentStatus


@dataclass(frozen=True, slots=True)
class Planned:
    """A dry run: a plan and the command it would run, or the reason why there is none."""

    plan: Plan | None
    refusal: Diagnosis | None
    argv: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One message of a watch. Exactly one of the four is set."""

    deployment: DeploymentStatus | None = None
    node: NodeStatus | None = None  # its conditions or devices changed, beyond a new sample
    event: Event | None = None
    synced: bool = False
    events_lost: bool = False
    resume_token: str = ""


@dataclass(frozen=True, slots=True)
class LogChunk:
    instance: str
    data: bytes


@dataclass(frozen=True, slots=True)
class ArtifactStatus:
    variant: Variant
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of an import, in measurements: taken, known before, and over the number that is kept."""

    added: int
    known: int
    dropped: int


@dataclass(frozen=True, slots=True)
class ConfigValue:
    field: str
    value: str  # JSON
    origin: str


@dataclass(frozen=True, slots=True)
class ConfigInForce:
    config: dict[str, Any]
    origins: tuple[ConfigValue, ...]


class NodeApi(Protocol):
    """What the servicers need. `deployment` parameters are bare names; `etag` "" means unconditional."""

    @property
    def revision(self) -> int:
        """Increases whenever `snapshot()` would differ: the key under which a serialised status may be cached."""

    def snapshot(self) -> Snapshot: ...

    def node(self) -> NodeStatus: ...

    def config(self) -> ConfigInForce: ...

    async def apply(self, spec: dict[str, Any], *, etag: str, request_id: str, validate_only: bool) -> Applied: ...

    def get(self, deployment: str) -> DeploymentStatus: ...

    async def delete(self, deployment: str, *, etag: str, request_id: str, allow_missing: bool) -> DeploymentStatus: ...

    async def plan(self, spec: dict[str, Any], hardware: dict[str, Any] | None = None) -> Planned:
        """`hardware`: a description (`agent.hardware.simulated`) to plan for instead of this node."""

    async def restart(self, deployment: str, *, etag: str, request_id: str) -> DeploymentStatus: ...

    async def stop(self, deployment: str, *, etag: str, request_id: str) -> DeploymentStatus: ...

    async def start(self, deployment: str, *, etag: str, request_id: str) -> DeploymentStatus: ...

    def watch(self, deployment: str, resume_token: str, events_only: bool) -> AsyncIterator[Change]: ...

    def instances(self, deployment: str) -> tuple[InstanceStatus, ...]:
        """Newest first."""

    def logs(
        self, deployment: str, *, instance: str, previous: bool, tail_lines: int, follow: bool
    ) -> AsyncIterator[LogChunk]: ...

    async def events(self, deployment: str, *, before_seq: int, limit: int) -> tuple[Event, ...]:
        """The newest `limit` events with seq < before_seq (0: no bound), oldest first."""

    def artifacts(self) -> tuple[ArtifactStatus, ...]: ...

    def measurements(self) -> tuple[Measurement, ...]:
        """The ledger, oldest first."""

    async def import_measurements(self, data: dict[str, Any]) -> Imported:
        """Take over what another node measured. Raises `InvalidArgument` with the path of each wrong field."""

    def devices(self) -> tuple[DeviceStatus, ...]: ...

    def simulate(self, hardware: dict[str, Any]) -> NodeStatus:
        """A node with the described hardware, as `node()` would show it. Raises `InvalidSpec`-like violations."""

    async def quarantine(self, device: str, reason: str) -> DeviceStatus:
        """By an operator's order: no plan gets the device until `release`. What runs on it goes on. Durable."""

    async def release(self, device: str) -> DeviceStatus:
        """Lift the quarantine, and drop holds of ended instances: the operator says that the device is good."""

    async def doctor(self) -> tuple[Finding, ...]: ...
