"""One set of names for what engines measure of their work."""

from __future__ import annotations

from pathlib import Path

from agent.engines import ENGINES
from agent.engines.base import Metric
from agent.engines.measured import measured

VLLM = """\
vllm:num_requests_running{engine="0"} 2.0
vllm:num_requests_running{engine="1"} 1.0
vllm:num_requests_waiting{engine="0"} 0.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:time_to_first_token_seconds_sum{engine="0"} 3.0
vllm:time_to_first_token_seconds_count{engine="0"} 12.0
vllm:inter_token_latency_seconds_sum{engine="0"} 0.0
vllm:inter_token_latency_seconds_count{engine="0"} 0.0
vllm:prompt_tokens_total{engine="0"} 100.0
vllm:num_preemptions_total{engine="0"} NaN
"""


def test_counts_are_summed_histograms_are_means_and_what_is_missing_is_left_out() -> None:
    assert measured(ENGINES["vllm"].metrics, VLLM) == {
        "running": 3.0, "waiting": 0.0, "cache_usage": 0.25, "first_token_seconds": 0.25, "prompt_tokens": 100.0,
    }  # fmt: skip


def test_an_engine_without_metrics_measures_nothing() -> None:
    assert measured({}, VLLM) == {}
    assert measured(ENGINES["llama.cpp"].metrics, '{"version": "0.33"}') == {}


def test_the_page_of_features_says_who_offers_what() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "engines" / "features.md").read_text()
    table = page.partition("## What they measure")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    said = {(row[0].strip("`"), name) for row in rows[2:] for name, cell in zip(rows[0][2:], row[2:], strict=True)
            if cell == "yes"}  # fmt: skip
    assert said == {(metric, name) for name in rows[0][2:] for metric in ENGINES[name].metrics}
    assert {row[0].strip("`") for row in rows[2:]} == set(Metric)
    assert {name for name, engine in ENGINES.items() if engine.metrics} - set(rows[0][2:]) <= {"nim"}  # vLLM's


def test_every_engine_names_its_metrics_by_the_one_set() -> None:
    for engine in ENGINES.values():
        assert set(engine.metrics) <= set(Metric)
        assert all(engine.metrics.values())
