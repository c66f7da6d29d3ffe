"""Probes one running instance and posts what it sees; it decides nothing.

Three kinds of loops: until the startup probe passes; then health (readiness and liveness, one request when
they are the same); then a real inference, only while the engine is idle, or has requests and no progress with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from agent.engines.base import Activity, Engine, HttpReply, HttpRequest
from agent.engines.measured import measured
from agent.frozen import frozen
from agent.planning.plan import Plan
from agent.runtimes.base import Usage
from agent.spec import Probes
from agent.status import Granted, ProbeKind, Verdict
from agent.supervision import clock
from agent.supervision.http import request
from agent.supervision.machine import LoadMoved, Observation, Probed

#: While loading, progress is looked at this often (seconds): enough for a progress bar, little against the load.
PROGRESS_PERIOD = 1.0
#: A startup probe waits this long (seconds): a loading engine answers at once or not at all.
STARTUP_TIMEOUT = 5.0
#: The first pause between startup probes (seconds), and how many times the one before each is, up to the period: so the
#: end of a short load is noticed late by a third of it at most.
FIRST_PAUSE, LONGER = 0.02, 1.3


@frozen
class Target:
    """Where and what to probe. `token` is the engine's API key, kept in memory only."""

    engine: Engine
    plan: Plan
    probes: Probes
    host: str
    port: int
    token: str = ""


class Prober:
    """The probe loops of one instance. Cancel its task to end them."""

    def __init__(
        self,
        target: Target,
        *,
        post: Callable[[Observation], None],
        usage: Callable[[], Awaitable[Usage | None]],
        loaded: Callable[[int], None],
        granted: Callable[[Granted], None],
        measured: Callable[[Mapping[str, float]], None],
    ) -> None:
        self._target = target
        self._post = post
        self._usage = usage
        self._loaded = loaded
        self._granted = granted
        self._measured = measured

    async def run(self, *, started: bool) -> None:
        """Probe for ever. `started`: the startup probe passed before (an adopted instance)."""
        if not started:
            await self._startup()
        async with asyncio.TaskGroup() as group:
            for loop in self._serving_loops():
                group.create_task(loop)

    async def _ask(self, what: HttpRequest, timeout: float) -> HttpReply:
        target = self._target
        return await request(target.host, target.port, what, timeout=timeout, token=target.token)

    # Startup

    async def _startup(self) -> None:
        target = self._target
        probe, period = target.engine.startup_probe(target.plan), target.probes.startup.period_seconds
        detail = ""
        async with asyncio.TaskGroup() as group:
            progress = group.create_task(self._watch_progress())
            pause = min(FIRST_PAUSE, period)
            while True:
                reply = await self._ask(probe, STARTUP_TIMEOUT)
                problem = await self._confirm(reply)
                if problem is None:
                    break
                if problem != detail:
                    detail = problem
                    self._post(Probed(ProbeKind.STARTUP, Verdict.UNKNOWN, detail))
                await asyncio.sleep(pause)
                pause = min(pause * LONGER, period)
            progress.cancel()
        self._post(Probed(ProbeKind.STARTUP, Verdict.PASS))

    async def _confirm(self, reply: HttpReply) -> str | None:
        """None when the engine is up, is *our* engine, and said what it grants; otherwise what is in the way."""
        if self._target.engine.loading(reply):
            return "loading"
        if reply.status != 200:
            return f"HTTP {reply.status}: {reply.body[:200]}"
        engine, plan = self._target.engine, self._target.plan
        replies = [await self._ask(what, STARTUP_TIMEOUT) for what in engine.granted_requests(plan)]
        granted = engine.parse_granted(replies)
        if granted.model and granted.model != plan.model_name:
            return f"port {self._target.port} is answered by a server of model {granted.model!r}, which is not this one"
        self._granted(granted)
        return None

    async def _watch_progress(self) -> None:
        seen = -1
        while True:
            usage = await self._usage()
            if usage is not None:
                # Mapped weights are never read(): they show as resident memory instead.
                loaded = max(usage.read_bytes, usage.memory_bytes)
                if loaded > seen:
                    seen = loaded
                    self._loaded(loaded)
                    self._post(LoadMoved())
            await asyncio.sleep(PROGRESS_PERIOD)

    # Serving

    def _serving_loops(self) -> list[Coroutine[Any, Any, None]]:
        target = self._target
        probes, plan, engine = target.probes, target.plan, target.engine
        ready, live = engine.readiness_probe(plan), engine.liveness_probe(plan)
        if ready == live:
            kinds = (ProbeKind.READINESS, ProbeKind.LIVENESS)
            period = min(probes.readiness.period_seconds, probes.liveness.period_seconds)
            timeout = max(probes.readiness.timeout_seconds, probes.liveness.timeout_seconds)
            loops = [self._health(ready, kinds, period, timeout)]
        else:
            loops = [
                self._health(ready, (ProbeKind.READINESS,), probes.readiness.period_seconds,
                             probes.readiness.timeout_seconds),
                self._health(live, (ProbeKind.LIVENESS,), probes.liveness.period_seconds,
                             probes.liveness.timeout_seconds),
            ]  # fmt: skip
        if probes.inference.enabled:
            loops.append(self._inference())
        return loops

    async def _health(self, what: HttpRequest, kinds: tuple[ProbeKind, ...], period: float, timeout: float) -> None:
        while True:
            began = clock.now()
            reply = await self._ask(what, timeout)
            verdict = Verdict.PASS if reply.status == 200 else Verdict.FAIL
            detail = "" if verdict is Verdict.PASS else f"HTTP {reply.status}: {reply.body[:200]}"
            self._post(Probed(kinds[0], verdict, detail, also=kinds[1:]))
            await clock.beat(period, began)

    async def _inference(self) -> None:
        """One token for real, so that an engine whose health answers while generation hangs is found out."""
        settings, work = self._target.probes.inference, None
        idle_since = stalled_since = clock.now()
        while True:
            await clock.beat(settings.period_seconds, clock.now())
            activity = await self._activity()
            if activity is None:
                continue
            busy, moved, now = bool(activity.running or activity.waiting), activity.work != work, clock.now()
            work = activity.work
            if busy or moved:
                idle_since = now
            if moved or not busy:
                stalled_since = now
            stalled = now - stalled_since >= settings.stall_seconds
            if now - idle_since < settings.idle_seconds and not stalled:
                continue
            reply = await self._ask(
                self._target.engine.inference_probe(self._target.plan), timeout=settings.timeout_seconds
            )
            passed = reply.status == 200
            after = await self._activity()
            moved = after is not None and after.work != work
            work = after.work if after is not None else None  # the probe's own token is no client's work
            if passed:
                stalled_since = clock.now()
            elif after is not None and (after.running or 0) + (after.waiting or 0) > 1 and (moved or not stalled):
                continue  # clients came meanwhile and were served first: that is no hang
            else:  # what it was asked just now may be counted as in flight for ever
                stalled_since = clock.now() - settings.stall_seconds
            detail = "" if passed else f"HTTP {reply.status}: {reply.body[:200]}"
            self._post(Probed(ProbeKind.INFERENCE, Verdict.PASS if passed else Verdict.FAIL, detail))

    async def _activity(self) -> Activity | None:
        reply = await self._ask(self._target.engine.activity_request(self._target.plan), STARTUP_TIMEOUT)
        if reply.status != 200:
            return None
        engine = self._target.engine
        if values := measured(engine.metrics, reply.body):
            self._measured(values)
        return engine.parse_activity(reply.body)

    async def drained(self) -> None:
        """Return once no request is in flight; at once for an engine that does not say."""
        while True:
            activity = await self._activity()
            if activity is None or not (activity.running or activity.waiting):
                return
            await asyncio.sleep(0.25)
