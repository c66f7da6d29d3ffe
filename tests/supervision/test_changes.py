"""Changes that come at the instant at which a deployment's deletion ends."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agent.errors import NotFound, Unavailable
from agent.status import Phase
from agent.supervision.actor import Actor
from agent.supervision.node import Node
from tests.harness import PATIENCE, Daemon

Ask = Callable[[], Coroutine[Any, Any, object]]


@pytest.fixture
def spec(node: Daemon) -> dict[str, Any]:
    return node.spec("m", environment={"MODE": "never"})


async def applied(inside: Node, spec: dict[str, Any], request_id: str = "") -> str:
    return (await inside.apply(spec, etag="", request_id=request_id, validate_only=False)).outcome


async def deleted(inside: Node, request_id: str = "") -> Phase:
    return (await inside.delete("m", etag="", request_id=request_id, allow_missing=True)).phase


async def while_it_is_dropped(inside: Node, spec: dict[str, Any], ask: Ask) -> tuple[Actor, object]:
    """Delete the deployment, and ask while its actor waits until its records are dropped; with the answer."""
    await applied(inside, spec)
    actor = inside.registry.get("m")
    async with asyncio.timeout(PATIENCE):
        while actor.state.phase is not Phase.LOADING:
            await asyncio.sleep(0.01)
        await deleted(inside)
        while actor.state.phase is not Phase.DELETED:
            await asyncio.sleep(0)
        with contextlib.closing(sqlite3.connect(inside.settings.directories.state / "agent.db")) as other:
            other.execute("BEGIN IMMEDIATE")  # nobody else writes now: the actor tidies up, and waits for the store
            await asyncio.sleep(0.5)
            asked = asyncio.create_task(ask())
            await asyncio.sleep(0.1)
            assert inside.registry.find("m") is actor
        return actor, await asked


@pytest.mark.parametrize("request_id", ["", "an-id"], ids=["without-id", "with-id"])
async def test_what_is_applied_as_a_deletion_ends_is_created(
    inside: Node, spec: dict[str, Any], request_id: str
) -> None:
    before, outcome = await while_it_is_dropped(inside, spec, lambda: applied(inside, spec, request_id))

    assert outcome == "created"
    assert inside.registry.get("m") is not before
    await deleted(inside)  # the name is not blocked


@pytest.mark.parametrize("request_id", ["", "an-id"], ids=["without-id", "with-id"])
async def test_what_is_deleted_again_as_its_deletion_ends_is_deleted(
    inside: Node, spec: dict[str, Any], request_id: str
) -> None:
    _, phase = await while_it_is_dropped(inside, spec, lambda: deleted(inside, request_id))
    assert phase is Phase.DELETED


async def ask(actor: Actor) -> None:
    async with asyncio.timeout(PATIENCE):
        await actor.update(lambda record: (record, ()))


async def test_who_asks_an_actor_that_has_ended_gets_an_answer(inside: Node, spec: dict[str, Any]) -> None:
    actor, _ = await while_it_is_dropped(inside, spec, lambda: asyncio.sleep(0))
    async with asyncio.timeout(PATIENCE):
        while inside.registry.find("m") is actor:
            await asyncio.sleep(0.01)

    with pytest.raises(NotFound, match="'m' was deleted"):
        await ask(actor)


async def test_who_asks_while_the_agent_stops_is_not_told_that_it_is_gone(inside: Node, spec: dict[str, Any]) -> None:
    await applied(inside, spec)
    await inside.close()
    with pytest.raises(Unavailable, match="the agent stops"):
        await deleted(inside)
