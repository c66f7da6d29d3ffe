"""What a model takes as a GGUF file of a level, counted from its configuration: llama.cpp's choice of a type for each
tensor (`llama_tensor_get_type_impl` and `tensor_type_fallback` in src/llama-quant.cpp), made with an importance matrix
where the level wants one. Files that their makers mixed otherwise ("UD", "_L", "_XL") have other sizes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from agent.models.alike import Alike
from agent.models.families.base import Kind, Weight
from agent.models.groups import Sums, active
from agent.models.profile import Basis, Group, ModelProfile, Quantization
from agent.models.shape import Shape

#: Weights in a block, and the block's bytes (ggml-common.h).
_BLOCKS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2),
        "Q8_0": (32, 34), "Q5_1": (32, 24), "Q5_0": (32, 22), "Q4_0": (32, 18), "IQ4_NL": (32, 18), "MXFP4": (32, 17),
        "Q6_K": (256, 210), "Q5_K": (256, 176), "Q4_K": (256, 144), "Q3_K": (256, 110), "Q2_K": (256, 84),
        "IQ4_XS": (256, 136),
    }
)  # fmt: skip
#: The type of most weights, by level.
_LEVELS: Mapping[str, str] = MappingProxyType(
    {
        "Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K",
        "IQ4_XS": "IQ4_XS", "IQ4_NL": "IQ4_NL", "Q3_K_M": "Q3_K", "Q2_K": "Q2_K", "MXFP4": "MXFP4", "F16": "F16",
        "BF16": "BF16",
    }
)  # fmt: skip
LEVELS = frozenset(_LEVELS)
#: Where a row is no multiple of the type's block.
_FALLBACKS: Mapping[str, str] = MappingProxyType(
    {"IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
)
#: llama.cpp's architecture by `model_type`, where its tensors are those of the checkpoint one to one: only there the
#: count is exact. Of the rest the matrices without a counterpart get the level's largest type.
_ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        "llama": "llama", "mistral": "llama", "mixtral": "llama", "smollm3": "smollm3",
        "mistral3": "mistral3", "ministral3": "mistral3",
        "qwen2": "qwen2", "qwen2_5_vl": "qwen2vl", "qwen2_vl": "qwen2vl",
        "qwen3": "qwen3", "qwen3_vl": "qwen3vl", "qwen3_vl_text": "qwen3vl",
        "qwen3_moe": "qwen3moe", "qwen3_vl_moe": "qwen3vlmoe", "qwen3_vl_moe_text": "qwen3vlmoe",
        "gemma2": "gemma2", "gemma3": "gemma3", "gemma3_text": "gemma3", "gemma4": "gemma4", "gemma4_text": "gemma4",
        "phi3": "phi3", "olmo2": "olmo2", "olmo3": "olmo2", "exaone4": "exaone4", "granite": "granite",
        "seed_oss": "seed_oss", "gpt_oss": "gpt-oss", "minimax_m2": "minimax-m2",
    }
)  # fmt: skip
#: Groups that are converted into files of their own.
_ELSEWHERE = frozenset({Group.VISION, Group.AUDIO, Group.PROJECTOR})


class _Part(Enum):
    """llama.cpp's tensor categories, as far as they differ in type."""

    VALUE = r"\.v_proj$"
    KEY = r"\.k_proj$"
    FUSED = r"\.(qkv_proj|query_key_value|Wqkv|c_attn)$"
    OUTPUT = r"(self_attn|attention)\.(o_proj|dense)$"
    DOWN = r"\.(down_proj|w2|fc2)$"
    USUAL = r"\.(q_proj|gate_proj|up_proj|gate_up_proj|w1|w3|fc1)$"
    OTHER = ""


_PARTS = tuple((part, re.compile(part.value)) for part in _Part)
_VALUES = frozenset({_Part.VALUE, _Part.FUSED})
#: Parts of which layers may differ in type.
_MIXED = _VALUES | {_Part.DOWN}


@functools.lru_cache(maxsize=1024)
def _part(name: str) -> _Part:
    module = name.removesuffix(".weight")
    return next(part for part, pattern in _PARTS if pattern.search(module))


class _Model(NamedTuple):
    """What the choice depends on besides the tensor."""

    level: str
    layers: int
    values: Mapping[int, int]  # the tensors of VALUE and FUSED, numbered
    sharing: int  # query heads a KV head
    experts: int
    seventy: bool  # llama.cpp's LLM_TYPE_70B
    tied: bool
    exact: bool


def as_gguf(base: ModelProfile, shape: Shape, level: str, label: str) -> ModelProfile:
    """The profile that the GGUF file of `level` would have. `base`: of the same model as trained."""
    family = shape.family
    weights = [same for same in shape.weights if _kept(same.weight)]
    # Embeddings for each layer (Gemma 4 E2B, E4B) are laid out in a way of their own.
    own_layout = bool(family.config.data.get("hidden_size_per_layer_input"))
    architecture = "" if own_layout else _ARCHITECTURES.get(base.model_type, "")
    values = sorted(number for same in weights if _part(same.weight.name) in _VALUES for number in same.numbers)
    model = _Model(
        level,
        family.layers,
        {number: place for place, number in enumerate(values)},
        family.heads // max(1, family.kv_heads),
        base.experts,
        architecture in {"llama", "qwen2", "qwen2vl"} and family.layers == 80 and family.heads != family.kv_heads,
        base.tied,
        bool(architecture),
    )
    sums = Sums(family.attentions)
    for same in weights:
        rows, columns = _rows(same.weight)
        for kind, layers in _types(same, model).items():
            block, size = _BLOCKS[kind]
            sums.add(same.weight.name, kind, rows * columns, rows * -(-columns // block) * size, layers=tuple(layers))
    notes = [*base.notes, "bytes are counted by llama.cpp's rules for the level; a maker's own mixture differs"]
    if not model.exact:
        notes.append(f"how llama.cpp lays {base.model_type} out is not known in full: bytes are an upper bound")
    if any(base.group(group).bytes for group in _ELSEWHERE):
        notes.append("the image or audio tower is a file of its own, which is not counted")
    groups = {tensors.group: tensors for tensors in sums.groups()}
    embedding, head = groups.get(Group.EMBEDDING), groups.get(Group.LM_HEAD)
    total = sum(tensors.bytes for tensors in groups.values())
    digits = re.findall(r"\d", level)
    return replace(
        base,
        path=label,
        format="gguf",
        architecture=architecture or base.architecture,
        quantization=level,
        file_bytes=total,
        tensor_bytes=total,
        parameters=sum(tensors.parameters for tensors in groups.values()),
        active_parameters=active(tuple(groups.values()), base.moe.active / base.moe.count if base.moe else 1.0),
        embedding_bytes=embedding.bytes if embedding else 0,
        output_bytes=head.bytes if head else 0,
        groups=tuple(groups.values()),
        stored=sums.stored(),
        layer_details=sums.layers(),
        quantization_config=None if level in {"F16", "BF16"} else Quantization("gguf", level, int(digits[0])),
        modalities=("text",),
        basis=base.basis if model.exact else Basis.BOUND,
        notes=tuple(notes),
    )


def scaled(profile: ModelProfile, total: int, note: str) -> ModelProfile:
    """The same model in a file of `total` bytes, whose own mixture of types is not known: each part in proportion."""
    share = total / profile.tensor_bytes
    return replace(
        profile,
        tensor_bytes=total,
        file_bytes=total,
        embedding_bytes=round(profile.embedding_bytes * share),
        output_bytes=round(profile.output_bytes * share),
        groups=tuple(replace(each, bytes=round(each.bytes * share)) for each in profile.groups),
        layer_details=tuple(
            replace(each, bytes=round(each.bytes * share), expert_bytes=round(each.expert_bytes * share))
            for each in profile.layer_details
        ),
        stored=(),
        basis=Basis.BOUND,
        notes=(*profile.notes, note),
    )


def _kept(weight: Weight) -> bool:
    """Whether llama.cpp's converters keep it: the copies of embedding and head in MTP layers are left out."""
    return not re.search(r"layers\.\d+\.(embed_tokens|shared_head\.head)\.", weight.name)


def _rows(weight: Weight) -> tuple[int, int]:
    """Rows of all the tensors together, and the length of one, along which blocks run."""
    rows = weight.count
    for size in weight.shape[:-1]:
        rows *= size
    return rows, weight.shape[-1]


def _types(same: Alike, model: _Model) -> dict[str, list[int]]:
    """Layers by the type that their weights get."""
    found: dict[str, list[int]] = {}
    part = _part(same.weight.name)
    if part not in _MIXED:
        return {_fitting(_type(same.weight, part, 0, 0, model), same.weight, model): list(same.layers)}
    for number, layer in zip(same.numbers, same.layers, strict=True):
        kind = _type(same.weight, part, model.values.get(number, 0), layer, model)
        found.setdefault(_fitting(kind, same.weight, model), []).append(layer)
    return found


def _fitting(kind: str, weight: Weight, model: _Model) -> str:
    columns = weight.shape[-1]
    if columns % _BLOCKS[kind][0] == 0:
        return kind
    if weight.kind in {Kind.HEAD, Kind.EMBEDDING} and (weight.kind == Kind.HEAD or model.tied):
        return "Q8_0" if columns % 32 == 0 else "F16"
    kind = _FALLBACKS.get(kind, "F16")
    return kind if columns % _BLOCKS[kind][0] == 0 else "F16"


def _type(weight: Weight, part: _Part, values: int, layer: int, model: _Model) -> str:
    """`values`: tensors of VALUE and FUSED before this one."""
    most = _LEVELS[model.level]
    if weight.kind in {Kind.EXACT, Kind.FLOAT} or len(weight.shape) < 2:
        return "F32"
    if most == "MXFP4":
        return "MXFP4" if ".experts." in weight.name else "Q8_0"
    if most in {"F16", "BF16", "Q8_0"}:
        return most
    if weight.kind in {Kind.HEAD, Kind.EMBEDDING}:
        return most if weight.kind == Kind.EMBEDDING and not model.tied else "Q6_K"
    if not model.exact and part in {_Part.VALUE, _Part.FUSED, _Part.OTHER}:
        return _MOST_BITS.get(model.level, most)
    return _attention(part, values, model, most) or _down(layer, part, model) or most


#: The type with the most bits that a level gives to a matrix of a layer.
_MOST_BITS: Mapping[str, str] = MappingProxyType(
    {"Q5_K_M": "Q6_K", "Q4_K_M": "Q6_K", "Q4_K_S": "Q5_K", "IQ4_XS": "Q5_K", "IQ4_NL": "Q5_K", "Q3_K_M": "Q5_K",
     "Q2_K": "Q4_K"}
)  # fmt: skip


def _more_bits(index: int, count: int) -> bool:
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _attention(part: _Part, values: int, model: _Model, most: str) -> str:
    """The type of one of attention's matrices where the level says more than `most`."""
    if part in {_Part.VALUE, _Part.FUSED}:
        return _value(values, model, most)
    if part == _Part.KEY and model.experts == 8:
        return "Q8_0"
    if part == _Part.OUTPUT and model.experts == 8:
        return "Q5_K" if model.level in {"Q2_K", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M"} else ""
    if part == _Part.OUTPUT:
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K"}.get(model.level, "")
    return ""


def _value(values: int, model: _Model, most: str) -> str:
    shared, kind = model.sharing >= 4, most
    if model.level == "Q2_K":
        kind = "Q4_K" if shared else "Q3_K"
    elif model.level == "Q3_K_M":
        kind = "Q5_K" if values < 2 else "Q4_K"
    elif model.level in {"IQ4_NL", "IQ4_XS"} and shared:
        kind = "Q5_K"
    elif model.level in {"Q4_K_M", "Q5_K_M"} and _more_bits(values, len(model.values)):
        kind = "Q6_K"
    elif model.level == "Q4_K_S" and values < 4:
        kind = "Q5_K"
    if model.seventy and kind in {"Q3_K", "Q4_K"}:
        kind = "Q5_K"
    return "Q8_0" if model.experts == 8 else kind


def _down(layer: int, part: _Part, model: _Model) -> str:
    """The type of a feed-forward's last matrix where the level says more than the usual."""
    if part != _Part.DOWN:
        return ""
    layer = max(0, layer)
    early = layer < model.layers // 8
    if model.level == "Q2_K":
        return "Q3_K"
    if model.level == "Q3_K_M":
        return "Q5_K" if layer < model.layers // 16 else "Q4_K"
    if model.level in {"Q4_K_M", "Q5_K_M"} and _more_bits(layer, model.layers):
        return "Q6_K"
    return "Q5_K" if model.level == "Q4_K_S" and early else ""
