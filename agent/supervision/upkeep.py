"""The node's periodic work, each kind in a loop of its own, so that a slow one delays no other.

`turned_at` is what the watchdog asks: the work loop is alive only if it came around lately, with a wake-up put into the
inbox of each actor. Whether they took it out is not asked: a step may wait for a slow container engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from agent.errors import AgentError
from agent.runtimes import logs
from agent.settings import LogPolicy
from agent.supervision import clock
from agent.supervision.node import Node
from agent.supervision.sweep import Sweep

log = structlog.get_logger(__name__)

#: Old events and answered request ids are thrown away this often (seconds).
PRUNE_PERIOD = 300.0
#: Seconds after which it is told that logs cannot be rotated: a copy of a few MiB takes far less.
ROTATE_PATIENCE = 60.0
#: No work comes round more often than this (seconds), whatever it says.
SHORTEST = 1.0
#: A fault in taking in what the devices' watcher says is tried again after this long (seconds).
WATCH_RETRY = 5.0
#: Disks fill slowly, and container engines seldom stop; whoever runs the doctor has them asked anew.
SURVEY_PERIOD = 300.0
#: Artifacts are in use for hours, and a pull that lacks room asks for it at once.
TEND_PERIOD = 300.0
#: The memory of instances moves slowly, and looking at it costs as much as probing: every third turn is enough.
USAGE_TURNS = 3
#: A repeated request is recognised for a day: longer than any client retries.
REQUEST_AGE = 86_400.0


class Upkeep:
    """Sampling, rotating logs, sweeping, pruning."""

    def __init__(self, node: Node, sweep: Sweep) -> None:
        self._node = node
        self._sweep = sweep
        self.turned_at = clock.now()
        self._turn = 0
        self._unrotated: dict[str, str] = {}  # logs that could not be rotated at the last turn -> why

    async def run(self) -> None:
        """Until cancelled."""
        tuning = self._node.settings.daemon
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(tuning.sample_seconds, self.sample))
            group.create_task(self._every(tuning.sample_seconds, self.rotate))
            group.create_task(self._every(tuning.sample_seconds, self._node.check_state))
            group.create_task(self._every(tuning.sweep_seconds, self.sweep))
            group.create_task(self._every(PRUNE_PERIOD, self.prune))
            group.create_task(self._every(SURVEY_PERIOD, self._node.hardware.survey))
            group.create_task(self._every(TEND_PERIOD, self._node.tend))
            group.create_task(self._watch_devices())

    async def _every(self, period: float, work: Callable[[], Awaitable[float | None]]) -> None:
        """Work may say after how many seconds there is reason for the next turn already."""
        while True:
            began, sooner = clock.now(), None
            try:
                sooner = await work()
            except (OSError, AgentError) as error:
                # The next turn tries again; what stays wrong shows as a condition.
                log.warning("upkeep failed", work=work.__name__, error=str(error))
            if sooner is None:
                await clock.beat(period, began)
            else:
                await asyncio.sleep(min(period, max(sooner, SHORTEST)))

    async def _watch_devices(self) -> None:
        while True:
            try:
                await self._node.device_registry.feed.run()
            except Exception:
                # Devices are then shown as unknown; engines and the API go on.
                log.exception("watching the devices failed")
            await asyncio.sleep(WATCH_RETRY)

    async def sample(self) -> None:
        """Memory of the node and of each instance, and the level-triggered tick of every actor."""
        self._node.hardware.sample_memory()
        self._node.check_devices()
        for actor in self._node.registry:
            actor.wake()
            if self._turn % USAGE_TURNS == 0:
                await actor.sample()
                actor.check_container()
            self._node.registry.touch(actor.name)
        self._turn += 1
        self.turned_at = clock.now()

    async def rotate(self) -> None:
        """Keep the logs of live instances within their size. A dead disk holds this loop up, and one thread: after a
        deadline the next one would hang beside it."""
        paths = [run.log_path for actor in self._node.registry if (run := actor.instance) and run.ended_at is None]
        turn = asyncio.create_task(asyncio.to_thread(_rotate, paths, self._node.settings.logs))
        await asyncio.wait((turn,), timeout=ROTATE_PATIENCE)
        if not turn.done():
            log.warning("logs are not rotated: their disk does not answer", seconds=ROTATE_PATIENCE)
        failed = await turn
        for path, why in failed.items():
            if self._unrotated.get(path) != why:
                log.warning("log not rotated", path=path, error=why)
        self._unrotated = failed

    async def sweep(self) -> float | None:
        node = self._node
        return await self._sweep.run(node.recorded_instances, node.ended_instances, node.announce)

    async def prune(self) -> None:
        tuning = self._node.settings.daemon
        await self._node.store.prune(events=tuning.event_history, request_age_seconds=REQUEST_AGE)


def _rotate(paths: Sequence[str], policy: LogPolicy) -> dict[str, str]:
    """Returns those that could not be, and why."""
    failed = {}
    for path in paths:
        try:
            logs.rotate(Path(path), policy.max_bytes, policy.files)
        except OSError as error:
            failed[path] = str(error)
    return failed
