"""Plans of models that are not here, and what of the catalog fits: on the real daemon, which changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from agent.api.client import Client
from agent.api.structs import struct_to_dict
from agent.errors import InvalidArgument, NotFound
from agent.v1 import agent_pb2 as pb
from tests.harness import Daemon, daemon

ROOT = Path(__file__).parents[2]
FITTING = {pb.FIT_VERDICT_FITS, pb.FIT_VERDICT_UNSURE, pb.FIT_VERDICT_PARTLY, pb.FIT_VERDICT_ON_CPU}
OWN: dict[str, Any] = {
    "id": "ours/Tiny-1B", "aliases": ["tiny:1b"], "family": "llama", "licence": "mit", "task": "chat", "context": 2048,
    "parameters": 1_100_048_384,
    "config": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
        "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
    },
    "variants": [{"repo": "ours/Tiny-1B-GGUF", "format": "gguf", "levels": ["Q8_0", "Q4_K_M"]}],
    "sources": ["ourselves"],
}  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Daemon]:
    """One for all tests here: plans change nothing."""
    root = tmp_path_factory.mktemp("plan")
    own = root / "models.yaml"
    own.write_text(yaml.safe_dump({"models": [OWN], "quantizations": {}}))
    for one in daemon(root, tiny_model, catalog={"models": str(own)}, fetch={"offline": True}):
        yield one.start()


@pytest.fixture
def client(node: Daemon) -> Iterator[Client]:
    with node.client() as connected:
        yield connected


def agentctl(node: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "AGENTD_SOCKET": str(node.control), "PYTHONPATH": str(ROOT), "HOME": "/"}
    command = [sys.executable, "-m", "agent.ctl", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=50, check=False)


def planned(client: Client, model: str, hardware: str | None, **fields: Any) -> pb.PlanDeploymentResponse:
    described = None if hardware is None else {"short": hardware}
    return client.plan_deployment({"name": "p", "model": model, **fields}, hardware=described)


@pytest.mark.parametrize(
    ("hardware", "verdict", "devices"),
    [("h100-sxm:8", pb.FIT_VERDICT_FITS, 1), ("rtx4090", pb.FIT_VERDICT_FITS, 1), ("cpu", pb.FIT_VERDICT_ON_CPU, 0)],
)
def test_a_model_of_the_catalog_is_planned_without_its_files(
    client: Client, hardware: str, verdict: pb.FitVerdict, devices: int
) -> None:
    limits = {"max_model_len": 2048, "max_num_seqs": 2}
    answer = planned(client, "Qwen/Qwen3-0.6B", hardware, limits=limits)
    plan = struct_to_dict(answer.plan)
    assert answer.verdict == verdict
    assert len(plan["devices"]) == devices
    assert plan["variant"]["source"].startswith("hf:")
    assert answer.argv
    pools = {pool.id: pool for pool in answer.pools}
    assert set(plan["devices"]) <= pools.keys() - {"host"}
    for budget in plan["budgets"]:
        pool = pools[budget["pool"]]
        taken = sum(term["bytes"] for term in budget["terms"])
        assert 0 < taken <= pool.total_bytes - pool.others_bytes


def test_exactly_the_named_variant_is_planned(client: Client) -> None:
    for model, asked in (("unsloth/Qwen3-8B-GGUF:Q5_K_M", {}), ("Qwen/Qwen3-8B", {"quantization": "Q5_K_M"})):
        plan = struct_to_dict(planned(client, model, "rtx4090", **asked).plan)
        assert plan["variant"]["quantization"] == "Q5_K_M"
        assert plan["variant"]["source"] == "hf:unsloth/Qwen3-8B-GGUF:Q5_K_M"


@pytest.mark.parametrize(
    ("model", "said", "hint"),
    [
        ("qwen/Qwen3-9B", "the catalog has no model qwen/Qwen3-9B", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B:Q4_9", "the catalog knows no variant Q4_9 of Qwen/Qwen3-8B", "Q4_K_M"),
    ],
)
def test_what_the_catalog_does_not_know_is_refused_with_what_it_knows(
    client: Client, model: str, said: str, hint: str
) -> None:
    answer = planned(client, model, "rtx4090")
    assert (answer.refusal.code, answer.verdict) == ("model_missing", pb.FIT_VERDICT_NOT_SERVED)
    assert said in answer.refusal.message
    assert hint in answer.refusal.hint


def test_a_model_that_is_too_large_is_refused_with_numbers_and_remedies(client: Client) -> None:
    answer = planned(client, "deepseek-ai/DeepSeek-R1", "rtx4090", devices=["0"])
    assert (answer.refusal.code, answer.verdict) == ("does_not_fit", pb.FIT_VERDICT_DOES_NOT_FIT)
    assert "GiB" in answer.refusal.message
    assert answer.rejected
    assert answer.remedies


@pytest.mark.parametrize("name", ["qwen3-8b", "qwen3:8b", "Qwen3-8B", "Qwen/Qwen3-8B"])
def test_a_name_has_one_reference(client: Client, name: str) -> None:
    assert client.resolve_model(name).reference == "hf:Qwen/Qwen3-8B"
    assert client.resolve_model(f"{name}:q4_k_m").reference == "hf:unsloth/Qwen3-8B-GGUF:Q4_K_M"


def test_an_unknown_name_is_not_found_with_the_nearest(client: Client) -> None:
    with pytest.raises(NotFound) as caught:
        client.resolve_model("qwen3-9b")
    assert "Qwen3-8B" in caught.value.hint


def test_offline_what_is_planned_and_not_here_fails_with_what_decides(node: Daemon, client: Client) -> None:
    node.apply("away", model="hf:ours/Tiny-1B", limits={"max_model_len": 64, "max_num_seqs": 1})
    failed = node.wait_until(lambda one: bool(one.diagnosis.code), "away", what="diagnosed")
    assert failed.diagnosis.code == "model_missing"
    assert "fetch.offline" in failed.diagnosis.hint
    client.delete_deployment("away")


def test_agentctl_draws_and_compares_plans(node: Daemon) -> None:
    done = agentctl(node, "plan", "qwen3-8b", "--hardware", "rtx4090", "-o", "svg")
    assert ET.fromstring(done.stdout).tag == "{http://www.w3.org/2000/svg}svg"
    done = agentctl(node, "plan", "--compare", "qwen3-0.6b", "qwen3-8b", "--hardware", "h100-sxm:8")
    assert done.returncode == 0, done.stderr
    rows = {line.split("   ")[0]: line.split()[1:] for line in done.stdout.splitlines()[3:]}
    assert rows["verdict"] == ["fits", "fits"]
    done = agentctl(node, "plan", "qwen3-8b", "--hardware", "rtx4090", "--explain")
    assert "FIELD" in done.stdout


def test_a_fit_looks_at_the_whole_catalog_while_others_are_answered(client: Client) -> None:
    found = []
    for one in client.fit_catalog({"task": "chat", "workload": {"concurrency": 2}}, hardware={"short": "rtx4090"}):
        found.append(one)
        if one.number % 20 == 1:
            assert client.get_status().node.host
    assert [one.number for one in found] == list(range(1, found[0].count + 1))
    assert {one.model.task for one in found} == {"chat"}
    verdicts = {one.model.name: one.verdict for one in found}
    assert verdicts["models/Qwen/Qwen3-8B"] == pb.FIT_VERDICT_FITS
    assert verdicts["models/deepseek-ai/DeepSeek-R1"] not in FITTING
    small = next(one for one in found if one.model.name == "models/Qwen/Qwen3-8B")
    assert 0 < small.device_bytes < 24 << 30
    assert small.max_num_seqs >= 2


def test_a_fit_that_nobody_waits_for_ends(node: Daemon, client: Client) -> None:
    stream = client.fit_catalog({}, hardware={"short": "rtx4090"})
    assert next(stream).number == 1
    stream.close()  # type: ignore[attr-defined]
    assert client.get_status().node.host
    assert "api.call.failed" not in node.log_tail()


def test_a_fit_gives_each_model_its_own_name(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="must be left out"):
        next(client.fit_catalog({"model": "hf:a/b"}))


def test_the_operators_own_models_are_planned_and_a_mistake_is_named(node: Daemon, client: Client) -> None:
    assert client.resolve_model("tiny:1b").reference == "hf:ours/Tiny-1B"
    plan = struct_to_dict(planned(client, "ours/Tiny-1B", None).plan)
    assert plan["variant"]["source"].startswith("hf:ours/Tiny-1B-GGUF:")
    own = node.root / "models.yaml"
    kept = own.read_text()
    own.write_text(yaml.safe_dump({"models": [{**OWN, "context": 0}]}))
    try:
        with pytest.raises(InvalidArgument, match=r"models\[ours/Tiny-1B\].*context"):
            client.resolve_model("tiny:1b")
    finally:
        own.write_text(kept)
    assert client.resolve_model("tiny:1b").model.task == "chat"


def test_json_of_a_fit_is_complete_and_sorted(node: Daemon) -> None:
    done = agentctl(node, "fit", "--hardware", "rtx4090", "--task", "embedding", "--all", "-o", "json")
    models = json.loads(done.stdout)["models"]
    assert models
    assert [one["verdict"] for one in models] == sorted((one["verdict"] for one in models), key=pb.FitVerdict.Value)
