"""What engines do to weights while they load them: quantize, repack, pad.

Sources: vLLM's `model_executor/layers/quantization/` (`fp8.py`, `mxfp4.py`, `utils/marlin_utils_fp8.py`).
"""

from __future__ import annotations

from dataclasses import replace

from agent.models.profile import Group, ModelProfile, Tensors
from agent.planning.memory.base import Request, padded
from agent.planning.memory.layers import remembered

#: What is quantized while loading; everything else stays.
_QUANTIZED = frozenset({
    Group.ATTENTION, Group.ATTENTION_KV, Group.ATTENTION_LATENT, Group.LINEAR_ATTENTION, Group.MLP, Group.EXPERTS,
    Group.SHARED_EXPERTS,
})  # fmt: skip
_ONLINE = {"fp8": 1 / 2, "bitsandbytes": (4 + 0.5) / 16, "torchao": 1 / 2, "experts_int8": 1 / 2}


def adapted(profile: ModelProfile, request: Request) -> ModelProfile:
    """The profile with the bytes that the loaded groups have in memory."""
    share = _ONLINE.get(request.quantization) if profile.quantization_config is None else None
    if share is not None:
        return _scaled(profile, _QUANTIZED, share)
    if profile.quantization_config is None or profile.moe is None:
        return profile
    if profile.quantization_config.scheme == "mxfp4" and request.engine == "vllm":
        return _scaled(profile, frozenset({Group.EXPERTS}), _mxfp4_padding(profile, request))
    return profile


def _scaled(profile: ModelProfile, groups: frozenset[Group], share: float) -> ModelProfile:
    return remembered(profile, ("scaled", groups, share), lambda: _made(profile, groups, share))


def _made(profile: ModelProfile, groups: frozenset[Group], share: float) -> ModelProfile:
    scaled = tuple(
        Tensors(each.group, each.parameters, int(each.bytes * share), each.scale_bytes)
        if each.group in groups
        else each
        for each in profile.groups
    )
    return replace(profile, groups=scaled)


def _mxfp4_padding(profile: ModelProfile, request: Request) -> float:
    """Kernels want the inner and the outer width of experts in multiples. Hopper's and Blackwell's data-centre kernels
    and Marlin differ; AMD's want the most.
    """
    if profile.moe is None or not profile.moe.length or not profile.embedding_length:
        return 1.0
    inner, hidden = -(-profile.moe.length // request.tensor), profile.embedding_length
    step = 256 if request.card.vendor == "amd" or request.card.capability[0] == 10 else 128
    return padded(inner, step) / inner * padded(hidden, 256) / hidden
