"""The MLX LM adapter: command, probes, limits read back, extra arguments, memory, diagnoses of real logs.

tests/real_mlx holds the same against the real engine.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.engines import ENGINES
from agent.engines.base import HttpReply
from agent.engines.mlx_lm import REFUSED_FLAGS, MlxLm
from agent.models.huggingface import read_folder
from agent.planning.plan import Limits, MemoryBudget, MemoryTerm, Placement, Plan, Variant
from agent.status import DiagnosisCode, ExitStatus
from tests.hf_factory import make_hf

DATA = Path(__file__).parent / "data"
AGENT = Path(__file__).parents[2] / "agent"
OPTIONS = AGENT / "engines" / "mlx_lm_options.txt"
LAUNCHER = AGENT / "embedded" / "mlx_server.py"
OWN_FLAGS = {"--served-name", "--max-model-len", "--max-num-seqs", "--device"}

ENGINE = MlxLm()
PLAN = Plan(
    deployment="d",
    generation=1,
    model_name="org/served",
    task="chat",
    engine="mlx-lm",
    engine_version="1",
    binary=("/opt/mlx/bin/python",),
    runtime="process",
    variant=Variant("file:/m", "/m", "safetensors", "bf16", 1, "LlamaForCausalLM"),
    devices=(),
    limits=Limits(max_num_seqs=3, max_model_len=1000, kv_cache_dtype="int8", max_num_batched_tokens=512, threads=3),
    budgets=(MemoryBudget("host", (MemoryTerm("prompt cache", 12345, ""),)),),
    extra_args=("--top-k", "7"),
)


def value(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_every_limit_of_the_plan_reaches_its_true_flag() -> None:
    argv = ENGINE.command(PLAN, "127.0.0.1", 8100).argv

    assert argv[0] == "/opt/mlx/bin/python"
    assert (value(argv, "--model"), value(argv, "--served-name")) == ("/m", "org/served")
    assert (value(argv, "--host"), value(argv, "--port")) == ("127.0.0.1", "8100")
    assert value(argv, "--max-model-len") == "1000"
    assert value(argv, "--max-num-seqs") == value(argv, "--decode-concurrency") == "3"
    assert value(argv, "--prefill-step-size") == "512"
    assert (value(argv, "--kv-bits"), value(argv, "--quantized-kv-start")) == ("8", "0")
    assert value(argv, "--prompt-cache-bytes") == "12345"
    assert value(argv, "--device") == "cpu"
    assert argv[-2:] == ("--top-k", "7")


def test_a_plan_with_a_device_computes_on_it_and_sees_no_other() -> None:
    placement = Placement("cuda", (17,), environment={"CUDA_VISIBLE_DEVICES": "GPU-1"})

    command = ENGINE.command(replace(PLAN, devices=("GPU-1",), placement=placement), "127.0.0.1", 8100)

    assert value(command.argv, "--device") == "gpu"
    assert command.environment["CUDA_VISIBLE_DEVICES"] == "GPU-1"


def test_nothing_is_fetched_at_a_start() -> None:
    assert ENGINE.command(PLAN, "127.0.0.1", 8100).environment["HF_HUB_OFFLINE"] == "1"
    assert ENGINE.check_variable("HF_HUB_OFFLINE")
    assert ENGINE.check_variable("CUDA_VISIBLE_DEVICES")
    assert not ENGINE.check_variable("OMP_NUM_THREADS")


@pytest.mark.parametrize("kind", list(ENGINE.capabilities.kv_cache_dtypes))
def test_the_command_uses_only_flags_that_mlx_lm_has(kind: str) -> None:
    argv = ENGINE.command(replace(PLAN, limits=replace(PLAN.limits, kv_cache_dtype=kind)), "127.0.0.1", 1).argv

    flags = {item for item in argv[1:] if item.startswith("--")}
    assert flags <= set(OPTIONS.read_text().split()) | OWN_FLAGS
    assert flags >= OWN_FLAGS


def test_the_recorded_options_are_those_of_its_help() -> None:
    recorded = [line.split() for line in OPTIONS.read_text().splitlines() if not line.startswith("#")]
    shown = (DATA / "mlx-lm-server-help.txt").read_text().partition("options:")[2]

    for line in re.findall(r"^  (-.*?)(?:  |$)", shown, re.MULTILINE):
        spellings = re.findall(r"--?[a-z][\w-]*", line)
        has_value = len(line.split(", ")[-1].split()) > 1
        assert [*spellings, str(int(has_value))] in recorded
        recorded.remove([*spellings, str(int(has_value))])
    assert not recorded


def test_the_launcher_knows_the_adapters_own_flags() -> None:
    shown = subprocess.run([sys.executable, LAUNCHER, "--help"], capture_output=True, text=True, check=True).stdout

    assert set(re.findall(r"--[a-z-]+", shown)) == {*OWN_FLAGS, "--help"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "/other"], "`model` decides it"),
        (["--trust-remote-code"], "it executes code"),
        (["--draft-model", "x"], "not part of the plan's budget"),
        (["--served-name", "x"], "unknown flag"),
        (["--ctx-size", "5"], "unknown flag"),
        (["--temp"], "takes 1 value"),
    ],
)
def test_extra_arguments_that_break_the_plan_are_refused(arguments: list[str], says: str) -> None:
    violation, *_ = ENGINE.check_extra_args(arguments)

    assert violation.field == "extra_args[0]"
    assert says in violation.rule


def test_harmless_extra_arguments_pass() -> None:
    assert not ENGINE.check_extra_args(["--temp", "0.5", "--chat-template-args", '{"enable_thinking":false}'])


def test_every_refusal_names_options_that_exist() -> None:
    assert {name for names in REFUSED_FLAGS for name in names.split()} <= set(OPTIONS.read_text().split())


def test_startup_is_a_real_token_because_health_says_nothing_of_the_model() -> None:
    probe = ENGINE.startup_probe(PLAN)

    assert (probe.method, probe.path) == ("POST", "/v1/completions")
    assert json.loads(probe.body)["max_tokens"] == 1
    assert json.loads(probe.body)["model"] == "org/served"


@pytest.mark.parametrize(
    ("reply", "loading"),
    [
        (HttpReply(0, "refused"), True),
        (HttpReply(503, '{"status": "loading", "error": "the model is being loaded"}'), True),
        (HttpReply(503, '{"status": "unavailable"}'), False),
        (HttpReply(404, '{"error": "generation thread died"}'), False),
        (HttpReply(200, "{}"), False),
    ],
)
def test_a_living_corpse_is_not_loading(reply: HttpReply, loading: bool) -> None:
    assert ENGINE.loading(reply) is loading


def test_limits_are_read_back_from_what_the_launcher_enforces() -> None:
    body = {"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 512, "max_num_seqs": 3}]}

    granted = ENGINE.parse_granted([HttpReply(200, json.dumps(body))])

    assert (granted.model, granted.max_model_len, granted.max_num_seqs) == ("m", 512, 3)


@pytest.mark.parametrize("reply", [HttpReply(0, ""), HttpReply(200, "junk"), HttpReply(200, '{"data": [3]}')])
def test_what_is_not_told_is_not_known(reply: HttpReply) -> None:
    granted = ENGINE.parse_granted([reply])

    assert (granted.model, granted.max_model_len, granted.max_num_seqs) == ("", None, None)


def test_activity_comes_from_the_launchers_metrics() -> None:
    text = "# TYPE mlx_lm_running gauge\nmlx_lm_running 2\nmlx_lm_waiting 5\nmlx_lm_requests_total 9\n"

    activity = ENGINE.parse_activity(text)

    assert (activity.running, activity.waiting, activity.work) == (2, 5, 9.0)
    assert ENGINE.parse_activity("junk").running is None


@pytest.mark.parametrize(
    ("log", "code"),
    [
        ("bad-flag", DiagnosisCode.BAD_FLAG),
        ("bad-value", DiagnosisCode.BAD_FLAG),
        ("garbage", DiagnosisCode.MODEL_CORRUPT),
        ("truncated", DiagnosisCode.MODEL_CORRUPT),
        ("missing-tensors", DiagnosisCode.MODEL_CORRUPT),
        ("missing", DiagnosisCode.MODEL_MISSING),
        ("no-config", DiagnosisCode.MODEL_MISSING),
        ("no-tokenizer", DiagnosisCode.MODEL_MISSING),
        ("no-weights", DiagnosisCode.MODEL_MISSING),
        ("unknown-architecture", DiagnosisCode.MODEL_UNSUPPORTED),
        ("unsupported-quantization", DiagnosisCode.MODEL_UNSUPPORTED),
        ("no-gpu-backend", DiagnosisCode.DEVICE_UNSUPPORTED),
        ("port-taken", DiagnosisCode.PORT_TAKEN),
    ],
)
def test_recorded_logs_are_diagnosed(log: str, code: DiagnosisCode) -> None:
    diagnosis = ENGINE.diagnose(ExitStatus(code=1), (DATA / f"mlx-{log}.log").read_text())

    assert diagnosis.code is code
    assert diagnosis.evidence
    assert diagnosis.hint


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("RuntimeError: [METAL] Command buffer execution failed: Insufficient Memory", DiagnosisCode.DEVICE_OOM),
        ("RuntimeError: [malloc] Unable to allocate 68719476736 bytes.", DiagnosisCode.DEVICE_OOM),
        ("ModuleNotFoundError: No module named 'mlx_lm'", DiagnosisCode.BINARY_MISSING),
        (
            "AttributeError: type object 'ResponseGenerator' has no attribute '_tokenize'",
            DiagnosisCode.BINARY_MISSING,
        ),
        ("ValueError: The model at /m requires importing and running a custom module", DiagnosisCode.POLICY_DENIED),
    ],
)
def test_lines_of_its_sources_are_diagnosed(line: str, code: DiagnosisCode) -> None:
    assert ENGINE.diagnose(ExitStatus(code=1), line).code is code


def test_the_kernels_word_comes_before_the_log() -> None:
    assert ENGINE.diagnose(ExitStatus(signal=signal.SIGKILL, oom_killed=True), "").code is DiagnosisCode.HOST_OOM


def test_memory_grows_with_sequences_context_and_the_caches_type(tmp_path: Path) -> None:
    profile = read_folder(make_hf(tmp_path / "m"))

    def total(**limits: object) -> int:
        (host,) = ENGINE.memory_terms(profile, replace(PLAN.limits, **limits), "chat", Placement())  # type: ignore[arg-type]
        return sum(term.bytes for term in host)

    assert total(max_num_seqs=4) > total(max_num_seqs=3) > total(max_num_seqs=3, kv_cache_dtype="int4")
    assert total(max_model_len=2000) > total(max_model_len=1000) < total(kv_cache_dtype="auto")


def test_the_cache_is_counted_to_the_byte(tmp_path: Path) -> None:
    """2 layers x 2 KV heads x (16 + 16) elements x 2 bytes, for 1024 tokens: 1000 in steps of 256."""
    profile = read_folder(make_hf(tmp_path / "m"))

    (host,) = ENGINE.memory_terms(profile, replace(PLAN.limits, kv_cache_dtype="auto"), "chat", Placement())
    terms = {term.name: term.bytes for term in host}

    assert terms["weights"] == profile.tensor_bytes
    assert terms["prompt cache"] == 2 * 2 * 32 * 2 * 1024
    assert terms["KV cache"] == 3 * terms["prompt cache"]


def test_a_device_holds_everything_but_the_process(tmp_path: Path) -> None:
    profile = read_folder(make_hf(tmp_path / "m"))
    placement = Placement("metal", (ENGINE.device_layers(profile),))

    host, device = ENGINE.memory_terms(profile, PLAN.limits, "chat", placement)

    assert [term.name for term in host] == ["process"]
    assert {"weights", "KV cache", "prompt cache", "activation peak", "context"} == {term.name for term in device}


def console_script(folder: Path, first_line: str) -> str:
    script = folder / "mlx_lm.server"
    script.write_text(f"{first_line}\nimport sys\n")
    script.chmod(0o755)
    return str(script)


def fake_python(folder: Path, answer: str) -> Path:
    """Stands for the Python of an environment with mlx-lm: the launcher answers `--version` in it."""
    python = folder / "python3.12"
    python.write_text(f"#!/bin/sh\necho '{answer}'\n")
    python.chmod(0o755)
    return python


@pytest.mark.parametrize("first_line", ["#!{}", "#!/bin/sh\n'''exec' \"{}\" \"$0\" \"$@\"\n' '''"])
def test_the_launcher_runs_with_the_python_of_the_console_script(first_line: str, tmp_path: Path) -> None:
    python = fake_python(tmp_path, "version: mlx-lm 0.32.2, mlx 0.32.4, cuda")

    located = ENGINE.locate([console_script(tmp_path, first_line.format(python))])

    assert located is not None
    assert located.argv == (str(python), "-E", "-P", str(LAUNCHER))
    assert (located.version, located.accelerators) == ("mlx-lm 0.32.2, mlx 0.32.4, cuda", frozenset({"cuda"}))


def test_a_python_without_mlx_lm_is_no_executable(tmp_path: Path) -> None:
    assert ENGINE.locate([sys.executable]) is None
    assert ENGINE.locate([console_script(tmp_path, "#!/usr/bin/env node")]) is None
    assert ENGINE.locate([str(tmp_path / "gone")]) is None


def test_it_is_registered_under_its_name() -> None:
    assert isinstance(ENGINES["mlx-lm"], MlxLm)
    assert ENGINES["mlx-lm"].name == "mlx-lm"
