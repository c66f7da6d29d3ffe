"""Quantized checkpoints: what the configuration says, what it makes of the bytes, and what the files' headers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.models.facts import config
from agent.models.huggingface import from_config, read_folder
from agent.models.profile import Basis, Group, ModelProfile
from agent.models.safetensors import BITS
from agent.models.schemes import Names
from tests.models.safetensors_factory import write_safetensors

HIDDEN, INNER, HEADS, LAYERS, VOCABULARY = 512, 1024, 8, 2, 1000
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
    "torch_dtype": "bfloat16",
}  # fmt: skip
LINEARS = {
    "self_attn.q_proj": (512, 512), "self_attn.k_proj": (128, 512), "self_attn.v_proj": (128, 512),
    "self_attn.o_proj": (512, 512), "mlp.gate_proj": (1024, 512), "mlp.up_proj": (1024, 512),
    "mlp.down_proj": (512, 1024),
}  # fmt: skip
Layout = dict[str, tuple[str, tuple[int, ...]]]


def plain(out: int, into: int) -> Layout:
    return {"weight": ("BF16", (out, into))}


def awq(out: int, into: int) -> Layout:
    return {
        "qweight": ("I32", (into, out // 8)),
        "qzeros": ("I32", (into // 128, out // 8)),
        "scales": ("F16", (into // 128, out)),
    }


def gptq(out: int, into: int) -> Layout:
    return {
        "qweight": ("I32", (into // 8, out)),
        "qzeros": ("I32", (into // 128, out // 8)),
        "scales": ("F16", (into // 128, out)),
        "g_idx": ("I32", (into,)),
    }


def fp8_blocks(out: int, into: int) -> Layout:
    return {"weight": ("F8_E4M3", (out, into)), "weight_scale_inv": ("F32", (out // 128, into // 128))}


def fp8_static(out: int, into: int) -> Layout:
    return {"weight": ("F8_E4M3", (out, into)), "weight_scale": ("F32", ()), "input_scale": ("F32", ())}


def fp8_channels(out: int, into: int) -> Layout:
    return {"weight": ("F8_E4M3", (out, into)), "weight_scale": ("BF16", (out, 1))}


def int8_channels(out: int, into: int) -> Layout:
    return {"weight": ("I8", (out, into)), "weight_scale": ("BF16", (out, 1))}


def packed_int4(out: int, into: int) -> Layout:
    return {
        "weight_packed": ("I32", (out, into // 8)),
        "weight_scale": ("BF16", (out, into // 128)),
        "weight_shape": ("I64", (2,)),
    }


def nvfp4(out: int, into: int) -> Layout:
    return {
        "weight": ("U8", (out, into // 2)),
        "weight_scale": ("F8_E4M3", (out, into // 16)),
        "weight_scale_2": ("F32", ()),
        "input_scale": ("F32", ()),
    }


def nvfp4_packed(out: int, into: int) -> Layout:
    return {
        "weight_packed": ("U8", (out, into // 2)),
        "weight_scale": ("F8_E4M3", (out, into // 16)),
        "weight_global_scale": ("F32", (1,)),
        "input_global_scale": ("F32", (1,)),
    }


def nf4(out: int, into: int) -> Layout:
    return {
        "weight": ("U8", (out * into // 2, 1)),
        "weight.absmax": ("F32", (out * into // 64,)),
        "weight.quant_map": ("F32", (16,)),
        "weight.quant_state.bitsandbytes__nf4": ("U8", (90,)),
    }


def mlx4(out: int, into: int) -> Layout:
    return {
        "weight": ("U32", (out, into // 8)),
        "scales": ("BF16", (out, into // 64)),
        "biases": ("BF16", (out, into // 64)),
    }


COMPRESSED: dict[str, Any] = {"quant_method": "compressed-tensors", "ignore": ["lm_head"]}


def group(weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}}


CASES = [
    ("awq", awq, {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}, 4),
    ("gptq", gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}, 4),
    ("fp8-block", fp8_blocks,
     {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, 8),
    ("fp8", fp8_static, {"quant_method": "fp8", "activation_scheme": "static"}, 8),
    ("fp8", fp8_static, {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, 8),
    ("fp8", fp8_channels,
     {**COMPRESSED, "format": "float-quantized",
      **group({"num_bits": 8, "type": "float", "strategy": "channel"},
              {"num_bits": 8, "type": "float", "dynamic": True})}, 8),
    ("int8", int8_channels,
     {**COMPRESSED, "format": "int-quantized",
      **group({"num_bits": 8, "type": "int", "strategy": "channel"}, {"num_bits": 8, "type": "int", "dynamic": True})},
     8),
    ("w4a16", packed_int4,
     {**COMPRESSED, "format": "pack-quantized",
      **group({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True})}, 4),
    ("nvfp4", nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ["lm_head"]}, 4),
    ("nvfp4", nvfp4_packed,
     {**COMPRESSED, "format": "nvfp4-pack-quantized",
      **group({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
              {"num_bits": 4, "type": "float", "dynamic": "local"})}, 4),
    ("bnb-nf4", nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 4),
]  # fmt: skip


def checkpoint(folder: Path, layout: Any, configuration: dict[str, Any], *, everything: bool = False) -> ModelProfile:
    """A llama whose matrices are stored in the layout; `everything`: embedding and head as well."""
    folder.mkdir()
    rest = layout if everything else plain
    tensors = {f"model.embed_tokens.{name}": entry for name, entry in rest(VOCABULARY, HIDDEN).items()}
    tensors |= {f"lm_head.{name}": entry for name, entry in rest(VOCABULARY, HIDDEN).items()}
    tensors["model.norm.weight"] = ("BF16", (HIDDEN,))
    for index in range(LAYERS):
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{index}.{name}.weight"] = ("BF16", (HIDDEN,))
        for module, shape in LINEARS.items():
            tensors |= {f"model.layers.{index}.{module}.{name}": entry for name, entry in layout(*shape).items()}
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(configuration))
    return read_folder(folder)


@pytest.mark.parametrize(("name", "layout", "section", "bits"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_bytes_are_predicted_from_the_configuration_as_the_files_hold_them(
    name: str, layout: Any, section: dict[str, Any], bits: int, tmp_path: Path
) -> None:
    configuration = {**LLAMA, "quantization_config": section}

    measured, predicted = checkpoint(tmp_path / "m", layout, configuration), from_config(configuration)

    assert measured.basis == Basis.TENSORS
    assert predicted.basis == Basis.CONFIG
    assert measured.quantization == predicted.quantization == name
    assert measured.parameters == predicted.parameters == from_config(LLAMA).parameters
    assert {each.group: each.bytes for each in measured.groups} == {each.group: each.bytes for each in predicted.groups}
    assert measured.groups == predicted.groups
    assert measured.stored == predicted.stored
    assert measured.quantization_config is not None
    assert measured.quantization_config.bits == bits
    assert measured.quantization_config.untouched == ("embedding", "lm_head", "norm")


def test_mlx_converts_embedding_and_head_too(tmp_path: Path) -> None:
    configuration = {**LLAMA, "quantization": {"group_size": 64, "bits": 4}}

    measured = checkpoint(tmp_path / "m", mlx4, configuration, everything=True)
    predicted = from_config(configuration)

    assert (measured.format, measured.quantization) == ("mlx", "mlx-w4a16")
    assert measured.groups == predicted.groups
    assert measured.parameters == from_config(LLAMA).parameters


def test_modules_that_a_configuration_leaves_out_stay_in_16_bit() -> None:
    names = ["model.layers.0.self_attn.k_proj", "re:.*v_proj$", "*.1.self_attn*", "down_proj"]
    section = {**CASES[7][2], "ignore": ["lm_head", *names]}

    whole = from_config({**LLAMA, "quantization_config": CASES[7][2]})
    partly = from_config({**LLAMA, "quantization_config": section})

    more = 2 * LAYERS * HIDDEN * INNER + 2 * 128 * HIDDEN * 4 + 2 * 2 * HIDDEN * HIDDEN
    packed = partly.tensor_bytes - whole.tensor_bytes
    assert 0.7 * more < packed < more
    assert partly.group(Group.MLP).parameters == whole.group(Group.MLP).parameters


def test_modelopts_own_file_is_read_where_the_configuration_is_silent(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "hf_quant_config.json").write_text(
        json.dumps(
            {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
        )
    )

    (tmp_path / "pytorch_model.bin").write_bytes(b"x")

    profile = read_folder(tmp_path)

    assert profile.quantization == "fp8"
    assert profile.quantization_config is not None
    assert profile.quantization_config.kv_cache == "fp8"


def test_layers_may_each_have_their_own_scheme() -> None:
    listed = {f"model.layers.{index}.mlp.{part}_proj": {"quant_algo": "NVFP4", "group_size": 16}
              for index in range(LAYERS) for part in ("gate", "up", "down")}  # fmt: skip
    listed["model.layers.0.self_attn.q_proj"] = {"quant_algo": "FP8"}
    section = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": listed}

    profile = from_config({**LLAMA, "quantization_config": section})

    assert profile.quantization == "mixed"
    assert profile.group(Group.MLP).bytes == LAYERS * 3 * (HIDDEN * INNER * 9 // 16 + 8)
    assert profile.group(Group.ATTENTION).bytes == (HIDDEN**2 + 8) + 3 * 2 * HIDDEN**2


def test_an_unknown_method_leaves_the_bytes_bounded_by_those_of_16_bit() -> None:
    profile = from_config({**LLAMA, "quantization_config": {"quant_method": "from_the_future", "bits": 2}})

    assert profile.basis == Basis.BOUND
    assert profile.tensor_bytes == from_config(LLAMA).tensor_bytes
    assert any("from_the_future" in note for note in profile.notes)


def test_deepseek_v3_has_the_elements_of_each_type_that_its_files_are_known_to_have() -> None:
    """The totals that its repository shows by type; their sum, 684,531,386,000, is what catalogues call its size."""
    facts = {"architecture_class": "DeepseekV3ForCausalLM", "num_hidden_layers": 61, "hidden_size": 7168,
             "num_attention_heads": 128, "vocab_size": 129280, "intermediate_size": 18432,
             "moe_intermediate_size": 2048, "num_experts": 256, "num_experts_per_tok": 8, "kv_lora_rank": 512,
             "qk_rope_head_dim": 64, "tie_word_embeddings": False}  # fmt: skip
    section = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}

    profile = from_config({**config("deepseek-ai/DeepSeek-V3", facts), "quantization_config": section})

    elements = {stored.dtype: stored.bytes * 8 // BITS[stored.dtype] for stored in profile.stored}
    assert elements == {"BF16": 3_918_786_560, "F8_E4M3": 680_571_043_840, "F32": 41_555_600}


def test_gpt_oss_keeps_all_but_its_experts_in_16_bit() -> None:
    facts = {"num_hidden_layers": 24, "hidden_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8,
             "head_dim": 64, "vocab_size": 201088, "intermediate_size": 2880, "num_experts_per_tok": 4,
             "num_local_experts": 32, "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"}  # fmt: skip

    profile = from_config({**facts, "quantization_config": {"quant_method": "mxfp4"}})

    experts = 24 * 32 * (5760 + 2880) * 2880
    assert profile.group(Group.EXPERTS).bytes == experts * 17 // 32 + 2 * 24 * 32 * (5760 + 2880)
    assert profile.group(Group.ATTENTION).bytes == 2 * profile.group(Group.ATTENTION).parameters
    assert round(profile.tensor_bytes / 2**30, 1) == 12.8


def test_names_match_whole_modules_parts_wildcards_and_expressions() -> None:
    names = Names(["lm_head", "model.layers.1.mlp", "*.2.*", "re:.*\\.gate$", "model.layers.*.self_attn"])

    for module in ("lm_head", "model.layers.1.mlp.up_proj", "layers.2.mlp.up_proj", "model.layers.9.mlp.gate",
                   "model.language_model.layers.1.mlp.up_proj", "model.layers.7.self_attn.q_proj"):  # fmt: skip
        assert module in names, module
    for module in ("model.layers.11.mlp.up_proj", "model.layers.9.mlp.gate_proj", "model.layers.3.mlp.up_proj"):
        assert module not in names, module


def test_an_expression_that_could_take_for_ever_is_not_run() -> None:
    names = Names(["re:(a+)+$", "re:.*a.*a.*a.*a.*a.*b", "re:(", "re:" + "a" * 300])

    assert len(names.too_complex) == 4
    assert "a" * 200 not in names
    section = {**CASES[7][2], "ignore": ["lm_head", "re:(a+)+$"]}
    assert from_config({**LLAMA, "quantization_config": section}).basis == Basis.BOUND


def test_deepseek_v4_has_routed_experts_of_four_bits_in_a_checkpoint_of_eight() -> None:
    facts = {"architecture_class": "DeepseekV4ForCausalLM", "num_hidden_layers": 43, "hidden_size": 4096,
             "num_attention_heads": 64, "num_key_value_heads": 1, "head_dim": 512, "vocab_size": 129280,
             "moe_intermediate_size": 2048, "num_experts": 256, "num_experts_per_tok": 6}  # fmt: skip
    section = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}

    profile = from_config({**config("deepseek-ai/DeepSeek-V4-Flash", facts), "quantization_config": section})

    routed = 43 * 256 * 3 * 2048 * 4096
    assert profile.group(Group.EXPERTS).parameters == routed
    assert profile.group(Group.EXPERTS).bytes == routed * 17 // 32
    assert profile.quantization == "mixed"
    assert profile.layer_details[2].attention.compression == 4
    assert profile.layer_details[2].attention.kv_elements == 512
