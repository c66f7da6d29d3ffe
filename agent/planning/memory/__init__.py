"""What an engine will use of each device, term by term, before it is started. docs/reference/memory.md has the formulas
and how they compare with what engines reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from agent.models.profile import ModelProfile
from agent.planning.memory import ctranslate2, llama_cpp, mlx, ollama, sglang, tensorrt_llm, tgi, vllm
from agent.planning.memory.base import Estimate, Request

ENGINES: Mapping[str, Callable[[ModelProfile, Request], Estimate]] = MappingProxyType(
    {
        "vllm": vllm.estimate,
        "sglang": sglang.estimate,
        "llama.cpp": llama_cpp.estimate,
        "ollama": ollama.estimate,
        "mlx": mlx.estimate,
        "ctranslate2": ctranslate2.estimate,
        "tensorrt-llm": tensorrt_llm.estimate,
        "tgi": tgi.estimate,
    }
)


def estimate(profile: ModelProfile, request: Request) -> Estimate:
    """What the fullest of the request's devices will hold, and whether that fits. Raises `KeyError` for an engine or a
    cache type that is not known.
    """
    return ENGINES[request.engine](profile, request)
