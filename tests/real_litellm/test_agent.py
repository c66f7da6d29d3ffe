"""LiteLLM below the real agent: a gateway before real engines, which come, die, go and are added while it serves."""

from __future__ import annotations

import contextlib
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from yaml import safe_load

from agent.v1 import agent_pb2 as pb
from tests.gguf_factory import make_gguf
from tests.harness import PHASE, Daemon, daemon, gone, wait_true

pytestmark = [pytest.mark.litellm, pytest.mark.timeout(180)]

#: Its first request imports for a second or two, and answers nobody meanwhile.
PROBES = {
    "readiness": {"period_seconds": 1, "timeout_seconds": 1, "failure_threshold": 10},
    "liveness": {"period_seconds": 2, "timeout_seconds": 2, "failure_threshold": 5},
}
LIMITS = {"max_num_seqs": 1, "max_model_len": 256}


@pytest.fixture
def node(tmp_path: Path, tiny_model: Path, proxy: str) -> Iterator[Daemon]:
    for node in daemon(tmp_path, tiny_model, engines={"litellm": {"binary": [proxy]}}):
        node.start()
        yield node


def apply_gateway(node: Daemon, names: str, **fields: Any) -> pb.Deployment:
    limits = {"max_num_seqs": None, "max_model_len": None, "threads": None} | fields.pop("limits", {})
    node.apply("gate", model=f"gateway:{names}", engine="litellm", limits=limits, probes=PROBES, **fields)
    return node.wait("gate", timeout=90)


def gateways(node: Daemon) -> list[psutil.Process]:
    found = []
    for process in node.engines():
        with contextlib.suppress(psutil.Error):
            if process.name() != "sh" and any(word.endswith("litellm_server.py") for word in process.cmdline()):
                found.append(process)
    return found


def ask(gate: pb.Deployment, model: str, key: str = "") -> tuple[int, dict[str, Any], str]:
    """Status, answer, and the back end that gave it; status 0 where nobody listens."""
    # The weights are random: without the grammar they may answer bytes that are no text.
    body = {"model": model, "prompt": "hello", "max_tokens": 3, "grammar": "root ::= [a-z ]+"}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(gate.endpoint + "/v1/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply), reply.headers.get("x-litellm-model-api-base", "")
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), ""
    except OSError as error:  # nobody listens: it is being replaced
        return 0, {"error": str(error)}, ""


def models(gate: pb.Deployment) -> set[str]:
    with urllib.request.urlopen(gate.endpoint + "/v1/models", timeout=10) as reply:
        return {each["id"] for each in json.load(reply)["data"]}


def test_the_fallback_answers_while_the_primary_is_down_and_then_the_primary_again(node: Daemon) -> None:
    for name in ("large", "small"):
        node.apply(name, limits=LIMITS)
    large, small = (node.wait(name, timeout=60) for name in ("large", "small"))
    gate = apply_gateway(node, "large,small", served_name="any")
    wait_true(lambda: models(gate) == {"any", "large", "small"}, 20)
    assert gate.granted.max_num_seqs == 256

    for asked in ("any", "large"):
        status, answer, back_end = ask(gate, asked)
        assert (status, back_end) == (200, f"{large.endpoint}/v1"), answer
    with node.client() as client:
        client.stop_deployment("large")  # so that it stays down, whatever the agent does about a crash
    node.wait("large", phase="stopped", timeout=30)
    status, answer, back_end = ask(gate, "any")
    assert (status, back_end) == (200, f"{small.endpoint}/v1"), answer
    wait_true(lambda: models(gate) == {"any", "small"}, 20, "what is stopped is no longer forwarded to")
    with node.client() as client:
        client.start_deployment("large")
    node.wait("large", timeout=60)
    wait_true(lambda: ask(gate, "any")[2] == f"{large.endpoint}/v1", 30)


def test_a_crash_of_the_primary_is_answered_by_the_fallback_and_changes_no_configuration(node: Daemon) -> None:
    for name in ("large", "small"):
        node.apply(name, limits=LIMITS, environment={"GATE": str(node.root / name)} if name == "large" else {})
    (node.root / "large").touch()
    node.wait("large", timeout=60)
    small = node.wait("small", timeout=60)
    gate = apply_gateway(node, "large,small")
    wait_true(lambda: models(gate) == {"gate", "large", "small"}, 20)
    configured = next(node.root.glob("state/instances/gate-*/litellm.yaml"))
    before = configured.stat().st_mtime_ns

    (node.root / "large").unlink()  # its replacement waits for it
    (primary,) = node.servers("large")
    primary.kill()
    wait_true(lambda: gone(primary.pid))
    for asked in ("gate", "large"):
        status, answer, back_end = ask(gate, asked)
        assert (status, back_end) == (200, f"{small.endpoint}/v1"), answer
    (node.root / "large").touch()
    large = node.wait("large", timeout=60)
    wait_true(lambda: ask(gate, "gate")[2] == f"{large.endpoint}/v1", 30, "the primary answers again")

    assert configured.stat().st_mtime_ns == before
    assert configured.stat().st_mode & 0o777 == 0o600


def ranked(gate: pb.Deployment, model: str) -> tuple[int, dict[str, Any]]:
    """Status and answer of a question for the two best of three documents."""
    body = {"model": model, "query": "fruit", "documents": ["apple", "hammer", "pear"], "top_n": 2}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(gate.endpoint + "/v1/rerank", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_rerankers_answer_through_it_and_fall_back(node: Daemon, tmp_path: Path) -> None:
    weights = make_gguf(tmp_path / "rank.gguf", pooling="rank")
    for name in ("first", "second"):
        node.apply(name, model=f"file:{weights}", task="rerank", limits=LIMITS)
    for name in ("first", "second"):
        node.wait(name, timeout=60)
    gate = apply_gateway(node, "first,second", task="rerank")
    wait_true(lambda: models(gate) == {"gate", "first", "second"}, 20)
    for asked in ("gate", "first", "second"):
        status, answer = ranked(gate, asked)
        assert (status, len(answer["results"])) == (200, 2), answer
        assert all(isinstance(each["relevance_score"], float) for each in answer["results"])
    with node.client() as client:
        client.stop_deployment("first")
    node.wait("first", phase="stopped", timeout=30)
    status, answer = ranked(gate, "gate")
    assert (status, len(answer["results"])) == (200, 2), answer


def test_a_new_ready_deployment_appears_by_itself_and_the_gateway_is_not_restarted(node: Daemon) -> None:
    gate = apply_gateway(node, "*")
    assert models(gate) == set()
    (before,) = gateways(node)

    node.apply("late", served_name="org/late", limits=LIMITS)
    late = node.wait("late", timeout=60)
    wait_true(lambda: models(gate) == {"gate", "org/late"}, 20, "it is in the configuration")

    assert ask(gate, "org/late")[::2] == (200, f"{late.endpoint}/v1")
    assert ask(gate, "gate")[::2] == (200, f"{late.endpoint}/v1")
    assert ask(gate, "nosuch")[0] == 400
    assert [each.pid for each in gateways(node)] == [before.pid]
    assert "GatewayConfigured" in node.reasons("gate")
    with node.client() as client:
        client.delete_deployment("late")
    wait_true(lambda: models(gate) == set(), 30, "what is deleted is gone from it")


def test_a_gateway_survives_the_agent_and_is_replaced_when_it_dies_or_hangs(node: Daemon) -> None:
    node.apply("one", limits=LIMITS)
    node.wait("one", timeout=60)
    gate = apply_gateway(node, "one")
    wait_true(lambda: "one" in models(gate), 20)
    (first,) = gateways(node)

    node.kill()
    assert ask(gate, "one")[0] == 200  # nobody needs the agent for it
    node.start()
    gate = node.wait("gate", timeout=30)
    assert [each.pid for each in gateways(node)] == [first.pid]

    first.kill()
    wait_true(lambda: gone(first.pid))
    gate = node.wait_until(lambda d: PHASE[d.phase] == "ready" and bool(gateways(node)), "gate", 60)
    wait_true(lambda: ask(gate, "one")[0] == 200, 30)
    (second,) = gateways(node)

    second.send_signal(signal.SIGSTOP)
    wait_true(lambda: gone(second.pid), 60, "the hung gateway is killed")
    gate = node.wait_until(lambda d: PHASE[d.phase] == "ready" and bool(gateways(node)), "gate", 60)
    wait_true(lambda: ask(gate, "one")[0] == 200, 30)


def test_keys_of_the_gateway_and_of_its_back_ends_are_kept_apart(node: Daemon, tmp_path: Path) -> None:
    keys = {name: tmp_path / name for name in ("engine.key", "gateway.key")}
    keys["engine.key"].write_text("canary-of-the-engine\n")
    keys["gateway.key"].write_text("sk-" + "canary0123456789" * 4 + "\n")
    node.apply("one", limits=LIMITS, secrets={"LLAMA_API_KEY": {"file": str(keys["engine.key"])}})
    node.wait("one", timeout=60)
    gate = apply_gateway(node, "one", secrets={"LITELLM_MASTER_KEY": {"file": str(keys["gateway.key"])}})
    key = keys["gateway.key"].read_text().strip()

    wait_true(lambda: ask(gate, "one", key)[0] == 200, 30)
    assert ask(gate, "one")[0] == 401
    assert ask(gate, "one", "canary-of-the-engine")[0] == 401
    logs = "".join(path.read_text() for path in node.root.glob("logs/*/*.log")) + node.log.read_text()
    command_lines = " ".join(" ".join(each.cmdline()) for each in node.engines())
    for text in (logs, command_lines):
        assert "canary" not in text
    written = safe_load(next(node.root.glob("state/instances/gate-*/litellm.yaml")).read_text())
    assert written["model_list"][0]["litellm_params"]["api_key"] == "canary-of-the-engine"


def test_its_administration_is_not_reachable_and_its_limit_refuses(node: Daemon) -> None:
    node.apply("one", limits=LIMITS)
    node.wait("one", timeout=60)
    gate = apply_gateway(node, "one", limits={"max_num_seqs": 1})
    for path in ("/health", "/config/yaml", "/model/info", "/ui", "/"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(gate.endpoint + path, timeout=10)
    (engine,) = node.servers("one")
    engine.send_signal(signal.SIGSTOP)  # the first request stays in flight
    try:
        slow = urllib.request.Request(
            gate.endpoint + "/v1/completions", json.dumps({"model": "one", "prompt": "a"}).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(slow, timeout=1)
    finally:
        engine.send_signal(signal.SIGCONT)
    wait_true(lambda: ask(gate, "one")[0] == 200, 30)


def test_a_stop_ends_every_process(node: Daemon) -> None:
    apply_gateway(node, "*")
    with node.client() as client:
        client.stop_deployment("gate")
    node.wait("gate", phase="stopped", timeout=30)
    assert not node.engines()
