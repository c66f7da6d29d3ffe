"""GGUF models of several architectures without weights (zeros): real attention of each layer, everything else small.

What a cache takes depends on the attention alone, so each file is less than a MiB or two and loads in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

from tests.gguf_factory import CHAT_TEMPLATE, _add_tokenizer

HIDDEN, INNER, VOCABULARY, EXPERTS = 256, 64, 512, 4
CONTEXT = 8192


@dataclass(frozen=True)
class Kind:
    """One architecture. `keys` are without the architecture's prefix."""

    architecture: str
    what: str
    heads: int
    kv_heads: int
    head: int
    layers: int = 3
    keys: Mapping[str, int | float] = field(default_factory=dict)
    extra: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # norms of a layer beside the usual two
    experts: bool = False
    tied: bool = False
    latent: bool = False


_LATENT = {
    "attention.kv_lora_rank": 512, "attention.key_length": 576, "attention.value_length": 512,
    "attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64,
    "expert_feed_forward_length": INNER, "expert_shared_count": 1, "leading_dense_block_count": 1,
    "expert_weights_scale": 1.0, "attention.q_lora_rank": 64, "rope.scaling.yarn_log_multiplier": 0.1,
}  # fmt: skip
_AROUND = {"post_attention_norm": (HIDDEN,), "post_ffw_norm": (HIDDEN,)}

KINDS: Mapping[str, Kind] = {
    "Llama-2": Kind("llama", "dense, MHA", 32, 32, 128),
    "Llama-3.1": Kind("llama", "dense, GQA", 32, 8, 128),
    "Gemma": Kind("gemma", "dense, MQA, tied", 8, 1, 256, tied=True),
    "Qwen2.5": Kind("qwen2", "dense, GQA, tied", 4, 2, 64, layers=5, tied=True,
                    extra={"attn_q.bias": (256,), "attn_k.bias": (128,), "attn_v.bias": (128,)}),
    "Qwen3": Kind("qwen3", "dense, GQA, query and key norms", 16, 8, 128,
                  extra={"attn_q_norm": (128,), "attn_k_norm": (128,)}),
    "Gemma-2": Kind("gemma2", "a window in every second layer", 8, 4, 256, layers=5, tied=True, extra=_AROUND,
                    keys={"attention.sliding_window": 1024, "attn_logit_softcapping": 50.0,
                          "final_logit_softcapping": 30.0}),
    "Gemma-3": Kind("gemma3", "a window in five of six layers", 4, 1, 256, layers=13, tied=True,
                    extra={**_AROUND, "attn_q_norm": (256,), "attn_k_norm": (256,)},
                    keys={"attention.sliding_window": 512}),
    "Mixtral": Kind("llama", "MoE, GQA", 32, 8, 128, experts=True),
    "Qwen3-MoE": Kind("qwen3moe", "MoE, GQA", 32, 4, 128, experts=True,
                      extra={"attn_q_norm": (128,), "attn_k_norm": (128,)}, keys={"expert_feed_forward_length": INNER}),
    "DeepSeek-V2": Kind("deepseek2", "MoE, MLA", 16, 1, 192, layers=3, experts=True, latent=True, keys=_LATENT),
}  # fmt: skip


def write(path: Path, kind: Kind) -> Path:
    writer = gguf.GGUFWriter(path, kind.architecture)
    _describe(writer, kind)
    _add_tokenizer(writer, VOCABULARY, CHAT_TEMPLATE)
    for name, shape in _tensors(kind):
        small = len(shape) == 1 or "gate_inp" in name
        writer.add_tensor(name, np.zeros(shape, dtype=np.float32 if small else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: gguf.GGUFWriter, kind: Kind) -> None:
    writer.add_name("dummy")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(kind.layers)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(kind.heads)
    writer.add_head_count_kv(kind.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    if not kind.latent:
        writer.add_key_length(kind.head)
        writer.add_value_length(kind.head)
        writer.add_rope_dimension_count(kind.head)
    if kind.experts:
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
    for key, value in kind.keys.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{kind.architecture}.{key}", value)


def _tensors(kind: Kind) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (VOCABULARY, HIDDEN)
    yield "output_norm.weight", (HIDDEN,)
    if not kind.tied:
        yield "output.weight", (VOCABULARY, HIDDEN)
    for index in range(kind.layers):
        block = f"blk.{index}"
        yield f"{block}.attn_norm.weight", (HIDDEN,)
        yield f"{block}.ffn_norm.weight", (HIDDEN,)
        for name, shape in (_latent if kind.latent else _attention)(kind):
            yield f"{block}.{name}.weight", shape
        for name, shape in kind.extra.items():
            yield f"{block}.{name}" if name.endswith("bias") else f"{block}.{name}.weight", shape
        for name, shape in _feed_forward(kind, dense=not kind.experts or (kind.latent and index == 0)):
            yield f"{block}.{name}.weight", shape


def _attention(kind: Kind) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "attn_q", (kind.heads * kind.head, HIDDEN)
    yield "attn_k", (kind.kv_heads * kind.head, HIDDEN)
    yield "attn_v", (kind.kv_heads * kind.head, HIDDEN)
    yield "attn_output", (HIDDEN, kind.heads * kind.head)


def _latent(kind: Kind) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "attn_q_a", (64, HIDDEN)
    yield "attn_q_a_norm", (64,)
    yield "attn_q_b", (kind.heads * 192, 64)
    yield "attn_kv_a_mqa", (576, HIDDEN)
    yield "attn_kv_a_norm", (512,)
    yield "attn_k_b", (kind.heads, 512, 128)
    yield "attn_v_b", (kind.heads, 128, 512)
    yield "attn_output", (HIDDEN, kind.heads * 128)


def _feed_forward(kind: Kind, *, dense: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    if dense:
        yield "ffn_gate", (INNER, HIDDEN)
        yield "ffn_up", (INNER, HIDDEN)
        yield "ffn_down", (HIDDEN, INNER)
        return
    yield "ffn_gate_inp", (EXPERTS, HIDDEN)
    yield "ffn_gate_exps", (EXPERTS, INNER, HIDDEN)
    yield "ffn_up_exps", (EXPERTS, INNER, HIDDEN)
    yield "ffn_down_exps", (EXPERTS, HIDDEN, INNER)
    if kind.latent:
        yield "ffn_gate_shexp", (INNER, HIDDEN)
        yield "ffn_up_shexp", (INNER, HIDDEN)
        yield "ffn_down_shexp", (HIDDEN, INNER)
