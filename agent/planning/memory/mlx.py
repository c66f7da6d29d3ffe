"""MLX LM: unified memory, weights whole, a cache that grows as tokens come, and a limit on what may be wired.

Sources: mlx-lm's `server.py`, `models/cache.py` (steps of 256 tokens), `generate.py` (prefill steps of 2048); Metal's
`recommendedMaxWorkingSetSize`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from agent.models.profile import ModelProfile
from agent.planning.memory import kv_cache
from agent.planning.memory.base import GIB, MIB, Estimate, Request, gib, padded, spread
from agent.planning.memory.decision import decided
from agent.planning.plan import MemoryTerm

STEP, PREFILL = 256, 2048
#: Bytes of an element by cache type: the model's own, or integers in groups of 64 with a scale and a bias of 16 bit.
CACHE_TYPES: Mapping[str, float] = MappingProxyType({"auto": 2.0, "int8": 8.5 / 8, "int4": 4.5 / 8})


def estimate(profile: ModelProfile, request: Request) -> Estimate:
    longest = request.max_model_len or profile.context_length or 4096
    request = replace(request, max_model_len=longest, max_num_seqs=request.max_num_seqs or 1, utilization=1.0)
    terms = (
        weights(profile),
        activations(profile),
        MemoryTerm("process", 400 * MIB, "Python, Metal's kernels, and freed buffers kept", uncertainty=300 * MIB),
    )
    limit = working_set(request.card.total)
    free = min(limit, request.card.free) if request.card.free is not None else limit
    pool = MemoryTerm(
        "KV cache", free - sum(term.bytes for term in terms), f"{gib(limit)} may be wired, less the other terms",
        uncertainty=spread(terms),
    )  # fmt: skip
    each = kv_cache.bytes_per_token(profile, "auto")
    needed = request.max_num_seqs * sequence_bytes(profile, longest)
    return decided(request, terms, pool, kv_cache.Layout(needed, 1, STEP, 1), None, each)


def weights(profile: ModelProfile) -> MemoryTerm:
    return MemoryTerm("weights", profile.tensor_bytes, "tensors of the files")


def activations(profile: ModelProfile, tokens: int = PREFILL) -> MemoryTerm:
    """Of `tokens` of a prompt that are computed at once."""
    widest = max(3 * profile.feed_forward_length, 4 * profile.embedding_length)
    size = 2 * tokens * widest + 4 * profile.vocabulary
    return MemoryTerm("activation peak", size, f"{tokens} tokens of a prompt", uncertainty=size)


def sequence_bytes(profile: ModelProfile, length: int, kind: str = "auto") -> int:
    """Cache and states of one sequence. The model's own type is a 16-bit one, but where it has 32."""
    width = 4.0 if kind == "auto" and profile.dtype == "float32" else CACHE_TYPES[kind]
    each = kv_cache.bytes_per_token(profile, "auto") / 2 * width
    states = sum(count * kv_cache.state_bytes(at, 1) for at, count in kv_cache.attentions(profile).items())
    return int(padded(length, STEP) * each) + states


def working_set(total: int) -> int:
    """What Metal recommends to wire: two thirds of a small machine's memory, three quarters of a large one's."""
    return total * 2 // 3 if total <= 36 * GIB else total * 3 // 4
