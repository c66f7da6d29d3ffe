"""The words in which architectures are written down: weights with their names and shapes, layer by layer.

Names are those of the published checkpoints as far as quantization configurations refer to them; shapes are
[output, input], as PyTorch stores them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar

from agent.models.config import Config
from agent.models.profile import Attention, AttentionKind, Experts


class Kind(StrEnum):
    LINEAR = "linear"  # what quantization methods convert
    HEAD = "head"  # the output head: converted by few
    EMBEDDING = "embedding"
    EXACT = "exact"  # norms, biases, routers, convolutions: stay as they are
    FLOAT = "float"  # kept in 32 bit by everybody: routers' correction biases


@dataclass(frozen=True, slots=True)
class Weight:
    """`count` equal tensors; the name is that of the first one."""

    name: str
    shape: tuple[int, ...]
    kind: Kind = Kind.LINEAR
    count: int = 1


def linear(name: str, out: int, into: int, *, bias: bool = False, count: int = 1) -> Iterator[Weight]:
    yield Weight(name + ".weight", (out, into), Kind.LINEAR, count)
    if bias:
        yield Weight(name + ".bias", (out,), Kind.EXACT, count)


def exact(name: str, *shape: int) -> Iterator[Weight]:
    yield Weight(name, shape, Kind.EXACT)


def norm(name: str, width: int, *, bias: bool = False) -> Iterator[Weight]:
    yield from exact(name + ".weight", width)
    if bias:
        yield from exact(name + ".bias", width)


def kind_of(heads: int, kv_heads: int) -> AttentionKind:
    if kv_heads == heads:
        return AttentionKind.MHA
    return AttentionKind.MQA if kv_heads == 1 else AttentionKind.GQA


class Family:
    """A text model. Subclasses are one `model_type` or several alike; what is a class variable here is what they
    differ in most often. A string instead of a flag names the key of the configuration that decides.
    """

    #: The `model_type`s that the class is for; given as `class Llama(Family, types=("llama",))`, never inherited.
    types: ClassVar[tuple[str, ...]] = ()
    root = "model."  # before the layers' names
    tied = False  # whether embedding and head are one tensor when the configuration does not say
    qkv_bias: ClassVar[bool | str] = "attention_bias"
    out_bias: ClassVar[bool | str] = "attention_bias"
    mlp_bias: ClassVar[bool | str] = "mlp_bias"
    head_bias = False
    gated = True  # three matrices in a feed-forward instead of two
    norms: ClassVar[tuple[str, ...]] = ("input_layernorm", "post_attention_layernorm")
    norm_bias = False
    qk_norm: ClassVar[str] = ""  # "head": one of a head's width; "full": one of all heads' width
    final_norm = "norm"
    mlp_name = "mlp"
    window_default = 0

    def __init_subclass__(cls, types: tuple[str, ...] = ()) -> None:
        cls.types = types

    def __init__(self, config: Config) -> None:
        self.config = c = config
        names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
        self.layers = c.whole(*names, default=self.default_layers(), most="layers")
        self.hidden = c.whole("hidden_size", "n_embd", "d_model", "dim", default=self.default_hidden())
        self.vocabulary = c.whole(
            "vocab_size", "padded_vocab_size", default=self.default_vocabulary(), most="vocabulary"
        )
        self.heads = c.whole("num_attention_heads", "n_head", "n_heads", most="heads", default=self.default_heads())
        self.kv_heads = c.whole("num_key_value_heads", default=self.default_kv_heads(), most="heads")
        if "head_dim" not in c and self.hidden % self.heads and not self.default_head():
            raise c.odd(
                f"hidden_size {self.hidden} is no multiple of num_attention_heads {self.heads}, and no head_dim"
            )
        self.head = c.whole("head_dim", default=self.default_head() or self.hidden // self.heads)
        if self.heads % self.kv_heads and self.types:
            raise c.odd(f"num_attention_heads {self.heads} is no multiple of num_key_value_heads {self.kv_heads}")
        self.inner = self.inner_width()
        self.attentions = tuple(self.attention(index) for index in range(self.layers))

    # Defaults of the configuration classes, where published configurations lean on them.

    def default_layers(self) -> int | None:
        return None

    def default_hidden(self) -> int | None:
        return None

    def default_vocabulary(self) -> int | None:
        return None

    def default_heads(self) -> int | None:
        return None

    def default_kv_heads(self) -> int:
        return self.heads

    def default_head(self) -> int:
        return 0

    def default_inner(self) -> int | None:
        return None

    def inner_width(self) -> int:
        names = ("intermediate_size", "n_inner", "ffn_dim", "d_ff")
        return self.config.whole(*names, default=self.default_inner(), least=0)

    def covers(self) -> bool:
        """Whether the rules are those of this configuration: false where it has parts that they do not know."""
        return True

    # The parts.

    def at(self, index: int) -> Attention:
        """The attention of a layer, or of an MTP layer behind them, which is like the last."""
        return self.attentions[min(index, self.layers - 1)]

    def says(self, flag: bool | str, *, default: bool = False) -> bool:
        return self.config.flag(flag, default=default) if isinstance(flag, str) else flag

    def prefix(self, index: int) -> str:
        return f"{self.root}layers.{index}."

    def window(self, index: int) -> int:
        """Tokens that the layer's window keeps; 0: all."""
        kinds = self.config.per_layer("layer_types", self.layers)
        if kinds:
            sliding = kinds[min(index, self.layers - 1)] in {"sliding_attention", "chunked_attention"}
            return self.window_size() if sliding else 0
        return self.window_size() if self.slides(index) else 0

    def window_size(self) -> int:
        return self.config.whole("sliding_window", default=self.window_default, least=0, most="tokens")

    def slides(self, index: int) -> bool:  # noqa: ARG002 - the general case: all layers are alike
        """Whether the layer has a window where no `layer_types` say so."""
        return False

    def attention(self, index: int) -> Attention:
        return Attention(
            kind_of(self.heads, self.kv_heads), self.heads, self.kv_heads, self.head, self.head, self.window(index)
        )

    def mixer(self, index: int) -> Iterator[Weight]:
        """The attention's weights."""
        yield from self.grouped(self.prefix(index) + "self_attn", self.at(index))

    def grouped(self, name: str, at: Attention, *, queries: int = 1) -> Iterator[Weight]:
        """MHA, GQA, MQA. `queries` is 2 where the query projection also makes an output gate."""
        bias = self.says(self.qkv_bias)
        yield from linear(f"{name}.q_proj", queries * at.heads * at.key_length, self.hidden, bias=bias)
        yield from linear(f"{name}.k_proj", at.kv_heads * at.key_length, self.hidden, bias=bias)
        yield from linear(f"{name}.v_proj", at.kv_heads * at.value_length, self.hidden, bias=bias)
        yield from linear(f"{name}.o_proj", self.hidden, at.heads * at.value_length, bias=self.says(self.out_bias))
        if self.qk_norm == "head":
            yield from norm(f"{name}.q_norm", at.key_length)
            yield from norm(f"{name}.k_norm", at.key_length)
        elif self.qk_norm == "full":
            yield from norm(f"{name}.q_norm", at.heads * at.key_length)
            yield from norm(f"{name}.k_norm", at.kv_heads * at.key_length)

    def feed_forward(self, index: int) -> Iterator[Weight]:
        yield from self.mlp(self.prefix(index) + self.mlp_name, self.inner)

    def mlp(self, name: str, inner: int) -> Iterator[Weight]:
        bias = self.says(self.mlp_bias)
        for part in ("gate_proj", "up_proj") if self.gated else ("up_proj",):
            yield from linear(f"{name}.{part}", inner, self.hidden, bias=bias)
        yield from linear(f"{name}.down_proj", self.hidden, inner, bias=bias)

    def layer_norms(self, index: int) -> Iterator[Weight]:
        for name in self.norms:
            yield from norm(self.prefix(index) + name, self.hidden, bias=self.norm_bias)

    def layer(self, index: int) -> Iterator[Weight]:
        yield from self.mixer(index)
        yield from self.feed_forward(index)
        yield from self.layer_norms(index)

    def embeddings(self) -> Iterator[Weight]:
        yield Weight(self.root + "embed_tokens.weight", (self.vocabulary, self.hidden), Kind.EMBEDDING)

    def ending(self) -> Iterator[Weight]:
        """What comes behind the layers, the output head not included."""
        yield from norm(self.root + self.final_norm, self.hidden, bias=self.norm_bias)

    def head_weights(self) -> Iterator[Weight]:
        yield Weight("lm_head.weight", (self.vocabulary, self.hidden), Kind.HEAD)

    def mtp(self) -> Iterator[Weight]:
        """Layers for multi-token prediction that the checkpoint ships."""
        return iter(())

    def mtp_layers(self) -> int:
        return 0

    def weights(self, *, tied: bool) -> Iterator[Weight]:
        yield from self.embeddings()
        for index in range(self.layers):
            yield from self.layer(index)
        yield from self.ending()
        if not tied:
            yield from self.head_weights()
        if self.head_bias:
            yield from exact("lm_head.bias", self.vocabulary)
        yield from self.mtp()

    def experts(self) -> Experts | None:
        return None


class Sparse(Family):
    """Mixture of experts: which layers are sparse, and what is in them."""

    block = "mlp"
    router = "gate"
    router_bias = False
    correction = ""  # name of the bias that balances the experts' load, behind the block's name
    shared_name = "shared_experts"
    shared_gate = False
    expert_parts: ClassVar[tuple[str, ...]] = ("gate_proj", "up_proj", "down_proj")

    def __init__(self, config: Config) -> None:
        c = config
        names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
        self.count = c.whole(*names, default=self.default_experts(), least=0, most="experts")
        self.active = c.whole(
            "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "moe_topk", "top_k_experts",
            default=self.default_active(), least=0, most="experts",
        )  # fmt: skip
        if self.active > self.count:
            raise c.odd(f"num_experts_per_tok {self.active} is more than the {self.count} experts")
        super().__init__(config)
        self.width = self.expert_width()
        self.sparse_layers = sum(self.sparse(index) for index in range(self.layers)) if self.count else 0

    def default_experts(self) -> int | None:
        return None

    def default_active(self) -> int | None:
        return None

    def expert_width(self) -> int:
        return self.config.whole("moe_intermediate_size", "expert_ffn_hidden_size", default=self.inner)

    def sparse(self, index: int) -> bool:  # noqa: ARG002 - the general case: all layers are alike
        return True

    def shared(self) -> tuple[int, int]:
        """Shared experts a layer, and the inner width of all of them together."""
        return 0, 0

    def feed_forward(self, index: int) -> Iterator[Weight]:
        if self.count and self.sparse(index):
            yield from self.moe(self.prefix(index) + self.block)
        else:
            yield from super().feed_forward(index)

    def moe(self, name: str) -> Iterator[Weight]:
        yield from self.routed(name)
        yield Weight(f"{name}.{self.router}.weight", (self.count, self.hidden), Kind.EXACT)
        if self.router_bias:
            yield Weight(f"{name}.{self.router}.bias", (self.count,), Kind.EXACT)
        if self.correction:
            yield Weight(f"{name}.{self.correction}", (self.count,), Kind.FLOAT)
        if width := self.shared()[1]:
            yield from self.mlp(f"{name}.{self.shared_name}", width)
        if self.shared_gate:
            yield Weight(f"{name}.shared_expert_gate.weight", (1, self.hidden), Kind.EXACT)

    def routed(self, name: str) -> Iterator[Weight]:
        for part in self.expert_parts:
            shape = (self.hidden, self.width) if part == self.expert_parts[-1] else (self.width, self.hidden)
            yield Weight(f"{name}.experts.0.{part}.weight", shape, Kind.LINEAR, self.count)

    def experts(self) -> Experts | None:
        if not self.count:
            return None
        number, width = self.shared()
        return Experts(self.count, self.active, self.width, number, width, self.sparse_layers)


class Unknown(Family):
    """An architecture without rules of its own: what its configuration says in the usual words, and upper bounds."""

    def default_layers(self) -> int:
        return self.config.whole("encoder_layers", default=0, most="layers")

    def default_hidden(self) -> int:
        return 0

    def default_vocabulary(self) -> int:
        return 0

    def default_heads(self) -> int:
        return self.config.whole("encoder_attention_heads", "num_heads", default=1, most="heads")

    def default_kv_heads(self) -> int:
        return self.heads

    def default_head(self) -> int:
        return self.hidden // self.heads

    def default_inner(self) -> int:
        return self.config.whole("encoder_ffn_dim", default=4 * self.hidden)

    def attention(self, index: int) -> Attention:
        c = self.config
        kinds = c.per_layer("layer_types", self.layers)
        if kinds and "attention" not in kinds[index].replace("linear_attention", ""):
            return Attention(AttentionKind.LINEAR)  # a state, whose size nothing says
        if "kv_lora_rank" in c:
            latent, rope = c.whole("kv_lora_rank"), c.whole("qk_rope_head_dim", default=64)
            return Attention(AttentionKind.MLA, self.heads, 1, self.head, self.head, latent=latent, rope_length=rope)
        return super().attention(index)

    def at_most(self) -> int:
        """More parameters than these shapes leave room for: projections counted twice for gates, a recurrent mixer
        beside them, a dense feed-forward beside all experts, embeddings and head apart.
        """
        c = self.config
        names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
        experts = c.whole(*names, default=0, least=0, most="experts")
        width = c.whole("moe_intermediate_size", default=self.inner, least=0)
        shared = c.whole("n_shared_experts", "num_shared_experts", default=2, least=0, most="experts") if experts else 0
        attention = 4 * self.hidden * self.head * (self.heads + self.kv_heads)
        layer = attention + 8 * self.hidden**2 + 3 * self.hidden * (self.inner + (experts + shared) * width)
        extra = c.whole("num_nextn_predict_layers", "mtp_num_hidden_layers", default=0, least=0, most="layers")
        outside = (2 + 2 * extra) * self.vocabulary * self.hidden
        return outside + (self.layers + extra) * (layer + (experts + 16) * self.hidden)


def without_cache(at: Attention, source: int) -> Attention:
    """The same attention, reading the cache of another layer."""
    return replace(at, shares_with=source)
