"""Decoders whose every layer is attention and one feed-forward.

Sources: the modelling files of the `transformers` library, one folder a model type (version 5.23).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from agent.models.families.base import Family, Kind, Weight, exact, linear, norm
from agent.models.profile import Attention


class Llama(
    Family,
    types=("llama", "mistral", "ministral", "ministral3", "granite", "helium", "internlm3", "minicpm", "iquestcoder"),
):
    """Llama 1 to 3, Mistral, Yi, DeepSeek-Coder and whoever says that it is a Llama."""

    def slides(self, index: int) -> bool:  # noqa: ARG002 - Mistral 7B: all layers
        return self.config.text("model_type") == "mistral"


class SmolLM3(Llama, types=("smollm3",)):
    tied = True


class SeedOss(Family, types=("seed_oss",)):
    out_bias = "attention_out_bias"

    def says(self, flag: bool | str, *, default: bool = False) -> bool:
        return super().says(flag, default=flag == "attention_bias" or default)


class Qwen2(Family, types=("qwen2", "qwen2_5_vl_text", "qwen2_vl_text")):
    qkv_bias = True
    out_bias = False
    mlp_bias = False

    def slides(self, index: int) -> bool:
        c = self.config
        return c.flag("use_sliding_window") and index >= c.whole(
            "max_window_layers", default=28, least=0, most="layers"
        )


class Mimo(Qwen2, types=("mimo",)):
    """Qwen2 with layers for multi-token prediction (the `modeling_mimo.py` of XiaomiMiMo/MiMo-7B)."""

    def mtp_layers(self) -> int:
        return self.config.whole("num_nextn_predict_layers", default=0, least=0, most="layers")

    def mtp(self) -> Iterator[Weight]:
        at = self.attentions[0]
        for index in range(self.mtp_layers()):
            name = f"{self.root}mtp_layers.{index}"
            yield from linear(f"{name}.input_proj", self.hidden, 2 * self.hidden)
            for part in ("token_layernorm", "hidden_layernorm", "final_layernorm", *self.norms):
                yield from norm(f"{name}.{part}", self.hidden)
            yield from self.grouped(f"{name}.self_attn", at)
            yield from self.mlp(f"{name}.mlp", self.inner)


class Qwen3(Family, types=("qwen3", "qwen3_vl_text")):
    qk_norm = "head"

    def default_head(self) -> int:
        return 128

    def slides(self, index: int) -> bool:
        c = self.config
        return c.flag("use_sliding_window") and index >= c.whole(
            "max_window_layers", default=28, least=0, most="layers"
        )


class Phi3(Family, types=("phi3",)):
    """Phi-3 and Phi-4. Fused projections, which sum up to the same."""

    qkv_bias = out_bias = mlp_bias = False

    def slides(self, index: int) -> bool:  # noqa: ARG002 - all layers
        return True

    def grouped(self, name: str, at: Attention, *, queries: int = 1) -> Iterator[Weight]:
        rows = queries * at.heads * at.key_length + at.kv_heads * (at.key_length + at.value_length)
        yield from linear(f"{name}.qkv_proj", rows, self.hidden)
        yield from linear(f"{name}.o_proj", self.hidden, at.heads * at.value_length)

    def mlp(self, name: str, inner: int) -> Iterator[Weight]:
        yield from linear(f"{name}.gate_up_proj", 2 * inner, self.hidden)
        yield from linear(f"{name}.down_proj", self.hidden, inner)


class Gemma(Family, types=("gemma",)):
    tied = True

    def default_head(self) -> int:
        return 256

    def default_kv_heads(self) -> int:
        return 16


class Gemma2(Gemma, types=("gemma2",)):
    norms = (
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
    )  # fmt: skip
    window_default = 4096

    def default_kv_heads(self) -> int:
        return 4

    def slides(self, index: int) -> bool:
        return index % 2 == 0


class Gemma3(Gemma2, types=("gemma3_text", "gemma3")):
    """The published configurations leave out whatever equals the defaults of their class."""

    qk_norm = "head"

    def default_heads(self) -> int:
        return 8

    def slides(self, index: int) -> bool:
        pattern = self.config.whole("sliding_window_pattern", "_sliding_window_pattern", default=6, most="layers")
        return (index + 1) % pattern != 0


class Glm(Family, types=("glm",)):
    out_bias = mlp_bias = False

    def default_head(self) -> int:
        return 128

    def says(self, flag: bool | str, *, default: bool = False) -> bool:
        return super().says(flag, default=flag == "attention_bias" or default)


class Glm4(Glm, types=("glm4", "glm4v_text")):
    norms = (
        "input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm",
    )  # fmt: skip


class Cohere(Family, types=("cohere",)):
    """Command R: attention and feed-forward side by side behind one norm."""

    tied = True
    norms = ("input_layernorm",)

    def grouped(self, name: str, at: Attention, *, queries: int = 1) -> Iterator[Weight]:
        yield from super().grouped(name, at, queries=queries)
        if self.config.flag("use_qk_norm"):
            yield from exact(f"{name}.q_norm.weight", at.heads, at.key_length)
            yield from exact(f"{name}.k_norm.weight", at.kv_heads, at.key_length)


class Cohere2(Family, types=("cohere2",)):
    tied = True
    norms = ("input_layernorm",)
    window_default = 4096

    def slides(self, index: int) -> bool:
        return (index + 1) % self.config.whole("sliding_window_pattern", default=4, most="layers") != 0


class Olmo(Family, types=("olmo",)):
    """Its norms have no weights."""

    norms = ()

    def ending(self) -> Iterator[Weight]:
        return iter(())


class Olmo2(Family, types=("olmo2", "olmo3")):
    norms = ("post_attention_layernorm", "post_feedforward_layernorm")
    qk_norm = "full"
    window_default = 4096

    def slides(self, index: int) -> bool:
        return self.config.text("model_type") == "olmo3" and (index + 1) % 4 != 0


class Exaone4(Family, types=("exaone4",)):
    norms = ("post_attention_layernorm", "post_feedforward_layernorm")
    qk_norm = "head"

    def slides(self, index: int) -> bool:
        pattern = self.config.data.get("sliding_window_pattern")
        if isinstance(pattern, str) and pattern:  # such as "LLLG": local, global
            return index != self.layers - 1 and pattern[index % len(pattern)] == "L"
        return isinstance(pattern, int) and pattern > 0 and (index + 1) % pattern != 0


class Apertus(Family, types=("apertus",)):
    gated = False
    norms = ("attention_layernorm", "feedforward_layernorm")
    qk_norm = "head"

    def feed_forward(self, index: int) -> Iterator[Weight]:
        yield from super().feed_forward(index)
        for part in ("alpha_p", "alpha_n", "beta", "eps"):  # of its activation function, xIELU
            yield from exact(f"{self.prefix(index)}mlp.act_fn.{part}", 1)


class Arcee(Family, types=("arcee",)):
    gated = False


class Nemotron(Family, types=("nemotron",)):
    gated = False
    norm_bias = True


class Ernie(Family, types=("ernie4_5",)):
    tied = True
    qkv_bias = out_bias = mlp_bias = "use_bias"

    def default_head(self) -> int:
        return 128


class Hunyuan(Family, types=("hunyuan_v1_dense",)):
    qk_norm = "head"


class Starcoder2(Family, types=("starcoder2",)):
    tied = True
    gated = False
    norm_bias = True
    qkv_bias = out_bias = mlp_bias = "use_bias"

    def says(self, flag: bool | str, *, default: bool = False) -> bool:
        return super().says(flag, default=flag == "use_bias" or default)

    def slides(self, index: int) -> bool:  # noqa: ARG002 - all layers
        return True


class StableLm(Family, types=("stablelm",)):
    norm_bias = True
    qkv_bias = "use_qkv_bias"
    out_bias = mlp_bias = False

    def layer_norms(self, index: int) -> Iterator[Weight]:
        names = self.norms[:1] if self.config.flag("use_parallel_residual") else self.norms
        for name in names:
            yield from norm(self.prefix(index) + name, self.hidden, bias=True)


class Phi(Family, types=("phi",)):
    qkv_bias = out_bias = mlp_bias = True
    gated = False
    norms = ("input_layernorm",)
    norm_bias = True
    final_norm = "final_layernorm"
    head_bias = True

    def default_inner(self) -> int:
        return 4 * self.hidden


class Gpt2(Family, types=("gpt2", "gpt_bigcode")):
    """Learned positions, everything with biases."""

    tied = True
    qkv_bias = out_bias = mlp_bias = True
    gated = False
    norm_bias = True

    def default_inner(self) -> int:
        return 4 * self.hidden

    def default_kv_heads(self) -> int:
        multi_query = self.config.text("model_type") == "gpt_bigcode" and self.config.flag("multi_query", default=True)
        return 1 if multi_query else self.heads

    def positions(self) -> int:
        return self.config.whole("n_positions", "max_position_embeddings", default=1024, most="tokens")

    def embeddings(self) -> Iterator[Weight]:
        yield from super().embeddings()
        yield Weight(self.root + "embed_positions.weight", (self.positions(), self.hidden), Kind.EMBEDDING)


class Opt(Gpt2, types=("opt",)):
    def positions(self) -> int:
        return 2 + self.config.whole("max_position_embeddings", default=2048, most="tokens")

    def embeddings(self) -> Iterator[Weight]:
        narrow = self.config.whole("word_embed_proj_dim", default=self.hidden)
        yield Weight(self.root + "embed_tokens.weight", (self.vocabulary, narrow), Kind.EMBEDDING)
        yield Weight(self.root + "embed_positions.weight", (self.positions(), self.hidden), Kind.EMBEDDING)
        if narrow != self.hidden:
            yield from linear(self.root + "project_in", self.hidden, narrow)
            yield from linear(self.root + "project_out", narrow, self.hidden)

    def ending(self) -> Iterator[Weight]:
        if self.config.flag("do_layer_norm_before", default=True):
            yield from super().ending()


class GptNeoX(Family, types=("gpt_neox",)):
    """Pythia and its kin."""

    qkv_bias = out_bias = "attention_bias"
    mlp_bias = True
    gated = False
    norm_bias = True

    def says(self, flag: bool | str, *, default: bool = False) -> bool:
        return super().says(flag, default=flag == "attention_bias" or default)


class Bloom(Family, types=("bloom",)):
    tied = True
    qkv_bias = out_bias = mlp_bias = True
    gated = False
    norm_bias = True

    def default_inner(self) -> int:
        return 4 * self.hidden

    def embeddings(self) -> Iterator[Weight]:
        yield from super().embeddings()
        yield from norm(self.root + "word_embeddings_layernorm", self.hidden, bias=True)


class Mpt(Family, types=("mpt",)):
    tied = True
    qkv_bias = out_bias = mlp_bias = False
    gated = False

    def default_inner(self) -> int:
        return self.config.whole("expansion_ratio", default=4) * self.hidden

    def default_kv_heads(self) -> int:
        return self.config.section("attn_config").whole("kv_n_heads", default=self.heads, most="heads")


class Falcon(Family, types=("falcon", "RefinedWeb", "RefinedWebModel")):
    tied = True
    qkv_bias = out_bias = mlp_bias = "bias"
    gated = False
    norm_bias = True

    def default_inner(self) -> int:
        return self.config.whole("ffn_hidden_size", default=4 * self.hidden)

    def default_kv_heads(self) -> int:
        c = self.config
        if c.flag("new_decoder_architecture"):
            return c.whole("num_kv_heads", "n_head_kv", default=self.heads, most="heads")
        return 1 if c.flag("multi_query", default=True) else self.heads

    def layer_norms(self, index: int) -> Iterator[Weight]:
        c = self.config
        both = (
            c.flag("new_decoder_architecture") and c.whole("num_ln_in_parallel_attn", default=2, least=1, most=2) == 2
        )
        names = self.norms if both or not c.flag("parallel_attn", default=True) else self.norms[:1]
        for name in names:
            yield from norm(self.prefix(index) + name, self.hidden, bias=True)


class InternLM2(Family, types=("internlm2",)):
    """`modeling_internlm2.py` of internlm/internlm2: a Llama with fused projections."""

    qkv_bias = out_bias = "bias"
    mlp_bias = False


class Baichuan(Family, types=("baichuan",)):
    """`modeling_baichuan.py` of baichuan-inc/Baichuan2: every head has its own keys."""

    qkv_bias = out_bias = mlp_bias = False


class ChatGlm(Family, types=("chatglm",)):
    """`modeling_chatglm.py` of THUDM/chatglm3 and zai-org/glm-4-9b-chat."""

    qkv_bias: ClassVar[bool | str] = "add_qkv_bias"
    out_bias = mlp_bias = "add_bias_linear"

    def default_head(self) -> int:
        return self.config.whole("kv_channels", default=128)

    def default_kv_heads(self) -> int:
        c = self.config
        return (
            c.whole("multi_query_group_num", default=1, most="heads") if c.flag("multi_query_attention") else self.heads
        )

    def default_inner(self) -> int:
        return self.config.whole("ffn_hidden_size")
