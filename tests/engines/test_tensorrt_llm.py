"""TensorRT-LLM's adapter against its recorded options, a contract server, and excerpts of logs.

Some log lines are those of public issues of TensorRT-LLM (6988, 8802, 5510 and others), with other numbers and paths;
the rest is written from the messages in its sources.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.engines.base import Activity, HttpReply
from agent.engines.ranks import Room
from agent.engines.tensorrt_llm import TensorRTLLM, left_share
from agent.planning.ledger import MeasuredTerm
from agent.planning.memory.base import GIB, Card, Verdict
from agent.planning.plan import Limits, MemoryTerm, Placement
from agent.status import DiagnosisCode, ExitStatus, Granted
from tests.engines.contract_server import CLOSED, Answer, ContractServer, activity, granted, is_loading, is_ready
from tests.engines.rank_plans import LIMITS, flags, plan, profile, value

ENGINE = TensorRTLLM()
DATA = Path(__file__).parent / "data"
METRICS = (DATA / "tensorrt_llm-metrics.txt").read_text(encoding="utf-8")

#: As `serve/openai_server.py` answers.
PHASES = {
    CLOSED: {},
    "ready": {
        "GET /health": Answer(200),
        "GET /v1/models": Answer.of({"object": "list", "data": [{"id": "served", "object": "model"}]}),
        "GET /metrics": Answer.of([]),  # iteration statistics in JSON, not Prometheus' format
        "GET /prometheus/metrics": Answer(200, METRICS),
        "POST /v1/completions": Answer.of({"choices": [{"text": "b"}]}),
    },
    "prefill": {
        "GET /health": Answer(200),
        "GET /health_generate": Answer(hangs=True),
        "GET /prometheus/metrics": Answer(200, METRICS),
    },
    "broken": {"GET /health": Answer(503, "LLM is unavailable. Please check the server logs for more details.")},
}


def test_every_limit_of_the_plan_reaches_its_true_flag() -> None:
    placement = Placement("cuda", environment={"CUDA_VISIBLE_DEVICES": "GPU-1"}, tensor=2, pipeline=3)
    limits = replace(LIMITS, kv_cache_dtype="fp8")

    command = ENGINE.command(plan(ENGINE, limits=limits, placement=placement), "127.0.0.1", 8100)
    argv = command.argv

    assert argv[:2] == ("/usr/bin/trtllm-serve", "/m")
    assert value(argv, "--served_model_name") == "served"
    assert (value(argv, "--host"), value(argv, "--port")) == ("127.0.0.1", "8100")
    assert (value(argv, "--tp_size"), value(argv, "--pp_size")) == ("2", "3")
    assert value(argv, "--max_seq_len") == "8192"
    assert value(argv, "--max_batch_size") == "24"
    assert value(argv, "--max_num_tokens") == "4096"
    assert value(argv, "--kv_cache_dtype") == "fp8"
    assert command.environment == {"CUDA_VISIBLE_DEVICES": "GPU-1", "HF_HUB_OFFLINE": "1"}


def test_every_flag_of_the_command_is_known_and_refused_in_extra_args() -> None:
    argv = ENGINE.command(plan(ENGINE), "127.0.0.1", 8100).argv

    assert set(flags(argv)) <= set(ENGINE._options.values)
    assert [flag for flag in flags(argv) if flag not in ENGINE._options.refused] == ["--enable_chunked_prefill"]


def test_prompts_longer_than_a_batch_are_computed_in_chunks() -> None:
    short = replace(LIMITS, max_model_len=4096)

    assert "--enable_chunked_prefill" in ENGINE.command(plan(ENGINE), "127.0.0.1", 1).argv
    assert "--enable_chunked_prefill" not in ENGINE.command(plan(ENGINE, limits=short), "127.0.0.1", 1).argv


def test_the_file_of_settings_is_there_and_overrides_no_flag_of_the_plan() -> None:
    settings = Path(value(ENGINE.command(plan(ENGINE), "127.0.0.1", 1).argv, "--config"))

    assert yaml.safe_load(settings.read_text(encoding="utf-8")) == {
        "return_perf_metrics": True,
        "enable_iter_perf_stats": True,
    }


# The share


@pytest.mark.parametrize(("model", "variant"), [("Qwen/Qwen3-8B", "bf16"), ("Qwen/Qwen3-8B", "fp8-block")])
@pytest.mark.parametrize("free", [None, 60 * GIB])
@pytest.mark.parametrize("tensor", [1, 2])
def test_command_and_estimate_mean_the_same_share(model: str, variant: str, free: int | None, tensor: int) -> None:
    card, placement = Card(80 * GIB, free), Placement("cuda", tensor=tensor)
    limits = replace(LIMITS, gpu_memory_utilization=0.7)
    found = ENGINE.estimate(profile(model, variant), limits, "chat", placement, card)
    made = plan(ENGINE, found, card, limits, placement)

    share = float(value(ENGINE.command(made, "127.0.0.1", 1).argv, "--kv_cache_free_gpu_memory_fraction"))

    # As the engine computes it: of what is free after the trial run.
    left = (free or card.total) - sum(term.bytes for term in found.terms)
    assert found.pool is not None
    assert found.pool.bytes == pytest.approx(left * share, abs=2)
    assert found.verdict == Verdict.FITS


@given(
    total=st.integers(16, 192),
    part=st.floats(0.3, 1.0),
    utilization=st.floats(0.1, 1.0),
    seqs=st.integers(1, 512),
    tensor=st.sampled_from([1, 2, 4]),
)
def test_what_the_engine_takes_stays_within_the_plans_budget(
    total: int, part: float, utilization: float, seqs: int, tensor: int
) -> None:
    card = Card(total * GIB, int(total * part * GIB))
    utilization = min(utilization, part)
    limits = Limits(seqs, 4096, "auto", 4096, 4, gpu_memory_utilization=utilization)
    found = ENGINE.estimate(profile("Qwen/Qwen3-8B", "bf16"), limits, "chat", Placement("cuda", tensor=tensor), card)

    taken = sum(term.bytes for term in found.terms)
    assert found.pool is not None
    if taken < utilization * card.total * 0.99:  # below, the smallest share that can be given is more
        assert taken + found.pool.bytes <= utilization * card.total + card.total / 1000


def test_the_share_is_of_what_is_left() -> None:
    terms = (MemoryTerm("weights", 15 * GIB, ""), MemoryTerm("activation peak", 5 * GIB, ""))

    assert left_share(Room(80 * GIB, 80 * GIB, 65 * GIB), terms) == 0.75  # (65 - 20) / (80 - 20)
    assert left_share(Room(80 * GIB, 40 * GIB, 35 * GIB), terms) == 0.75  # (35 - 20) / (40 - 20)
    assert left_share(Room(80 * GIB, 80 * GIB, 10 * GIB), terms) == 0.001


def test_a_model_that_is_too_large_does_not_fit() -> None:
    model = profile("meta-llama/Llama-3.1-70B-Instruct", "bf16")
    one = ENGINE.estimate(model, LIMITS, "chat", Placement("cuda"), Card(80 * GIB))
    four = ENGINE.estimate(model, LIMITS, "chat", Placement("cuda", tensor=4), Card(80 * GIB))

    assert (one.verdict, four.verdict) == (Verdict.TOO_LARGE, Verdict.FITS)


def test_each_device_has_a_worker_beside_server_and_proxy() -> None:
    (term,) = ENGINE.host_terms(profile("Qwen/Qwen3-8B", "bf16"), Placement("cuda", tensor=2, pipeline=2))

    assert "6 processes" in term.source


# What runs where


@pytest.mark.parametrize(
    ("quantization", "capability", "runs"),
    [
        ("bf16", (8, 0), True),
        ("bf16", (7, 5), False),
        ("fp8", (8, 6), False),
        ("fp8", (8, 9), True),
        ("fp8-block", (8, 9), False),
        ("fp8-block", (9, 0), True),
        ("nvfp4", (9, 0), False),
        ("nvfp4", (10, 0), True),
    ],
)
def test_quantizations_run_by_compute_capability(quantization: str, capability: tuple[int, int], runs: bool) -> None:
    assert ENGINE.capabilities.quantizations is not None
    support = ENGINE.capabilities.quantizations[quantization]

    assert (support.least <= capability < support.below) is runs


@pytest.mark.parametrize("quantization", ["awq", "gptq", "int8", "w4a16", "Q4_K_M"])
def test_what_its_only_backend_does_not_load_is_no_support(quantization: str) -> None:
    assert ENGINE.capabilities.quantizations is not None
    assert quantization not in ENGINE.capabilities.quantizations


# Arguments


@pytest.mark.parametrize(
    ("arguments", "rules"),
    [
        (["--reasoning_parser", "qwen3", "--enable_chunked_prefill"], []),
        (["--tool_parser=qwen3"], []),
        (["--trust_remote_code"], []),  # the node policy decides about it
        (["--free_gpu_memory_fraction", "0.9"], ["extra_args[0]: --free_gpu_memory_fraction may not be given: the"]),
        (["--extra_llm_api_options", "f"], ["extra_args[0]: --extra_llm_api_options may not be given: it overrides"]),
        (["--middleware", "x.y"], ["extra_args[0]: --middleware may not be given: it runs code"]),
        (["--reasoning-parser"], ["extra_args[0]: unknown flag --reasoning-parser; did you mean --reasoning_parser?"]),
        (["--tool_parser"], ["extra_args[0]: --tool_parser takes 1 value"]),
    ],
)
def test_extra_arguments_are_judged_by_position_and_rule(arguments: list[str], rules: list[str]) -> None:
    found = [f"{violation.field}: {violation.rule}" for violation in ENGINE.check_extra_args(arguments)]

    assert len(found) == len(rules)
    assert all(text.startswith(rule) for text, rule in zip(found, rules, strict=True)), found


def test_variables_that_go_round_the_plan_are_refused() -> None:
    assert ENGINE.check_variable("CUDA_VISIBLE_DEVICES")
    assert not ENGINE.check_variable("TRTLLM_SERVER_DISABLE_GC")


# Over HTTP


def test_a_start_is_loading_while_the_bound_port_refuses() -> None:
    made = plan(ENGINE)
    with ContractServer(PHASES) as server:
        assert is_loading(server, ENGINE, made)
        server.enter("ready")
        assert is_ready(server, ENGINE, made)
        assert granted(server, ENGINE, made) == Granted(model="served")
        assert server.ask(ENGINE.inference_probe(made)).status == 200
        assert activity(server, ENGINE, made) == Activity(4, 1, 1000.0)
        server.enter("broken")
        assert server.ask(ENGINE.liveness_probe(made)).status == 503


def test_a_long_prefill_fails_neither_readiness_nor_liveness() -> None:
    made = plan(ENGINE)
    with ContractServer(PHASES) as server:
        server.enter("prefill")

        assert server.ask(ENGINE.readiness_probe(made)).status == 200
        assert server.ask(ENGINE.liveness_probe(made)).status == 200
        assert activity(server, ENGINE, made).running == 4


@pytest.mark.parametrize("reply", [HttpReply(404, "{}"), HttpReply(200, "no json"), HttpReply(0, "")])
def test_limits_that_cannot_be_read_back_are_not_known(reply: HttpReply) -> None:
    assert ENGINE.parse_granted([reply]) == Granted()


def test_iteration_statistics_in_json_are_no_activity() -> None:
    assert ENGINE.parse_activity("[]") == Activity(None, None, None)


def test_every_mapped_metric_is_one_that_the_engine_has() -> None:
    assert all(name in METRICS for name in ENGINE.metrics.values())


# What its log tells


def test_the_memory_report_of_one_device() -> None:
    log = (DATA / "tensorrt_llm-report.log").read_text(encoding="utf-8")

    assert ENGINE.parse_memory(log, plan(ENGINE)) == (
        MeasuredTerm("0", "weights", round(61.08 * GIB)),
        MeasuredTerm("0", "KV cache", round(41.11 * GIB)),
    )


def test_a_log_of_one_rank_tells_nothing_of_two() -> None:
    log = (DATA / "tensorrt_llm-report.log").read_text(encoding="utf-8")

    assert ENGINE.parse_memory(log, plan(ENGINE, placement=Placement("cuda", tensor=2))) == ()
    each = (log.replace("[TRT-LLM] [I]", f"[TRT-LLM] [RANK {rank}] [I]") for rank in (0, 1))
    found = ENGINE.parse_memory("".join(each), plan(ENGINE, placement=Placement("cuda", tensor=2)))
    assert {term.pool for term in found} == {"0", "1"}


@pytest.mark.parametrize(
    ("log", "code", "told"),
    [
        ("quantization", DiagnosisCode.MODEL_UNSUPPORTED, "quantized like this"),
        ("memory", DiagnosisCode.DEVICE_OOM, "1.38 GiB"),
        ("port", DiagnosisCode.PORT_TAKEN, "port 8000 on 127.0.0.1"),
        ("bad-flag", DiagnosisCode.BAD_FLAG, "--served_model_name"),
        ("architecture", DiagnosisCode.MODEL_UNSUPPORTED, "architecture"),
        ("unexplained", DiagnosisCode.CRASHED, "while it started"),
    ],
)
def test_a_failed_start_is_diagnosed_by_its_log(log: str, code: DiagnosisCode, told: str) -> None:
    found = ENGINE.diagnose(ExitStatus(code=1), (DATA / f"tensorrt_llm-{log}.log").read_text(encoding="utf-8"))

    assert found.code == code
    assert told in found.message
    assert found.evidence
    assert found.hint


def test_a_kill_from_outside_is_told_as_one() -> None:
    assert ENGINE.diagnose(ExitStatus(signal=9), "").code == DiagnosisCode.KILLED


def test_the_version_is_read_from_the_package_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "lib/python3.12/dist-packages/tensorrt_llm-1.3.0rc29.dist-info").mkdir(parents=True)
    script = tmp_path / "bin/trtllm-serve"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    script.chmod(0o755)

    found = ENGINE.locate((str(script),))

    assert found is not None
    assert (found.version, found.accelerators) == ("1.3.0rc29", frozenset({"cuda"}))
    assert found.lists == ("serve", "--help")
    assert ENGINE.locate((str(tmp_path / "nothing"),)) is None
