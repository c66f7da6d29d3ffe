"""vLLM's accounting, against public start-up logs; the figures are GiB a device as vLLM printed them."""

from __future__ import annotations

import pytest

from agent.planning.memory import estimate, vllm
from agent.planning.memory.base import GIB, Card, Request, Verdict
from tests.planning.memory import models

H100 = Card(int(79.18 * GIB), None, "NVIDIA H100 80GB HBM3", (9, 0))
L4 = Card(int(22.04 * GIB), None, "NVIDIA L4", (8, 9))
V100 = Card(int(31.74 * GIB), None, "Tesla V100-SXM2-32GB", (7, 0))


def run(config, card, **asked):
    profile = config if not isinstance(config, dict) else models.profile(config)
    return estimate(profile, Request("vllm", card, **asked))


def activation(config, card, **asked):
    return run(config, card, **asked).term("activation peak").bytes / GIB


@pytest.mark.parametrize(
    ("config", "card", "asked", "printed"),
    [
        (models.LLAMA_8B, H100, {"version": (0, 11, 0)}, 4.76),  # 1024 sequences by default
        (models.QWEN3_06B, H100, {"version": (0, 11, 0)}, 5.56),
        (models.QWEN3_32B, H100, {"version": (0, 11, 0), "tensor": 2}, 5.64),
        (models.GPT_OSS_120B, H100, {"version": (0, 11, 0)}, 7.38),
        (models.QWEN25_7B, V100, {"legacy": True, "version": (0, 7, 0), "max_model_len": 2048}, 1.40),
        (models.QWEN25_7B, V100, {"legacy": True, "version": (0, 8, 5), "max_model_len": 32768}, 4.35),
    ],
)
def test_the_activation_peak_is_the_samplers_or_the_layers(config, card, asked, printed):
    assert activation(config, card, **asked) == pytest.approx(printed, rel=0.06)


@pytest.mark.parametrize(
    ("config", "asked", "printed"),
    [
        (models.LLAMA_8B, {"max_model_len": 16000}, 51.38),
        (models.QWEN3_06B, {"max_model_len": 32000}, 64.45),
        (models.QWEN3_32B, {"max_model_len": 16000}, 4.45),
        (models.QWEN3_32B, {"max_model_len": 16000, "tensor": 2}, 34.49),
    ],
)
def test_the_pool_is_what_is_left_of_the_share(config, asked, printed):
    found = run(config, H100, version=(0, 11, 0), utilization=0.9, **asked)
    assert found.pool.bytes / GIB == pytest.approx(printed, rel=0.02)
    assert abs(found.pool.bytes / GIB - printed) <= found.pool.uncertainty / GIB


def test_a_request_that_is_longer_than_the_pool_is_refused_with_both_sizes():
    found = run(models.QWEN3_32B, H100, version=(0, 11, 0), utilization=0.9, max_model_len=32000)
    assert found.verdict == Verdict.TOO_LARGE
    assert found.reason == "one request of 32000 tokens needs 7.81 GiB of cache, and the pool is 4.52 GiB"
    assert found.shortfall == found.needed - found.pool.bytes
    assert "18" in found.remedy


def test_newer_versions_take_the_graphs_off_the_pool_first():
    old, new = (
        run(models.QWEN25_7B, L4, version=version, utilization=0.9, max_model_len=4096)
        for version in ((0, 20, 0), (0, 21, 0))
    )
    assert old.term("CUDA graphs") is None
    assert old.beyond.bytes > 0
    assert new.term("CUDA graphs").bytes > 0


def test_eager_runs_capture_nothing():
    assert run(models.QWEN25_7B, L4, max_model_len=4096, eager=True).term("CUDA graphs").bytes == 0


def test_what_comes_after_the_cache_may_not_fit():
    """A run of vLLM 0.11 with 95 % on H100s, and 1024 sequences: out of memory while warming up."""
    found = run(models.QWEN3_32B, H100, version=(0, 11, 0), utilization=0.98, max_model_len=16000, tensor=2)
    assert found.verdict in {Verdict.CONDITIONAL, Verdict.UNSURE}
    assert "after the cache is sized" in found.reason


def test_an_engine_that_may_use_more_than_is_free_does_not_start():
    card = Card(int(22.05 * GIB), int(19.77 * GIB), "NVIDIA L4")
    found = run(models.QWEN3_06B, card, utilization=0.9, max_model_len=2048)
    assert found.verdict == Verdict.CONDITIONAL
    assert found.reason.startswith("19.77 GiB of the device are free, less than the 19.8")
    assert found.remedy == "let it use at most 89.6 % of the device"


def test_weights_that_do_not_fit_are_said_first():
    found = run(models.DEEPSEEK_V3, H100, max_model_len=4096)
    assert found.verdict == Verdict.TOO_LARGE
    assert found.reason.startswith("the weights alone take 6")


@pytest.mark.parametrize(
    ("card", "version", "sequences", "batch"),
    [
        (H100, (0, 11, 0), 1024, 8192),
        (Card(80 * GIB, None, "NVIDIA A100-SXM4-80GB", (8, 0)), (0, 11, 0), 256, 2048),
        (Card(119 * GIB, None, "NVIDIA GB10", (12, 1)), (0, 11, 0), 256, 2048),
        (Card(180 * GIB, None, "NVIDIA B200", (10, 0)), (0, 11, 0), 1024, 16384),
        (L4, (0, 11, 0), 256, 2048),
    ],
)
def test_defaults_follow_the_device_as_vllms_do(card, version, sequences, batch):
    asked = vllm.defaults(Request("vllm", card, version=version), models.profile(models.LLAMA_8B))
    assert (asked.max_num_seqs, asked.max_num_batched_tokens) == (sequences, batch)


@pytest.mark.parametrize(("version", "share"), [((0, 11, 0), 0.9), ((0, 16, 0), 0.9), ((0, 21, 0), 0.92), ((), 0.92)])
def test_the_default_share_grew(version, share):
    assert vllm.defaults(Request("vllm", L4, version=version), models.profile(models.LLAMA_8B)).utilization == share


def test_the_first_generation_computes_a_whole_prompt_at_once():
    profile = models.profile(models.LLAMA_8B)
    short = vllm.defaults(Request("vllm", L4, version=(0, 7, 0), legacy=True, max_model_len=20000), profile)
    long = vllm.defaults(Request("vllm", L4, version=(0, 7, 0), legacy=True, max_model_len=65536), profile)
    assert (short.max_num_batched_tokens, long.max_num_batched_tokens) == (20000, 2048)


def test_lora_slots_are_counted():
    found = run(models.LLAMA_8B, H100, max_model_len=4096, lora_slots=4, lora_rank=64)
    assert 0.3 < found.term("LoRA slots").bytes / GIB < 1.5


def test_a_draft_model_takes_weights_and_cache():
    alone = run(models.LLAMA_8B, H100, max_model_len=4096)
    both = run(models.LLAMA_8B, H100, max_model_len=4096, draft=models.profile(models.QWEN3_06B))
    assert both.term("weights: draft model").bytes / GIB == pytest.approx(1.12, rel=0.01)
    assert both.bytes_per_token == alone.bytes_per_token + 114688


def test_the_fullest_stage_of_a_pipeline_counts():
    found = run(models.QWEN3_32B, H100, pipeline=3, max_model_len=4096)
    assert found.bytes_per_token == 22 * 4096  # layers are split 21, 22, 21


def test_an_image_tower_is_in_the_trial_run():
    towered = models.profile(
        models.QWEN25_7B | {"model_type": "qwen2_5_vl", "vision_config": {"depth": 32, "hidden_size": 1280}}
    )
    having, without = (
        run(towered, L4, max_model_len=4096, profile_media=asked).term("activation peak").bytes
        for asked in (True, False)
    )
    assert having > without + GIB


def test_scores_of_an_unfused_tower_make_amd_unsure():
    towered = models.profile(
        models.QWEN25_7B | {"model_type": "qwen2_5_vl", "vision_config": {"depth": 32, "hidden_size": 1280}}
    )
    card = Card(80 * GIB, None, "AMD Instinct", vendor="amd")
    assert run(towered, card, max_model_len=4096).verdict == Verdict.UNSURE
    assert run(towered, card, max_model_len=4096, profile_media=False).verdict == Verdict.FITS


@pytest.mark.parametrize(
    ("field", "value"),
    [("tensor", 0), ("pipeline", 1 << 40), ("max_model_len", -1), ("utilization", 1.5), ("lora_rank", 0)],
)
def test_what_no_engine_can_be_asked_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        Request("vllm", L4, **{field: value})


def test_an_unknown_cache_type_is_named():
    with pytest.raises(KeyError, match="fp3"):
        run(models.LLAMA_8B, L4, kv_dtype="fp3")
