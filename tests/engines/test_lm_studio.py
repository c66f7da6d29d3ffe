"""The LM Studio adapter: command, the launcher with a double of llmster and `lms`, probes against a server that answers
as its documentation says, limits read back, diagnoses.

No LM Studio ran here: it is proprietary, and no package registry has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.engines import ENGINES
from agent.engines.llama_cpp import LlamaCpp
from agent.engines.lm_studio import REFUSED_FLAGS, LmStudio
from agent.planning.plan import Limits, MemoryBudget, Placement, Plan, Variant
from agent.status import DiagnosisCode, ExitStatus
from tests.engines.contract_server import CLOSED, Answer, ContractServer, activity, granted, is_loading, is_ready
from tests.engines.lm_studio_double import CPU_ENGINE, VERSION, install
from tests.engines.rank_plans import profile
from tests.harness import free_port, gone, wait_true

OPTIONS = Path(__file__).parents[2] / "agent" / "engines" / "lm_studio_options.txt"
KNOWN = set(OPTIONS.read_text().split())
CUDA_ENGINE = "llama.cpp-linux-x86_64-nvidia-cuda12-avx2"

ENGINE = LmStudio()
PLAN = Plan(
    deployment="d",
    generation=1,
    model_name="served",
    task="chat",
    engine="lm-studio",
    engine_version=VERSION,
    binary=("/opt/.lmstudio/llmster/0.0.25-1/llmster", "/opt/.lmstudio/bin/lms"),
    runtime="process",
    variant=Variant("file:/my models/m.gguf", "/my models/m.gguf", "gguf", "Q4_K_M", 1, "llama"),
    devices=(),
    limits=Limits(max_num_seqs=3, max_model_len=1000, kv_cache_dtype="f16", max_num_batched_tokens=512, threads=3),
    budgets=(MemoryBudget("host", ()),),
)
ON_CUDA = replace(
    PLAN, devices=("GPU-1",), placement=Placement("cuda", (17,), environment={"CUDA_VISIBLE_DEVICES": "GPU-1"})
)


def test_every_limit_of_the_plan_reaches_its_true_flag() -> None:
    argv = ENGINE.command(PLAN, "127.0.0.1", 8100).argv

    assert argv[2:8] == ("/my models/m.gguf", "cpu", "127.0.0.1", "8100", *PLAN.binary)
    assert dict(zip(argv[8::2], argv[9::2], strict=True)) == {
        "--identifier": "served", "--context-length": "1000", "--parallel": "3", "--gpu": "off",
    }  # fmt: skip


def test_a_plan_with_a_device_lays_everything_on_it_and_sees_no_other() -> None:
    command = ENGINE.command(ON_CUDA, "127.0.0.1", 1)

    assert command.argv[3] == "cuda"
    assert command.argv[command.argv.index("--gpu") + 1] == "max"
    assert command.environment == {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    assert ENGINE.command(PLAN, "127.0.0.1", 1).environment["CUDA_VISIBLE_DEVICES"] == "-1"


def test_the_launcher_uses_only_flags_that_lms_load_has() -> None:
    argv = ENGINE.command(PLAN, "127.0.0.1", 1).argv
    (line,) = [line for line in Path(argv[1]).read_text().splitlines() if '"$lms" load' in line]

    assert {item for item in (*argv, *line.split()) if item.startswith("--")} <= KNOWN


# The installation


def test_an_installation_is_found_with_what_it_computes_on(tmp_path: Path) -> None:
    lms = install(tmp_path, f"{CPU_ENGINE}-2.31.2", f"{CUDA_ENGINE}-2.31.2")

    located = ENGINE.locate([str(lms)])

    assert located is not None
    daemon = str(tmp_path / ".lmstudio/llmster" / VERSION / "llmster")
    assert (located.argv, located.version, located.origin) == ((daemon, str(lms)), VERSION, "config")
    assert located.accelerators == {"cpu", "cuda"}


def test_a_link_to_it_is_followed(tmp_path: Path) -> None:
    lms = install(tmp_path)
    (tmp_path / "lms").symlink_to(lms)

    located = ENGINE.locate([str(tmp_path / "lms")])

    assert located is not None
    assert located.argv[1] == str(lms)


@pytest.mark.parametrize("place", ["", "junk", "[]", "{}", '{"path": 1}', '{"path": "/no/such/llmster"}'])
def test_the_app_alone_or_half_an_installation_is_none(tmp_path: Path, place: str) -> None:
    lms = install(tmp_path)
    (tmp_path / ".lmstudio/.internal/llmster-install-location.json").write_text(place)

    assert ENGINE.locate([str(lms)]) is None
    assert ENGINE.locate([str(tmp_path / "none")]) is None


# The launcher


class Launched:
    """The launcher with the double, without an agent: what it says, and its home."""

    def __init__(self, folder: Path, plan: Plan, lms: Path, model: Path, port: int, **variables: str) -> None:
        located = ENGINE.locate([str(lms)])
        assert located is not None
        plan = replace(plan, binary=located.argv, variant=replace(plan.variant, path=str(model)))
        command = ENGINE.command(plan, "127.0.0.1", port)
        self.home = folder / "tmp" / "lms" / ".lmstudio"
        self.log = folder / "log"
        self.port = port
        environment = {**command.environment, **variables, "TMPDIR": str(folder / "tmp"), "PATH": os.environ["PATH"]}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command.argv, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def instances(self) -> list[Any]:
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{self.port}/api/v1/models"
            with urllib.request.urlopen(url, timeout=5) as reply:
                return list(json.load(reply)["models"][0]["loaded_instances"])
        return []

    def end(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(int((self.home / "worker").read_text()), signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def launched(folder: Path, plan: Plan, lms: Path, model: Path, port: int, **variables: str) -> Iterator[Launched]:
    this = Launched(folder, plan, lms, model, port, **variables)
    try:
        yield this
    finally:
        this.end()


def test_the_plans_engine_is_selected_and_the_operators_choice_kept(tmp_path: Path, tiny_model: Path) -> None:
    lms = install(tmp_path, f"{CPU_ENGINE}-2.31.2", f"{CUDA_ENGINE}-2.30.0", f"{CUDA_ENGINE}-2.31.2")
    preferred = [{"model_format": "gguf", "name": CUDA_ENGINE, "version": "2.31.2"}]
    (lms.parent.parent / ".internal/backend-preferences-v1.json").write_text(json.dumps(preferred))

    with launched(tmp_path, ON_CUDA, lms, tiny_model, free_port()) as on_cuda:
        (instance,) = wait_true(on_cuda.instances)

        assert instance["config"] == {"context_length": 1000, "parallel": 3, "gpu": "max"}
        assert f"Selected {CUDA_ENGINE}@2.31.2" in on_cuda.log.read_text()
    with launched(tmp_path, PLAN, lms, tiny_model, free_port()) as on_cpu:
        wait_true(on_cpu.instances)
        assert f"Selected {CPU_ENGINE}@2.31.2" in on_cpu.log.read_text()


def test_without_an_engine_for_the_plans_device_nothing_is_loaded(tmp_path: Path, tiny_model: Path) -> None:
    lms = install(tmp_path, f"{CPU_ENGINE}-2.31.2")

    with launched(tmp_path, ON_CUDA, lms, tiny_model, free_port()) as this:
        this.process.wait(30)

        diagnosis = ENGINE.diagnose(ExitStatus(signal=signal.SIGTERM), this.log.read_text())
        assert (diagnosis.code, "cuda" in diagnosis.message) == (DiagnosisCode.BINARY_MISSING, True)
        assert not (this.home / "worker").exists()


def test_a_port_that_is_taken_ends_it(tmp_path: Path, tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        with launched(tmp_path, PLAN, install(tmp_path), tiny_model, stranger.getsockname()[1]) as this:
            this.process.wait(30)

        assert ENGINE.diagnose(ExitStatus(code=0), this.log.read_text()).code is DiagnosisCode.PORT_TAKEN


def test_the_loader_ends_with_the_daemon(tmp_path: Path, tiny_model: Path) -> None:
    slow = {"LOAD_SECONDS": "600"}
    with launched(tmp_path, PLAN, install(tmp_path), tiny_model, free_port(), **slow) as this:
        wait_true(lambda: "is up" in this.log.read_text())
        (loader,) = _children(this.process.pid)

        this.process.kill()

        wait_true(lambda: gone(loader), what="the loader has ended")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("flag", ["--gpu", "--context-length", "--parallel", "--ttl", "--identifier", "--host"])
def test_arguments_that_break_the_plan_are_refused(flag: str) -> None:
    (violation,) = ENGINE.check_extra_args([flag, "1"])

    assert re.match(rf"{flag} may not be given: .+", violation.rule)


def test_every_refusal_names_options_that_exist() -> None:
    assert {name for names in REFUSED_FLAGS for name in names.split()} <= KNOWN


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("LMS_SERVER_HOST", "the agent sets"),
        ("LMS_API_SERVER_INFO_PATH", "the agent sets"),
        ("CUDA_VISIBLE_DEVICES", "`devices`"),
        ("LLAMA_ARG_CTX_SIZE", "behind the plan's back"),
        ("TZ", ""),
    ],
)
def test_variables_that_break_the_plan_are_refused(name: str, says: str) -> None:
    refusal = ENGINE.check_variable(name)

    assert (says in refusal, bool(refusal)) == (True, bool(says))


def test_its_memory_is_llama_cpps_and_the_daemons() -> None:
    model = profile("Qwen3-8B", "Q4_K_M")
    placement = Placement("cuda", (ENGINE.device_layers(model),))

    host, device = ENGINE.memory_terms(model, PLAN.limits, "chat", placement)
    _, of_llama_cpp = LlamaCpp().memory_terms(model, PLAN.limits, "chat", placement)

    assert device == of_llama_cpp
    assert host[-1].name == "LM Studio"


# Probes


def models(*instances: dict[str, object]) -> Answer:
    model = {"type": "llm", "key": "m", "format": "gguf", "max_context_length": 8192}
    return Answer.of({"models": [{**model, "loaded_instances": list(instances)}, {**model, "loaded_instances": []}]})


INSTANCE: dict[str, object] = {
    "id": "served",
    "config": {"context_length": 1000, "eval_batch_size": 512, "parallel": 3},
}
READY = {
    "GET /lmstudio-greeting": Answer.of({"lmstudio": True}),
    "GET /api/v1/models": models(INSTANCE),
    "POST /v1/completions": Answer.of({"choices": [{"text": "b"}]}),
}
#: Of what it does not know it says so with a 200.
UNKNOWN = Answer.of({"error": "Unexpected endpoint or method. (GET /api/v1/models). Returning 200 anyway"})
SCRIPT = {CLOSED: {}, "loading": READY | {"GET /api/v1/models": models()}, "ready": READY}


def test_a_server_that_answers_is_not_ready_before_the_model_is_loaded() -> None:
    with ContractServer(SCRIPT) as server:
        assert is_loading(server, ENGINE, PLAN)
        server.enter("loading")
        assert ENGINE.loading(server.ask(ENGINE.startup_probe(PLAN)))
        assert not any(asked.startswith("POST") for asked in server.asked)  # which could be a load

        server.enter("ready")

        assert is_ready(server, ENGINE, PLAN)
        found = granted(server, ENGINE, PLAN)
        assert (found.model, found.max_model_len, found.max_num_seqs) == ("served", 1000, 3)
        assert activity(server, ENGINE, PLAN).running is None


def test_with_several_models_loaded_nothing_is_said_of_one() -> None:
    two = READY | {"GET /api/v1/models": models(INSTANCE, {**INSTANCE, "id": "another"})}

    with ContractServer({"ready": two}) as server:
        assert granted(server, ENGINE, PLAN).model == ""


def test_a_server_without_that_api_is_never_ready() -> None:
    with ContractServer({"ready": READY | {"GET /api/v1/models": UNKNOWN}}) as server:
        assert ENGINE.loading(server.ask(ENGINE.startup_probe(PLAN)))


@pytest.mark.parametrize("body", ["junk", "[]", '{"models": 3}', '{"models": [{"loaded_instances": [1]}]}'])
def test_what_is_not_told_is_not_known(body: str) -> None:
    with ContractServer({"ready": READY | {"GET /api/v1/models": Answer(200, body)}}) as server:
        assert granted(server, ENGINE, PLAN).max_model_len is None


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("Error: listen EADDRINUSE: address already in use 127.0.0.1:8100", DiagnosisCode.PORT_TAKEN),
        ("Error: Model loading was stopped due to insufficient system resources.", DiagnosisCode.HOST_OOM),
        ("unable to allocate CUDA0 buffer", DiagnosisCode.DEVICE_OOM),
        ("error loading model: unknown model architecture: 'nosuch'", DiagnosisCode.MODEL_UNSUPPORTED),
        ("LM Studio and llmster cannot run at the same time", DiagnosisCode.LAUNCH_FAILED),
        ('No model found with path being exactly "agent/model/model.gguf".', DiagnosisCode.MODEL_UNSUPPORTED),
        ("lm_studio.sh: lms reached another LM Studio: {}", DiagnosisCode.BINARY_MISSING),
        ("Error: something else", DiagnosisCode.CRASHED),
    ],
)
def test_its_lines_are_diagnosed(line: str, code: DiagnosisCode) -> None:
    diagnosis = ENGINE.diagnose(ExitStatus(code=1), f"llmster is up\n{line}\n")

    assert (diagnosis.code, diagnosis.evidence) == (code, line)


def test_a_daemon_that_the_launcher_ended_is_diagnosed_by_why() -> None:
    log = "Error: something new\n    at load (/$bunfs/root/lms:1:1)\nlm_studio.sh: the model was not loaded\n"

    diagnosis = ENGINE.diagnose(ExitStatus(signal=signal.SIGTERM), log)

    assert (diagnosis.code, diagnosis.evidence) == (DiagnosisCode.CRASHED, "Error: something new")
    assert ENGINE.diagnose(ExitStatus(signal=signal.SIGTERM), "").code is DiagnosisCode.KILLED


def test_it_is_registered_under_its_name() -> None:
    assert isinstance(ENGINES["lm-studio"], LmStudio)
