"""llama.cpp, and what is built on it: whole layers on devices, a cache of fixed size, one compute buffer a device.

Sources: llama.cpp's `llama-context.cpp` (`graph_reserve`), `llama-kv-cache.cpp`, `llama-kv-cache-iswa.cpp`,
`llama-memory-recurrent.cpp`; docs/decisions/0003-llama-cpp-memory.md for the compute buffer.
"""

from __future__ import annotations

from dataclasses import replace

from agent.models.profile import Attention, ModelProfile
from agent.planning.memory import kv_cache
from agent.planning.memory.base import MIB, Estimate, Request, gib, padded, spread, vector_bytes
from agent.planning.memory.decision import decided
from agent.planning.memory.layers import layers_of
from agent.planning.plan import MemoryTerm

#: Cells of a sequence are allocated in multiples of this.
CELLS = 256
#: Tokens of one computed batch where none are asked for (`--ubatch-size`).
UBATCH = 512


def defaults(request: Request, profile: ModelProfile) -> Request:
    return replace(
        request,
        max_model_len=request.max_model_len or profile.context_length or 4096,
        max_num_seqs=request.max_num_seqs or 1,
        ubatch=request.ubatch or UBATCH,
        utilization=1.0,
    )


def estimate(profile: ModelProfile, request: Request) -> Estimate:
    """All layers on `tensor` devices, split by layers; the embedding stays on the host."""
    request = defaults(request, profile)
    devices, kind = max(1, request.tensor), "f16" if request.kv_dtype == "auto" else request.kv_dtype
    body = profile.tensor_bytes - profile.embedding_bytes + (profile.embedding_bytes if profile.tied else 0)
    share = -(-body // devices)
    unsure = 0 if devices == 1 else int(share * 0.08)  # layers of one file differ, and stay whole
    cache, states = cache_bytes(profile, request.max_model_len, request.max_num_seqs, request.ubatch, kind)
    terms = (
        MemoryTerm("weights", share, "tensors of the file without the embedding", uncertainty=unsure),
        _compute(profile, request, kind, devices),
        MemoryTerm("context", 512 * MIB, "driver and libraries; 451 to 753 MiB were seen", uncertainty=256 * MIB),
    )
    free = request.card.free if request.card.free is not None else request.card.total
    pool = MemoryTerm(
        "KV cache", free - sum(term.bytes for term in terms), f"{gib(free)}, less the other terms",
        uncertainty=spread(terms),
    )  # fmt: skip
    needed = -(-(cache + states) // devices)
    per_token = cache / (padded(request.max_model_len, CELLS) * request.max_num_seqs)
    layout = kv_cache.Layout(needed, 1, CELLS, 1)
    return decided(request, terms, pool, layout, None, per_token)


def cache_bytes(profile: ModelProfile, length: int, sequences: int, ubatch: int, kind: str) -> tuple[int, int]:
    """Of all layers: cells for every token of each sequence, fewer where there is a window; and states in
    32 bit.
    """
    cells, states = cells_before(profile, length, sequences, ubatch, kind)
    return cells[-1], states[-1]


def cells_before(
    profile: ModelProfile, length: int, sequences: int, ubatch: int, kind: str
) -> tuple[list[int], list[int]]:
    """Bytes that the layers before each keep, and last that all keep: cells, and states."""
    cells = padded(length, CELLS)

    def cache(at: Attention) -> int:
        if not kv_cache.has_cache(at):
            return 0
        held = min(cells, padded(at.window + ubatch, CELLS)) if at.window else cells
        latent = at.latent + at.rope_length
        return held * sequences * (vector_bytes(kind, latent) if at.latent else kv_cache.token_bytes(at, kind))

    def state(at: Attention) -> int:
        return sequences * kv_cache.state_bytes(at, 1, conv=4, state=4) if kv_cache.is_recurrent(at) else 0

    layers = layers_of(profile)
    return layers.accumulated(cache), layers.accumulated(state)


def _compute(profile: ModelProfile, request: Request, kind: str, devices: int) -> MemoryTerm:
    """Rows of the batch in 4-byte floats at the graph's widest point: logits of every token (the reserved graph has
    them all), the feed-forward's inner vectors, or without flash attention the scores of all heads. A quantized cache
    is unpacked to 16 bit, a layer at a time.
    """
    batch, cells = request.ubatch, padded(request.max_model_len, CELLS)
    wide = max(profile.vocabulary, 3 * profile.feed_forward_length)
    scores = 0 if request.flash else profile.heads * cells
    graph = 4 * batch * (max(wide, scores + 2 * profile.embedding_length) + 3 * profile.embedding_length)
    mask = 2 * batch * cells * (4 if devices > 1 else 1)
    unpacked = 0
    if kind not in {"f16", "bf16", "f32"}:
        widest = max((at.kv_elements for at in kv_cache.attentions(profile)), default=0)
        unpacked = 2 * cells * widest
    size = graph + mask + unpacked
    return MemoryTerm("compute", size, f"graph for {batch} tokens", uncertainty=size // 4)
