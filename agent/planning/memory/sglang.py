"""SGLang: the pool is the static share of what was free before loading, less what loading took.

Sources (version 0.5.23): `mem_cache/kv_cache_configurator.py` (`_profile_available_bytes`,
`_handle_max_mamba_cache`), `arg_groups/memory_hook.py` (defaults), `mem_cache/memory_pool.py`.
"""

from __future__ import annotations

from dataclasses import replace

from agent.models.profile import ModelProfile
from agent.planning.memory import kv_cache
from agent.planning.memory.base import GIB, MIB, Estimate, Request, gib, spread
from agent.planning.memory.decision import CONTEXT, decided, fullest
from agent.planning.memory.loading import adapted
from agent.planning.memory.vllm import forward_bytes
from agent.planning.memory.weights import Split, different, loaded
from agent.planning.plan import MemoryTerm

#: Defaults by the device's memory: up to so many GiB, tokens of a prefill chunk, largest decode graph with few ranks
#: and with four or more.
_SIZES = ((20, 2048, 8, 8), (35, 4096, 48, 160), (60, 4096, 32, 160), (160, 8192, 256, 512), (1 << 20, 16384, 512, 512))
#: The part of the pool that recurrent states get: their bytes to the cache's (`mamba_full_memory_ratio`).
STATE_RATIO = 0.9
#: Graphs of decoding took 0.5 to 1.7 GiB in public logs (4 GiB and more where prefill is captured too).
GRAPHS = 1 * GIB


def defaults(request: Request, profile: ModelProfile) -> Request:
    _, chunk, few, many = next(row for row in _SIZES if request.card.total < row[0] * GIB)
    graphs = few if request.tensor < 4 else many
    batch = request.max_num_batched_tokens or chunk
    sequences = request.max_num_seqs or graphs
    utilization = request.utilization
    if utilization is None:
        reserved = 512 * MIB + int(1.5 * MIB * batch) + request.tensor * request.pipeline * GIB // 8 + 2 * MIB * graphs
        if request.card.total > 60 * GIB:
            reserved = max(reserved, 10 * GIB)
        utilization = round(max(0.1, 1 - reserved / request.card.total), 3)
    longest = request.max_model_len or profile.context_length or 2048
    return replace(
        request, max_num_batched_tokens=batch, max_num_seqs=sequences, utilization=utilization, max_model_len=longest
    )


def estimate(profile: ModelProfile, request: Request) -> Estimate:
    request = defaults(request, profile)
    attention = max(1, request.tensor // request.data) if request.data_attention else request.tensor
    stages = []
    for stage in different(profile, request.pipeline):
        split = Split(request.tensor, attention, request.tensor, stage, request.pipeline, request.expert)
        stages.append(_stage(profile, request, split))
    return fullest(stages)


def _stage(profile: ModelProfile, request: Request, split: Split) -> Estimate:
    ranks = request.tensor * request.pipeline
    terms = [*loaded(adapted(profile, request), split, media=not request.text_only, predictor=request.predictor)]
    if request.draft is not None and split.last:
        draft = loaded(request.draft, replace(split, stage=0, stages=1))
        terms.append(MemoryTerm("weights: draft model", sum(part.bytes for part in draft), "as the model's own"))
    parallel = (200 + 110 * min(ranks, 16)) * MIB if ranks > 1 else 100 * MIB
    terms.append(
        MemoryTerm("outside of PyTorch", parallel, f"NCCL and workspaces of {ranks} ranks", uncertainty=parallel // 2)
    )
    states = _states(profile, request, split)
    utilization = request.utilization or 0
    before = (request.card.free if request.card.free is not None else request.card.total - CONTEXT) - parallel
    held = sum(term.bytes for term in terms if term.name.startswith("weights"))
    size = int(before * utilization) - held
    kind = "fp8" if request.kv_dtype.startswith("fp8") else request.kv_dtype
    layers = split.layers(profile.layers) if split.stages > 1 else None
    each = kv_cache.bytes_per_token(profile, kind, split.attention, layers)
    recurrent = _state_share(size, states)
    pool = MemoryTerm(
        "KV cache", size - recurrent, f"{utilization:g} of {gib(before)}, less the weights and recurrent states",
        uncertainty=spread(terms),
    )  # fmt: skip
    layout = kv_cache.Layout(each, request.max_model_len, 1, 1)
    # Prefill's activations, the logits of a decoded batch and its graphs come out of the rest.
    rest = (
        forward_bytes(profile, split, request.max_num_batched_tokens) + 14 * profile.vocabulary * request.max_num_seqs
    )
    graphs = 0 if request.eager else GRAPHS
    beyond = MemoryTerm("beyond the budget", rest + graphs, "activations and graphs", uncertainty=rest // 2 + graphs)
    return decided(request, tuple(terms), pool, layout, beyond, each)


def _states(profile: ModelProfile, request: Request, split: Split) -> int:
    """Bytes of recurrent states a sequence on a rank."""
    wide = 2 if request.state_dtype in {"float16", "bfloat16"} else 4
    layers = split.layers(profile.layers) if split.stages > 1 else None
    found = kv_cache.attentions(profile, layers).items()
    return sum(count * kv_cache.state_bytes(at, split.attention, state=wide) for at, count in found)


def _state_share(size: int, states: int) -> int:
    return int(size * STATE_RATIO / (1 + STATE_RATIO)) if states and size > 0 else 0
