"""What containers are made of, which launches are refused, and what is seen of them while they run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from docker.types import IPAMConfig, IPAMPool

from agent.runtimes.base import Adopted, Ended, LaunchError, LaunchRequest, Mount
from tests.docker.parts import MIB, Podman
from tests.docker.runtime_bench import ContainerBench
from tests.runtimes.contract import Running, eventually, nothing

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(120)]

#: Limits as high as they may be on a machine where even root cannot raise them; podman wants to be told of both.
ULIMITS = {"nofile": 1024, "nproc": 1024}


def changed(request: LaunchRequest, **container: Any) -> LaunchRequest:
    assert request.container is not None
    return replace(request, container=replace(request.container, **container))


def inspected(bench: ContainerBench, running: Running) -> dict[str, Any]:
    assert bench.engine is not None
    with bench.engine.client() as api:
        found: dict[str, Any] = api.inspect_container(running.handle.data["id"])
    return found


async def test_a_container_is_made_with_everything_that_was_asked_and_nothing_that_was_not(
    bench: ContainerBench, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir(mode=0o755)
    (weights / "model.gguf").write_text("GGUF")
    request = changed(
        bench.request("/bin/sh", "-c", "sleep 1000", memory_bytes=64 * MIB, cpus=0.5, pids=64),
        mounts=(Mount(str(weights), "/models"),),
        shm_bytes=32 * MIB,
        ulimits=ULIMITS,
        read_only_root=True,
        user="4711:4712",
        stop_signal=signal.SIGINT,
    )
    running = await bench.launch(replace(request, argv=("/bin/sleep", "1000")))
    found, container = inspected(bench, running), request.container
    host, config = found["HostConfig"], found["Config"]
    podman = isinstance(bench.engine, Podman)

    assert (host["RestartPolicy"]["Name"], host["Init"], host["Privileged"]) == ("no", True, False)
    assert {"no-new-privileges", "label=disable"} <= set(host["SecurityOpt"])
    assert not host["CapAdd"]
    status = Path(f"/proc/{bench.runtime.main_pid(running.handle)}/status").read_text()
    assert {line.split()[1] for line in status.splitlines() if line.startswith("Cap")} == {"0" * 16}
    assert "NoNewPrivs:\t1" in status
    assert "Uid:\t4711\t4711" in status
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (64 * MIB, 64 * MIB, 500_000_000)
    assert (host["PidsLimit"], host["ShmSize"], host["ReadonlyRootfs"]) == (64, 32 * MIB, True)
    assert host["IpcMode"] != "host"
    assert {each["Name"].removeprefix("RLIMIT_").lower(): each["Soft"] for each in host["Ulimits"]} == ULIMITS
    assert container is not None
    assert host["PortBindings"] == {f"{container.port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(container.port)}]}
    assert [(each["Source"], each["Destination"], each["RW"]) for each in found["Mounts"]] == [
        (str(weights), "/models", False)
    ]
    assert list(found["NetworkSettings"]["Networks"]) == ["llm-node-agent"]
    assert config["StopSignal"] in {"SIGINT", "2"}
    assert config["Labels"] == {
        "llm-node-agent.node": bench.node,
        "llm-node-agent.deployment": "chat",
        "llm-node-agent.generation": "7",
        "llm-node-agent.attempt": str(running.identity.attempt),
        "llm-node-agent.instance": running.identity.instance,
        "llm-node-agent.config": running.handle.data["config"],
    }
    if podman:
        assert "0.0.0.0" not in json.dumps(found["NetworkSettings"]["Ports"])
    else:
        options = {"Type": "json-file", "Config": {"max-size": str(16 * MIB), "max-file": "2"}}
        assert host["LogConfig"] == options
    assert set(bench.runtime.enforcement(running.handle)) == {
        "memory limit 64 MiB", "CPU limit 0.5 cores", "process limit 64"
    }  # fmt: skip


async def test_the_network_of_engines_has_no_ipv6(bench: ContainerBench) -> None:
    await bench.sh("exit 0")
    assert bench.engine is not None
    with bench.engine.client() as api:
        (network,) = [each for each in api.networks() if each["Name"] == "llm-node-agent"]
    assert network["EnableIPv6"] is False
    assert network["Labels"] == {"llm-node-agent": "network"}


async def test_who_wants_ipv6_makes_the_network_and_it_is_used_as_it_is(bench: ContainerBench) -> None:
    assert bench.engine is not None
    bench.engine.clear()
    subnets = IPAMConfig(pool_configs=[IPAMPool(subnet="10.147.11.0/24"), IPAMPool(subnet="fd00:4711::/64")])
    with bench.engine.client() as api:
        api.create_network("llm-node-agent", driver="bridge", enable_ipv6=True, ipam=subnets)
        try:
            running = await bench.launch(replace(bench.request("/bin/sleep", "1000"), argv=("/bin/sleep", "1000")))
            (joined,) = inspected(bench, running)["NetworkSettings"]["Networks"].values()
            assert joined["GlobalIPv6Address"].startswith("fd00:4711::")
            assert [each["Name"] for each in api.networks()].count("llm-node-agent") == 1
        finally:
            bench.engine.clear()


async def test_a_network_that_somebody_removed_is_made_again(bench: ContainerBench) -> None:
    running = await bench.sh("exit 0")
    await bench.exit(running)
    await bench.runtime.forget(running.handle, running.directory)
    assert bench.engine is not None
    with bench.engine.client() as api:
        api.remove_network("llm-node-agent")

    assert (await bench.exit(await bench.sh("exit 3"))).code == 3


async def test_launches_at_once_on_an_engine_without_the_network_make_one(docker_bench: ContainerBench) -> None:
    bench = docker_bench
    assert bench.engine is not None
    bench.engine.clear()
    running = await asyncio.gather(*(bench.sh("exit 3") for _ in range(4)))
    assert [status.code for status in await asyncio.gather(*map(bench.exit, running))] == [3] * 4
    with bench.engine.client() as api:
        assert [each["Name"] for each in api.networks()].count("llm-node-agent") == 1


async def test_with_a_read_only_root_only_tmp_can_be_written(bench: ContainerBench) -> None:
    request = changed(bench.request("/bin/sh", "-c", ""), read_only_root=True, mounts=())
    running = await bench.launch(
        replace(request, argv=("/bin/sh", "-c", "touch /etc-file; touch /tmp/file && echo ok"))
    )
    await bench.exit(running)
    output = await bench.output(running)
    assert "Read-only file system" in output
    assert "ok\n" in output


async def test_an_image_keeps_its_own_entry_point_where_that_is_wanted(bench: ContainerBench) -> None:
    assert bench.engine is not None
    with bench.engine.client() as api:
        base = api.create_container(bench.image, "/bin/true")["Id"]
        image = api.commit(base, changes=['ENTRYPOINT ["/bin/echo", "from the image:"]'])["Id"]
        api.remove_container(base)
    image = image if image.startswith("sha256:") else f"sha256:{image}"

    running = await bench.launch(changed(bench.request("and from us"), image=image, own_entrypoint=True))

    await bench.exit(running)
    assert await bench.output(running) == "from the image: and from us\n"


async def test_an_image_does_not_judge_the_health_of_what_runs_in_it(bench: ContainerBench) -> None:
    """llama.cpp's asks at port 8080, whatever port the engine was given."""
    assert bench.engine is not None
    check = {"Test": ["CMD", "/bin/false"], "Interval": 10**9, "Retries": 1}
    with bench.engine.client() as api:
        base = api.create_container(bench.image, "/bin/true")["Id"]
        image = api.commit(base, conf={"Healthcheck": check})["Id"]
        api.remove_container(base)
        image = image if image.startswith("sha256:") else f"sha256:{image}"
        if not isinstance(bench.engine, Podman):  # which takes no such setting with a commit
            assert api.inspect_image(image)["Config"]["Healthcheck"] == check

    running = await bench.launch(changed(bench.request("/bin/sh", "-c", "sleep 1000"), image=image))

    assert not (inspected(bench, running)["State"].get("Health") or {}).get("Status")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": f"sha256:{'1' * 64}"}, "the image sha256:1+ is gone from the container engine"),
        (
            {"mounts": (Mount("/no/such/folder", "/models"),)},
            "/no/such/folder, to be mounted at /models, is not on this host",
        ),
        ({"gpus": ("GPU-4711",)}, "no nvidia runtime|gives no NVIDIA device|no CDI specification .* GPU-4711"),
        ({"device_files": ("/dev/no-such-device",)}, "/dev/no-such-device, .* is not on this host"),
        ({"address": "192.0.2.1"}, "this host has no address 192.0.2.1"),
    ],
)
async def test_a_refused_launch_says_why_and_leaves_nothing(
    bench: ContainerBench, change: dict[str, Any], message: str
) -> None:
    request = changed(bench.request("/bin/sh", "-c", "exit 0"), **change)

    with pytest.raises(LaunchError, match=message):
        await bench.runtime.launch(request, nothing)

    assert await bench.runtime.find_all(bench.node) == {}


async def test_a_port_that_is_taken_is_named(bench: ContainerBench) -> None:
    request = bench.request("/bin/sh", "-c", "exit 0")
    assert request.container is not None
    taken = f"port {request.container.port} of 127.0.0.1 is taken"
    with socket.create_server(("127.0.0.1", request.container.port)), pytest.raises(LaunchError, match=taken):
        await bench.runtime.launch(request, nothing)
    assert await bench.runtime.find_all(bench.node) == {}


async def test_a_name_that_is_taken_is_said_and_what_has_it_is_left_alone(bench: ContainerBench) -> None:
    request = bench.request("/bin/sh", "-c", "exit 0")
    assert bench.engine is not None
    with bench.engine.client() as api:
        theirs = api.create_container(bench.image, "/bin/true", name=request.identity.instance)["Id"]
        with pytest.raises(LaunchError, match="another container has the name"):
            await bench.runtime.launch(request, nothing)
        assert api.inspect_container(theirs)["Id"] == theirs
        api.remove_container(theirs)


async def test_a_replacement_answers_at_the_port_of_an_instance_that_has_just_died(bench: ContainerBench) -> None:
    """podman takes the network of a dead container down later, and would take the port from its successor."""
    request = bench.request("/bin/sh", "-c", "")
    assert request.container is not None
    port = request.container.port
    serve = f"exec busybox nc -ll -p {port} -e /bin/echo served"
    for _ in range(bench.repeats):
        running = await bench.launch(changed(bench.request("/bin/sh", "-c", serve), port=port))
        await eventually(lambda: answers(port))
        await bench.runtime.kill(running.handle, signal.SIGKILL)
        await bench.exit(running)


async def answers(port: int) -> bool:
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            said = await reader.read()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return said == b"served\n"


async def test_output_is_gathered_once_whoever_asks(bench: ContainerBench) -> None:
    script = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; echo ready; exec sleep 1000"
    running = await bench.sh(script)
    await bench.said(running)
    again = bench.again()
    await again.gather_log(running.handle, running.request.log)
    await bench.runtime.gather_log(running.handle, running.request.log)

    assert running.output.splitlines() == [*(f"line {number}" for number in range(200)), "ready"]


async def test_an_agent_that_died_between_log_and_note_neither_loses_nor_repeats_lines(bench: ContainerBench) -> None:
    running = await bench.sh("echo one; echo two; echo ready; while [ ! -e gate ]; do sleep 0.01; done; echo three")
    await bench.said(running)
    note = running.directory / "log.json"
    before = note.read_text()
    (running.directory / "gate").touch()
    await bench.exit(running)
    assert await bench.output(running) == "one\ntwo\nready\nthree\n"
    note.write_text(before)  # as if the agent had died before it wrote this

    await bench.again().gather_log(running.handle, running.request.log)

    assert running.output == "one\ntwo\nready\nthree\n"


async def test_output_after_the_clock_was_set_back_is_neither_lost_nor_repeated(bench: ContainerBench) -> None:
    gates = "for gate in two three; do while [ ! -e $gate ]; do sleep 0.01; done; echo $gate; done"
    running = await bench.sh(f"echo one; echo ready; {gates}")
    found = inspected(bench, running)
    kept = Path(found["LogPath"] or found["HostConfig"]["LogConfig"]["Path"])
    await eventually(lambda: b"ready" in kept.read_bytes())
    year = time.gmtime().tm_year
    with kept.open("r+b") as file:  # as if all of it had been written a year later
        ahead = file.read().replace(b"%d-" % year, b"%d-" % (year + 1))
        file.seek(0)
        file.write(ahead)
    assert await bench.output(running) == "one\nready\n"

    (running.directory / "two").touch()
    await bench.said(running, "two")
    (running.directory / "three").touch()
    await bench.exit(running)
    for _ in range(2):
        assert await bench.output(running) == "one\nready\ntwo\nthree\n"


async def test_lines_longer_than_the_engine_keeps_in_one_piece_come_whole(bench: ContainerBench) -> None:
    running = await bench.sh("dd if=/dev/zero bs=100000 count=1 2>/dev/null | busybox tr '\\0' x; echo; echo ready")
    await bench.exit(running)
    await bench.said(running)
    assert running.output == "x" * 100_000 + "\nready\n"


async def test_an_engine_that_takes_more_memory_than_its_limit_is_seen_to_be_killed_for_it(
    bench: ContainerBench,
) -> None:
    running = await bench.sh("exec dd if=/dev/zero of=/dev/null bs=200M", memory_bytes=32 * MIB)
    status = await bench.exit(running)
    assert status.oom_killed
    assert status.signal == signal.SIGKILL


async def test_an_engine_killed_from_outside_is_not_taken_for_out_of_memory(bench: ContainerBench) -> None:
    running = await bench.sh("exec sleep 1000", memory_bytes=64 * MIB)
    os.kill(running.handle.data["pid"], signal.SIGKILL)
    status = await bench.exit(running)
    assert (status.signal, status.oom_killed) == (signal.SIGKILL, False)


async def test_a_container_that_was_made_and_never_started_counts_as_never_launched(bench: ContainerBench) -> None:
    request = bench.request("/bin/sh", "-c", "echo ready; exec sleep 1000")
    died = asyncio.Event()

    async def record() -> None:
        died.set()
        await asyncio.Event().wait()

    launching = asyncio.create_task(bench.runtime.launch(request, record))
    await died.wait()

    async def made() -> bool:
        return request.identity in await bench.runtime.find_all(bench.node)

    await eventually(made)
    launching.cancel()
    await asyncio.gather(launching, return_exceptions=True)

    assert await bench.restarted().adopt(request.identity, None, request.directory) is None

    async def removed() -> bool:  # at the second try, if the engine still looks into it for the first agent
        return await bench.runtime.find_all(bench.node) == {}

    await eventually(removed)


async def test_a_record_of_another_container_is_not_adopted(bench: ContainerBench) -> None:
    running = await bench.sh("exec sleep 1000")
    other = await bench.sh("exec sleep 1000")
    foreign = replace(other.handle, data={**other.handle.data, "config": "0" * 32})
    again = bench.restarted()

    assert isinstance(await again.adopt(running.identity, other.handle, running.directory), Ended)
    assert isinstance(await again.adopt(other.identity, foreign, other.directory), Ended)
    assert await again.adopt(running.identity, running.handle, running.directory) == Adopted(running.handle)


async def test_what_the_host_does_not_show_is_asked_of_the_engine(bench: ContainerBench) -> None:
    """As for an agent in a container, or without root."""
    running = await bench.sh("trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done")
    await bench.said(running)
    hidden = replace(running.handle, data={**running.handle.data, "cgroups": [], "pid": 0, "start": 0})
    runtime = bench.restarted()

    assert len(await runtime.survivors(hidden)) == 1
    usage = await runtime.usage(hidden)
    assert usage is not None
    assert usage.memory_bytes > 0
    await runtime.kill(hidden, signal.SIGTERM)
    async with asyncio.timeout(20):
        assert (await runtime.wait_exit(hidden)).code == 3
    assert await runtime.survivors(hidden) == ()
    assert await runtime.usage(hidden) is None


async def test_nothing_is_imported_and_nothing_opened_before_the_first_call(tmp_path: Path) -> None:
    code = (
        "import sys, threading, agent.runtimes.docker as d\n"
        "d.DockerRuntime('node', '/no/such.sock', print)\n"
        "print('docker' in sys.modules, 'requests' in sys.modules, threading.active_count())"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
    )
    output, _ = await process.communicate()
    assert output.decode().split() == ["False", "False", "1"]
