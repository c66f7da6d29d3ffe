"""Layers that keep a state of fixed size instead of, or beside, keys and values.

Sources: the modelling files of the `transformers` library, one folder a model type (version 5.23); for Nemotron-NAS
`modeling_decilm.py` of nvidia/Llama-3_3-Nemotron-Super-49B-v1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from agent.models.config import Config
from agent.models.families.base import Family, Kind, Sparse, Weight, exact, kind_of, linear, norm
from agent.models.families.moe import GraniteMoe, Qwen2Moe
from agent.models.profile import Attention, AttentionKind


@dataclass(frozen=True, slots=True)
class Mamba2Mixer:
    """The shapes of a Mamba-2 mixer. `inner` is heads x head length."""

    heads: int
    length: int
    groups: int
    state: int
    kernel: int
    gate_norm: bool = True
    conv_bias: bool = True
    proj_bias: bool = False

    @property
    def inner(self) -> int:
        return self.heads * self.length

    @property
    def conv(self) -> int:
        return self.inner + 2 * self.groups * self.state

    def attention(self) -> Attention:
        kept = self.conv * (self.kernel - 1)
        return Attention(AttentionKind.MAMBA, conv_elements=kept, state_elements=self.inner * self.state)

    def weights(self, name: str, hidden: int) -> Iterator[Weight]:
        yield from linear(f"{name}.in_proj", self.inner + self.conv + self.heads, hidden, bias=self.proj_bias)
        yield from exact(f"{name}.conv1d.weight", self.conv, 1, self.kernel)
        if self.conv_bias:
            yield from exact(f"{name}.conv1d.bias", self.conv)
        for part in ("A_log", "D", "dt_bias"):
            yield from exact(f"{name}.{part}", self.heads)
        if self.gate_norm:
            yield from norm(f"{name}.norm", self.inner)
        yield from linear(f"{name}.out_proj", hidden, self.inner, bias=self.proj_bias)


@dataclass(frozen=True, slots=True)
class Mamba1Mixer:
    inner: int
    state: int
    kernel: int
    rank: int
    norms: bool = False  # Jamba's norms on the time step, B and C
    conv_bias: bool = True
    proj_bias: bool = False

    def attention(self) -> Attention:
        kept = self.inner * (self.kernel - 1)
        return Attention(AttentionKind.MAMBA, conv_elements=kept, state_elements=self.inner * self.state)

    def weights(self, name: str, hidden: int) -> Iterator[Weight]:
        yield from linear(f"{name}.in_proj", 2 * self.inner, hidden, bias=self.proj_bias)
        yield from exact(f"{name}.conv1d.weight", self.inner, 1, self.kernel)
        if self.conv_bias:
            yield from exact(f"{name}.conv1d.bias", self.inner)
        yield from linear(f"{name}.x_proj", self.rank + 2 * self.state, self.inner)
        yield from linear(f"{name}.dt_proj", self.inner, self.rank, bias=True)
        yield from exact(f"{name}.A_log", self.inner, self.state)
        yield from exact(f"{name}.D", self.inner)
        if self.norms:
            yield from norm(f"{name}.dt_layernorm", self.rank)
            yield from norm(f"{name}.b_layernorm", self.state)
            yield from norm(f"{name}.c_layernorm", self.state)
        yield from linear(f"{name}.out_proj", hidden, self.inner, bias=self.proj_bias)


class DeltaNet(Family, types=("qwen3_5_text",)):
    """Qwen3.5: three layers with a gated delta net, then one with attention and an output gate."""

    qk_norm = "head"

    def default_head(self) -> int:
        return 256

    def linear_layer(self, index: int) -> bool:
        kinds = self.config.per_layer("layer_types", self.layers)
        if kinds:
            return kinds[min(index, self.layers - 1)] == "linear_attention"
        return (index + 1) % self.config.whole("full_attention_interval", default=4, most="layers") != 0

    def delta(self) -> tuple[int, int, int]:
        """Widths of all keys and all values, and the number of value heads."""
        c = self.config
        keys = c.whole("linear_num_key_heads", default=16, most="heads") * c.whole("linear_key_head_dim", default=128)
        heads = c.whole("linear_num_value_heads", default=32, most="heads")
        return keys, heads * c.whole("linear_value_head_dim", default=128), heads

    def attention(self, index: int) -> Attention:
        if not self.linear_layer(index):
            return super().attention(index)
        keys, values, _ = self.delta()
        kept = (2 * keys + values) * (self.config.whole("linear_conv_kernel_dim", default=4, most=64) - 1)
        state = values * self.config.whole("linear_key_head_dim", default=128)
        return Attention(AttentionKind.LINEAR, conv_elements=kept, state_elements=state)

    def mixer(self, index: int) -> Iterator[Weight]:
        name = self.prefix(index)
        if index >= self.layers or not self.linear_layer(index):
            yield from self.grouped(name + "self_attn", super().attention(index), queries=2)
            return
        name += "linear_attn"
        keys, values, heads = self.delta()
        yield from self.inputs(name, keys, values, heads)
        yield from exact(
            f"{name}.conv1d.weight", 2 * keys + values, 1, self.config.whole("linear_conv_kernel_dim", default=4)
        )
        yield from exact(f"{name}.A_log", heads)
        yield from exact(f"{name}.dt_bias", heads)
        yield from norm(f"{name}.norm", self.config.whole("linear_value_head_dim", default=128))
        yield from linear(f"{name}.out_proj", self.hidden, values)

    def inputs(self, name: str, keys: int, values: int, heads: int) -> Iterator[Weight]:
        yield from linear(f"{name}.in_proj_qkv", 2 * keys + values, self.hidden)
        yield from linear(f"{name}.in_proj_z", values, self.hidden)
        for part in ("in_proj_b", "in_proj_a"):  # too narrow for any quantization's blocks
            yield Weight(f"{name}.{part}.weight", (heads, self.hidden), Kind.EXACT)

    def mtp_layers(self) -> int:
        return self.config.whole("mtp_num_hidden_layers", default=0, least=0, most="layers")

    def mtp(self) -> Iterator[Weight]:
        if not (count := self.mtp_layers()):
            return
        yield Weight("mtp.fc.weight", (self.hidden, 2 * self.hidden), Kind.EXACT)
        for part in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
            yield from norm(f"mtp.{part}", self.hidden)
        for number in range(count):
            behind = self.prefix(self.layers + number)
            for weight in self.layer(self.layers + number):
                yield replace(weight, name=weight.name.replace(behind, f"mtp.layers.{number}."))


class Qwen35Moe(DeltaNet, Qwen2Moe, types=("qwen3_5_moe_text",)):
    qkv_bias = out_bias = "attention_bias"

    def shared(self) -> tuple[int, int]:
        return 1, self.config.whole("shared_expert_intermediate_size", default=512)

    def default_inner(self) -> int:
        return self.config.whole("moe_intermediate_size", default=512)


class Qwen3Next(Qwen35Moe, types=("qwen3_next",)):
    def mtp_layers(self) -> int:
        """Its configuration does not name the one layer that the checkpoint ships."""
        return self.config.whole("mtp_num_hidden_layers", "num_nextn_predict_layers", default=1, least=0, most="layers")

    def inputs(self, name: str, keys: int, values: int, heads: int) -> Iterator[Weight]:
        yield from linear(f"{name}.in_proj_qkvz", 2 * keys + 2 * values, self.hidden)
        yield Weight(f"{name}.in_proj_ba.weight", (2 * heads, self.hidden), Kind.EXACT)


class NemotronH(Sparse, types=("nemotron_h",)):
    """Each layer is one thing: Mamba-2 (M), attention (*), feed-forward (-) or experts (E)."""

    root = "backbone."
    block = "mixer"
    norms = ("norm",)
    final_norm = "norm_f"
    gated = False
    correction = "gate.e_score_correction_bias"
    expert_parts = ("up_proj", "down_proj")

    def default_layers(self) -> int | None:
        return len(self.config.texts("layers_block_type")) or len(self.config.text("hybrid_override_pattern")) or None

    def default_experts(self) -> int:
        return 0

    def default_active(self) -> int:
        return 0

    def default_head(self) -> int:
        return self.config.whole("attention_head_dim", default=128)

    def kind(self, index: int) -> str:
        if listed := self.config.per_layer("layers_block_type", self.layers):
            return {"mamba": "M", "attention": "*", "mlp": "-", "moe": "E"}.get(listed[index], "?")
        pattern = self.config.text("hybrid_override_pattern")
        if len(pattern) != self.layers:
            raise self.config.wrong("hybrid_override_pattern", f"must have {self.layers} letters, one a layer")
        return pattern[index]

    def mamba(self) -> Mamba2Mixer:
        c = self.config
        return Mamba2Mixer(
            heads=c.whole("mamba_num_heads", default=128, most="heads"),
            length=c.whole("mamba_head_dim", default=64),
            groups=c.whole("n_groups", default=8, most="heads"),
            state=c.whole("ssm_state_size", default=128),
            kernel=c.whole("conv_kernel", default=4, most=64),
            conv_bias=c.flag("use_conv_bias", default=True),
            proj_bias=c.flag("mamba_proj_bias"),
        )

    def sparse(self, index: int) -> bool:
        return self.kind(index) == "E"

    def attention(self, index: int) -> Attention:
        match self.kind(index):
            case "M":
                return self.mamba().attention()
            case "*":
                return super().attention(index)
            case "-" | "E":
                return Attention(AttentionKind.NONE)
        raise self.config.odd(f"layer {index} is of a kind that is none of M, *, - and E")

    def layer(self, index: int) -> Iterator[Weight]:
        yield from norm(self.prefix(index) + "norm", self.hidden)
        yield from self.part(self.kind(index), self.prefix(index) + "mixer")

    def part(self, kind: str, name: str) -> Iterator[Weight]:
        match kind:
            case "M":
                yield from self.mamba().weights(name, self.hidden)
            case "*":
                yield from self.grouped(name, super().attention(0))
            case "-":
                yield from self.mlp(name, self.inner)
            case _:
                yield from self.moe(name)

    def shared(self) -> tuple[int, int]:
        number = self.config.whole("n_shared_experts", default=1, least=0, most="experts")
        return number, number * self.config.whole("moe_shared_expert_intermediate_size", default=self.width)

    def routed(self, name: str) -> Iterator[Weight]:
        """Super and Ultra project to a narrower width before the experts, and back."""
        narrow = self.config.whole("moe_latent_size", default=self.hidden)
        yield Weight(f"{name}.experts.0.up_proj.weight", (self.width, narrow), Kind.LINEAR, self.count)
        yield Weight(f"{name}.experts.0.down_proj.weight", (narrow, self.width), Kind.LINEAR, self.count)
        if narrow != self.hidden:
            yield from linear(f"{name}.fc1_latent_proj", narrow, self.hidden)
            yield from linear(f"{name}.fc2_latent_proj", self.hidden, narrow)

    def embeddings(self) -> Iterator[Weight]:
        yield Weight(self.root + "embeddings.weight", (self.vocabulary, self.hidden), Kind.EMBEDDING)

    def mtp_layers(self) -> int:
        return self.config.whole("num_nextn_predict_layers", default=0, least=0, most="layers")

    def mtp(self) -> Iterator[Weight]:
        """Each layer is a run of `mtp_hybrid_override_pattern`; its first part takes in the embedding."""
        pattern = self.config.text("mtp_hybrid_override_pattern", default="*E")
        for start in range(0, self.mtp_layers() * len(pattern), len(pattern)):
            yield Weight(f"mtp.layers.{start}.eh_proj.weight", (self.hidden, 2 * self.hidden), Kind.EXACT)
            for part in ("enorm", "hnorm", "final_layernorm"):
                yield from norm(f"mtp.layers.{start}.{part}", self.hidden)
            for number, kind in enumerate(pattern):
                yield from norm(f"mtp.layers.{start + number}.norm", self.hidden)
                yield from self.part(kind, f"mtp.layers.{start + number}.mixer")


class Mamba(Family, types=("mamba", "falcon_mamba")):
    """Mamba 1: no attention at all."""

    root = "backbone."
    tied = True
    norms = ("norm",)
    final_norm = "norm_f"

    def default_heads(self) -> int:
        return 1

    def default_inner(self) -> int:
        return self.config.whole("expand", default=2, most=64) * self.hidden

    def state_size(self) -> Mamba1Mixer | Mamba2Mixer:
        c = self.config
        return Mamba1Mixer(
            inner=self.inner,
            state=c.whole("state_size", default=16),
            kernel=c.whole("conv_kernel", default=4, most=64),
            rank=-(-self.hidden // 16) if c.automatic("time_step_rank") else c.whole("time_step_rank"),
            conv_bias=c.flag("use_conv_bias", default=True),
            proj_bias=c.flag("use_bias"),
        )

    def attention(self, index: int) -> Attention:  # noqa: ARG002 - all layers are alike
        return self.state_size().attention()

    def layer(self, index: int) -> Iterator[Weight]:
        yield from norm(self.prefix(index) + "norm", self.hidden)
        yield from self.state_size().weights(self.prefix(index) + "mixer", self.hidden)

    def embeddings(self) -> Iterator[Weight]:
        yield Weight(self.root + "embeddings.weight", (self.vocabulary, self.hidden), Kind.EMBEDDING)


class Mamba2(Mamba, types=("mamba2",)):
    tied = False

    def default_heads(self) -> int:
        return self.config.whole("num_heads", default=128, most="heads")

    def default_head(self) -> int:
        return 64

    def state_size(self) -> Mamba2Mixer:
        c = self.config
        return Mamba2Mixer(
            heads=c.whole("num_heads", default=128, most="heads"),
            length=c.whole("head_dim", default=64),
            groups=c.whole("n_groups", default=8, most="heads"),
            state=c.whole("state_size", default=128),
            kernel=c.whole("conv_kernel", default=4, most=64),
            conv_bias=c.flag("use_conv_bias", default=True),
            proj_bias=c.flag("use_bias"),
        )


def bamba_mixer(c: Config, hidden: int, *, gate_norm: bool, inner: int | None = None) -> Mamba2Mixer:
    """The keys that Bamba, Falcon-H1 and Granite 4 share."""
    heads = c.whole("mamba_n_heads", default=128, most="heads")
    width = inner or c.whole("mamba_expand", default=2, most=64) * hidden
    return Mamba2Mixer(
        heads=heads,
        length=width // heads if c.automatic("mamba_d_head") else c.whole("mamba_d_head"),
        groups=c.whole("mamba_n_groups", default=1, most="heads"),
        state=c.whole("mamba_d_state", default=256),
        kernel=c.whole("mamba_d_conv", default=4, most=64),
        gate_norm=gate_norm,
        conv_bias=c.flag("mamba_conv_bias", default=True),
        proj_bias=c.flag("mamba_proj_bias"),
    )


class Bamba(Family, types=("bamba",)):
    norms = ("input_layernorm", "pre_ff_layernorm")
    final_norm = "final_layernorm"
    mlp_name = "feed_forward"

    def recurrent(self, index: int) -> bool:
        kinds = self.config.per_layer("layer_types", self.layers)
        if kinds:
            return kinds[index] not in {"attention", "full_attention"}
        return index not in self.config.wholes("attn_layer_indices")

    def attention(self, index: int) -> Attention:
        if self.recurrent(index):
            return bamba_mixer(self.config, self.hidden, gate_norm=True).attention()
        return super().attention(index)

    def mixer(self, index: int) -> Iterator[Weight]:
        if self.recurrent(index):
            name = self.prefix(index) + "mamba"
            yield from bamba_mixer(self.config, self.hidden, gate_norm=True).weights(name, self.hidden)
        else:
            yield from super().mixer(index)


class GraniteHybrid(GraniteMoe, types=("granitemoehybrid",)):
    """Granite 4: Mamba-2 or attention, then experts or one shared feed-forward."""

    def default_experts(self) -> int:
        return 0

    def default_active(self) -> int:
        return 0

    def recurrent(self, index: int) -> bool:
        kinds = self.config.per_layer("layer_types", self.layers) or self.config.per_layer(
            "layers_block_type", self.layers
        )
        return not kinds or kinds[index] not in {"attention", "full_attention"}

    def mamba(self) -> Mamba2Mixer:
        return bamba_mixer(self.config, self.hidden, gate_norm=True)

    def attention(self, index: int) -> Attention:
        return self.mamba().attention() if self.recurrent(index) else super().attention(index)

    def mixer(self, index: int) -> Iterator[Weight]:
        if self.recurrent(index):
            yield from self.mamba().weights(self.prefix(index) + "mamba", self.hidden)
        else:
            yield from super().mixer(index)

    def shared(self) -> tuple[int, int]:
        return 0, 0

    def feed_forward(self, index: int) -> Iterator[Weight]:
        if self.count:
            yield from self.moe(self.prefix(index) + self.block)
        width = self.config.whole("shared_intermediate_size", default=1024)
        yield from linear(self.prefix(index) + "shared_mlp.input_linear", 2 * width, self.hidden)
        yield from linear(self.prefix(index) + "shared_mlp.output_linear", self.hidden, width)


class FalconH1(Family, types=("falcon_h1",)):
    """Attention and Mamba-2 side by side in every layer."""

    norms = ("input_layernorm", "pre_ff_layernorm")
    final_norm = "final_layernorm"
    mlp_name = "feed_forward"
    out_bias = "attention_bias"

    def mamba(self) -> Mamba2Mixer:
        c = self.config
        inner = c.whole("mamba_d_ssm", default=1024) if "mamba_d_ssm" in c else None
        return bamba_mixer(c, self.hidden, gate_norm=c.flag("mamba_rms_norm"), inner=inner)

    def attention(self, index: int) -> Attention:
        state = self.mamba().attention()
        return replace(
            super().attention(index),
            conv_elements=state.conv_elements,
            state_elements=state.state_elements,
            parallel=True,
        )

    def mixer(self, index: int) -> Iterator[Weight]:
        yield from super().mixer(index)
        yield from self.mamba().weights(self.prefix(index) + "mamba", self.hidden)


class Jamba(Sparse, types=("jamba",)):
    block = mlp_name = "feed_forward"
    router = "router"
    norms = ("input_layernorm", "pre_ff_layernorm")
    final_norm = "final_layernorm"
    qkv_bias = out_bias = mlp_bias = False

    def default_experts(self) -> int:
        return 16

    def default_active(self) -> int:
        return 2

    def expert_width(self) -> int:
        return self.inner

    def every(self, what: str, index: int, default: tuple[int, int]) -> bool:
        period = self.config.whole(f"{what}_layer_period", default=default[0], most="layers")
        return index % period == self.config.whole(f"{what}_layer_offset", default=default[1], least=0, most="layers")

    def sparse(self, index: int) -> bool:
        return self.count > 1 and self.every("expert", index, (2, 1))

    def mamba(self) -> Mamba1Mixer:
        c = self.config
        return Mamba1Mixer(
            inner=c.whole("mamba_expand", default=2, most=64) * self.hidden,
            state=c.whole("mamba_d_state", default=16),
            kernel=c.whole("mamba_d_conv", default=4, most=64),
            rank=-(-self.hidden // 16) if c.automatic("mamba_dt_rank") else c.whole("mamba_dt_rank"),
            norms=True,
            conv_bias=c.flag("mamba_conv_bias", default=True),
            proj_bias=c.flag("mamba_proj_bias"),
        )

    def attention(self, index: int) -> Attention:
        return super().attention(index) if self.every("attn", index, (8, 4)) else self.mamba().attention()

    def mixer(self, index: int) -> Iterator[Weight]:
        if self.every("attn", index, (8, 4)):
            yield from super().mixer(index)
        else:
            yield from self.mamba().weights(self.prefix(index) + "mamba", self.hidden)


class Lfm2(Family, types=("lfm2",)):
    """LFM2: short convolutions, and attention in some layers."""

    tied = True
    mlp_name = "feed_forward"
    norms = ("operator_norm", "ffn_norm")
    final_norm = "embedding_norm"
    qk_norm = "head"
    qkv_bias = out_bias = mlp_bias = False

    def inner_width(self) -> int:
        c = self.config
        inner = c.whole("block_ff_dim", "intermediate_size", default=12288)
        if c.flag("block_auto_adjust_ff_dim", default=c.text("model_type") == "lfm2"):
            multiple = c.whole("block_multiple_of", default=256)
            inner = int(2 * inner / 3)
            inner = int(c.real("block_ffn_dim_multiplier", 1.0) * inner)
            inner = -(-inner // multiple) * multiple
        return inner

    def convolves(self, index: int) -> bool:
        kinds = self.config.per_layer("layer_types", self.layers)
        listed = self.config.wholes("full_attn_idxs")
        if kinds:
            return kinds[index] != "full_attention"
        return bool(listed) and index not in listed

    def attention(self, index: int) -> Attention:
        if not self.convolves(index):
            return super().attention(index)
        kept = self.hidden * self.config.whole("conv_L_cache", default=3, most=64)
        return Attention(AttentionKind.MAMBA, conv_elements=kept)

    def mixer(self, index: int) -> Iterator[Weight]:
        if not self.convolves(index):
            yield from super().mixer(index)
            return
        name, bias = self.prefix(index) + "conv", self.config.flag("conv_bias")
        yield from linear(f"{name}.in_proj", 3 * self.hidden, self.hidden, bias=bias)
        yield from exact(f"{name}.conv.weight", self.hidden, 1, self.config.whole("conv_L_cache", default=3, most=64))
        if bias:
            yield from exact(f"{name}.conv.bias", self.hidden)
        yield from linear(f"{name}.out_proj", self.hidden, self.hidden, bias=bias)


class Lfm2Moe(Lfm2, Sparse, types=("lfm2_moe",)):
    block = "feed_forward"
    correction = "expert_bias"

    def sparse(self, index: int) -> bool:
        return index >= self.config.whole("num_dense_layers", default=2, least=0, most="layers")


class NemotronNas(Family, types=("nemotron-nas",)):
    """Llama with blocks that a search made narrower, linear, or took out (`block_configs`)."""

    def default_inner(self) -> int:
        return 0

    def block(self, index: int) -> Config:
        blocks = self.config.data.get("block_configs")
        if not isinstance(blocks, list) or len(blocks) < self.layers or not isinstance(blocks[index], dict):
            raise self.config.wrong("block_configs", f"must be a list of {self.layers} objects")
        return Config(blocks[index], f"{self.config.path}: block_configs[{index}]")

    def attention(self, index: int) -> Attention:
        at = self.block(index).section("attention")
        if at.flag("no_op") or at.flag("replace_with_linear"):
            return Attention(AttentionKind.NONE)
        kv_heads = self.heads // at.whole("n_heads_in_group", most=self.heads)
        window = at.whole("window_length", default=0, least=0, most="tokens")
        return Attention(kind_of(self.heads, kv_heads), self.heads, kv_heads, self.head, self.head, window)

    def mixer(self, index: int) -> Iterator[Weight]:
        at, name = self.block(index).section("attention"), self.prefix(index) + "self_attn"
        if at.flag("replace_with_linear"):
            yield from linear(f"{name}.linear_attn", self.hidden, self.hidden)
        elif not at.flag("no_op"):
            yield from self.grouped(name, self.at(index))
        if not at.flag("no_op"):
            yield from norm(self.prefix(index) + "input_layernorm", self.hidden)

    def feed_forward(self, index: int) -> Iterator[Weight]:
        ffn, name = self.block(index).section("ffn"), self.prefix(index) + "mlp"
        if ffn.flag("no_op"):
            return
        yield from norm(self.prefix(index) + "post_attention_layernorm", self.hidden)
        if ffn.flag("replace_with_linear"):
            yield from linear(f"{name}.linear_mlp", self.hidden, self.hidden)
            return
        inner = ffn.whole("intermediate_size", default=0, least=0)
        if not inner:
            inner = -(-int(2 * ffn.real("ffn_mult") * self.hidden / 3) // 256) * 256
        yield from self.mlp(name, inner)

    def layer_norms(self, index: int) -> Iterator[Weight]:  # noqa: ARG002 - they go with their parts
        return iter(())
