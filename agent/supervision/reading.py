"""Reading logs: what the API shows besides status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.errors import NotFound
from agent.frozen import frozen
from agent.runtimes import logs
from agent.store.records import InstanceRecord
from agent.supervision import launching
from agent.supervision.actor import Actor
from agent.supervision.registry import Registry
from agent.supervision.service import LogChunk
from agent.supervision.watchers import Watchers

#: How late whoever follows the log of a container sees a line (seconds).
GATHER_SECONDS = 0.5


def runs(actor: Actor) -> list[InstanceRecord]:
    """All recorded runs of a deployment, newest first."""
    present = [actor.instance] if actor.instance is not None else []
    return [*present, *reversed(actor.journal.older)]


def find_run(actor: Actor, instance: str, *, previous: bool) -> InstanceRecord | None:
    """The run that is meant; None: there is none yet. Raises `NotFound` for a named one that is not recorded."""
    records = runs(actor)
    if instance:
        for record in records:
            if record.id == instance:
                return record
        known = ", ".join(record.id for record in records) or "none"
        raise NotFound(f"deployment {actor.name!r} has no instance {instance!r}", hint=f"Recorded: {known}.")
    if previous:
        if len(records) < 2:
            raise NotFound(f"deployment {actor.name!r} has no previous instance", hint="Leave --previous out.")
        return records[1]
    return records[0] if records else None


@frozen
class LogQuery:
    """Which log, and how much of it (`tail_lines` as in the API: 0 is everything, -1 only what is new)."""

    instance: str
    previous: bool
    tail_lines: int
    follow: bool


async def stream_logs(
    registry: Registry, watchers: Watchers, deployment: str, query: LogQuery
) -> AsyncIterator[LogChunk]:
    """The log of a run; with `follow` also of those after it, until the deployment is deleted."""
    follow, tail_lines = query.follow, query.tail_lines
    actor = registry.get(deployment)
    record = find_run(actor, query.instance, previous=query.previous)
    if record is None and not follow:
        raise NotFound(f"deployment {deployment!r} has not started an instance yet", hint="Follow with -f, or wait.")
    wake = watchers.join()
    try:
        while True:
            wake.clear()
            if record is not None:
                ended = _ended(actor, record.id)
                chunks = logs.follow(launching.log_path(record), tail_lines=tail_lines, follow=follow, ended=ended)
                async with _gathered(actor, ended, follow=follow):
                    async for data in chunks:
                        yield LogChunk(record.id, data)
                tail_lines = 0  # of the runs that follow, everything
            if not follow or query.instance or query.previous or registry.find(deployment) is not actor:
                return
            newest = actor.instance
            if newest is None or (record is not None and newest.id == record.id):
                await wake.wait()
            else:
                record = newest
    finally:
        watchers.leave(wake)


@asynccontextmanager
async def _gathered(actor: Actor, ended: logs.Ended, *, follow: bool) -> AsyncIterator[None]:
    """Meanwhile the log has what the engine writes, also where that comes by way of a container engine."""
    if actor.handle is None or actor.handle.runtime == "process" or ended():
        yield
        return

    async def gather() -> None:
        while not ended():
            await asyncio.sleep(GATHER_SECONDS)
            await actor.gather_log()

    await actor.gather_log()
    if not follow:
        yield
        return
    task = asyncio.create_task(gather())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _ended(actor: Actor, instance: str) -> logs.Ended:
    def ended() -> bool:
        present = actor.instance
        return present is None or present.id != instance or present.ended_at is not None

    return ended
