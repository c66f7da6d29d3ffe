"""Decoders with routed experts, whose attention keeps keys and values for every KV head.

Sources: the modelling files of the `transformers` library, one folder a model type (version 5.23).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from agent.models.families.base import Kind, Sparse, Weight, exact, kind_of, linear, norm, without_cache
from agent.models.families.dense import Gemma3
from agent.models.profile import Attention


class Mixtral(Sparse, types=("mixtral",)):
    block = "block_sparse_moe"
    expert_parts = ("w1", "w3", "w2")

    def default_active(self) -> int:
        return 2

    def expert_width(self) -> int:
        return self.inner

    def slides(self, index: int) -> bool:  # noqa: ARG002 - all layers, where a window is set
        return True


class PhiMoe(Mixtral, types=("phimoe",)):
    qkv_bias = out_bias = "attention_bias"
    norm_bias = True
    head_bias = False

    def head_weights(self) -> Iterator[Weight]:
        yield from super().head_weights()
        if self.config.flag("lm_head_bias"):
            yield from exact("lm_head.bias", self.vocabulary)


class Qwen2Moe(Sparse, types=("qwen2_moe",)):
    qkv_bias: ClassVar[bool | str] = True
    out_bias: ClassVar[bool | str] = False
    mlp_bias: ClassVar[bool | str] = False
    shared_name = "shared_expert"
    shared_gate = True

    def sparse(self, index: int) -> bool:
        step = self.config.whole("decoder_sparse_step", default=1, most="layers")
        return index not in self.config.wholes("mlp_only_layers") and (index + 1) % step == 0

    def shared(self) -> tuple[int, int]:
        return 1, self.config.whole("shared_expert_intermediate_size", default=5632)


class Qwen3Moe(Qwen2Moe, types=("qwen3_moe", "qwen3_vl_moe_text")):
    qkv_bias = out_bias = "attention_bias"
    qk_norm = "head"
    shared_gate = False

    def default_head(self) -> int:
        return 128 if self.config.text("model_type").startswith("qwen3_vl") else 0

    def shared(self) -> tuple[int, int]:
        return 0, 0


class OlMoe(Sparse, types=("olmoe",)):
    qk_norm = "full"

    def expert_width(self) -> int:
        return self.inner


class GptOss(Sparse, types=("gpt_oss",)):
    """gpt-oss: experts with biases, attention with sinks. Its experts are stored as two stacks a layer."""

    qkv_bias = out_bias = True
    router = "router"
    router_bias = True
    window_default = 128

    def expert_width(self) -> int:
        return self.inner

    def default_head(self) -> int:
        return 64

    def slides(self, index: int) -> bool:
        return index % 2 == 0

    def mixer(self, index: int) -> Iterator[Weight]:
        yield from super().mixer(index)
        yield from exact(f"{self.prefix(index)}self_attn.sinks", self.heads)

    def routed(self, name: str) -> Iterator[Weight]:
        yield Weight(f"{name}.experts.gate_up_proj", (2 * self.width, self.hidden), Kind.LINEAR, self.count)
        yield Weight(f"{name}.experts.down_proj", (self.hidden, self.width), Kind.LINEAR, self.count)
        yield Weight(f"{name}.experts.gate_up_proj_bias", (self.count, 2 * self.width), Kind.EXACT)
        yield Weight(f"{name}.experts.down_proj_bias", (self.count, self.hidden), Kind.EXACT)


class Llama4(Sparse, types=("llama4_text",)):
    block = "feed_forward"
    mlp_name = "feed_forward"
    router = "router"
    shared_name = "shared_expert"

    def default_head(self) -> int:
        return 128

    def expert_width(self) -> int:
        return self.inner

    def sparse(self, index: int) -> bool:
        listed = self.config.wholes("moe_layers")
        step = self.config.whole("interleave_moe_layer_step", default=1, most="layers")
        return index in listed if listed else (index + 1) % step == 0

    def shared(self) -> tuple[int, int]:
        return 1, self.inner

    def window(self, index: int) -> int:
        """Three of four layers attend within chunks; the fourth has no rotary embedding and sees all."""
        chunk = self.config.whole("attention_chunk_size", default=8192, least=0, most="tokens")
        every = self.config.whole("no_rope_layer_interval", default=4, most="layers")
        rope = self.config.wholes("no_rope_layers")
        chunked = rope[index] != 0 if len(rope) > index else (index + 1) % every != 0
        return chunk if chunked else 0

    def feed_forward(self, index: int) -> Iterator[Weight]:
        if self.sparse(index):
            yield from self.moe(self.prefix(index) + self.block)
        else:
            yield from self.mlp(
                self.prefix(index) + self.block, self.config.whole("intermediate_size_mlp", default=16384)
            )


class MiniMaxM2(Sparse, types=("minimax_m2",)):
    block = "block_sparse_moe"
    expert_parts = ("w1", "w3", "w2")
    correction = "e_score_correction_bias"
    qk_norm = "full"

    def expert_width(self) -> int:
        return self.inner


class GraniteMoe(Sparse, types=("granitemoe", "granitemoeshared")):
    block = "block_sparse_moe"
    router = "router.layer"
    expert_parts = ("input_linear", "output_linear")

    def expert_width(self) -> int:
        return self.inner

    def shared(self) -> tuple[int, int]:
        width = self.config.whole("shared_intermediate_size", default=0, least=0)
        return (1, width) if width else (0, 0)

    def routed(self, name: str) -> Iterator[Weight]:
        yield Weight(f"{name}.experts.0.input_linear.weight", (2 * self.width, self.hidden), Kind.LINEAR, self.count)
        yield Weight(f"{name}.experts.0.output_linear.weight", (self.hidden, self.width), Kind.LINEAR, self.count)


class Glm4Moe(Sparse, types=("glm4_moe", "glm4v_moe_text")):
    """GLM-4.5 and 4.6. The checkpoint's last layer, behind the model's, predicts a second token."""

    correction = "gate.e_score_correction_bias"
    out_bias = mlp_bias = False

    def sparse(self, index: int) -> bool:
        return index >= self.config.whole("first_k_dense_replace", default=1, least=0, most="layers")

    def shared(self) -> tuple[int, int]:
        number = self.config.whole("n_shared_experts", default=1, least=0, most="experts")
        return number, number * self.width

    def grouped(self, name: str, at: Attention, *, queries: int = 1) -> Iterator[Weight]:
        yield from super().grouped(name, at, queries=queries)
        if self.config.flag("use_qk_norm"):
            yield from norm(f"{name}.q_norm", at.key_length)
            yield from norm(f"{name}.k_norm", at.key_length)

    def mtp_layers(self) -> int:
        return self.config.whole("num_nextn_predict_layers", default=0, least=0, most="layers")

    def mtp(self) -> Iterator[Weight]:
        for number in range(self.mtp_layers()):
            yield from predictor(self, self.layers + number)


def predictor(family: Sparse, index: int) -> Iterator[Weight]:
    """A whole layer behind the others, with its own copies of the embedding and the head (DeepSeek-V3's shape)."""
    name, hidden = family.prefix(index), family.hidden
    yield from family.layer(index)
    yield Weight(name + "embed_tokens.weight", (family.vocabulary, hidden), Kind.EMBEDDING)
    yield Weight(name + "eh_proj.weight", (hidden, 2 * hidden), Kind.EXACT)
    for part in ("enorm", "hnorm", "shared_head.norm"):
        yield from norm(name + part, hidden)
    yield Weight(name + "shared_head.head.weight", (family.vocabulary, hidden), Kind.HEAD)


class MimoV2(Sparse, types=("mimo_v2_flash",)):
    """MiMo-V2-Flash: two kinds of layers with their own KV heads, and values narrower than keys."""

    correction = "gate.e_score_correction_bias"

    def sparse(self, index: int) -> bool:
        listed = self.config.wholes("moe_layer_freq")
        return bool(listed[index]) if len(listed) > index else index > 0

    def local(self, index: int) -> bool:
        pattern = self.config.wholes("hybrid_layer_pattern")
        return len(pattern) > index and pattern[index] == 1

    def attention(self, index: int) -> Attention:
        c, swa = self.config, "swa_" if self.local(index) else ""
        heads = c.whole(swa + "num_attention_heads", default=self.heads, most="heads")
        kv_heads = c.whole(swa + "num_key_value_heads", default=self.kv_heads, most="heads")
        key = c.whole(swa + "head_dim", default=self.head)
        value = c.whole(swa + "v_head_dim", "v_head_dim", default=key)
        window = c.whole("sliding_window", default=128, least=0, most="tokens") if swa else 0
        return Attention(kind_of(heads, kv_heads), heads, kv_heads, key, value, window)

    def mixer(self, index: int) -> Iterator[Weight]:
        yield from super().mixer(index)
        kind = "swa" if self.local(index) else "full"
        if self.config.flag(f"add_{kind}_attention_sink_bias", default=kind == "swa"):
            yield from exact(f"{self.prefix(index)}self_attn.attention_sink_bias", self.at(index).heads)


class Ernie45Moe(Sparse, types=("ernie4_5_moe",)):
    tied = True
    qkv_bias = out_bias = mlp_bias = "use_bias"
    correction = "moe_statics.e_score_correction_bias"

    def sparse(self, index: int) -> bool:
        c = self.config
        start = c.whole("moe_layer_start_index", default=1, least=0, most="layers")
        end = c.whole("moe_layer_end_index", default=-1, least=-1, most="layers")
        interval = c.whole("moe_layer_interval", default=1, most="layers")
        return (index + 1) % interval == 0 and start <= index <= (end if end >= 0 else self.layers - 1)

    def shared(self) -> tuple[int, int]:
        number = self.config.whole("moe_num_shared_experts", default=2, least=0, most="experts")
        return number, number * self.width


class HunyuanMoe(Sparse, types=("hunyuan_v1_moe",)):
    qk_norm = "head"
    router = "gate.wg"
    shared_name = "shared_mlp"

    def expert_width(self) -> int:
        width = self.config.data.get("moe_intermediate_size")
        if isinstance(width, list) and width:
            return self.config.wholes("moe_intermediate_size", least=1)[0]
        return self.config.whole("moe_intermediate_size", default=self.inner)

    def shared(self) -> tuple[int, int]:
        return 1, self.inner


class Dots1(Glm4Moe, types=("dots1",)):
    qk_norm = "head"


class Gemma4(Sparse, types=("gemma4_text",)):
    """Gemma 4: every sixth layer is global, with longer and fewer KV heads; small ones have an embedding a layer; the
    last layers of those read the cache of earlier ones; large ones have experts beside a dense feed-forward.
    """

    tied = True
    norms = Gemma3.norms
    qk_norm = "head"
    window_default = 512

    def default_head(self) -> int:
        return 256

    def default_experts(self) -> int:
        return 0

    def default_active(self) -> int:
        return 0

    def slides(self, index: int) -> bool:
        return (index + 1) % 6 != 0 and index != self.layers - 1

    def own_cache(self) -> int:
        """Layers that keep keys and values of their own; the rest reads those of the last one of its kind."""
        return self.layers - self.config.whole("num_kv_shared_layers", default=0, least=0, most="layers")

    def attention(self, index: int) -> Attention:
        c, window = self.config, self.window(index)
        if window:
            at = Attention(kind_of(self.heads, self.kv_heads), self.heads, self.kv_heads, self.head, self.head, window)
        else:
            same = c.flag("attention_k_eq_v")
            few = c.whole("num_global_key_value_heads", default=self.kv_heads, most="heads") if same else self.kv_heads
            long = c.whole("global_head_dim", default=512)
            at = Attention(kind_of(self.heads, few), self.heads, few, long, long)
        return at if index < self.own_cache() else without_cache(at, self.last_of_kind(window))

    def last_of_kind(self, window: int) -> int:
        return max((i for i in range(self.own_cache()) if bool(self.window(i)) == bool(window)), default=-1)

    def grouped(self, name: str, at: Attention, *, queries: int = 1) -> Iterator[Weight]:
        width = at.heads * at.key_length
        yield from linear(f"{name}.q_proj", queries * width, self.hidden)
        yield from linear(f"{name}.o_proj", self.hidden, width)
        yield from norm(f"{name}.q_norm", at.key_length)
        if at.shares_with < 0:
            yield from norm(f"{name}.k_norm", at.key_length)
            yield from linear(f"{name}.k_proj", at.kv_heads * at.key_length, self.hidden)
            if at.window or not self.config.flag("attention_k_eq_v"):
                yield from linear(f"{name}.v_proj", at.kv_heads * at.value_length, self.hidden)

    def feed_forward(self, index: int) -> Iterator[Weight]:
        name, at = self.prefix(index), self.at(index)
        wide = self.config.flag("use_double_wide_mlp") and at.shares_with >= 0
        yield from self.mlp(name + "mlp", 2 * self.inner if wide else self.inner)
        if self.count:
            yield Weight(name + "router.proj.weight", (self.count, self.hidden), Kind.EXACT)
            yield from exact(name + "router.scale", self.hidden)
            yield from exact(name + "router.per_expert_scale", self.count)
            yield from self.routed(name.removesuffix("."))
            for part in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
                yield from norm(name + part, self.hidden)
        if small := self.per_layer():
            yield from linear(name + "per_layer_input_gate", small, self.hidden)
            yield from linear(name + "per_layer_projection", self.hidden, small)
            yield from norm(name + "post_per_layer_input_norm", self.hidden)
        yield from exact(name + "layer_scalar", 1)

    def per_layer(self) -> int:
        return self.config.whole("hidden_size_per_layer_input", default=256, least=0)

    def embeddings(self) -> Iterator[Weight]:
        yield from super().embeddings()
        if small := self.per_layer():
            rows = self.config.whole("vocab_size_per_layer_input", default=262144, most="vocabulary")
            yield Weight(f"{self.root}embed_tokens_per_layer.weight", (rows, self.layers * small), Kind.EMBEDDING)
            yield from linear(f"{self.root}per_layer_model_projection", self.layers * small, self.hidden)
            yield from norm(f"{self.root}per_layer_projection_norm", small)

    def sparse(self, index: int) -> bool:  # noqa: ARG002 - all layers
        return self.count > 0


class Gemma3n(Gemma4, types=("gemma3n_text",)):
    """Gemma 3n (`altup` and `laurel` beside each layer)."""

    def attention(self, index: int) -> Attention:
        window = self.window(index)
        at = Attention(kind_of(self.heads, self.kv_heads), self.heads, self.kv_heads, self.head, self.head, window)
        return at if index < self.own_cache() else without_cache(at, self.last_of_kind(window))

    def own_cache(self) -> int:
        return self.layers - self.config.whole("num_kv_shared_layers", default=15, least=0, most="layers")

    def slides(self, index: int) -> bool:
        return (index + 1) % 5 != 0

    def default_heads(self) -> int:
        return 8

    def default_kv_heads(self) -> int:
        return 2

    def default_inner(self) -> int:
        return 16384

    def inner_width(self) -> int:
        widths = self.config.data.get("intermediate_size")
        if isinstance(widths, list) and widths:  # one a layer; they are equal in what was published
            return self.config.wholes("intermediate_size", least=1)[0]
        return super().inner_width()

    def feed_forward(self, index: int) -> Iterator[Weight]:
        name, hidden = self.prefix(index), self.hidden
        yield from self.mlp(name + "mlp", self.inner)
        small, inputs = self.per_layer(), self.inputs()
        yield from linear(name + "per_layer_input_gate", small, hidden)
        yield from linear(name + "per_layer_projection", hidden, small)
        yield from norm(name + "post_per_layer_input_norm", hidden)
        rank = self.config.whole("laurel_rank", default=64)
        yield from linear(name + "laurel.linear_left", rank, hidden)
        yield from linear(name + "laurel.linear_right", hidden, rank)
        yield from norm(name + "laurel.post_laurel_norm", hidden)
        yield from exact(name + "altup.correct_output_scale", hidden)
        yield from exact(name + "altup.correction_coefs.weight", inputs, inputs)
        yield from exact(name + "altup.prediction_coefs.weight", inputs * inputs, inputs)
        yield from exact(name + "altup.modality_router.weight", inputs, hidden)
        yield from norm(name + "altup.router_norm", hidden)

    def inputs(self) -> int:
        return self.config.whole("altup_num_inputs", default=4, most=64)

    def ending(self) -> Iterator[Weight]:
        yield from super().ending()
        for index in range(self.inputs() - 1):
            yield from linear(f"{self.root}altup_projections.{index}", self.hidden, self.hidden)
            yield from linear(f"{self.root}altup_unembed_projections.{index}", self.hidden, self.hidden)
