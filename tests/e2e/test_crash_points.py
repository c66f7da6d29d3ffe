"""The daemon dies, or its disk refuses, at each point of the way from an intent to a recorded handle: never two
engines, never a lost one, and the history tells what happened."""

from __future__ import annotations

import os
import signal

import pytest

from agent.errors import StoreError
from tests.harness import PHASE, Daemon, complete, wait_true

#: In the order in which a launch passes them; a process exists from the third on.
POINTS = ("before-intent", "after-intent", "after-spawn", "after-handle")
at_each_point = pytest.mark.parametrize("point", POINTS)


def arm(points: str) -> dict[str, str]:
    return {"AGENTD_FAILPOINTS": points}


def wait_dead(node: Daemon) -> None:
    assert node.process is not None
    assert node.process.wait(40) == -signal.SIGKILL


def assert_one_engine(node: Daemon, pid: int) -> None:
    """One server and its shim, and no other process of this node."""
    assert [process.pid for process in node.servers()] == [pid]
    assert len(node.engines()) == 2


def conditions(node: Daemon) -> dict[str, bool]:
    with node.client() as client:
        return {condition.type: condition.status == 1 for condition in client.get_node().conditions}


@at_each_point
def test_death_during_the_first_start_gives_exactly_one_engine(node: Daemon, point: str) -> None:
    node.start(environ=arm(f"{point}=kill")).apply()
    wait_dead(node)
    spawned = point in {"after-spawn", "after-handle"}
    shims = node.engines()
    assert bool(shims) == spawned
    node.start()
    ready = node.wait()
    assert_one_engine(node, ready.instance.pid)
    assert complete(ready.endpoint)["content"]
    # Before the intent nothing was recorded; after it the attempt is spent, and only what was created is adopted.
    assert ready.instance.attempt == (2 if point == "after-intent" else 1)
    assert ready.restarts == 0
    reasons = node.reasons()
    assert ("Adopted" in reasons) == spawned
    assert ("NotLaunched" in reasons) == (point == "after-intent")
    if spawned:
        assert shims[0].pid in {process.pid for process in node.engines()}


@at_each_point
def test_death_during_the_restart_after_a_crash_gives_exactly_one_engine(node: Daemon, point: str) -> None:
    node.start(environ=arm(f"{point}=kill@2")).apply()
    first = node.wait()
    os.kill(first.instance.pid, signal.SIGKILL)
    wait_dead(node)
    assert bool(node.engines()) == (point in {"after-spawn", "after-handle"})
    node.start()
    ready = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.instance.pid != first.instance.pid)
    assert_one_engine(node, ready.instance.pid)
    assert ready.instance.attempt == (3 if point == "after-intent" else 2)
    # One crash is one restart, however often the agent died over it.
    assert ready.restarts == 1
    with node.client() as client:
        runs = {run.attempt: run for run in client.list_instances("m")}
    assert (runs[1].exit.signal, runs[1].diagnosis.code) == (signal.SIGKILL, "killed")
    assert [attempt for attempt, run in runs.items() if run.live] == [ready.instance.attempt]
    assert node.reasons().count("EngineExited") == 1


def test_while_the_store_refuses_writes_nothing_changes_and_engines_serve(node: Daemon) -> None:
    node.start().apply()
    before = node.wait()
    node.kill()
    node.start(environ=arm("store-write=error"))
    refused = [
        lambda c: c.apply_deployment(node.spec(drain_seconds=1)),
        lambda c: c.apply_deployment(node.spec("other")),
        lambda c: c.stop_deployment("m"),
        lambda c: c.restart_deployment("m"),
        lambda c: c.delete_deployment("m"),
    ]
    with node.client() as client:
        for change in refused:
            with pytest.raises(StoreError):
                change(client)
        (after,) = client.list_deployments()
    assert (after.etag, PHASE[after.phase], after.instance.pid) == (before.etag, "ready", before.instance.pid)
    assert complete(before.endpoint)["content"]
    assert not conditions(node)["StateHealthy"]
    # A crash now: without a durable intent nothing may be started, and it is no failure of the engine.
    os.kill(before.instance.pid, signal.SIGKILL)
    waiting = node.wait(phase="backoff")
    assert waiting.diagnosis.code == "store_failed"
    assert node.engines() == []
    node.kill()
    node.start()
    healed = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.instance.pid != before.instance.pid)
    assert_one_engine(node, healed.instance.pid)
    assert healed.etag == before.etag
    assert conditions(node)["StateHealthy"]


# The writes in their order: 2 is the acceptance, 5 the intent, 6 the handle, 7 READY.
@pytest.mark.parametrize("nth", [2, 3, 5, 6, 7])
def test_one_refused_write_on_the_way_to_ready_is_answered_or_healed(node: Daemon, nth: int) -> None:
    """The write is either a change, which is refused whole, or the supervisor's own, which is made up for."""
    restart = {"initial_delay_seconds": 0.1, "jitter": 0.0}
    node.start(environ=arm(f"store-write=error@{nth}"))
    refused = False
    try:
        node.apply(restart=restart)
    except StoreError:
        refused = True
        with node.client() as client:
            assert client.list_deployments() == []
        node.apply(restart=restart)
    ready = node.wait()
    assert_one_engine(node, ready.instance.pid)
    assert refused or "fail point store-write" in node.log.read_text()
    wait_true(lambda: conditions(node)["StateHealthy"], what="the state is healthy again")
    node.kill()
    node.start()
    after = node.wait()
    assert (after.etag, after.instance.name, after.instance.pid) == (
        ready.etag, ready.instance.name, ready.instance.pid,
    )  # fmt: skip


@pytest.mark.parametrize("point", ["plan", "command"])
def test_a_fault_of_the_agent_is_an_attempt_that_failed_and_is_tried_again(node: Daemon, point: str) -> None:
    node.start(environ=arm(f"{point}=error@1")).apply()
    waiting = node.wait(phase="backoff")
    assert waiting.diagnosis.code == "agent_failed"
    assert "the agent's log" in waiting.diagnosis.hint
    assert_one_engine(node, node.wait().instance.pid)
