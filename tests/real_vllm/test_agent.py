"""A directory of weights served by vLLM through the real daemon: its processes are found again, replaced and ended."""

from __future__ import annotations

import contextlib
import json
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.harness import Daemon, daemon, gone, wait_true

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

#: Seconds for a start: vLLM needs 40 on two cores.
START = 240.0
PROBES = {
    "startup": {"period_seconds": 1},
    "readiness": {"period_seconds": 2, "timeout_seconds": 2},
    "liveness": {"period_seconds": 2, "timeout_seconds": 2, "failure_threshold": 10},
    "inference": {"enabled": True, "period_seconds": 2, "idle_seconds": 1, "timeout_seconds": 30},
}


@pytest.fixture
def vllm_node(tmp_path: Path, model: Path, vllm: str) -> Iterator[Daemon]:
    yield from daemon(tmp_path, model, engines={"vllm": {"binary": [vllm]}})


def parts(node: Daemon) -> dict[str, psutil.Process]:
    """vLLM's processes by their titles; the API server keeps its command line."""
    found = {}
    for process in node.engines():
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline()).strip()
            name = (
                title
                if title.startswith("VLLM::")
                else "server"
                if " serve " in title and "shim.sh" not in title
                else ""
            )
            if name:
                found[name] = process
    return found


def completion(endpoint: str) -> str:
    body = json.dumps({"model": "m", "prompt": "hello", "max_tokens": 4}).encode()
    asked = urllib.request.Request(f"{endpoint}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as reply:
        return str(json.load(reply)["choices"][0]["text"])


def test_a_directory_of_weights_is_served_adopted_replaced_and_gone(vllm_node: Daemon) -> None:
    node = vllm_node.start()
    node.apply(engine="vllm", limits={"max_num_seqs": 2, "max_model_len": 500}, probes=PROBES, stop_seconds=20)
    ready = node.wait(timeout=START)
    assert completion(ready.endpoint) is not None
    assert ready.granted.max_model_len == 500
    first = parts(node)
    assert {"server", "VLLM::EngineCore", "VLLM::Worker"} <= set(first)

    # The agent's death costs nothing.
    node.kill()
    node.start()
    adopted = node.wait()
    assert (adopted.instance.pid, adopted.restarts) == (ready.instance.pid, 0)
    assert completion(adopted.endpoint) is not None
    # A real token is computed now and then.
    node.wait_until(lambda d: any(p.kind == "inference" and p.verdict == "pass" for p in d.instance.probes), timeout=60)

    # The core dies: the server ends with status 0, which is a crash.
    first["VLLM::EngineCore"].send_signal(signal.SIGKILL)
    again = node.wait_until(
        lambda d: d.restarts == 1 and d.instance.HasField("ready_time"), timeout=START, what="replaced"
    )
    assert again.previous.diagnosis.code == "crashed"
    assert "engine core died" in again.previous.diagnosis.message
    assert all(gone(process.pid) for process in first.values())
    assert completion(again.endpoint) is not None

    # The server dies, and would leave its core and worker behind.
    second = parts(node)
    assert second["server"].pid != first["server"].pid
    second["server"].send_signal(signal.SIGKILL)
    wait_true(lambda: all(gone(process.pid) for process in second.values()), timeout=60, what="no orphan is left")
    third = node.wait_until(
        lambda d: d.restarts == 2 and d.instance.HasField("ready_time"), timeout=START, what="replaced"
    )
    assert third.previous.diagnosis.code == "killed"

    with node.client() as client:
        client.delete_deployment("m")
    wait_true(lambda: not node.engines(), timeout=60, what="no process left")
    wait_true(lambda: not list((node.root / "state" / "instances").iterdir()), what="no sockets left")
