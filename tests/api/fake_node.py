"""A node in memory: the outermost edge of the API layer, so that its tests need no engine and no disk.

It keeps what the contract of `NodeApi` says about names, etags, request order, watches, events and devices, and
nothing else. `failure` is raised by the next calls; `gate` holds changes back until it is set.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from agent.errors import Conflict, FieldViolation, InvalidArgument, NotFound
from agent.planning.ledger import Key, MeasuredTerm, Measurement
from agent.planning.plan import Variant
from agent.status import (
    Condition,
    DeploymentStatus,
    Desired,
    DeviceCondition,
    DeviceStatus,
    Diagnosis,
    DiagnosisCode,
    Event,
    Finding,
    FindingLevel,
    InstanceStatus,
    NodeStatus,
    Phase,
    Snapshot,
)
from agent.supervision.service import (
    Applied,
    ArtifactStatus,
    Change,
    ConfigInForce,
    ConfigValue,
    Imported,
    LogChunk,
    NodeApi,
    Planned,
)

NOW = 1_700_000_000.25


class FakeNode:
    """Deployments, events and logs in dictionaries; a queue for each open watch."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()  # a change waits at the gate
        self.watch_ended = asyncio.Event()
        self.snapshots = 0  # how often one was made
        self.applied_specs: list[dict[str, Any]] = []
        self.log_lines = [b"one\n", b"two\n", b"three\n"]
        self.event_list: list[Event] = []
        self.device_list = [make_device(index) for index in range(2)]
        self.measurement_list = [make_measurement(start) for start in range(2)]
        self.imported: dict[str, Any] = {}  # the last import
        self.planned_for: dict[str, Any] | None = None  # the hardware of the last plan
        self.watchers: set[asyncio.Queue[Change]] = set()
        self._deployments: dict[str, DeploymentStatus] = {}
        self._instances: dict[str, list[InstanceStatus]] = {}
        self._revision = 1

    @property
    def revision(self) -> int:
        return self._revision

    def snapshot(self) -> Snapshot:
        self._fail()
        self.snapshots += 1
        return Snapshot(self._revision, self.node(), tuple(self._deployments.values()))

    def node(self) -> NodeStatus:
        self._fail()
        return NodeStatus(
            name="testhost",
            uid="node-1",
            version="1.2.3",
            started_at=NOW,
            scope="user",
            inventory_json='{"cpus": 2}',
            policy_json='{"max_deployments": 100}',
            conditions=(Condition("StateHealthy", None, "NotChecked", "not looked at yet", NOW),),
            memory_total=8 << 30,
            devices=tuple(self.device_list),
            deployments=len(self._deployments),
        )

    def config(self) -> ConfigInForce:
        self._fail()
        return ConfigInForce({"node_name": "testhost"}, (ConfigValue("node_name", '"testhost"', "default"),))

    async def apply(self, spec: dict[str, Any], *, etag: str, request_id: str, validate_only: bool) -> Applied:
        await self._change()
        name = spec.get("name")
        if not isinstance(name, str) or not name:
            raise InvalidArgument("the spec is not valid", violations=(FieldViolation("name", "must be given"),))
        before = self._deployments.get(name)
        if etag and (before is None or before.etag != etag):
            raise Conflict("the etag does not match", hint="read it again")
        generation = before.generation + 1 if before else 1
        outcome: Literal["created", "replaced", "unchanged"] = "replaced" if before else "created"
        deployment = make_deployment(name, generation=generation, spec_json=json.dumps(spec))
        if before and json.loads(before.spec_json) == spec:
            outcome, deployment = "unchanged", before
        if not validate_only:
            self.applied_specs.append(spec)
            self.put(deployment)
        return Applied(outcome, deployment)

    def get(self, deployment: str) -> DeploymentStatus:
        self._fail()
        if found := self._deployments.get(deployment):
            return found
        raise NotFound(f"there is no deployment {deployment}", hint="agentctl get deployments lists them")

    async def delete(self, deployment: str, *, etag: str, request_id: str, allow_missing: bool) -> DeploymentStatus:
        await self._change()
        if allow_missing and deployment not in self._deployments:
            return replace(make_deployment(deployment), phase=Phase.DELETED)
        return self._move(deployment, Phase.DELETED, Desired.DELETE)

    async def plan(self, spec: dict[str, Any], hardware: dict[str, Any] | None = None) -> Planned:
        await self._change()
        self.planned_for = hardware
        return Planned(None, Diagnosis(DiagnosisCode.DOES_NOT_FIT, "too large", hint="a smaller one"), ("engine", "-x"))

    async def restart(self, deployment: str, *, etag: str, request_id: str) -> DeploymentStatus:
        await self._change()
        return self._move(deployment, Phase.STARTING, Desired.RUN)

    async def stop(self, deployment: str, *, etag: str, request_id: str) -> DeploymentStatus:
        await self._change()
        return self._move(deployment, Phase.STOPPED, Desired.STOP)

    async def start(self, deployment: str, *, etag: str, request_id: str) -> DeploymentStatus:
        await self._change()
        return self._move(deployment, Phase.READY, Desired.RUN)

    async def watch(self, deployment: str, resume_token: str, events_only: bool) -> AsyncIterator[Change]:
        self._fail()
        queue: asyncio.Queue[Change] = asyncio.Queue()
        self.watchers.add(queue)
        try:
            if not events_only:
                for status in self._deployments.values():
                    yield Change(deployment=status, resume_token=resume_token)
            since = int(resume_token) if resume_token.isdecimal() else len(self.event_list)
            for event in self.event_list:
                if event.seq > since:
                    yield Change(event=event, resume_token=str(event.seq))
            lost = bool(resume_token) and not resume_token.isdecimal()
            yield Change(synced=True, events_lost=lost, resume_token=str(len(self.event_list)))
            while True:
                yield await queue.get()
        finally:
            self.watchers.discard(queue)
            self.watch_ended.set()

    def instances(self, deployment: str) -> tuple[InstanceStatus, ...]:
        self.get(deployment)
        return tuple(self._instances.get(deployment, ()))

    async def logs(
        self, deployment: str, *, instance: str, previous: bool, tail_lines: int, follow: bool
    ) -> AsyncIterator[LogChunk]:
        self.get(deployment)
        lines = [] if tail_lines == -1 else self.log_lines[-tail_lines:]
        for line in lines:
            yield LogChunk(instance or "i-1", line)
        if follow:
            await asyncio.Event().wait()

    async def events(self, deployment: str, *, before_seq: int, limit: int) -> tuple[Event, ...]:
        self._fail()
        found = [
            event
            for event in self.event_list
            if deployment in ("", event.deployment) and (not before_seq or event.seq < before_seq)
        ]
        return tuple(found[-limit:])

    def artifacts(self) -> tuple[ArtifactStatus, ...]:
        self._fail()
        variant = Variant("file:/m.gguf", "/m.gguf", "gguf", "Q4_1", 98_000_000, "llama", digest="sha256:ab")
        return (ArtifactStatus(variant, ("chat",)), ArtifactStatus(replace(variant, path="/n.gguf", digest=""), ()))

    def measurements(self) -> tuple[Measurement, ...]:
        self._fail()
        return tuple(self.measurement_list)

    async def import_measurements(self, data: dict[str, Any]) -> Imported:
        await self._change()
        self.imported = data
        return Imported(len(data), 1, 2)

    def devices(self) -> tuple[DeviceStatus, ...]:
        self._fail()
        return tuple(self.device_list)

    def simulate(self, hardware: dict[str, Any]) -> NodeStatus:
        if hardware.get("short") == "unknown":
            raise InvalidArgument("hardware", violations=(FieldViolation("short", "must be a known model"),))
        return replace(self.node(), inventory_json=json.dumps({"simulated": str(hardware)}))

    async def quarantine(self, device: str, reason: str) -> DeviceStatus:
        await self._change()
        return self._set_condition(device, DeviceCondition.QUARANTINED, reason)

    async def release(self, device: str) -> DeviceStatus:
        await self._change()
        return self._set_condition(device, DeviceCondition.HEALTHY, "")

    async def doctor(self) -> tuple[Finding, ...]:
        await self._change()
        return (Finding("open-files", FindingLevel.WARNING, "1024 open files", "raise the limit"),)

    def put(self, deployment: DeploymentStatus, instances: int = 0) -> None:
        """Make `deployment` the present one, with so many instances, and tell the watchers."""
        self._deployments[deployment.name] = deployment
        if instances:
            self._instances[deployment.name] = [make_instance(deployment.name, n) for n in range(instances, 0, -1)]
        self._tell(Change(deployment=deployment, resume_token=str(len(self.event_list))))

    def happen(self, reason: str, deployment: str = "") -> None:
        """Append an event, and tell the watchers."""
        event = Event(reason, f"{reason} happened", deployment=deployment, at=NOW, seq=len(self.event_list) + 1)
        self.event_list.append(event)
        self._tell(Change(event=event, resume_token=str(event.seq)))

    def _set_condition(self, id: str, condition: DeviceCondition, message: str) -> DeviceStatus:
        for index, device in enumerate(self.device_list):
            if device.id == id:
                self.device_list[index] = replace(device, condition=condition, message=message)
                self._tell(Change(node=self.node(), resume_token=str(len(self.event_list))))
                return self.device_list[index]
        raise NotFound(f"there is no device {id}", hint="agentctl devices lists them")

    def _tell(self, change: Change) -> None:
        self._revision += 1
        for queue in self.watchers:
            queue.put_nowait(change)

    def _move(self, name: str, phase: Phase, desired: Desired) -> DeploymentStatus:
        moved = replace(self.get(name), phase=phase, desired=desired)
        self.put(moved)
        if phase is Phase.DELETED:
            del self._deployments[name]
        return moved

    async def _change(self) -> None:
        self._fail()
        if not self.gate.is_set():
            self.waiting.set()
        await self.gate.wait()

    def _fail(self) -> None:
        if self.failure:
            raise self.failure


def make_deployment(name: str, *, generation: int = 1, spec_json: str = "{}") -> DeploymentStatus:
    return DeploymentStatus(
        name=name,
        uid=f"uid-{name}",
        generation=generation,
        observed_generation=generation,
        etag=f"e{generation}",
        desired=Desired.RUN,
        phase=Phase.READY,
        reason="Ready",
        message="the engine answers",
        since=NOW,
        created_at=NOW,
        updated_at=NOW,
        spec_json=spec_json,
    )


def make_instance(deployment: str, attempt: int) -> InstanceStatus:
    return InstanceStatus(
        id=f"i-{attempt}",
        deployment=deployment,
        generation=1,
        attempt=attempt,
        runtime="process",
        live=False,
        created_at=NOW + attempt,
    )


def make_device(index: int) -> DeviceStatus:
    return DeviceStatus(
        id=f"GPU-{index}a2b3c4d",
        index=index,
        vendor="nvidia",
        name="NVIDIA H200",
        condition=DeviceCondition.HEALTHY,
        reason="Ok",
        message="",
        since=NOW,
        memory_total=141 << 30,
    )


if TYPE_CHECKING:
    _contract: type[NodeApi] = FakeNode


def make_measurement(start: int = 0, **fields: Any) -> Measurement:
    """Of a model that lies on one GPU, with what remains of it on the host. Each start takes 1 MiB more."""
    mib = 1024**2
    key = Key(
        digest="sha256:ab", file_bytes=98_000_000, architecture="llama", quantization="Q4_1", engine="llama.cpp",
        engine_version="10434", task="chat", accelerator="cuda", device_models=("NVIDIA H200",), layers=(31,),
        kv_cache_dtype="f16", extra_args=(), max_num_seqs=4, max_model_len=2048, max_num_batched_tokens=2048,
    )  # fmt: skip
    terms = (
        MeasuredTerm("host", "weights", 28 * mib, "log", 28 * mib),
        MeasuredTerm("0", "weights", 92 * mib, "log", 92 * mib),
        MeasuredTerm("0", "context", (400 + start) * mib, "driver", 512 * mib),
        MeasuredTerm("host", "repacked weights", 7 * mib, "log", None),
    )
    row = Measurement(f"node-1-chat-1-{start}", "node-1", "testhost", False, NOW + start, "file:/m.gguf", key, terms)
    return replace(row, **fields)
