"""The table of features: what it says of each flag is what the engine's option list and its adapter say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.engines import ENGINES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "engines" / "features.md"
FEATURES = {
    "context", "requests at once", "batched tokens", "share of memory", "slices, stages, replicas",
    "type of the KV cache", "prefix caching", "chunked prefill", "speculative decoding", "LoRA", "tool calls",
    "reasoning", "chat template", "embeddings", "scores (rerank)", "API key", "served name", "sleep mode",
}  # fmt: skip
RECORDS = {
    "vllm": "vllm_options.txt", "sglang": "sglang_options.txt", "tensorrt-llm": "tensorrt_llm_options.txt",
    "tgi": "tgi_options.txt", "llama.cpp": "llama_cpp_options.txt", "mlx-lm": "mlx_lm_options.txt",
}  # fmt: skip


def _cells() -> dict[tuple[str, str], str]:
    text = PAGE.read_text().partition("## What they measure")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    names = rows[0][1:]
    return {(row[0], name): cell for row in rows[2:] for name, cell in zip(names, row[1:], strict=True)}


CELLS = _cells()


def _options(engine: str) -> dict[str, str]:
    """Each spelling of the record, and how many values it takes."""
    text = (Path(__file__).parents[2] / "agent" / "engines" / RECORDS[engine]).read_text()
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {spelling: row[-1] for row in rows for spelling in row[:-1]}


def test_every_feature_and_every_engine_with_flags_is_in_the_table() -> None:
    assert {feature for feature, _ in CELLS} == FEATURES
    assert {engine for _, engine in CELLS} == RECORDS.keys()


@pytest.mark.parametrize(("feature", "engine"), sorted(CELLS))
def test_the_table_is_true(feature: str, engine: str) -> None:
    options = _options(engine)
    for part in CELLS[feature, engine].split(";"):
        how, names = part.split()[0], re.findall(r"`([^`]+)`", part)
        for name in names if how in {"plan", "ask", "refused"} else ():
            assert name in options
            arguments = [name, "1"] if options[name] in {"1", "?", "+", "*"} else [name]
            refusals = [each.rule for each in ENGINES[engine].check_extra_args(arguments)]
            assert bool(refusals) is (how == "refused" or (how == "plan" and "may not be given" in str(refusals)))
        if how == "secret":
            assert names == list(ENGINES[engine].secret_flags().values())
