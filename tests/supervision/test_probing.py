"""When an engine is asked for a real token, and what its answer means: against a server that plays vLLM."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from agent.engines.vllm import VLLM
from agent.spec import InferenceProbe, Probes
from agent.status import ProbeKind, Verdict
from agent.supervision.machine import Observation, Probed
from agent.supervision.probing import Prober, Target
from tests.engines.contract_server import Answer, ContractServer, Phase
from tests.engines.rank_plans import plan

#: Seconds within which what is to happen does; nothing depends on how fast.
PATIENCE = 30.0


def engine(running: int, tokens: int, completion: Answer) -> Phase:
    metrics = f"vllm:num_requests_running {running}\nvllm:num_requests_waiting 0\n"
    return {
        "GET /health": Answer(200),
        "GET /metrics": Answer(200, f"{metrics}vllm:prompt_tokens_total {tokens}\nvllm:generation_tokens_total 0\n"),
        "POST /v1/completions": completion,
    }


HANGS, ANSWERS = Answer(hangs=True), Answer(200, "{}")


class Watched:
    """What the probes of a server said of its inference."""

    def __init__(self, server: ContractServer, **inference: float) -> None:
        settings = {"period_seconds": 0.1, "timeout_seconds": 0.3, "idle_seconds": 3600, **inference}
        probes = Probes(inference=InferenceProbe.model_validate(settings))
        self.seen: list[Verdict] = []
        target = Target(VLLM(), plan(VLLM()), probes, "127.0.0.1", server.port)

        async def usage() -> None:
            return None

        self.prober = Prober(target, post=self._post, usage=usage, loaded=_ignored, granted=_ignored, measured=_ignored)

    def _post(self, seen: Observation) -> None:
        if isinstance(seen, Probed) and seen.kind is ProbeKind.INFERENCE:
            self.seen.append(seen.verdict)

    async def until(self, check: Callable[[], bool]) -> None:
        probing = asyncio.create_task(self.prober.run(started=True))
        try:
            async with asyncio.timeout(PATIENCE):
                while not check():
                    await asyncio.sleep(0.02)
        finally:
            probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probing


def _ignored(_: object) -> None:
    """The prober tells more than these tests ask."""


async def test_requests_in_flight_without_progress_are_no_proof_of_health() -> None:
    """vLLM's server goes on saying what its core said last: one request, these many tokens."""
    with ContractServer({"hung": engine(1, 1000, HANGS)}) as server:
        watched = Watched(server, stall_seconds=0.5)
        await watched.until(lambda: len(watched.seen) >= 3)
    assert set(watched.seen) == {Verdict.FAIL}


async def test_an_engine_that_computes_a_long_prompt_and_still_answers_is_well() -> None:
    with ContractServer({"long": engine(1, 1000, ANSWERS)}) as server:
        watched = Watched(server, stall_seconds=0.5)
        await watched.until(lambda: len(watched.seen) >= 2)
    assert set(watched.seen) == {Verdict.PASS}


async def test_an_engine_that_is_busy_is_left_alone_until_it_seems_stuck() -> None:
    with ContractServer({"busy": engine(1, 1000, HANGS)}) as server:
        watched = Watched(server, stall_seconds=3600)
        await watched.until(lambda: server.asked.count("GET /metrics") >= 8)
    assert "POST /v1/completions" not in server.asked


@pytest.mark.parametrize("idle", [0.0, 0.2])
async def test_an_idle_engine_that_hangs_is_asked_again_though_its_own_probe_seems_in_flight(idle: float) -> None:
    with ContractServer({"idle": engine(0, 1000, HANGS), "asked": engine(1, 1000, HANGS)}) as server:
        watched = Watched(server, idle_seconds=idle, stall_seconds=3600)

        def failed_thrice() -> bool:
            if watched.seen:
                server.enter("asked")
            return len(watched.seen) >= 3

        await watched.until(failed_thrice)
    assert set(watched.seen) == {Verdict.FAIL}
