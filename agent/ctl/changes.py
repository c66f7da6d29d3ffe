"""Changes of deployments: asked once, and safe to ask again.

Each change carries a request id, so that a call that is repeated after a lost connection is carried out once.
"""

from __future__ import annotations

import uuid
from typing import Any

from agent.api.client import Client
from agent.ctl.values import short
from agent.ctl.watching import Goal, Report, wait_for
from agent.errors import NotFound
from agent.frozen import frozen
from agent.v1 import agent_pb2 as pb


@frozen
class Applied:
    """An answer to apply, with a state that is none: only what differs from `before` has come of the change."""

    answer: pb.ApplyDeploymentResponse
    before: pb.Deployment | None = None

    @property
    def name(self) -> str:
        return short(self.answer.deployment.name)

    @property
    def outcome(self) -> str:
        """`created`, `replaced` or `unchanged`."""
        return pb.ApplyDeploymentResponse.Outcome.Name(self.answer.outcome).removeprefix("OUTCOME_").lower()


def apply_one(client: Client, spec: dict[str, Any]) -> Applied:
    """The answer comes when the new spec was taken up: a failure that is seen from then on is its own."""
    return Applied(client.apply_deployment(spec, request_id=request_id()))


def wait_until_ready(client: Client, applied: Applied, *, seconds: float, report: Report) -> pb.Deployment:
    """The deployment once it is ready. Raises as `watching.reached`, and `Timeout`."""
    ready = wait_for(client, applied.name, Goal.READY, seconds=seconds, report=report, before=applied.before)
    assert ready is not None  # only a wait for its deletion ends without it
    return ready


def existing(client: Client, name: str) -> pb.Deployment | None:
    """The deployment as it is now, or None where there is none."""
    try:
        return client.get_deployment(name)
    except NotFound:
        return None


def request_id() -> str:
    return f"agentctl-{uuid.uuid4()}"
