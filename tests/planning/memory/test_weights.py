"""Weights, against what vLLM printed for these models ("Model loading took ... GiB"; public start-up logs)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.models.profile import Basis, Group
from agent.planning.memory.base import GIB, Card, Request
from agent.planning.memory.loading import adapted
from agent.planning.memory.weights import Split, different, loaded
from tests.planning.memory import models

CARD = Card(80 * GIB)


def loaded_gib(config, split=None, **changes):
    return sum(term.bytes for term in loaded(models.profile(config, **changes), split or Split())) / GIB


@pytest.mark.parametrize(
    ("config", "changes", "ranks", "printed"),
    [
        (models.LLAMA_8B, {}, 1, 14.9888),
        (models.LLAMA_8B, {"max_position_embeddings": 8192}, 1, 14.9595),  # Llama 3.0: a shorter rotary table
        (models.QWEN3_06B, {}, 1, 1.12),
        (models.QWEN3_32B, {}, 1, 61.03),
        (models.QWEN3_32B, {}, 2, 30.59),
        (models.QWEN25_7B, {}, 1, 14.2487),
        (models.QWEN25_7B, {"max_position_embeddings": 131072}, 1, 14.2717),  # R1-Distill-Qwen-7B
    ],
)
def test_16_bit_weights_are_what_vllm_prints(config, changes, ranks, printed):
    assert loaded_gib(config, Split(ranks, ranks, ranks), **changes) == pytest.approx(printed, rel=0.0006)


def test_awq_keeps_embedding_and_head_in_16_bit():
    awq = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}}
    assert loaded_gib(models.QWEN25_7B, **awq) == pytest.approx(5.2035, rel=0.002)


def test_mxfp4_experts_are_padded_to_their_kernel():
    request = Request("vllm", CARD)
    terms = loaded(adapted(models.profile(models.GPT_OSS_120B), request), Split())
    assert sum(term.bytes for term in terms) / GIB == pytest.approx(65.97, rel=0.002)


def test_key_value_projections_are_replicated_beyond_their_heads():
    eight, sixteen = (loaded_gib(models.LLAMA_8B, Split(ranks, ranks, ranks)) for ranks in (8, 16))
    kv = models.profile(models.LLAMA_8B).group(Group.ATTENTION_KV).bytes / GIB
    assert sixteen > eight / 2 + kv / 16 * 0.9


def test_latent_projections_routers_and_norms_are_on_every_rank():
    profile = models.profile(models.DEEPSEEK_V3)
    everywhere = sum(profile.group(group).bytes for group in (Group.ATTENTION_LATENT, Group.ROUTER, Group.NORM))
    ranks = 1 << 20
    held = loaded(profile, Split(ranks, ranks, ranks))[0].bytes
    assert held > everywhere
    assert held < everywhere * 1.01


def test_the_layers_that_predict_further_tokens_are_left_on_disk_unless_asked_for():
    profile = models.profile(models.DEEPSEEK_V3)
    without, having = (loaded(profile, Split(), predictor=asked)[0].bytes for asked in (False, True))
    assert having - without == profile.group(Group.MTP).bytes > 0


def test_stages_hold_everything_once():
    profile = models.profile(models.QWEN3_32B)
    whole = loaded(profile, Split())[0].bytes
    parts = [loaded(profile, Split(stage=stage, stages=3))[0].bytes for stage in range(3)]
    norms = profile.group(Group.NORM).bytes + profile.group(Group.OTHER).bytes
    assert whole - norms <= sum(parts) <= whole + 3 * norms


@pytest.mark.parametrize(
    ("layers", "stages", "sizes"), [(61, 4, [15, 15, 16, 15]), (62, 4, [15, 16, 16, 15]), (8, 1, [8])]
)
def test_what_does_not_divide_goes_to_the_stages_before_the_last(layers, stages, sizes):
    assert [len(Split(stage=stage, stages=stages).layers(layers)) for stage in range(stages)] == sizes


@pytest.mark.parametrize("name", ["llama", "latent", "mxfp4"])
@pytest.mark.parametrize("stages", [1, 3, 5, 8])
def test_a_stage_that_is_left_out_holds_what_one_before_it_holds(name, stages):
    profile = models.profile(models.ALL[name])

    def held(stage):
        return loaded(profile, Split(2, 2, 2, stage, stages))

    kept = different(profile, stages)
    assert {held(stage) for stage in range(stages)} == {held(stage) for stage in kept}
    assert {0, stages - 1} <= set(kept)


def test_a_tower_is_left_out_of_a_text_only_start():
    text = models.profile(models.QWEN25_7B)
    towered = models.profile(
        models.QWEN25_7B | {"model_type": "qwen2_5_vl", "vision_config": {"depth": 32, "hidden_size": 1280}}
    )
    assert loaded(towered, Split(), media=False)[0].bytes == loaded(text, Split())[0].bytes
    assert loaded(towered, Split())[0].bytes - loaded(text, Split())[0].bytes > GIB


def test_quantizing_while_loading_halves_what_is_in_layers():
    profile = models.profile(models.LLAMA_8B)
    request = Request("vllm", CARD, quantization="fp8")
    saved = profile.tensor_bytes - sum(group.bytes for group in adapted(profile, request).groups)
    kept = sum(profile.group(group).bytes for group in (Group.EMBEDDING, Group.LM_HEAD, Group.NORM))
    assert saved == pytest.approx((profile.tensor_bytes - kept) / 2, rel=0.001)


def test_a_bound_says_that_it_may_be_off():
    profile = replace(models.profile(models.LLAMA_8B), basis=Basis.BOUND)
    assert loaded(profile, Split())[0].uncertainty > 0
    assert loaded(models.profile(models.LLAMA_8B), Split())[0].uncertainty == 0
