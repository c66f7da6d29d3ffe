"""The LiteLLM adapter: the configuration that it makes of deployments, its command, plan, probes and diagnoses.

tests/real_litellm holds the same against the real proxy.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.engines import ENGINES
from agent.engines.base import BackEnd, HttpReply
from agent.engines.litellm import LiteLLM
from agent.models.gateway import profile
from agent.planning.plan import Limits, Plan, Variant
from agent.planning.request import Option
from agent.status import DiagnosisCode, ExitStatus
from tests.planning.machines import ask, made, refused

ENGINE = LiteLLM()
PLAN = Plan(
    deployment="gate",
    generation=1,
    model_name="any",
    task="chat",
    engine="litellm",
    engine_version="litellm 1.106.2",
    binary=("/opt/litellm/bin/python",),
    runtime="process",
    variant=Variant("gateway:large,small", "", "gateway", "none", 0, "gateway"),
    devices=(),
    limits=Limits(max_num_seqs=7, max_model_len=0, kv_cache_dtype="none", max_num_batched_tokens=0, threads=2),
    budgets=(),
)
EVERYTHING = replace(PLAN, variant=replace(PLAN.variant, source="gateway:*"))
LARGE = BackEnd("large", "org/large", "http://127.0.0.1:8100", "chat")
SMALL = BackEnd("small", "org/small", "http://127.0.0.1:8101", "completion")
OTHER = BackEnd("other", "org/other", "http://127.0.0.1:8102", "chat", key="canary")
VECTORS = BackEnd("vectors", "bge", "http://127.0.0.1:8103", "embedding")
SCORES = BackEnd("scores", "rank", "http://127.0.0.1:8104", "rerank")


def configured(plan: Plan, *back_ends: BackEnd) -> dict[str, Any]:
    return dict(json.loads(ENGINE.configuration(plan, back_ends)))


def routes(config: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in config["model_list"]:
        found.setdefault(entry["model_name"], []).append(entry["litellm_params"]["api_base"])
    return found


def test_named_deployments_fall_back_to_those_named_after_them() -> None:
    config = configured(PLAN, LARGE, OTHER)

    assert routes(config) == {
        "org/large": ["http://127.0.0.1:8100/v1"],
        "org/other": ["http://127.0.0.1:8102/v1"],
        "any": ["http://127.0.0.1:8100/v1"],
    }
    assert config["router_settings"]["fallbacks"] == [{"org/large": ["org/other"]}, {"any": ["org/other"]}]
    assert [entry["litellm_params"]["model"] for entry in config["model_list"]] == [
        "openai/org/large", "openai/org/other", "openai/org/large",
    ]  # fmt: skip


def test_with_all_deployments_only_the_gateways_own_name_falls_back() -> None:
    """Nobody chose an order: whoever asks for one model shall not get another's answer."""
    config = configured(EVERYTHING, LARGE, OTHER)
    assert config["router_settings"]["fallbacks"] == [{"any": ["org/other"]}]


def test_deployments_of_one_name_share_its_requests() -> None:
    twin = replace(OTHER, model="org/large")
    config = configured(PLAN, LARGE, twin)
    both = ["http://127.0.0.1:8100/v1", "http://127.0.0.1:8102/v1"]
    assert routes(config) == {"org/large": both, "any": both}
    assert config["router_settings"]["fallbacks"] == []
    identities = [entry["model_info"]["id"] for entry in config["model_list"]]
    assert len(set(identities)) == len(identities)


def test_other_tasks_are_forwarded_by_their_own_names_alone() -> None:
    config = configured(PLAN, VECTORS, SCORES, LARGE)
    assert routes(config) == {
        "bge": ["http://127.0.0.1:8103/v1"], "rank": ["http://127.0.0.1:8104/v1"],
        "org/large": ["http://127.0.0.1:8100/v1"], "any": ["http://127.0.0.1:8100/v1"],
    }  # fmt: skip
    assert config["router_settings"]["fallbacks"] == []


def test_rerankers_are_reached_as_a_server_that_has_the_call() -> None:
    """OpenAI's API has none for it."""
    gateway = replace(PLAN, task="rerank")
    config = configured(gateway, LARGE, SCORES, replace(SCORES, deployment="more", model="rank-2"))
    by_name = {entry["model_name"]: entry["litellm_params"]["model"] for entry in config["model_list"]}
    assert by_name == {
        "org/large": "openai/org/large", "rank": "hosted_vllm/rank", "rank-2": "hosted_vllm/rank-2",
        "any": "hosted_vllm/rank",
    }  # fmt: skip
    assert config["router_settings"]["fallbacks"] == [{"rank": ["rank-2"]}, {"any": ["rank-2"]}]


def test_a_back_end_may_have_the_gateways_name() -> None:
    config = configured(replace(PLAN, model_name="org/large"), LARGE, OTHER)
    assert routes(config).keys() == {"org/large", "org/other"}
    assert config["router_settings"]["fallbacks"] == [{"org/large": ["org/other"]}]


def test_without_back_ends_it_is_empty_and_still_whole() -> None:
    config = configured(EVERYTHING)
    assert (config["model_list"], config["router_settings"]["fallbacks"]) == ([], [])


def test_a_back_ends_key_is_sent_to_it_alone_and_shown_by_no_repr() -> None:
    config = configured(PLAN, LARGE, OTHER)
    keys = {entry["model_name"]: entry["litellm_params"]["api_key"] for entry in config["model_list"]}
    assert keys == {"org/large": "none", "org/other": "canary", "any": "none"}
    assert "canary" not in repr(OTHER)


def test_its_command_names_no_back_end_and_fetches_nothing() -> None:
    command = ENGINE.command(PLAN, "127.0.0.1", 8100)
    assert command.argv == (
        "/opt/litellm/bin/python", "--config", "litellm.yaml", "--served-name", "any", "--host", "127.0.0.1",
        "--port", "8100", "--max-num-seqs", "7",
    )  # fmt: skip
    assert command.environment["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    for variable in (*command.environment, "DATABASE_URL", "CONFIG_FILE_PATH"):
        assert ENGINE.check_variable(variable)
    assert not ENGINE.check_variable("HTTPS_PROXY")


def test_what_it_grants_is_read_from_its_card() -> None:
    card = '{"id": "any", "max_num_seqs": 7, "back_ends": 2}'
    granted = ENGINE.parse_granted([HttpReply(200, card)])
    assert (granted.model, granted.max_num_seqs, granted.max_model_len) == ("any", 7, None)
    assert ENGINE.parse_granted([HttpReply(404, "no")]).model == ""


def test_it_is_busy_while_it_forwards() -> None:
    text = "# TYPE litellm_running gauge\nlitellm_running 2\nlitellm_requests_total 9\nlitellm_back_ends 3\n"
    activity = ENGINE.parse_activity(text)
    assert (activity.running, activity.waiting, activity.work) == (2, None, 9.0)


@pytest.mark.parametrize("hardware", ["cpu", "h100-sxm:8", "rtx4090"])
def test_it_is_planned_on_any_node_with_host_memory_alone(hardware: str) -> None:
    plan = made(ask([Option(profile("*"), "gateway:*")], hardware, model="gateway:*"))

    assert (plan.engine, plan.devices, plan.variant.bytes) == ("litellm", (), 0)
    assert [budget.pool for budget in plan.budgets] == ["host"]
    assert 300 << 20 < plan.host_bytes < 600 << 20


@pytest.mark.parametrize("task", sorted(LiteLLM.capabilities.tasks))
def test_it_is_planned_for_each_task_that_it_forwards(task: str) -> None:
    plan = made(ask([Option(profile("a,b"), "gateway:a,b")], "cpu", model="gateway:a,b", task=task))
    assert (plan.engine, plan.task, plan.limits.max_num_seqs) == ("litellm", task, 256)


def test_no_engine_that_computes_is_taken_for_a_gateway() -> None:
    answer = refused(ask([Option(profile("*"), "gateway:*")], "cpu", model="gateway:*", engine="llama.cpp"))
    assert "llama.cpp does not read gateway" in answer.diagnosis.message
    assert "litellm" in answer.diagnosis.hint


@pytest.mark.parametrize(
    ("log", "code"),
    [
        ("litellm-no-key.log", DiagnosisCode.SECRET_MISSING),
        ("litellm-port.log", DiagnosisCode.PORT_TAKEN),
        ("litellm-missing.log", DiagnosisCode.BINARY_MISSING),
        ("litellm-no-config.log", DiagnosisCode.LAUNCH_FAILED),
    ],
)
def test_real_logs_name_their_cause(log: str, code: DiagnosisCode) -> None:
    text = (Path(__file__).parent / "data" / log).read_text()
    diagnosis = ENGINE.diagnose(ExitStatus(code=1), text)
    assert diagnosis.code is code
    assert diagnosis.hint


def test_it_is_an_engine_of_the_agent() -> None:
    assert ENGINES["litellm"].capabilities.formats == {"gateway"}
