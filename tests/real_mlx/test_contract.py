"""The adapter's promises, held against the real MLX LM: a plan is made, run, probed, read back and ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from agent.engines.base import HttpRequest
from agent.engines.mlx_lm import MlxLm
from agent.status import DiagnosisCode, ExitStatus
from tests.harness import free_port, wait_true
from tests.hf_factory import make_hf
from tests.real_engine import DEADLINE, Running, launched, moved, planned, running

pytestmark = pytest.mark.mlx

ENGINE = MlxLm()
MIB = 1024**2


async def test_it_grants_what_was_planned(server: str, model: Path, tmp_path: Path) -> None:
    chosen = await planned(
        ENGINE, server, model, served_name="org/served", limits={"max_num_seqs": 3, "max_model_len": 512}
    )

    with running(ENGINE, chosen, tmp_path) as engine:
        granted = ENGINE.parse_granted([engine.send(request) for request in ENGINE.granted_requests(chosen)])
        answer = engine.complete(model="org/served")

    assert (granted.max_model_len, granted.max_num_seqs, granted.model) == (512, 3, "org/served")
    assert json.loads(answer.body)["usage"]["completion_tokens"] == 4


async def test_loading_is_seen_and_is_not_ready(server: str, model: Path, tmp_path: Path) -> None:
    """The first file that it reads is a pipe that nobody writes to, so that loading takes as long as the test wants."""
    chosen = await planned(ENGINE, server, model)
    weights = tmp_path / "tiny"
    shutil.copytree(model, weights)
    (weights / "config.json").unlink()
    os.mkfifo(weights / "config.json")
    delayed = moved(chosen, model, weights)

    with launched(ENGINE, delayed, tmp_path) as engine:
        wait_true(lambda: engine.send(ENGINE.startup_probe(delayed)).status == 503, DEADLINE)
        reply, health = engine.send(ENGINE.startup_probe(delayed)), engine.send(ENGINE.readiness_probe(delayed))

    assert (reply.status, ENGINE.loading(reply)) == (503, True)
    assert health.status == 503


async def test_a_stream_comes_in_pieces_and_ends_with_done(server: str, model: Path, tmp_path: Path) -> None:
    chosen = await planned(ENGINE, server, model)

    with running(ENGINE, chosen, tmp_path) as engine:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 20}
        reply = engine.send(HttpRequest("POST", "/v1/chat/completions", json.dumps(body)))

    events = [line for line in reply.body.splitlines() if line.startswith("data: ")]
    assert len(events) > 3
    assert events[-1] == "data: [DONE]"


async def test_no_request_gets_more_than_its_context(server: str, model: Path, tmp_path: Path) -> None:
    chosen = await planned(ENGINE, server, model, limits={"max_model_len": 64})

    with running(ENGINE, chosen, tmp_path) as engine:
        long = engine.complete(prompt="a" * 64)
        most = engine.complete(prompt="a" * 40, max_tokens=1000)

    assert (long.status, "max_model_len is 64" in long.body) == (404, True)
    assert json.loads(most.body)["usage"]["completion_tokens"] <= 24


@pytest.mark.parametrize("fields", [{"model": "other"}, {"adapters": "/tmp"}, {"draft_model": "other"}])
async def test_a_request_cannot_bring_another_model(
    fields: dict[str, str], server: str, model: Path, tmp_path: Path
) -> None:
    other = make_hf(tmp_path / "other", seed=1)  # relative to the working directory, as mlx-lm would take it
    assert other.is_dir()
    chosen = await planned(ENGINE, server, model)

    with running(ENGINE, chosen, tmp_path) as engine:
        refused, after = engine.complete(**fields), engine.complete()

    assert (refused.status, "serves d and nothing else" in refused.body) == (404, True)
    assert after.status == 200


async def test_work_shows_in_the_activity_and_probing_health_does_not(server: str, model: Path, tmp_path: Path) -> None:
    chosen = await planned(ENGINE, server, model, limits={"max_num_seqs": 1})

    with running(ENGINE, chosen, tmp_path) as engine:
        idle = engine.activity(ENGINE, chosen)
        assert engine.send(ENGINE.liveness_probe(chosen)).status == 200
        still = engine.activity(ENGINE, chosen)
        clients = [threading.Thread(target=lambda: engine.complete(max_tokens=1500)) for _ in range(3)]
        for client in clients:
            client.start()

        def busy() -> bool:
            now = engine.activity(ENGINE, chosen)
            return (now.running, now.waiting) == (1, 2)

        wait_true(busy, DEADLINE, "one request computed, two waiting")
        for client in clients:
            client.join()
        worked = engine.activity(ENGINE, chosen)

    assert idle == still
    assert (idle.running, idle.waiting, worked.running, worked.waiting) == (0, 0, 0, 0)
    assert worked.work is not None
    assert idle.work is not None
    assert worked.work == idle.work + 3


@pytest.mark.parametrize("dtype", ["int8", "int4"])
async def test_a_quantized_cache_is_taken(dtype: str, server: str, tmp_path: Path) -> None:
    model = make_hf(tmp_path / "wide", hidden=256)  # heads of 64 elements, as groups of 64 need
    chosen = await planned(ENGINE, server, model, limits={"kv_cache_dtype": dtype})

    with running(ENGINE, chosen, tmp_path) as engine:
        assert engine.complete(prompt="a" * 300).status == 200


async def test_the_budget_holds(server: str, tmp_path: Path) -> None:
    """Resident memory of a model of 61 MiB under the largest load that its limits allow."""
    model = make_hf(tmp_path / "large", hidden=512, inner=2048, layers=8)
    chosen = await planned(ENGINE, server, model, limits={"max_num_seqs": 4, "max_model_len": 2048})

    with running(ENGINE, chosen, tmp_path) as engine:
        prompts = [f"{number}" * 1900 for number in range(4)]
        clients = [threading.Thread(target=lambda text=text: engine.complete(prompt=text)) for text in prompts]
        for client in clients:
            client.start()
        peak = 0
        while any(client.is_alive() for client in clients):
            peak = max(peak, psutil.Process(engine.process.pid).memory_info().rss)
            time.sleep(0.01)

    print(f"peak {peak / MIB:.0f} MiB, budget {chosen.host_bytes / MIB:.0f} MiB")
    print({term.name: round(term.bytes / MIB) for term in chosen.budgets[0].terms})
    assert peak <= chosen.host_bytes


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 200_000)


def unknown_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "nosuch"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (no_weights, DiagnosisCode.MODEL_MISSING),
        (cut_weights, DiagnosisCode.MODEL_CORRUPT),
        (unknown_type, DiagnosisCode.MODEL_UNSUPPORTED),
    ],
)
async def test_a_bad_model_ends_it_with_its_cause(
    damage: Callable[[Path], None], code: DiagnosisCode, server: str, model: Path, tmp_path: Path
) -> None:
    chosen = await planned(ENGINE, server, model)
    bad = tmp_path / "bad"
    shutil.copytree(model, bad)
    damage(bad)

    with launched(ENGINE, moved(chosen, model, bad), tmp_path) as engine:
        diagnosis = ENGINE.diagnose(engine.end(), engine.log.read_text())

    assert (diagnosis.code, diagnosis.fatal) == (code, True)


async def test_without_our_launcher_a_bad_model_lives_for_ever_and_is_never_ready(
    server: str, model: Path, tmp_path: Path
) -> None:
    """The habit that the launcher is for; and its probes would not be taken in by it."""
    chosen = await planned(ENGINE, server, model)
    bad, port = tmp_path / "bad", free_port()
    shutil.copytree(model, bad)
    unknown_type(bad)
    with (tmp_path / "log").open("wb") as output:
        process = subprocess.Popen(
            [server, "--model", str(bad), "--port", str(port)], stdout=output, stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    engine = Running(process, port, tmp_path / "log")
    try:
        wait_true(lambda: engine.send(ENGINE.startup_probe(chosen)).status == 404, DEADLINE)
        reply = engine.send(ENGINE.startup_probe(chosen))

        assert "generation thread died" in reply.body
        assert not ENGINE.loading(reply)
        assert engine.send(ENGINE.liveness_probe(chosen)).status == 503
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(DEADLINE)
    assert ENGINE.diagnose(ExitStatus(code=1), engine.log.read_text()).code is DiagnosisCode.MODEL_UNSUPPORTED


async def test_a_taken_port_ends_it(server: str, model: Path, tmp_path: Path) -> None:
    chosen = await planned(ENGINE, server, model)
    with (
        socket.create_server(("127.0.0.1", 0)) as stranger,
        launched(ENGINE, chosen, tmp_path, stranger.getsockname()[1]) as engine,
    ):
        ended = engine.end()

    assert ended.code == 1
    assert ENGINE.diagnose(ended, engine.log.read_text()).code is DiagnosisCode.PORT_TAKEN


async def test_a_stopped_process_fails_its_liveness(server: str, model: Path, tmp_path: Path) -> None:
    chosen = await planned(ENGINE, server, model)

    with running(ENGINE, chosen, tmp_path) as engine:
        engine.process.send_signal(signal.SIGSTOP)
        hung = engine.send(ENGINE.liveness_probe(chosen), timeout=1)
        engine.process.send_signal(signal.SIGCONT)
        back = engine.send(ENGINE.liveness_probe(chosen))

    assert (hung.status, back.status) == (0, 200)


async def test_term_ends_it_with_an_open_stream(server: str, model: Path, tmp_path: Path) -> None:
    chosen = await planned(ENGINE, server, model)

    with running(ENGINE, chosen, tmp_path) as engine:
        client = threading.Thread(target=lambda: engine.complete(max_tokens=2000, stream=True))
        client.start()
        wait_true(lambda: engine.activity(ENGINE, chosen).running == 1, DEADLINE)
        engine.process.terminate()
        ended = engine.end()
        client.join()

    assert ended.signal == signal.SIGTERM


async def test_every_allowed_argument_is_one_that_it_takes(server: str, model: Path, tmp_path: Path) -> None:
    arguments = ("--temp", "0.5", "--top-k", "7", "--max-tokens", "9", "--use-default-chat-template")
    assert not ENGINE.check_extra_args(arguments)
    chosen = await planned(ENGINE, server, model, extra_args=arguments)

    with running(ENGINE, chosen, tmp_path) as engine:
        assert json.loads(engine.complete(max_completion_tokens=None).body)["usage"]["completion_tokens"] <= 9
