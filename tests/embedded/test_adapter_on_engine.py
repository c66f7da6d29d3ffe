"""The adapter's promises, held against the real engine: a plan is made, run, probed and read back."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.engines import ENGINES
from agent.engines.base import HttpReply, HttpRequest
from agent.hardware import host
from agent.models.profiles import Profiles
from agent.planning.plan import Plan
from agent.planning.planner import plan
from agent.planning.request import Option, PlanRequest
from agent.settings import Policy
from agent.spec import parse_spec
from tests.gguf_factory import make_gguf

ENGINE = ENGINES["llama.cpp"]
DEADLINE = 20.0
MIB = 1024**2


async def planned(model: Path, **fields: Any) -> Plan:
    located = ENGINE.locate(None)
    assert located is not None
    answer = plan(
        PlanRequest(
            spec=parse_spec({"name": "d", "model": f"file:{model}"} | fields),
            generation=1,
            options=(Option(await Profiles().profile(model), f"file:{model}"),),
            inventory=host.inventory(),
            policy=Policy(),
            engines=ENGINES,
            located={ENGINE.name: located},
        )
    )
    assert isinstance(answer, Plan), answer
    return answer


class Running:
    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def send(self, request: HttpRequest) -> HttpReply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(request.method, request.path, request.body or None)
            reply = connection.getresponse()
            return HttpReply(reply.status, reply.read().decode())
        except ConnectionError:
            return HttpReply(0, "")
        finally:
            connection.close()


@contextmanager
def running(chosen: Plan, log: Path, *more: str) -> Iterator[Running]:
    """The plan's own command, ready; until then every answer to the startup probe must mean "loading"."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with log.open("wb") as output:
        argv = [*ENGINE.command(chosen, "127.0.0.1", port).argv, *more]
        process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, cwd="/")
    engine = Running(process, port, log)
    try:
        end = time.monotonic() + DEADLINE
        while (reply := engine.send(ENGINE.startup_probe(chosen))).status != 200:
            assert ENGINE.loading(reply), reply
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
        yield engine
    finally:
        process.kill()
        process.wait(DEADLINE)


async def test_the_engine_grants_what_was_planned(tmp_path: Path) -> None:
    model = make_gguf(tmp_path / "m.gguf")
    chosen = await planned(model, served_name="served", limits={"max_num_seqs": 3, "max_model_len": 512})

    with running(chosen, tmp_path / "log") as engine:
        granted = ENGINE.parse_granted([engine.send(request) for request in ENGINE.granted_requests(chosen)])

    assert (granted.max_model_len, granted.max_num_seqs, granted.model) == (512, 3, "served")


async def test_work_shows_in_the_activity_and_probing_health_does_not(tmp_path: Path) -> None:
    chosen = await planned(make_gguf(tmp_path / "m.gguf"))

    with running(chosen, tmp_path / "log") as engine:
        idle = ENGINE.parse_activity(engine.send(ENGINE.activity_request(chosen)).body)
        assert engine.send(ENGINE.liveness_probe(chosen)).status == 200
        still = ENGINE.parse_activity(engine.send(ENGINE.activity_request(chosen)).body)
        assert engine.send(ENGINE.inference_probe(chosen)).status == 200
        worked = ENGINE.parse_activity(engine.send(ENGINE.activity_request(chosen)).body)

    assert idle == still
    assert (idle.running, idle.waiting) == (0, 0)
    assert worked.work is not None
    assert idle.work is not None
    assert worked.work > idle.work


@pytest.mark.parametrize(
    ("task", "pooling"), [("chat", ""), ("completion", ""), ("embedding", "mean"), ("rerank", "rank")]
)
async def test_every_task_starts_and_passes_its_inference_probe(task: str, pooling: str, tmp_path: Path) -> None:
    chosen = await planned(make_gguf(tmp_path / "m.gguf", pooling=pooling), task=task, limits={"max_model_len": 256})

    with running(chosen, tmp_path / "log") as engine:
        reply = engine.send(ENGINE.inference_probe(chosen))

    assert reply.status == 200, reply.body


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
@pytest.mark.parametrize("length", [1000, 2048])
async def test_the_budget_is_what_the_engine_allocates(length: int, dtype: str, tmp_path: Path) -> None:
    """The KV cache to the byte (as far as the log tells), the compute buffer within 5 % and 1 MiB, never below."""
    # Wide enough that buffers are MiBs, as the log has two decimals of a MiB; heads of 64, as quantized caches need.
    model = make_gguf(tmp_path / "m.gguf", hidden=256, layers=4, vocab=4096, feed_forward=1024)
    limits = {"max_num_seqs": 3, "max_model_len": length, "kv_cache_dtype": dtype}
    chosen = await planned(model, limits=limits)
    terms = {term.name: term.bytes / MIB for term in chosen.budgets[0].terms}

    with running(chosen, tmp_path / "log", "-lv", "4") as engine:
        log = engine.log.read_text()
    logged = {kind: float(size) for kind, size in re.findall(r"(\w+) buffer size = +([\d.]+) MiB", log)}

    assert terms["KV cache"] == pytest.approx(logged["KV"], abs=0.01)
    allocated = logged["compute"] + logged["output"]
    assert allocated <= terms["compute"] + terms["threads"]  # the formula's own upper bound covers its rounding
    assert terms["compute"] <= allocated * 1.05 + 1
    assert terms["weights"] == pytest.approx(logged["model"], abs=0.01)


@pytest.mark.parametrize("arguments", [["--top-k", "5"], ["--temp", "0.5", "--no-warmup"], ["--cache-reuse", "64"]])
async def test_allowed_extra_arguments_reach_the_engine(arguments: list[str], tmp_path: Path) -> None:
    assert not ENGINE.check_extra_args(arguments)
    chosen = await planned(make_gguf(tmp_path / "m.gguf"), extra_args=arguments)

    with running(chosen, tmp_path / "log") as engine:
        assert engine.send(ENGINE.readiness_probe(chosen)).status == 200
