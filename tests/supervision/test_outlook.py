"""What a dry run says beside the plan itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.artifacts.base import SourcePolicy
from agent.engines import ENGINES
from agent.engines.images import ImageRules, shipped
from agent.hardware.simulated import parse
from agent.models.profile import Basis
from agent.models.profiles import Profiles
from agent.planning.amounts import free_memory
from agent.planning.planner import assumed
from agent.planning.request import Containers, DeviceState, Option, PlanRequest, Refusal
from agent.settings import FetchConfig, Policy
from agent.spec import DeploymentSpec, parse_spec
from agent.status import Diagnosis, DiagnosisCode
from agent.supervision import outlook
from agent.supervision.models import Models
from agent.supervision.service import FitVerdict

GIB = 1024**3
SPEC = {"name": "p", "model": "hf:unsloth/Qwen3-8B-GGUF:Q4_K_M", "engine": "llama.cpp"}


@pytest.fixture
async def options() -> tuple[Option, ...]:
    policy = SourcePolicy(frozenset({"hf"}), None, Path("/nonexistent"), fetching=FetchConfig(offline=True))
    known = Models(Path("/nonexistent"), Profiles(), policy, "known")
    return (await known.options("unsloth/Qwen3-8B-GGUF:Q4_K_M")).options


def request(
    options: tuple[Option, ...], spec: DeploymentSpec | None = None, hardware: str = "rtx4090:2"
) -> PlanRequest:
    return PlanRequest(
        spec=spec or parse_spec(SPEC), generation=0, options=options, inventory=parse(hardware).inventory,
        policy=Policy(), engines=ENGINES, located=assumed(ENGINES),
    )  # fmt: skip


async def test_a_pool_counts_strangers_and_what_others_were_promised(options: tuple[Option, ...]) -> None:
    device = DeviceState(used=9 * GIB, reserved=6 * GIB, resident=4 * GIB, released=2 * GIB)
    asked = request(options)
    asked = replace(
        asked, devices={asked.inventory.devices[0].id: device}, reserved_bytes=8 * GIB, resident_bytes=5 * GIB
    )
    host, first, second = outlook.pools(asked)
    assert (first.others, second.others) == (9 * GIB - 4 * GIB - 2 * GIB + 6 * GIB, 0)
    assert host.total - host.others - host.reserve == free_memory(asked).bytes


@pytest.mark.parametrize(
    ("hardware", "devices", "verdict"),
    [
        ("rtx4090", "auto", FitVerdict.FITS),
        ("rtx4090", "cpu", FitVerdict.ON_CPU),
        ("cpu", "auto", FitVerdict.ON_CPU),
        ("rtx3060", "auto", FitVerdict.PARTLY),
    ],
)
async def test_the_verdict_says_where_it_runs(
    options: tuple[Option, ...], hardware: str, devices: str, verdict: FitVerdict
) -> None:
    limits = {"max_model_len": 40_960, "max_num_seqs": 1}
    spec = parse_spec({**SPEC, "devices": devices, "limits": limits})
    answer = await outlook.planned(request(options, spec, hardware))
    assert answer.refusal is None
    assert answer.verdict == verdict


async def test_what_is_assumed_and_in_doubt_is_said(options: tuple[Option, ...]) -> None:
    spec = parse_spec({**SPEC, "model": "hf:unsloth/Qwen3-8B-GGUF@v2:Q4_K_M"})
    bounded = replace(options[0], profile=replace(options[0].profile, basis=Basis.BOUND, notes=("a bound",)))
    answer = await outlook.planned(request((bounded,), spec))
    assert "a bound" in answer.notes
    assert any("no executable was looked for" in note for note in answer.notes)


async def test_what_the_command_gets_as_variables_is_told_and_of_secrets_the_names(options: tuple[Option, ...]) -> None:
    extra = {"environment": {"OLLAMA_DEBUG": "1"}, "secrets": {"HTTPS_PROXY": {"env": "PROXY"}}}
    limits = {"max_model_len": 8192, "max_num_seqs": 3}
    answer = await outlook.planned(
        request(options, parse_spec({**SPEC, "engine": "ollama", "limits": limits, **extra}))
    )
    assert {"OLLAMA_CONTEXT_LENGTH": "8192", "OLLAMA_NUM_PARALLEL": "3", "OLLAMA_DEBUG": "1"}.items() <= (
        answer.environment.items()
    )
    assert answer.secrets == ("HTTPS_PROXY",)


async def test_in_a_container_the_variables_are_the_containers(options: tuple[Option, ...]) -> None:
    spec = parse_spec({**SPEC, "engine": "ollama", "runtime": "docker"})
    asked = replace(request(options, spec), containers=Containers(shipped(), ImageRules(), "docker 28.2"))
    answer = await outlook.planned(asked)
    how = ENGINES["ollama"].container
    assert how is not None
    assert {**how.environment, **how.caches}.items() <= answer.environment.items()
    assert answer.environment["OLLAMA_HOST"].startswith("0.0.0.0:")


async def test_a_refusal_has_the_bytes_that_are_missing_and_every_remedy(options: tuple[Option, ...]) -> None:
    spec = parse_spec({**SPEC, "devices": ["0"], "limits": {"max_model_len": 40_000, "max_num_seqs": 64}})
    answer = await outlook.planned(request(options, spec))
    assert (answer.plan, answer.verdict) == (None, FitVerdict.DOES_NOT_FIT)
    assert answer.missing_bytes is not None
    assert 0 < answer.missing_bytes < 400 * GIB
    assert answer.remedies


def test_a_refusal_for_another_reason_is_no_question_of_memory() -> None:
    denied = Diagnosis(DiagnosisCode.POLICY_DENIED, "no", hint="ask; then wait")
    answer = outlook.refused(Refusal(denied))
    assert (answer.verdict, answer.missing_bytes, answer.remedies) == (FitVerdict.NOT_SERVED, None, ("ask; then wait",))
