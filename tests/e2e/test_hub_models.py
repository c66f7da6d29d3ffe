"""Models that the catalog does not know, on the real daemon: planned from headers that a hub serves, or refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf.json_format import MessageToDict

from agent.api.structs import struct_to_dict
from agent.v1 import agent_pb2 as pb
from tests.gguf_factory import make_gguf
from tests.harness import Daemon, daemon
from tests.hf_factory import make_hf
from tests.hub.server import Fault, Hub, too_many

CANARY = "hf_canaryCanaryCanary"
HOPPER = "h100-sxm:1"
LIMITS = {"max_model_len": 512, "max_num_seqs": 1}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    plain = files(make_hf(root / "plain"))
    for level, kind in {"Q4_K_M": "Q4_K", "Q8_0": "Q8_0", "F16": "F16"}.items():
        make_gguf(root / f"tiny-{level}.gguf", quantization=kind, hidden=256)
    levels = {path.name: path.read_bytes() for path in root.glob("*.gguf")}
    card = {"base_model": "org/tiny", "base_model_relation": "quantized"}
    with Hub() as running:
        running.tokens.add(CANARY)
        running.repo("org/tiny", plain, card={"license": "mit"})
        running.repo("org/tiny-again", plain, card=card, tags=("fp8",))
        running.repo("someone/tiny-GGUF", levels, card=card)
        running.repo("org/levels", {"config.json": b"{}", **levels})
        running.repo("org/gated", plain, gated="manual")
        running.repo("org/private", plain, private=True, granted={CANARY})
        running.repo("org/slow", plain)
        running.repo("org/busy", plain)
        running.fail(Fault("/api/models/org/slow/*", stall_at=0))
        running.fail(too_many(7200, path="/api/models/org/busy/*", times=99))
        yield running


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def node(hub: Hub, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Daemon]:
    root = tmp_path_factory.mktemp("node")
    (root / "token").write_text(CANARY)
    fetch = {"endpoint": hub.endpoint, "token_file": str(root / "token")}
    for one in daemon(root, tiny_model, fetch=fetch):
        yield one.start()


@pytest.fixture(scope="module")
def slow(node: Daemon) -> Iterator[Future[pb.PlanDeploymentResponse]]:
    """A plan that waits for a silent hub while everything else here is asked for."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(planned, node, "org/slow")


@pytest.fixture(autouse=True)
def silence(slow: Future[Any]) -> None:
    """All tests here run while the hub is silent to somebody."""


def planned(node: Daemon, model: str, hardware: str | None = HOPPER, **fields: Any) -> pb.PlanDeploymentResponse:
    described = None if hardware is None else {"short": hardware}
    with node.client() as client:
        spec = {"name": "p", "model": f"hf:{model}", "limits": LIMITS, **fields}
        return client.plan_deployment(spec, hardware=described)


def test_a_model_of_safetensors_is_planned_with_others_forms_of_it(node: Daemon, hub: Hub) -> None:
    answer = planned(node, "org/tiny")
    plan = struct_to_dict(answer.plan)
    variant, commit = plan["variant"], hub.repos["org/tiny"].refs["main"]
    assert (variant["source"], variant["quantization"]) == (f"hf:org/tiny@{commit}", "bf16")
    reasons = {one["candidate"]: one["sentence"] for one in plan["rejected"]}
    assert reasons["hf:someone/tiny-GGUF"].startswith("policy.model_variants is known")
    again = f"hf:org/tiny-again@{hub.repos['org/tiny-again'].refs['main']}"
    assert any(again in candidate for candidate in reasons)
    assert not hub.asked("/cdn/someone/*")


def test_of_gguf_files_one_level_is_chosen_by_the_name_of_its_file(node: Daemon, hub: Hub) -> None:
    commit = hub.repos["org/levels"].refs["main"]
    for asked, level in (("org/levels", "Q4_K_M"), ("org/levels:q8_0", "Q8_0")):
        answer = planned(node, asked, None, engine="llama.cpp", devices="cpu")
        variant = struct_to_dict(answer.plan)["variant"]
        assert variant["source"] == f"hf:org/levels@{commit}:{level}", answer
        assert variant["path"].endswith(f"tiny-{level}.gguf")


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("org/absent", "model_missing", "hf:org/absent does not exist, or may not be seen"),
        ("org/levels:Q2_K", "model_missing", "hf:org/levels has no variant Q2_K"),
        ("org/tiny@v9", "model_missing", "the repository has no such revision"),
        ("org/gated", "model_gated", "its publisher gives it only to who was granted access"),
        ("org/busy", "source_unavailable", "too many requests; it asks to wait 7200 s"),
    ],
)
def test_what_the_hub_does_not_give_is_refused_with_the_reason(node: Daemon, model: str, code: str, words: str) -> None:
    answer = planned(node, model)
    assert (answer.refusal.code, answer.verdict) == (code, pb.FIT_VERDICT_NOT_SERVED)
    assert words in answer.refusal.message


def test_a_gated_model_without_a_token_is_refused_with_where_to_name_one(node: Daemon) -> None:
    token = node.root / "token"
    token.write_text("")
    try:
        answer = planned(node, "org/gated")
    finally:
        token.write_text(CANARY)
    assert answer.refusal.code == "model_gated"
    assert "fetch.token_file" in answer.refusal.hint


def test_a_deployment_of_what_is_not_there_fails_with_the_diagnosis(node: Daemon) -> None:
    node.apply("absent", model="hf:org/absent")
    failed = node.wait_until(lambda one: bool(one.diagnosis.code), "absent", what="diagnosed")
    assert failed.diagnosis.code == "model_missing"
    with node.client() as client:
        client.delete_deployment("absent")


def test_a_deployment_keeps_what_it_was_planned_from_while_the_hub_is_away(
    node: Daemon, hub: Hub, tmp_path: Path
) -> None:
    """Another agent with the same cache stands for this one after a restart: it remembers nothing."""
    node.apply("levels", model="hf:org/levels")
    first = struct_to_dict(node.wait("levels", "ready").plan)["variant"]
    hub.repos["org/levels"].commit({"README.md": b"changed"})
    fault = hub.fail(Fault(status=503, body=b""))
    settings = {"directories": {"cache": str(node.root / "cache")}, "fetch": {"endpoint": hub.endpoint}}
    try:
        for other in daemon(tmp_path, node.model, **settings):
            again = planned(other.start(), "org/levels", None, engine="llama.cpp")
            assert struct_to_dict(again.plan)["variant"]["source"] == first["source"]
    finally:
        hub.faults.remove(fault)
    with node.client() as client:
        client.delete_deployment("levels")


def test_the_token_is_shown_to_the_hub_and_to_nobody_else(node: Daemon, hub: Hub) -> None:
    with Watched(node) as seen:
        answers = [planned(node, model) for model in ("org/private", "org/gated@main", "org/absent2")]
    assert answers[0].HasField("plan")
    assert CANARY in hub.asked("/api/models/org/private/*")[0].headers["authorization"]
    assert not any("authorization" in request.headers for request in hub.asked("/cdn/*"))
    assert any("--hub" in line for line in seen)
    with node.client() as client:
        told = [MessageToDict(one) for one in (*answers, client.get_status(), *client.list_events(limit=1000))]
    for name, text in {"argv": str(sorted(seen)), "log": node.log.read_text(), "API": json.dumps(told)}.items():
        assert CANARY not in text, name
    for path in node.root.rglob("*"):
        if path.is_file() and path.name != "token":
            assert CANARY.encode() not in path.read_bytes(), path


class Watched:
    """Command lines of the daemon's children, while it lasts."""

    def __init__(self, node: Daemon) -> None:
        assert node.process is not None
        self._process, self._done = psutil.Process(node.process.pid), threading.Event()
        self._seen: set[str] = set()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> set[str]:
        self._thread.start()
        return self._seen

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            for child in self._process.children(recursive=True):
                try:
                    self._seen.add(" ".join(child.cmdline()))
                except psutil.Error:
                    continue


def test_a_silent_hub_is_given_up_and_has_held_up_nobody(node: Daemon, slow: Future[pb.PlanDeploymentResponse]) -> None:
    answer = slow.result(timeout=40)
    assert answer.refusal.code == "source_unavailable"
    assert "org/slow" in answer.refusal.message
    assert "api.call.failed" not in node.log.read_text()
