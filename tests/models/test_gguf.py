"""GGUF headers of many architectures: groups, experts, and what each layer keeps. Real files, tiny or sparse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from pydantic import TypeAdapter

from agent.models import inspect
from agent.models.profile import AttentionKind, Group, ModelProfile
from tests.gguf_factory import make_gguf

WIDTH, LAYERS = 64, 4


def written(path: Path, architecture: str, keys: dict[str, Any], names: dict[str, tuple[int, ...]]) -> Path:
    """A model with these keys (below its architecture) and tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(keys.pop("block_count", LAYERS))
    writer.add_embedding_length(WIDTH)
    writer.add_context_length(4096)
    writer.add_head_count(keys.pop("heads", 4))
    writer.add_vocab_size(320)
    for key, value in keys.items():
        name = key if key.startswith("general.") else f"{architecture}.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)
    for name, shape in {"token_embd.weight": (320, WIDTH), **names}.items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ModelProfile]:
    def file(architecture: str, names: dict[str, tuple[int, ...]] | None = None, **keys: Any) -> ModelProfile:
        dotted = {key.replace("__", "."): value for key, value in keys.items()}
        path = written(tmp_path / f"{architecture}.gguf", architecture, dotted, names or {})
        return TypeAdapter(ModelProfile).validate_python(inspect.main(path))

    return file


def test_bytes_of_each_group_are_those_of_the_tensor_table(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", hidden=64, layers=2, vocab=512, heads=4, kv_heads=2, quantization="Q8_0")

    profile = TypeAdapter(ModelProfile).validate_python(inspect.main(path))

    def quantized(*shape: int) -> int:
        return shape[0] * shape[1] // 32 * 34

    assert {tensors.group: tensors.bytes for tensors in profile.groups} == {
        Group.EMBEDDING: quantized(512, 64),
        Group.LM_HEAD: quantized(512, 64),
        Group.ATTENTION: 2 * 2 * quantized(64, 64),
        Group.ATTENTION_KV: 2 * 2 * quantized(32, 64),
        Group.MLP: 2 * 3 * quantized(128, 64),
        Group.NORM: 5 * 64 * 4,
    }
    assert {stored.dtype for stored in profile.stored} == {"Q8_0", "F32"}
    assert profile.parameters == sum(tensors.parameters for tensors in profile.groups)
    assert profile.tensor_bytes == sum(tensors.bytes for tensors in profile.groups)
    assert profile.quantization_config is not None
    assert (profile.quantization_config.method, profile.quantization_config.bits) == ("gguf", 8)
    assert [layer.attention.kv_elements for layer in profile.layer_details] == [64, 64]
    assert (profile.task, profile.formats, profile.tied) == ("chat", ("gguf",), False)


def test_experts_are_counted_with_their_layers_and_shared_ones(make: Callable[..., ModelProfile]) -> None:
    layer = {
        "ffn_gate_exps": (6, 40, 64),
        "ffn_down_exps": (6, 64, 40),
        "ffn_gate_inp": (6, 64),
        "ffn_up_shexp": (40, 64),
    }
    names = {f"blk.{index}.{part}.weight": shape for index in (1, 2, 3) for part, shape in layer.items()}

    profile = make(
        "qwen2moe", names, expert_count=6, expert_used_count=2, expert_feed_forward_length=40,
        expert_shared_feed_forward_length=56, attention__head_count_kv=2,
    )  # fmt: skip

    assert profile.moe is not None
    assert (profile.moe.count, profile.moe.active, profile.moe.length) == (6, 2, 40)
    assert (profile.moe.shared, profile.moe.shared_length, profile.moe.layers) == (1, 56, 3)
    routed = 3 * 2 * 6 * 40 * 64
    assert profile.group(Group.EXPERTS).parameters == routed
    assert profile.group(Group.ROUTER).parameters == 3 * 6 * 64
    assert profile.group(Group.SHARED_EXPERTS).parameters == 3 * 40 * 64
    assert profile.active_parameters == profile.parameters - routed * 4 // 6
    assert [layer.expert_bytes for layer in profile.layer_details] == [0, *[2 * routed // 3] * 3]


def test_mla_keeps_the_latent_once(make: Callable[..., ModelProfile]) -> None:
    profile = make(
        "deepseek2", attention__head_count_kv=1, attention__kv_lora_rank=512, attention__key_length=576,
        attention__value_length=512, attention__key_length_mla=192, attention__value_length_mla=128,
        rope__dimension_count=64, heads=16,
    )  # fmt: skip

    at = profile.layer_details[0].attention
    assert (at.kind, at.heads, at.latent, at.rope_length) == (AttentionKind.MLA, 16, 512, 64)
    assert (at.key_length, at.value_length, at.kv_elements) == (192, 128, 576)


def windows(profile: ModelProfile) -> list[int]:
    return [layer.attention.window for layer in profile.layer_details]


def test_windows_follow_the_headers_pattern_or_the_architectures(make: Callable[..., ModelProfile]) -> None:
    assert windows(make("gemma3", attention__sliding_window=512, block_count=7)) == [512] * 5 + [0, 512]
    assert windows(make("gpt-oss", attention__sliding_window=128)) == [128, 0, 128, 0]
    assert windows(make("llama", attention__sliding_window=4096)) == [0] * 4
    listed = make("gemma4", attention__sliding_window=512, attention__sliding_window_pattern=[True, True, False, True])
    assert windows(listed) == [512, 512, 0, 512]


def test_windowed_layers_may_have_other_lengths_and_the_last_ones_share(make: Callable[..., ModelProfile]) -> None:
    profile = make(
        "gemma4", attention__sliding_window=512, attention__sliding_window_pattern=[True, False, True, False],
        attention__head_count_kv=[2, 1, 2, 1], attention__key_length=32, attention__value_length=32,
        attention__key_length_swa=16, attention__value_length_swa=16, attention__shared_kv_layers=2,
    )  # fmt: skip

    assert [layer.attention.kv_elements for layer in profile.layer_details] == [64, 64, 0, 0]
    assert [layer.attention.shares_with for layer in profile.layer_details] == [-1, -1, 0, 1]
    assert profile.kv_heads == (2, 1, 0, 0)


def test_recurrent_layers_keep_their_state(make: Callable[..., ModelProfile]) -> None:
    ssm = {"ssm__conv_kernel": 4, "ssm__inner_size": 128, "ssm__state_size": 16, "ssm__group_count": 2}

    mamba = make("mamba2", heads=0, **ssm)
    assert [layer.attention.kind for layer in mamba.layer_details] == [AttentionKind.MAMBA] * 4
    assert mamba.layer_details[0].attention.conv_elements == 3 * (128 + 2 * 2 * 16)
    assert mamba.layer_details[0].attention.state_elements == 128 * 16

    mixed = make("jamba", attention__head_count_kv=[0, 2, 0, 2], **ssm)
    assert [layer.attention.kv_elements for layer in mixed.layer_details] == [0, 64, 0, 64]

    delta = make("qwen3next", full_attention_interval=4, attention__head_count_kv=2, **ssm)
    assert [layer.attention.kind.value for layer in delta.layer_details] == ["linear"] * 3 + ["gqa"]

    nemotron = make(
        "nemotron_h", attention__head_count_kv=[0, 2, 0, 0], feed_forward_length=[0, 0, 96, 0], **ssm
    )  # fmt: skip
    assert [layer.attention.kind.value for layer in nemotron.layer_details] == ["mamba", "gqa", "none", "mamba"]

    both = make("falcon-h1", attention__head_count_kv=2, **ssm)
    assert both.layer_details[0].attention.parallel
    assert both.layer_details[0].attention.kv_elements == 64

    short = make("lfm2", attention__head_count_kv=[0, 2, 0, 2], shortconv__l_cache=3)
    assert short.layer_details[0].attention.conv_elements == 2 * WIDTH


def test_layers_for_prediction_are_not_layers_of_the_model(make: Callable[..., ModelProfile]) -> None:
    names = {"blk.3.nextn.eh_proj.weight": (64, 128), "blk.3.attn_q.weight": (64, 64), "blk.2.attn_q.weight": (64, 64)}

    profile = make("glm4moe", names, nextn_predict_layers=1, attention__head_count_kv=2)

    assert (profile.layers, profile.mtp_layers, len(profile.kv_heads)) == (3, 1, 3)
    assert profile.group(Group.MTP).parameters == 64 * 128 + 64 * 64
    assert profile.group(Group.ATTENTION).parameters == 64 * 64


def test_rope_licence_and_encoders(make: Callable[..., ModelProfile]) -> None:
    scaled = make(
        "llama", rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__freq_base=500000.0,
        rope__scaling__original_context_length=8192, general__license="apache-2.0", attention__head_count_kv=2,
    )  # fmt: skip
    assert scaled.rope is not None
    assert (scaled.rope.kind, scaled.rope.factor, scaled.rope.theta, scaled.rope.original_context) == (
        "yarn", 4.0, 500000.0, 8192,
    )  # fmt: skip
    assert (scaled.licence, scaled.task, scaled.tied) == ("apache-2.0", "completion", True)

    encoder = make("bert", pooling_type=2)
    assert (encoder.task, encoder.pooling, encoder.kv_heads) == ("embedding", "cls", (0, 0, 0, 0))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"block_count": 10**6}, "block_count is 1000000"),
        ({"block_count": 0}, "block_count is 0"),
        ({"nextn_predict_layers": 9}, "block_count"),
        ({"attention.head_count_kv": [1, 2]}, "head_count_kv has 2 values for 4 layers"),
        ({"attention.head_count_kv": 2**31}, "numbers that no model has"),
        ({"expert_count": 2, "expert_used_count": 3}, "expert_used_count 3 and llama.expert_count 2"),
    ],
)
def test_absurd_keys_are_refused_with_their_names(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    answer = inspect.main(written(tmp_path / "m.gguf", "llama", dict(keys), {}))

    assert answer["code"] == "model_corrupt"
    assert words in str(answer["message"])
