"""The node: all deployments together, and what a control API may ask of them (`service.NodeApi`).

It owns the actors, adopts at start what runs, and keeps the picture that status shows. It decides nothing
about a single deployment: that is `decide`, driven by its actor.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import structlog

from agent import __version__, failpoints
from agent.config import LoadedConfig
from agent.engines import ENGINES
from agent.errors import AgentError, FailedPrecondition, FieldViolation, StoreError
from agent.runtimes.routed import Runtimes
from agent.status import (
    DeploymentStatus,
    DeviceHold,
    DeviceStatus,
    Event,
    Finding,
    InstanceStatus,
    NodeStatus,
    Phase,
    Severity,
    Snapshot,
)
from agent.store.records import DeploymentRecord, InstanceRecord, Loaded, PutEvent
from agent.store.sqlite import Store
from agent.strict import invalid
from agent.supervision import clock, codec
from agent.supervision.conditions import Conditions
from agent.supervision.devices import Devices, Outside
from agent.supervision.hardware import Hardware
from agent.supervision.ledger import Ledger
from agent.supervision.ledger import Outside as LedgerOutside
from agent.supervision.ports import Ports
from agent.supervision.preparation import Held, Preparation, PreparationError
from agent.supervision.registry import Registry
from agent.supervision.services import Services
from agent.supervision.watchers import Watchers

if TYPE_CHECKING:
    from agent.hardware.simulated import Simulated
    from agent.planning.ledger import Measurement
    from agent.supervision.actor import Actor
    from agent.supervision.artifacts import Artifacts
    from agent.supervision.changes import Changes
    from agent.supervision.gateways import Gateways
    from agent.supervision.service import (
        Applied,
        ArtifactList,
        ArtifactStatus,
        Change,
        Collection,
        ConfigInForce,
        Deleted,
        Fit,
        Imported,
        KnownModel,
        LogChunk,
        Planned,
        Pulling,
    )

# What only deployments and questions need is imported where there is one: half of the daemon's own part of its start.
# ruff: noqa: PLC0415

log = structlog.get_logger(__name__)


class Node:
    """Implements `NodeApi`. Build it, `await restore(...)`, serve the API, and `await close()` at the end."""

    def __init__(self, loaded: LoadedConfig, node_uid: str, store: Store, runtime: Runtimes) -> None:
        self.settings = loaded.config
        self.store = store
        self.registry = Registry()
        self._loaded = loaded
        self._uid = node_uid
        self._started_at = clock.wall()
        self._watchers = Watchers()
        self.damaged = False  # some record was lost: then a process without one may be ours to keep
        self._background: set[asyncio.Task[None]] = set()
        self.conditions = Conditions(self.announce)
        # How the state is while it can be written: that it was lost once stays true for this agent's life.
        self._state: tuple[bool, str, str] = (True, "StateWritable", "changes are made durable")
        outside = Outside(self.announce, partial(self._changed, ""), self._owner, self._holds, self._spawn)
        self.device_registry = Devices(self.settings.daemon.sample_seconds, store, self.conditions, outside)
        self.hardware = Hardware(self.settings, self.device_registry)
        known = LedgerOutside(node_uid, self.settings.node_name, self.announce, self._spawn)
        self.ledger = Ledger(store, runtime, self.hardware, self.device_registry, known)
        self._preparation = Preparation(self.settings, self.hardware, lambda: self.ledger.measurements)
        # Lambdas, because the store of artifacts is made only when one of them is called.
        self._preparation.settled = lambda reference: self.artifact_store.settled(reference)  # noqa: PLW0108
        self._preparation.pulls.make_room = lambda lacking: self.artifact_store.make_room(lacking)  # noqa: PLW0108
        self._preparation.last_used = lambda: runtime.last_used
        self._preparation.warm = runtime.warm
        runtime.tell = self._tell_containers
        self.services = Services(
            config=self.settings, node_uid=node_uid, store=store, runtime=runtime, preparation=self._preparation,
            ports=Ports(self.settings.policy.bind, self.settings.policy.ports, self._held_ports),
            instances=self.settings.directories.state / "instances", engine=ENGINES.__getitem__, changed=self._changed,
            history=self._history, store_failed=self._store_failed, gone=self._gone, held=self._held,
            devices=self.device_registry, ledger=self.ledger, fail=failpoints.hit,
        )  # fmt: skip

    @cached_property
    def _gateways(self) -> Gateways:
        from agent.supervision.gateways import Gateways

        return Gateways(self.registry, self.services, self._spawn)

    def _tell_containers(self, status: bool | None, reason: str, message: str) -> None:
        self.conditions.set("ContainerEngine", status, reason, message)
        self._changed("")

    @cached_property
    def _changes(self) -> Changes:
        from agent.supervision.changes import Changes

        return Changes(self.settings, self.registry, self.services)

    @cached_property
    def artifact_store(self) -> Artifacts:
        """What the node holds of weights. Made when it is first needed, as 20 ms of every start."""
        from agent.supervision import wants
        from agent.supervision.artifacts import Artifacts, Outside

        pulled = self._preparation.pulls
        outside = Outside(self.announce, lambda: wants.of(self.registry), lambda: pulled.jobs, self.store, self._images)
        return Artifacts(self.settings, self.conditions, outside)

    async def _images(self) -> Sequence[ArtifactStatus]:
        """Of engines, as the container engine has them."""
        from agent.supervision import containers, images

        engine = containers.chosen(await self.hardware.container_engines(), self.services.runtime.last_used)
        if engine is None or not engine.socket or (engine.problem and not images.wanted(self.registry)):
            return ()
        return await images.held(
            engine.socket, await containers.repositories(self.settings), images.wanted(self.registry)
        )

    # Start and end ------------------------------------------------------------------------------------------------

    async def restore(self, loaded: Loaded) -> None:
        """Take over everything that is recorded: adopt what runs, account for what ended. No bad record stops it."""
        self._report_damage(loaded)
        self.device_registry.restore(loaded.meta)
        self.ledger.restore(loaded.measurements)
        deployments, instances = loaded.deployments, loaded.instances
        # A lost measurement hides no engine.
        self.damaged = loaded.recreated or any(not item.what.startswith("ledger ") for item in loaded.quarantined)
        if self.damaged:
            from agent.supervision import recovery

            deployments, instances = await recovery.from_engines(self.services, deployments, instances)
        runs: defaultdict[str, list[InstanceRecord]] = defaultdict(list)
        for instance in instances:
            runs[instance.deployment].append(instance)
        await asyncio.gather(*(self._restore(record, runs[record.name]) for record in deployments))
        for actor in self.registry:
            actor.start()

    async def _restore(self, record: DeploymentRecord, runs: list[InstanceRecord]) -> None:
        from agent.spec import DeploymentSpec
        from agent.supervision import adoption, recovery
        from agent.supervision.actor import Actor

        try:
            actor = Actor(recovery.mended(record, runs), DeploymentSpec.from_json(record.spec_json), self.services)
            await adoption.restore(actor, runs)
        except (ValueError, AgentError) as error:
            # Its engine, if any, still runs and is shown as a stray; a record never keeps the daemon from starting.
            self.damaged = True
            log.error("deployment set aside", deployment=record.name, error=str(error))
            await self._set_aside(record.name, str(error))
            return
        self.registry.add(actor)

    async def _set_aside(self, name: str, problem: str) -> None:
        try:
            await self.store.quarantine("deployment", name, problem)
        except StoreError as error:
            self._store_failed(error)
        self.announce(Event("RecordQuarantined", f"deployment {name}: {problem}", Severity.ERROR, at=clock.wall()))

    def _report_damage(self, loaded: Loaded) -> None:
        for item in loaded.quarantined:
            message = f"{item.what}: {item.problem}; kept in {item.where}"
            self.announce(Event("RecordQuarantined", message, Severity.ERROR, at=clock.wall()))
        if loaded.recreated:
            lost = "the database was damaged and was begun anew; what could be read was kept"
            self._state = (False, "StateRecreated", lost)
        if self.store.writable:
            self.conditions.set("StateHealthy", *self._state)
        else:
            self.conditions.set("StateHealthy", False, "StateReadOnly", self.store.problem)

    def rehearse(self) -> None:
        """Do, while nobody waits, what the first deployment would wait for."""
        from agent.supervision import rehearsal

        self._spawn(rehearsal.rehearse(self._preparation, lambda: self._held(""), lambda: not len(self.registry)))

    async def close(self) -> None:
        """End the agent's own work. No engine is touched: the next agent adopts them."""
        await self.device_registry.feed.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*(actor.close() for actor in self.registry), *self._background, return_exceptions=True)

    # What actors tell ---------------------------------------------------------------------------------------------

    def _changed(self, name: str) -> None:
        self.registry.touch(name)
        self._watchers.wake()
        self._poke_gateways()

    def _poke_gateways(self) -> None:
        if any(actor.spec.model.startswith("gateway:") for actor in self.registry):
            self._gateways.poke()

    def _history(self, events: tuple[Event, ...]) -> None:
        if self.store.writable and self.conditions.get("StateHealthy") != "StateNotWritable":
            self.conditions.set("StateHealthy", *self._state)
        if events:
            self._watchers.wake()

    async def check_state(self) -> None:
        """Once a period: whether what could not be written can be by now. One change that fits is no proof."""
        if self.conditions.get("StateHealthy") == "StateNotWritable":
            try:
                await self.store.check()
            except StoreError as error:
                self._store_failed(error)
            else:
                self.conditions.set("StateHealthy", *self._state)

    def _store_failed(self, error: Exception) -> None:
        if self.conditions.get("StateHealthy") != "StateNotWritable":
            log.error("state not durable", error=str(error))
        self.conditions.set("StateHealthy", False, "StateNotWritable", str(error))
        self.registry.touch("")

    def _gone(self, actor: Actor) -> None:
        self.registry.remove(actor)
        self._watchers.wake()
        self._poke_gateways()

    def _held(self, name: str) -> Held:
        others = [actor for actor in self.registry if actor.name != name]
        own = self.registry.find(name)
        return Held(
            reserved=sum(actor.reserved_bytes for actor in others),
            resident=sum(min(actor.resident_bytes, actor.reserved_bytes) for actor in others),
            released=own.resident_bytes if own else 0,
            devices=self.device_registry.states(name),
        )

    def _held_ports(self) -> dict[int, str]:
        return {actor.port: actor.name for actor in self.registry if actor.port}

    def recorded_instances(self) -> list[str]:
        """Of all present runs; and what their containers bear, which may have been made for a run before."""
        present = [actor.instance for actor in self.registry if actor.instance is not None]
        handles = [handle for run in present if (handle := codec.handle(run)) is not None]
        return [run.id for run in present] + [name for handle in handles if (name := handle.data.get("name"))]

    def ended_instances(self) -> list[str]:
        return [run.id for actor in self.registry for run in actor.journal.older]

    def announce(self, event: Event) -> None:
        """An event of the node itself: written soon, or logged when the store refuses."""

        async def write() -> None:
            try:
                self._history(await self.store.write(PutEvent(event)))
            except StoreError as error:
                log.warning("event not recorded", reason=event.reason, message=event.message, error=str(error))

        self._spawn(write())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # Devices ------------------------------------------------------------------------------------------------------

    def _owner(self, pid: int) -> str:
        """The live instance that a process belongs to."""
        runtime = self.services.runtime
        for actor in self.registry:
            if actor.handle is not None and actor.instance is not None and runtime.owns(actor.handle, pid):
                return actor.instance.id
        return ""

    def _holds(self, device: str) -> tuple[DeviceHold, ...]:
        """Who has the device: live instances, and ended ones whose memory was not seen to be back."""
        return tuple(hold for actor in self.registry if (hold := actor.hold(device)) is not None)

    def check_devices(self) -> None:
        """Once a period, after the samples: what was not seen is not known; who leaves its plan is told."""
        self.device_registry.tick()
        for actor in self.registry:
            actor.check_devices()

    # NodeApi: reading ---------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        return self.registry.revision

    def snapshot(self) -> Snapshot:
        return Snapshot(self.revision, self.node(), tuple(self.registry.statuses().values()))

    def node(self) -> NodeStatus:
        return NodeStatus(
            name=self.settings.node_name, uid=self._uid, version=__version__, started_at=self._started_at,
            scope=self.settings.scope, inventory_json=self.hardware.inventory_json(),
            policy_json=self.settings.policy.model_dump_json(), conditions=self.conditions.all(),
            memory_total=self.hardware.memory.total, memory_available=self.hardware.memory.available,
            memory_reserved=sum(actor.reserved_bytes for actor in self.registry), devices=self.devices(),
            deployments=len(self.registry),
            ready=sum(status.phase is Phase.READY for status in self.registry.statuses().values()),
        )  # fmt: skip

    def config(self) -> ConfigInForce:
        from agent.supervision.service import ConfigInForce, ConfigValue

        data = self.settings.model_dump(mode="json")
        origins = self._loaded.origins
        values = tuple(ConfigValue(name, json.dumps(_dig(data, name)), origin) for name, origin in origins.items())
        return ConfigInForce(data, values)

    def get(self, deployment: str) -> DeploymentStatus:
        self.registry.get(deployment)
        return self.registry.statuses()[deployment]

    def instances(self, deployment: str) -> tuple[InstanceStatus, ...]:
        from agent.supervision import views

        actor = self.registry.get(deployment)
        present = views.current(actor)
        older = tuple(views.instance(record) for record in reversed(actor.journal.older))
        return (present, *older) if present else older

    async def tend(self) -> None:
        """Keep what is held within the disk's limits."""
        await self.artifact_store.tend()

    async def artifacts(self) -> ArtifactList:
        return await self.artifact_store.all()

    async def events(self, deployment: str, *, before_seq: int, limit: int) -> tuple[Event, ...]:
        return await self.store.events(deployment, before_seq=before_seq, limit=limit)

    def watch(self, deployment: str, resume_token: str, events_only: bool) -> AsyncIterator[Change]:
        from agent.supervision import watch

        if deployment:
            self.registry.get(deployment)
        feed = watch.Feed(self.registry.statuses, self.node, self.store, self._watchers, self.services.node_uid)
        return watch.stream(feed, deployment, resume_token, events_only=events_only)

    def logs(
        self, deployment: str, *, instance: str, previous: bool, tail_lines: int, follow: bool
    ) -> AsyncIterator[LogChunk]:
        from agent.supervision import reading

        query = reading.LogQuery(instance, previous, tail_lines, follow)
        return reading.stream_logs(self.registry, self._watchers, deployment, query)

    def devices(self) -> tuple[DeviceStatus, ...]:
        return self.device_registry.statuses()

    def simulate(self, hardware: dict[str, Any]) -> NodeStatus:
        from agent.supervision import views

        machine = _described(hardware)
        inventory = machine.inventory
        return replace(
            self.node(), inventory_json=json.dumps(asdict(inventory)), conditions=(), deployments=0, ready=0,
            memory_total=inventory.memory.total, memory_available=inventory.memory.available, memory_reserved=0,
            devices=tuple(views.simulated_device(device, machine.used) for device in inventory.devices),
        )  # fmt: skip

    async def doctor(self) -> tuple[Finding, ...]:
        from agent.hardware.doctor import diagnose

        await self.hardware.survey()
        status = self.node()
        return diagnose(self.hardware.inventory(), status.devices, status.conditions)

    async def quarantine(self, device: str, reason: str) -> DeviceStatus:
        return await self.device_registry.quarantine(device, reason)

    async def release(self, device: str) -> DeviceStatus:
        return await self.device_registry.release(device)

    def measurements(self) -> tuple[Measurement, ...]:
        return self.ledger.measurements

    # NodeApi: changing --------------------------------------------------------------------------------------------

    async def plan(self, spec: dict[str, Any], hardware: dict[str, Any] | None = None) -> Planned:
        """A dry run: everything that happens before a launch, except that nothing is changed."""
        from agent.planning.request import Refusal
        from agent.supervision import outlook

        parsed = self._changes.admit(spec)
        machine = None if hardware is None else _described(hardware)
        try:
            question = await self._preparation.question(parsed, 0, lambda: self._held(parsed.name), machine)
        except PreparationError as error:
            return outlook.refused(Refusal(error.diagnosis))
        return await outlook.planned(question)

    async def fit(self, template: dict[str, Any], hardware: dict[str, Any] | None = None) -> AsyncIterator[Fit]:
        from agent.supervision import outlook

        if given := {"name", "model"} & template.keys():
            raise invalid(*(FieldViolation(one, "must be left out: each model gets its own") for one in sorted(given)))
        parsed = self._changes.admit({**template, "name": "fit", "model": "hf:any/model"})
        machine = None if hardware is None else _described(hardware)
        try:
            around = await self._preparation.surroundings(lambda: self._held(""), machine)
        except PreparationError as error:
            raise FailedPrecondition(error.diagnosis.message, hint=error.diagnosis.hint) from None
        async for one in outlook.fits(self._preparation, parsed, around, str(template.get("task", ""))):
            yield one

    async def models(self) -> tuple[KnownModel, ...]:
        return await self._preparation.models.known()

    async def resolve_model(self, text: str) -> tuple[KnownModel, str]:
        return await self._preparation.models.resolve(text)

    async def pull(self, reference: str) -> AsyncIterator[Pulling]:
        from agent.supervision import pulling

        spec = pulling.admitted(reference, self._changes.admit)
        bring = partial(pulling.bring, self._preparation, spec, lambda: self._held(""))
        async for message in pulling.stream(bring, self.artifact_store):
            yield message

    async def pin(self, artifact: str, *, pinned: bool) -> ArtifactStatus:
        return await self.artifact_store.pin(artifact, pinned=pinned)

    async def delete_artifact(self, artifact: str, *, request_id: str) -> Deleted:
        return await self.artifact_store.delete(artifact, request_id=request_id)

    async def collect(self, *, dry_run: bool, everything: bool) -> Collection:
        return await self.artifact_store.collect(dry_run=dry_run, everything=everything)

    async def apply(self, spec: dict[str, Any], *, etag: str, request_id: str, validate_only: bool) -> Applied:
        return await self._changes.apply(spec, etag=etag, request_id=request_id, validate_only=validate_only)

    async def import_measurements(self, data: dict[str, Any]) -> Imported:
        return await self.ledger.take(data)

    async def delete(self, deployment: str, *, etag: str, request_id: str, allow_missing: bool) -> DeploymentStatus:
        return await self._changes.delete(deployment, etag=etag, request_id=request_id, allow_missing=allow_missing)

    async def restart(self, deployment: str, *, etag: str, request_id: str) -> DeploymentStatus:
        return await self._changes.restart(deployment, etag=etag, request_id=request_id)

    async def stop(self, deployment: str, *, etag: str, request_id: str) -> DeploymentStatus:
        return await self._changes.stop(deployment, etag=etag, request_id=request_id)

    async def start(self, deployment: str, *, etag: str, request_id: str) -> DeploymentStatus:
        return await self._changes.start(deployment, etag=etag, request_id=request_id)


def _described(hardware: dict[str, Any]) -> Simulated:
    """Raises `InvalidArgument`."""
    from agent.hardware.simulated import parse

    return parse(hardware)


def _dig(data: Any, path: str) -> Any:
    """The value at a dotted path; keys may have dots themselves (`engines.llama.cpp.binary`)."""
    if not path:
        return data
    for key in sorted(data, key=len, reverse=True):
        if path == key or path.startswith(f"{key}."):
            return _dig(data[key], path[len(key) + 1 :])
    raise KeyError(path)
