"""The seam between the API and the node: what a control API may ask of a running agent.

`agent.supervision.node.Node` implements it; `agent.api` maps it to gRPC and knows nothing else of the agent.
All methods raise `agent.errors.AgentError`s. A change returns only when it is durable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import field
from enum import StrEnum
from typing import Any, Literal, Protocol

from agent.frozen import frozen
from agent.planning.ledger import Measurement
from agent.planning.plan import Plan, Rejected
from agent.status import (
    DeploymentStatus,
    DeviceStatus,
    Diagnosis,
    Event,
    Finding,
    InstanceStatus,
    NodeStatus,
    Progress,
    Snapshot,
)


@frozen
class Applied:
    outcome: Literal["created", "replaced", "unchanged"]
    deployment: DeploymentStatus


class FitVerdict(StrEnum):
    """Whether a model can run, and where. In the order in which one would choose."""

    FITS = "fits"  # whole on devices
    UNSURE = "unsure"  # on devices, if the memory that could not be counted exactly is not at its upper end
    PARTLY = "partly"  # some layers on devices, the rest on the CPU
    ON_CPU = "on-cpu"
    DOES_NOT_FIT = "does-not-fit"
    NOT_SERVED = "not-served"  # memory is not the reason: no engine, policy, another task


@frozen
class Pool:
    """Memory of one kind, as the plan found it. What is left of `total` is the plan's own budget, or free. Bytes."""

    id: str  # "host", or a device's
    name: str
    total: int
    others: int  # in use by others, or promised to other deployments
    reserve: int = 0  # what no plan may use, by the node's policy


@frozen
class Planned:
    """A dry run: a plan and the command it would run, or the reason why there is none."""

    plan: Plan | None
    refusal: Diagnosis | None
    argv: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)  # that the command gets
    secrets: tuple[str, ...] = ()  # names of variables that it gets too
    verdict: FitVerdict | None = None
    missing_bytes: int | None = None  # with a refusal: what the candidate that came closest lacks
    rejected: tuple[Rejected, ...] = ()  # with a refusal: every candidate, and why; a plan has its own
    remedies: tuple[str, ...] = ()  # with a refusal: what would make it fit, each enough alone
    notes: tuple[str, ...] = ()  # what was assumed, and what is doubtful, as sentences
    pools: tuple[Pool, ...] = ()  # of the host, then of each device


@frozen
class KnownVariant:
    """One set of weight files of a model of the catalog."""

    reference: str  # "hf:Qwen/Qwen3-8B-AWQ"
    format: str
    quantization: str
    trust: str  # "maker", "vendor", "community"


@frozen
class KnownModel:
    """A model of the catalog."""

    id: str  # "Qwen/Qwen3-8B"
    aliases: tuple[str, ...]
    family: str
    licence: str
    gated: bool | None  # None: not known
    task: str
    context_tokens: int
    parameters: int
    variants: tuple[KnownVariant, ...]


@frozen
class Fit:
    """Whether one model of the catalog fits, and how; `number` of `count` that are looked at."""

    model: KnownModel
    planned: Planned
    number: int
    count: int


@frozen
class Change:
    """One message of a watch. Exactly one of the four is set."""

    deployment: DeploymentStatus | None = None
    node: NodeStatus | None = None  # its conditions or devices changed, beyond a new sample
    event: Event | None = None
    synced: bool = False
    events_lost: bool = False
    resume_token: str = ""


@frozen
class LogChunk:
    instance: str
    data: bytes


class ArtifactState(StrEnum):
    """How much of an artifact is here."""

    COMPLETE = "complete"  # as it was verified
    CHANGED = "changed"  # a file went or changed since: the next use mends it
    PARTIAL = "partial"  # no record says that it is whole: a pull goes on from there
    EXTERNAL = "external"  # outside of the cache: the agent reads it, and never removes it
    FOREIGN = "foreign"  # other tools put it into the cache: it is removed by order only
    UNKNOWN = "unknown"  # an image, and the container engine cannot be asked; `kept_for` says why


@frozen
class ArtifactStatus:
    """Weights on this node. Bytes; times are Unix seconds, None where they are not known."""

    id: str
    source: str  # the reference
    path: str  # what an engine opens; of a partial one the directory of what is there
    state: ArtifactState
    size: int  # of all its files; of a partial one as far as that is known
    revision: str = ""  # commit
    variant: str = ""  # as the reference names it
    files: int = 0
    disk: int = 0  # taken in the cache; what it shares with others counts with each
    frees: int = 0  # what removing it alone would free
    format: str = ""
    quantization: str = ""
    architecture: str = ""
    digest: str = ""
    pinned: bool = False
    used_by: tuple[str, ...] = ()  # deployments whose engine runs with it
    desired_by: tuple[str, ...] = ()  # deployments whose spec or plan names it
    used_at: float | None = None
    verified_at: float | None = None
    kept_for: str = ""  # why it is not removed to make room; "": it may be


@frozen
class CacheDisk:
    """The file system of the cache. `high` and `low`: fractions in use, from which on and down to which is removed."""

    path: str
    total: int
    free: int
    high: float
    low: float


@frozen
class ArtifactList:
    artifacts: tuple[ArtifactStatus, ...]
    disk: CacheDisk | None  # None: it did not answer


@frozen
class Pulling:
    """One message of a pull; the last one has the artifact."""

    reference: str
    progress: Progress | None = None
    artifact: ArtifactStatus | None = None


@frozen
class Deleted:
    artifact: str
    source: str
    freed: int  # bytes


@frozen
class Collected:
    """One artifact that went, or would go. `freed`: bytes, after those before it went."""

    artifact: ArtifactStatus
    freed: int
    reason: str


@frozen
class Collection:
    """What was removed to make room, or would be; in order. `disk` is as it was before."""

    removed: tuple[Collected, ...]
    disk: CacheDisk
    message: str


@frozen
class Imported:
    """What came of an import, in measurements: taken, known before, and over the number that is kept."""

    added: int
    known: int
    dropped: int


@frozen
class ConfigValue:
    field: str
    value: str  # JSON
    origin: str


@frozen
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

    def fit(self, template: dict[str, Any], hardware: dict[str, Any] | None = None) -> AsyncIterator[Fit]:
        """Each model of the catalog, planned with the fields of `template` (a spec without name and model; with a task,
        only models of that task), in the catalog's order."""

    async def models(self) -> tuple[KnownModel, ...]:
        """The catalog."""

    async def resolve_model(self, text: str) -> tuple[KnownModel, str]:
        """The model that a name means, and its canonical reference. Raises `NotFound` with the nearest names."""

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

    async def artifacts(self) -> ArtifactList:
        """What the cache holds, last used first, and what deployments use from elsewhere."""

    def pull(self, reference: str) -> AsyncIterator[Pulling]:
        """Bring a model's files as a deployment does. Closing the iterator ends the pull, if nobody else wants it."""

    async def pin(self, artifact: str, *, pinned: bool) -> ArtifactStatus:
        """`artifact` is an id or a reference, here as below. Raises `NotFound`, and `InvalidArgument` if it names two.

        Durable: pinned artifacts are not removed."""

    async def delete_artifact(self, artifact: str, *, request_id: str) -> Deleted:
        """Raises `FailedPrecondition` for what is in use, desired or pinned."""

    async def collect(self, *, dry_run: bool, everything: bool) -> Collection:
        """Remove what nobody wants, down to the low watermark; with `everything` all of it, however new."""

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
