"""Encoders, for embeddings and reranking: no cache, no output head over the vocabulary.

Sources: the modelling files of the `transformers` library, one folder a model type (version 5.23).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from agent.models.config import Config
from agent.models.families.base import Family, Kind, Weight, linear, norm
from agent.models.profile import Attention, AttentionKind


class Bert(Family, types=("bert",)):
    root = "encoder."
    tied = True  # masked language models share it; embedding models have none
    qkv_bias: ClassVar[bool | str] = True
    out_bias: ClassVar[bool | str] = True
    mlp_bias: ClassVar[bool | str] = True
    gated = False
    norms = ("attention.output.LayerNorm", "output.LayerNorm")
    norm_bias = True
    pooler = True

    def default_inner(self) -> int:
        return 4 * self.hidden

    def attention(self, index: int) -> Attention:  # noqa: ARG002 - all layers are alike
        return Attention(AttentionKind.MHA, self.heads, 0, self.head, self.head)

    def grouped(self, name: str, at: Attention, *, queries: int = 1) -> Iterator[Weight]:
        bias = self.says(self.qkv_bias)
        for part in ("query", "key", "value"):
            yield from linear(f"{name}.{part}", queries * at.heads * at.key_length, self.hidden, bias=bias)
        yield from linear(f"{name}.dense", self.hidden, self.hidden, bias=self.says(self.out_bias))

    def tables(self) -> tuple[int, int]:
        """Rows of the position and token type embeddings."""
        c = self.config
        rows = c.whole("max_position_embeddings", default=512, most="tokens")
        return rows, c.whole("type_vocab_size", default=2, least=0, most="vocabulary")

    def embeddings(self) -> Iterator[Weight]:
        positions, types = self.tables()
        yield Weight("embeddings.word_embeddings.weight", (self.vocabulary, self.hidden), Kind.EMBEDDING)
        if positions:
            yield Weight("embeddings.position_embeddings.weight", (positions, self.hidden), Kind.EMBEDDING)
        if types:
            yield Weight("embeddings.token_type_embeddings.weight", (types, self.hidden), Kind.EMBEDDING)
        yield from norm("embeddings.LayerNorm", self.hidden, bias=self.norm_bias)

    def ending(self) -> Iterator[Weight]:
        classifies = any(name.endswith("ForSequenceClassification") for name in self.config.texts("architectures"))
        if self.pooler:
            yield from linear("pooler.dense", self.hidden, self.hidden, bias=True)
        elif classifies:  # Roberta has its dense layer in the classifier instead
            yield from linear("classifier.dense", self.hidden, self.hidden, bias=True)
        if classifies:
            yield from linear("classifier.out_proj", self.labels(), self.hidden, bias=True)

    def labels(self) -> int:
        names = self.config.data.get("id2label")
        return len(names) if isinstance(names, dict) and names else self.config.whole("num_labels", default=2)

    def head_weights(self) -> Iterator[Weight]:
        return iter(())


class Roberta(Bert, types=("roberta", "xlm-roberta", "camembert")):
    """Published embedding models keep the pooler, rerankers do not."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.pooler = not any(name.endswith("ForSequenceClassification") for name in self.config.texts("architectures"))


class DistilBert(Bert, types=("distilbert",)):
    pooler = False

    def inner_width(self) -> int:
        return self.config.whole("hidden_dim", default=4 * self.hidden)

    def tables(self) -> tuple[int, int]:
        return self.config.whole("max_position_embeddings", default=512, most="tokens"), 0


class MpNet(Bert, types=("mpnet",)):
    def tables(self) -> tuple[int, int]:
        return super().tables()[0], 0

    def ending(self) -> Iterator[Weight]:
        buckets = self.config.whole("relative_attention_num_buckets", default=32)
        yield Weight("encoder.relative_attention_bias.weight", (buckets, self.heads), Kind.EMBEDDING)
        yield from super().ending()


class NomicBert(Bert, types=("nomic_bert",)):
    """Rotary positions and gated feed-forwards, without biases."""

    qkv_bias = out_bias = mlp_bias = False
    gated = True
    pooler = False

    def inner_width(self) -> int:
        return self.config.whole("n_inner", "intermediate_size", default=4 * self.hidden)

    def tables(self) -> tuple[int, int]:
        return 0, super().tables()[1]


class ModernBert(Bert, types=("modernbert",)):
    qkv_bias = "attention_bias"
    out_bias = "attention_bias"
    mlp_bias = "mlp_bias"
    gated = True
    norm_bias = False
    pooler = False

    def tables(self) -> tuple[int, int]:
        return 0, 0

    def window(self, index: int) -> int:
        every = self.config.whole("global_attn_every_n_layers", default=3, most="layers")
        return self.config.whole("local_attention", default=128, most="tokens") if index % every else 0

    def layer_norms(self, index: int) -> Iterator[Weight]:
        if index:  # the embedding's norm stands before the first layer
            yield from norm(f"{self.prefix(index)}attn_norm", self.hidden, bias=self.config.flag("norm_bias"))
        yield from norm(f"{self.prefix(index)}mlp_norm", self.hidden, bias=self.config.flag("norm_bias"))

    def ending(self) -> Iterator[Weight]:
        yield from norm("final_norm", self.hidden, bias=self.config.flag("norm_bias"))
        names = self.config.texts("architectures")
        if any(name.endswith("ForSequenceClassification") for name in names):
            bias = self.config.flag("classifier_bias")
            yield from linear("head.dense", self.hidden, self.hidden, bias=bias)
            yield from norm("head.norm", self.hidden)
            yield from linear("classifier", self.labels(), self.hidden, bias=True)
