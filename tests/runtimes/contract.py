"""What every runtime must do, as tests: subclass `RuntimeContract` and give it a `bench` fixture.

The engines are one-liners of sh; a runtime that executes them elsewhere (in a container) needs nothing but `/bin/sh`,
`sleep`, `kill`, `setsid`, `touch` and `mkdir` there, and a bench that says how.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.runtimes.base import (
    Adopted,
    Ended,
    Handle,
    Identity,
    LaunchError,
    LaunchRequest,
    Resources,
    Runtime,
)
from agent.status import ExitStatus

DEADLINE = 20.0  # seconds: nothing here takes one; a slow machine under load may


@dataclass(frozen=True)
class Running:
    """An instance under test."""

    request: LaunchRequest
    handle: Handle

    @property
    def identity(self) -> Identity:
        return self.request.identity

    @property
    def directory(self) -> Path:
        return self.request.directory

    @property
    def output(self) -> str:
        return self.request.log.read_text() if self.request.log.exists() else ""


@dataclass
class Bench:
    """A runtime with a place to run in. `restarted` makes what the next agent on the same node would have."""

    runtime: Runtime
    root: Path
    restarted: Callable[[], Runtime]
    node: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: list[Running] = field(default_factory=list)
    repeats: int = 10  # of what happens only sometimes
    many: int = 50  # instances at once
    attempts: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def request(self, *argv: str, environment: dict[str, str] | None = None, **limits: float) -> LaunchRequest:
        attempt = next(self.attempts)
        identity = Identity(self.node, "chat", 7, attempt, f"chat-{attempt}-{uuid.uuid4().hex[:8]}")
        return LaunchRequest(
            identity=identity,
            argv=argv,
            environment={"PATH": "/usr/bin:/bin", **(environment or {})},
            directory=self.root / "instances" / identity.instance,
            log=self.root / "logs" / f"{attempt}.log",
            resources=Resources(**limits),  # type: ignore[arg-type]
        )

    async def launch(self, request: LaunchRequest) -> Running:
        running = Running(request, await self.runtime.launch(request, nothing))
        self.started.append(running)
        return running

    async def sh(self, script: str, **options: object) -> Running:
        return await self.launch(self.request("/bin/sh", "-c", script, **options))  # type: ignore[arg-type]

    async def exit(self, running: Running) -> ExitStatus:
        async with asyncio.timeout(DEADLINE):
            return await self.runtime.wait_exit(running.handle)

    async def output(self, running: Running) -> str:
        await self.runtime.gather_log(running.handle, running.request.log)
        return running.output

    async def said(self, running: Running, word: str = "ready") -> None:
        async def heard() -> bool:
            return word in await self.output(running)

        await eventually(heard)

    def program(self, name: str) -> str:
        """The file that is mapped where `name` is executed."""
        return os.path.realpath(shutil.which(name) or "")

    async def gone(self, running: Running) -> None:
        async def nobody() -> bool:
            return not await self.runtime.survivors(running.handle)

        await eventually(nobody)

    async def close(self) -> None:
        for running in self.started:
            await self.runtime.kill(running.handle, signal.SIGKILL)
            await self.gone(running)
            await self.exit(running)
            await self.runtime.forget(running.handle, running.directory)


async def nothing() -> None:
    """What a launch that need not be recorded records."""


async def eventually(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for something that nobody announces."""
    async with asyncio.timeout(DEADLINE):
        while True:
            answer = condition()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.005)


class RuntimeContract:
    """The promises of `agent.runtimes.base.Runtime`."""

    @pytest.mark.parametrize("code", [0, 1, 3, 77])
    async def test_the_exit_code_of_the_engine_is_reported(self, bench: Bench, code: int) -> None:
        status = await bench.exit(await bench.sh(f"exit {code}"))
        assert (status.code, status.signal, status.oom_killed) == (code, None, False)
        assert status.at is not None

    @pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSEGV, signal.SIGILL, signal.SIGTERM])
    async def test_the_signal_that_ended_the_engine_is_reported(self, bench: Bench, sig: signal.Signals) -> None:
        status = await bench.exit(await bench.sh(f"kill -{sig.value} $$"))
        assert (status.code, status.signal) == (None, sig)

    async def test_an_engine_that_ends_orderly_on_sigterm_has_its_own_exit_code(self, bench: Bench) -> None:
        running = await bench.sh("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done")
        await bench.said(running)
        await bench.runtime.kill(running.handle, signal.SIGTERM)
        assert (await bench.exit(running)).code == 0
        assert "bye" in await bench.output(running)
        await bench.gone(running)

    async def test_an_engine_that_ignores_sigterm_goes_on_and_dies_of_sigkill(self, bench: Bench) -> None:
        running = await bench.sh("trap 'echo no' TERM; echo ready; while :; do sleep 0.01; done")
        await bench.said(running)
        await bench.runtime.kill(running.handle, signal.SIGTERM)
        await bench.said(running, "no")
        assert await bench.runtime.survivors(running.handle)
        await bench.runtime.kill(running.handle, signal.SIGKILL)
        assert (await bench.exit(running)).signal == signal.SIGKILL
        await bench.gone(running)

    @pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
    async def test_a_signal_right_after_the_launch_is_not_lost(self, bench: Bench, sig: signal.Signals) -> None:
        for _ in range(bench.repeats):
            running = await bench.sh("exec sleep 1000")
            await bench.runtime.kill(running.handle, sig)
            assert (await bench.exit(running)).signal == sig
            await bench.gone(running)

    async def test_a_launched_instance_is_ours_at_once(self, bench: Bench) -> None:
        for _ in range(bench.repeats):
            running = await bench.sh("exec sleep 1000")
            assert running.identity in await bench.runtime.find_all(bench.node)
            assert await bench.runtime.survivors(running.handle)

    async def test_sigterm_arrives_once(self, bench: Bench) -> None:
        running = await bench.sh("trap 'echo got it' TERM; trap 'exit 0' INT; echo ready; while :; do sleep 0.01; done")
        await bench.said(running)
        await bench.runtime.kill(running.handle, signal.SIGTERM)
        await bench.said(running, "got it")
        await bench.runtime.kill(running.handle, signal.SIGINT)
        assert (await bench.exit(running)).code == 0
        assert (await bench.output(running)).count("got it") == 1

    async def test_a_stopped_engine_is_killed(self, bench: Bench) -> None:
        running = await bench.sh("echo ready; kill -STOP $$; echo woken")
        await bench.said(running)
        await bench.runtime.kill(running.handle, signal.SIGKILL)
        assert (await bench.exit(running)).signal == signal.SIGKILL
        await bench.gone(running)
        assert "woken" not in await bench.output(running)

    async def test_a_descendant_in_a_session_of_its_own_survives_the_engine_and_is_found_and_killed(
        self, bench: Bench
    ) -> None:
        running = await bench.sh("setsid sleep 1000 & echo ready; exit 4")
        assert (await bench.exit(running)).code == 4
        assert len(await bench.runtime.survivors(running.handle)) == 1
        await bench.runtime.kill(running.handle, signal.SIGKILL)
        await bench.gone(running)

    async def test_after_the_end_there_is_nobody_to_kill_and_nothing_to_measure(self, bench: Bench) -> None:
        running = await bench.sh("exit 0")
        await bench.exit(running)
        assert await bench.runtime.survivors(running.handle) == ()
        await bench.runtime.kill(running.handle, signal.SIGTERM)
        assert await bench.runtime.usage(running.handle) is None

    async def test_waiting_may_be_cancelled_and_done_again_and_by_two_at_once(self, bench: Bench) -> None:
        running = await bench.sh("while [ ! -e gate ]; do sleep 0.01; done; exit 3")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bench.runtime.wait_exit(running.handle), 0.02)
        waiting = asyncio.gather(bench.exit(running), bench.exit(running))
        (running.directory / "gate").touch()
        first, second = await waiting
        assert first.code == second.code == (await bench.exit(running)).code == 3

    async def test_a_restarted_agent_adopts_a_running_instance_and_sees_its_end(self, bench: Bench) -> None:
        running = await bench.sh("while [ ! -e gate ]; do sleep 0.01; done; exit 5")
        again = bench.restarted()
        adopted = await again.adopt(running.identity, running.handle, running.directory)
        assert adopted == Adopted(running.handle)
        (running.directory / "gate").touch()
        async with asyncio.timeout(DEADLINE):
            assert (await again.wait_exit(running.handle)).code == 5

    async def test_a_restarted_agent_learns_the_status_of_an_instance_that_ended_meanwhile(self, bench: Bench) -> None:
        running = await bench.sh("exit 6")
        await bench.exit(running)
        adopted = await bench.restarted().adopt(running.identity, running.handle, running.directory)
        assert isinstance(adopted, Ended)
        assert adopted.exit.code == 6

    async def test_an_instance_whose_handle_was_lost_is_found_by_its_identity(self, bench: Bench) -> None:
        running = await bench.sh("echo ready; exec sleep 1000")
        await bench.said(running)
        adopted = await bench.restarted().adopt(running.identity, None, running.directory)
        assert adopted == Adopted(running.handle)

    async def test_an_instance_whose_handle_was_lost_and_that_ended_has_its_status(self, bench: Bench) -> None:
        running = await bench.sh("exit 6")
        await bench.exit(running)
        adopted = await bench.restarted().adopt(running.identity, None, running.directory)
        assert isinstance(adopted, Ended)
        assert adopted.exit.code == 6

    async def test_an_instance_that_was_never_launched_is_not_found(self, bench: Bench) -> None:
        request = bench.request("/bin/true")
        assert await bench.runtime.adopt(request.identity, None, request.directory) is None

    async def test_everything_that_carries_the_nodes_identity_is_found(self, bench: Bench) -> None:
        running = await bench.sh("setsid sleep 1000 & echo ready; wait")
        await bench.said(running)
        found = await bench.runtime.find_all(bench.node)
        assert list(found) == [running.identity]
        assert set(found[running.identity]) >= set(await bench.runtime.survivors(running.handle))
        assert await bench.runtime.find_all("another node") == {}

    async def test_a_stray_is_killed_but_not_under_a_wrong_name(self, bench: Bench) -> None:
        running = await bench.sh("echo ready; exec sleep 1000")
        await bench.said(running)
        pids = (await bench.runtime.find_all(bench.node))[running.identity]
        wrong = Identity(bench.node, "chat", 7, running.identity.attempt, "another instance")
        await bench.runtime.kill_stray(wrong, pids)
        assert await bench.runtime.survivors(running.handle)
        await bench.runtime.kill_stray(running.identity, pids)
        await bench.gone(running)
        assert await bench.runtime.find_all(bench.node) == {}

    async def test_stdout_and_stderr_are_appended_to_the_log(self, bench: Bench) -> None:
        request = bench.request("/bin/sh", "-c", "echo out; sleep 0.2; echo err >&2")
        request.log.parent.mkdir(parents=True)
        request.log.write_text("before\n")
        running = await bench.launch(request)
        await bench.exit(running)
        assert await bench.output(running) == "before\nout\nerr\n"

    async def test_memory_cpu_and_pids_are_sampled(self, bench: Bench) -> None:
        running = await bench.sh("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo ready; exec sleep 1000")
        await bench.said(running)
        usage = await bench.runtime.usage(running.handle)
        assert usage is not None
        assert usage.memory_bytes > 0
        assert usage.cpu_seconds > 0
        assert bench.runtime.main_pid(running.handle) in usage.pids

    async def test_mapped_files_are_told_from_other_memory(self, bench: Bench) -> None:
        running = await bench.sh("echo ready; exec sleep 1000")
        await bench.said(running)
        program = bench.program("sleep")

        async def executed() -> bool:
            return program in await bench.runtime.footprint(running.handle)

        await eventually(executed)
        memory = await bench.runtime.footprint(running.handle)
        assert 0 < memory[program][1] <= memory[program][0]
        assert memory[""][1] > 0
        await bench.runtime.kill(running.handle, signal.SIGKILL)
        await bench.exit(running)

        async def gone() -> bool:  # the exit is told when the main process is dead, the others may take a moment more
            return await bench.runtime.footprint(running.handle) == {}

        await eventually(gone)

    async def test_the_engine_is_executed_only_once_it_is_recorded(self, bench: Bench) -> None:
        request, recorded = bench.request("/bin/sh", "-c", "echo ready; sleep 1000"), asyncio.Event()

        async def record() -> None:
            await recorded.wait()

        launching = asyncio.create_task(bench.runtime.launch(request, record))
        await eventually(request.directory.exists)
        await asyncio.sleep(0.2)
        assert not launching.done()
        assert not request.log.exists() or request.log.read_text() == ""
        recorded.set()
        running = Running(request, await launching)
        bench.started.append(running)
        await bench.said(running)

    async def test_what_could_not_be_recorded_is_not_executed_and_leaves_nothing(self, bench: Bench) -> None:
        request = bench.request("/bin/sh", "-c", "echo ready")

        async def refuse() -> None:
            await asyncio.sleep(0.05)
            raise RuntimeError("the disk is full")

        with pytest.raises(RuntimeError, match="the disk is full"):
            await bench.runtime.launch(request, refuse)
        assert request.identity not in await bench.runtime.find_all(bench.node)
        assert await bench.restarted().adopt(request.identity, None, request.directory) is None
        assert not request.log.exists() or request.log.read_text() == ""
        await bench.runtime.forget(None, request.directory)
        assert not request.directory.exists()

    async def test_a_missing_binary_refuses_the_launch(self, bench: Bench) -> None:
        with pytest.raises(LaunchError, match="/opt/no/such/engine does not exist"):
            await bench.runtime.launch(bench.request("/opt/no/such/engine"), nothing)

    async def test_forgetting_removes_the_directory_and_keeps_the_log(self, bench: Bench) -> None:
        running = await bench.sh('echo hello; touch "$TMPDIR/litter"; mkdir deep; touch deep/er')
        await bench.exit(running)
        assert await bench.output(running) == "hello\n"
        await bench.runtime.forget(running.handle, running.directory)
        assert not running.directory.exists()
        assert running.output == "hello\n"
        await bench.runtime.forget(running.handle, running.directory)

    async def test_many_instances_at_once_end_with_nothing_left(self, bench: Bench) -> None:
        running = await asyncio.gather(*(bench.sh(f"sleep 0.05 & exit {number}") for number in range(bench.many)))
        assert [status.code for status in await asyncio.gather(*map(bench.exit, running))] == list(range(bench.many))
        await asyncio.gather(*map(bench.gone, running))
        await asyncio.gather(*(bench.runtime.forget(one.handle, one.directory) for one in running))
        assert await bench.runtime.find_all(bench.node) == {}
        assert list((bench.root / "instances").iterdir()) == []
