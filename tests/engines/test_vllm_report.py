"""What vLLM's log tells of device memory. The lines are composed as the sources of version 0.32 compose them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.engines.vllm import VLLM
from agent.planning.memory.base import GIB
from agent.planning.plan import Limits, MemoryBudget, MemoryTerm, Placement, Plan, Variant

ENGINE = VLLM()
PLAN = Plan(
    deployment="d", generation=1, model_name="served", task="chat", engine="vllm", engine_version="0.32.0",
    binary=("/usr/bin/vllm",), runtime="process", variant=Variant("file:/m", "/m", "safetensors", "bf16", 1, "llama"),
    devices=("GPU-a",), limits=Limits(256, 8192, "auto", 2048, 3, 0.92), placement=Placement("cuda"),
    budgets=(
        MemoryBudget("host", ()), MemoryBudget("GPU-a", (MemoryTerm("weights: tables and padding", GIB // 4, ""),)),
    ),
)  # fmt: skip


def lines(process: str, weights: str = "15.10", cache: str = "54.25") -> str:
    mark = f"({process} pid=77) INFO 11-21 10:00:00"
    return (
        f"{mark} [gpu_model_runner.py:5150] Model loading took {weights} GiB memory and 3.512345 seconds\n"
        f"{mark} [gpu_worker.py:760] Available KV cache memory: {cache} GiB\n"
        "(EngineCore pid=70) INFO 11-21 10:00:01 [kv_cache_utils.py:2327] GPU KV cache size: 444,416 tokens, Maximum "
        "concurrency for 8,192 tokens per request: 54.25x\n"
        f"{mark} [gpu_worker.py:970] CUDA graph pool memory: 0.41 GiB (actual), 0.26 GiB (estimated), difference: 0.15 "
        "GiB (36.6%).\n"
        f"{mark} [gpu_worker.py:1033] Free memory on device (78.69/79.25 GiB) on startup. Desired GPU memory "
        "utilization is (0.92, 72.91 GiB). Actual usage is 15.35 GiB for consumed memory (weights + non-torch), 2.90 "
        "GiB for peak activation, and 0.41 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with "
        "`--kv-cache-memory=58` (54.1 GiB) to fit into requested memory. Current kv cache memory in use is 54.25 GiB.\n"
    )


def test_the_terms_are_told_by_the_names_of_the_estimate() -> None:
    found = {term.name: term.bytes / GIB for term in ENGINE.parse_memory(lines("EngineCore"), PLAN)}

    assert found == pytest.approx(
        {
            "weights": 15.10 - 0.25,  # the line counts what the plan names apart
            "KV cache": 54.25,
            "activation peak": 2.90,
            "CUDA graphs": 0.26,
            "outside of PyTorch": 0.25,
        },
        abs=0.001,
    )


def test_ranks_are_told_apart_and_what_only_the_first_says_holds_for_its_stage() -> None:
    plan = replace(PLAN, placement=Placement("cuda", tensor=2, pipeline=2), budgets=())
    log = lines("Worker_PP0_TP0", "8.00", "60.00") + lines("Worker_PP1_TP0", "7.50", "61.00")

    found = {(term.pool, term.name): term.bytes / GIB for term in ENGINE.parse_memory(log, plan)}

    assert [found[device, "weights"] for device in "0123"] == [8.0, 8.0, 7.5, 7.5]
    assert [found[device, "KV cache"] for device in "0123"] == [60.0, 60.0, 61.0, 61.0]


@pytest.mark.parametrize(
    "log",
    ["", lines("EngineCore").splitlines()[0], "Model loading took 15.10 GiB", lines("Worker_PP0_TP0")],
    ids=["empty", "no cache", "no process", "one stage of two"],
)
def test_a_log_that_says_too_little_is_no_measurement(log: str) -> None:
    plan = replace(PLAN, placement=Placement("cuda", pipeline=2)) if "PP0" in log else PLAN

    assert ENGINE.parse_memory(log, plan) == ()


def test_a_start_on_a_cpu_tells_nothing_of_its_weights() -> None:
    assert ENGINE.parse_memory(lines("EngineCore"), replace(PLAN, placement=Placement("cpu"))) == ()
