"""How MLX LM's memory behaves: everything on one device, or everything in the host's memory."""

from __future__ import annotations

from agent.models.profile import ModelProfile
from agent.planning.memory import mlx
from agent.planning.memory.base import MIB
from agent.planning.plan import Limits, MemoryTerm, Placement

#: Python with mlx-lm and transformers: 84 MiB resident on Linux once a small model answers; requests in flight and
#: what malloc keeps come on top.
_PROCESS = MemoryTerm("process", 128 * MIB, "measured", uncertainty=64 * MIB)
#: What a device holds besides: kernels, the driver's context, freed buffers that are kept.
_DEVICE = MemoryTerm("context", 400 * MIB, "kernels, and freed buffers kept", uncertainty=300 * MIB)


PROMPT_CACHE = "prompt cache"


def prompt_cache_bytes(profile: ModelProfile, limits: Limits) -> int:
    """What finished prompts may keep for the next turn: as much as one request of the longest length."""
    return mlx.sequence_bytes(profile, limits.max_model_len, limits.kv_cache_dtype)


def memory_terms(profile: ModelProfile, limits: Limits, placement: Placement) -> tuple[tuple[MemoryTerm, ...], ...]:
    each = prompt_cache_bytes(profile, limits)
    held = (
        mlx.weights(profile),
        MemoryTerm("KV cache", each * limits.max_num_seqs, f"{limits.max_num_seqs} sequences x {each} bytes"),
        MemoryTerm(PROMPT_CACHE, each, "of finished requests: as one more sequence"),
        mlx.activations(profile, limits.max_num_batched_tokens),
    )
    return ((*held, _PROCESS),) if not placement.layers else ((_PROCESS,), (*held, _DEVICE))
