"""How CTranslate2's memory behaves: weights in the type that it computes in, and a cache for each worker."""

from __future__ import annotations

from agent.models.profile import ModelProfile
from agent.planning.memory import ctranslate2, kv_cache
from agent.planning.memory.base import MIB
from agent.planning.plan import Limits, MemoryTerm, Placement

#: Python, the library and the tokenizer: 46 MiB resident with a small model; requests in flight come on top.
_PROCESS = MemoryTerm("process", 96 * MIB, "measured", uncertainty=48 * MIB)
_DEVICE = MemoryTerm("context", 400 * MIB, "driver and libraries", uncertainty=200 * MIB)


def memory_terms(profile: ModelProfile, limits: Limits, placement: Placement) -> tuple[tuple[MemoryTerm, ...], ...]:
    on_cpu = not placement.layers
    kind = computed_in(profile.quantization) if on_cpu else profile.quantization
    # Keys and values are as wide as what it computes in; they are copied when they grow by a token.
    width = 4 if on_cpu or kind.endswith("float32") else 2
    each = kv_cache.bytes_per_token(profile, "auto") // 2 * width * limits.max_model_len
    held = (
        ctranslate2.weights(profile, kind),
        MemoryTerm("KV cache", each * limits.max_num_seqs, f"{limits.max_num_seqs} sequences x {each} bytes"),
        ctranslate2.activations(profile, limits.max_num_seqs, limits.max_model_len),
    )
    return ((*held, _PROCESS),) if on_cpu else ((_PROCESS,), (*held, _DEVICE))


def computed_in(quantization: str) -> str:
    """On the CPU, 16-bit weights become 32-bit ones while they are loaded ("Implicit type conversion on load" in the
    library's documentation); integers stay, and what is beside them becomes 32 bit."""
    kind = quantization.partition("_")[0]
    return {"int8": "int8_float32", "int16": "int16"}.get(kind, "float32")
