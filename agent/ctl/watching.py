"""Waiting for a deployment over the watch stream: no polling, and no end of patience.

A lost daemon is no end of a wait: engines outlive it, and so does what was asked for. The stream is opened
again until the wait's own deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Final

from agent.api.client import Client
from agent.ctl import rows
from agent.ctl.failures import DeploymentFailed, Timeout
from agent.ctl.values import short
from agent.errors import FailedPrecondition, NotFound, Unavailable
from agent.v1 import agent_pb2 as pb

RECONNECT_SECONDS: Final = 0.5  # a daemon restarts in 0.6 s; asking twice in that time is enough

Report = Callable[[pb.Deployment], None]


class Goal(StrEnum):
    READY = "ready"
    STOPPED = "stopped"
    DELETED = "deleted"
    FAILED = "failed"


def reached(goal: Goal, now: pb.Deployment, before: pb.Deployment | None = None) -> bool:
    """Whether `now` is what is waited for.

    `before` is the state that a change was asked in: as long as nothing moved, its READY or FAILED are answers
    to an older question. Raises `DeploymentFailed` or, where it is to be stopped, `FailedPrecondition` when READY is
    waited for and cannot come, and `NotFound` when the deployment was deleted meanwhile.
    """
    if before is not None and _unmoved(now, before):
        return False
    match goal, now.phase:
        case Goal.DELETED, pb.PHASE_DELETED:
            return True
        case _, pb.PHASE_DELETED:
            raise NotFound(f"deployment {short(now.name)} was deleted meanwhile")
        case Goal.READY, pb.PHASE_FAILED:
            raise DeploymentFailed(now)
        case Goal.READY, _ if now.desired == pb.DESIRED_STOP:
            raise _stopped(now)
        case Goal.READY, pb.PHASE_READY:
            return now.observed_generation >= now.generation  # else it is the old spec's engine that still serves
        case _:
            return rows.phase(now).lower() == goal


def wait_for(
    client: Client, name: str, goal: Goal, *, seconds: float, report: Report, before: pb.Deployment | None = None
) -> pb.Deployment | None:
    """Blocks until the goal is reached, and returns the deployment as it is then; None when it is gone for good.

    Raises as `reached`, and `Timeout`.
    """
    last: pb.Deployment | None = None
    try:
        for change in _changes(client, name, time.monotonic() + seconds):
            if change.HasField("deployment"):
                last = change.deployment
                report(last)
                if reached(goal, last, before):
                    return last
            elif change.HasField("synced"):
                client.get_deployment(name)  # it may be gone since before this (or the last) connection
    except NotFound:
        if goal is Goal.DELETED:
            return None
        raise
    except TimeoutError:
        pass
    raise _timeout(name, goal, seconds, last)


def follow(client: Client, name: str, *, events_only: bool = False) -> Iterator[pb.WatchResponse]:
    """Changes for ever; after a lost connection it goes on where it was, and what happened meanwhile is replayed."""
    return _changes(client, name, deadline=None, events_only=events_only)


def _changes(
    client: Client, name: str, deadline: float | None, *, events_only: bool = False
) -> Iterator[pb.WatchResponse]:
    """Raises `TimeoutError` at the deadline; `Unavailable` only when the very first connection fails."""
    token, connected = "", False
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        try:
            for change in client.watch(name, resume_token=token, events_only=events_only, timeout=left):
                connected, token = True, change.resume_token or token
                yield change
        except Unavailable:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError from None
            if not connected:
                raise
        time.sleep(RECONNECT_SECONDS if left is None else min(RECONNECT_SECONDS, left))


def _unmoved(now: pb.Deployment, before: pb.Deployment) -> bool:
    fields = ("uid", "observed_generation", "phase", "phase_time")
    same = all(getattr(now, field) == getattr(before, field) for field in fields)
    return same and now.instance.name == before.instance.name


def _stopped(now: pb.Deployment) -> FailedPrecondition:
    name = short(now.name)
    state = "is stopped" if now.phase == pb.PHASE_STOPPED else "is being stopped"
    return FailedPrecondition(
        f"deployment {name} {state}, and is ready only after a start", hint=f"`agentctl start {name}`"
    )


def _timeout(name: str, goal: Goal, seconds: float, last: pb.Deployment | None) -> Timeout:
    state = f"it is {rows.phase(last)}: {last.message or last.reason}" if last is not None else "its state is not known"
    hint = f"it goes on without you; agentctl wait {name} --for {goal} waits again"
    if last is not None and (failed := last.diagnosis).code and failed.message not in state:
        state += f"; before that {failed.code}: {failed.message}"
    if last is not None and last.diagnosis.hint:
        hint = f"{last.diagnosis.hint}; {hint}"
    return Timeout(f"deployment {name} is not {goal} after {round(seconds, 1):g} s; {state}", hint=hint)
