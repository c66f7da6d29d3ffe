"""NIM's adapter against vLLM's recorded options and a contract server that answers as NIM's documentation says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.engines.base import Activity
from agent.engines.nim import BUNDLED, NIM
from agent.planning.memory import vllm
from agent.planning.memory.base import GIB, Card, Request, Verdict
from agent.planning.plan import Placement
from agent.status import DiagnosisCode, ExitStatus
from tests.engines.contract_server import CLOSED, Answer, ContractServer, activity, granted, is_loading, is_ready
from tests.engines.rank_plans import LIMITS, flags, plan, profile, value

ENGINE = NIM()
METRICS = """\
vllm:num_requests_running{engine="0",model_name="served"} 2.0
vllm:num_requests_waiting{engine="0",model_name="served"} 1.0
vllm:prompt_tokens_total{engine="0",model_name="served"} 70.0
vllm:generation_tokens_total{engine="0",model_name="served"} 30.0
"""
PHASES = {
    CLOSED: {},
    # nginx answers for itself as soon as the container runs.
    "loading": {"GET /v1/health/live": Answer(200), "GET /v1/health/ready": Answer(503)},
    "ready": {
        "GET /v1/health/live": Answer(200),
        "GET /v1/health/ready": Answer.of({"message": "Service is ready."}),
        "GET /v1/models": Answer.of({"data": [{"id": "served", "max_model_len": 8192}]}),
        "GET /v1/metrics": Answer(200, METRICS),
        "POST /v1/completions": Answer.of({"choices": [{"text": "b"}]}),
    },
    "engine dead": {"GET /v1/health/live": Answer(200), "GET /v1/health/ready": Answer(502)},
}


def test_every_limit_of_the_plan_reaches_its_flag_or_variable() -> None:
    placement = Placement("cuda", environment={"CUDA_VISIBLE_DEVICES": "GPU-1"}, tensor=2, pipeline=3)
    limits = replace(LIMITS, kv_cache_dtype="fp8")

    command = ENGINE.command(plan(ENGINE, limits=limits, placement=placement), "127.0.0.1", 8100)

    assert value(command.argv, "--max-num-seqs") == "24"
    assert value(command.argv, "--max-num-batched-tokens") == "4096"
    assert value(command.argv, "--gpu-memory-utilization") == "0.85"
    assert value(command.argv, "--kv-cache-dtype") == "fp8"
    assert {name: text for name, text in command.environment.items() if name.startswith(("NIM_", "CUDA"))} == {
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "NIM_MODEL_PATH": "/m",
        "NIM_SERVED_MODEL_NAME": "served",
        "NIM_SERVER_PORT": "8100",
        "NIM_MAX_MODEL_LEN": "8192",
        "NIM_TENSOR_PARALLEL_SIZE": "2",
        "NIM_PIPELINE_PARALLEL_SIZE": "3",
    }


def test_every_flag_of_the_command_is_one_of_vllms_and_refused_in_extra_args() -> None:
    argv = ENGINE.command(plan(ENGINE), "127.0.0.1", 8100).argv

    assert set(flags(argv)) <= set(ENGINE._options.values)
    assert [flag for flag in flags(argv) if flag not in ENGINE._options.refused] == []


def test_variables_that_go_round_the_checked_flags_are_refused() -> None:
    assert ENGINE.check_variable("NIM_PASSTHROUGH_ARGS")
    assert ENGINE.check_variable("NVIDIA_VISIBLE_DEVICES")
    assert not ENGINE.check_variable("NGC_API_KEY")


def test_it_runs_in_containers_only(tmp_path: Path) -> None:
    assert not ENGINE.capabilities.native
    assert ENGINE.locate(None) is None
    assert ENGINE.locate((str(tmp_path),)) is None


@pytest.mark.parametrize(
    ("quantization", "capability", "runs"),
    [("bf16", (8, 0), True), ("bf16", (7, 5), False), ("int8", (9, 0), True), ("int8", (10, 0), False)],
)
def test_quantizations_run_by_compute_capability(quantization: str, capability: tuple[int, int], runs: bool) -> None:
    assert ENGINE.capabilities.quantizations is not None
    support = ENGINE.capabilities.quantizations[quantization]

    assert (support.least <= capability < support.below) is runs
    assert support.accelerators == {"cuda"}


def test_its_memory_is_that_of_the_vllm_it_bundles() -> None:
    model, card = profile("Qwen/Qwen3-8B", "bf16"), Card(80 * GIB)

    found = ENGINE.estimate(model, LIMITS, "chat", Placement("cuda"), card)

    asked = Request(
        "vllm", card, BUNDLED, utilization=0.85, max_model_len=8192, max_num_seqs=24, max_num_batched_tokens=4096
    )
    assert found == vllm.estimate(model, asked)
    assert found.verdict == Verdict.FITS
    assert ENGINE.batch_defaults(model, card, "chat") == (8192, 1024)


def test_nginx_alone_is_no_readiness() -> None:
    made = plan(ENGINE)
    with ContractServer(PHASES) as server:
        assert is_loading(server, ENGINE, made)
        server.enter("loading")
        assert is_loading(server, ENGINE, made)
        server.enter("ready")
        assert is_ready(server, ENGINE, made)
        found = granted(server, ENGINE, made)
        assert (found.max_model_len, found.model) == (8192, "served")
        assert server.ask(ENGINE.inference_probe(made)).status == 200
        assert activity(server, ENGINE, made) == Activity(2, 1, 100.0)
        server.enter("engine dead")
        assert server.ask(ENGINE.liveness_probe(made)).status == 502


def test_its_failures_are_vllms() -> None:
    log = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23 GiB"

    assert ENGINE.diagnose(ExitStatus(code=1), log).code == DiagnosisCode.DEVICE_OOM
