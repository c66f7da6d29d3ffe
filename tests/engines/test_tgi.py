"""TGI's adapter against its recorded options, a contract server, and excerpts of logs.

Some log lines are those of public issues of text-generation-inference (755, 1164, 1354 and others), with other numbers
and paths; the rest is written from the messages in its sources.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines.base import Activity, HttpReply
from agent.engines.ranks import Room
from agent.engines.tgi import TGI, memory_mark
from agent.planning.memory.base import GIB, Card, Verdict
from agent.planning.memory.tgi import GRAPHS, WIGGLE_ROOM
from agent.planning.plan import Limits, MemoryTerm, Placement
from agent.status import DiagnosisCode, ExitStatus, Granted
from tests.engines.contract_server import CLOSED, Answer, ContractServer, activity, granted, is_loading, is_ready
from tests.engines.rank_plans import LIMITS, flags, plan, profile, value

ENGINE = TGI()
DATA = Path(__file__).parent / "data"
METRICS = (DATA / "tgi-metrics.txt").read_text(encoding="utf-8")

#: As `router/src/server.rs` of 3.3.7 answers.
PHASES = {
    CLOSED: {},
    "ready": {
        "GET /health": Answer(200),
        "GET /info": Answer.of({
            "model_id": "/m", "max_concurrent_requests": 120, "max_input_tokens": 8191, "max_total_tokens": 8192,
            "router": "text-generation-router", "version": "3.3.7",
        }),
        "GET /metrics": Answer(200, METRICS),
        "POST /generate": Answer.of({"generated_text": "b"}),
    },
    "broken": {"GET /health": Answer.of({"error": "unhealthy", "error_type": "healthcheck"}, 503)},
}  # fmt: skip


def test_every_limit_of_the_plan_reaches_its_true_flag() -> None:
    placement = Placement("cuda", environment={"CUDA_VISIBLE_DEVICES": "GPU-1"}, tensor=2)
    limits = replace(LIMITS, kv_cache_dtype="fp8_e5m2")

    command = ENGINE.command(plan(ENGINE, limits=limits, placement=placement), "127.0.0.1", 8100)
    argv = command.argv

    assert value(argv, "--model-id") == "/m"
    assert (value(argv, "--hostname"), value(argv, "--port")) == ("127.0.0.1", "8100")
    assert value(argv, "--num-shard") == "2"
    assert (value(argv, "--max-total-tokens"), value(argv, "--max-input-tokens")) == ("8192", "8191")
    assert value(argv, "--max-batch-size") == "24"
    assert int(value(argv, "--max-concurrent-requests")) > 24  # more wait before anybody is sent away
    assert value(argv, "--max-batch-prefill-tokens") == "4096"
    assert value(argv, "--kv-cache-dtype") == "fp8_e5m2"
    assert command.environment == {"CUDA_VISIBLE_DEVICES": "GPU-1", "HF_HUB_OFFLINE": "1"}


def test_the_models_own_cache_type_is_no_flag() -> None:
    assert "--kv-cache-dtype" not in ENGINE.command(plan(ENGINE), "127.0.0.1", 1).argv


def test_every_flag_of_the_command_is_known_and_refused_in_extra_args() -> None:
    limits = replace(LIMITS, kv_cache_dtype="fp8_e5m2")
    argv = ENGINE.command(plan(ENGINE, limits=limits), "127.0.0.1", 8100).argv

    assert set(flags(argv)) <= set(ENGINE._options.values)
    assert [flag for flag in flags(argv) if flag not in ENGINE._options.refused] == []


def test_two_instances_share_no_port_and_no_socket() -> None:
    def taken(port: int) -> set[str]:
        argv = ENGINE.command(plan(ENGINE), "127.0.0.1", port).argv
        return {value(argv, flag) for flag in ("--port", "--master-port", "--prometheus-port", "--shard-uds-path")}

    for one, other in ((18000, 18001), (1024, 64000), (65000, 65535)):
        assert len(taken(one) | taken(other)) == 8
        assert all(1024 <= int(number) <= 65535 for number in taken(one) | taken(other) if number.isdigit())


# The share


@pytest.mark.parametrize(("model", "variant"), [("Qwen/Qwen3-8B", "bf16"), ("meta-llama/Llama-3.1-8B-Instruct", "awq")])
@pytest.mark.parametrize("free", [None, 60 * GIB])
@pytest.mark.parametrize("tensor", [1, 2])
def test_command_and_estimate_mean_the_same_share(model: str, variant: str, free: int | None, tensor: int) -> None:
    card, placement = Card(80 * GIB, free), Placement("cuda", tensor=tensor)
    limits = replace(LIMITS, gpu_memory_utilization=0.7)
    found = ENGINE.estimate(profile(model, variant), limits, "chat", placement, card)
    made = plan(ENGINE, found, card, limits, placement)

    share = float(value(ENGINE.command(made, "127.0.0.1", 1).argv, "--cuda-memory-fraction"))

    # As the engine computes it: what is free after the warm-up, less what is above the mark. Graphs come later.
    used = sum(term.bytes for term in found.terms if term.name != GRAPHS)
    left = (free or card.total) - used - (1 - share * WIGGLE_ROOM) * card.total
    assert found.pool is not None
    assert found.pool.bytes == pytest.approx(left, abs=2)
    assert found.verdict == Verdict.FITS


@given(
    total=st.integers(16, 192),
    part=st.floats(0.3, 1.0),
    utilization=st.floats(0.1, 1.0),
    batch=st.integers(1024, 16384),
    tensor=st.sampled_from([1, 2, 4]),
)
def test_what_the_engine_takes_stays_within_the_plans_budget(
    total: int, part: float, utilization: float, batch: int, tensor: int
) -> None:
    card = Card(total * GIB, int(total * part * GIB))
    utilization = min(utilization, part)
    limits = Limits(64, 4096, "auto", batch, 4, gpu_memory_utilization=utilization)
    found = ENGINE.estimate(profile("Qwen/Qwen3-8B", "bf16"), limits, "chat", Placement("cuda", tensor=tensor), card)

    assert found.pool is not None
    if found.pool.bytes > 0:
        assert sum(term.bytes for term in found.terms) + found.pool.bytes <= utilization * card.total + 1


def test_the_mark_counts_what_others_hold() -> None:
    terms = (MemoryTerm("weights", 15 * GIB, ""), MemoryTerm(GRAPHS, 1 * GIB, ""))

    assert memory_mark(Room(80 * GIB, 80 * GIB, 37 * GIB), terms) == 0.5  # (37 - 1) / (0.9 x 80)
    assert memory_mark(Room(80 * GIB, 45 * GIB, 37 * GIB), terms) == 0.986  # (37 - 1 + 35) / (0.9 x 80)
    assert memory_mark(Room(80 * GIB, 80 * GIB, 80 * GIB), terms) == 1.0


def test_a_model_that_is_too_large_does_not_fit() -> None:
    model = profile("meta-llama/Llama-3.1-70B-Instruct", "bf16")
    one = ENGINE.estimate(model, LIMITS, "chat", Placement("cuda"), Card(80 * GIB))
    four = ENGINE.estimate(model, LIMITS, "chat", Placement("cuda", tensor=4), Card(80 * GIB))

    assert (one.verdict, four.verdict) == (Verdict.TOO_LARGE, Verdict.FITS)


# What runs where


@pytest.mark.parametrize(
    ("quantization", "capability", "runs"),
    [
        ("bf16", (8, 0), True),
        ("bf16", (7, 5), False),
        ("awq", (8, 6), True),
        ("fp8", (9, 0), True),
        ("bf16", (10, 0), False),
    ],
)
def test_quantizations_run_by_compute_capability(quantization: str, capability: tuple[int, int], runs: bool) -> None:
    assert ENGINE.capabilities.quantizations is not None
    support = ENGINE.capabilities.quantizations[quantization]

    assert (support.least <= capability < support.below) is runs


# Arguments


@pytest.mark.parametrize(
    ("arguments", "rules"),
    [
        (["--dtype", "float16", "--disable-grammar-support"], []),
        (["--validation-workers=4"], []),
        (["--trust-remote-code"], []),  # the node policy decides about it
        (["--cuda-memory-fraction", "0.9"], ["extra_args[0]: --cuda-memory-fraction may not be given: the plan"]),
        (["-p", "1"], ["extra_args[0]: -p may not be given: `port` decides it"]),
        (["--ngrok"], ["extra_args[0]: --ngrok may not be given: it opens the server to the internet"]),
        (["--api-key", "x"], ["extra_args[0]: --api-key may not be given: a key would stand"]),
        (["--max-best-off", "1"], ["extra_args[0]: unknown flag --max-best-off; did you mean --max-best-of?",
                                   "extra_args[1]: '1' is not a flag"]),
        (["--dtype"], ["extra_args[0]: --dtype takes 1 value"]),
    ],
)  # fmt: skip
def test_extra_arguments_are_judged_by_position_and_rule(arguments: list[str], rules: list[str]) -> None:
    found = [f"{violation.field}: {violation.rule}" for violation in ENGINE.check_extra_args(arguments)]

    assert len(found) == len(rules)
    assert all(text.startswith(rule) for text, rule in zip(found, rules, strict=True)), found


@pytest.mark.parametrize("name", ["MODEL_ID", "PORT", "CUDA_MEMORY_FRACTION", "TRUST_REMOTE_CODE", "TGI_WIGGLE_ROOM"])
def test_a_variable_that_is_a_flag_is_refused(name: str) -> None:
    assert ENGINE.check_variable(name)


def test_the_key_and_unrelated_variables_are_allowed() -> None:
    assert ENGINE.secret_flags() == {"api_key": "API_KEY"}
    assert [ENGINE.check_variable(name) for name in ("API_KEY", "NCCL_DEBUG", "LOG_LEVEL")] == ["", "", ""]


# Over HTTP


def test_a_start_is_loading_until_the_router_listens() -> None:
    made = plan(ENGINE)
    with ContractServer(PHASES) as server:
        assert is_loading(server, ENGINE, made)
        server.enter("ready")
        assert is_ready(server, ENGINE, made)
        assert granted(server, ENGINE, made) == Granted(max_model_len=8192)
        assert server.ask(ENGINE.inference_probe(made)).status == 200
        assert activity(server, ENGINE, made) == Activity(2, 1, 812.0)
        server.enter("broken")
        assert server.ask(ENGINE.liveness_probe(made)).status == 503


@pytest.mark.parametrize("reply", [HttpReply(404, "{}"), HttpReply(200, "no json"), HttpReply(200, "[]")])
def test_limits_that_cannot_be_read_back_are_not_known(reply: HttpReply) -> None:
    assert ENGINE.parse_granted([reply]) == Granted()


def test_every_mapped_metric_is_one_that_the_engine_has() -> None:
    assert all(name in METRICS for name in ENGINE.metrics.values())


# What its log tells


@pytest.mark.parametrize(
    ("log", "code", "told"),
    [
        ("prefill", DiagnosisCode.CACHE_TOO_SMALL, "largest prefill"),
        ("heads", DiagnosisCode.MODEL_UNSUPPORTED, "71 attention heads do not divide by 2"),
        ("signal", DiagnosisCode.CRASHED, "signal 9"),
        ("bad-flag", DiagnosisCode.BAD_FLAG, "--no-such-flag"),
        ("bad-value", DiagnosisCode.BAD_FLAG, "value best of --dtype"),
        ("limits", DiagnosisCode.BAD_FLAG, "contradict"),
        ("unexplained", DiagnosisCode.CRASHED, "took the others"),
    ],
)
def test_a_failed_start_is_diagnosed_by_its_log(log: str, code: DiagnosisCode, told: str) -> None:
    found = ENGINE.diagnose(ExitStatus(code=1), (DATA / f"tgi-{log}.log").read_text(encoding="utf-8"))

    assert found.code == code
    assert told in found.message
    assert found.evidence
    assert found.hint


def test_it_reports_no_bytes() -> None:
    assert ENGINE.parse_memory("INFO text_generation_launcher: KV-cache blocks: 1024, size: 1", plan(ENGINE)) == ()


def test_its_version_is_asked_for(tmp_path: Path) -> None:
    script = tmp_path / "text-generation-launcher"
    script.write_text("#!/bin/sh\necho text-generation-launcher 3.3.7\n", encoding="utf-8")
    script.chmod(0o755)

    found = ENGINE.locate((str(script),))

    assert found is not None
    assert (found.version, found.accelerators) == ("3.3.7", frozenset({"cuda"}))
