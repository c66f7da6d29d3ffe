"""Architectures: how each lays out its weights and what its layers keep of a token. One file a kind.

A new architecture is a class in the file where its kin are, checked against the modelling code that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from agent.models.families import dense, encoders, hybrid, mla, moe
from agent.models.families.base import Family

#: Types of whole models whose text part lies in the same object, or is named there without a type of its own.
_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "qwen2_vl": "qwen2",
        "qwen2_5_vl": "qwen2",
        "qwen3_vl": "qwen3_vl_text",
        "qwen3_vl_moe": "qwen3_vl_moe_text",
        "qwen3_5": "qwen3_5_text",
        "qwen3_5_moe": "qwen3_5_moe_text",
        "gemma4": "gemma4_text",
        "gemma3n": "gemma3n_text",
        "llama4": "llama4_text",
        "llava": "llama",
        "llava_next": "llama",
        "mistral3": "mistral",
        "paligemma": "gemma",
        "phi3_v": "phi3",
        "glm4v": "glm4v_text",
        "glm4v_moe": "glm4v_moe_text",
        "kimi_k25": "kimi_k2",
    }
)


def _registry() -> dict[str, type[Family]]:
    found: dict[str, type[Family]] = {}
    for module in (dense, moe, mla, hybrid, encoders):
        for family in vars(module).values():
            if isinstance(family, type) and issubclass(family, Family) and family.__module__ == module.__name__:
                found |= dict.fromkeys(family.types, family)
    return found


FAMILIES: Mapping[str, type[Family]] = MappingProxyType(_registry())


def family_of(model_type: str) -> type[Family] | None:
    """The rules for a `model_type`, or None where they are not known."""
    return FAMILIES.get(_ALIASES.get(model_type, model_type))
