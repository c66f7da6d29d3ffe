"""Counting parameters out of a configuration alone, and what each layer keeps of a token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.models.errors import ProfileError
from agent.models.facts import config
from agent.models.families import FAMILIES
from agent.models.huggingface import from_config
from agent.models.profile import AttentionKind, Basis, Group, ModelProfile

#: Small configurations, and how many parameters and stored buffers `transformers` 5.23 gives their models.
COUNTED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "counted.json").read_text())
#: Facts of published models, kept beside the repository.
_FACTS = Path(__file__).parents[3] / "shared" / "memory" / "models.json"
FACTS: dict[str, dict[str, Any]] = json.loads(_FACTS.read_text()) if _FACTS.is_file() else {}
#: Published totals that are no counts of parameters: with the scales of FP8 blocks, or a vendor's round number.
OTHER_TOTALS = {f"deepseek-ai/DeepSeek-{name}" for name in ("R1", "V3", "V4-Flash", "V4-Pro")}


def small(model_type: str, /, **more: Any) -> ModelProfile:
    """The first counted configuration of a type, with changes."""
    found = next(case["config"] for case in COUNTED if case["config"]["model_type"] == model_type)
    return from_config({**found, **more})


@pytest.mark.parametrize("case", COUNTED, ids=lambda case: case["config"]["model_type"])
def test_parameters_are_counted_as_the_modelling_code_has_them(case: dict[str, Any]) -> None:
    profile = from_config(case["config"])

    assert profile.parameters == case["parameters"]
    assert profile.basis == Basis.CONFIG
    assert sum(group.parameters for group in profile.groups) == profile.parameters
    assert profile.group(Group.OTHER).parameters < profile.parameters / 4


@pytest.mark.skipif(not FACTS, reason="the table of published models is not beside the repository")
@pytest.mark.parametrize("model", FACTS)
def test_parameters_of_published_models_are_those_that_their_files_hold(model: str) -> None:
    facts = FACTS[model]

    profile = from_config(config(model, facts))

    assert profile.basis == Basis.CONFIG
    if facts["params_total"] is not None and model not in OTHER_TOTALS:
        assert profile.parameters == facts["params_total"]


@pytest.mark.skipif(not FACTS, reason="the table of published models is not beside the repository")
def test_a_vendors_round_number_is_met_without_the_layers_for_prediction() -> None:
    for model, billions in (("deepseek-ai/DeepSeek-V4-Flash", 284), ("deepseek-ai/DeepSeek-V4-Pro", 1573)):
        profile = from_config(config(model, FACTS[model]))
        without = profile.parameters - profile.group(Group.MTP).parameters
        assert round(without / 1e9) == billions


def test_every_architecture_has_rules_of_one_class() -> None:
    assert len(FAMILIES) > 90
    for model_type, family in FAMILIES.items():
        assert model_type in family.types


#: With words of their own for every size, or sizes that tiny models round up to many times what they say.
OWN_WORDS = {"gpt2", "opt", "bloom", "mpt", "distilbert", "ernie4_5", "lfm2"}


def test_an_architecture_without_rules_is_said_to_be_unknown_with_an_upper_bound() -> None:
    for case in COUNTED:
        known = case["config"]
        if known["model_type"] in OWN_WORDS:
            continue
        text = {**known.get("text_config", known), "model_type": "unheard_of"}
        profile = from_config({**known, "text_config": text} if "text_config" in known else text)

        assert profile.basis == Basis.BOUND, known
        assert profile.parameters >= case["parameters"], known["model_type"]
        assert any("not known" in note for note in profile.notes)


def test_an_unknown_architectures_layers_are_what_its_configuration_says_in_the_usual_words() -> None:
    latent = small("deepseek_v3", model_type="unheard_of")
    assert [layer.attention.kv_elements for layer in latent.layer_details] == [24] * 4
    mixed = small("qwen3_next", model_type="unheard_of")
    assert kinds(mixed) == ["linear", "gqa", "linear", "gqa"]


def test_an_unknown_image_tower_bounds_the_whole() -> None:
    known = small("qwen3_vl")
    case = next(case["config"] for case in COUNTED if case["config"]["model_type"] == "qwen3_vl")

    profile = from_config({**case, "model_type": "seen_by_nobody"})

    assert profile.basis == Basis.BOUND
    assert profile.group(Group.VISION).parameters >= known.group(Group.VISION).parameters
    assert any("image tower" in note for note in profile.notes)


def test_k3_is_not_taken_for_what_it_extends() -> None:
    assert small("kimi_linear").basis == Basis.CONFIG
    assert small("kimi_linear", latent_moe_use_norm=True).basis == Basis.BOUND
    assert small("kimi_linear", latent_moe_use_norm=True).layer_details[1].attention.kind == AttentionKind.MLA


def kinds(profile: ModelProfile) -> list[str]:
    return [layer.attention.kind.value for layer in profile.layer_details]


def windows(profile: ModelProfile) -> list[int]:
    return [layer.attention.window for layer in profile.layer_details]


def test_heads_say_whether_attention_is_multi_grouped_or_single_query() -> None:
    assert set(kinds(small("llama"))) == {"gqa"}
    assert set(kinds(small("llama", num_key_value_heads=4))) == {"mha"}
    assert set(kinds(small("llama", num_key_value_heads=1))) == {"mqa"}
    assert small("llama", num_key_value_heads=1).kv_heads == (1, 1, 1, 1)


def test_windows_follow_each_architectures_pattern() -> None:
    assert windows(small("gemma3_text", num_hidden_layers=7, sliding_window=512)) == [512] * 5 + [0, 512]
    assert windows(small("gemma2")) == [4096, 0, 4096, 0]
    assert windows(small("gpt_oss")) == [128, 0, 128, 0]
    assert windows(small("cohere2", num_hidden_layers=8)) == [4096] * 3 + [0] + [4096] * 3 + [0]
    assert windows(small("mistral", sliding_window=4096)) == [4096] * 4
    assert windows(small("mistral", sliding_window=None)) == [0] * 4
    assert windows(small("qwen2", sliding_window=4096)) == [0] * 4
    assert windows(small("qwen2", sliding_window=64, use_sliding_window=True, max_window_layers=2)) == [0, 0, 64, 64]
    assert windows(small("llama4")) == [8192, 8192, 8192, 0]
    assert windows(small("qwen3", layer_types=["sliding_attention", *["full_attention"] * 3], sliding_window=9))[0] == 9


def test_mla_keeps_one_latent_and_one_rotary_key_a_token() -> None:
    profile = small("deepseek_v3")
    at = profile.layer_details[0].attention

    assert (at.kind, at.latent, at.rope_length, at.heads) == (AttentionKind.MLA, 16, 8, 4)
    assert at.kv_elements == 24
    assert (at.key_length, at.value_length) == (24, 20)
    assert (profile.key_length, profile.value_length, profile.kv_heads) == (24, 0, (1, 1, 1, 1))


def test_an_indexers_key_is_kept_beside_the_latent_in_layers_that_have_one() -> None:
    lengths = [layer.attention.index_length for layer in small("glm_moe_dsa").layer_details]

    assert lengths == [12, 12, 0, 0]


def test_recurrent_layers_keep_a_state_of_fixed_size_and_no_tokens() -> None:
    delta, attention = (layer.attention for layer in small("qwen3_next").layer_details[:2])

    assert (delta.kind, delta.kv_elements) == (AttentionKind.LINEAR, 0)
    assert delta.conv_elements == (2 * 2 * 8 + 4 * 12) * 3
    assert delta.state_elements == 4 * 12 * 8
    assert attention.kv_elements == 2 * (16 + 16)

    mamba, _, none, _ = (layer.attention for layer in small("nemotron_h").layer_details)
    assert (mamba.kind, mamba.state_elements) == (AttentionKind.MAMBA, 8 * 16 * 12)
    assert mamba.conv_elements == (8 * 16 + 2 * 2 * 12) * 3
    assert none.kind == AttentionKind.NONE


def test_attention_and_state_can_stand_in_one_layer() -> None:
    at = small("falcon_h1").layer_details[0].attention

    assert at.parallel
    assert at.kv_elements == 2 * 32
    assert at.state_elements == 8 * 16 * 12


def test_layers_that_read_another_ones_cache_keep_none() -> None:
    profile = small("gemma4_text")

    assert [layer.attention.shares_with for layer in profile.layer_details] == [-1, -1, 0, 1]
    assert [layer.attention.kv_elements for layer in profile.layer_details] == [64, 128, 0, 0]
    assert profile.kv_heads == (2, 2, 0, 0)


def test_encoders_keep_no_cache() -> None:
    assert set(small("bert").kv_heads) == {0}


def test_all_experts_are_resident_and_few_are_active() -> None:
    profile = small("qwen3_moe")

    assert profile.moe is not None
    assert (profile.moe.count, profile.moe.active, profile.moe.length, profile.moe.layers) == (6, 2, 40, 3)
    routed = profile.group(Group.EXPERTS).parameters
    assert routed == 3 * 6 * 3 * 40 * 64
    assert profile.active_parameters == profile.parameters - routed * 4 // 6


def test_layers_for_prediction_are_counted_apart() -> None:
    profile = small("deepseek_v3", num_nextn_predict_layers=1)
    without = small("deepseek_v3")

    assert profile.mtp_layers == 1
    assert profile.parameters - profile.group(Group.MTP).parameters == without.parameters
    assert profile.active_parameters == without.active_parameters
    assert profile.layers == without.layers == len(profile.layer_details)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be 1 to 2048 (found 0)"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be"),
        ({"hidden_size": -64}, "hidden_size must be 1 to"),
        ({"hidden_size": "64"}, "hidden_size must be a whole number"),
        ({"hidden_size": 64.5}, "hidden_size must be a whole number"),
        ({"hidden_size": True}, "hidden_size must be a whole number"),
        ({"hidden_size": 62, "head_dim": None}, "no multiple of num_attention_heads"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads"),
        ({"vocab_size": 2**40}, "vocab_size must be"),
        ({"layer_types": ["full_attention"]}, "layer_types must name a kind for each of 4 layers, not 1"),
        ({"layer_types": "full_attention"}, "layer_types must be a list of strings"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok 7 is more than the 6 experts"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"rope_scaling": 4}, "rope_scaling must be an object"),
        ({"quantization_config": {"quant_method": "awq", "bits": 99}}, "bits must be"),
    ],
)
def test_a_bad_configuration_is_refused_with_its_field(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ProfileError) as caught:
        small("qwen3_moe", **change)

    assert words in caught.value.diagnosis.message
    assert "config.json" in caught.value.diagnosis.message


VALUES = st.sampled_from(
    [None, True, -1, 0, 1, 2, 7, 10**6, 10**30, 0.5, float("nan"), float("inf"), "", "x", [], [0], {}]
)


@settings(max_examples=300)
@given(st.data())
def test_any_configuration_gives_a_profile_or_a_refusal_and_nothing_else(data: st.DataObject) -> None:
    found: dict[str, Any] = dict(data.draw(st.sampled_from(COUNTED))["config"])
    for key in data.draw(st.lists(st.sampled_from(sorted(found)), max_size=3)):
        found[key] = data.draw(VALUES)
    for key in ("text_config", "vision_config"):
        if isinstance(found.get(key), dict) and found[key]:
            found[key] = {**found[key], data.draw(st.sampled_from(sorted(found[key]))): data.draw(VALUES)}
    for key in data.draw(
        st.lists(st.sampled_from(["quantization_config", "rope_scaling", "architectures"]), max_size=1)
    ):
        found[key] = data.draw(VALUES)

    try:
        profile = from_config(found)
    except ProfileError:
        return
    assert profile.parameters >= 0
    assert len(profile.kv_heads) == profile.layers
