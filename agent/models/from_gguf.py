"""The profile of a GGUF model, out of its header's keys and tensor table.

Which layers have a window, and how large recurrent states are, is llama.cpp's: `llama_hparams` and the architectures'
`load_arch_hparams` (src/llama-hparams.cpp, src/models/*.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from agent.models.config import MOST
from agent.models.families.base import kind_of
from agent.models.groups import Sums, active, keeps_cache
from agent.models.profile import Attention, AttentionKind, Experts, Group, ModelProfile, Quantization, Rope

#: `enum llama_pooling_type` in llama.h
_POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
#: Every n-th layer sees all, the others have the window (`set_swa_pattern`). What is not here and has no pattern in its
#: header has no windows in llama.cpp, whatever window the header names.
_PERIODS: Mapping[str, int] = MappingProxyType(
    {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4, "exaone4": 4, "olmo2": 4, "llama4": 4}
)
_CHUNK = 8192  # llama4's, where the header does not say
_ENCODERS = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert"}
)
#: Types without blocks.
_PLAIN = frozenset({"F32", "F16", "BF16", "F64"})


class BadHeader(Exception):
    """The header contradicts itself; the message says where."""


class Row(Protocol):
    """One row of the tensor table."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def elements(self) -> int: ...
    @property
    def bytes(self) -> int: ...


class Keys(Protocol):
    """The header's keys."""

    def number(self, key: str, default: int | None = None) -> int: ...
    def numbers(self, key: str) -> list[int]: ...
    def real(self, key: str, default: float) -> float: ...
    def text(self, key: str) -> str: ...
    def count(self, key: str) -> int: ...


def profile_of(path: Path, keys: Keys, rows: Sequence[Row], *, size: int, level: str) -> ModelProfile:
    """`size`: of all files. `level`: the file type's name. Raises `BadHeader`."""
    architecture = keys.text("general.architecture")
    shape = _Layers(keys, architecture)
    sums = Sums(shape.attentions, gguf=True)
    for row in rows:
        sums.add(row.name, row.kind, row.elements, row.bytes)
    groups, experts = sums.groups(), _experts(keys, architecture, shape, rows)
    share = experts.active / experts.count if experts else 1.0
    sizes = {row.name: row.bytes for row in rows}
    pooling = _POOLING.get(keys.number(architecture + ".pooling_type", -1), "")
    template = bool(keys.text("tokenizer.chat_template"))
    mtp = any(tensors.group == Group.MTP for tensors in groups)
    return ModelProfile(
        path=str(path),
        format="gguf",
        architecture=architecture,
        name=keys.text("general.name"),
        quantization=level,
        file_bytes=size,
        tensor_bytes=sum(row.bytes for row in rows),
        parameters=sum(row.elements for row in rows),
        layers=shape.layers,
        embedding_length=shape.width,
        feed_forward_length=max(keys.numbers(architecture + ".feed_forward_length"), default=0),
        heads=max(shape.heads, default=0),
        kv_heads=tuple(at.kv_heads if keeps_cache(at) else 0 for at in shape.attentions),
        key_length=shape.key,
        value_length=shape.value,
        context_length=keys.number(architecture + ".context_length"),
        vocabulary=keys.count("tokenizer.ggml.tokens") or keys.number(architecture + ".vocab_size", 0),
        sliding_window=keys.number(architecture + ".attention.sliding_window", 0),
        experts=experts.count if experts else 0,
        embedding_bytes=sizes.get("token_embd.weight", 0),
        output_bytes=sizes.get("output.weight", 0),
        has_chat_template=template,
        pooling=pooling,
        model_type=architecture,
        active_parameters=active(groups, share),
        groups=groups,
        stored=sums.stored(),
        layer_details=sums.layers(),
        quantization_config=_quantization(level),
        tied="output.weight" not in sizes,
        moe=experts,
        rope=_rope(keys, architecture),
        mtp_layers=shape.further if mtp else 0,
        task=_task(architecture, pooling, template=template),
        licence=keys.text("general.license"),
        formats=("gguf",),
    )


def _task(architecture: str, pooling: str, *, template: bool) -> str:
    if pooling == "rank":
        return "rerank"
    if pooling not in {"", "none"} or architecture in _ENCODERS:
        return "embedding"
    return "chat" if template else "completion"


def _quantization(level: str) -> Quantization | None:
    digits = re.search(r"Q(\d)|FP(\d)", level)
    if level in _PLAIN or not digits:
        return None
    return Quantization("gguf", level, int(digits[1] or digits[2]))


def _rope(keys: Keys, architecture: str) -> Rope:
    key = architecture + ".rope."
    return Rope(
        kind=keys.text(key + "scaling.type") or "default",
        theta=keys.real(key + "freq_base", 10000.0),
        factor=keys.real(key + "scaling.factor", 1.0),
        original_context=keys.number(key + "scaling.original_context_length", 0),
    )


def _experts(keys: Keys, architecture: str, shape: _Layers, rows: Sequence[Row]) -> Experts | None:
    key = architecture + "."
    if not (count := keys.number(key + "expert_count", 0)):
        return None
    length = keys.number(key + "expert_feed_forward_length", 0)
    length = length or max(keys.numbers(key + "feed_forward_length"), default=0)
    shared = keys.number(key + "expert_shared_count", 0)
    shared_length = keys.number(key + "expert_shared_feed_forward_length", shared * length)
    sparse = {row.name.split(".")[1] for row in rows if row.name.startswith("blk.") and "ffn_down_exps" in row.name}
    used = keys.number(key + "expert_used_count", 0)
    if not 0 <= used <= count <= MOST["experts"]:
        raise BadHeader(f"{key}expert_used_count {used} and {key}expert_count {count} contradict each other")
    return Experts(count, used, length, shared or int(shared_length > 0), shared_length, min(len(sparse), shape.layers))


class _Layers:
    """How each layer mixes tokens."""

    def __init__(self, keys: Keys, architecture: str) -> None:
        self._keys, self._architecture, self._prefix = keys, architecture, architecture + "."
        blocks = self._number("block_count", None)
        self.further = self._number("nextn_predict_layers", 0)
        if not 0 < blocks <= MOST["layers"] or not 0 <= self.further < blocks:
            raise BadHeader(f"{self._prefix}block_count is {blocks}, which no model has")
        self.layers = blocks - self.further
        self.width = self._number("embedding_length", None)
        self.heads = self._each("attention.head_count", blocks)
        self.kv = self._each("attention.head_count_kv", blocks) if self._has("attention.head_count_kv") else self.heads
        heads = max(self.heads, default=0)
        head = self.width // heads if heads else 0
        self.key = self._number("attention.key_length", head)
        self.value = self._number("attention.value_length", head)
        self.window = self._number("attention.sliding_window", _CHUNK if architecture == "llama4" else 0)
        self.pattern = self._pattern()
        found = [self._attention(index) for index in range(self.layers)]
        self.attentions = tuple(self._shared(found))

    def _number(self, key: str, default: int | None) -> int:
        return self._keys.number(self._prefix + key, default)

    def _has(self, key: str) -> bool:
        return bool(self._keys.numbers(self._prefix + key))

    def _each(self, key: str, blocks: int) -> list[int]:
        """A number for each layer, or one for all."""
        values = self._keys.numbers(self._prefix + key) or [0]
        if len(values) == 1:
            values *= blocks
        if len(values) < blocks:
            raise BadHeader(f"{self._prefix}{key} has {len(values)} values for {blocks} layers")
        if not all(0 <= value <= MOST["heads"] for value in values):
            raise BadHeader(f"{self._prefix}{key} holds numbers that no model has")
        return values

    def _pattern(self) -> list[bool]:
        """Which layers have the window."""
        if not self.window:
            return [False] * self.layers
        listed = self._keys.numbers(self._prefix + "attention.sliding_window_pattern")
        if len(listed) >= self.layers > 1:
            return [value != 0 for value in listed]
        period = listed[0] if len(listed) == 1 else _PERIODS.get(self._architecture, 0)
        return [period > 0 and index % period < period - 1 for index in range(self.layers)]

    def _attention(self, index: int) -> Attention:
        heads, kv_heads = self.heads[index], self.kv[index]
        state = self._state(index)
        if state is not None and not state.parallel:
            return state
        if not kv_heads:
            return Attention(AttentionKind.NONE)
        if self._architecture in _ENCODERS:
            return Attention(AttentionKind.MHA, heads, 0, self.key, self.value)
        latent, whole = self._number("attention.kv_lora_rank", 0), self._number("attention.key_length_mla", 0)
        if latent and whole:
            rope = self._number("rope.dimension_count", max(0, self.key - latent))
            value = self._number("attention.value_length_mla", self.value)
            index_length = self._number("attention.indexer.key_length", 0)
            return Attention(
                AttentionKind.MLA, heads, 1, whole, value, latent=latent, rope_length=rope, index_length=index_length
            )
        windowed = self.pattern[index]
        at = Attention(
            kind_of(heads, kv_heads),
            heads,
            kv_heads,
            self._number("attention.key_length_swa", self.key) if windowed else self.key,
            self._number("attention.value_length_swa", self.value) if windowed else self.value,
            self.window if windowed else 0,
        )
        if state is None:
            return at
        return replace(at, conv_elements=state.conv_elements, state_elements=state.state_elements, parallel=True)

    def _state(self, index: int) -> Attention | None:
        """The layer's recurrent state (`n_embd_r`, `n_embd_s`), where it has one."""
        if short := self._number("shortconv.l_cache", 0):
            kept = self.width * (short - 1)
            return None if self.kv[index] else Attention(AttentionKind.MAMBA, conv_elements=kept)
        if head := self._number("wkv.head_size", 0):
            shifts = self._number("token_shift_count", 2) * self.width
            return Attention(AttentionKind.LINEAR, conv_elements=shifts, state_elements=self.width * head)
        inner = self._number("ssm.inner_size", 0)
        interval = self._number("full_attention_interval", 0)
        delta = interval > 0 or self._architecture in {"qwen3next", "qwen35", "qwen35moe"}
        parallel = self._architecture == "falcon-h1"
        if not inner:
            return None
        if delta:
            recurrent = (index + 1) % (interval or 4) != 0
        else:
            recurrent = parallel or (self.kv[index] == 0 and not self._dense(index))
        if not recurrent:
            return None
        state, groups = self._number("ssm.state_size", 0), self._number("ssm.group_count", 0)
        kept = (self._number("ssm.conv_kernel", 1) - 1) * (inner + 2 * groups * state)
        kind = AttentionKind.LINEAR if delta else AttentionKind.MAMBA
        return Attention(kind, conv_elements=max(0, kept), state_elements=inner * state, parallel=parallel)

    def _dense(self, index: int) -> bool:
        """Nemotron-H: a layer is one thing, and a feed-forward's width says that it is one."""
        widths = self._keys.numbers(self._prefix + "feed_forward_length")
        return self._architecture.startswith("nemotron_h") and len(widths) > index and widths[index] > 0

    def _shared(self, found: list[Attention]) -> list[Attention]:
        """The last layers read the caches of earlier ones (Gemma 3n and 4)."""
        own = self.layers - self._number("attention.shared_kv_layers", 0)
        if own >= self.layers:
            return found
        last = {bool(at.window): index for index, at in enumerate(found[: max(0, own)])}
        return [
            replace(at, shares_with=last.get(bool(at.window), -1)) if index >= own else at
            for index, at in enumerate(found)
        ]
