"""The engines that this agent knows: one adapter each, named here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.engines.base import Engine

#: By name: module and class. In order of preference where nothing else decides (`agent.planning.ranking`).
_ADAPTERS = {
    "llama.cpp": ("llama_cpp", "LlamaCpp"),
    "vllm": ("vllm", "VLLM"),
    "sglang": ("sglang", "SGLang"),
    "tensorrt-llm": ("tensorrt_llm", "TensorRTLLM"),
    "nim": ("nim", "NIM"),
    "tgi": ("tgi", "TGI"),
    "mlx-lm": ("mlx_lm", "MlxLm"),
    "ollama": ("ollama", "Ollama"),
    "lm-studio": ("lm_studio", "LmStudio"),
    "ctranslate2": ("ctranslate2", "CTranslate2"),
    "litellm": ("litellm", "LiteLLM"),
}


class _Engines(Mapping[str, "Engine"]):
    """Adapters by name, each imported when it is first asked for: together they would double the daemon's start."""

    def __init__(self) -> None:
        self._loaded: dict[str, Engine] = {}

    def __getitem__(self, name: str) -> Engine:
        if name not in self._loaded:
            module, adapter = _ADAPTERS[name]
            self._loaded[name] = getattr(import_module(f"agent.engines.{module}"), adapter)()
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in _ADAPTERS

    def __iter__(self) -> Iterator[str]:
        return iter(_ADAPTERS)

    def __len__(self) -> int:
        return len(_ADAPTERS)


ENGINES: Mapping[str, Engine] = _Engines()


def get(name: str) -> Engine:
    """The adapter of that name. Raises `KeyError`: names are checked at admission."""
    return ENGINES[name]
