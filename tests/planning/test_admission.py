"""Admission: every rule that can be broken before a model is looked at, with the field's path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from agent.engines import ENGINES
from agent.engines.base import Engine
from agent.planning.admission import admit
from agent.settings import Policy
from agent.spec import parse_spec

LLAMA_CPP = {"llama.cpp": ENGINES["llama.cpp"]}
IMAGE = {"image": "registry.example.com/ours/engine:v9"}


def violations(
    policy: dict[str, Any] | None = None, engines: Mapping[str, Engine] = LLAMA_CPP, **fields: Any
) -> dict[str, str]:
    spec = parse_spec({"name": "d", "model": "file:/m.gguf"} | fields)
    return {found.field: found.rule for found in admit(spec, Policy.model_validate(policy or {}), engines)}


def test_a_plain_spec_is_admitted() -> None:
    assert violations() == {}


@pytest.mark.parametrize(
    ("policy", "fields", "field", "words"),
    [
        ({}, {"engine": "lama.cpp"}, "engine", "did you mean 'llama.cpp'?"),
        ({"engines": ["vllm"]}, {"engine": "llama.cpp"}, "engine", "allowed: vllm"),
        ({"engines": []}, {}, "engine", "allows no engine"),
        ({"model_sources": ["package"]}, {}, "model", "allowed: package"),
        ({"limits": {"max_num_seqs": {"max": 2}}}, {"limits": {"max_num_seqs": 3}}, "limits.max_num_seqs", "at most 2"),
        (
            {"limits": {"max_model_len": {"max": 512}}},
            {"limits": {"max_model_len": 1024}},
            "limits.max_model_len",
            "at most 512 (got 1024)",
        ),
        (
            {"limits": {"gpu_memory_utilization": {"max": 0.5}}},
            {"limits": {"gpu_memory_utilization": 0.9}},
            "limits.gpu_memory_utilization",
            "at most 0.5",
        ),
        ({}, {"limits": {"kv_cache_dtype": "fp8"}}, "limits.kv_cache_dtype", "it has f32"),
        (
            {"limits": {"kv_cache_dtypes": ["q8_0"]}},
            {"limits": {"kv_cache_dtype": "f16"}},
            "limits.kv_cache_dtype",
            "allows q8_0",
        ),
        ({}, {"port": 9000}, "port", "8100 to 8199"),
        ({}, {"extra_args": ["--top-k", "5"]}, "extra_args[0]", "does not allow --top-k"),
        ({"extra_args": ["*"]}, {"extra_args": ["--port", "5"]}, "extra_args[0]", "`port` decides it"),
        ({"extra_args": ["--port"]}, {"extra_args": ["--port", "5"]}, "extra_args[0]", "`port` decides it"),
        ({}, {"environment": {"LLAMA_ARG_TOOLS": "all"}}, "environment.LLAMA_ARG_TOOLS", "extra_args"),
        ({}, {"secrets": {"LLAMA_ARG_TOOLS": {"env": "X"}}}, "secrets.LLAMA_ARG_TOOLS", "extra_args"),
    ],
)
def test_a_broken_rule_names_its_field_and_what_is_valid(
    policy: dict[str, Any], fields: dict[str, Any], field: str, words: str
) -> None:
    found = violations(policy, **fields)

    assert list(found) == [field]
    assert words in found[field]


def test_an_image_is_for_an_engine_and_a_node_with_containers() -> None:
    named: dict[str, Any] = {"engine": "llama.cpp", **IMAGE}
    assert violations(**named) == {}
    assert "allows no containers" in violations({"runtimes": ["process"]}, **named)["image"]
    native = violations(None, {"ctranslate2": ENGINES["ctranslate2"]}, engine="ctranslate2", image=IMAGE["image"])
    assert "ctranslate2 is not run in containers" in native["image"]


def test_allowed_flags_pass_with_their_values() -> None:
    assert violations({"extra_args": ["--temp"]}, extra_args=["--temp", "-1"]) == {}
    assert violations({"extra_args": ["*"]}, extra_args=["--temp", "-1", "--no-warmup"]) == {}


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        (
            {"extra_args": ["--api-key", "x"]},
            "extra_args[0]",
            "llama.cpp: --api-key may not be given: a key would stand",
        ),
        ({"extra_args": ["--nonsense"]}, "extra_args[0]", "unknown flag --nonsense"),
        ({"extra_args": ["--gpu-memory-utilization", "1"]}, "extra_args[0]", "`limits.gpu_memory_utilization` decides"),
        (
            {"extra_args": ["--tensor-parallel-size=2"]},
            "extra_args[0]",
            "vllm: --tensor-parallel-size may not be given",
        ),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "0"}}, "environment.CUDA_VISIBLE_DEVICES", "`devices` decides it"),
        ({"model": "gateway:a", "extra_args": ["--enforce-eager"]}, "extra_args[0]", "litellm: the gateway takes no"),
    ],
)
def test_what_every_engine_refuses_is_refused_in_the_words_of_the_one_that_knows_it(
    fields: dict[str, Any], field: str, words: str
) -> None:
    found = violations({"extra_args": ["*"]}, ENGINES, **fields)
    assert list(found) == [field]
    assert found[field].startswith("no engine takes it; ")
    assert words in found[field]


def test_with_several_engines_what_one_of_them_takes_is_admitted() -> None:
    for flag in ("--enforce-eager", "--mlock", "--enable-torch-compile"):
        assert violations({"extra_args": ["*"]}, ENGINES, extra_args=[flag]) == {}
    assert violations(
        {"engines": ["llama.cpp", "ollama"], "extra_args": ["*"]}, ENGINES, extra_args=["--enforce-eager"]
    )
    assert violations(None, ENGINES, environment={"LLAMA_ARG_MLOCK": "1"}) == {}  # vLLM does not read it


def test_all_broken_rules_are_named_at_once() -> None:
    found = violations({"model_sources": []}, port=9000, extra_args=["--nope"])

    assert set(found) == {"model", "port", "extra_args[0]"}
