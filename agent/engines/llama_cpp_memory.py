"""How llama.cpp's memory behaves on the host: exact where its allocators are, measured where they are not.

The formulas, and how they compare with real runs: docs/decisions/0003-llama-cpp-memory.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from agent.models.profile import ModelProfile
from agent.planning.plan import Limits, MemoryTerm

#: Bytes per element of the cache types: ggml's block sizes (q8_0: 32 values in 34 bytes, and so on).
CACHE_BYTES: Mapping[str, float] = MappingProxyType(
    {
        "f32": 4.0,
        "f16": 2.0,
        "bf16": 2.0,
        "q8_0": 34 / 32,
        "q5_1": 24 / 32,
        "q5_0": 22 / 32,
        "q4_1": 20 / 32,
        "q4_0": 18 / 32,
        "iq4_nl": 18 / 32,
    }
)
#: Tokens computed at once while generating: llama-server's own default. More costs memory and gains little on a CPU.
PHYSICAL_BATCH = 512
#: Cells of a slot are allocated in multiples of this many tokens (`GGML_PAD(n_ctx, 256)` in llama-context.cpp).
CELL_PADDING = 256
#: Architectures whose graph was measured; for others the compute buffer is the same formula with a wide margin.
_MEASURED = frozenset({"llama"})
_MIB = 1024**2


def physical_batch(limits: Limits, task: str) -> int:
    """Tokens computed at once (`--ubatch-size`). A whole input must fit where the answer is one vector: the server
    refuses longer ones.
    """
    if task in {"embedding", "rerank"}:
        return limits.max_model_len
    return min(PHYSICAL_BATCH, limits.max_num_batched_tokens)


def memory_terms(profile: ModelProfile, limits: Limits, task: str) -> tuple[MemoryTerm, ...]:
    """Host memory of one instance."""
    return (
        MemoryTerm("weights", profile.tensor_bytes, "sum of the tensors' bytes in the file"),
        _kv_cache(profile, limits),
        _compute(profile, limits, task),
        # Tokens, merges and their hash maps, sampler candidates: 0.4 to 0.95 KiB a token were measured.
        MemoryTerm("vocabulary", profile.vocabulary * 1024, "1 KiB a token, measured"),
        # Code and libraries 24 MiB, heap and HTTP threads 18 MiB, measured; the rest is for requests in flight.
        MemoryTerm("process", 48 * _MIB, "measured", uncertainty=8 * _MIB),
    )


def _slot_cells(limits: Limits) -> int:
    return -(-limits.max_model_len // CELL_PADDING) * CELL_PADDING


def _kv_cache(profile: ModelProfile, limits: Limits) -> MemoryTerm:
    """Exact. Sliding-window layers keep less; they are counted whole, as an upper bound."""
    cells = _slot_cells(limits) * limits.max_num_seqs
    per_cell = sum(profile.kv_heads) * (profile.key_length + profile.value_length)
    return MemoryTerm(
        "KV cache",
        int(cells * per_cell * CACHE_BYTES[limits.kv_cache_dtype]),
        f"{cells} cells x {per_cell} elements x {CACHE_BYTES[limits.kv_cache_dtype]:g} bytes",
    )


def _compute(profile: ModelProfile, limits: Limits, task: str) -> MemoryTerm:
    """The graph's scratch buffer, the output buffer and the threads' work buffer.

    Per token of the physical batch, in 4-byte floats: five vectors of the embedding's width live at the widest point
    of a layer, with three of the feed-forward's width; at the graph's end the feed-forward ones are gone and each
    output token has a row of logits instead. The attention mask is one 2-byte value a token and cell of its slot.
    """
    batch = physical_batch(limits, task)
    outputs = batch if task in {"embedding", "rerank"} else limits.max_num_seqs
    widest = max(3 * profile.feed_forward_length * batch, profile.vocabulary * outputs)
    graph = 4 * (5 * profile.embedding_length * batch + widest) + 2 * _slot_cells(limits) * batch
    output = 4 * profile.vocabulary * limits.max_num_seqs
    work = 2 * max(profile.feed_forward_length, profile.embedding_length) * batch
    total = graph + output + work
    margin = 0 if profile.architecture in _MEASURED else total // 2
    return MemoryTerm("compute", total, f"graph for {batch} tokens, {outputs} outputs", uncertainty=margin)
