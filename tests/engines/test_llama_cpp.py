"""The llama.cpp adapter: command, probes, limits read back, extra arguments, diagnoses of real logs."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from agent.engines import ENGINES, get
from agent.engines.base import HttpReply
from agent.engines.llama_cpp import LlamaCpp
from agent.engines.llama_cpp_refusals import REFUSED_FLAGS
from agent.planning.plan import Limits, MemoryBudget, Plan, Variant
from agent.status import DiagnosisCode, ExitStatus

DATA = Path(__file__).parent / "data"
OPTIONS = Path(__file__).parents[2] / "agent" / "engines" / "llama_cpp_options.txt"

ENGINE = LlamaCpp()
PLAN = Plan(
    deployment="d",
    generation=1,
    model_name="served",
    task="chat",
    engine="llama.cpp",
    engine_version="1",
    binary=("/usr/bin/llama-server",),
    runtime="process",
    variant=Variant("file:/m.gguf", "/m.gguf", "gguf", "Q4_1", 1, "llama"),
    devices=(),
    limits=Limits(max_num_seqs=4, max_model_len=1000, kv_cache_dtype="q8_0", max_num_batched_tokens=2048, threads=3),
    budgets=(MemoryBudget("host", ()),),
    extra_args=("--top-k", "7"),
)


def value(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_every_limit_of_the_plan_reaches_its_true_flag() -> None:
    argv = ENGINE.command(PLAN, "127.0.0.1", 8100).argv

    assert argv[0] == "/usr/bin/llama-server"
    assert value(argv, "--model") == "/m.gguf"
    assert value(argv, "--alias") == "served"
    assert (value(argv, "--host"), value(argv, "--port")) == ("127.0.0.1", "8100")
    assert value(argv, "--ctx-size") == str(4 * 1000)
    assert value(argv, "--parallel") == "4"
    assert value(argv, "--threads") == "3"
    assert value(argv, "--cache-type-k") == value(argv, "--cache-type-v") == "q8_0"
    assert (value(argv, "--batch-size"), value(argv, "--ubatch-size")) == ("2048", "512")
    assert value(argv, "--cache-ram") == "0"
    assert argv[-2:] == ("--top-k", "7")


def test_the_command_uses_only_flags_that_llama_server_has() -> None:
    known = set(OPTIONS.read_text().split())
    for task in ENGINE.capabilities.tasks:
        argv = ENGINE.command(replace(PLAN, task=task), "127.0.0.1", 8100).argv

        assert {item for item in argv[1:] if item.startswith("-")} <= known


def test_an_embedding_input_of_full_length_fits_one_physical_batch() -> None:
    argv = ENGINE.command(replace(PLAN, task="embedding"), "127.0.0.1", 8100).argv

    assert "--embedding" in argv
    assert value(argv, "--ubatch-size") == "1000"


def test_no_secret_is_in_the_command_and_the_key_has_its_variable() -> None:
    assert "LLAMA_API_KEY" in ENGINE.secret_flags().values()
    assert not any("key" in item for item in ENGINE.command(PLAN, "127.0.0.1", 8100).argv)


@pytest.mark.parametrize(
    ("status", "body", "loading"),
    [
        (0, "", True),
        (503, '{"error":{"message":"Loading model","type":"unavailable_error","code":503}}', True),
        (503, '{"error":{"message":"no slot"}}', False),
        (500, "", False),
        (200, '{"status":"ok"}', False),
    ],
)
def test_only_a_refused_connection_and_the_loading_message_mean_loading(status: int, body: str, loading: bool) -> None:
    assert ENGINE.loading(HttpReply(status, body)) is loading


def test_activity_is_read_from_the_metrics() -> None:
    body = (
        "# TYPE llamacpp:prompt_tokens_total counter\nllamacpp:prompt_tokens_total 600\n"
        "llamacpp:tokens_predicted_total 4\nllamacpp:n_decode_total 5\n"
        "llamacpp:requests_processing 2\nllamacpp:requests_deferred 1\n"
    )

    activity = ENGINE.parse_activity(body)

    assert (activity.running, activity.waiting, activity.work) == (2, 1, 609)


@pytest.mark.parametrize("body", ["", "<html>", "llamacpp:requests_processing x\n"])
def test_what_the_metrics_do_not_say_is_not_known(body: str) -> None:
    activity = ENGINE.parse_activity(body)

    assert (activity.running, activity.waiting, activity.work) == (None, None, None)


def test_granted_limits_are_the_slots_and_the_alias() -> None:
    slots = HttpReply(200, '[{"id":0,"n_ctx":1024},{"id":1,"n_ctx":1024}]')
    models = HttpReply(200, '{"data":[{"id":"served"}]}')

    granted = ENGINE.parse_granted([slots, models])

    assert (granted.max_model_len, granted.max_num_seqs, granted.model) == (1024, 2, "served")


@pytest.mark.parametrize(
    "reply",
    [
        HttpReply(401, "{}"),
        HttpReply(200, "no json"),
        HttpReply(200, "{}"),
        HttpReply(0, ""),
        HttpReply(200, '[{"id": 0}, 7]'),  # whoever else listens on the port may answer anything
        HttpReply(200, '{"data": [{}]}'),
        HttpReply(200, '{"data": 1}'),
    ],
)
def test_limits_that_cannot_be_read_back_are_not_known(reply: HttpReply) -> None:
    granted = ENGINE.parse_granted([reply, reply])

    assert (granted.max_model_len, granted.max_num_seqs, granted.model) == (None, None, "")


@pytest.mark.parametrize(
    ("arguments", "rules"),
    [
        (["--temp", "0.5", "--no-warmup", "-lv", "4"], []),
        (["--temp", "-1"], []),
        (["--port", "1"], ["extra_args[0]: --port may not be given: `port` decides it"]),
        (["-c", "1", "--ctx-size", "2"], ["extra_args[0]: -c may not", "extra_args[2]: --ctx-size may not"]),
        (["--ctx-size=4096"], ["extra_args[0]: --ctx-size may not be given"]),
        (["--tools", "all"], ["extra_args[0]: --tools may not be given: it gives whoever"]),
        (["-hf", "a/b"], ["extra_args[0]: -hf may not be given: it downloads"]),
        (["--api-key", "x"], ["extra_args[0]: --api-key may not be given: a key would stand"]),
        (["--top-k=5"], ["extra_args[0]: --top-k and its value must be two items"]),
        (
            ["--top-kk", "5"],
            ["extra_args[0]: unknown flag --top-kk; did you mean --top-k?", "extra_args[1]: '5' is not"],
        ),
        (["model.gguf"], ["extra_args[0]: 'model.gguf' is not a flag"]),
        (["--temp"], ["extra_args[0]: --temp takes 1 value"]),
        (["--temp", "--tools", "all"], ["extra_args[0]: --temp takes 1 value", "extra_args[2]: 'all' is not"]),
        (["--control-vector-layer-range", "1"], ["extra_args[0]: --control-vector-layer-range takes 2 values"]),
        (["--no-webui"], ["extra_args[0]: --no-webui may not be given: the agent sets it"]),
        ([""], ["extra_args[0]: '' is not a flag"]),
    ],
)
def test_extra_arguments_are_judged_by_position_and_rule(arguments: list[str], rules: list[str]) -> None:
    found = [f"{violation.field}: {violation.rule}" for violation in ENGINE.check_extra_args(arguments)]

    assert len(found) == len(rules)
    assert all(text.startswith(rule) for text, rule in zip(found, rules, strict=True))


def test_no_flag_that_the_adapter_passes_may_be_given_again() -> None:
    """But for `--cors-origins` (an operator may open a deployment to a web application) and how much is logged."""
    argv = ENGINE.command(replace(PLAN, task="embedding", extra_args=()), "127.0.0.1", 8100).argv

    free = {flag for flag in argv if flag.startswith("--") and not ENGINE.check_extra_args([flag, "1"])[:1]}

    assert free == {"--cors-origins", "--log-verbosity"}


def test_variables_cannot_go_round_the_check_of_flags() -> None:
    assert ENGINE.check_variable("LLAMA_ARG_TOOLS")
    assert not ENGINE.check_variable("OMP_NUM_THREADS")


def test_the_recorded_options_are_those_of_the_recorded_help() -> None:
    """Reads the help as people do: an option's spellings begin its line; what follows them is its value."""
    recorded = {tuple(line.split()) for line in OPTIONS.read_text().splitlines() if not line.startswith("#")}
    lines = (DATA / "llama-server-help.txt").read_text().splitlines()
    shown = set()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith("-") or line.startswith("-----"):
            continue
        if "has been removed" in line:
            continue
        head = line[:39] if len(line) > 39 and line[39] == " " else line
        spellings = re.match(r"(?:--?[A-Za-z][\w.-]*,\s+)*--?[A-Za-z][\w.-]*", head)
        assert spellings, (line, following)
        values = (
            len(head[spellings.end() :].split()) if "START END" in head else int(bool(head[spellings.end() :].strip()))
        )
        shown.add((*re.split(r",\s+", spellings[0]), str(values)))

    assert recorded == shown


def test_every_refusal_names_options_that_exist() -> None:
    assert {name for names in REFUSED_FLAGS for name in names.split()} <= set(OPTIONS.read_text().split())


@pytest.mark.parametrize("build", ["embedded", "native"])
@pytest.mark.parametrize(
    ("log", "code"),
    [
        ("truncated", DiagnosisCode.MODEL_CORRUPT),
        ("garbage", DiagnosisCode.MODEL_CORRUPT),
        ("empty", DiagnosisCode.MODEL_CORRUPT),
        ("header-cut-off", DiagnosisCode.MODEL_CORRUPT),
        ("absurd-count", DiagnosisCode.MODEL_CORRUPT),
        ("newer-format", DiagnosisCode.MODEL_UNSUPPORTED),
        ("unknown-architecture", DiagnosisCode.MODEL_UNSUPPORTED),
        ("missing", DiagnosisCode.MODEL_MISSING),
        ("bad-flag", DiagnosisCode.BAD_FLAG),
        ("bad-value", DiagnosisCode.BAD_FLAG),
        ("port-taken", DiagnosisCode.PORT_TAKEN),
    ],
)
def test_real_logs_of_failed_starts_get_their_diagnosis_with_evidence_and_hint(
    build: str, log: str, code: DiagnosisCode
) -> None:
    text = (DATA / f"{build}-{log}.log").read_text()

    diagnosis = ENGINE.diagnose(ExitStatus(code=1), text)

    assert diagnosis.code == code
    assert diagnosis.evidence
    assert diagnosis.evidence in text
    assert diagnosis.hint
    assert diagnosis.fatal


@pytest.mark.parametrize(
    ("log", "exit_status", "code"),
    [
        ("embedded-no-memory", ExitStatus(code=1), DiagnosisCode.HOST_OOM),
        ("embedded-no-memory-weights", ExitStatus(code=1), DiagnosisCode.HOST_OOM),
        ("native-illegal-instruction", ExitStatus(code=132), DiagnosisCode.CPU_UNSUPPORTED),
        ("native-illegal-instruction", ExitStatus(signal=signal.SIGILL), DiagnosisCode.CPU_UNSUPPORTED),
        ("native-library", ExitStatus(code=127), DiagnosisCode.BINARY_MISSING),
        ("native-truncated", ExitStatus(signal=signal.SIGKILL), DiagnosisCode.KILLED),
        ("native-truncated", ExitStatus(signal=signal.SIGKILL, oom_killed=True), DiagnosisCode.HOST_OOM),
        ("native-truncated", ExitStatus(code=0), DiagnosisCode.EXITED),
    ],
)
def test_what_the_kernel_says_comes_before_the_log(log: str, exit_status: ExitStatus, code: DiagnosisCode) -> None:
    assert ENGINE.diagnose(exit_status, (DATA / f"{log}.log").read_text()).code == code


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (
            "alloc_buffer: allocating 7317.71 MiB on device 0: cudaMalloc failed: out of memory",
            DiagnosisCode.DEVICE_OOM,
        ),
        ("ROCm error: out of memory", DiagnosisCode.DEVICE_OOM),
        ("CUDA error: uncorrectable ECC error encountered", DiagnosisCode.DEVICE_FAILED),
        ("CUDA error: unspecified launch failure", DiagnosisCode.DEVICE_FAILED),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", DiagnosisCode.DEVICE_FAILED),
        ("CUDA error: no kernel image is available for execution on the device", DiagnosisCode.DEVICE_UNSUPPORTED),
        ("CUDA error: CUDA driver version is insufficient for CUDA runtime version", DiagnosisCode.DRIVER_UNSUPPORTED),
        ("CUDA error: an illegal memory access was encountered", DiagnosisCode.CRASHED),
    ],
)
def test_what_a_gpus_runtime_reports_is_told_apart_from_a_crash(line: str, code: DiagnosisCode) -> None:
    log = f"0.00.302.568 I load_tensors: offloaded 33/33 layers to GPU\n{line}\n"

    diagnosis = ENGINE.diagnose(ExitStatus(signal=signal.SIGABRT), log)

    assert diagnosis.code == code
    assert diagnosis.evidence == line


def test_a_device_that_is_gone_since_the_plan_is_no_wrong_flag() -> None:
    diagnosis = ENGINE.diagnose(ExitStatus(code=1), (DATA / "native-no-such-device.log").read_text())

    assert diagnosis.code == DiagnosisCode.DEVICE_FAILED
    assert "CUDA0" in diagnosis.message
    assert not diagnosis.fatal


@pytest.mark.parametrize(
    ("exit_status", "code"),
    [
        (ExitStatus(code=1), DiagnosisCode.CRASHED),
        (ExitStatus(), DiagnosisCode.CRASHED),
        (ExitStatus(signal=signal.SIGSEGV), DiagnosisCode.CRASHED),
        (ExitStatus(signal=signal.SIGBUS), DiagnosisCode.CRASHED),
        (ExitStatus(code=137), DiagnosisCode.KILLED),
        (ExitStatus(code=143), DiagnosisCode.KILLED),
        (ExitStatus(code=127), DiagnosisCode.BINARY_MISSING),
        (ExitStatus(code=255), DiagnosisCode.CRASHED),
    ],
)
@pytest.mark.parametrize("log", ["", "\n\n", "\x00\xff garbage {0} {}", "x" * 70_000])
def test_any_end_with_any_log_has_a_diagnosis(exit_status: ExitStatus, log: str, code: DiagnosisCode) -> None:
    diagnosis = ENGINE.diagnose(exit_status, log)

    assert diagnosis.code == code
    assert len(diagnosis.evidence) <= 300


def test_the_registry_knows_the_adapter_by_its_name() -> None:
    assert get("llama.cpp") is ENGINES["llama.cpp"]
    assert all(name == engine.name for name, engine in ENGINES.items())
