"""Container engines that die, hang and vanish, and people who do things to containers behind the agent's back."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any, ClassVar

import pytest
from structlog.testing import capture_logs

from agent.runtimes.base import Adopted, Ended, LaunchError
from agent.runtimes.docker import DockerRuntime
from agent.runtimes.docker_engine import ASK_SECONDS
from agent.runtimes.docker_watch import LIST_SECONDS
from agent.status import ExitStatus
from tests.docker.conftest import running as engine_running
from tests.docker.parts import Docker
from tests.docker.runtime_bench import ContainerBench, Told, immovable, make, stopped
from tests.runtimes.contract import Running, eventually, nothing

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(120),
    # The SDK leaves the socket of a refused connection to the garbage collector.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]

NUMBERS = itertools.count()
SLEEP = "echo ready; exec sleep 1000"


def as_somebody(bench: ContainerBench, act: Callable[[Any], Any]) -> Any:
    assert bench.engine is not None
    with bench.engine.client() as api:
        return act(api)


async def remarked(bench: ContainerBench, running: Running, word: str) -> None:
    await eventually(lambda: any(word in remark for remark in bench.runtime.remarks(running.handle)))


@pytest.fixture
async def watched(bench: ContainerBench) -> AsyncIterator[tuple[Running, asyncio.Task[ExitStatus]]]:
    """An instance whose end is awaited, as the agent does."""
    running = await bench.sh(SLEEP)
    waiting = asyncio.create_task(bench.runtime.wait_exit(running.handle))
    yield running, waiting
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


Watched = tuple[Running, "asyncio.Task[ExitStatus]"]


# behind the agent's back


async def test_a_paused_container_is_told_and_can_be_killed(bench: ContainerBench, watched: Watched) -> None:
    running, waiting = watched
    as_somebody(bench, lambda api: api.pause(running.handle.data["id"]))
    await remarked(bench, running, "paused")
    assert not waiting.done()
    assert len(await bench.runtime.survivors(running.handle)) == 2

    await bench.runtime.kill(running.handle, signal.SIGKILL)

    async with asyncio.timeout(20):
        assert (await waiting).signal == signal.SIGKILL
    await bench.gone(running)


async def test_what_somebody_undoes_is_no_longer_told(bench: ContainerBench, watched: Watched) -> None:
    running, _ = watched
    id = running.handle.data["id"]
    as_somebody(bench, lambda api: api.pause(id))
    await remarked(bench, running, "paused")
    as_somebody(bench, lambda api: api.unpause(id))
    await eventually(lambda: bench.runtime.remarks(running.handle) == ())


async def test_a_paused_container_is_adopted_as_running(bench: ContainerBench, watched: Watched) -> None:
    running, _ = watched
    as_somebody(bench, lambda api: api.pause(running.handle.data["id"]))
    again = bench.again()
    assert await again.adopt(running.identity, running.handle, running.directory) == Adopted(running.handle)
    assert "paused" in again.remarks(running.handle)[0]


async def test_a_renamed_container_is_told_and_stays_ours(bench: ContainerBench, watched: Watched) -> None:
    running, _ = watched
    as_somebody(bench, lambda api: api.rename(running.handle.data["id"], f"mine-{bench.node[:8]}"))
    await remarked(bench, running, "renamed it from")
    assert await bench.again().adopt(running.identity, running.handle, running.directory) == Adopted(running.handle)
    assert running.identity in await bench.runtime.find_all(bench.node)


async def test_a_removed_container_has_ended(bench: ContainerBench, watched: Watched) -> None:
    running, waiting = watched
    as_somebody(bench, lambda api: api.remove_container(running.handle.data["id"], force=True))
    async with asyncio.timeout(20):
        assert (await waiting).signal in {signal.SIGKILL, signal.SIGTERM, None}  # podman stops it first
    assert await bench.runtime.survivors(running.handle) == ()


async def test_a_container_that_was_removed_while_no_agent_ran_ended_with_an_unknown_status(
    bench: ContainerBench,
) -> None:
    running = await bench.sh(SLEEP)
    as_somebody(bench, lambda api: api.remove_container(running.handle.data["id"], force=True))
    assert await bench.again().adopt(running.identity, running.handle, running.directory) == Ended(ExitStatus())


async def test_a_container_that_somebody_restarts_has_ended_and_what_runs_now_can_be_ended_too(
    bench: ContainerBench, watched: Watched
) -> None:
    running, waiting = watched
    as_somebody(bench, lambda api: api.restart(running.handle.data["id"], timeout=0))
    async with asyncio.timeout(20):
        assert await waiting
    assert await bench.runtime.survivors(running.handle)
    await bench.runtime.kill(running.handle, signal.SIGKILL)
    await bench.gone(running)


async def test_a_container_that_was_restarted_while_no_agent_ran_is_adopted_and_that_is_told(
    bench: ContainerBench,
) -> None:
    running = await bench.sh(SLEEP)
    as_somebody(bench, lambda api: api.restart(running.handle.data["id"], timeout=0))
    again = bench.again()
    adopted = await again.adopt(running.identity, running.handle, running.directory)
    assert isinstance(adopted, Adopted)
    assert adopted.handle.data["started"] != running.handle.data["started"]
    assert "restarted" in again.remarks(adopted.handle)[0]
    await again.kill(adopted.handle, signal.SIGKILL)
    async with asyncio.timeout(20):
        assert (await again.wait_exit(adopted.handle)).signal == signal.SIGKILL


async def test_another_restart_policy_is_told_and_does_not_bring_a_killed_container_back(
    docker_bench: ContainerBench,
) -> None:
    """podman 4 cannot change the policy of a container."""
    bench = docker_bench
    running = await bench.sh(SLEEP)
    waiting = asyncio.create_task(bench.runtime.wait_exit(running.handle))
    id = running.handle.data["id"]
    as_somebody(bench, lambda api: api.update_container(id, restart_policy={"Name": "always"}))
    await remarked(bench, running, "restart policy always")
    await bench.runtime.kill(running.handle, signal.SIGKILL)
    await waiting
    await bench.gone(running)
    await asyncio.sleep(0.5)  # Docker's own restart takes a tenth of that
    assert as_somebody(bench, lambda api: api.inspect_container(id)["State"]["Status"]) == "exited"


# the engine hangs


async def test_a_hanging_engine_holds_up_nobody_and_loses_nothing(bench: ContainerBench) -> None:
    assert bench.engine is not None
    running = await bench.sh(SLEEP)
    await eventually(lambda: bench.told.status is True)
    with stopped(bench.engine):
        again, began = bench.again(), time.monotonic()
        for _ in range(5):
            adopted = await again.adopt(running.identity, running.handle, running.directory)
            assert adopted == Adopted(running.handle)
        assert isinstance(await again.adopt(running.identity, None, running.directory), Adopted)
        assert time.monotonic() - began < 20  # one deadline, not one for each
        await eventually(lambda: bench.told.status is False)
        assert "does not answer" in bench.told.said[-1][2]
        waiting = asyncio.create_task(again.wait_exit(running.handle))
        request = bench.request("/bin/sh", "-c", "exit 0")
        with pytest.raises(LaunchError, match="does not answer"):
            await again.launch(request, nothing)
        assert len(await again.survivors(running.handle)) == 2
        assert await again.usage(running.handle) is not None
        assert not waiting.done()
    await eventually(lambda: bench.told.status is True)
    assert not waiting.done()
    await bench.runtime.kill(running.handle, signal.SIGKILL)
    async with asyncio.timeout(20):
        assert (await waiting).signal == signal.SIGKILL
    await eventually(lambda: found_only(bench, running))


async def found_only(bench: ContainerBench, running: Running) -> bool:
    return list(await bench.runtime.find_all(bench.node)) == [running.identity]


async def test_a_container_is_killed_and_seen_to_end_while_the_engine_hangs(bench: ContainerBench) -> None:
    assert bench.engine is not None
    running = await bench.sh(SLEEP)
    waiting = asyncio.create_task(bench.runtime.wait_exit(running.handle))
    await eventually(lambda: bench.told.status is True)
    with stopped(bench.engine):
        await bench.runtime.kill(running.handle, signal.SIGKILL)
        await bench.gone(running)
    async with asyncio.timeout(20):
        assert (await waiting).signal == signal.SIGKILL


async def test_what_a_hanging_engine_could_not_remove_is_removed_later(bench: ContainerBench) -> None:
    assert bench.engine is not None
    running = await bench.sh("exit 0")
    await bench.exit(running)
    with stopped(bench.engine):
        await bench.runtime.forget(running.handle, running.directory)
        assert not running.directory.exists()

    async def nothing_left() -> bool:
        try:
            return await bench.runtime.find_all(bench.node) == {}
        except TimeoutError:
            return False

    await eventually(nothing_left)


async def test_a_container_that_cannot_be_removed_makes_no_silent_engine(docker_bench: ContainerBench) -> None:
    """Its shim hangs, and each attempt with it; the engine answers everybody else."""
    bench = docker_bench
    stuck = await bench.sh(SLEEP)
    with shim_stopped(stuck):
        await bench.runtime.forget(stuck.handle, stuck.directory)
        before = len(bench.told.said)
        await asyncio.sleep(2 * (LIST_SECONDS + ASK_SECONDS))
        assert False not in {status for status, *_ in bench.told.said[before:]}
        assert len(bench.told.said) > before
        await bench.sh("echo others start")
    await eventually(lambda: is_gone(bench, stuck))


async def test_a_container_whose_removal_hangs_holds_up_no_other_removal(docker_bench: ContainerBench) -> None:
    bench = docker_bench
    assert bench.engine is not None
    stuck, *others = [await bench.sh(SLEEP) for _ in range(6)]
    await eventually(lambda: bench.told.status is True)
    with shim_stopped(stuck):
        with stopped(bench.engine):
            for each in (stuck, *others):
                await bench.runtime.forget(each.handle, each.directory)

        def left() -> int:
            of_ours = {"label": f"llm-node-agent.node={bench.node}"}
            return len(as_somebody(bench, lambda api: api.containers(all=True, filters=of_ours)))

        await eventually(lambda: left() == 1)
    await eventually(lambda: left() == 0)


async def test_a_container_that_the_engine_will_not_remove_is_told_of_once(docker_bench: ContainerBench) -> None:
    bench = docker_bench
    stuck = await bench.sh("exit 0")
    await bench.exit(stuck)
    with capture_logs() as logs, immovable(bench.engine, stuck):
        await bench.runtime.forget(stuck.handle, stuck.directory)
        before = len(bench.told.said)
        await eventually(lambda: len(bench.told.said) > before + 2)
        assert not await is_gone(bench, stuck)
        assert [each["event"] for each in logs].count("container not removed") == 1
    await eventually(lambda: is_gone(bench, stuck))


@contextmanager
def shim_stopped(running: Running) -> Iterator[None]:
    status = Path(f"/proc/{running.handle.data['pid']}/status").read_text()
    shim = int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))
    os.kill(shim, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(shim, signal.SIGCONT)


async def is_gone(bench: ContainerBench, running: Running) -> bool:
    return running.identity not in await bench.runtime.find_all(bench.node)


# the engine dies


@pytest.fixture(params=[True, False], ids=["live-restore", "no live-restore"])
async def mortal(request: Any, root: Path, tmp_path: Path) -> AsyncIterator[ContainerBench]:
    """A dockerd of its own, to be killed."""
    made = engine_running(Docker(root / f"mortal-{next(NUMBERS)}", *["--live-restore"] * request.param))
    engine = next(made)
    bench = make(engine, engine.tools_image(), tmp_path)
    yield bench
    await bench.close()
    next(made, None)


async def test_a_killed_dockerd_makes_a_red_condition_and_no_exit_is_missed(mortal: ContainerBench) -> None:
    """Without live-restore it ends the containers when it comes back; with it they go on, and are still ours."""
    engine = mortal.engine
    assert isinstance(engine, Docker)
    first, second = await mortal.sh(SLEEP), await mortal.sh(SLEEP)
    ends = [asyncio.create_task(mortal.runtime.wait_exit(each.handle)) for each in (first, second)]
    await eventually(lambda: mortal.told.status is True)

    engine.kill()
    await eventually(lambda: mortal.told.status is False)
    os.kill(first.handle.data["pid"], signal.SIGKILL)
    engine.start()
    await eventually(lambda: mortal.told.status is True)

    async with asyncio.timeout(30):
        assert (await ends[0]).signal in {signal.SIGKILL, None}
        if "--live-restore" in engine.options:
            assert await mortal.runtime.survivors(second.handle)
            assert await mortal.again().adopt(second.identity, second.handle, second.directory) == Adopted(
                second.handle
            )
            await mortal.runtime.kill(second.handle, signal.SIGKILL)
        await ends[1]
    await mortal.gone(second)
    assert (await mortal.exit(await mortal.sh("exit 3"))).code == 3


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_container_that_lost_its_network_is_none_that_serves(
    docker_bench: ContainerBench, *, recorded: bool
) -> None:
    """As those whose start dockerd was killed in: later they run, for ever unreachable."""
    bench = docker_bench
    running = await bench.sh(SLEEP)
    id = running.handle.data["id"]
    as_somebody(bench, lambda api: api.disconnect_container_from_network(id, "llm-node-agent", force=True))
    found = await bench.again().adopt(running.identity, running.handle if recorded else None, running.directory)

    assert found == (Ended(ExitStatus()) if recorded else None)
    assert await bench.runtime.find_all(bench.node) == {}


async def test_an_exit_is_known_even_if_the_engine_never_comes_back(mortal: ContainerBench) -> None:
    engine = mortal.engine
    assert engine is not None
    running = await mortal.sh(SLEEP)
    waiting = asyncio.create_task(mortal.runtime.wait_exit(running.handle))
    await asyncio.sleep(0.1)
    engine.kill()
    await mortal.runtime.kill(running.handle, signal.SIGKILL)
    await mortal.gone(running)
    async with asyncio.timeout(30):
        ended = await waiting
    engine.start()
    assert (ended.code, ended.signal) == (None, None)


async def test_a_missing_socket_is_told_and_nothing_waits_for_it(tmp_path: Path, bench: ContainerBench) -> None:
    told = Told()
    runtime = DockerRuntime(bench.node, str(tmp_path / "none.sock"), told)
    try:
        running = await bench.sh(SLEEP)
        with pytest.raises(LaunchError, match="there is no socket"):
            await runtime.launch(bench.request("/bin/sh", "-c", "exit 0"), nothing)
        assert await runtime.adopt(running.identity, running.handle, running.directory) == Adopted(running.handle)
        with pytest.raises(TimeoutError):
            await runtime.find_all(bench.node)
        await eventually(lambda: told.status is False)
    finally:
        runtime.close()


class Nonsense(BaseHTTPRequestHandler):
    """An engine whose events are none."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        pass


async def test_an_engine_that_talks_nonsense_ends_no_watch(tmp_path: Path) -> None:
    with ThreadingUnixStreamServer(str(tmp_path / "engine.sock"), Nonsense) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        runtime = DockerRuntime("node", str(tmp_path / "engine.sock"), Told())
        with capture_logs() as logs:
            assert await runtime.find_all("node") == {}
            await eventually(lambda: sum("/events" in path for path in Nonsense.asked) > 2)
        runtime.close()
        server.shutdown()
    assert [each["event"] for each in logs] == ["the container engine's events cannot be read"]


# adoption of many


async def test_twenty_containers_are_adopted_whatever_happened_to_some_of_them(docker_bench: ContainerBench) -> None:
    bench = docker_bench
    everyone = await asyncio.gather(*(bench.sh(SLEEP if number % 10 else "exit 7") for number in range(20)))
    for ended in everyone[::10]:
        await bench.exit(ended)
    again = bench.again()
    found: list[Awaitable[Any]] = [again.adopt(each.identity, each.handle, each.directory) for each in everyone]
    began = time.monotonic()
    adopted = [await each for each in found]
    print(f"{time.monotonic() - began:.3f} s for 20")
    for number, (running, how) in enumerate(zip(everyone, adopted, strict=True)):
        if number % 10:
            assert how == Adopted(running.handle)
        else:
            assert isinstance(how, Ended)
            assert how.exit.code == 7


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def left_behind(network: dict[str, Any]) -> Iterator[Path]:
    """What dockerd leaves when it is killed while it starts a container: a namespace on the network, with the address
    and the hardware address that the next container is given."""
    space, address = f"left{os.getpid()}", ipaddress.ip_network(network["IPAM"]["Config"][0]["Subnet"])
    first = address[2]  # behind the gateway
    run("ip", "netns", "add", space)
    try:
        run("ip", "link", "add", space, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "link", "set", space, "master", f"br-{network['Id'][:12]}", "up")
        for words in (
            f"link set eth0 address 02:42:{first.packed.hex(':')}",
            f"addr add {first}/{address.prefixlen} dev eth0",
            "link set eth0 up",
        ):
            run("ip", "-n", space, *words.split())
        yield Path("/sys/class/net", space, "master")
    finally:
        run("ip", "netns", "del", space)


@pytest.mark.parametrize("who", ["the next agent", "the same one"])
async def test_what_a_killed_engine_left_on_the_network_takes_nobodys_address(
    docker_bench: ContainerBench, who: str
) -> None:
    bench = docker_bench
    assert bench.engine is not None
    await bench.exit(await bench.launch(bench.request("/bin/sh", "-c", "true")))  # so there is the network
    (network,) = as_somebody(bench, lambda api: api.networks(names=["llm-node-agent"]))
    with left_behind(network) as connected:
        assert connected.exists()
        request = bench.request("/bin/sh", "-c", "")
        assert request.container is not None
        port = request.container.port
        served = replace(request, argv=("/bin/busybox", "httpd", "-f", "-p", str(port), "-h", "/"))
        if who == "the same one":
            bench.engine.kill()
            bench.engine.start()
        await (bench.runtime if who == "the same one" else bench.again()).launch(served, nothing)

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return client.recv(4) == b"HTTP"
            return False

        await eventually(answers)  # which may be soon or late with two of one address
        assert not connected.exists()
