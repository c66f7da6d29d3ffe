"""Flags of a plan's command against the list of the very executable."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from agent.embedded.llama_server import spellings
from agent.engines import ENGINES
from agent.engines.base import Located
from agent.planning import flags
from agent.status import DiagnosisCode
from tests.planning.machines import LOCATED, ask, made, published, refused

OPTIONS = frozenset(
    spelling
    for line in (Path(flags.__file__).parents[1] / "engines" / "llama_cpp_options.txt").read_text().splitlines()
    if not line.startswith("#")
    for spelling in line.split()[:-1]
)
GGUF = published("Qwen/Qwen3-8B", "Q4_K_M")


def located(options: frozenset[str] | None) -> dict[str, Located]:
    return {"llama.cpp": Located(("/opt/llama-server",), "9999", "config", options=options)}


def test_values_are_no_flags_and_dashes_are_underscores() -> None:
    known = frozenset({"--max_seq_len", "--top-k", "-c"})
    arguments = ("--max-seq-len", "5", "--top_k=3", "-c", "-1", "/model", "--gone", "--also-gone=x")
    assert flags.unknown(arguments, known) == ["--gone", "--also-gone"]


@pytest.mark.parametrize("options", [None, OPTIONS])
def test_a_list_that_is_not_known_or_whole_is_no_objection(options: frozenset[str] | None) -> None:
    assert made(ask(GGUF, "cpu", located=located(options), engine="llama.cpp")).engine == "llama.cpp"


def test_a_flag_that_the_agent_needs_and_this_version_lacks_refuses_the_plan() -> None:
    old = OPTIONS - {"--ctx-checkpoints", "-ctxcp"}
    diagnosis = refused(ask(GGUF, "cpu", located=located(old), engine="llama.cpp")).diagnosis
    assert diagnosis.code is DiagnosisCode.BAD_FLAG
    assert "llama.cpp 9999 (/opt/llama-server) does not know --ctx-checkpoints" in diagnosis.message
    assert "the agent needs it" in diagnosis.message
    assert "install a version" in diagnosis.hint


def test_a_flag_of_the_spec_is_named_with_the_nearest_that_this_version_knows() -> None:
    policy = {"extra_args": ["*"]}
    old = frozenset(OPTIONS - {"--cache-reuse"} | {"--cache-reuses"})
    asked = ask(GGUF, "cpu", located=located(old), engine="llama.cpp", policy=policy, extra_args=["--cache-reuse", "1"])
    diagnosis = refused(asked).diagnosis
    assert (diagnosis.code, "the nearest that it knows is --cache-reuses" in diagnosis.message) == ("bad_flag", True)


def test_another_engine_is_taken_where_one_version_lacks_the_flag() -> None:
    both = {name: replace(each, options=OPTIONS - {"--mirostat"}) if name == "llama.cpp" else each
            for name, each in LOCATED.items()}  # fmt: skip
    asked = ask(GGUF, "cpu", located=both, policy={"extra_args": ["*"]}, extra_args=["--mirostat", "2"])
    rejected = refused(asked).rejected
    assert any(each.candidate == "llama.cpp" and "does not know --mirostat" in each.sentence for each in rejected)


def test_what_the_adapter_says_of_a_flag_comes_before_what_the_executable_does_not_know() -> None:
    asked = ask(GGUF, "cpu", located=located(OPTIONS - {"--api-key"}), extra_args=["--api-key", "x"],
                policy={"extra_args": ["*"]})  # fmt: skip
    rejected = {each.candidate: each for each in refused(asked).rejected}["llama.cpp"]
    assert rejected.code == "arguments"
    assert "use `secrets`" in rejected.sentence


def test_the_embedded_launcher_knows_every_flag_that_the_agent_gives() -> None:
    plan = made(ask(GGUF, "cpu", located=located(spellings()), engine="llama.cpp"))
    argv = ENGINES["llama.cpp"].command(plan, "127.0.0.1", 1).argv
    assert {each for each in argv if re.match("--[a-z]", each)} <= spellings()
