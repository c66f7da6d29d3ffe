"""What an agent takes over from the one before it: called once for each deployment, before its actor starts.

Identity is checked by the runtime (pid and start time, boot, instance id), never guessed from a name. An engine
that runs is adopted as it is, with its last probe verdicts; one that ended meanwhile is accounted for as if the
agent had been there.
"""

from __future__ import annotations

from functools import partial

import structlog

from agent.runtimes.base import Adopted, Ended
from agent.status import Phase
from agent.store.records import InstanceRecord
from agent.supervision import clock, codec, launching
from agent.supervision import machine as m
from agent.supervision.actor import LIVE, Actor
from agent.supervision.machine import Action

log = structlog.get_logger(__name__)

#: Phases in which a process may exist, or may just have been created.
MAY_LIVE = LIVE | {Phase.STARTING}
#: Each look at processes that hangs costs a thread: the pauses between become this long (seconds).
HUNG_RETRY = 300.0


async def restore(actor: Actor, runs: list[InstanceRecord]) -> None:
    """Bring the actor to where the stored records and the host say it is. Raises `ValueError` for a damaged record."""
    same_boot = codec.same_boot(actor.record)
    actor.state = m.restored(actor.state, clock.now(), same_boot=same_boot)
    runs = sorted(runs, key=lambda run: run.attempt)
    current = next((run for run in runs if run.attempt == actor.state.attempt), None)
    actor.journal.older = [run for run in runs if run is not current]
    phase = actor.state.phase
    if current is not None:
        await _restore_run(actor, current, same_boot=same_boot)
    elif phase in MAY_LIVE:
        actor.post(m.NotLaunched() if phase is Phase.STARTING else m.Rebooted())
    if phase in {Phase.PLANNING, Phase.FETCHING}:
        actor.state = m.replanning(actor.state)
        await actor.perform(Action.PREPARE)


async def _restore_run(actor: Actor, run: InstanceRecord, *, same_boot: bool) -> None:
    actor.journal.instance = run
    actor.plan, actor.port, actor.handle = codec.plan(run), run.port, codec.handle(run)
    actor.granted, actor.verdicts = codec.granted(run), codec.verdicts(run)
    await actor.services.preparation.trust(actor.plan, run.created_at)
    if actor.state.phase not in MAY_LIVE:
        return
    if run.ended_at is not None:  # its end was recorded, but not yet what follows from it
        if actor.state.phase is Phase.STARTING:
            actor.post(m.NotLaunched())
        else:
            await actor.perform(Action.REAP)
    else:
        await _find(actor, run, same_boot=same_boot)


async def _find(actor: Actor, run: InstanceRecord, *, same_boot: bool) -> None:
    if run.runtime != "process":  # somebody is asked who may not answer, and neither the start nor others wait for that
        actor.enter(actor.state.phase)
        actor.look_for(partial(_ask, actor, run, same_boot=same_boot))
        return
    identity = launching.identity(actor.services.node_uid, run)
    try:
        found = await actor.services.runtime.adopt(identity, actor.handle, launching.directory(run))
    except OSError as error:  # a process hung in a driver can block the look at it, as dead storage can
        problem = str(error) or "the look at it does not end"
        log.warning("instance not found yet; the start goes on", deployment=actor.name, error=problem)
        actor.enter(actor.state.phase)
        actor.look_for(partial(_ask, actor, run, same_boot=same_boot), longest=HUNG_RETRY)
        return
    await _take(actor, run, found, same_boot=same_boot)


async def _ask(actor: Actor, run: InstanceRecord, *, same_boot: bool) -> None:
    """Until there is an answer, it stays as it was. Raises `OSError`."""
    services = actor.services
    identity = launching.identity(services.node_uid, run)
    found = await services.runtime.adopt_by(run.runtime, identity, actor.handle, launching.directory(run))
    if isinstance(found, Ended):
        await actor.gather_log()
    await _take(actor, run, found, same_boot=same_boot)


async def _take(actor: Actor, run: InstanceRecord, found: Adopted | Ended | None, *, same_boot: bool) -> None:
    services, phase = actor.services, actor.state.phase
    match found:
        case Adopted(handle):
            actor.handle = handle
            actor.journal.note(handle_json=codec.dump_handle(handle), started_at=run.started_at or clock.wall())
            what = f"pid {pid}" if (pid := services.runtime.main_pid(handle)) is not None else run.runtime
            actor.journal.event("Adopted", f"the agent restarted; engine adopted, {what}, still {phase.value}")
            actor.watch_exit(handle)
            await _resume(actor, phase)
        case Ended(exit) if same_boot:
            actor.on_exit(exit)
        case _ if phase is Phase.STARTING:
            actor.journal.note(ended_at=clock.wall())
            actor.post(m.NotLaunched())
        case _:
            actor.journal.note(ended_at=clock.wall())
            actor.post(m.Rebooted())


async def _resume(actor: Actor, phase: Phase) -> None:
    """Go on where the last agent was: probing, draining, or ending the engine."""
    actor.enter(phase)
    match phase:
        case Phase.STARTING:
            actor.post(m.Launched())
        case Phase.DRAINING:
            await actor.perform(Action.DRAIN)
        case Phase.STOPPING | Phase.STUCK:
            await actor.perform(Action.KILL if actor.state.kills else Action.TERM)
