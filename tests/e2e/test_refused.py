"""What cannot work is refused before anything starts: with the reason, and with what would work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.api.client import Client
from agent.api.structs import struct_to_dict
from agent.errors import InvalidArgument
from agent.v1 import agent_pb2 as pb
from tests.harness import Daemon, daemon
from tests.hf_factory import make_hf

Quantized = dict[str, Any]
_INT8_WEIGHTS = {"num_bits": 8, "type": "int", "strategy": "channel"}
_INT8_INPUTS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
QUANTIZED: dict[str, Quantized] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"},
    "int8": {
        "quant_method": "compressed-tensors", "format": "int-quantized",
        "config_groups": {"group_0": {"weights": _INT8_WEIGHTS, "input_activations": _INT8_INPUTS}},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Daemon]:
    """One for all tests here: nothing that they ask for is begun."""
    root = tmp_path_factory.mktemp("refused")
    for name, quantized in QUANTIZED.items():
        make_hf(root / name, quantization_config=quantized)
    make_hf(root / "trusted", auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
    policy = {"extra_args": ["*"], "trust_remote_code": [f"file:{root}/trusted"]}
    for one in daemon(root, tiny_model, fetch={"offline": True}, policy=policy):
        yield one.start()


@pytest.fixture
def client(node: Daemon) -> Iterator[Client]:
    with node.client() as connected:
        yield connected


def planned(client: Client, model: str, hardware: str, **fields: Any) -> pb.PlanDeploymentResponse:
    return client.plan_deployment({"name": "p", "model": model, **fields}, hardware={"short": hardware})


@pytest.mark.parametrize(
    ("model", "hardware", "engine", "code", "reason", "works"),
    [
        ("unsloth/Qwen3-8B-GGUF:Q4_K_M", "h100-sxm", "vllm", "model_unsupported", "vllm does not read gguf",
         "gguf files are read by llama.cpp"),
        ("{root}/awq", "rtx4090", "llama.cpp", "model_unsupported", "llama.cpp does not read safetensors",
         "safetensors files are read by vllm"),
        ("{root}/int8", "b200", "vllm", "device_unsupported", "compute capability 10.0; it does from 7.5 to below 10.0",
         "vllm runs awq, bf16"),
        ("{root}/int8", "b200", "auto", "device_unsupported", "does not run int8 weights", "nvfp4"),
        ("{root}/fp8", "t4", "vllm", "device_unsupported", "Tesla T4), of compute capability 7.5; it does from 8.0 on",
         "gptq"),
        ("{root}/fp8", "t4", "auto", "device_unsupported", "does not run fp8 weights", "int8"),
    ],
)  # fmt: skip
def test_weights_that_the_engine_or_the_device_cannot_run_are_refused(
    node: Daemon, client: Client, model: str, hardware: str, engine: str, code: str, reason: str, works: str
) -> None:
    answer = planned(client, model.format(root=node.root), hardware, engine=engine)
    assert answer.refusal.code == code
    assert reason in answer.refusal.message
    assert works in answer.refusal.hint
    assert not answer.HasField("missing_bytes")  # no number of bytes would help


def test_the_same_weights_are_planned_where_they_run(node: Daemon, client: Client) -> None:
    for name, hardware in (("int8", "h100-sxm"), ("fp8", "l40s"), ("awq", "t4")):
        plan = struct_to_dict(planned(client, f"{node.root}/{name}", hardware, engine="vllm").plan)
        assert plan["variant"]["quantization"].startswith(name)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--max-num-batched-token", "512"], "unknown flag --max-num-batched-token"),
        (["--gpu-memory-utilization", "0.5"], "`limits.gpu_memory_utilization` decides it"),
        (["--port", "80"], "`port` decides it"),
        (["--trust-remote-code"], "policy.trust_remote_code does not name"),
    ],
)
def test_flags_are_refused_by_plans_and_by_dry_runs_alike(
    node: Daemon, client: Client, arguments: list[str], rule: str
) -> None:
    spec = {"name": "p", "model": f"file:{node.root}/awq", "engine": "vllm", "extra_args": arguments}
    for ask in (
        lambda: client.plan_deployment(spec, hardware={"short": "l40s"}),
        lambda: client.apply_deployment(spec, validate_only=True),
    ):
        with pytest.raises(InvalidArgument) as caught:
            ask()
        violation = caught.value.violations[0]
        assert violation.field == "extra_args[0]"
        assert rule in violation.rule
    assert node.engines() == []


def test_what_no_engine_takes_is_refused_before_it_is_stored(node: Daemon, client: Client) -> None:
    for fields, field, works in (
        ({"extra_args": ["--api-key", "x"]}, "extra_args[0]", "use `secrets`"),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "0"}}, "environment.CUDA_VISIBLE_DEVICES", "`devices` decides it"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            client.apply_deployment(node.spec("nobody", **{"engine": "auto", **fields}))
        (violation,) = caught.value.violations
        assert violation.field == field
        assert works in violation.rule
        assert "no engine takes it" in violation.rule
    assert client.list_deployments() == []


def test_a_models_own_code_runs_where_the_policy_names_the_model(node: Daemon, client: Client) -> None:
    asked = {"engine": "vllm", "extra_args": ["--trust-remote-code"]}
    answer = planned(client, f"{node.root}/trusted", "l40s", **asked)
    assert "--trust-remote-code" in answer.argv


def test_a_flag_that_this_very_executable_does_not_know_is_found_before_its_start(
    node: Daemon, client: Client, tiny_model: Path
) -> None:
    """The adapter knows --mirostat; the launcher of the embedded engine, which is what runs here, does not."""
    arguments = ["--mirostat", "2"]
    failed = node.apply("flag", extra_args=arguments)
    failed = node.wait("flag", phase="failed")
    assert failed.diagnosis.code == "bad_flag"
    assert "does not know --mirostat" in failed.diagnosis.message
    assert node.engines() == []
    assert not list(node.root.glob("logs/flag/*"))
    # By now its list is known, and a plan says the same.
    answer = client.plan_deployment(node.spec("again", extra_args=arguments))
    assert answer.refusal.code == "bad_flag"
    assert failed.diagnosis.message in answer.refusal.message
    client.delete_deployment("flag")
