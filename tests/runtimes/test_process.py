import asyncio
import errno
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest

from agent.runtimes import procfs
from agent.runtimes.base import Adopted, Ended, Handle, Identity, LaunchError, LaunchRequest
from agent.runtimes.cgroups import Cgroups
from agent.runtimes.process import EXIT_NOT_TRIED, ProcessRuntime
from agent.status import ExitStatus
from tests.runtimes.contract import Bench, RuntimeContract, eventually, nothing

#: An agent that launches what it is told, says so, and then does nothing until it is killed.
AGENT = """
import asyncio, json, sys
from pathlib import Path
from agent.runtimes.base import Identity, LaunchRequest
from agent.runtimes.process import ProcessRuntime

async def record():
    pass

async def main(identity, argv, directory, log):
    request = LaunchRequest(Identity(**identity), tuple(argv), {"PATH": "/bin"}, Path(directory), Path(log))
    handle = await ProcessRuntime(identity["node"]).launch(request, record)
    print(json.dumps(dict(handle.data)), flush=True)
    await asyncio.Event().wait()

asyncio.run(main(**json.loads(sys.argv[1])))
"""


def make(root: Path, groups: Cgroups | None) -> Bench:
    node = os.urandom(8).hex()
    return Bench(ProcessRuntime(node, groups), root, restarted=lambda: ProcessRuntime(node, groups), node=node)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = make(tmp_path, None)
    yield made
    await made.close()


@pytest.fixture
async def limited(tmp_path: Path, limiting: Cgroups) -> AsyncIterator[Bench]:
    made = make(tmp_path, limiting)
    yield made
    await made.close()


class TestWithoutCgroups(RuntimeContract):
    """Only sessions and environments tell what belongs to an instance."""


class TestWithCgroups(RuntimeContract):
    """With those cgroups that this machine has."""

    @pytest.fixture
    def bench(self, limited: Bench) -> Bench:
        return limited


class TestWithCgroupV2(RuntimeContract):
    """Tracked, and killed at once, by cgroup v2."""

    @pytest.fixture
    async def bench(self, tmp_path: Path, unified: Cgroups) -> AsyncIterator[Bench]:
        made = make(tmp_path, unified)
        yield made
        await made.close()


async def orphan(bench: Bench, script: str) -> tuple[LaunchRequest, Handle]:
    """Launch by another agent, which is then killed."""
    request = bench.request("/bin/sh", "-c", script)
    order = {
        "identity": asdict(request.identity),
        "argv": request.argv,
        "directory": str(request.directory),
        "log": str(request.log),
    }
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, json.dumps(order)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    with agent:
        assert agent.stdout is not None
        handle = Handle("process", json.loads(await asyncio.to_thread(agent.stdout.readline)))
        agent.kill()
    return request, handle


async def test_the_status_is_known_of_an_engine_that_ended_while_no_agent_ran(bench: Bench) -> None:
    request, handle = await orphan(bench, "while [ ! -e gate ]; do sleep 0.01; done; exit 3")
    assert await bench.runtime.survivors(handle)
    (request.directory / "gate").touch()
    await eventually(lambda: procfs.stat(handle.data["pid"]) is None)
    found = await bench.runtime.adopt(request.identity, handle, request.directory)
    assert isinstance(found, Ended)
    assert found.exit.code == 3


async def test_the_end_of_an_engine_that_another_agent_started_is_seen(bench: Bench) -> None:
    request, handle = await orphan(bench, "while [ ! -e gate ]; do sleep 0.01; done; kill -SEGV $$")
    assert await bench.runtime.adopt(request.identity, handle, request.directory) == Adopted(handle)
    waiting = asyncio.create_task(bench.runtime.wait_exit(handle))
    (request.directory / "gate").touch()
    assert (await asyncio.wait_for(waiting, 20)).signal == signal.SIGSEGV


async def test_an_adopted_engine_that_we_kill_died_of_sigkill(bench: Bench) -> None:
    request, handle = await orphan(bench, "exec sleep 1000")
    await bench.runtime.adopt(request.identity, handle, request.directory)
    await bench.runtime.kill(handle, signal.SIGKILL)
    assert (await asyncio.wait_for(bench.runtime.wait_exit(handle), 20)).signal == signal.SIGKILL


async def test_an_instance_without_handle_or_shim_is_adopted_as_far_as_it_lives(bench: Bench) -> None:
    running = await bench.sh("echo ready; exec sleep 1000")
    await bench.said(running)
    os.kill(running.handle.data["pid"], signal.SIGKILL)
    await bench.exit(running)
    found = await bench.restarted().adopt(running.identity, None, running.directory)
    assert isinstance(found, Adopted)
    assert await bench.runtime.survivors(found.handle) == (bench.runtime.main_pid(running.handle),)
    await bench.runtime.kill(found.handle, signal.SIGKILL)
    await bench.gone(running)
    assert (await bench.runtime.wait_exit(found.handle)).signal == signal.SIGKILL


async def test_an_engine_that_outlives_its_shim_is_a_survivor(bench: Bench) -> None:
    running = await bench.sh("echo ready; exec sleep 1000")
    await bench.said(running)
    os.kill(running.handle.data["pid"], signal.SIGKILL)
    assert (await bench.exit(running)).signal == signal.SIGKILL
    assert await bench.runtime.survivors(running.handle) == (bench.runtime.main_pid(running.handle),)
    assert isinstance(await bench.runtime.adopt(running.identity, running.handle, running.directory), Adopted)
    await bench.runtime.kill(running.handle, signal.SIGKILL)
    await bench.gone(running)


async def test_an_engine_that_ended_without_a_trace_has_an_unknown_status(bench: Bench) -> None:
    request, handle = await orphan(bench, "echo ready; exec sleep 1000")
    await eventually(lambda: request.log.read_text() == "ready\n")
    os.killpg(handle.data["pid"], signal.SIGKILL)
    await eventually(lambda: procfs.stat(handle.data["pid"]) is None)
    for known in (handle, None):
        found = await bench.runtime.adopt(request.identity, known, request.directory)
        assert found == Ended(ExitStatus())


async def test_after_a_reboot_nothing_of_the_old_handle_is_alive(bench: Bench) -> None:
    running = await bench.sh("exec sleep 1000")
    old = Handle("process", {**running.handle.data, "boot": "another boot"})
    assert await bench.runtime.adopt(running.identity, old, running.directory) == Ended(ExitStatus())
    assert await bench.runtime.survivors(old) == ()
    await bench.runtime.kill(old, signal.SIGKILL)
    assert await bench.runtime.survivors(running.handle)


async def test_a_process_that_got_the_pid_of_an_ended_shim_is_never_touched(bench: Bench) -> None:
    stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        running = await bench.sh("exit 0")
        await bench.exit(running)
        found = procfs.stat(stranger.pid)
        assert found is not None
        forged = Handle("process", {**running.handle.data, "pid": stranger.pid, "start": found.start - 1})
        await bench.runtime.kill(forged, signal.SIGKILL)
        assert await bench.runtime.survivors(forged) == ()
        assert await bench.runtime.usage(forged) is None
        assert isinstance(await bench.runtime.adopt(running.identity, forged, running.directory), Ended)
        assert (await bench.runtime.wait_exit(forged)).code == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_handle_that_names_a_stranger_is_not_adopted(bench: Bench) -> None:
    stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        running = await bench.sh("exit 9")
        await bench.exit(running)
        found = procfs.stat(stranger.pid)
        assert found is not None
        forged = Handle("process", {**running.handle.data, "pid": stranger.pid, "start": found.start})
        adopted = await bench.runtime.adopt(running.identity, forged, running.directory)
        assert isinstance(adopted, Ended)
        assert adopted.exit.code == 9
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("data", [{}, {"id": 1}, {"cgroups": None, "enforcement": [], "id": "x", "directory": "/"}])
async def test_a_damaged_handle_is_as_good_as_none(bench: Bench, data: dict[str, object]) -> None:
    running = await bench.sh("echo ready; exec sleep 1000")
    await bench.said(running)
    found = await bench.runtime.adopt(running.identity, Handle("process", data), running.directory)
    assert found == Adopted(running.handle)


async def test_the_environment_is_exactly_what_was_asked_for_and_stays_out_of_every_argv(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "not for engines")
    running = await bench.sh("env; echo ready; exec sleep 1000", environment={"API_KEY": "hunter2"})
    await bench.said(running)
    pids = await bench.runtime.survivors(running.handle)
    commands = [procfs.read(f"/proc/{pid}/cmdline") or b"" for pid in pids]
    assert commands
    assert not any(b"hunter2" in command for command in commands)
    assert "API_KEY=hunter2" in running.output
    assert f"TMPDIR={running.directory}/tmp" in running.output
    assert "SECRET_OF_THE_AGENT" not in running.output
    assert (running.directory / "tmp").stat().st_mode & 0o777 == 0o700
    assert running.request.log.stat().st_mode & 0o777 == 0o600


async def test_an_agent_that_dies_before_it_recorded_the_launch_leaves_no_engine(tmp_path: Path) -> None:
    identity = Identity(os.urandom(8).hex(), "chat", 1, 1, "chat-1-parked")
    request = {
        "identity": asdict(identity), "argv": ["/bin/sh", "-c", "echo ready; exec sleep 1000"],
        "directory": str(tmp_path / "instance"), "log": str(tmp_path / "log"),
    }  # fmt: skip
    never = AGENT.replace("    pass\n", "    await asyncio.Event().wait()\n")
    agent = subprocess.Popen([sys.executable, "-c", never, json.dumps(request)])
    runtime = ProcessRuntime(identity.node)

    async def parked() -> bool:
        return identity in await runtime.find_all(identity.node)

    async def gone() -> bool:
        return not await parked()

    await eventually(parked)
    agent.kill()
    agent.wait()

    await eventually(gone)
    assert await runtime.adopt(identity, None, tmp_path / "instance") is None
    assert (tmp_path / "log").read_text() == ""


async def test_the_engine_inherits_no_descriptor_no_ignored_and_no_blocked_signal(bench: Bench) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        running = await bench.sh("ls -l /proc/self/fd; grep -E 'Sig(Blk|Ign)' /proc/self/status")
        await bench.exit(running)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        os.close(reading)
        os.close(writing)
    targets = [line.split(" -> ")[1] for line in running.output.splitlines() if " -> " in line]
    log = str(running.request.log)
    assert targets[:3] == ["/dev/null", log, log]
    assert all(target.startswith("/proc/") for target in targets[3:])  # the directory that ls itself reads
    masks = [int(line.split()[1], 16) for line in running.output.splitlines() if line.startswith("Sig")]
    ours = sum(1 << (number - 1) for number in signal.valid_signals())  # not those that the C library keeps for itself
    assert [mask & ours for mask in masks] == [0, 0]


async def test_the_agents_protection_from_the_oom_killer_covers_the_shim_but_not_the_engine(bench: Bench) -> None:
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    try:
        own.write_text("-100")
    except PermissionError:
        pytest.skip("lowering oom_score_adj needs CAP_SYS_RESOURCE")
    try:
        running = await bench.sh("cat /proc/self/oom_score_adj; echo ready; exec sleep 1000")
        await bench.said(running)
    finally:
        own.write_text(before)
    assert running.output == "0\nready\n"
    assert Path(f"/proc/{running.handle.data['pid']}/oom_score_adj").read_text() == "-100\n"


async def test_a_binary_that_cannot_be_executed_refuses_the_launch(bench: Bench, tmp_path: Path) -> None:
    plain = tmp_path / "engine"
    plain.touch(mode=0o644)
    with pytest.raises(LaunchError, match="is not an executable file"):
        await bench.runtime.launch(bench.request(str(plain)), nothing)
    with pytest.raises(LaunchError, match="no-such-engine is not in PATH"):
        await bench.runtime.launch(bench.request("no-such-engine"), nothing)


async def test_an_executable_that_the_kernel_refuses_ends_with_the_status_of_sh(bench: Bench, tmp_path: Path) -> None:
    script = tmp_path / "engine"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    running = await bench.launch(bench.request(str(script)))
    assert (await bench.exit(running)).code == 127
    assert "not found" in running.output or "No such file" in running.output


async def test_a_directory_that_cannot_be_made_refuses_the_launch(bench: Bench) -> None:
    (bench.root / "instances").write_text("a file")
    with pytest.raises(LaunchError, match=r"cannot start /bin/true: .*instances"):
        await bench.runtime.launch(bench.request("/bin/true"), nothing)


def full(bench: Bench) -> LaunchRequest:
    """A launch that finds no room for what is kept beside an engine."""
    request = bench.request("/bin/sh", "-c", "sleep 1000")
    request.directory.mkdir(parents=True)
    (request.directory / "launch.json").symlink_to("/dev/full")
    return request


async def test_a_disk_without_room_refuses_the_launch_and_is_named(bench: Bench) -> None:
    request = full(bench)
    with pytest.raises(LaunchError) as caught:
        await bench.runtime.launch(request, nothing)
    assert str(caught.value) == f"cannot start /bin/sh: no space is left on the device ({request.directory})"
    assert caught.value.hint == "free disk space there"
    assert isinstance(cause := caught.value.__cause__, OSError)
    assert cause.errno == errno.ENOSPC
    assert await bench.runtime.find_all(bench.node) == {}


async def test_a_record_that_fails_is_told_even_where_the_launch_failed_before_it(bench: Bench) -> None:
    async def record() -> None:
        await asyncio.sleep(0.01)
        raise OSError(errno.ENOSPC, "the record found no room")

    lost = list[dict[str, object]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
    for request in (full(bench), bench.request("/bin/true", "a\0b")):
        with pytest.raises(OSError, match="the record found no room") as caught:
            await bench.runtime.launch(request, record)
        assert isinstance(caught.value.__context__, LaunchError)
        del caught
        gc.collect()
    assert lost == []
    assert await bench.runtime.find_all(bench.node) == {}


async def test_a_nul_byte_in_an_argument_refuses_the_launch(bench: Bench) -> None:
    with pytest.raises(LaunchError, match="null byte"):
        await bench.runtime.launch(bench.request("/bin/true", "a\0b"), nothing)


async def test_a_launch_that_is_refused_leaves_no_cgroup(limited: Bench, limiting: Cgroups) -> None:
    request = limited.request("/bin/true", "a\0b", memory_bytes=2**26, pids=10)
    with pytest.raises(LaunchError):
        await limited.runtime.launch(request, nothing)
    assert not [p for p in limiting.locations.values() if (p.parent / request.identity.instance).exists()]


async def test_a_cgroup_that_cannot_be_joined_keeps_the_engine_from_being_tried(
    limited: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Cgroups.create

    def gone(self: Cgroups, *arguments: object) -> object:
        group = create(self, *arguments)  # type: ignore[arg-type]
        for path in group.paths:
            Path(path).rmdir()
        return group

    monkeypatch.setattr(Cgroups, "create", gone)
    running = await limited.sh("echo hello")
    assert (await limited.exit(running)).code == EXIT_NOT_TRIED
    assert "cannot join the cgroup by" in running.output
    assert "hello" not in running.output


async def test_an_engine_beyond_its_memory_limit_is_oom_killed(limited: Bench) -> None:
    eat = "data = bytearray(256 << 20)\nfor i in range(0, len(data), 4096): data[i] = 1"
    running = await limited.launch(limited.request(sys.executable, "-c", eat, memory_bytes=64 << 20))
    assert limited.runtime.enforcement(running.handle)[0].startswith("memory limit 64 MiB enforced by cgroup v")
    status = await limited.exit(running)
    assert (status.signal, status.oom_killed) == (signal.SIGKILL, True)
    assert await limited.restarted().adopt(running.identity, running.handle, running.directory) == Ended(status)


async def test_an_engine_cannot_have_more_processes_than_its_limit(limited: Bench) -> None:
    fork = """
import os, time
for number in range(100):
    try:
        if os.fork() == 0: time.sleep(1000)
    except OSError:
        print(number, "children", flush=True)
        break
time.sleep(1000)
"""
    running = await limited.launch(limited.request(sys.executable, "-c", fork, pids=5))
    await limited.said(running, "children")
    assert running.output == "4 children\n"  # and the engine itself


async def test_limits_that_nobody_can_enforce_are_said(bench: Bench) -> None:
    running = await bench.sh("exit 0", memory_bytes=2**29, cpus=1.5)
    assert bench.runtime.enforcement(running.handle) == (
        "memory limit 512 MiB not enforced: cgroups are not used",
        "CPU limit 1.5 cores not enforced: cgroups are not used",
    )


async def test_forgetting_a_launch_without_handle_removes_its_cgroups(limited: Bench) -> None:
    running = await limited.sh("exit 0", memory_bytes=2**26)
    await limited.exit(running)
    groups = running.handle.data["cgroups"]
    assert all(Path(path).is_dir() for path in groups)
    await limited.restarted().forget(None, running.directory)
    assert not any(Path(path).exists() for path in groups)
    assert not running.directory.exists()


async def test_a_file_that_is_mapped_counts_as_read(bench: Bench, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"x" * (32 << 20))
    load = """
import mmap, sys, time
with open(sys.argv[1], "rb") as file:
    data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
sum(data[::4096])
print("ready", flush=True)
time.sleep(1000)
"""
    running = await bench.launch(bench.request(sys.executable, "-c", load, str(weights)))
    await bench.said(running)
    usage = await bench.runtime.usage(running.handle)
    assert usage is not None
    assert usage.read_bytes >= 32 << 20


async def test_the_identity_of_another_node_is_not_ours(bench: Bench) -> None:
    running = await bench.sh("echo ready; exec sleep 1000")
    await bench.said(running)
    found = await ProcessRuntime("other").find_all("other")
    assert found == {}
    assert Identity(bench.node, "chat", 7, 1, running.identity.instance) in await bench.runtime.find_all(bench.node)
