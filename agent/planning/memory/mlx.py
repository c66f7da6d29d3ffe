"""MLX LM: unified memory, weights whole, a cache that grows as tokens come, and a limit on what may be wired.

Sources: mlx-lm's `server.py`, `models/cache.py` (steps of 256 tokens), `generate.py` (prefill steps of 2048); Metal's
`recommendedMaxWorkingSetSize`.
"""

from __future__ import annotations

from dataclasses import replace

from agent.models.profile import ModelProfile
from agent.planning.memory import kv_cache
from agent.planning.memory.base import GIB, MIB, Estimate, Request, gib, padded, spread
from agent.planning.memory.decision import decided
from agent.planning.plan import MemoryTerm

STEP, PREFILL = 256, 2048


def estimate(profile: ModelProfile, request: Request) -> Estimate:
    longest = request.max_model_len or profile.context_length or 4096
    request = replace(request, max_model_len=longest, max_num_seqs=request.max_num_seqs or 1, utilization=1.0)
    widest = max(3 * profile.feed_forward_length, 4 * profile.embedding_length)
    activations = 2 * PREFILL * widest + 4 * profile.vocabulary
    terms = (
        MemoryTerm("weights", profile.tensor_bytes, "tensors of the files"),
        MemoryTerm("activation peak", activations, f"{PREFILL} tokens of a prompt", uncertainty=activations),
        MemoryTerm("process", 400 * MIB, "Python, Metal's kernels, and freed buffers kept", uncertainty=300 * MIB),
    )
    limit = working_set(request.card.total)
    free = min(limit, request.card.free) if request.card.free is not None else limit
    pool = MemoryTerm(
        "KV cache", free - sum(term.bytes for term in terms), f"{gib(limit)} may be wired, less the other terms",
        uncertainty=spread(terms),
    )  # fmt: skip
    each = kv_cache.bytes_per_token(profile, "auto")
    states = sum(count * kv_cache.state_bytes(at, 1) for at, count in kv_cache.attentions(profile).items())
    needed = request.max_num_seqs * (padded(longest, STEP) * each + states)
    return decided(request, terms, pool, kv_cache.Layout(needed, 1, STEP, 1), None, each)


def working_set(total: int) -> int:
    """What Metal recommends to wire: two thirds of a small machine's memory, three quarters of a large one's."""
    return total * 2 // 3 if total <= 36 * GIB else total * 3 // 4
