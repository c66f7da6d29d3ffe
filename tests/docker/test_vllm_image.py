"""vLLM in a container, through the real daemon: one deployment is served, read back, adopted, replaced and ended.

One test, because each start of vLLM takes minutes on two cores. `scripts/test-vllm --docker` runs it.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from agent.engines import ENGINES
from agent.engines.base import HttpReply, Metric
from agent.references import ImageReference
from agent.v1 import agent_pb2 as pb
from tests.docker.parts import Docker, import_vllm
from tests.docker.test_serving import Node, plan_of
from tests.harness import PHASE, gone, wait_true
from tests.hf_factory import make_hf

pytestmark = [pytest.mark.docker, pytest.mark.vllm, pytest.mark.timeout(1500)]

#: Seconds for a start: vLLM needs 40 on two cores that it has for itself.
START = 400.0
SLOTS, CONTEXT = 2, 500
PROBES = {
    "startup": {"period_seconds": 1},
    "readiness": {"period_seconds": 2, "timeout_seconds": 2},
    "liveness": {"period_seconds": 2, "timeout_seconds": 2, "failure_threshold": 10},
    "inference": {
        "enabled": True,
        "period_seconds": 2,
        "idle_seconds": 1,
        "timeout_seconds": 15,
        "failure_threshold": 2,
    },
}
REPOSITORY, TAG = "localhost/vllm-cpu", "v1"
ENGINE = ENGINES["vllm"]


@pytest.fixture(scope="module")
def image(dockerd: Docker) -> str:
    """Its id. Made of what `scripts/test-vllm` installed."""
    script = os.environ.get("REAL_VLLM", "")
    if not script:
        pytest.skip("REAL_VLLM does not name a vllm; run scripts/test-vllm --docker")
    import_vllm(dockerd, Path(script), f"{REPOSITORY}:{TAG}")
    return dockerd.run("image", "inspect", "--format", "{{.Id}}", f"{REPOSITORY}:{TAG}")


@pytest.fixture
def node(tmp_path: Path, dockerd: Docker, image: str) -> Iterator[Node]:
    model = make_hf(tmp_path / "tiny", hidden=256)  # heads of 64 elements: the kernels for CPUs have no smaller ones
    made = Node(tmp_path, model, dockerd, ImageReference(REPOSITORY, TAG))
    listed = {
        "repository": REPOSITORY, "tag": TAG, "accelerators": ["cpu"],
        "architectures": ["arm64" if platform.machine() == "aarch64" else "amd64"],
    }  # fmt: skip
    (tmp_path / "engines.yaml").write_text(yaml.safe_dump({"engines": {"vllm": [listed]}}))
    made.start()
    yield made
    made.cleanup()
    made.remove_containers()


def ask(endpoint: str, path: str, body: Mapping[str, Any] | None = None) -> HttpReply:
    data = json.dumps({"model": "m", **body}).encode() if body is not None else None
    request = urllib.request.Request(endpoint + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return HttpReply(reply.status, reply.read().decode())


def tokens(endpoint: str, count: int = 4) -> int:
    reply = ask(endpoint, "/v1/completions", {"prompt": "hello", "max_tokens": count, "ignore_eos": True})
    return int(json.loads(reply.body)["usage"]["completion_tokens"])


def inside(node: Node, container: str) -> dict[str, psutil.Process]:
    """vLLM's processes by their titles; the API server keeps its command line."""
    rows = node.behind_its_back("top", container)["Processes"]
    found = {}
    for row in rows:
        process = psutil.Process(int(row[1]))
        title = " ".join(process.cmdline()).strip()
        if title.startswith("VLLM::") or (" serve " in title and "init" not in title.split()[0]):
            found[title if title.startswith("VLLM::") else "server"] = process
    return found


def most_at_once(endpoint: str, requests: int) -> int:
    """Of so many requests that come together: how many the engine said that it computed, while others waited."""
    most = 0
    with ThreadPoolExecutor(requests) as pool:
        asked = [pool.submit(tokens, endpoint, CONTEXT // 2) for _ in range(requests)]
        while not all(each.done() for each in asked):
            now = ENGINE.parse_activity(ask(endpoint, "/metrics").body)
            if now.waiting:
                most = max(most, now.running or 0)
            time.sleep(0.02)
    assert all(each.result() == CONTEXT // 2 for each in asked)
    return most


def computes_and_streams(endpoint: str) -> None:
    assert tokens(endpoint, 8) == 8
    body = {"prompt": "hello", "max_tokens": 8, "ignore_eos": True, "stream": True}
    streamed = ask(endpoint, "/v1/completions", body).body
    assert streamed.count("data: ") > 8
    assert streamed.rstrip().endswith("data: [DONE]")
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    assert json.loads(ask(endpoint, "/v1/chat/completions", chat).body)["usage"]["completion_tokens"] <= 8


def ready_after(node: Node, restarts: int) -> pb.Deployment:
    found = node.wait_until(
        lambda d: d.restarts > restarts or (d.restarts == restarts and PHASE[d.phase] == "ready"), timeout=START
    )
    assert found.restarts == restarts, found.previous
    return found


def stops_when_it_has_answered(node: Node, ready: pb.Deployment) -> None:
    """With a request in flight."""
    processes = inside(node, ready.instance.container)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(tokens, ready.endpoint, CONTEXT - 100)
        wait_true(lambda: ENGINE.parse_activity(ask(ready.endpoint, "/metrics").body).running, what="in flight")
        with node.client() as client:
            client.stop_deployment("m")
        assert asked.result(timeout=120) == CONTEXT - 100
    stopped = node.wait(phase="stopped", timeout=60)
    assert stopped.instance.exit.code == 0
    assert all(gone(process.pid) for process in processes.values())


def test_vllm_in_a_container_is_served_read_back_adopted_replaced_and_gone(node: Node, image: str) -> None:
    node.apply(
        engine="vllm", runtime="docker", limits={"max_num_seqs": SLOTS, "max_model_len": CONTEXT, "threads": 2},
        probes=PROBES, drain_seconds=120, stop_seconds=30,
    )  # fmt: skip
    node.wait(phase="loading", timeout=120)
    ready = ready_after(node, 0)

    # What the engine says that it gives is what the plan said.
    plan = plan_of(ready)
    assert node.behind_its_back("inspect_container", ready.instance.container)["Image"] == image
    assert ready.granted.max_model_len == plan["limits"]["max_model_len"] == CONTEXT
    assert ready.granted.kv_tokens == plan["capacity"]["kv_tokens"] > CONTEXT
    assert most_at_once(ready.endpoint, SLOTS + 2) == plan["limits"]["max_num_seqs"] == SLOTS

    computes_and_streams(ready.endpoint)

    # Its metrics are told by our names, its output is gathered.
    wait_true(lambda: node.get().instance.metrics[Metric.GENERATED_TOKENS] > CONTEXT, timeout=60, what="measured")
    assert {*node.get().instance.metrics} >= {Metric.RUNNING, Metric.WAITING, Metric.CACHE_USAGE, Metric.PREEMPTIONS}
    log = Path(ready.instance.log_path)
    wait_true(lambda: "Application startup complete" in log.read_text(), timeout=60, what="its output gathered")

    # An agent that dies costs nothing.
    node.kill()
    node.start()
    wait_true(lambda: "Adopted" in node.reasons(), what="adopted")
    adopted = node.wait()
    assert (adopted.instance.container, adopted.instance.pid, adopted.restarts) == (
        ready.instance.container, ready.instance.pid, 0,
    )  # fmt: skip
    assert tokens(adopted.endpoint) == 4

    # The API server dies, which leaves core and worker behind where nobody ends them: the container does.
    first = inside(node, ready.instance.container)
    assert {"server", "VLLM::EngineCore", "VLLM::Worker"} <= {*first}
    first["server"].send_signal(signal.SIGKILL)
    wait_true(lambda: all(gone(process.pid) for process in first.values()), timeout=60, what="no orphan is left")
    again = ready_after(node, 1)
    assert again.previous.diagnosis.code == "killed"
    assert node.containers() == [again.instance.container] == [ready.instance.container]  # the same, started again
    assert again.granted == ready.granted
    assert tokens(again.endpoint) == 4

    # The core dies: the server ends with status 0, which is a crash. The second failure gets a new container.
    second = inside(node, again.instance.container)
    second["VLLM::EngineCore"].send_signal(signal.SIGKILL)
    third = ready_after(node, 2)
    assert (third.previous.exit.code, third.previous.diagnosis.code) == (0, "crashed")
    assert "engine core died" in third.previous.diagnosis.message
    assert all(gone(process.pid) for process in second.values())
    assert third.instance.container != again.instance.container
    wait_true(lambda: node.containers() == [third.instance.container], what="the dead one removed")
    assert third.granted == ready.granted

    # The core hangs: health is answered for ever, and only a real token is not.
    third_parts = inside(node, third.instance.container)
    third_parts["VLLM::EngineCore"].send_signal(signal.SIGSTOP)
    assert ask(third.endpoint, "/health").status == 200
    fourth = ready_after(node, 3)
    assert fourth.previous.diagnosis.code == "inference_hang"
    assert all(gone(process.pid) for process in third_parts.values())

    stops_when_it_has_answered(node, fourth)
    with node.client() as client:
        client.delete_deployment("m")
    wait_true(lambda: node.containers() == [], what="no container left", timeout=20)
    wait_true(lambda: not [*(node.root / "state" / "instances").iterdir()], what="no directory left")
    wait_true(lambda: not [*(node.root / "cache" / "compiled").glob("*")], what="no cache left")
