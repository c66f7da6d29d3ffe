"""vLLM: three generations of accounting. The pool is what the allowed share of the device leaves after a trial run.

Sources (versions 0.8.5, 0.11, 0.16, 0.21, 0.28 and 0.33 were read): `v1/worker/gpu_worker.py`
(`determine_available_memory`), `utils/mem_utils.py` (`memory_profiling`), `v1/worker/gpu_model_runner.py`
(`profile_run`, `_dummy_sampler_run`, `profile_cudagraph_memory`), `v1/worker/gpu/model_runner.py`,
`v1/sample/ops/topk_topp_sampler.py`, `engine/arg_utils.py` (defaults), `config/vllm.py` (capture sizes),
`model_executor/layers/fused_moe/fused_moe.py`, `model_executor/layers/quantization/mxfp4.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter

from agent.models.profile import Attention, AttentionKind, Group, ModelProfile
from agent.planning.memory import kv_cache
from agent.planning.memory.base import (
    GIB,
    KIB,
    MIB,
    Card,
    Estimate,
    Request,
    divided,
    gib,
    padded,
    spread,
)
from agent.planning.memory.decision import fullest, judged
from agent.planning.memory.kv_cache import Page
from agent.planning.memory.layers import remembered
from agent.planning.memory.loading import adapted
from agent.planning.memory.weights import Split, different, loaded
from agent.planning.plan import MemoryTerm

#: The newest version whose code was read; what is asked of an unnamed version.
NEWEST = (0, 33, 0)
#: From here on graphs are estimated and taken off the pool, and everything that the process holds counts.
GRAPHS_COUNTED = (0, 21)
#: From here on dense models run on the second model runner, whose trial sampler keeps only the logits; then hybrids
#: too; and from the last one on its trial run includes the sampler's 32-bit copies.
SECOND_RUNNER, SECOND_RUNNER_HYBRID, SECOND_SAMPLER_COUNTED = (0, 27), (0, 29), (0, 33)
#: From here on layers with a window have groups of blocks of their own.
HYBRID_CACHE = (0, 10)
#: Up to here the size of the pool was printed as the blocks of one group.
CONCURRENCY_PRINTED = (0, 20)
#: From here on a Mamba-2 layer keeps one state more where prefixes are cached: that of the last boundary of a block
#: within a prompt (`mamba_mixer2.py`, `num_prefill_checkpoint_blocks`). Read in 0.32; when it came was not looked for.
CHECKPOINTED = (0, 32)
#: Model types whose recurrent layers are of another kind than Mamba-2.
_OTHER_STATES = frozenset({"mamba", "falcon_mamba", "jamba", "lfm2", "lfm2_moe", "plamo2"})

#: Bytes a logit at the widest point of the sampler that sorts: 16- and 32-bit logits, the sorted ones with their
#: 64-bit indices, probabilities, their sums, masks, and the sort's own workspace. Six runs without another large term
#: give 38.4 to 38.9.
SORTING_SAMPLER = 38.6
#: The same without sorting: 16- and 32-bit logits, probabilities, noise (2 + 4 + 4 + 4).
PLAIN_SAMPLER = 14.0
#: From here on the top-k and top-p masks need no sorting (`topk_topp_triton.py`).
UNSORTED = (0, 17)
#: The second runner's: logits as the model gives them, and what ranks gather.
BLOCK_SAMPLER = 6.0
#: What a real sampling step takes that the second runner's trial left out: 32-bit logits, probabilities, and both
#: renormalized.
WARM_SAMPLER = 20.0
#: Bytes of one captured graph as new versions estimate them (at least 1 MiB each, and the first one's buffers), and of
#: one layer's piece of a graph as old ones took them.
GRAPH, PIECE = 6 * MIB, 400 * KIB
#: What compiled models keep longer than eager ones in the trial run; 0 to 0.8 GiB were seen.
COMPILED = 384 * MIB
#: Vectors of the model's width that live beside a layer's widest point: residual, input and normalized input.
STREAMS = 3


def defaults(request: Request, profile: ModelProfile) -> Request:
    """The request with what vLLM chooses where nothing is asked."""
    asked = (request.version, request.max_model_len, request.max_num_seqs, request.max_num_batched_tokens)
    if all(asked) and request.utilization is not None:
        return request
    version = request.version or NEWEST
    longest = request.max_model_len or profile.context_length or 2048
    utilization = request.utilization
    if utilization is None:
        utilization = 0.92 if version >= (0, 17) and not request.legacy else 0.9
    if request.legacy:
        sequences = request.max_num_seqs or 256
        chunked = longest > 32768 and len(profile.modalities) == 1
        batch = request.max_num_batched_tokens or (2048 if chunked else max(longest, 2048))
    else:
        batch, sequences = request.max_num_batched_tokens, request.max_num_seqs
        batch, sequences = usual_batch(request.card, version, longest, batch, sequences)
    return replace(
        request, version=version, utilization=utilization, max_model_len=longest, max_num_seqs=sequences,
        max_num_batched_tokens=batch,
    )  # fmt: skip


def usual_batch(
    card: Card, version: tuple[int, ...], longest: int, batch: int = 0, sequences: int = 0
) -> tuple[int, int]:
    """Tokens of a batch and sequences on such a device, where they are not asked for."""
    big = card.total >= 70 * GIB and "a100" not in card.name.lower() and card.capability != (12, 1)
    huge = card.total >= 160 * GIB and version >= (0, 11)
    many = sequences or (1024 if big else 256)
    tokens = batch or min(16384 if huge else 8192 if big else 2048, many * longest)
    return tokens, sequences or min(many, tokens)


def estimate(profile: ModelProfile, request: Request) -> Estimate:
    """The device that holds most; raises `KeyError` for a cache type that is not known."""
    stated = request.utilization is not None
    request = defaults(request, profile)
    found = fullest([_stage(profile, request, stage) for stage in different(profile, request.pipeline)])
    return found if stated else replace(found, assumed=("the share of memory is the version's default",))


def _stage(profile: ModelProfile, request: Request, stage: int) -> Estimate:
    # Replicas share the routed experts, whole ones or slices (`FusedMoEParallelConfig`).
    split = Split(
        request.tensor, request.tensor, request.tensor * request.data, stage, request.pipeline, request.expert
    )
    media = not request.text_only
    terms = [
        *loaded(adapted(profile, request), split, media=media, predictor=request.predictor),
        *latent_projections(profile, split),
        *_draft(request, split),
        *_adapters(profile, request, split),
        _activation(profile, request, split),
        _outside(request),
    ]
    graphs = _graphs(profile, request, split)
    if request.version >= GRAPHS_COUNTED and not request.legacy:
        terms.append(graphs)
        beyond = _warm_up(profile, request, None)
    else:
        beyond = _warm_up(profile, request, graphs)
    budget = int((request.utilization or 0) * request.card.total)
    used = sum([term.bytes for term in terms])
    pool = MemoryTerm(
        "KV cache", budget - used, f"{request.utilization:g} of {gib(request.card.total)}, less the other terms",
        uncertainty=spread(terms),
    )  # fmt: skip
    layout = cache_layout(profile, request, split)
    found = judged(request, tuple(terms), pool, layout.needed, beyond)
    tokens, concurrency = counted(pool.bytes, layout, request)
    return Estimate(
        terms=tuple(terms),
        pool=pool,
        tokens=tokens,
        concurrency=concurrency,
        bytes_per_token=_printed(request, layout),
        needed=layout.needed,
        beyond=beyond,
        verdict=found.verdict,
        shortfall=found.shortfall,
        reason=found.reason,
        remedy=found.remedy,
    )


def counted(pool: int, layout: kv_cache.Layout, request: Request) -> tuple[int, float]:
    """Tokens and requests of so many bytes, as the engine will print them: it counts whole blocks."""
    if not layout.needed:
        return 0, 0.0
    blocks = max(0, pool) // layout.block_bytes
    concurrency = blocks / layout.blocks_a_request
    if request.legacy or request.version < CONCURRENCY_PRINTED:
        return blocks // layout.groups * layout.block, concurrency
    return int(concurrency * request.max_model_len), concurrency


def _printed(request: Request, layout: kv_cache.Layout) -> float:
    """Bytes a token, as the log line "GPU KV cache size" counts tokens."""
    if not layout.block_bytes:
        return 0.0
    if request.legacy or request.version < CONCURRENCY_PRINTED:
        return layout.block_bytes * layout.groups / layout.block
    return layout.needed / request.max_model_len


# The cache


def cache_layout(profile: ModelProfile, request: Request, split: Split) -> kv_cache.Layout:
    if any(at.compression for at in kv_cache.attentions(profile)):
        return kv_cache.compressed_layout(profile, request.max_model_len, request.max_num_batched_tokens)
    if request.draft is None:
        pages = remembered(profile, ("pages", split, *_paging(request)), lambda: _pages(profile, request, split))
    else:
        pages = _pages(profile, request, split)
    return kv_cache.layout(
        pages.of, request.max_model_len, request.max_num_batched_tokens, hybrid=pages.hybrid, states=pages.states
    )


@dataclass(frozen=True, slots=True)
class _Pages:
    """What layers keep, for `kv_cache.layout`."""

    of: Sequence[tuple[Page, int]]
    hybrid: bool
    states: int


#: What of a request decides about pages, beside a draft model.
_paging = attrgetter(
    "version", "legacy", "pipeline", "kv_dtype", "block", "prefix_caching", "predictor", "speculative", "state_dtype"
)


def _pages(profile: ModelProfile, request: Request, split: Split) -> _Pages:
    kind, ranks = _cache_type(profile, request), split.attention
    layers = kv_cache.attentions(profile, split.layers(profile.layers) if request.pipeline > 1 else None)
    recurrent = {at: count for at, count in layers.items() if kv_cache.is_recurrent(at)}
    caching = {at: count for at, count in layers.items() if kv_cache.has_cache(at)}
    block = request.block or (64 if any(at.latent for at in caching) else 16)
    sizes = {at: _token(at, kind, ranks, padded_latent=request.legacy) for at in caching}
    if request.draft is not None and split.last:
        for at, count in kv_cache.attentions(request.draft).items():
            if kv_cache.has_cache(at):
                caching[at] = caching.get(at, 0) + count
                sizes[at] = _token(at, kind, ranks, padded_latent=False)
    heads = profile.mtp_layers or 1 if request.predictor else 1 if request.speculative and request.draft is None else 0
    if heads and caching and split.last:  # EAGLE's head and MTP layers attend like the model's own
        caching[max(caching, key=lambda at: sizes[at])] += heads
    states = {at: kv_cache.state_bytes(at, ranks, state=_state_element(request)) for at in recurrent}
    page_of_state = max(states.values(), default=0)
    if page_of_state:
        block, page_of_state = kv_cache.aligned(max(sizes.values(), default=0), page_of_state, block)
    pages = [(Page(size * block, block, at.window), caching[at]) for at, size in sizes.items() if size]
    pages += [(Page(page_of_state, block, state=True), count) for count in recurrent.values()]
    pages += [
        (Page(kv_cache.index_bytes(at) * block, block), count) for at, count in caching.items() if at.index_length
    ]
    hybrid = request.version >= HYBRID_CACHE and not request.legacy
    kept = 1
    if request.prefix_caching and request.version >= (0, 14) and caching:  # without attention nothing is kept
        kept = 3 if _checkpoints(profile, request, recurrent) else 2
    return _Pages(pages, hybrid or bool(states), kept)


def _checkpoints(profile: ModelProfile, request: Request, recurrent: Iterable[Attention]) -> bool:
    mamba = any(at.state_elements and (at.kind == AttentionKind.MAMBA or at.parallel) for at in recurrent)
    return mamba and request.version >= CHECKPOINTED and profile.model_type not in _OTHER_STATES


def _token(at: Attention, kind: str, ranks: int, *, padded_latent: bool) -> int:
    if at.latent and padded_latent and kind == "auto":
        return 2 * padded(at.latent + at.rope_length, 128)  # the kernels of that time wanted 640 instead of 576
    return kv_cache.token_bytes(at, kind, ranks)


def _state_element(request: Request) -> int:
    """Bytes of an element of a recurrent state: the model's type unless another is asked for."""
    return 4 if request.state_dtype == "float32" else 2


def _cache_type(profile: ModelProfile, request: Request) -> str:
    if request.kv_dtype != "auto":
        sparse = any(at.index_length and at.latent for at in kv_cache.attentions(profile))
        if request.kv_dtype.startswith("fp8"):
            return "fp8_ds_mla" if sparse else "fp8"
        return request.kv_dtype
    asked = profile.quantization_config.kv_cache if profile.quantization_config is not None else ""
    return "fp8" if asked.startswith("fp8") else "auto"


# The other terms


def latent_projections(profile: ModelProfile, split: Split) -> tuple[MemoryTerm, ...]:
    """MLA: the value and key parts of `kv_b_proj`, unpacked to 16 bit for decoding, beside the projection itself."""
    elements = sum(
        count * divided(at.heads, split.attention) * (at.key_length - at.rope_length + at.value_length) * at.latent
        for at, count in kv_cache.attentions(
            profile, split.layers(profile.layers) if split.stages > 1 else None
        ).items()
        if at.latent
    )
    if not elements:
        return ()
    return (MemoryTerm("weights: absorbed projections", 2 * elements, "kv_b_proj once more, in 16 bit, for decoding"),)


def _draft(request: Request, split: Split) -> tuple[MemoryTerm, ...]:
    if request.draft is None or not split.last:
        return ()
    parts = loaded(request.draft, replace(split, stage=0, stages=1))
    return (MemoryTerm("weights: draft model", sum(part.bytes for part in parts), "as the model's own"),)


def _adapters(profile: ModelProfile, request: Request, split: Split) -> tuple[MemoryTerm, ...]:
    """LoRA slots: A and B of every projection, A whole and B split (`lora/layers`)."""
    if not request.lora_slots:
        return ()
    hidden, inner, at = profile.embedding_length, profile.feed_forward_length, _widest(profile)
    outs = at.heads * at.key_length + at.kv_heads * (at.key_length + at.value_length) + 2 * inner + 2 * hidden
    ins = 4 * hidden + 2 * hidden + inner
    size = 2 * profile.layers * request.lora_rank * (ins + divided(outs, split.tensor)) * request.lora_slots
    return (MemoryTerm("LoRA slots", size, f"{request.lora_slots} of rank {request.lora_rank}", uncertainty=size // 5),)


def _widest(profile: ModelProfile) -> Attention:
    return remembered(profile, ("widest attention",), lambda: _widest_attention(profile))


def _widest_attention(profile: ModelProfile) -> Attention:
    found = [at for at in kv_cache.attentions(profile) if kv_cache.has_cache(at)]
    return max(found, key=lambda at: at.heads * at.key_length, default=Attention(AttentionKind.NONE))


def runs_on_second(profile: ModelProfile, request: Request) -> bool:
    """Whether the second model runner is used: asked for, or the default for the model."""
    if request.legacy:
        return False
    if request.overlaid or request.version >= SECOND_RUNNER_HYBRID:
        return True
    if profile.architecture in {"DeepseekV2ForCausalLM", "DeepseekV4ForCausalLM", "Qwen2MoeForCausalLM"}:
        return request.version >= SECOND_RUNNER
    if any(map(kv_cache.is_recurrent, kv_cache.attentions(profile))) or profile.moe is not None:
        return False
    return request.version >= SECOND_RUNNER


def sampler_bytes(profile: ModelProfile, request: Request) -> int:
    """The trial run samples for every sequence at once."""
    logits = padded(profile.vocabulary, 64) * min(request.max_num_seqs, request.max_num_batched_tokens)
    if runs_on_second(profile, request):
        each = PLAIN_SAMPLER if request.version >= SECOND_SAMPLER_COUNTED else BLOCK_SAMPLER
    else:
        each = PLAIN_SAMPLER if request.version >= UNSORTED and not request.legacy else SORTING_SAMPLER
    return int(each * logits)


def forward_bytes(profile: ModelProfile, split: Split, tokens: int) -> int:
    """The widest point of a layer for this many tokens, in 16 bit."""
    return 2 * tokens * remembered(profile, ("widest", split), lambda: _widest_point(profile, split))


def _widest_point(profile: ModelProfile, split: Split) -> int:
    """Values a token."""
    hidden, ranks = profile.embedding_length, split.tensor
    streams = STREAMS * hidden
    dense = 3 * divided(profile.feed_forward_length, ranks)
    moe = profile.moe
    sparse = 0
    if moe is not None and moe.count:
        inner = moe.length if split.whole_experts else divided(moe.length, ranks)
        # Inputs of the second product share their room with the outputs (`intermediate_cache13`).
        sparse = moe.active * (max(2 * inner, hidden) + inner) + hidden + 2 * moe.count
    at = _widest(profile)
    heads, kv = divided(at.heads, split.attention), divided(at.kv_heads, split.attention)
    attention = 2 * heads * at.key_length + kv * (at.key_length + at.value_length) + heads * at.value_length
    if at.latent:
        attention += heads * (at.key_length + at.value_length)
    recurrent = 0
    for other in kv_cache.attentions(profile):
        if kv_cache.is_recurrent(other):
            # What goes in and comes out of the scan, and the states between its chunks of 64 tokens, in 32 bit.
            width = other.conv_elements // 3
            recurrent = divided(4 * width + other.state_elements * 2 // 64, split.attention)
            break
    return streams + max(dense, sparse, attention, recurrent)


@dataclass(frozen=True, slots=True)
class Tower:
    """How an image tower works on the largest image: tokens of it for the text model, patches a token, and the 16-bit
    values a patch that live at the widest point of one of its layers, in widths of it.
    """

    tokens: int
    patches: int
    widths: float = 8.5  # input, norm, and a feed-forward four times as wide


#: By model type. A gated feed-forward keeps two inner vectors more.
_QWEN = Tower(16384, 4)
_TOWERS = {
    "qwen2_vl": _QWEN, "qwen2_5_vl": replace(_QWEN, widths=13.0), "qwen3_vl": _QWEN, "qwen3_vl_moe": _QWEN,
    "qwen3_5": _QWEN, "qwen3_5_moe": _QWEN, "gemma3": Tower(256, 16), "gemma4": Tower(280, 9),
    "llava_next": Tower(2928, 1), "llava": Tower(576, 1), "mistral3": Tower(3025, 4, 13.0),
}  # fmt: skip
_UNKNOWN_TOWER = Tower(4096, 4, 13.0)
#: Towers have about this many layers of 12 widths squared: their width follows from their size.
_TOWER_LAYERS, _TOWER_HEADS = 28, 16


def media_bytes(profile: ModelProfile, request: Request) -> tuple[int, int]:
    """The largest images that the batch may hold, through the tower; and what the attention scores of one image take
    where no fused kernel computes them.
    """
    parameters = profile.group(Group.VISION).parameters
    if request.text_only or not request.profile_media or not parameters:
        return 0, 0
    tower = _TOWERS.get(profile.model_type, _UNKNOWN_TOWER)
    tokens = max(tower.tokens, request.max_num_batched_tokens)
    width = (parameters / (12 * _TOWER_LAYERS)) ** 0.5
    size = int(2 * tokens * (tower.patches * tower.widths * width + profile.embedding_length))
    return size, 4 * _TOWER_HEADS * (tower.tokens * tower.patches) ** 2


def _activation(profile: ModelProfile, request: Request, split: Split) -> MemoryTerm:
    tokens, (media, scores) = request.max_num_batched_tokens, media_bytes(profile, request)
    parts = {
        "the layers": forward_bytes(profile, split, tokens),
        "the sampler": sampler_bytes(profile, request) if split.last else 0,
        "images": media if split.first else 0,
    }
    widest = max(parts, key=lambda name: parts[name])
    size = parts[widest]
    source = f"{widest}: {tokens} tokens, {request.max_num_seqs} sequences"
    if request.version >= GRAPHS_COUNTED and not request.legacy and not request.eager:
        size += COMPILED
    unsure = size // 8 if widest != "images" else size // 3
    if request.card.vendor == "amd" and split.first:
        unsure += scores
    return MemoryTerm("activation peak", size, source, uncertainty=unsure + 60 * MIB)


def _outside(request: Request) -> MemoryTerm:
    """What the driver, NCCL and kernels hold beside PyTorch's allocator."""
    ranks = request.tensor * request.pipeline * request.data
    base = 300 * MIB if request.version >= GRAPHS_COUNTED and not request.legacy else 120 * MIB
    if ranks == 1:
        return MemoryTerm("outside of PyTorch", base, "workspaces of kernels", uncertainty=150 * MIB)
    return MemoryTerm(
        "outside of PyTorch", base + 430 * MIB, f"workspaces of kernels, NCCL for {ranks} ranks", uncertainty=400 * MIB
    )


def capture_sizes(request: Request) -> tuple[int, int]:
    """How many batch sizes graphs are captured for, in pieces and (decoding only) whole."""
    if request.legacy:
        return len([1, 2, 4, *range(8, min(request.max_num_seqs, 256) + 1, 8)]), 0
    if request.version < (0, 11):
        return 67, 0
    most = min(2 * request.max_num_seqs, 1024 if request.card.capability[0] == 10 else 512)
    return _sizes_up_to(most), _sizes_up_to(min(request.max_num_seqs, most))


@cache
def _sizes_up_to(limit: int) -> int:
    small = sum(size <= limit for size in (1, 2, 4))
    return small + len(range(8, min(limit + 1, 256), 8)) + len(range(256, limit + 1, 16))


def _graphs(profile: ModelProfile, request: Request, split: Split) -> MemoryTerm:
    """Captured graphs, or the estimate that newer versions take off the pool instead."""
    if request.eager:
        return MemoryTerm("CUDA graphs", 0, "eager: none")
    pieces, whole = capture_sizes(request)
    if request.version >= GRAPHS_COUNTED and not request.legacy:
        size = GRAPH * (pieces + whole)
        source = f"{pieces + whole} graphs x {GRAPH / MIB:g} MiB, as the engine estimates them"
        return MemoryTerm("CUDA graphs", size, source, uncertainty=size // 2 + 100 * MIB)
    layers = len(split.layers(profile.layers))
    size = int(PIECE * pieces * layers)
    source = f"{pieces} sizes x {layers} layers x {PIECE / MIB:g} MiB"
    return MemoryTerm("CUDA graphs", size, source, uncertainty=size // 2)


def _warm_up(profile: ModelProfile, request: Request, graphs: MemoryTerm | None) -> MemoryTerm:
    """What is taken on top of the budget, after the pool is allocated: the process's context, graphs that were not
    counted, and the warm-up of a sampler that the trial run left out.
    """
    size, unsure, parts = 0, 0, []
    if graphs is not None:
        size, unsure = graphs.bytes, graphs.uncertainty
        parts.append("graphs")
    elif not request.eager:
        unsure = 300 * MIB  # what graphs take beyond their estimate
    if request.version < SECOND_SAMPLER_COUNTED and runs_on_second(profile, request):
        logits = padded(profile.vocabulary, 64) * request.max_num_seqs
        size, unsure = size + int(WARM_SAMPLER * logits), unsure + int(WARM_SAMPLER * logits) // 2
        parts.append("the sampler's warm-up")
    return MemoryTerm("beyond the budget", size, ", ".join(parts) or "nothing", uncertainty=unsure)
