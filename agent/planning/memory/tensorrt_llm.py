"""TensorRT-LLM: the pool is a share of what is free once weights and the widest batch are in place.

Sources: TensorRT-LLM's `_torch/pyexecutor/_util.py` (`KvCacheCreator`), its documentation's "Memory usage" page,
issue 3362 (memory of a captured graph), issue 3058 (what each rank leaves on the first device).
"""

from __future__ import annotations

from dataclasses import replace

from agent.models.profile import ModelProfile
from agent.planning.memory import kv_cache
from agent.planning.memory.base import MIB, Estimate, Request, gib, spread
from agent.planning.memory.decision import CONTEXT, decided, fullest
from agent.planning.memory.loading import adapted
from agent.planning.memory.vllm import forward_bytes
from agent.planning.memory.weights import Split, different, loaded
from agent.planning.plan import MemoryTerm

BLOCK, GRAPH, RANK = 32, 60 * MIB, 545 * MIB
#: Batch sizes that graphs are captured for by default.
GRAPHS = 16


def estimate(profile: ModelProfile, request: Request) -> Estimate:
    longest = request.max_model_len or profile.context_length or 2048
    request = replace(
        request, max_model_len=longest, max_num_seqs=request.max_num_seqs or 2048,
        max_num_batched_tokens=request.max_num_batched_tokens or 8192,
        utilization=0.9 if request.utilization is None else request.utilization,
    )  # fmt: skip
    return fullest([_stage(profile, request, stage) for stage in different(profile, request.pipeline)])


def _stage(profile: ModelProfile, request: Request, stage: int) -> Estimate:
    # `mapping.py`: with as many ranks for experts as share a layer, none of them is sliced (`moe_tp_size` 1).
    split = Split(request.tensor, request.tensor, request.tensor, stage, request.pipeline, request.expert)
    activations = max(
        forward_bytes(profile, split, request.max_num_batched_tokens), 8 * profile.vocabulary * request.max_num_seqs
    )
    graphs = 0 if request.eager else GRAPH * GRAPHS
    others = RANK * (request.tensor - 1)
    terms = [
        *loaded(adapted(profile, request), split, predictor=request.predictor),
        MemoryTerm("activation peak", activations, "the widest batch", uncertainty=activations // 3),
        MemoryTerm("CUDA graphs", graphs, f"{GRAPHS} of 60 MB", uncertainty=graphs // 2),
        MemoryTerm("other ranks", others, "what they leave on the first device", uncertainty=others // 2),
        MemoryTerm("context", CONTEXT, "driver and libraries", uncertainty=CONTEXT // 2),
    ]
    total = request.card.free if request.card.free is not None else request.card.total
    left = total - sum(term.bytes for term in terms)
    pool = MemoryTerm(
        "KV cache", int(left * (request.utilization or 0)) if left > 0 else left,
        f"{request.utilization:g} of the {gib(left)} that are left", uncertainty=spread(terms),
    )  # fmt: skip
    kind = "fp8" if request.kv_dtype.startswith("fp8") else request.kv_dtype
    layers = split.layers(profile.layers) if split.stages > 1 else None
    each = kv_cache.bytes_per_token(profile, kind, request.tensor, layers)
    layout = kv_cache.Layout(BLOCK * each, -(-request.max_model_len // BLOCK), BLOCK, 1)
    return decided(replace(request, utilization=1.0), tuple(terms), pool, layout, None, each)
