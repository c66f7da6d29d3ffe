"""What each tensor is for, by its name; and the sums."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Sequence

from agent.models.profile import Attention, AttentionKind, Group, Layer, Stored, Tensors

#: The layer's number in a name.
LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block|blk)\.(\d+)\.")

#: The first that matches wins. Names of checkpoints in Hugging Face's layout.
_HUGGING_FACE: tuple[tuple[re.Pattern[str], Group], ...] = tuple(
    (re.compile(pattern), group)
    for pattern, group in (
        (
            r"(multi_modal_|mm_)projector|merger|embed_(vision|audio)\b|image_newline|aligner|vision_adapter",
            Group.PROJECTOR,
        ),
        (r"(^|\.)(mlp1|connector|patch_merge_mlp|img_projection\w*)\.", Group.PROJECTOR),
        (r"(^|\.)(visual|vision\w*|image_\w*|img_\w*|vpm|resampler|siglip\w*)\.", Group.VISION),
        (r"(^|\.)(audio\w*|speech\w*|conformer)\.", Group.AUDIO),
        (r"(^|\.)(mtp\w*|nextn\w*)\.", Group.MTP),
        (r"(^|\.)(lm_head|embed_out)\b|^head\.weight", Group.LM_HEAD),
        (r"(?i:layer_?norm)|_ln\b|(^|\.)ln_\w+|norm\w*(\.weight|\.bias)?$|_norm\b", Group.NORM),
        (r"embed|(^|\.)(wte|wpe)\b|relative_attention_bias", Group.EMBEDDING),
        (r"shared_expert_gate|router|\.gate\.|e_score|expert_bias|moe_statics|tid2eid", Group.ROUTER),
        (r"shared_experts?\b|shared_mlp", Group.SHARED_EXPERTS),
        (r"experts?\b|experts_|sparse_moe\.(in|out)put_linear", Group.EXPERTS),
        (
            r"linear_attn|\.mamba\.|ssm|\.conv\.|mixer\.(in_proj|out_proj|x_proj|dt_|conv1d|A_log|D\b)",
            Group.LINEAR_ATTENTION,
        ),
        (r"kv_a_proj|q_a_proj|indexer|compressor|\.wq_a\b|\.wkv\b", Group.ATTENTION_LATENT),
        (r"(attn|attention|mixer)\.(\w+\.)*(k_proj|v_proj|key|value|k_lin|v_lin|wk|wv|k|v)\b", Group.ATTENTION_KV),
        (r"attention\.output|attn|attention|mixer\.(q_proj|o_proj)", Group.ATTENTION),
        (r"mlp|ffn|feed_forward|\bfc\d|intermediate|output\.dense|mixer\.|\bw[123]\b|(gate|up|down)_proj", Group.MLP),
    )
)
#: Names that llama.cpp gives (`gguf.constants.TENSOR_NAMES`).
_GGUF: tuple[tuple[re.Pattern[str], Group], ...] = tuple(
    (re.compile(pattern), group)
    for pattern, group in (
        (r"^(mm|resampler)\.", Group.PROJECTOR),
        (r"^v\.", Group.VISION),
        (r"^a\.", Group.AUDIO),
        (r"nextn", Group.MTP),
        (r"^output\.", Group.LM_HEAD),
        (r"_norm|norm\b", Group.NORM),
        (r"^(token_embd|position_embd|token_types|per_layer_token_embd)", Group.EMBEDDING),
        (r"ffn_gate_inp|exp_probs_b", Group.ROUTER),
        (r"_shexp|_chexps", Group.SHARED_EXPERTS),
        (r"_exps", Group.EXPERTS),
        (r"\.ssm_|\.shortconv|\.time_mix|\.channel_mix", Group.LINEAR_ATTENTION),
        (r"attn_q_a|attn_kv_a|indexer", Group.ATTENTION_LATENT),
        (r"attn_[kv]\b", Group.ATTENTION_KV),
        (r"attn_|cross_attn", Group.ATTENTION),
        (r"ffn_", Group.MLP),
    )
)
_FUSED = re.compile(r"qkv|query_key_value|c_attn|Wqkv")
_ATTENTION = frozenset({Group.ATTENTION, Group.ATTENTION_KV})
#: Groups whose `layers.N` is not the text model's.
_OUTSIDE = frozenset({Group.VISION, Group.AUDIO, Group.PROJECTOR, Group.MTP})


def layer_of(name: str) -> int:
    """The layer's number in the name, or -1."""
    match = LAYER.search(name)
    return int(match[1][:6]) if match else -1


@functools.lru_cache(maxsize=4096)
def group_of(name: str, layers: int, *, gguf: bool = False) -> Group:
    """What the tensor is for. `layers`: those behind this many predict further tokens."""
    group = _group(re.sub(r"\d+", "0", name) if len(name) <= 512 else "", gguf)
    if group not in _OUTSIDE and layer_of(name) >= layers:
        return Group.MTP
    return group


@functools.lru_cache(maxsize=4096)
def _group(name: str, gguf: bool) -> Group:
    return next((group for pattern, group in (_GGUF if gguf else _HUGGING_FACE) if pattern.search(name)), Group.OTHER)


class Sums:
    """Adds tensors up by group, type and layer."""

    def __init__(self, attentions: Sequence[Attention], *, gguf: bool = False) -> None:
        self._attentions, self._gguf = attentions, gguf
        self._groups: defaultdict[Group, list[int]] = defaultdict(lambda: [0, 0, 0])
        self._types: defaultdict[str, int] = defaultdict(int)
        self._layers: defaultdict[tuple[int, ...], list[int]] = defaultdict(lambda: [0, 0])

    def add(
        self, name: str, dtype: str, parameters: int, size: int, *, scale: bool = False, layers: tuple[int, ...] = ()
    ) -> None:
        """One tensor; or one in each of `layers`, with the same attention; the name is the first's."""
        layers = layers or (layer_of(name),)
        group, layer = group_of(name, len(self._attentions), gguf=self._gguf), layers[0]
        if group in _ATTENTION and 0 <= layer < len(self._attentions) and self._recurrent(layer):
            group = Group.LINEAR_ATTENTION
        self._types[dtype] += size * len(layers)
        shared = self._keys_share(name, layer) if group == Group.ATTENTION else 0.0
        if shared:
            keys_parameters, keys_size = round(parameters * shared), round(size * shared)
            self._count(Group.ATTENTION_KV, keys_parameters, keys_size, len(layers), scale=scale)
            self._count(group, parameters - keys_parameters, size - keys_size, len(layers), scale=scale)
        else:
            self._count(group, parameters, size, len(layers), scale=scale)
        if group not in _OUTSIDE and layer >= 0:
            sums = self._layers[layers]
            sums[0] += size
            sums[1] += size if group == Group.EXPERTS else 0

    def _recurrent(self, layer: int) -> bool:
        """Some checkpoints name a recurrent mixer's projections as if they were attention's."""
        at = self._attentions[layer]
        return at.kind in {AttentionKind.LINEAR, AttentionKind.MAMBA} and not at.parallel

    def _keys_share(self, name: str, layer: int) -> float:
        """A fused projection belongs to two groups, in proportion to its heads."""
        if layer < 0 or not _FUSED.search(name):
            return 0.0
        at = self._attentions[layer]
        keys = (at.kv_heads or at.heads) * (at.key_length + at.value_length)
        return keys / max(1, keys + at.heads * at.key_length)

    def _count(self, group: Group, parameters: int, size: int, times: int, *, scale: bool) -> None:
        sums = self._groups[group]
        sums[0] += parameters * times
        sums[1] += size * times
        sums[2] += size * times if scale else 0

    def drop(self, group: Group) -> None:
        """Take a group out again: it is in the files, but no engine keeps it."""
        self._groups.pop(group, None)

    def groups(self) -> tuple[Tensors, ...]:
        return tuple(Tensors(group, *self._groups[group]) for group in Group if any(self._groups.get(group, ())))

    def stored(self) -> tuple[Stored, ...]:
        return tuple(Stored(dtype, size) for dtype, size in sorted(self._types.items()))

    def layers(self) -> tuple[Layer, ...]:
        sizes = [[0, 0] for _ in self._attentions]
        for layers, (size, experts) in self._layers.items():
            for layer in layers:
                if layer < len(sizes):
                    sizes[layer][0] += size
                    sizes[layer][1] += experts
        return tuple(Layer(at, *size) for at, size in zip(self._attentions, sizes, strict=True))


def active(groups: Sequence[Tensors], share: float) -> int:
    """Parameters that one text token passes. `share`: of the routed experts."""
    skipped = {Group.VISION, Group.AUDIO, Group.PROJECTOR, Group.MTP}
    return sum(
        round(tensors.parameters * share) if tensors.group == Group.EXPERTS else tensors.parameters
        for tensors in groups
        if tensors.group not in skipped
    )


def keeps_cache(at: Attention) -> bool:
    """Whether the layer has keys and values, or a latent, of its own."""
    return at.shares_with < 0 and at.kv_heads > 0 and at.kind != AttentionKind.CROSS
