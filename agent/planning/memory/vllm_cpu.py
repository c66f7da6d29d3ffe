"""vLLM on a CPU: nothing is measured at its start; the pool is what it is told, or the start fails.

Source (version 0.32): `platforms/cpu.py`, `v1/worker/cpu_worker.py`. docs/reference/engines/vllm.md has its own report
of the pool for each kind of attention.
"""

from __future__ import annotations

from dataclasses import replace

from agent.models.profile import ModelProfile
from agent.planning.memory import kv_cache, vllm
from agent.planning.memory.base import GIB, MIB, Estimate, Request, Verdict, gib
from agent.planning.memory.loading import adapted
from agent.planning.memory.weights import Split, loaded
from agent.planning.plan import MemoryTerm

#: Tokens a block; the kernel for MLA without AMX computes 16 only.
BLOCK, LATENT_BLOCK = 128, 16
#: The pool where nobody asks for more: what vLLM took itself on a CPU before it took a share of memory.
POOL = 4 * GIB
#: Of one rank. The kernels' own buffers, and what PyTorch keeps of freed memory.
BUFFERS = 256 * MIB


def defaults(profile: ModelProfile, request: Request) -> Request:
    """The request with what vLLM chooses on a CPU. MLA: prompts are computed at once, and prefixes not kept."""
    longest = request.max_model_len or profile.context_length or 2048
    latent = any(at.latent for at in kv_cache.attentions(profile))
    batch = request.max_num_batched_tokens or 2048
    return replace(
        request,
        version=request.version or vllm.NEWEST,
        max_model_len=longest,
        max_num_seqs=request.max_num_seqs or 256,
        max_num_batched_tokens=max(longest, 2048) if latent else batch,
        block=request.block or (LATENT_BLOCK if latent else BLOCK),
        prefix_caching=request.prefix_caching and not latent,
        eager=True,
    )


def layout(profile: ModelProfile, request: Request) -> kv_cache.Layout:
    """How the pool of one rank is divided. `request`: from `defaults`."""
    return vllm.cache_layout(profile, request, _WHOLE)


def estimate(profile: ModelProfile, request: Request) -> Estimate:
    """With `card` the host: `free` is what an instance may take. The pool is whole blocks: as many as all sequences of
    the longest length need, but no more than `POOL` where one of them fits that; with `utilization`, all of that share
    that the other terms leave. Raises `KeyError` for a cache type that is not known.
    """
    request = defaults(profile, request)
    terms = (
        *loaded(adapted(profile, request), _WHOLE),
        *vllm.latent_projections(profile, _WHOLE),
        _activation(profile, request),
    )
    blocks = layout(profile, request)
    used, unsure = sum(term.bytes for term in terms), sum(term.uncertainty for term in terms)
    room = (request.card.total if request.card.free is None else request.card.free) - used - unsure
    if request.utilization is not None:
        wanted, source = int(request.utilization * request.card.total) - used, f"{request.utilization:g} of the host"
    else:
        most = max(POOL, blocks.needed)
        wanted, source = min(request.max_num_seqs * blocks.needed, most), f"for all sequences, or {gib(most)}"
    size = max(0, min(room, wanted))
    if blocks.block_bytes:
        size = size // blocks.block_bytes * blocks.block_bytes
    found = Estimate(
        terms=terms,
        pool=MemoryTerm("KV cache", size, f"{source}, in whole blocks"),
        bytes_per_token=blocks.needed / request.max_model_len,
        needed=blocks.needed,
        verdict=Verdict.FITS,
        reason=f"the pool of {gib(size)} holds a request of {request.max_model_len} tokens",
    )
    if size < blocks.needed or room < 0:
        short = blocks.needed - min(room, wanted)
        found = replace(
            found,
            verdict=Verdict.TOO_LARGE,
            shortfall=short,
            reason=f"one request of {request.max_model_len} tokens needs {gib(blocks.needed)} of cache, "
            f"and the pool is {gib(size)}",
            remedy="a shorter context, a smaller quantization, or more memory",
        )
    tokens, requests = vllm.counted(size, blocks, request)
    return replace(found, tokens=tokens, concurrency=requests)


def _activation(profile: ModelProfile, request: Request) -> MemoryTerm:
    """The widest point of a layer, and the logits of all sequences as the sampler copies them."""
    tokens = request.max_num_batched_tokens
    size = max(vllm.forward_bytes(profile, _WHOLE, tokens), vllm.sampler_bytes(profile, request)) + BUFFERS
    return MemoryTerm(
        "activation peak", size, f"{tokens} tokens, {request.max_num_seqs} sequences", uncertainty=size // 4
    )


_WHOLE = Split()
