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

from agent.errors import Conflict, FailedPrecondition, FieldViolation, InvalidArgument, NotFound
from agent.planning.ledger import Key, MeasuredTerm, Measurement
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
    Progress,
    Snapshot,
)
from agent.supervision.service import (
    Applied,
    ArtifactList,
    ArtifactState,
    ArtifactStatus,
    CacheDisk,
    Change,
    Collected,
    Collection,
    ConfigInForce,
    ConfigValue,
    Deleted,
    Fit,
    FitVerdict,
    Imported,
    KnownModel,
    KnownVariant,
    LogChunk,
    NodeApi,
    Planned,
    Pulling,
)

NOW = 1_700_000_000.25
DISK = CacheDisk("/var/cache/llm-node-agent", 500 << 30, 40 << 30, 0.9, 0.8)


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
        self.applied_phase = Phase.READY  # of what is applied from now on
        self.log_lines = [b"one\n", b"two\n", b"three\n"]
        self.event_list: list[Event] = []
        self.device_list = [make_device(index) for index in range(2)]
        self.measurement_list = [make_measurement(start) for start in range(2)]
        self.artifact_list = [
            make_artifact(),
            make_artifact("0b1c2d3e4f50", source="hf:a/old", kept_for="", used_by=()),
        ]
        self.pull_ended = asyncio.Event()
        self.imported: dict[str, Any] = {}  # the last import
        self.planned_for: dict[str, Any] | None = None  # the hardware of the last plan
        self.model_list = [make_model("Qwen/Qwen3-8B", "qwen3:8b"), make_model("BAAI/bge-m3", task="embedding")]
        self.fits: list[Fit] = []  # that `fit` yields, after which it ends
        self.fit_template: dict[str, Any] = {}  # of the last fit
        self.fit_ended = asyncio.Event()
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
        deployment = replace(deployment, phase=self.applied_phase)
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

    async def fit(self, template: dict[str, Any], hardware: dict[str, Any] | None = None) -> AsyncIterator[Fit]:
        self._fail()
        self.fit_template, self.planned_for = template, hardware
        try:
            for one in self.fits:
                yield one
            await self.gate.wait()
        finally:
            self.fit_ended.set()

    async def models(self) -> tuple[KnownModel, ...]:
        self._fail()
        return tuple(self.model_list)

    async def resolve_model(self, text: str) -> tuple[KnownModel, str]:
        for model in self.model_list:
            if text.lower() in (model.id.lower(), model.id.partition("/")[2].lower(), *model.aliases):
                return model, f"hf:{model.id}"
        raise NotFound(f"the catalog has no model {text!r}", hint="did you mean Qwen3-8B?")

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

    async def artifacts(self) -> ArtifactList:
        self._fail()
        return ArtifactList(tuple(self.artifact_list), DISK)

    async def pull(self, reference: str) -> AsyncIterator[Pulling]:
        self._fail()
        try:
            for done in (0, 40 << 20, 80 << 20):
                yield Pulling(reference, Progress("fetching", done, 80 << 20))
            await self.gate.wait()
            yield Pulling(reference, artifact=replace(self.artifact_list[0], source=reference))
        finally:
            self.pull_ended.set()

    async def pin(self, artifact: str, *, pinned: bool) -> ArtifactStatus:
        await self._change()
        index = self.artifact_list.index(self._artifact(artifact))
        self.artifact_list[index] = replace(self.artifact_list[index], pinned=pinned)
        return self.artifact_list[index]

    async def delete_artifact(self, artifact: str, *, request_id: str) -> Deleted:
        await self._change()
        found = self._artifact(artifact)
        if found.kept_for:
            raise FailedPrecondition(f"{found.source} stays: {found.kept_for}", hint="delete the deployment")
        self.artifact_list.remove(found)
        return Deleted(found.id, found.source, found.frees)

    async def collect(self, *, dry_run: bool, everything: bool) -> Collection:
        await self._change()
        going = [one for one in self.artifact_list if not one.kept_for]
        if not dry_run:
            self.artifact_list = [one for one in self.artifact_list if one.kept_for]
        why = "nobody wants it" if everything else "the disk is 92% full"
        removed = tuple(Collected(one, one.frees, f"{why}; last used 3 d ago") for one in going)
        return Collection(removed, DISK, "1 of 2 artifacts are in use, desired or pinned")

    def _artifact(self, name: str) -> ArtifactStatus:
        for one in self.artifact_list:
            if name in (one.id, one.source):
                return one
        raise NotFound(f"this node holds no artifact {name}", hint="agentctl artifacts ls shows what it holds")

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


def make_artifact(id: str = "a1b2c3d4e5f6", **fields: Any) -> ArtifactStatus:
    """Whole, and in use by `chat`, unless `fields` say otherwise."""
    values: dict[str, Any] = {
        "source": "hf:Qwen/Qwen3-0.6B", "path": "/var/cache/llm-node-agent/hub/models--Qwen--Qwen3-0.6B/snapshots/c1",
        "state": ArtifactState.COMPLETE, "size": 1_519_206_400, "revision": "c1899de289a04d12100db370d81485cdf75e47ca",
        "files": 10, "disk": 1_519_206_400, "frees": 1_519_206_400, "format": "safetensors", "quantization": "bf16",
        "architecture": "Qwen3ForCausalLM", "digest": "sha256:ab", "used_by": ("chat",), "desired_by": (),
        "used_at": NOW, "verified_at": NOW - 86_400.0, "kept_for": "deployment chat runs with it",
    }  # fmt: skip
    return ArtifactStatus(id=id, **(values | fields))


def make_model(id: str, *aliases: str, task: str = "chat") -> KnownModel:
    variants = (
        KnownVariant(f"hf:{id}:bf16", "safetensors", "bf16", "maker"),
        KnownVariant(f"hf:them/{id.partition('/')[2]}-GGUF:Q4_K_M", "gguf", "Q4_K_M", "community"),
    )
    return KnownModel(id, aliases, "qwen3", "apache-2.0", False, task, 40_960, 8_190_735_360, variants)


def make_fit(model: KnownModel, number: int, count: int, planned: Planned | None = None) -> Fit:
    """Too large by 3 GiB, unless it is `planned`."""
    too_large = Diagnosis(DiagnosisCode.DOES_NOT_FIT, "needs 27 GiB; 24 GiB is free")
    refused = Planned(None, too_large, verdict=FitVerdict.DOES_NOT_FIT, missing_bytes=3 << 30)
    return Fit(model, planned or refused, number, count)


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
