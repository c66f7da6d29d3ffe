"""Gateways and what they forward to: the deployments of this node that serve, written where each gateway reads them.

A deployment joins when it becomes ready, and stays while it is wanted: one that crashed keeps its place, so that the
gateway can fall back and return by itself, and nothing is written for a second's absence. It leaves when it is stopped,
deleted, or given up as failed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import structlog

from agent.engines.base import BackEnd, GatewayEngine
from agent.models.gateway import SCHEME
from agent.planning.plan import Plan
from agent.references import ALL
from agent.status import Desired, Phase, Severity
from agent.supervision import launching
from agent.supervision import machine as m

if TYPE_CHECKING:
    from agent.supervision.actor import Actor
    from agent.supervision.registry import Registry
    from agent.supervision.services import Services

log = structlog.get_logger(__name__)

#: Seconds for which changes are gathered: several deployments often become ready together.
GATHER = 0.2
#: A file that could not be written is tried again this often (seconds).
RETRY = 5.0
#: A disk that takes longer hangs (seconds).
WRITE_DEADLINE = 10.0

_LEFT = frozenset({Phase.FAILED, Phase.STOPPED, Phase.DELETED})
_RUNNING = frozenset({Phase.LOADING, Phase.READY, Phase.UNREADY})


def is_gateway(actor: Actor) -> bool:
    return actor.spec.model.startswith(f"{SCHEME}:")


class Gateways:
    """Keeps the files of all gateways of a node."""

    def __init__(
        self, registry: Registry, services: Services, spawn: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        self._registry, self._services, self._spawn = registry, services, spawn
        self._timer: asyncio.TimerHandle | None = None
        self._lock = asyncio.Lock()
        self._written: dict[str, str] = {}  # by instance

    def poke(self, delay: float = GATHER) -> None:
        """Something may have changed: look soon."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        self._spawn(self._renew())

    async def _renew(self) -> None:
        async with self._lock:
            running = [each for each in self._registry if is_gateway(each) and each.state.phase in _RUNNING]
            ids = {actor.instance.id for actor in running if actor.instance is not None}
            self._written = {id: text for id, text in self._written.items() if id in ids}
            for actor in running:
                try:
                    async with asyncio.timeout(WRITE_DEADLINE):
                        await self._renew_one(actor)
                except (OSError, TimeoutError) as error:
                    log.warning("gateway not configured", deployment=actor.name, error=str(error))
                    self.poke(RETRY)

    async def _renew_one(self, actor: Actor) -> None:
        plan, instance = actor.plan, actor.instance
        if plan is None or instance is None:
            return
        engine = cast("GatewayEngine", self._services.engine(plan.engine))
        found = await asyncio.to_thread(_with_keys, self._behind(actor, plan))
        text = engine.configuration(plan, [back_end for back_end, _ in found])
        if self._written.get(instance.id) == text:
            return
        path = launching.directory(instance) / engine.configuration_file
        changed = await asyncio.to_thread(_replaced, path, text)
        self._written[instance.id] = text
        if changed:
            names = ", ".join(back_end.deployment for back_end, _ in found)
            message = f"forwards to {names}" if names else "has no deployment to forward to yet"
            actor.journal.event("GatewayConfigured", message, Severity.INFO)
            actor.post(m.Woken())  # so that it is written

    def _behind(self, gateway: Actor, plan: Plan) -> list[tuple[BackEnd, Actor]]:
        """What the gateway forwards to, in order."""
        names = plan.variant.source.partition(":")[2]
        actors = sorted(self._registry, key=lambda actor: actor.name)
        if names != ALL:
            by_name = {actor.name: actor for actor in actors}
            actors = [by_name[name] for name in names.split(",") if name in by_name]
        host = self._services.config.policy.bind
        return [
            (BackEnd(actor.name, actor.spec.served_name or actor.name, _url(host, actor.port), actor.spec.task.value),
             actor)
            for actor in actors if not is_gateway(actor) and actor is not gateway and _serves(actor)
        ]  # fmt: skip


def _serves(actor: Actor) -> bool:
    """Whether it is wanted, and was ready at some time."""
    if not actor.port or actor.record.desired is not Desired.RUN or actor.state.phase in _LEFT:
        return False
    runs = [run for run in (actor.instance, *actor.journal.older) if run is not None]
    return actor.state.phase is Phase.READY or any(run.ready_at is not None for run in runs)


def _url(host: str, port: int) -> str:
    """As the node itself reaches it."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"


def _with_keys(found: list[tuple[BackEnd, Actor]]) -> list[tuple[BackEnd, Actor]]:
    """With the API keys of those that have one. Reads files."""
    return [(replace(back_end, key=_key(actor)), actor) for back_end, actor in found]


def _key(actor: Actor) -> str:
    plan_json = actor.plan_json
    engine = Plan.from_json(plan_json).engine if plan_json else ""
    return launching.token(actor.spec, actor.services.engine(engine)) if engine else ""


def _replaced(path: Path, text: str) -> bool:
    """Whether the file did not say so already. It holds keys, so nobody else may read it."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    fresh = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)
    return True
