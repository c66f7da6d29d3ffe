"""The LM Studio adapter: command, probes against a server that answers as its documentation says, limits read back.

No LM Studio ran here: it is proprietary, and no package registry has it.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from agent.engines import ENGINES
from agent.engines.lm_studio import REFUSED_FLAGS, LmStudio
from agent.planning.plan import Limits, MemoryBudget, Placement, Plan, Variant
from agent.status import DiagnosisCode, ExitStatus
from tests.engines.contract_server import CLOSED, Answer, ContractServer, activity, granted, is_loading, is_ready

OPTIONS = Path(__file__).parents[2] / "agent" / "engines" / "lm_studio_options.txt"
KNOWN = set(OPTIONS.read_text().split())

ENGINE = LmStudio()
PLAN = Plan(
    deployment="d",
    generation=1,
    model_name="served",
    task="chat",
    engine="lm-studio",
    engine_version="",
    binary=("lms",),
    runtime="process",
    variant=Variant("file:/my models/m.gguf", "/my models/m.gguf", "gguf", "Q4_K_M", 1, "llama"),
    devices=(),
    limits=Limits(max_num_seqs=3, max_model_len=1000, kv_cache_dtype="f16", max_num_batched_tokens=512, threads=3),
    budgets=(MemoryBudget("host", ()),),
)


def executed(plan: Plan, folder: Path) -> list[list[str]]:
    """The calls of `lms` that the command makes, each as its arguments."""
    stand_in = folder / "lms"
    stand_in.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\necho --\n')
    stand_in.chmod(0o755)
    argv = ENGINE.command(replace(plan, binary=(str(stand_in),)), "127.0.0.1", 8100).argv
    printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [call.splitlines() for call in printed.split("--\n") if call]


def test_every_limit_of_the_plan_reaches_its_true_flag(tmp_path: Path) -> None:
    daemon, load, server = executed(PLAN, tmp_path)

    assert daemon == ["daemon", "up"]
    assert load[:2] == ["load", "/my models/m.gguf"]
    assert load[2:] == [
        "--identifier",
        "served",
        "--context-length",
        "1000",
        "--parallel",
        "3",
        "--gpu",
        "off",
        "--yes",
    ]
    assert server == ["server", "start", "--port", "8100", "--bind", "127.0.0.1"]


def test_a_plan_with_a_device_lays_everything_on_it(tmp_path: Path) -> None:
    placement = Placement("cuda", (17,), environment={"CUDA_VISIBLE_DEVICES": "GPU-1"})
    plan = replace(PLAN, devices=("GPU-1",), placement=placement)

    _, load, _ = executed(plan, tmp_path)

    assert load[load.index("--gpu") + 1] == "max"
    assert ENGINE.command(plan, "127.0.0.1", 1).environment == {"CUDA_VISIBLE_DEVICES": "GPU-1"}


def test_the_command_uses_only_flags_that_lms_load_has() -> None:
    argv = ENGINE.command(PLAN, "127.0.0.1", 1).argv

    assert {item for item in argv[3:] if item.startswith("--")} <= KNOWN


def test_no_instance_is_started_and_it_says_why() -> None:
    assert ENGINE.locate(["/usr/bin/lms"]) is None
    assert "llama.cpp" in ENGINE.capabilities.not_run


@pytest.mark.parametrize("flag", ["--gpu", "--context-length", "--parallel", "--ttl", "--identifier"])
def test_arguments_that_break_the_plan_are_refused(flag: str) -> None:
    (violation,) = ENGINE.check_extra_args([flag, "1"])

    assert re.match(rf"{flag} may not be given: .+", violation.rule)


def test_every_refusal_names_options_that_exist() -> None:
    assert {name for names in REFUSED_FLAGS for name in names.split()} <= KNOWN


def models(*instances: dict[str, object]) -> Answer:
    model = {"type": "llm", "key": "m", "format": "gguf", "max_context_length": 8192}
    return Answer.of({"models": [{**model, "loaded_instances": list(instances)}, {**model, "loaded_instances": []}]})


INSTANCE = {"id": "served", "config": {"context_length": 1000, "eval_batch_size": 512, "parallel": 3}}
READY = {
    "GET /v1/models": Answer.of({"object": "list", "data": [{"id": "served"}, {"id": "another"}]}),
    "GET /api/v1/models": models(INSTANCE),
    "POST /v1/completions": Answer.of({"choices": [{"text": "b"}]}),
}


def test_it_is_ready_when_a_token_comes_and_tells_its_limits() -> None:
    with ContractServer({CLOSED: {}, "ready": READY}) as server:
        assert is_loading(server, ENGINE, PLAN)

        server.enter("ready")

        assert is_ready(server, ENGINE, PLAN)
        found = granted(server, ENGINE, PLAN)
        assert (found.model, found.max_model_len, found.max_num_seqs) == ("served", 1000, 3)
        assert activity(server, ENGINE, PLAN).running is None


def test_with_several_models_loaded_nothing_is_said_of_one() -> None:
    two = READY | {"GET /api/v1/models": models(INSTANCE, {**INSTANCE, "id": "another"})}

    with ContractServer({"ready": two}) as server:
        assert granted(server, ENGINE, PLAN).model == ""


@pytest.mark.parametrize("body", ["junk", "[]", '{"models": 3}', '{"models": [{"loaded_instances": [1]}]}'])
def test_what_is_not_told_is_not_known(body: str) -> None:
    with ContractServer({"ready": READY | {"GET /api/v1/models": Answer(200, body)}}) as server:
        assert granted(server, ENGINE, PLAN).max_model_len is None


def test_its_llama_cpps_lines_are_diagnosed() -> None:
    line = "error loading model: unknown model architecture: 'nosuch'"

    assert ENGINE.diagnose(ExitStatus(code=1), line).code is DiagnosisCode.MODEL_UNSUPPORTED


def test_it_is_registered_under_its_name() -> None:
    assert isinstance(ENGINES["lm-studio"], LmStudio)
