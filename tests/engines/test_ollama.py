"""The Ollama adapter: variables, probes against a server that answers as its source does, memory, diagnoses.

No Ollama ran here: there is no build of it in the package registries that this project uses.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.engines import ENGINES
from agent.engines.llama_cpp import LlamaCpp
from agent.engines.ollama import REFUSED_VARIABLES, Ollama
from agent.models.parts import is_split
from agent.planning.memory.ollama import RESERVE
from agent.planning.plan import Limits, MemoryBudget, Placement, Plan, Variant
from agent.status import DiagnosisCode, ExitStatus
from tests.engines.contract_server import Answer, ContractServer, activity, granted, is_ready
from tests.engines.rank_plans import profile

RECORD = Path(__file__).parents[2] / "agent" / "engines" / "ollama_variables.txt"
DOUBLE = Path(__file__).with_name("ollama_double.py")
KNOWN = {line for line in RECORD.read_text().splitlines() if not line.startswith("#")}

ENGINE = Ollama()
LIMITS = Limits(max_num_seqs=3, max_model_len=1000, kv_cache_dtype="q8_0", max_num_batched_tokens=512, threads=3)
PLAN = Plan(
    deployment="d",
    generation=1,
    model_name="served",
    task="chat",
    engine="ollama",
    engine_version="",
    binary=("ollama",),
    runtime="process",
    variant=Variant("file:/m.gguf", "/m.gguf", "gguf", "Q4_K_M", 1, "llama"),
    devices=(),
    limits=LIMITS,
    budgets=(MemoryBudget("host", ()),),
)


def test_every_limit_of_the_plan_reaches_its_true_variable() -> None:
    command = ENGINE.command(PLAN, "127.0.0.1", 8100)

    assert command.argv[-2:] == ("--", "ollama")
    assert command.environment["OLLAMA_HOST"] == "127.0.0.1:8100"
    assert command.environment["OLLAMA_NUM_PARALLEL"] == "3"
    assert command.environment["OLLAMA_CONTEXT_LENGTH"] == "1000"
    assert command.environment["OLLAMA_KV_CACHE_TYPE"] == "q8_0"
    assert command.environment["OLLAMA_MAX_LOADED_MODELS"] == "1"
    assert command.environment["OLLAMA_KEEP_ALIVE"] == "-1"
    assert command.environment["OLLAMA_LOAD_TIMEOUT"] == "0"


def test_an_address_with_colons_is_put_in_brackets() -> None:
    assert ENGINE.command(PLAN, "::1", 8100).environment["OLLAMA_HOST"] == "[::1]:8100"


def test_the_command_uses_only_variables_that_ollama_or_its_llama_server_has() -> None:
    placement = Placement("cuda", (17, 16), environment={"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"})
    plan = replace(PLAN, devices=("GPU-1", "GPU-2"), placement=placement)

    environment = ENGINE.command(plan, "127.0.0.1", 1).environment

    assert set(environment) - {"LLAMA_ARG_CACHE_RAM"} <= KNOWN
    assert environment["OLLAMA_SCHED_SPREAD"] == "1"
    help_text = (Path(__file__).parent / "data" / "llama-server-help.txt").read_text()
    assert "LLAMA_ARG_CACHE_RAM" in help_text


def test_without_devices_it_sees_none() -> None:
    environment = ENGINE.command(PLAN, "127.0.0.1", 1).environment

    assert {environment[name] for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")} == {"-1"}
    assert environment["OLLAMA_VULKAN"] == "0"


def test_an_installation_is_found_with_what_it_computes_on(tmp_path: Path) -> None:
    executable = tmp_path / "bin" / "ollama"
    executable.parent.mkdir()
    executable.write_text(f'#!/bin/sh\nexec {sys.executable} {DOUBLE} "$@"\n')
    executable.chmod(0o755)
    (tmp_path / "lib/ollama/cuda_v13").mkdir(parents=True)

    located = ENGINE.locate([str(executable)])

    assert located is not None
    assert (located.argv, located.version, located.origin) == ((str(executable),), "0.33.3", "config")
    assert located.accelerators == {"cpu", "cuda"}
    assert ENGINE.locate([str(tmp_path / "none")]) is None


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("ollama version is 0.33.3", "0.33.3"),
        ("ollama version is 0.20.0\nWarning: client version is 0.33.3", "0.33.3"),
        ("Warning: could not connect to a running Ollama instance\nWarning: client version is 0.33.3", "0.33.3"),
    ],
)
def test_its_own_version_is_known_whatever_server_runs_on_the_host(tmp_path: Path, said: str, version: str) -> None:
    executable = tmp_path / "ollama"
    executable.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    executable.chmod(0o755)

    located = ENGINE.locate([str(executable)])

    assert located is not None
    assert located.version == version


# The launcher


def store(plan: Plan) -> dict[str, str]:
    """What the launcher is told to put into its store: paths, each with its content or what it links to."""
    argv = ENGINE.command(plan, "127.0.0.1", 1).argv
    parts = argv[argv.index(plan.model_name) + 2 : argv.index("--")]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_store_has_one_model_with_the_plans_layers_and_threads() -> None:
    digest = "sha256:" + "5" * 64
    placement = Placement("cuda", (17, 16))
    plan = replace(PLAN, devices=("GPU-1", "GPU-2"), placement=placement, variant=replace(PLAN.variant, digest=digest))

    found = store(plan)

    manifest = json.loads(found["manifests/registry.ollama.ai/library/served/latest"])
    model, parameters = manifest["layers"]
    assert (model["digest"], model["size"]) == (digest, 1)
    assert found["blobs/sha256-" + "5" * 64] == "/m.gguf"
    for layer in (manifest["config"], parameters):
        text = found["blobs/" + layer["digest"].replace(":", "-")]
        assert (layer["digest"], layer["size"]) == (f"sha256:{hashlib.sha256(text.encode()).hexdigest()}", len(text))
    assert json.loads(found["blobs/" + parameters["digest"].replace(":", "-")]) == {
        "num_gpu": 33, "num_thread": 3, "num_batch": 512,
    }  # fmt: skip
    assert json.loads(found["blobs/" + manifest["config"]["digest"].replace(":", "-")])["model_family"] == "llama"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("served", "library/served/latest"),
        ("served:q4", "library/served/q4"),
        ("org/model", "org/model/latest"),
        ("../../outside", "library/refused/latest"),
        ("a/../b", "library/refused/latest"),
        ("-x", "library/refused/latest"),
        ("two words", "library/refused/latest"),
    ],
)
def test_no_name_leads_out_of_the_store(name: str, path: str) -> None:
    assert f"manifests/registry.ollama.ai/{path}" in store(replace(PLAN, model_name=name))


def test_an_embedding_model_is_loaded_by_something_to_embed() -> None:
    argv = ENGINE.command(replace(PLAN, task="embedding"), "127.0.0.1", 1).argv

    assert argv[2:4] == ("served", "a")
    assert ENGINE.command(PLAN, "127.0.0.1", 1).argv[2:4] == ("served", "")  # a text would be answered, at any length


def test_a_model_in_several_files_is_not_for_it() -> None:
    assert not ENGINE.capabilities.split
    assert is_split("/models/m-00001-of-00003.gguf")
    assert not is_split("/models/m.gguf")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("OLLAMA_HOST", "`port`"),
        ("OLLAMA_NUM_PARALLEL", "limits.max_num_seqs"),
        ("OLLAMA_VULKAN", "`devices`"),
        ("CUDA_VISIBLE_DEVICES", "`devices`"),
        ("LLAMA_ARG_CTX_SIZE", "behind the plan's back"),
        ("OLLAMA_MAX_QUEU", "did you mean OLLAMA_MAX_QUEUE?"),
    ],
)
def test_variables_that_break_the_plan_are_refused(name: str, says: str) -> None:
    assert says in ENGINE.check_variable(name)


def test_other_variables_pass() -> None:
    assert not ENGINE.check_variable("OLLAMA_MAX_QUEUE")
    assert not ENGINE.check_variable("TZ")


def test_every_refusal_names_a_variable_that_exists() -> None:
    assert REFUSED_VARIABLES.keys() <= KNOWN


def test_it_takes_no_arguments() -> None:
    (violation,) = ENGINE.check_extra_args(["--verbose"])

    assert (violation.field, "takes no arguments" in violation.rule) == ("extra_args[0]", True)


LOADED = {"name": "served:latest", "model": "served:latest", "size": 1, "size_vram": 0, "context_length": 1000}
SCRIPT = {
    "loading": {"GET /api/version": Answer.of({"version": "0.33.0"}), "GET /api/ps": Answer.of({"models": []})},
    "ready": {
        "GET /api/version": Answer.of({"version": "0.33.0"}),
        "GET /api/ps": Answer.of({"models": [LOADED]}),
        "POST /api/generate": Answer.of({"response": "b", "done": True}),
    },
}


def test_a_version_does_not_make_it_ready_while_the_model_loads() -> None:
    with ContractServer(SCRIPT) as server:
        assert ENGINE.loading(server.ask(ENGINE.startup_probe(PLAN)))
        assert granted(server, ENGINE, PLAN).model == ""
        assert not any(asked.startswith("POST") for asked in server.asked)  # which would be a load, with a deadline

        server.enter("ready")
        assert not ENGINE.loading(server.ask(ENGINE.startup_probe(PLAN)))

        assert is_ready(server, ENGINE, PLAN)
        found = granted(server, ENGINE, PLAN)
        assert (found.model, found.max_model_len, found.max_num_seqs) == ("served", 1000, None)
        assert activity(server, ENGINE, PLAN).running is None


def test_an_embedding_model_is_probed_by_an_embedding() -> None:
    assert ENGINE.inference_probe(replace(PLAN, task="embedding")).path == "/api/embed"


def test_its_memory_is_llama_cpps_with_a_reserve_on_each_device() -> None:
    model = profile("Qwen3-8B", "Q4_K_M")
    placement = Placement("cuda", (ENGINE.device_layers(model),))
    limits = replace(LIMITS, kv_cache_dtype="f16")

    host, device = ENGINE.memory_terms(model, limits, "chat", placement)
    _, of_llama_cpp = LlamaCpp().memory_terms(model, limits, "chat", placement)

    assert device[:-1] == of_llama_cpp
    assert device[-1].bytes == RESERVE
    assert host[-1].name == "Ollama"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("Error: listen tcp 127.0.0.1:11434: bind: address already in use", DiagnosisCode.PORT_TAKEN),
        ("cudaMalloc failed: out of memory", DiagnosisCode.DEVICE_OOM),
        ("error loading model: unknown model architecture: 'nosuch'", DiagnosisCode.MODEL_UNSUPPORTED),
        (
            "failed to load model: this model may be incompatible with your version of Ollama.",
            DiagnosisCode.MODEL_UNSUPPORTED,
        ),
        ('model "served" not found, try pulling it first', DiagnosisCode.MODEL_MISSING),
        ("llama-server binary not found (checked: /usr/lib/ollama)", DiagnosisCode.BINARY_MISSING),
        ("panic: something else", DiagnosisCode.CRASHED),
    ],
)
def test_lines_of_its_source_are_diagnosed(line: str, code: DiagnosisCode) -> None:
    diagnosis = ENGINE.diagnose(ExitStatus(code=1), f"time=... level=INFO msg=x\n{line}\n")

    assert (diagnosis.code, diagnosis.evidence) == (code, line)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("Error: 500: error loading model: unknown model architecture: 'nosuch'", DiagnosisCode.MODEL_UNSUPPORTED),
        ("Error: 400: invalid model name", DiagnosisCode.BAD_FLAG),
        ("Error: something new", DiagnosisCode.CRASHED),
    ],
)
def test_a_server_that_the_launcher_ended_is_diagnosed_by_why(line: str, code: DiagnosisCode) -> None:
    diagnosis = ENGINE.diagnose(ExitStatus(code=0), f"{line}\nollama.sh: the model was not loaded\n")

    assert (diagnosis.code, diagnosis.evidence) == (code, line)


def test_it_is_registered_under_its_name() -> None:
    assert isinstance(ENGINES["ollama"], Ollama)
