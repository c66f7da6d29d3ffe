"""The daemon's side: one process for each model, shared, replaceable, and as patient as it is told to be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from agent.artifacts import pulls, sources
from agent.artifacts.base import ArtifactError, SourcePolicy
from agent.status import Diagnosis, Progress
from agent.status import DiagnosisCode as Code
from tests.hub.server import Fault

MIB = 1024**2
BIG = random.Random(2).randbytes(12 * MIB)
FILES = {"m-Q4_K_M.gguf": BIG, "m-Q8_0.gguf": b"GGUF8"}
TOKEN = "hf_canary_5f2c9d"


def fetchers() -> list[psutil.Process]:
    """Children of this process that fetch."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "agent.artifacts.fetcher" in child.cmdline():
                found.append(child)
    return found


async def until(check, seconds: float = 30.0):
    async with asyncio.timeout(seconds):
        while not (value := check()):
            await asyncio.sleep(0.01)
    return value


async def refusal(reference: str, policy) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        await sources.fetch(reference, policy, lambda _: None)
    return caught.value


async def test_all_who_want_a_model_share_one_process_and_see_how_far_it_is(pulling, hub):
    hub.repo("org/m", FILES)
    policy, seen = pulling.policy(fetching={"bytes_per_second": 16 * MIB}), list[list[Progress]]()
    most = 0

    async def want(reference: str):
        seen.append([])
        return await sources.fetch(reference, policy, seen[-1].append)

    tasks = [asyncio.create_task(want(reference)) for reference in ("hf:org/m:Q4_K_M", "hf:org/m@main:Q4_K_M") * 2]
    while not all(task.done() for task in tasks):
        most = max(most, len(fetchers()))
        await asyncio.sleep(0.05)

    assert {(await task).path.read_bytes() == BIG for task in tasks} == {True}
    assert most == 1
    assert all(each[-1].total == len(BIG) for each in seen)
    assert not fetchers()


async def test_what_is_here_needs_no_process_and_no_hub(pulling, hub):
    hub.repo("org/m", FILES)
    fetched = await sources.fetch("hf:org/m:Q4_K_M", pulling.policy(), lambda _: None)
    hub.fail(Fault("*", status=500))
    policy = pulling.policy(fetching={"endpoint": "http://127.0.0.1:1", "offline": True})

    assert await sources.resolve("hf:org/m:Q4_K_M", policy) == fetched
    assert await sources.fetch("hf:org/m:Q4_K_M", policy, lambda _: None) == fetched


async def test_nobody_waits_any_more_so_its_process_ends_and_the_next_goes_on(pulling, hub):
    hub.repo("org/m", FILES)
    slow = pulling.policy(fetching={"bytes_per_second": 8 * MIB, "connections": 1})
    seen = list[Progress]()
    task = asyncio.create_task(sources.fetch("hf:org/m:Q4_K_M", slow, seen.append))
    await until(lambda: seen and seen[-1].done > 2 * MIB)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not fetchers()
    hub.requests.clear()

    await sources.fetch("hf:org/m:Q4_K_M", pulling.policy(), lambda _: None)

    assert int(hub.asked("/cdn/*")[0].headers["range"].split("=")[1].split("-")[0]) > 2 * MIB


async def test_a_killed_process_is_replaced_and_nothing_is_lost(pulling, hub):
    hub.repo("org/m", FILES)
    hub.fail(Fault("/cdn/*", stall_at=4 * MIB))  # it is killed halfway, however slow this machine
    seen = list[Progress]()
    task = asyncio.create_task(sources.fetch("hf:org/m:Q4_K_M", pulling.policy(), seen.append))
    await until(lambda: seen and seen[-1].done > 2 * MIB)
    fetchers()[0].send_signal(signal.SIGKILL)
    hub.heal()

    assert (await task).path.read_bytes() == BIG
    assert [each.done for each in seen] == sorted(each.done for each in seen)


async def test_a_process_that_is_killed_again_and_again_ends_the_pull(pulling, hub, monkeypatch):
    hub.repo("org/m", FILES)
    hub.fail(Fault("/api/*", drip_seconds=1.0))
    task = asyncio.create_task(refusal("hf:org/m", pulling.policy()))
    while not task.done():
        for process in fetchers():
            process.kill()
        await asyncio.sleep(0.02)

    diagnosis = (await task).diagnosis
    assert (diagnosis.code, f"{pulls.TRIES} times" in diagnosis.message) == (Code.LAUNCH_FAILED, True)


async def test_a_process_that_cannot_be_started_ends_the_pull_with_the_reason(pulling, hub, monkeypatch):
    monkeypatch.setattr(pulls.sys, "executable", "/nonexistent")

    fetched = (await refusal("hf:org/m", pulling.policy())).diagnosis
    looked = await unseen("oci:127.0.0.1:1/org/m:v1")

    for found in (fetched, looked):
        assert found.code == Code.LAUNCH_FAILED
        assert "cannot be started: No such file or directory" in found.message


async def unseen(reference: str) -> Diagnosis:
    with pytest.raises(ArtifactError) as caught:
        await sources.look(reference, SourcePolicy(frozenset({"oci"}), None, Path("/nonexistent")))
    return caught.value.diagnosis


async def test_a_process_that_falls_silent_is_replaced(pulling, hub, monkeypatch):
    hub.repo("org/m", FILES)
    policy, seen = pulling.policy(fetching={"bytes_per_second": 4 * MIB}), list[Progress]()
    task = asyncio.create_task(sources.fetch("hf:org/m:Q4_K_M", policy, seen.append))
    await until(lambda: seen)
    patience = pulls.GRACE
    monkeypatch.setattr(pulls, "GRACE", -4.0)  # from the next line on, and not while the next one starts
    told = len(seen)
    await until(lambda: len(seen) > told)
    stopped = fetchers()[0]
    stopped.suspend()
    await until(lambda: not psutil.pid_exists(stopped.pid))
    monkeypatch.setattr(pulls, "GRACE", patience)

    assert (await task).path.read_bytes() == BIG


async def test_the_hub_refuses_and_the_reason_arrives(pulling, hub):
    diagnosis = (await refusal("hf:no/model", pulling.policy())).diagnosis

    assert diagnosis.code == Code.MODEL_MISSING
    assert "hf:no/model" in diagnosis.message


async def test_other_owners_are_denied_by_the_policy_without_asking(pulling, hub):
    diagnosis = (await refusal("hf:Org/m", pulling.policy(organisations=frozenset({"qwen"})))).diagnosis

    assert diagnosis.code == Code.POLICY_DENIED
    assert "qwen" in diagnosis.hint
    assert not hub.requests


async def test_a_token_is_seen_by_the_hub_only(pulling, hub, tmp_path):
    hub.repo("org/m", FILES, private=True, granted={TOKEN})
    hub.tokens.add(TOKEN)
    seen, found = list[Progress](), set[str]()
    policy = pulling.policy(token=lambda: TOKEN, fetching={"bytes_per_second": 16 * MIB})
    task = asyncio.create_task(sources.fetch("hf:org/m:Q4_K_M", policy, seen.append))
    while not task.done():
        for process in fetchers():
            with contextlib.suppress(psutil.Error):
                found |= {*process.cmdline(), *process.environ().values()}
        await asyncio.sleep(0.05)
    hub.fail(Fault("/api/*", status=401, headers={"X-Error-Message": f"Invalid token {TOKEN}"}))

    told = (await refusal("hf:org/other", policy)).diagnosis

    assert (await task).path.read_bytes() == BIG
    assert found
    assert TOKEN not in " ".join([*found, repr(seen), repr(told), repr(policy.pulls)])
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


async def test_a_process_ends_with_its_daemon(pulling, hub):
    hub.repo("org/m", FILES)
    hub.fail(Fault("/api/*", drip_seconds=1.0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent.artifacts.fetcher"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None
    process.stdin.write(pulling.job("org/m", parent=os.getpid()).encode())
    await until(lambda: hub.asked("/api/*"))
    process.stdin.close()

    async with asyncio.timeout(30):
        assert await process.wait() == 0


async def test_the_bandwidth_is_that_of_all_pulls_together(pulling, hub):
    rate = 8 * MIB
    hub.repo("org/m", FILES)
    hub.repo("org/n", {"n-Q4_K_M.gguf": BIG[::-1]})
    policy, began = pulling.policy(fetching={"bytes_per_second": rate}), time.monotonic()

    both = await asyncio.gather(
        *(sources.fetch(f"hf:org/{name}:Q4_K_M", policy, lambda _: None) for name in ("m", "n"))
    )

    # Never less, however slow the machine: what all of it takes at this rate, less the bytes before the second began.
    assert time.monotonic() - began > 0.8 * sum(one.bytes for one in both) / rate
