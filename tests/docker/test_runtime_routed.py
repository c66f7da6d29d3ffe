"""The runtimes of a node as one, where one of its container engines is away, hangs, or cannot remove a container."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.runtimes.base import LaunchRequest
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.routed import FILE, Runtimes
from agent.settings import DaemonTuning
from agent.status import Condition, Event
from agent.supervision.conditions import Conditions
from agent.supervision.sweep import Sweep
from tests.docker.parts import Engine
from tests.docker.runtime_bench import ContainerBench, immovable, stopped
from tests.runtimes.contract import eventually

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(120),
    # The SDK leaves the socket of a refused connection to the garbage collector.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]

SLEEP = "echo ready; exec sleep 1000"


class Side(ContainerBench):
    """Launches by one of a node's container engines."""

    def request(self, *argv: str, **options: Any) -> LaunchRequest:
        request = super().request(*argv, **options)
        assert request.container is not None
        assert self.engine is not None
        return replace(request, container=replace(request.container, socket=str(self.engine.socket)))


def side(engine: Engine, root: Path, *used: str) -> Side:
    """`used`: the sockets of what ran instances before."""
    made = Side(None, root, None, image=engine.tools_image(), engine=engine)  # type: ignore[arg-type]
    (root / FILE).write_text("".join(f"{socket}\n" for socket in used))
    runtimes = Runtimes(made.node, ProcessRuntime(made.node), root)
    runtimes.tell = made.told
    made.runtime = runtimes
    return made


@pytest.fixture
async def docker_side(dockerd: Engine, tmp_path: Path) -> AsyncIterator[Side]:
    made = side(dockerd, tmp_path, str(tmp_path / "uninstalled.sock"), str(dockerd.socket))
    yield made
    await made.close()
    runtimes(made).close()


def runtimes(bench: ContainerBench) -> Runtimes:
    assert isinstance(bench.runtime, Runtimes)
    return bench.runtime


async def test_an_engine_that_is_away_and_runs_nothing_makes_no_bad_condition(docker_side: Side) -> None:
    await docker_side.runtime.find_all(docker_side.node)
    assert runtimes(docker_side).blind
    await eventually(lambda: len(docker_side.told.said) > 1)
    assert {status for status, *_ in docker_side.told.said} == {True}


async def test_an_engine_that_runs_something_is_told_of_though_another_was_used_last(
    docker_side: Side, podman_service: Engine
) -> None:
    told, dockerd = docker_side.told, docker_side.engine
    assert dockerd is not None
    running = await docker_side.sh(SLEEP)
    waiting = asyncio.create_task(docker_side.runtime.wait_exit(running.handle))
    other = replace(docker_side, image=podman_service.tools_image(), engine=podman_service)
    await other.exit(await other.sh("exit 0"))
    await eventually(lambda: bool(told.said) and str(podman_service.socket) in told.said[-1][2])

    with stopped(dockerd):
        await eventually(lambda: told.status is False)
        assert str(dockerd.socket) in told.said[-1][2]
    await eventually(lambda: told.status is True)

    await docker_side.runtime.kill(running.handle, signal.SIGKILL)
    await waiting
    await docker_side.runtime.forget(running.handle, running.directory)
    with stopped(dockerd):
        with pytest.raises(TimeoutError):
            await runtimes(docker_side).of("docker", running.handle).find_all(docker_side.node)
        before = len(told.said)
        await eventually(lambda: len(told.said) > before + 1)
        assert {status for status, *_ in told.said[before:]} == {True}


async def test_an_engine_without_a_container_of_ours_is_forgotten_by_the_next_agent_unless_it_was_used_last(
    docker_side: Side, podman_service: Engine
) -> None:
    noted = docker_side.root / FILE
    running = await docker_side.sh(SLEEP)
    other = replace(docker_side, image=podman_service.tools_image(), engine=podman_service)
    await other.sh(SLEEP)
    everyone = [docker_side.root / "uninstalled.sock", running.request.container.socket, podman_service.socket]  # type: ignore[union-attr]
    await docker_side.runtime.find_all(docker_side.node)
    assert noted.read_text().split() == [str(each) for each in everyone]

    await docker_side.runtime.kill(running.handle, signal.SIGKILL)
    await docker_side.exit(running)
    await docker_side.runtime.forget(running.handle, running.directory)
    await docker_side.runtime.find_all(docker_side.node)
    assert len(noted.read_text().split()) == 3  # a launch may be under way there
    again = Runtimes(docker_side.node, ProcessRuntime(docker_side.node), docker_side.root)
    for _ in range(2):
        await again.find_all(docker_side.node)
        # What does not answer may have one.
        assert noted.read_text().split() == [str(everyone[0]), str(everyone[2])]
    assert again.last_used == str(everyone[2])
    again.close()


@pytest.mark.parametrize("ended", [False, True], ids=["a stray", "remains"])
async def test_what_an_engine_cannot_remove_hides_no_stray(docker_side: Side, *, ended: bool) -> None:
    stray, stuck = await docker_side.sh(SLEEP), await docker_side.sh("exit 0")
    await docker_side.exit(stuck)
    tuning = DaemonTuning(sweep_min_age_seconds=0)
    services: Any = SimpleNamespace(
        config=SimpleNamespace(daemon=tuning), runtime=docker_side.runtime, node_uid=docker_side.node,
        instances=docker_side.root / "none",
    )  # fmt: skip
    events: list[Event] = []
    conditions = Conditions(events.append)
    sweep = Sweep(services, conditions, report_only=False)

    async def swept() -> Condition:
        await sweep.run(list, lambda: [stuck.identity.instance] * ended, events.append)
        return next(each for each in conditions.all() if each.type == "StraysAbsent")

    with immovable(docker_side.engine, stuck):
        first, second = await swept(), await swept()
        assert await docker_side.runtime.find_all(docker_side.node) == {stuck.identity: ()}
    assert stray.identity.instance in first.message
    assert [event.instance for event in events if event.reason == "StrayKilled"] == [stray.identity.instance]
    assert second.status is ended
    assert ended or f"{stuck.identity.instance} could not be: " in second.message
    await swept()
    assert await docker_side.runtime.find_all(docker_side.node) == {}
