"""The container of a run that ended is started again for the next run, if it is what would be made now."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.runtimes.base import AGAIN, Adopted, Ended, Handle, LaunchError, LaunchRequest
from agent.runtimes.docker import DockerRuntime
from agent.runtimes.docker_config import NETWORK
from tests.docker.parts import Engine
from tests.docker.runtime_bench import ContainerBench
from tests.runtimes.contract import Running, eventually, nothing

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(120)]

SCRIPT = "echo ready; exec sleep 1000"


async def killed(bench: ContainerBench) -> Running:
    """A run that was ready, and has ended."""
    request = bench.request()
    assert request.container is not None
    argv = ("/bin/sh", "-c", SCRIPT)
    running = await bench.launch(replace(request, argv=argv, container=replace(request.container, mounts=())))
    await bench.said(running)
    await bench.runtime.kill(running.handle, signal.SIGKILL)
    assert (await bench.exit(running)).signal == signal.SIGKILL
    await bench.output(running)
    return running


def after(bench: ContainerBench, before: Running) -> LaunchRequest:
    """The same, for the next run."""
    fresh = bench.request()
    request = replace(before.request, identity=fresh.identity, again=before.handle)
    return replace(request, directory=fresh.directory, log=fresh.log)


def pending(handle: Handle) -> Handle:
    """As it is recorded with the intent."""
    return replace(handle, data={**handle.data, AGAIN: True})


def as_somebody(bench: ContainerBench, act: Callable[[Any], Any]) -> Any:
    assert bench.engine is not None
    with bench.engine.client() as api:
        return act(api)


async def test_it_is_another_run_of_the_same_container(bench: ContainerBench) -> None:
    before = await killed(bench)
    running = await bench.launch(after(bench, before))
    assert running.handle.data["id"] == before.handle.data["id"]
    assert running.handle.data["started"] != before.handle.data["started"]

    await bench.said(running)
    assert (before.output, running.output) == ("ready\n", "ready\n")
    assert bench.runtime.remarks(running.handle) == ()

    await bench.runtime.forget(before.handle, before.request.directory)
    assert len(await bench.runtime.survivors(running.handle)) == 2
    assert not before.request.directory.exists()
    await bench.runtime.kill(running.handle, signal.SIGTERM)
    assert (await bench.exit(running)).signal == signal.SIGTERM
    await bench.runtime.forget(running.handle, running.request.directory)
    assert await bench.runtime.find_all(bench.node) == {}


async def test_nothing_is_executed_where_the_intent_cannot_be_recorded(bench: ContainerBench) -> None:
    before = await killed(bench)

    async def refuse() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        await bench.runtime.launch(after(bench, before), refuse)
    assert await bench.runtime.find_all(bench.node) == {}


@pytest.mark.parametrize(
    "act",
    [
        lambda api, id: api.rename(id, f"mine-{uuid.uuid4().hex[:8]}"),
        lambda api, id: api.remove_container(id, force=True),
        lambda api, id: api.start(id),
    ],
    ids=["renamed", "removed", "started"],
)
async def test_what_somebody_did_something_to_is_replaced_by_a_new_one_or_not_taken_over(
    bench: ContainerBench, act: Callable[[Any, str], Any]
) -> None:
    """What was seen of it last may be older: then the start is refused, and the next one makes a new container."""
    before = await killed(bench)
    as_somebody(bench, lambda api: act(api, before.handle.data["id"]))
    request = after(bench, before)
    try:
        handle = await bench.runtime.launch(request, nothing)
    except LaunchError:
        handle = await bench.runtime.launch(replace(request, again=None), nothing)
    found = as_somebody(bench, lambda api: api.inspect_container(handle.data["id"]))
    assert found["State"]["Running"]
    await bench.runtime.kill(handle, signal.SIGKILL)
    await bench.runtime.forget(handle, request.directory)
    await bench.runtime.forget(before.handle, before.request.directory)
    assert await bench.runtime.find_all(bench.node) == {}


async def test_a_run_that_is_to_be_another_gets_a_new_container(bench: ContainerBench) -> None:
    before = await killed(bench)
    request = replace(after(bench, before), environment={"PATH": "/bin", "SECRET": "changed"})
    running = await bench.launch(request)
    assert running.handle.data["id"] != before.handle.data["id"]
    await bench.said(running)


@pytest.mark.parametrize("anew", [False, True], ids=["removed", "made anew"])
async def test_its_network_may_be_gone_or_another_one(docker_bench: ContainerBench, anew: bool) -> None:
    """Another one: as the agent makes it anew after what a killed dockerd left there."""
    bench = docker_bench
    before = await killed(bench)
    as_somebody(bench, lambda api: api.remove_network(NETWORK))
    if anew:
        as_somebody(bench, lambda api: api.create_network(NETWORK, driver="bridge", enable_ipv6=False))

    running = await bench.launch(after(bench, before))

    await bench.said(running)
    found = as_somebody(bench, lambda api: api.inspect_container(running.handle.data["id"]))
    (network,) = as_somebody(bench, lambda api: api.networks(names=[NETWORK]))
    assert found["NetworkSettings"]["Networks"][NETWORK]["NetworkID"] == network["Id"]


class Door:
    """A socket that leads to a container engine's. It passes on a request to make a container once it `closes`, and
    nothing comes back from then on until it is `closed` no more."""

    def __init__(self, path: Path, engine: Path) -> None:
        self.closes = self.closed = False
        self.path = path
        self._engine = str(engine)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._engine)
                threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.closed = self.closed or (self.closes and b"/containers/create" in data)
                while back and self.closed:
                    time.sleep(0.02)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


@pytest.fixture
def door(dockerd: Engine, root: Path) -> Iterator[Door]:
    made = Door(root / "door.sock", dockerd.socket)
    yield made
    made.close()
    made.path.unlink()


async def test_what_a_hanging_engine_makes_late_in_place_of_a_severed_one_is_removed(
    door: Door, docker_bench: ContainerBench
) -> None:
    bench = docker_bench
    bench.opened.append(DockerRuntime(bench.node, str(door.path), bench.told))
    bench.runtime = bench.opened[-1]
    before = await killed(bench)
    request = after(bench, before)
    as_somebody(bench, lambda api: api.remove_network(NETWORK))
    door.closes = True
    try:
        with pytest.raises(LaunchError, match="does not answer"):
            await bench.runtime.launch(request, nothing)
        made = {"label": f"llm-node-agent.instance={request.identity.instance}"}
        await eventually(lambda: bool(as_somebody(bench, lambda api: api.containers(all=True, filters=made))))
    finally:
        door.closes = door.closed = False
    await eventually(lambda: not as_somebody(bench, lambda api: api.containers(all=True, filters=made)))


async def test_an_agent_that_died_before_the_start_knows_that_it_never_was(bench: ContainerBench) -> None:
    before = await killed(bench)
    request = after(bench, before)
    later = bench.again()
    assert await later.adopt(request.identity, pending(before.handle), request.directory) is None
    await later.forget(pending(before.handle), request.directory)
    assert await later.find_all(bench.node) == {}


async def test_an_agent_that_died_after_the_start_finds_the_run(bench: ContainerBench) -> None:
    before = await killed(bench)
    running = await bench.launch(after(bench, before))
    later = bench.again()
    found = await later.adopt(running.identity, pending(before.handle), running.request.directory)
    assert found == Adopted(running.handle)

    await later.forget(before.handle, before.request.directory)
    assert len(await later.survivors(running.handle)) == 2
    await bench.runtime.kill(running.handle, signal.SIGKILL)
    await bench.exit(running)
    ended = await bench.again().adopt(running.identity, pending(before.handle), running.request.directory)
    assert isinstance(ended, Ended)
    assert ended.exit.signal == signal.SIGKILL


async def test_an_agent_that_died_after_a_new_one_was_made_instead_finds_that(bench: ContainerBench) -> None:
    before = await killed(bench)
    running = await bench.launch(replace(after(bench, before), environment={"A": "b"}))
    found = await bench.again().adopt(running.identity, pending(before.handle), running.request.directory)
    assert found == Adopted(running.handle)
