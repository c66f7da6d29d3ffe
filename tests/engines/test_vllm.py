"""The vLLM adapter: command, probes, limits read back, extra arguments, diagnoses of real logs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.engines import get
from agent.engines.base import HttpReply, Metric
from agent.engines.vllm import VLLM
from agent.engines.vllm_refusals import REFUSED_FLAGS, REFUSED_VARIABLES
from agent.planning.plan import Capacity, Limits, MemoryBudget, MemoryTerm, Placement, Plan, Variant
from agent.status import DiagnosisCode as Code
from agent.status import ExitStatus

DATA = Path(__file__).parent / "data"
OPTIONS = Path(__file__).parents[2] / "agent" / "engines" / "vllm_options.txt"

ENGINE = VLLM()
PLAN = Plan(
    deployment="d", generation=1, model_name="served", task="chat", engine="vllm", engine_version="0.32.0",
    binary=("/usr/bin/vllm",), runtime="process", variant=Variant("file:/m", "/m", "safetensors", "awq", 1, "llama"),
    devices=("GPU-a", "GPU-b"),
    limits=Limits(max_num_seqs=4, max_model_len=1000, kv_cache_dtype="fp8", max_num_batched_tokens=2048, threads=3,
                  gpu_memory_utilization=0.85),
    budgets=(MemoryBudget("host", ()),), extra_args=("--tool-call-parser", "hermes"),
    placement=Placement("cuda", tensor=2, pipeline=3, data=4, environment={"CUDA_VISIBLE_DEVICES": "0,1"}),
)  # fmt: skip
ON_CPU = replace(
    PLAN,
    devices=(),
    limits=replace(PLAN.limits, gpu_memory_utilization=None),
    placement=Placement("cpu"),
    capacity=Capacity(kv_bytes=123_456, kv_tokens=64, requests=1.0),
)


def value(argv: tuple[str, ...], flag: str) -> str:
    assert argv.count(flag) == 1
    return argv[argv.index(flag) + 1]


def test_every_limit_of_the_plan_reaches_its_true_flag() -> None:
    command = ENGINE.command(PLAN, "127.0.0.1", 8100)
    argv = command.argv

    assert argv[:3] == ("/usr/bin/vllm", "serve", "/m")
    assert value(argv, "--served-model-name") == "served"
    assert (value(argv, "--host"), value(argv, "--port")) == ("127.0.0.1", "8100")
    assert value(argv, "--max-model-len") == "1000"
    assert value(argv, "--max-num-seqs") == "4"
    assert value(argv, "--max-num-batched-tokens") == "2048"
    assert value(argv, "--kv-cache-dtype") == "fp8"
    assert value(argv, "--gpu-memory-utilization") == "0.85"
    assert value(argv, "--tensor-parallel-size") == "2"
    assert value(argv, "--pipeline-parallel-size") == "3"
    assert value(argv, "--data-parallel-size") == "4"
    assert argv[-2:] == ("--tool-call-parser", "hermes")
    assert "--kv-cache-memory-bytes" not in argv
    assert command.environment["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_nothing_is_downloaded_or_reported_and_no_code_of_the_model_is_trusted() -> None:
    command = ENGINE.command(PLAN, "127.0.0.1", 8100)

    assert command.environment["HF_HUB_OFFLINE"] == command.environment["VLLM_NO_USAGE_STATS"] == "1"
    assert "--trust-remote-code" not in command.argv


def test_on_a_cpu_the_pool_is_exactly_the_plans() -> None:
    command = ENGINE.command(ON_CPU, "127.0.0.1", 8100)

    assert value(command.argv, "--kv-cache-memory-bytes") == "123456"
    assert "--gpu-memory-utilization" not in command.argv
    assert command.environment["OMP_NUM_THREADS"] == "3"


def test_on_a_cpu_the_pool_of_a_plan_without_capacity_is_its_budgets() -> None:
    budget = MemoryBudget("host", (MemoryTerm("weights", 7, ""), MemoryTerm("KV cache", 999, "")))

    argv = ENGINE.command(replace(ON_CPU, capacity=None, budgets=(budget,)), "127.0.0.1", 8100).argv

    assert value(argv, "--kv-cache-memory-bytes") == "999"


@pytest.mark.parametrize(
    ("task", "runner"),
    [("chat", "generate"), ("completion", "generate"), ("embedding", "pooling"), ("rerank", "pooling")],
)
def test_the_task_decides_the_runner(task: str, runner: str) -> None:
    assert value(ENGINE.command(replace(PLAN, task=task), "127.0.0.1", 8100).argv, "--runner") == runner


def test_the_command_uses_only_flags_that_vllm_has() -> None:
    known = set(OPTIONS.read_text().split())
    for plan in (PLAN, ON_CPU):
        argv = ENGINE.command(plan, "127.0.0.1", 8100).argv

        assert {item for item in argv if item.startswith("-")} <= known


def test_no_spec_may_give_what_the_command_gives() -> None:
    owned = {item for plan in (PLAN, ON_CPU) for item in ENGINE.command(plan, "h", 1).argv if item.startswith("--")}
    owned -= {"--tool-call-parser", "--enforce-eager"}

    for flag in owned:
        (violation,) = ENGINE.check_extra_args([flag, "1"])
        assert "may not be given" in violation.rule


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tool-call-parser", "hermes", "--enable-auto-tool-choice"],
        ["--reasoning-parser=qwen3"],
        ["--enforce-eager"],
        ["--no-enforce-eager"],
        ["--allowed-media-domains", "a.example", "b.example", "--seed", "7"],
        ["--trust-remote-code"],  # for who may give extra arguments at all
    ],
)
def test_arguments_that_change_nothing_of_the_plan_are_taken(arguments: list[str]) -> None:
    assert ENGINE.check_extra_args(arguments) == ()


@pytest.mark.parametrize(
    ("arguments", "field", "words"),
    [
        (["--seed", "1", "-tp", "2"], "extra_args[2]", "`devices` decides it"),
        (["--tensor-parallel-size=2"], "extra_args[0]", "`devices` decides it"),
        (["--gpu-memory-utilization", "0.99"], "extra_args[0]", "limits.gpu_memory_utilization"),
        (["--device-memory-utilization", "0.99"], "extra_args[0]", "limits.gpu_memory_utilization"),
        (["--api-key", "secret"], "extra_args[0]", "VLLM_API_KEY"),
        (["--served-model-name", "a", "b"], "extra_args[0]", "`served_name`"),
        (["--max_model_len=5"], "extra_args[0]", "unknown flag --max_model_len"),
        (["--enable-prefix-cachin"], "extra_args[0]", "did you mean --enable-prefix-caching?"),
        (["--tensor-paralel-size=2"], "extra_args[0]", "nor may --tensor-parallel-size be given: `devices` decides it"),
        (["--middleware", "x"], "extra_args[0]", "runs Python code"),
        (["--seed"], "extra_args[0]", "takes 1 value"),
        (["other-model"], "extra_args[0]", "not a flag"),
    ],
)
def test_owned_dangerous_and_unknown_arguments_are_refused(arguments: list[str], field: str, words: str) -> None:
    violations = ENGINE.check_extra_args(arguments)

    assert [violation.field for violation in violations] == [field]
    assert words in violations[0].rule


def test_every_refusal_is_of_an_option_that_vllm_has() -> None:
    known = set(OPTIONS.read_text().split())

    assert {flag for flags in REFUSED_FLAGS for flag in flags.split()} <= known


@pytest.mark.parametrize("name", [*REFUSED_VARIABLES, "CUDA_VISIBLE_DEVICES", "ONEAPI_DEVICE_SELECTOR"])
def test_variables_that_go_around_the_plan_are_refused(name: str) -> None:
    assert ENGINE.check_variable(name)


@pytest.mark.parametrize("name", ["VLLM_API_KEY", "HF_TOKEN", "NCCL_DEBUG", "VLLM_LOGGING_LEVEL"])
def test_other_variables_may_be_set(name: str) -> None:
    assert not ENGINE.check_variable(name)


def test_what_the_command_sets_may_not_be_set_by_a_spec() -> None:
    for name in {**ENGINE.command(PLAN, "h", 1).environment, **ENGINE.command(ON_CPU, "h", 1).environment}:
        assert ENGINE.check_variable(name), name


def test_no_secret_is_in_the_command_and_the_key_has_its_variable() -> None:
    assert ENGINE.secret_flags() == {"api_key": "VLLM_API_KEY"}
    assert not any("key" in item for item in ENGINE.command(PLAN, "h", 1).argv)


@pytest.mark.parametrize(("status", "loading"), [(0, True), (503, False), (500, False), (200, False)])
def test_only_a_refused_connection_means_loading(status: int, loading: bool) -> None:
    assert ENGINE.loading(HttpReply(status, "")) is loading


def test_activity_is_read_from_the_metrics_of_a_real_server() -> None:
    text = (DATA / "vllm-metrics.txt").read_text()
    busy = text.replace('num_requests_running{engine="0",model_name="served"} 0.0',
                        'num_requests_running{engine="0",model_name="served"} 3.0\n'
                        'vllm:num_requests_running{engine="1",model_name="served"} 2.0')  # fmt: skip

    assert ENGINE.parse_activity(text).running == ENGINE.parse_activity(text).waiting == 0
    assert ENGINE.parse_activity(text).work == 0
    assert ENGINE.parse_activity(busy).running == 5
    assert ENGINE.parse_activity("<html>") == replace(
        ENGINE.parse_activity(text), running=None, waiting=None, work=None
    )


def test_every_metric_is_one_that_a_real_server_has() -> None:
    text = (DATA / "vllm-metrics.txt").read_text()

    for metric in Metric:
        assert any(line.startswith((f"{ENGINE.metrics[metric]}{{", f"{ENGINE.metrics[metric]}_count{{"))
                   for line in text.splitlines()), metric  # fmt: skip


def test_granted_limits_are_the_servers_own() -> None:
    models = HttpReply(200, '{"data":[{"id":"served","max_model_len":512}]}')
    metrics = HttpReply(200, (DATA / "vllm-metrics.txt").read_text())

    granted = ENGINE.parse_granted([models, metrics])

    assert (granted.model, granted.max_model_len, granted.kv_tokens) == ("served", 512, 2048)
    assert ENGINE.parse_granted([models, HttpReply(404, "")]).kv_tokens is None


@pytest.mark.parametrize(
    ("name", "status", "code", "words"),
    [
        ("bad-flag", 2, Code.BAD_FLAG, "--no-such-flag"),
        ("bad-value", 2, Code.BAD_FLAG, "--max-num-seqs"),
        ("no-model", 1, Code.MODEL_MISSING, "/nonexistent/model"),
        ("no-tokenizer", 1, Code.MODEL_MISSING, "tokenizer"),
        ("truncated", 1, Code.MODEL_CORRUPT, "truncated"),
        ("architecture", 1, Code.MODEL_UNSUPPORTED, "NopeForCausalLM"),
        ("remote-code", 1, Code.POLICY_DENIED, "code of its own"),
        ("too-long", 1, Code.BAD_FLAG, "9999 tokens"),
        ("cache-too-small", 1, Code.CACHE_TOO_SMALL, "512 tokens"),
        ("host-memory", 1, Code.HOST_OOM, "less memory free"),
        ("port", 1, Code.PORT_TAKEN, "port"),
        ("core-killed", 0, Code.CRASHED, "engine core died"),
        ("worker-killed", 0, Code.CRASHED, "worker process VllmWorker-0 died"),
    ],
)
def test_real_logs_are_diagnosed_by_their_cause(name: str, status: int, code: Code, words: str) -> None:
    found = ENGINE.diagnose(ExitStatus(code=status), (DATA / f"vllm-{name}.log").read_text())

    assert found.code is code
    assert words in found.message
    assert "See root cause above" not in found.evidence


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (("ValueError: Free memory on device cuda:0 (10.5/79.2 GiB) on startup is less than desired GPU memory "
         "utilization (0.92, 72.86 GiB). Decrease GPU memory utilization"), Code.DEVICE_OOM, "72.86 GiB"),
        ("AssertionError: Error in memory profiling. Initial free memory 10 GiB, current free memory 20 GiB.",
         Code.DEVICE_OOM, "somebody else"),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
         Code.CACHE_TOO_SMALL, "nothing for the cache"),
        ("RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests.",
         Code.DEVICE_OOM, "warm-up with 1024"),
        (("Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization (original error: CUDA "
         "out of memory. Tried to allocate 20.00 MiB.)"), Code.DEVICE_OOM, "while the weights were loaded"),
        (("ValueError: The quantization method modelopt_fp4 is not supported for the current GPU. Minimum capability: "
         "80. Current capability: 75."), Code.DEVICE_UNSUPPORTED, "capability 80"),
        ("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.",
         Code.DEVICE_UNSUPPORTED, "type"),
        ("ValueError: Unknown quantization method: gguf. Must be one of", Code.MODEL_UNSUPPORTED, "quantized"),
        ("RuntimeError: Failed to infer device type, please set", Code.DEVICE_UNSUPPORTED, "no device"),
    ],
)  # fmt: skip
def test_lines_of_devices_that_were_not_here_are_diagnosed_too(line: str, code: Code, words: str) -> None:
    """The lines are composed as the sources of version 0.32 compose them."""
    log = f"(EngineCore pid=7) ERROR 11-21 13:28:33 [core.py:1] {line}\n"
    log += "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"

    found = ENGINE.diagnose(ExitStatus(code=1), log)

    assert found.code is code
    assert words in found.message
    assert found.hint


def test_memory_that_runs_out_is_told_apart_by_when_it_does() -> None:
    line = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\n"

    loading = f"INFO Starting to load model /m...\n{line}"
    assert "while the weights were loaded" in ENGINE.diagnose(ExitStatus(code=1), loading).message
    serving = f"INFO:     Application startup complete.\n{line}"
    assert "while it served" in ENGINE.diagnose(ExitStatus(code=0), serving).message


def test_the_registry_has_it() -> None:
    assert isinstance(get("vllm"), VLLM)
    assert get("vllm").capabilities.quantizations is not None


@pytest.mark.parametrize("quantization", ["gguf", "Q4_K_M", "bitsandbytes", "mlx-w4a16"])
def test_formats_that_need_plugins_or_other_engines_are_not_served(quantization: str) -> None:
    assert "gguf" not in ENGINE.capabilities.formats
    assert quantization not in (ENGINE.capabilities.quantizations or {})


def test_where_quantizations_run_is_told_by_compute_capability() -> None:
    table = ENGINE.capabilities.quantizations or {}
    ampere, ada, blackwell, turing = (8, 0), (8, 9), (10, 0), (7, 5)

    assert table["fp8"].least == ampere
    assert table["fp8"].native == ada
    assert table["int8"].below == blackwell
    assert table["nvfp4"].native == blackwell
    assert table["awq"].least == table["gptq"].least == turing
    assert (table["bf16"].least, table["bf16"].native) == (turing, ampere)
    assert "cpu" in table["bf16"].accelerators
    assert "cpu" not in table["fp8"].accelerators


def test_the_version_and_the_accelerator_are_read_without_asking_the_engine(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("vllm-0.33.0", "torch-2.14.0+cu129"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
    binary = tmp_path / "bin" / "vllm"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\nexit 1\n")
    binary.chmod(0o755)

    located = ENGINE.locate([str(binary)])

    assert located is not None
    assert (located.argv, located.version, located.accelerators) == ((str(binary),), "0.33.0", frozenset({"cuda"}))
    assert ENGINE.locate([str(tmp_path / "bin" / "none")]) is None
