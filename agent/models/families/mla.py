"""Multi-head latent attention: DeepSeek and whoever builds like it.

Sources: `deepseek_v2`, `deepseek_v3`, `deepseek_v32`, `deepseek_v4`, `glm_moe_dsa`, `glm4_moe_lite` and `minicpm3` of
the `transformers` library (version 5.23).
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.models.config import Config
from agent.models.families.base import Family, Kind, Sparse, Weight, linear, norm
from agent.models.families.moe import predictor
from agent.models.profile import Attention, AttentionKind


def latent_attention(c: Config, heads: int, *, query_rank: int) -> tuple[Attention, int]:
    """The attention and the rank of the query's own compression (0: none)."""
    rank = query_rank
    if c.data.get("q_lora_rank") is not None:
        rank = c.whole("q_lora_rank")
    elif "q_lora_rank" in c.data:
        rank = 0
    rope = c.whole("qk_rope_head_dim", default=64)
    key = c.whole("qk_nope_head_dim", default=128) + rope
    value = c.whole("v_head_dim", default=128)
    latent = c.whole("kv_lora_rank", default=512)
    return Attention(AttentionKind.MLA, heads, 1, key, value, latent=latent, rope_length=rope), rank


def latent_projections(name: str, at: Attention, hidden: int, rank: int) -> Iterator[Weight]:
    queries = at.heads * at.key_length
    if rank:
        yield from linear(f"{name}.q_a_proj", rank, hidden)
        yield from norm(f"{name}.q_a_layernorm", rank)
        yield from linear(f"{name}.q_b_proj", queries, rank)
    else:
        yield from linear(f"{name}.q_proj", queries, hidden)
    yield from linear(f"{name}.kv_a_proj_with_mqa", at.latent + at.rope_length, hidden)
    yield from norm(f"{name}.kv_a_layernorm", at.latent)
    keys = at.key_length - at.rope_length + at.value_length
    yield from linear(f"{name}.kv_b_proj", at.heads * keys, at.latent)
    yield from linear(f"{name}.o_proj", hidden, at.heads * at.value_length)


class DeepseekV2(Sparse, types=("deepseek_v2",)):
    dense_first = 0

    def attention(self, index: int) -> Attention:  # noqa: ARG002 - all layers are alike
        at, self.rank = latent_attention(self.config, self.heads, query_rank=self.default_query_rank())
        return at

    def default_query_rank(self) -> int:
        return 1536

    def mixer(self, index: int) -> Iterator[Weight]:
        yield from latent_projections(self.prefix(index) + "self_attn", self.at(index), self.hidden, self.rank)

    def default_experts(self) -> int:
        return 64

    def default_active(self) -> int:
        return 6

    def default_head(self) -> int:
        return 64  # only the rotary part, which nothing here uses

    def expert_width(self) -> int:
        return self.config.whole("moe_intermediate_size", default=1407)

    def sparse(self, index: int) -> bool:
        kinds = self.config.per_layer("mlp_layer_types", self.layers)
        if kinds:
            return kinds[min(index, self.layers - 1)] == "sparse"
        frequency = self.config.whole("moe_layer_freq", default=1, most="layers")
        dense = self.config.whole("first_k_dense_replace", default=self.dense_first, least=0, most="layers")
        return index >= dense and index % frequency == 0

    def shared(self) -> tuple[int, int]:
        number = self.config.whole(
            "n_shared_experts", "num_shared_experts", default=self.default_shared(), least=0, most="experts"
        )
        return number, number * self.width

    def default_shared(self) -> int:
        return 2


class DeepseekV3(DeepseekV2, types=("deepseek_v3", "kimi_k2", "glm4_moe_lite")):
    """DeepSeek-V3 and R1, Kimi-K2, GLM-4.7-Flash. The checkpoint's last layer predicts a second token."""

    correction = "gate.e_score_correction_bias"
    dense_first = 3

    def default_experts(self) -> int:
        return 256

    def default_active(self) -> int:
        return 8

    def expert_width(self) -> int:
        return self.config.whole("moe_intermediate_size", default=2048)

    def default_shared(self) -> int:
        return 1

    def mtp_layers(self) -> int:
        return self.config.whole("num_nextn_predict_layers", default=0, least=0, most="layers")

    def mtp(self) -> Iterator[Weight]:
        for number in range(self.mtp_layers()):
            yield from predictor(self, self.layers + number)


class DeepseekV32(DeepseekV3, types=("deepseek_v32", "glm_moe_dsa")):
    """Sparse attention: an indexer with a key of its own for each token picks what is attended to. GLM-5 too."""

    def indexer(self) -> tuple[int, int]:
        """Heads and their length."""
        c = self.config
        glm = c.text("model_type") == "glm_moe_dsa"
        heads = c.whole("index_n_heads", default=32 if glm else 64, most="heads")
        return heads, c.whole("index_head_dim", default=128)

    def attention(self, index: int) -> Attention:
        at = super().attention(index)
        length = self.indexer()[1] if self.indexes(index) else 0
        return Attention(
            at.kind, at.heads, 1, at.key_length, at.value_length,
            latent=at.latent, rope_length=at.rope_length, index_length=length,
        )  # fmt: skip

    def indexes(self, index: int) -> bool:
        """GLM-5.2 lets some layers reuse the choice of an earlier one."""
        kinds = self.config.per_layer("indexer_types", self.layers)
        return not kinds or kinds[min(index, self.layers - 1)] != "shared"

    def mixer(self, index: int) -> Iterator[Weight]:
        yield from super().mixer(index)
        if not self.indexes(index):
            return
        name, (heads, length) = self.prefix(index) + "self_attn.indexer", self.indexer()
        yield from linear(f"{name}.wq_b", heads * length, self.rank or self.hidden)
        yield from linear(f"{name}.wk", length, self.hidden)
        yield from norm(f"{name}.k_norm", length, bias=True)
        yield Weight(f"{name}.weights_proj.weight", (heads, self.hidden), Kind.EXACT)


class DeepseekV4(Sparse, types=("deepseek_v4", "deepseek_ref")):
    """One key-value head for all, a short window, and a compressed cache behind it; residual streams in parallel
    ("hyper-connections"). Names are those of the checkpoint, which are not those of `transformers`.
    """

    root = ""
    shared_name = "shared_experts"
    block = "ffn"
    norms = ("attn_norm", "ffn_norm")
    expert_parts = ("w1", "w3", "w2")

    def default_head(self) -> int:
        return 512

    def default_inner(self) -> int:
        return self.config.whole("moe_intermediate_size")

    def shared(self) -> tuple[int, int]:
        number = self.config.whole("n_shared_experts", default=1, least=0, most="experts")
        return number, number * self.width

    def ratio(self, index: int) -> int:
        """Tokens that share one compressed entry: 4 (with an indexer), 128, or none."""
        ratios = self.config.wholes("compress_ratios")
        return ratios[index] if len(ratios) > index else 0

    def attention(self, index: int) -> Attention:
        c, ratio = self.config, self.ratio(index)
        window = c.whole("sliding_window", default=128, least=0, most="tokens")
        length = c.whole("index_head_dim", default=128) if ratio == 4 else 0
        return Attention(
            AttentionKind.MQA, self.heads, 1, self.head, 0, window, index_length=length, compression=ratio
        )  # fmt: skip

    def mixer(self, index: int) -> Iterator[Weight]:
        c, name, hidden, head = self.config, self.prefix(index) + "attn", self.hidden, self.head
        rank = c.whole("q_lora_rank", default=1024)
        groups, out_rank = c.whole("o_groups", default=8), c.whole("o_lora_rank", default=1024)
        yield Weight(f"{name}.attn_sink", (self.heads,), Kind.FLOAT)
        yield from linear(f"{name}.wq_a", rank, hidden)
        yield from norm(f"{name}.q_norm", rank)
        yield from linear(f"{name}.wq_b", self.heads * head, rank)
        yield from linear(f"{name}.wkv", head, hidden)
        yield from norm(f"{name}.kv_norm", head)
        yield from linear(f"{name}.wo_a", groups * out_rank, self.heads * head // groups)
        yield from linear(f"{name}.wo_b", hidden, groups * out_rank)
        if ratio := 0 if index >= self.layers else self.ratio(index):
            overlap = 2 if ratio == 4 else 1  # windows of the short ratio overlap: two entries are kept
            yield from self.compressor(f"{name}.compressor", ratio, overlap * head, head)
            if ratio == 4:
                heads, length = (
                    c.whole("index_n_heads", default=64, most="heads"),
                    c.whole("index_head_dim", default=128),
                )
                yield from self.compressor(f"{name}.indexer.compressor", ratio, overlap * length, length)
                yield from linear(f"{name}.indexer.wq_b", heads * length, rank)
                yield Weight(f"{name}.indexer.weights_proj.weight", (heads, hidden), Kind.EXACT)
        yield from self.streams(self.prefix(index) + "hc_attn")

    def compressor(self, name: str, ratio: int, width: int, length: int) -> Iterator[Weight]:
        yield Weight(f"{name}.ape", (ratio, width), Kind.FLOAT)
        yield Weight(f"{name}.wkv.weight", (width, self.hidden), Kind.EXACT)
        yield Weight(f"{name}.wgate.weight", (width, self.hidden), Kind.EXACT)
        yield from norm(f"{name}.norm", length)

    def streams(self, name: str) -> Iterator[Weight]:
        """The mixing of the parallel residual streams."""
        many = self.config.whole("hc_mult", default=4, most=64)
        yield Weight(f"{name}_fn", ((2 + many) * many, many * self.hidden), Kind.FLOAT)
        yield Weight(f"{name}_base", ((2 + many) * many,), Kind.FLOAT)
        yield Weight(f"{name}_scale", (3,), Kind.FLOAT)

    def feed_forward(self, index: int) -> Iterator[Weight]:
        yield from super().feed_forward(index)
        hashed = index < self.config.whole("num_hash_layers", default=0, least=0, most="layers")
        if hashed:  # a table from token to experts instead of a learned choice
            yield Weight(f"{self.prefix(index)}ffn.gate.tid2eid", (self.vocabulary, self.active), Kind.EXACT)
        else:
            yield Weight(f"{self.prefix(index)}ffn.gate.bias", (self.count,), Kind.FLOAT)
        yield from self.streams(self.prefix(index) + "hc_ffn")

    def embeddings(self) -> Iterator[Weight]:
        yield Weight("embed.weight", (self.vocabulary, self.hidden), Kind.EMBEDDING)

    def ending(self) -> Iterator[Weight]:
        yield from norm("norm", self.hidden)
        many = self.config.whole("hc_mult", default=4, most=64)
        yield Weight("hc_head_fn", (many, many * self.hidden), Kind.FLOAT)
        yield Weight("hc_head_base", (many,), Kind.FLOAT)
        yield Weight("hc_head_scale", (1,), Kind.FLOAT)

    def head_weights(self) -> Iterator[Weight]:
        yield Weight("head.weight", (self.vocabulary, self.hidden), Kind.HEAD)

    def mtp_layers(self) -> int:
        return self.config.whole("num_nextn_predict_layers", default=0, least=0, most="layers")

    def mtp(self) -> Iterator[Weight]:
        many = self.config.whole("hc_mult", default=4, most=64)
        for number in range(self.mtp_layers()):
            for weight in self.layer(self.layers + number):
                yield Weight(weight.name.replace(f"layers.{self.layers + number}", f"mtp.{number}"), *_rest(weight))
            name = f"mtp.{number}"
            for part in ("e_proj", "h_proj"):
                yield from linear(f"{name}.{part}", self.hidden, self.hidden)
            for part in ("enorm", "hnorm", "norm"):
                yield from norm(f"{name}.{part}", self.hidden)
            yield Weight(f"{name}.hc_head_fn", (many, many * self.hidden), Kind.FLOAT)
            yield Weight(f"{name}.hc_head_base", (many,), Kind.FLOAT)
            yield Weight(f"{name}.hc_head_scale", (1,), Kind.FLOAT)


def _rest(weight: Weight) -> tuple[tuple[int, ...], Kind, int]:
    return weight.shape, weight.kind, weight.count


class MiniCpm3(Family, types=("minicpm3",)):
    tied = True

    def attention(self, index: int) -> Attention:  # noqa: ARG002 - all layers are alike
        at, self.rank = latent_attention(self.config, self.heads, query_rank=768)
        return at

    def mixer(self, index: int) -> Iterator[Weight]:
        yield from latent_projections(self.prefix(index) + "self_attn", self.at(index), self.hidden, self.rank)


class KimiLinear(DeepseekV3, types=("kimi_linear",)):
    """Three layers of Kimi delta attention, then one of MLA. K3 has more in it than is known here."""

    dense_first = 1

    def covers(self) -> bool:
        return not any(
            key in self.config for key in ("latent_moe_use_norm", "mla_use_output_gate", "attn_res_block_size")
        )

    def linear_layer(self, index: int) -> bool:
        kinds = self.config.per_layer("layer_types", self.layers)
        if kinds:
            return kinds[min(index, self.layers - 1)] == "linear_attention"
        return index + 1 in self.config.section("linear_attn_config").wholes("kda_layers")

    def delta(self) -> tuple[int, int, int]:
        """Heads, their length, and the convolution's width in tokens."""
        old, c = self.config.section("linear_attn_config"), self.config
        heads = old.whole("num_heads", default=c.whole("linear_num_heads", default=32, most="heads"), most="heads")
        length = old.whole("head_dim", default=c.whole("linear_head_dim", default=128))
        kernel = c.whole("linear_conv_kernel_dim", default=4, most=64)
        return heads, length, old.whole("short_conv_kernel_size", default=kernel, most=64)

    def attention(self, index: int) -> Attention:
        at = super().attention(index)  # also where it is not used: it finds the query's rank
        if not self.linear_layer(index):
            return at
        heads, length, kernel = self.delta()
        kept, state = 3 * heads * length * (kernel - 1), heads * length * length
        return Attention(AttentionKind.LINEAR, conv_elements=kept, state_elements=state)

    def default_query_rank(self) -> int:
        return 0

    def mixer(self, index: int) -> Iterator[Weight]:
        if index >= self.layers or not self.linear_layer(index):
            yield from super().mixer(index)
            return
        name, hidden, (heads, length, kernel) = self.prefix(index) + "self_attn", self.hidden, self.delta()
        width = heads * length
        for part in ("q_proj", "k_proj", "v_proj"):
            yield from linear(f"{name}.{part}", width, hidden)
        for part in ("q_conv1d", "k_conv1d", "v_conv1d"):
            yield Weight(f"{name}.{part}.weight", (width, 1, kernel), Kind.EXACT)
        for part in ("f", "g"):
            yield from linear(f"{name}.{part}_a_proj", length, hidden)
            yield from linear(f"{name}.{part}_b_proj", width, length)
        yield from linear(f"{name}.b_proj", heads, hidden)
        yield Weight(f"{name}.dt_bias", (width,), Kind.EXACT)
        yield Weight(f"{name}.A_log", (1, 1, heads, 1), Kind.EXACT)
        yield from norm(f"{name}.o_norm", length)
        yield from linear(f"{name}.o_proj", hidden, width)
