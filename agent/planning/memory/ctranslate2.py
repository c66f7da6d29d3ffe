"""CTranslate2: weights in the type that they were converted or are loaded to, a cache by beam, no pool.

Sources: CTranslate2's `src/models/model.cc` (`compute_type`), `src/layers/attention.cc`, its documentation's
"Quantization" page.
"""

from __future__ import annotations

from dataclasses import replace

from agent.models.profile import Group, ModelProfile
from agent.planning.memory import kv_cache
from agent.planning.memory.base import MIB, Estimate, Request, gib, spread
from agent.planning.memory.decision import decided
from agent.planning.plan import MemoryTerm

#: Bytes a weight of the linear layers and of embeddings, by compute type.
_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int16": 2.0, "int8": 1.0, "int4": 0.5}
BEAMS = 1


def estimate(profile: ModelProfile, request: Request) -> Estimate:
    longest = request.max_model_len or profile.context_length or 2048
    request = replace(request, max_model_len=longest, max_num_seqs=request.max_num_seqs or 32, utilization=1.0)
    terms = (
        weights(profile, request.quantization),
        activations(profile, request.max_num_seqs * BEAMS),
        MemoryTerm("context", 400 * MIB, "driver and libraries", uncertainty=200 * MIB),
    )
    free = request.card.free if request.card.free is not None else request.card.total
    pool = MemoryTerm(
        "KV cache", free - sum(term.bytes for term in terms), f"{gib(free)}, less the other terms",
        uncertainty=spread(terms),
    )  # fmt: skip
    per_token = kv_cache.bytes_per_token(profile, "auto")
    return decided(request, terms, pool, kv_cache.Layout(per_token * longest, 1, 1, 1), None, per_token)


def weights(profile: ModelProfile, kind: str) -> MemoryTerm:
    """In the type that it computes in; "": as stored."""
    each = _BYTES.get(kind.split("_", maxsplit=1)[0], 0.0)
    norms = profile.group(Group.NORM).parameters
    held = int((profile.parameters - norms) * each + 4 * norms) if each else profile.tensor_bytes
    return MemoryTerm("weights", held, f"{kind or 'as stored'}, with their scales", uncertainty=held // 100)


def activations(profile: ModelProfile, rows: int, prompt: int = 0) -> MemoryTerm:
    """Of `rows` sequences that generate, each after `prompt` tokens that were computed at once."""
    inner = 4 * max(profile.feed_forward_length, profile.embedding_length)
    size = 4 * rows * (profile.vocabulary + inner * max(1, prompt))
    return MemoryTerm("activation peak", size, f"{rows} rows of logits", uncertainty=size)
