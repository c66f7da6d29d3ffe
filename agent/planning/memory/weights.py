"""Weights on one rank: what is split, what every rank holds, what is padded, and what an engine adds while loading.

Sources: vLLM's `layers/linear.py`, `layers/vocab_parallel_embedding.py`, `layers/fused_moe/layer.py`,
`layers/attention/mla_attention.py`, `layers/rotary_embedding/base.py`; SGLang's files of the same names; PyTorch's
`c10/cuda/CUDACachingAllocator.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from agent.models.profile import AttentionKind, Basis, Group, ModelProfile
from agent.planning.memory.base import MIB, divided, padded
from agent.planning.memory.layers import layers_of, remembered
from agent.planning.plan import MemoryTerm

#: Rows of embedding and head are padded to a multiple of this, then split (`DEFAULT_VOCAB_PADDING_SIZE`).
VOCABULARY_PADDING = 64
#: What is split over the ranks of a layer, beside the groups with a rule of their own below.
_SPLIT = frozenset({Group.MLP, Group.SHARED_EXPERTS, Group.VISION, Group.MTP})
_VOCABULARY = frozenset({Group.EMBEDDING, Group.LM_HEAD})
_LAYERS = frozenset({
    Group.ATTENTION, Group.ATTENTION_KV, Group.ATTENTION_LATENT, Group.LINEAR_ATTENTION, Group.MLP, Group.EXPERTS,
    Group.SHARED_EXPERTS, Group.ROUTER, Group.NORM,
})  # fmt: skip
_MEDIA = frozenset({Group.VISION, Group.AUDIO, Group.PROJECTOR})
#: The allocator hands out large pieces in steps of this, and keeps what is left over up to `_KEPT` with them.
_STEP, _KEPT, _LARGE = 2 * MIB, 1 * MIB, 10 * MIB


@dataclass(frozen=True, slots=True)
class Split:
    """How a model is spread: over `tensor` ranks a layer, of which `attention` share the attention and `experts` all
    routed experts; `stage` of `stages` consecutive parts of the layers.
    """

    tensor: int = 1
    attention: int = 1
    experts: int = 1
    stage: int = 0
    stages: int = 1
    whole_experts: bool = False  # each rank has some experts, instead of slices of all

    @property
    def first(self) -> bool:
        return self.stage == 0

    @property
    def last(self) -> bool:
        return self.stage == self.stages - 1

    def layers(self, count: int) -> range:
        """This stage's layers. What does not divide evenly goes to the stages before the last one (`get_pp_indices`
        in vLLM's `distributed/utils.py`).
        """
        each, left = divmod(count, self.stages)
        sizes = [each + (0 < self.stages - 1 - index <= left) for index in range(self.stages)]
        start = sum(sizes[: self.stage])
        return range(start, start + sizes[self.stage])


def different(profile: ModelProfile, stages: int) -> Sequence[int]:
    """Of the stages of a pipeline, those that hold something else than each before them."""
    return remembered(profile, ("stages", stages), lambda: _different(profile, stages))


def _different(profile: ModelProfile, stages: int) -> Sequence[int]:
    found: dict[object, int] = {}
    layers = layers_of(profile)
    for stage in range(stages):
        split = Split(stage=stage, stages=stages)
        mine = split.layers(profile.layers)
        kinds = tuple(layers.attentions(mine).items())
        size = layers.bytes(mine) if profile.layer_details else ()
        found.setdefault((split.first, split.last, len(mine), size, kinds), stage)
    return tuple(found.values())


def heaviest(profile: ModelProfile, split: Split) -> int:
    """Bytes of the weights, at least, on a rank of the stage that has most of them."""
    stages = different(profile, split.stages)
    return remembered(
        profile,
        ("heaviest", split),
        lambda: max(
            sum(term.bytes - term.uncertainty for term in loaded(profile, replace(split, stage=stage)))
            for stage in stages
        ),
    )


def loaded(
    profile: ModelProfile, split: Split, *, media: bool = True, predictor: bool = False
) -> tuple[MemoryTerm, ...]:
    """The terms of one rank. `media`: towers are loaded. `predictor`: the model's own MTP layers are too."""
    key = ("loaded", split, media, predictor)
    return remembered(profile, key, lambda: _loaded(profile, split, media=media, predictor=predictor))


def _loaded(profile: ModelProfile, split: Split, *, media: bool, predictor: bool) -> tuple[MemoryTerm, ...]:
    stage = _share(profile, split)
    shared = whole = 0
    for tensors in profile.groups:
        group = tensors.group
        if not _is_held(profile, group, split, media=media, predictor=predictor):
            continue
        if group in _VOCABULARY:
            shared += _vocabulary(profile, tensors.bytes, split)
            continue
        size = int(tensors.bytes * stage[group == Group.EXPERTS]) if group in _LAYERS else tensors.bytes
        parts = _parts(profile, group, split)
        if parts > 1:
            shared += divided(size, parts)
        else:
            whole += size
    slack = (shared + whole) // 10 if profile.basis == Basis.BOUND else 0
    terms = [MemoryTerm("weights", shared + whole, _source(profile, split, whole), uncertainty=slack)]
    if extra := _rounding(profile, split) + _position_cache(profile):
        terms.append(MemoryTerm("weights: tables and padding", extra, "rotary table, and the allocator's 2 MiB steps"))
    return tuple(terms)


def _is_held(profile: ModelProfile, group: Group, split: Split, *, media: bool, predictor: bool) -> bool:
    """Whether a stage has any of a group."""
    if group in _MEDIA:
        return media and split.first
    if group == Group.MTP:
        return predictor and split.last
    if group == Group.EMBEDDING:
        return split.first or (profile.tied and split.last)
    return split.last if group == Group.LM_HEAD else True


def _source(profile: ModelProfile, split: Split, whole: int) -> str:
    basis = {
        Basis.TENSORS: "tensors of the files", Basis.CONFIG: "counted from the configuration",
        Basis.BOUND: "upper bound: the architecture is not known",
    }[profile.basis]  # fmt: skip
    ranks = max(split.tensor, split.experts) * split.stages
    return basis if ranks == 1 else f"{basis}, over {ranks} ranks; {whole} bytes on every one"


def _share(profile: ModelProfile, split: Split) -> tuple[float, float]:
    """Part of the layers' bytes in this stage: of everything but experts, and of experts."""
    if split.stages == 1:
        return 1.0, 1.0
    layers, mine = layers_of(profile), split.layers(profile.layers)
    dense, sparse = layers.bytes(range(len(profile.layer_details)))
    if not dense:
        return (len(mine) / max(1, profile.layers),) * 2
    held_dense, held_sparse = layers.bytes(mine)
    return held_dense / dense, held_sparse / sparse if sparse else 0.0


def _parts(profile: ModelProfile, group: Group, split: Split) -> int:
    """Over how many ranks a group is spread."""
    if group == Group.EXPERTS or (group == Group.MTP and profile.moe):
        return split.experts
    if group == Group.ATTENTION_KV:
        return min(split.attention, max(profile.kv_heads, default=1) or 1)
    if group in {Group.ATTENTION, Group.LINEAR_ATTENTION}:
        return split.attention
    return split.tensor if group in _SPLIT else 1


def _vocabulary(profile: ModelProfile, size: int, split: Split) -> int:
    """Embedding or head: padded rows, split. Learned positions lie in the same group and are not split."""
    if not profile.vocabulary:
        return size
    rows = padded(profile.vocabulary, VOCABULARY_PADDING)
    return divided(size * rows // profile.vocabulary, split.tensor)


def _position_cache(profile: ModelProfile) -> int:
    """Cosines and sines of all positions, in the model's type, once for all layers that rotate alike."""
    if profile.rope is None or not profile.context_length:
        return 0
    widths = {
        at.rope_length or at.key_length
        for at in layers_of(profile).different
        if at.kind not in {AttentionKind.NONE, AttentionKind.CROSS} and (at.rope_length or at.key_length)
    } or {profile.key_length}
    return sum(2 * profile.context_length * width for width in widths)


def _rounding(profile: ModelProfile, split: Split) -> int:
    """What the allocator adds to each large matrix: it takes steps of 2 MiB and splits off what is left only if that
    is more than 1 MiB.
    """
    return sum(
        count * wasted
        for count, size in _matrices(profile, split)
        if size >= _LARGE and (wasted := -size % _STEP) <= _KEPT
    )


def _matrices(profile: ModelProfile, split: Split) -> Iterator[tuple[int, int]]:
    """The large matrices of a dense 16-bit model as engines fuse them: how many, and bytes of one on a rank."""
    if profile.quantization_config is not None or profile.moe is not None or profile.format == "gguf":
        return
    hidden, bits = profile.embedding_length, 4 if profile.dtype == "float32" else 2
    layers = len(split.layers(profile.layers))
    at = next((at for at in layers_of(profile).different if at.kv_heads), None)
    if at is not None and not at.latent:
        heads, kv = divided(at.heads, split.attention), divided(at.kv_heads, split.attention)
        yield layers, bits * hidden * (heads * at.key_length + kv * (at.key_length + at.value_length))
        yield layers, bits * hidden * heads * at.value_length
    inner = divided(profile.feed_forward_length, split.tensor)
    yield layers, 2 * bits * hidden * inner
    yield layers, bits * hidden * inner
    rows = divided(padded(profile.vocabulary, VOCABULARY_PADDING), split.tensor)
    yield (1 if profile.tied else int(split.first) + int(split.last)), bits * hidden * rows
