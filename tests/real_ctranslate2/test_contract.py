"""The adapter's promises, held against the real CTranslate2: a plan is made, run, probed, read back and ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from agent.engines.base import HttpRequest
from agent.engines.ctranslate2 import CTranslate2
from agent.status import DiagnosisCode
from tests.ct2_factory import make_ct2
from tests.harness import wait_true
from tests.real_engine import DEADLINE, launched, moved, planned, running

pytestmark = pytest.mark.ctranslate2

ENGINE = CTranslate2()
MIB = 1024**2
TASK = {"task": "completion"}


async def test_it_grants_what_was_planned(python: str, model: Path, tmp_path: Path) -> None:
    limits = {"max_num_seqs": 3, "max_model_len": 512}
    chosen = await planned(ENGINE, python, model, served_name="org/served", limits=limits, **TASK)

    with running(ENGINE, chosen, tmp_path) as engine:
        granted = ENGINE.parse_granted([engine.send(request) for request in ENGINE.granted_requests(chosen)])
        answer = json.loads(engine.complete(model="org/served").body)

    assert (granted.max_model_len, granted.max_num_seqs, granted.model) == (512, 3, "org/served")
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
async def test_every_stored_type_answers_its_inference_probe(dtype: str, python: str, tmp_path: Path) -> None:
    chosen = await planned(ENGINE, python, make_ct2(tmp_path / "m", dtype=dtype), **TASK)

    with running(ENGINE, chosen, tmp_path) as engine:
        assert engine.send(ENGINE.inference_probe(chosen)).status == 200


async def test_loading_is_seen_and_is_not_ready(python: str, model: Path, tmp_path: Path) -> None:
    """A file of it is a pipe that nobody writes to, so that loading takes as long as the test wants."""
    chosen = await planned(ENGINE, python, model, **TASK)
    copy = tmp_path / "tiny"
    shutil.copytree(model, copy)
    (copy / "tokenizer.json").unlink()
    os.mkfifo(copy / "tokenizer.json")

    with launched(ENGINE, moved(chosen, model, copy), tmp_path) as engine:
        # The tokenizer is opened by native code that lets no other thread run: then nothing answers at all.
        wait_true(lambda: engine.log.exists() and engine.process.poll() is None, DEADLINE)
        reply = engine.send(ENGINE.startup_probe(chosen), timeout=2)

    assert reply.status in {0, 503}
    assert ENGINE.loading(reply)


async def test_a_stream_says_the_same_as_a_whole_answer(python: str, model: Path, tmp_path: Path) -> None:
    chosen = await planned(ENGINE, python, model, **TASK)

    with running(ENGINE, chosen, tmp_path) as engine:
        whole = json.loads(engine.complete(max_tokens=30, temperature=0).body)["choices"][0]["text"]
        streamed = engine.complete(max_tokens=30, temperature=0, stream=True).body

    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert len(events) > 3
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == whole


async def test_no_request_gets_more_than_its_context(python: str, model: Path, tmp_path: Path) -> None:
    chosen = await planned(ENGINE, python, model, limits={"max_model_len": 64}, **TASK)

    with running(ENGINE, chosen, tmp_path) as engine:
        long = engine.complete(prompt="a" * 64)
        before = engine.activity(ENGINE, chosen).work
        most = engine.complete(prompt="a" * 40, max_tokens=1000)
        after = engine.activity(ENGINE, chosen).work

    assert (long.status, "max_model_len is 64" in long.body) == (400, True)
    assert most.status == 200
    assert before is not None
    assert after is not None
    assert after - before <= 24


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "other"}, {"prompt": 5}, {"prompt": ""}, {"max_tokens": 0}, {"max_tokens": "4"}, {"stop": "x"},
        {"temperature": -1}, {"temperature": True}, {"top_p": 2},
    ],
)  # fmt: skip
async def test_what_a_client_does_wrong_is_said(
    fields: dict[str, object], python: str, model: Path, tmp_path: Path
) -> None:
    chosen = await planned(ENGINE, python, model, **TASK)

    with running(ENGINE, chosen, tmp_path) as engine:
        refused, after = engine.complete(**fields), engine.complete()
        junk = engine.send(HttpRequest("POST", "/v1/completions", "junk"))
        elsewhere = engine.send(HttpRequest("POST", "/v1/chat/completions", "{}"))

    assert (refused.status, "error" in json.loads(refused.body)) == (400, True)
    assert (after.status, junk.status, elsewhere.status) == (200, 400, 404)


async def test_work_shows_in_the_activity_and_probing_health_does_not(python: str, tmp_path: Path) -> None:
    model = make_ct2(tmp_path / "m", hidden=256, inner=1024, layers=8)
    chosen = await planned(ENGINE, python, model, limits={"max_num_seqs": 1}, **TASK)

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
    assert worked.work > idle.work


async def test_a_client_that_goes_ends_its_computation(python: str, tmp_path: Path) -> None:
    model = make_ct2(tmp_path / "m", hidden=256, inner=1024, layers=8)
    chosen = await planned(ENGINE, python, model, **TASK)

    with running(ENGINE, chosen, tmp_path) as engine:
        body = json.dumps({"prompt": "hello", "max_tokens": 2000, "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", engine.port)) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            client.recv(100)
        wait_true(lambda: engine.activity(ENGINE, chosen).running == 0, DEADLINE)
        work = engine.activity(ENGINE, chosen).work

    assert work is not None
    assert work < 2000


@pytest.mark.parametrize("dtype", ["int8", "float16"])
async def test_the_budget_holds(dtype: str, python: str, tmp_path: Path) -> None:
    """Resident memory under the largest load that the limits allow."""
    model = make_ct2(tmp_path / "m", hidden=512, inner=2048, layers=8, dtype=dtype)
    chosen = await planned(ENGINE, python, model, limits={"max_num_seqs": 2, "max_model_len": 2048}, **TASK)

    with running(ENGINE, chosen, tmp_path) as engine:
        prompts = [f"{number}" * 1900 for number in range(2)]
        clients = [threading.Thread(target=engine.complete, kwargs={"prompt": text}) for text in prompts]
        for client in clients:
            client.start()
        peak = 0
        while any(client.is_alive() for client in clients):
            peak = max(peak, psutil.Process(engine.process.pid).memory_info().rss)
            time.sleep(0.01)

    print(f"peak {peak / MIB:.0f} MiB, budget {chosen.host_bytes / MIB:.0f} MiB")
    print({term.name: round(term.bytes / MIB) for term in chosen.budgets[0].terms})
    assert peak <= chosen.host_bytes


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_vocabulary(folder: Path) -> None:
    (folder / "vocabulary.json").unlink()


def cut_off(folder: Path) -> None:
    os.truncate(folder / "model.bin", 60_000)


def newer(folder: Path) -> None:
    with (folder / "model.bin").open("r+b") as file:
        file.write(b"\x63\0\0\0")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (no_tokenizer, DiagnosisCode.MODEL_MISSING),
        (no_vocabulary, DiagnosisCode.MODEL_MISSING),
        (cut_off, DiagnosisCode.MODEL_CORRUPT),
        (newer, DiagnosisCode.MODEL_UNSUPPORTED),
    ],
)
async def test_a_bad_model_ends_it_with_its_cause(
    damage: Callable[[Path], None], code: DiagnosisCode, python: str, model: Path, tmp_path: Path
) -> None:
    chosen = await planned(ENGINE, python, model, **TASK)
    bad = tmp_path / "bad"
    shutil.copytree(model, bad)
    damage(bad)

    with launched(ENGINE, moved(chosen, model, bad), tmp_path) as engine:
        diagnosis = ENGINE.diagnose(engine.end(), engine.log.read_text())

    assert (diagnosis.code, diagnosis.fatal) == (code, True)


async def test_a_taken_port_ends_it(python: str, model: Path, tmp_path: Path) -> None:
    chosen = await planned(ENGINE, python, model, **TASK)
    with (
        socket.create_server(("127.0.0.1", 0)) as stranger,
        launched(ENGINE, chosen, tmp_path, stranger.getsockname()[1]) as engine,
    ):
        ended = engine.end()

    assert ended.code == 1
    assert ENGINE.diagnose(ended, engine.log.read_text()).code is DiagnosisCode.PORT_TAKEN


async def test_a_stopped_process_fails_its_liveness(python: str, model: Path, tmp_path: Path) -> None:
    chosen = await planned(ENGINE, python, model, **TASK)

    with running(ENGINE, chosen, tmp_path) as engine:
        engine.process.send_signal(signal.SIGSTOP)
        hung = engine.send(ENGINE.liveness_probe(chosen), timeout=1)
        engine.process.send_signal(signal.SIGCONT)
        back = engine.send(ENGINE.liveness_probe(chosen))

    assert (hung.status, back.status) == (0, 200)


async def test_term_ends_it_with_an_open_stream(python: str, tmp_path: Path) -> None:
    model = make_ct2(tmp_path / "m", hidden=256, inner=1024, layers=8)
    chosen = await planned(ENGINE, python, model, **TASK)

    with running(ENGINE, chosen, tmp_path) as engine:
        client = threading.Thread(target=lambda: engine.complete(max_tokens=2000, stream=True))
        client.start()
        wait_true(lambda: engine.activity(ENGINE, chosen).running == 1, DEADLINE)
        engine.process.terminate()
        ended = engine.end()
        client.join()

    assert ended.signal == signal.SIGTERM
