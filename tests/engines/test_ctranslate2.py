"""The CTranslate2 adapter: command, probes, limits read back, memory, diagnoses of real logs.

tests/real_ctranslate2 holds the same against the real library.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.engines import ENGINES
from agent.engines.base import HttpReply
from agent.engines.ctranslate2 import CTranslate2
from agent.models.ctranslate2 import read_converted
from agent.planning.plan import Limits, MemoryBudget, Placement, Plan, Variant
from agent.status import DiagnosisCode, ExitStatus
from tests.ct2_factory import make_ct2
from tests.engines.contract_server import Answer, ContractServer, activity, granted, is_loading, is_ready

DATA = Path(__file__).parent / "data"
SERVER = Path(__file__).parents[2] / "agent" / "embedded" / "ctranslate2_server.py"

ENGINE = CTranslate2()
PLAN = Plan(
    deployment="d",
    generation=1,
    model_name="served",
    task="completion",
    engine="ctranslate2",
    engine_version="1",
    binary=("/opt/ctranslate2/bin/python",),
    runtime="process",
    variant=Variant("file:/m", "/m", "ctranslate2", "int8_float16", 1, "TransformerDecoderSpec"),
    devices=(),
    limits=Limits(max_num_seqs=3, max_model_len=1000, kv_cache_dtype="auto", max_num_batched_tokens=1000, threads=6),
    budgets=(MemoryBudget("host", ()),),
)


def value(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_every_limit_of_the_plan_reaches_its_true_flag() -> None:
    argv = ENGINE.command(PLAN, "127.0.0.1", 8100).argv

    assert (value(argv, "--model"), value(argv, "--served-name")) == ("/m", "served")
    assert (value(argv, "--host"), value(argv, "--port")) == ("127.0.0.1", "8100")
    assert (value(argv, "--max-model-len"), value(argv, "--max-num-seqs")) == ("1000", "3")
    assert (value(argv, "--threads"), value(argv, "--device")) == ("6", "cpu")


def test_the_command_uses_exactly_the_flags_of_the_server() -> None:
    shown = subprocess.run([sys.executable, SERVER, "--help"], capture_output=True, text=True, check=True).stdout
    flags = {item for item in ENGINE.command(PLAN, "127.0.0.1", 1).argv if item.startswith("--")}

    assert set(re.findall(r"--[a-z-]+", shown)) == {*flags, "--help"}


def test_a_plan_with_a_device_computes_on_it() -> None:
    placement = Placement("cuda", (3,), environment={"CUDA_VISIBLE_DEVICES": "GPU-1"})

    command = ENGINE.command(replace(PLAN, devices=("GPU-1",), placement=placement), "127.0.0.1", 1)

    assert value(command.argv, "--device") == "cuda"
    assert command.environment == {"CUDA_VISIBLE_DEVICES": "GPU-1"}


def test_it_takes_no_arguments_and_no_variable_that_chooses_devices() -> None:
    (violation,) = ENGINE.check_extra_args(["--beam", "4"][:1])

    assert violation.field == "extra_args[0]"
    assert ENGINE.check_variable("CUDA_VISIBLE_DEVICES")
    assert not ENGINE.check_variable("CT2_VERBOSE")


CARD = {"id": "served", "object": "model", "max_model_len": 1000, "max_num_seqs": 3}
METRICS = "ctranslate2_running 2\nctranslate2_waiting 1\nctranslate2_generated_tokens_total 40\n"
SCRIPT = {
    "loading": {"GET /health": Answer.of({"status": "loading"}, 503)},
    "ready": {
        "GET /health": Answer.of({"status": "ok"}),
        "GET /v1/models": Answer.of({"object": "list", "data": [CARD]}),
        "GET /metrics": Answer(200, METRICS),
    },
}


def test_it_is_loading_then_ready_and_tells_its_limits_and_its_work() -> None:
    with ContractServer(SCRIPT) as server:
        assert is_loading(server, ENGINE, PLAN)

        server.enter("ready")

        assert is_ready(server, ENGINE, PLAN)
        found, busy = granted(server, ENGINE, PLAN), activity(server, ENGINE, PLAN)
        assert (found.model, found.max_model_len, found.max_num_seqs) == ("served", 1000, 3)
        assert (busy.running, busy.waiting, busy.work) == (2, 1, 40.0)


def test_what_is_not_told_is_not_known() -> None:
    assert ENGINE.parse_activity("junk").running is None
    assert ENGINE.parse_granted([HttpReply(200, "junk")]).max_num_seqs is None


@pytest.mark.parametrize(
    ("log", "code"),
    [
        ("no-tokenizer", DiagnosisCode.MODEL_MISSING),
        ("no-vocabulary", DiagnosisCode.MODEL_MISSING),
        ("truncated", DiagnosisCode.MODEL_CORRUPT),
        ("newer-format", DiagnosisCode.MODEL_UNSUPPORTED),
        ("no-driver", DiagnosisCode.DRIVER_UNSUPPORTED),
        ("port-taken", DiagnosisCode.PORT_TAKEN),
    ],
)
def test_recorded_logs_are_diagnosed(log: str, code: DiagnosisCode) -> None:
    diagnosis = ENGINE.diagnose(ExitStatus(code=1), (DATA / f"ctranslate2-{log}.log").read_text())

    assert (diagnosis.code, bool(diagnosis.evidence), bool(diagnosis.hint)) == (code, True, True)


@pytest.mark.parametrize(
    ("dtype", "each"), [("int8", 1), ("float16", 4), ("float32", 4)]
)  # bytes of a weight on the CPU: 16-bit ones are widened while they are loaded
def test_weights_are_counted_in_the_type_that_it_computes_in(dtype: str, each: int, tmp_path: Path) -> None:
    profile = read_converted(make_ct2(tmp_path / "m", dtype=dtype))

    (host,) = ENGINE.memory_terms(profile, PLAN.limits, "completion", Placement())
    terms = {term.name: term.bytes for term in host}

    assert terms["weights"] == pytest.approx(profile.parameters * each, rel=0.02)
    assert terms["KV cache"] == 3 * 1000 * 2 * 2 * 32 * 4  # sequences, tokens, layers, KV heads, elements, 32 bit


def test_a_device_holds_what_is_stored(tmp_path: Path) -> None:
    profile = read_converted(make_ct2(tmp_path / "m", dtype="float16"))
    placement = Placement("cuda", (ENGINE.device_layers(profile),))

    host, device = ENGINE.memory_terms(profile, PLAN.limits, "completion", placement)

    assert [term.name for term in host] == ["process"]
    assert {term.name: term.bytes for term in device}["weights"] == pytest.approx(profile.parameters * 2, rel=0.02)


def test_it_runs_with_the_python_that_is_configured(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'version: ctranslate2 4.8.5, cpu, cuda'\n")
    python.chmod(0o755)

    located = ENGINE.locate([str(python)])

    assert located is not None
    assert located.argv == (str(python), "-E", "-P", str(SERVER))
    assert (located.version, located.accelerators) == ("ctranslate2 4.8.5, cpu, cuda", frozenset({"cpu", "cuda"}))


def test_a_python_without_it_is_no_executable() -> None:
    assert ENGINE.locate([sys.executable]) is None
    assert ENGINE.locate(None) is None


def test_it_is_registered_under_its_name() -> None:
    assert isinstance(ENGINES["ctranslate2"], CTranslate2)
