"""SGLang's adapter against its recorded options, a contract server, and excerpts of logs.

Some log lines are those of public issues and pull requests of SGLang (11716, 13023, 4895 and others), with other
numbers and paths; the rest is written from the messages in its sources.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines import ranks
from agent.engines.base import Activity, HttpReply, Metric
from agent.engines.ranks import Room
from agent.engines.sglang import REST, SGLang, static_share
from agent.planning.ledger import CONTEXT, MeasuredTerm
from agent.planning.memory.base import GIB, MIB, Card, Verdict
from agent.planning.plan import Limits, MemoryBudget, MemoryTerm, Placement, Plan
from agent.status import DiagnosisCode, ExitStatus, Granted
from tests.engines.contract_server import CLOSED, Answer, ContractServer, activity, granted, is_loading, is_ready
from tests.engines.rank_plans import LIMITS, flags, plan, profile, value

ENGINE = SGLang()
DATA = Path(__file__).parent / "data"
METRICS = (DATA / "sglang-metrics.txt").read_text(encoding="utf-8")
#: GiB in bytes, as logs print it.
G = 1024**3

#: As `entrypoints/http_server.py` of 0.5.19 to 0.5.23 answers, without /ready: 0.5.19 has none.
PHASES = {
    CLOSED: {},
    "warming up": {
        "GET /health": Answer(503),
        "GET /v1/models": Answer.of({"object": "list", "data": [{"id": "served", "max_model_len": 8192}]}),
    },
    "ready": {
        "GET /health": Answer(200),
        "GET /v1/models": Answer.of({"object": "list", "data": [{"id": "served", "max_model_len": 8192}]}),
        "GET /server_info": Answer.of(
            {"max_total_num_tokens": 91566, "internal_states": [{"effective_max_running_requests_per_dp": 24}]}
        ),
        "GET /metrics": Answer(200, METRICS),
        "POST /v1/completions": Answer.of({"choices": [{"text": "b"}]}),
        "POST /v1/embeddings": Answer.of({"data": [{"embedding": [0.1]}]}),
    },
    # A long prefill: the token that /health_generate asks for waits behind it.
    "prefill": {
        "GET /health": Answer(200),
        "GET /health_generate": Answer(hangs=True),
        "GET /metrics": Answer(200, METRICS),
    },
    "draining": {"GET /health": Answer(503)},
}


def test_every_limit_of_the_plan_reaches_its_true_flag() -> None:
    placement = Placement("cuda", environment={"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}, tensor=2, pipeline=3, data=4)
    limits = replace(LIMITS, kv_cache_dtype="fp8_e5m2")

    command = ENGINE.command(plan(ENGINE, limits=limits, placement=placement), "127.0.0.1", 8100)
    argv = command.argv

    assert argv[:2] == ("/usr/bin/sglang", "serve")
    assert value(argv, "--model-path") == "/m"
    assert value(argv, "--served-model-name") == "served"
    assert (value(argv, "--host"), value(argv, "--port")) == ("127.0.0.1", "8100")
    assert [value(argv, flag) for flag in ("--tp-size", "--pp-size", "--dp-size")] == ["2", "3", "4"]
    assert value(argv, "--context-length") == "8192"
    assert value(argv, "--max-running-requests") == "24"
    assert (value(argv, "--chunked-prefill-size"), value(argv, "--max-prefill-tokens")) == ("4096", "4096")
    assert value(argv, "--kv-cache-dtype") == "fp8_e5m2"
    assert "--enable-metrics" in argv
    assert command.environment["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert command.environment["HF_HUB_OFFLINE"] == "1"
    assert command.environment["SGL_FORCE_SHUTDOWN"] == "1"  # its own drain has no end
    # Else /health would compute a token, and fail while a long prompt is read.
    assert command.environment["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] == "false"


def test_every_flag_of_the_command_is_one_that_the_engine_has() -> None:
    options = ENGINE._options.values
    argv = ENGINE.command(shared_plan(), "127.0.0.1", 8100).argv

    assert flags(argv)
    assert set(flags(argv)) <= set(options)
    assert set(flags(ENGINE.command(plan(ENGINE, task="embedding"), "127.0.0.1", 1).argv)) <= set(options)


def test_every_flag_that_the_adapter_sets_is_refused_in_extra_args() -> None:
    argv = ENGINE.command(shared_plan(), "127.0.0.1", 8100).argv

    assert [flag for flag in flags(argv) if flag not in ENGINE._options.refused] == []


def test_an_embedding_model_is_started_as_one() -> None:
    assert "--is-embedding" in ENGINE.command(plan(ENGINE, task="embedding"), "127.0.0.1", 1).argv
    assert "--is-embedding" not in ENGINE.command(plan(ENGINE), "127.0.0.1", 1).argv


def test_a_configured_python_module_gets_no_subcommand() -> None:
    made = replace(plan(ENGINE), binary=("/opt/bin/python", "-m", "sglang.launch_server"))

    assert ENGINE.command(made, "127.0.0.1", 1).argv[:4] == (*made.binary, "--model-path")


# The share


def shared_plan() -> Plan:
    """Another tenant holds half of the device."""
    card = Card(80 * GIB, 40 * GIB, capability=(9, 0))
    limits = replace(LIMITS, gpu_memory_utilization=0.45)
    found = ENGINE.estimate(profile("Qwen/Qwen3-8B", "bf16"), limits, "chat", Placement("cuda"), card)
    return plan(ENGINE, found, card, limits)


@pytest.mark.parametrize(("model", "variant"), [("Qwen/Qwen3-8B", "bf16"), ("meta-llama/Llama-3.1-8B-Instruct", "awq")])
@pytest.mark.parametrize("free", [None, 60 * GIB])
@pytest.mark.parametrize("tensor", [1, 2])
def test_command_and_estimate_mean_the_same_share(model: str, variant: str, free: int | None, tensor: int) -> None:
    card, placement = Card(80 * GIB, free), Placement("cuda", tensor=tensor)
    limits = replace(LIMITS, gpu_memory_utilization=0.7)
    found = ENGINE.estimate(profile(model, variant), limits, "chat", placement, card)
    made = plan(ENGINE, found, card, limits, placement)

    share = float(value(ENGINE.command(made, "127.0.0.1", 1).argv, "--mem-fraction-static"))

    # As the engine computes it: of what is free once context and NCCL are there, less the weights.
    term = {term.name: term.bytes for term in found.terms}
    before = (free or card.total) - term[CONTEXT] - term["outside of PyTorch"]
    weights = sum(size for name, size in term.items() if name.startswith("weights"))
    assert found.pool is not None
    assert found.pool.bytes == pytest.approx(before * share - weights, abs=2)
    assert found.verdict == Verdict.FITS


@given(
    total=st.integers(8, 192),
    part=st.floats(0.3, 1.0),
    utilization=st.floats(0.1, 1.0),
    seqs=st.integers(1, 512),
    batch=st.integers(1024, 16384),
    tensor=st.sampled_from([1, 2, 4]),
)
def test_what_the_engine_takes_stays_within_the_plans_budget(
    total: int, part: float, utilization: float, seqs: int, batch: int, tensor: int
) -> None:
    card = Card(total * GIB, int(total * part * GIB))
    utilization = min(utilization, part)
    limits = Limits(seqs, 4096, "auto", batch, 4, gpu_memory_utilization=utilization)
    found = ENGINE.estimate(profile("Qwen/Qwen3-8B", "bf16"), limits, "chat", Placement("cuda", tensor=tensor), card)

    assert found.pool is not None
    assert found.beyond is None
    if found.pool.bytes > 0:
        assert sum(term.bytes for term in found.terms) + found.pool.bytes <= utilization * card.total


def test_activations_and_graphs_are_left_free_with_their_whole_uncertainty() -> None:
    found = ENGINE.estimate(profile("Qwen/Qwen3-8B", "bf16"), LIMITS, "chat", Placement("cuda"), Card(80 * GIB))

    rest = found.term(REST)
    assert rest is not None
    assert rest.bytes > 2 * GIB
    assert rest.uncertainty == 0


def test_the_share_leaves_the_rest_of_the_budget() -> None:
    terms = (
        MemoryTerm("weights", 15 * GIB, ""),
        MemoryTerm(CONTEXT, 600 * MIB, ""),
        MemoryTerm("outside of PyTorch", 424 * MIB, ""),
        MemoryTerm(REST, 3 * GIB, ""),
    )

    assert static_share(Room(80 * GIB, 80 * GIB, 72 * GIB), terms) == 0.86  # (72 - 1 - 3) / (80 - 1)
    assert static_share(Room(80 * GIB, 41 * GIB, 40 * GIB), terms) == 0.9  # (40 - 1 - 3) / (41 - 1)
    assert static_share(Room(80 * GIB, 80 * GIB, 1 * GIB), terms) == 0.001


def test_a_plan_without_budgets_passes_its_utilization_on() -> None:
    made = replace(plan(ENGINE), budgets=(MemoryBudget("host", ()),))

    assert value(ENGINE.command(made, "127.0.0.1", 1).argv, "--mem-fraction-static") == "0.85"


def test_the_cache_is_capped_where_others_might_give_memory_back() -> None:
    alone = ENGINE.estimate(profile("Qwen/Qwen3-8B", "bf16"), LIMITS, "chat", Placement("cuda"), Card(80 * GIB))
    made = shared_plan()

    capped = ENGINE.command(made, "127.0.0.1", 1).argv

    assert made.capacity is not None
    assert int(value(capped, "--max-total-tokens")) == made.capacity.kv_tokens
    assert "--max-total-tokens" not in ENGINE.command(plan(ENGINE, alone, Card(80 * GIB)), "127.0.0.1", 1).argv


def test_a_model_that_is_too_large_does_not_fit() -> None:
    model = profile("meta-llama/Llama-3.1-70B-Instruct", "bf16")
    one = ENGINE.estimate(model, LIMITS, "chat", Placement("cuda"), Card(80 * GIB))
    four = ENGINE.estimate(model, LIMITS, "chat", Placement("cuda", tensor=4), Card(80 * GIB))

    assert (one.verdict, four.verdict) == (Verdict.TOO_LARGE, Verdict.FITS)


def test_the_engines_own_batch_grows_with_the_device() -> None:
    model = profile("Qwen/Qwen3-8B", "bf16")

    assert ENGINE.batch_defaults(model, Card(24 * GIB), "chat") == (4096, 48)
    assert ENGINE.batch_defaults(model, Card(80 * GIB), "chat") == (8192, 256)


def test_each_device_and_each_helper_has_a_process_on_the_host() -> None:
    (one,) = ENGINE.host_terms(profile("Qwen/Qwen3-8B", "bf16"), Placement("cuda"))
    (four,) = ENGINE.host_terms(profile("Qwen/Qwen3-8B", "bf16"), Placement("cuda", tensor=2, data=2))

    assert one.bytes == 3 * ranks.PYTHON_PROCESS + ranks.DEVICE_PROCESS
    assert four.bytes == 7 * ranks.PYTHON_PROCESS + 4 * ranks.DEVICE_PROCESS


# What runs where


@pytest.mark.parametrize(
    ("quantization", "capability", "runs", "native"),
    [
        ("bf16", (8, 0), True, True),
        ("bf16", (7, 5), False, False),
        ("fp8", (8, 0), True, False),
        ("fp8-block", (9, 0), True, True),
        ("int8", (9, 0), True, True),
        ("int8", (10, 0), False, True),
        ("awq", (8, 6), True, True),
        ("nvfp4", (9, 0), True, False),
        ("nvfp4", (12, 0), True, True),
    ],
)
def test_quantizations_run_by_compute_capability(
    quantization: str, capability: tuple[int, int], runs: bool, native: bool
) -> None:
    assert ENGINE.capabilities.quantizations is not None
    support = ENGINE.capabilities.quantizations[quantization]

    assert (support.least <= capability < support.below) is runs
    assert (capability >= max(support.native, support.least)) is native


def test_gguf_is_no_format_of_the_adapter() -> None:
    assert "gguf" not in ENGINE.capabilities.formats


# Arguments


@pytest.mark.parametrize(
    ("arguments", "rules"),
    [
        (["--schedule-policy", "lpm", "--enable-mixed-chunk"], []),
        (["--schedule-policy=lpm"], []),
        (["--cuda-graph-bs-prefill", "512", "1024", "--disable-radix-cache"], []),
        (["--trust-remote-code"], []),  # the node policy decides about it
        (["--mem-fraction-static", "0.9"], ["extra_args[0]: --mem-fraction-static may not be given: the plan"]),
        (["--tensor-parallel-size", "2"], ["extra_args[0]: --tensor-parallel-size may not be given: `devices`"]),
        (["--api-key=x"], ["extra_args[0]: --api-key may not be given: a key would stand"]),
        (["--enable-custom-logit-processor"], ["extra_args[0]: --enable-custom-logit-processor may not be given: it"]),
        (["--delete-ckpt-after-loading"], ["extra_args[0]: --delete-ckpt-after-loading may not be given: it deletes"]),
        (["--schedule-polcy", "lpm"], ["extra_args[0]: unknown flag --schedule-polcy; did you mean --schedule-policy?",
                                       "extra_args[1]: 'lpm' is not a flag"]),
        (["--attention-backend"], ["extra_args[0]: --attention-backend takes 1 value"]),
        (["--encoder-urls"], ["extra_args[0]: --encoder-urls takes at least 1 value"]),
        (["--enable-mixed-chunk=yes"], ["extra_args[0]: --enable-mixed-chunk takes no value"]),
    ],
)  # fmt: skip
def test_extra_arguments_are_judged_by_position_and_rule(arguments: list[str], rules: list[str]) -> None:
    found = [f"{violation.field}: {violation.rule}" for violation in ENGINE.check_extra_args(arguments)]

    assert len(found) == len(rules)
    assert all(text.startswith(rule) for text, rule in zip(found, rules, strict=True)), found


def test_variables_that_go_round_the_plan_are_refused() -> None:
    assert ENGINE.check_variable("CUDA_VISIBLE_DEVICES")
    assert ENGINE.check_variable("SGLANG_ENABLE_POST_CAPTURE_KV_SIZING")
    assert all(ENGINE.check_variable(name) for name in ENGINE.command(plan(ENGINE), "127.0.0.1", 1).environment)
    assert not ENGINE.check_variable("NCCL_DEBUG")


# Over HTTP


def test_a_start_is_loading_until_the_warm_up_is_done() -> None:
    made = plan(ENGINE)
    with ContractServer(PHASES) as server:
        assert is_loading(server, ENGINE, made)
        server.enter("warming up")
        assert is_loading(server, ENGINE, made)
        server.enter("ready")
        assert is_ready(server, ENGINE, made)
        assert granted(server, ENGINE, made) == Granted(8192, 24, "served", 91566)
        assert server.ask(ENGINE.inference_probe(made)).status == 200
        assert server.ask(ENGINE.inference_probe(replace(made, task="embedding"))).status == 200
        assert activity(server, ENGINE, made) == Activity(3, 2, 1615.0)
        server.enter("draining")
        assert not is_ready(server, ENGINE, made)

    assert server.bodies[0]["model"] == "served"


def test_a_long_prefill_fails_neither_readiness_nor_liveness() -> None:
    made = plan(ENGINE)
    with ContractServer(PHASES) as server:
        server.enter("prefill")

        assert server.ask(ENGINE.readiness_probe(made)).status == 200
        assert server.ask(ENGINE.liveness_probe(made)).status == 200
        assert activity(server, ENGINE, made).running == 3


@pytest.mark.parametrize(
    "reply", [HttpReply(401, "{}"), HttpReply(200, "no json"), HttpReply(200, "[]"), HttpReply(0, "")]
)
def test_limits_that_cannot_be_read_back_are_not_known(reply: HttpReply) -> None:
    assert ENGINE.parse_granted([reply, reply]) == Granted()


def test_internal_states_without_numbers_are_not_known() -> None:
    info = HttpReply(200, json.dumps({"internal_states": [{}, 7, {"effective_max_running_requests_per_dp": "x"}]}))

    assert ENGINE.parse_granted([HttpReply(200, "{}"), info]) == Granted()


def test_replicas_hold_their_tokens_together() -> None:
    state = {"effective_max_running_requests_per_dp": 16}
    info = HttpReply(200, json.dumps({"max_total_num_tokens": 1000, "internal_states": [state, state]}))

    assert ENGINE.parse_granted([HttpReply(200, "{}"), info]) == Granted(None, 16, "", 2000)


@pytest.mark.parametrize("body", ["", "garbage", "sglang:num_running_reqs NaN\n"])
def test_metrics_that_say_nothing_leave_the_activity_unknown(body: str) -> None:
    assert ENGINE.parse_activity(body) == Activity(None, None, None)


def test_every_mapped_metric_is_one_that_the_engine_has() -> None:
    assert all(name in METRICS for name in ENGINE.metrics.values())
    assert Metric.PREEMPTIONS in ENGINE.metrics


# What its log tells


def test_the_memory_report_of_one_device() -> None:
    log = (DATA / "sglang-report.log").read_text(encoding="utf-8")

    assert ENGINE.parse_memory(log, plan(ENGINE)) == (
        MeasuredTerm("0", "weights", round(15.09 * G)),
        MeasuredTerm("0", "KV cache", round(22.36 * G)),
    )


def test_the_memory_report_counts_drafts_states_and_graphs_of_each_rank() -> None:
    log = (DATA / "sglang-report-two-ranks.log").read_text(encoding="utf-8")
    two = plan(ENGINE, placement=Placement("cuda", tensor=2))

    found = {(term.pool, term.name): term.bytes / G for term in ENGINE.parse_memory(log, two)}

    assert found["1", "weights"] == pytest.approx(12.11)
    assert found["1", "KV cache"] == pytest.approx(2 * (3.46 + 1.08))
    assert found["0", "recurrent states"] == pytest.approx(1.79)
    assert found["0", "CUDA graphs"] == pytest.approx(1.44)


def test_a_log_that_misses_a_device_tells_nothing() -> None:
    log = (DATA / "sglang-report-two-ranks.log").read_text(encoding="utf-8")

    assert ENGINE.parse_memory(log, plan(ENGINE, placement=Placement("cuda", tensor=4))) == ()
    assert ENGINE.parse_memory("", plan(ENGINE)) == ()


def test_weights_are_not_counted_twice_where_the_plan_has_several_terms_of_them() -> None:
    log = (DATA / "sglang-report.log").read_text(encoding="utf-8")
    found = ENGINE.estimate(profile("Qwen/Qwen3-8B", "bf16"), LIMITS, "chat", Placement("cuda"), Card(80 * GIB))
    tables = sum(term.bytes for term in found.terms if term.name.startswith("weights:"))

    weights = next(t for t in ENGINE.parse_memory(log, plan(ENGINE, found)) if t.name == "weights")

    assert tables > 0
    assert weights.bytes + tables == pytest.approx(15.09 * G, abs=1)


@pytest.mark.parametrize(
    ("log", "code", "told"),
    [
        ("memory", DiagnosisCode.CACHE_TOO_SMALL, "too little"),
        ("weights", DiagnosisCode.CACHE_TOO_SMALL, "0.612"),
        ("graph", DiagnosisCode.DEVICE_OOM, "CUDA graphs"),
        ("capability", DiagnosisCode.DEVICE_UNSUPPORTED, "modelopt_fp8"),
        ("architecture", DiagnosisCode.MODEL_UNSUPPORTED, "NoSuchForCausalLM"),
        ("killed", DiagnosisCode.HOST_OOM, "killed while it loaded"),
        ("context", DiagnosisCode.BAD_FLAG, "65536"),
        ("bad-flag", DiagnosisCode.BAD_FLAG, "--no-such-flag"),
        ("bad-value", DiagnosisCode.BAD_FLAG, "--schedule-policy"),
    ],
)
@pytest.mark.parametrize("exit", [ExitStatus(code=1), ExitStatus(signal=9), ExitStatus(code=137), ExitStatus(code=0)])
def test_a_failed_start_is_diagnosed_by_its_log_whatever_the_exit(
    log: str, code: DiagnosisCode, told: str, exit: ExitStatus
) -> None:
    found = ENGINE.diagnose(exit, (DATA / f"sglang-{log}.log").read_text(encoding="utf-8"))

    assert found.code == code
    assert told in found.message
    assert found.evidence
    assert found.hint


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: ('Quantization scheme is not supported for ', 'the current GPU. Min capability: 89. Current')",
        "RuntimeError: SGLang only supports sm75 and above.",
    ],
)
def test_a_device_that_cannot_run_the_weights_is_told_as_one(line: str) -> None:
    log = f"[2026-10-20 10:01:13 TP0] Scheduler hit an exception: Traceback (most recent call last):\n{line}\n"

    assert ENGINE.diagnose(ExitStatus(code=1), log).code == DiagnosisCode.DEVICE_UNSUPPORTED


def test_the_kernels_own_word_for_exhausted_memory_counts_more_than_the_log() -> None:
    log = (DATA / "sglang-graph.log").read_text(encoding="utf-8")

    assert ENGINE.diagnose(ExitStatus(signal=9, oom_killed=True), log).code == DiagnosisCode.HOST_OOM


def test_a_kill_that_no_line_explains_is_one_from_outside() -> None:
    assert ENGINE.diagnose(ExitStatus(signal=9), "[2026-10-20 10:00:00] Decode batch").code == DiagnosisCode.KILLED
    assert ENGINE.diagnose(ExitStatus(code=0), "").code == DiagnosisCode.EXITED


# Finding it


def test_the_version_is_read_from_the_package_without_running_it(tmp_path: Path) -> None:
    packages = tmp_path / "lib/python3.12/site-packages"
    (packages / "sglang-0.5.23.dist-info").mkdir(parents=True)
    (packages / "sglang_router-0.3.2.dist-info").mkdir()
    (packages / "torch-2.14.1+rocm7.2.dist-info").mkdir()
    script = tmp_path / "bin/sglang"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    script.chmod(0o755)

    found = ENGINE.locate((str(script),))

    assert found is not None
    assert (found.version, found.origin, found.accelerators) == ("0.5.23", "config", frozenset({"rocm"}))


def test_an_executable_of_an_unknown_environment_has_an_unknown_version(tmp_path: Path) -> None:
    script = tmp_path / "sglang"
    script.write_text("#!/bin/sh\n", encoding="utf-8")
    script.chmod(0o755)

    found = ENGINE.locate((str(script),))

    assert found is not None
    assert (found.version, found.accelerators) == ("unknown", frozenset({"cuda"}))
    assert ENGINE.locate((str(tmp_path / "nothing"),)) is None
