"""The cache, against what vLLM printed for these models (public start-up logs)."""

from __future__ import annotations

import pytest

from agent.planning.memory import vllm
from agent.planning.memory.base import GIB, Card, Request, vector_bytes
from agent.planning.memory.kv_cache import Page, bytes_per_token, layout
from agent.planning.memory.weights import Split
from tests.planning.memory import models

CARD = Card(80 * GIB, capability=(9, 0))


def found(config, ranks=1, **asked):
    profile = models.profile(config)
    request = vllm.defaults(Request("vllm", CARD, **asked), profile)
    return vllm.cache_layout(profile, request, Split(ranks, ranks, ranks)), request


@pytest.mark.parametrize(
    ("config", "kind", "ranks", "bytes_a_token"),
    [
        (models.LLAMA_8B, "auto", 1, 131072),
        (models.LLAMA_8B, "auto", 8, 16384),
        (models.LLAMA_8B, "auto", 16, 16384),  # no less than one head
        (models.LLAMA_8B, "fp8", 1, 65536),
        (models.QWEN3_06B, "auto", 1, 114688),
        (models.DEEPSEEK_V3, "auto", 1, 70272),
        (models.DEEPSEEK_V3, "auto", 8, 70272),  # the latent is on every rank
        (models.LLAMA_8B, "q8_0", 1, 65536 * 34 // 32),
        (models.LLAMA_8B, "q4_0", 1, 65536 * 18 // 32),
    ],
)
def test_bytes_a_token_are_exact(config, kind, ranks, bytes_a_token):
    assert bytes_per_token(models.profile(config), kind, ranks) == bytes_a_token


def test_the_first_generation_pads_a_latent_to_640_values():
    old, _ = found(models.DEEPSEEK_V3, legacy=True, version=(0, 7, 0), max_model_len=4096)
    new, _ = found(models.DEEPSEEK_V3, version=(0, 11, 0), max_model_len=4096)
    assert old.block_bytes / old.block == 61 * 640 * 2
    assert new.block_bytes / new.block == 61 * 576 * 2


def test_windows_and_full_layers_of_different_widths_share_a_pool():
    """A run of nvidia/Gemma-4-26B-A4B-NVFP4: 4.58 GiB hold 1.12 requests of 256,000 tokens."""
    cache, _ = found(
        models.GEMMA4_26B, version=(0, 20, 2), max_model_len=256000, max_num_batched_tokens=16384, kv_dtype="fp8"
    )
    assert cache.groups == 6
    assert 4.58 * GIB / cache.needed == pytest.approx(1.12, rel=0.01)


def test_one_request_of_gpt_oss_needs_what_vllm_says():
    """vLLM refused: 131072 tokens need 4.54 GiB (with 1024 batched tokens)."""
    cache, _ = found(models.GPT_OSS_120B, version=(0, 11, 0), max_model_len=131072, max_num_batched_tokens=1024)
    assert cache.needed / GIB == pytest.approx(4.54, abs=0.01)


def test_blocks_grow_until_a_page_of_attention_holds_a_recurrent_state():
    """Qwen3-Next on two devices with vLLM 0.10.2: blocks of 544 tokens, 44.59 GiB, 973,760 tokens, 14.77 requests."""
    cache, _ = found(models.QWEN3_NEXT, 2, version=(0, 10, 2), max_model_len=262144, max_num_batched_tokens=8192)
    assert cache.block == 544
    blocks = 47878721024 // cache.block_bytes
    assert blocks // cache.groups * cache.block == 973760
    assert blocks / cache.blocks_a_request == pytest.approx(14.77, abs=0.01)


def test_before_the_hybrid_cache_windows_count_in_full():
    old, _ = found(models.GEMMA4_26B, version=(0, 9, 0), max_model_len=32768)
    new, _ = found(models.GEMMA4_26B, version=(0, 20, 2), max_model_len=32768)
    assert old.needed > 2 * new.needed


def test_a_draft_heads_layer_is_in_the_pool():
    plain, _ = found(models.LLAMA_8B, version=(0, 11, 0), max_model_len=4096)
    eagle, _ = found(models.LLAMA_8B, version=(0, 11, 0), max_model_len=4096, speculative=3)
    assert eagle.block_bytes * 32 == plain.block_bytes * 33


def test_a_model_without_a_cache_needs_none():
    assert layout([], 4096, 2048, hybrid=True).needed == 0


def test_groups_of_nearly_equal_size_are_padded_to_the_larger_one():
    pages = [(Page(100, 16), 13), (Page(100, 16, 128), 12)]
    assert layout(pages, 4096, 512, hybrid=True).block_bytes == 1300


@pytest.mark.parametrize(
    ("kind", "length", "size"), [("fp8", 128, 128), ("nvfp4", 128, 72), ("int8_per_token_head", 128, 132)]
)
def test_scales_of_a_cache_type_are_counted(kind, length, size):
    assert vector_bytes(kind, length) == size
