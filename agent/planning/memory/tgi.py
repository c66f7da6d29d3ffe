"""Text Generation Inference: weights, a warm-up with the largest prefill, and blocks of cache out of what is left below
a mark: 0.9 of `--cuda-memory-fraction` of the device. Graphs are captured after that, above the mark.

Sources (version 3.3.7): TGI's `models/flash_causal_lm.py` (`warmup`), `utils/import_utils.py` (`get_cuda_free_memory`),
`models/globals.py` (`TGI_WIGGLE_ROOM`).
"""

from __future__ import annotations

from dataclasses import replace

from agent.models.profile import ModelProfile
from agent.planning.memory import kv_cache
from agent.planning.memory.base import KIB, MIB, Estimate, Request, gib, spread
from agent.planning.memory.decision import CONTEXT, decided
from agent.planning.memory.loading import adapted
from agent.planning.memory.vllm import forward_bytes
from agent.planning.memory.weights import Split, loaded
from agent.planning.plan import MemoryTerm

#: The part of the allowed memory that is used for weights, warm-up and blocks.
WIGGLE_ROOM = 0.9
GRAPHS = "CUDA graphs"


def estimate(profile: ModelProfile, request: Request) -> Estimate:
    longest = request.max_model_len or min(profile.context_length or 4096, 32768)
    batch = request.max_num_batched_tokens or longest
    request = replace(
        request, max_model_len=longest, max_num_batched_tokens=batch, max_num_seqs=request.max_num_seqs or 256,
        utilization=1.0 if request.utilization is None else request.utilization,
    )  # fmt: skip
    split = Split(request.tensor, request.tensor, request.tensor)
    activations = forward_bytes(profile, split, batch) + 4 * profile.vocabulary * request.max_num_seqs
    graphs = 0 if request.eager else int(400 * KIB * 7 * profile.layers)
    ranks = 120 * MIB if request.tensor == 1 else 550 * MIB
    terms = [
        *loaded(adapted(profile, request), split),
        MemoryTerm("activation peak", activations, f"{batch} tokens of prompts", uncertainty=activations // 4),
        MemoryTerm(GRAPHS, graphs, "7 sizes", uncertainty=graphs // 2),
        MemoryTerm("outside of PyTorch", ranks, "workspaces and NCCL", uncertainty=ranks // 2),
        MemoryTerm("context", CONTEXT, "driver and libraries", uncertainty=CONTEXT // 2),
    ]
    mark = int(WIGGLE_ROOM * (request.utilization or 0) * request.card.total)
    others = request.card.total - request.card.free if request.card.free is not None else 0
    left = mark - others - sum(term.bytes for term in terms if term.name != GRAPHS)
    pool = MemoryTerm(
        "KV cache", left, f"{WIGGLE_ROOM:g} x {request.utilization:g} of {gib(request.card.total)}, less what is used",
        uncertainty=spread(terms),
    )  # fmt: skip
    kind = "fp8" if request.kv_dtype.startswith("fp8") else request.kv_dtype
    each = kv_cache.bytes_per_token(profile, kind, request.tensor)
    return decided(request, tuple(terms), pool, kv_cache.Layout(each, longest, 1, 1), None, each)
