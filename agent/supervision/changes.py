"""The changes that an operator may ask for: admitted, idempotent, optimistic, durable before they are answered."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, cast

from agent.engines import ENGINES
from agent.errors import Conflict, FailedPrecondition, InvalidArgument, NotFound, StoreError
from agent.frozen import frozen
from agent.planning.admission import admit
from agent.settings import NodeConfig
from agent.spec import DeploymentSpec, parse_spec
from agent.status import DeploymentStatus, Desired, Event, Phase
from agent.store.records import Change, DeploymentRecord, PutDeployment, PutEvent, PutRequest, RequestRecord
from agent.supervision import clock
from agent.supervision.actor import Actor
from agent.supervision.preparation import PreparationError, only_whole
from agent.supervision.registry import Registry
from agent.supervision.service import Applied
from agent.supervision.services import Services

Outcome = Literal["created", "replaced", "unchanged"]

#: Seconds for the plan of what shall replace something that serves; clients wait ten for the answer.
CHECK_SECONDS = 8.0
_SERVING = frozenset({Phase.READY, Phase.UNREADY})


@frozen
class _Request:
    """One change as it came in: what it is called, and the digest under which a repetition is recognised."""

    method: str
    deployment: str
    id: str
    digest: str

    @classmethod
    def of(cls, method: str, deployment: str, id: str, **rest: Any) -> _Request:
        body = json.dumps([method, deployment, rest], sort_keys=True)
        return cls(method, deployment, id, hashlib.sha256(body.encode()).hexdigest())

    def rows(self, generation: int, outcome: str = "") -> tuple[Change, ...]:
        if not self.id:
            return ()
        method = f"{self.method}:{outcome}" if outcome else self.method
        return (PutRequest(RequestRecord(self.id, method, self.digest, self.deployment, generation, clock.wall())),)


class Changes:
    """Apply, delete, restart, stop, start."""

    def __init__(self, config: NodeConfig, registry: Registry, services: Services) -> None:
        self._config = config
        self._registry = registry
        self._services = services
        # Two changes of one name come one after the other, so that a repeated request sees the first one's record.
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def admit(self, data: dict[str, Any]) -> DeploymentSpec:
        """The spec, if the node's policy allows it. Raises `InvalidArgument` with every broken rule."""
        spec = parse_spec(data)
        violations = admit(spec, self._config.policy, ENGINES)
        if violations:
            raise InvalidArgument("the spec breaks the node's policy or an engine's rules", violations=violations)
        return spec

    async def apply(self, data: dict[str, Any], *, etag: str, request_id: str, validate_only: bool) -> Applied:
        spec = self.admit(data)
        request = _Request.of("apply", spec.name, request_id, spec=spec.to_json(), etag=etag)
        async with self._locks[spec.name]:
            earlier = await self._earlier(request)
            if earlier is not None:
                outcome = cast("Outcome", earlier.method.partition(":")[2])
                return Applied(outcome, self._registry.get(spec.name).status())
            actor = self._registry.find(spec.name)  # only now: a deletion may have ended meanwhile
            if actor is not None:
                with contextlib.suppress(NotFound):  # or it ends while the actor is asked
                    return await self._replace(actor, spec, request, etag=etag, validate_only=validate_only)
            return await self._create(spec, request, etag=etag, validate_only=validate_only)

    async def _create(self, spec: DeploymentSpec, request: _Request, *, etag: str, validate_only: bool) -> Applied:
        if etag:
            raise Conflict(
                f"etag given, but there is no deployment {spec.name!r}", hint="Leave the etag out to create it."
            )
        if len(self._registry) >= self._config.policy.max_deployments:
            raise FailedPrecondition(
                f"this node already has {len(self._registry)} deployments, the policy's maximum",
                hint="Delete one, or raise policy.max_deployments.",
            )
        at, uid = clock.wall(), uuid.uuid4().hex
        record = DeploymentRecord(
            name=spec.name, uid=uid, generation=1, etag=_etag(uid, 1, Desired.RUN, 0), desired=Desired.RUN,
            restart_serial=0, spec_json=spec.to_json(), supervision_json="{}", created_at=at, updated_at=at,
        )  # fmt: skip
        actor = Actor(record, spec, self._services)
        if not validate_only:
            event = Event("Accepted", f"deployment of {spec.model} accepted", deployment=spec.name, at=at)
            try:
                written = await self._services.store.write(
                    PutDeployment(record), PutEvent(event), *request.rows(1, "created")
                )
            except StoreError as error:
                self._services.store_failed(error)
                raise
            self._services.history(written)
            self._registry.add(actor)
            actor.start()
        return Applied("created", actor.status())

    async def _replace(
        self, actor: Actor, spec: DeploymentSpec, request: _Request, *, etag: str, validate_only: bool
    ) -> Applied:
        outcome: Outcome = "unchanged"

        def change(record: DeploymentRecord) -> tuple[DeploymentRecord, tuple[Change, ...]]:
            nonlocal outcome
            _check(record, etag)
            if DeploymentSpec.from_json(record.spec_json) == spec:  # its text differs when a release knows more fields
                return record, () if validate_only else request.rows(record.generation, "unchanged")
            outcome = "replaced"
            new = _renewed(record, generation=record.generation + 1, spec_json=spec.to_json())
            event = Event(
                "SpecChanged", f"generation {new.generation} accepted", deployment=spec.name, at=new.updated_at
            )
            return new, (PutEvent(event), *request.rows(new.generation, outcome))

        serving = actor.state.phase in _SERVING and actor.record.desired is Desired.RUN
        if serving or validate_only:
            change(actor.record)
        if serving and outcome == "replaced":
            await self._check_successor(spec)
        if validate_only:
            return Applied(outcome, actor.status())
        status = await actor.update(change)
        return Applied(outcome, status)

    async def _check_successor(self, spec: DeploymentSpec) -> None:
        """What serves is not ended for what cannot be served. Raises `FailedPrecondition`."""
        if only_whole(spec.model):
            return
        services = self._services
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await services.preparation.plan(spec, 0, lambda: services.held(spec.name))
        except PreparationError as error:
            problem, hint = error.diagnosis.message, error.diagnosis.hint
        except TimeoutError:
            problem, hint = f"whether it can be served was not found out within {CHECK_SECONDS:g} s", "try again"
        else:
            return
        way = f"`agentctl stop {spec.name}` first, where it shall be replaced all the same"
        raise FailedPrecondition(
            f"{spec.name} serves on as it is, for the new spec cannot be served: {problem}",
            hint=f"{hint}; {way}" if hint else way,
        )

    async def delete(self, deployment: str, *, etag: str, request_id: str, allow_missing: bool) -> DeploymentStatus:
        request = _Request.of("delete", deployment, request_id, etag=etag)
        async with self._locks[deployment]:
            repeated = await self._earlier(request) is not None
            try:
                return await self._want(deployment, request, etag, "DeleteRequested", "deletion asked for", _delete)
            except NotFound:
                if allow_missing or repeated:
                    return _deleted(deployment)
                raise

    async def restart(self, deployment: str, *, etag: str, request_id: str) -> DeploymentStatus:
        return await self._simple("restart", deployment, etag, request_id, "RestartRequested", _restart)

    async def stop(self, deployment: str, *, etag: str, request_id: str) -> DeploymentStatus:
        return await self._simple("stop", deployment, etag, request_id, "StopRequested", _stop)

    async def start(self, deployment: str, *, etag: str, request_id: str) -> DeploymentStatus:
        actor = self._registry.get(deployment)
        failed = actor.state.phase is Phase.FAILED
        return await self._simple(
            "start", deployment, etag, request_id, "StartRequested", _restart if failed else _start
        )

    async def _simple(
        self, method: str, deployment: str, etag: str, request_id: str, reason: str, change: _RecordChange
    ) -> DeploymentStatus:
        request = _Request.of(method, deployment, request_id, etag=etag)
        async with self._locks[deployment]:
            if await self._earlier(request) is not None:
                return self._registry.get(deployment).status()
            return await self._want(deployment, request, etag, reason, f"{method} asked for", change)

    async def _want(
        self, deployment: str, request: _Request, etag: str, reason: str, message: str, change: _RecordChange
    ) -> DeploymentStatus:
        def apply(record: DeploymentRecord) -> tuple[DeploymentRecord, tuple[Change, ...]]:
            if not (change is _delete and record.desired is Desired.DELETE):
                _check(record, etag)
            new = change(record)
            if new is record:
                return record, request.rows(record.generation)
            event = Event(reason, message, deployment=deployment, at=new.updated_at)
            return new, (PutEvent(event), *request.rows(new.generation))

        return await self._registry.get(deployment).update(apply)

    async def _earlier(self, request: _Request) -> RequestRecord | None:
        """The record of the same request, if it was answered before. Raises `Conflict` for a reused id."""
        if not request.id:
            return None
        record = await self._services.store.request(request.id)
        if record is not None and record.digest != request.digest:
            raise Conflict(
                f"request id {request.id!r} was used for another request ({record.method} {record.deployment})",
                hint="Use a new request id for a new request.",
            )
        return record


_RecordChange = Callable[[DeploymentRecord], DeploymentRecord]


def _check(record: DeploymentRecord, etag: str) -> None:
    if record.desired is Desired.DELETE:
        raise FailedPrecondition(
            f"deployment {record.name!r} is being deleted",
            hint=f"`agentctl wait {record.name} --for deleted`, then apply.",
        )
    if etag and etag != record.etag:
        raise Conflict(
            f"deployment {record.name!r} changed since it was read (etag {etag} is not {record.etag})",
            hint="Read it again, and decide again.",
        )


def _etag(uid: str, generation: int, desired: Desired, serial: int) -> str:
    return hashlib.sha256(f"{uid}:{generation}:{desired}:{serial}".encode()).hexdigest()[:16]


def _renewed(record: DeploymentRecord, **fields: Any) -> DeploymentRecord:
    new = replace(record, updated_at=clock.wall(), **fields)
    return replace(new, etag=_etag(new.uid, new.generation, new.desired, new.restart_serial))


def _delete(record: DeploymentRecord) -> DeploymentRecord:
    return record if record.desired is Desired.DELETE else _renewed(record, desired=Desired.DELETE)


def _stop(record: DeploymentRecord) -> DeploymentRecord:
    return record if record.desired is Desired.STOP else _renewed(record, desired=Desired.STOP)


def _start(record: DeploymentRecord) -> DeploymentRecord:
    return record if record.desired is Desired.RUN else _renewed(record, desired=Desired.RUN)


def _restart(record: DeploymentRecord) -> DeploymentRecord:
    return _renewed(record, desired=Desired.RUN, restart_serial=record.restart_serial + 1)


def _deleted(name: str) -> DeploymentStatus:
    """The picture of a deployment that is no more."""
    return DeploymentStatus(
        name=name, uid="", generation=0, observed_generation=0, etag="", desired=Desired.DELETE, phase=Phase.DELETED,
        reason="Deleted", message="deleted", since=0.0, created_at=0.0, updated_at=0.0, spec_json="{}",
    )  # fmt: skip
