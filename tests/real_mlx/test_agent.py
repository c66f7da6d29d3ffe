"""MLX LM below the real agent: served out of a directory, replaced when it dies or hangs, adopted, and ended."""

from __future__ import annotations

import contextlib
import json
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.v1 import agent_pb2 as pb
from tests.harness import PHASE, Daemon, daemon, gone, wait_true
from tests.hf_factory import make_hf

pytestmark = [pytest.mark.mlx, pytest.mark.timeout(120)]

LIMITS = {"max_num_seqs": 2, "max_model_len": 256}


@pytest.fixture
def node(tmp_path: Path, model: Path, server: str) -> Iterator[Daemon]:
    for node in daemon(tmp_path, model, engines={"mlx-lm": {"binary": [server]}}):
        node.start()
        yield node


def engines(node: Daemon) -> list[psutil.Process]:
    found = []
    for process in node.engines():
        with contextlib.suppress(psutil.Error):
            if any(word.endswith("mlx_server.py") for word in process.cmdline()):
                found.append(process)
    return [process for process in found if process.name() != "sh"]


def serve(node: Daemon, **fields: Any) -> pb.Deployment:
    node.apply(engine="mlx-lm", limits=LIMITS, **fields)
    return node.wait(timeout=60)


def complete(deployment: pb.Deployment) -> dict[str, Any]:
    body = json.dumps({"model": "m", "prompt": "hello", "max_tokens": 3}).encode()
    request = urllib.request.Request(
        deployment.endpoint + "/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as reply:
        return dict(json.load(reply))


def test_a_directory_is_served_within_its_limits(node: Daemon) -> None:
    deployment = serve(node)

    assert complete(deployment)["usage"]["completion_tokens"] == 3
    assert (deployment.granted.max_num_seqs, deployment.granted.max_model_len) == (2, 256)


def test_a_killed_engine_is_replaced(node: Daemon) -> None:
    serve(node)
    (old,) = engines(node)

    old.kill()
    wait_true(lambda: gone(old.pid))
    deployment = node.wait_until(lambda d: PHASE[d.phase] == "ready" and bool(engines(node)), timeout=60)

    assert complete(deployment)["usage"]["completion_tokens"] == 3
    assert "EngineExited" in node.reasons()


def test_a_hung_engine_is_replaced(node: Daemon) -> None:
    serve(node)
    (old,) = engines(node)

    old.send_signal(signal.SIGSTOP)
    wait_true(lambda: gone(old.pid), timeout=40, what="the hung engine is killed")
    deployment = node.wait(timeout=60)

    assert complete(deployment)["usage"]["completion_tokens"] == 3
    assert "Unresponsive" in node.reasons()


def test_an_engine_survives_the_agent_and_is_adopted(node: Daemon) -> None:
    serve(node)
    (before,) = engines(node)

    node.kill()
    node.start()
    deployment = node.wait(timeout=60)

    assert [process.pid for process in engines(node)] == [before.pid]
    assert complete(deployment)["usage"]["completion_tokens"] == 3


def test_a_model_that_it_does_not_know_fails_with_its_cause_and_leaves_nothing(node: Daemon, tmp_path: Path) -> None:
    odd = make_hf(tmp_path / "odd", model_type="nosuch")

    node.apply(engine="mlx-lm", limits=LIMITS, model=f"file:{odd}")
    deployment = node.wait(phase="failed", timeout=60)

    assert deployment.diagnosis.code == "model_unsupported"
    assert not engines(node)


def test_a_stop_ends_every_process(node: Daemon) -> None:
    serve(node)

    with node.client() as client:
        client.stop_deployment("m")
    node.wait(phase="stopped", timeout=30)

    assert not node.engines()
