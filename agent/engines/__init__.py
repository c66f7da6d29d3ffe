"""The engines that this agent can run: one adapter each, named here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from agent.engines.base import Engine
from agent.engines.llama_cpp import LlamaCpp

#: In order of preference for `engine: auto`.
ENGINES: Mapping[str, Engine] = MappingProxyType({engine.name: engine for engine in (LlamaCpp(),)})


def get(name: str) -> Engine:
    """The adapter of that name. Raises `KeyError`: names are checked at admission."""
    return ENGINES[name]
