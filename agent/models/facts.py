"""From a flat table of a model's shapes to the configuration that its own config.json would be.

Collections of measurements name models by their id and list the usual shapes, but leave out what follows from the
architecture (biases, shared experts, the image tower). What no table lists is added here, by id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

#: `model_type` by the class that an architecture's name begins with; the longest that fits wins.
_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "Llama": "llama",
        "Llama4": "llama4",
        "Mistral": "mistral",
        "Mixtral": "mixtral",
        "Qwen2": "qwen2",
        "Qwen2Moe": "qwen2_moe",
        "Qwen2_5_VL": "qwen2_5_vl",
        "Qwen2VL": "qwen2_vl",
        "Qwen3": "qwen3",
        "Qwen3Moe": "qwen3_moe",
        "Qwen3Next": "qwen3_next",
        "Qwen3VL": "qwen3_vl",
        "Qwen3VLMoe": "qwen3_vl_moe",
        "Qwen3_5": "qwen3_5",
        "Qwen3_5Moe": "qwen3_5_moe",
        "DeepseekV2": "deepseek_v2",
        "DeepseekV3": "deepseek_v3",
        "DeepseekV32": "deepseek_v32",
        "DeepseekV4": "deepseek_v4",
        "KimiK25": "kimi_k25",
        "KimiLinear": "kimi_linear",
        "GptOss": "gpt_oss",
        "Gemma": "gemma",
        "Gemma2": "gemma2",
        "Gemma3": "gemma3",
        "Gemma4": "gemma4",
        "MiniMaxM2": "minimax_m2",
        "MiMoV2Flash": "mimo_v2_flash",
        "Glm4Moe": "glm4_moe",
        "GlmMoeDsa": "glm_moe_dsa",
        "Phi3": "phi3",
        "Cohere": "cohere",
        "Cohere2": "cohere2",
        "OPT": "opt",
        "NemotronH": "nemotron_h",
        "DeciLM": "nemotron-nas",
    }
)
#: The same by the id, where a table names no architecture. The first that is found wins.
_IDS = tuple(
    (re.compile(pattern, re.IGNORECASE), model_type)
    for pattern, model_type in (
        (r"qwen2\.5-vl", "qwen2_5_vl"),
        (r"qwen2-vl", "qwen2_vl"),
        (r"qwen3-next", "qwen3_next"),
        (r"qwen3.*-a\d", "qwen3_moe"),
        (r"distill-llama", "llama"),
        (r"qwen(1\.5|2|2\.5)|distill-qwen|qwq", "qwen2"),
        (r"qwen3", "qwen3"),
        (r"llava-v1\.6|llava-next", "llava_next"),
        (r"llava", "llava"),
        (r"mixtral", "mixtral"),
        (r"mistral-small-3|pixtral", "mistral3"),
        (r"mistral|ministral", "mistral"),
        (r"gemma-3-1b|gemma-3-270m", "gemma3_text"),
        (r"gemma-3", "gemma3"),
        (r"gemma-2", "gemma2"),
        (r"gemma", "gemma"),
        (r"phi-[34]", "phi3"),
        (r"(^|/)opt-", "opt"),
        (r"command-r|c4ai", "cohere"),
        (r"deepseek-v3\.2", "deepseek_v32"),
        (r"deepseek-(v3|r1)", "deepseek_v3"),
        (r"deepseek-v2", "deepseek_v2"),
        (r"llama|(^|/)yi-|deepseek-(coder|llm)|vicuna|tinyllama|smollm2", "llama"),
    )
)
_SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
           "patch_size": 14, "image_size": 896}  # fmt: skip
_QWEN25_TOWER = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420}
_QWEN3_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
_QWEN35_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304}
#: What an architecture has besides its usual shapes; from the config.json of its published models.
_ADDED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gemma3": {"vision_config": _SIGLIP},
        "gemma4": {
            "attention_k_eq_v": True,
            "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "head_dim": 72,
                              "num_attention_heads": 16, "standardize": True},
            "hidden_size_per_layer_input": 0,
        },
        "kimi_k25": {"vision_config": {"vt_hidden_size": 1152}, "first_k_dense_replace": 1, "q_lora_rank": 1536},
        "llava": {"vision_config": {"model_type": "clip_vision_model"}},
        "llava_next": {"vision_config": {"model_type": "clip_vision_model"}},
        "mistral3": {"vision_config": {"model_type": "pixtral", "patch_size": 14}, "multimodal_projector_bias": False},
        "qwen2_5_vl": {"vision_config": _QWEN25_TOWER},
        "qwen2_vl": {"vision_config": {"depth": 32}},
        "qwen3_vl": {"vision_config": _QWEN3_TOWER},
        "qwen3_vl_moe": {"vision_config": _QWEN3_TOWER},
        "qwen3_5": {"vision_config": _QWEN35_TOWER, "mtp_num_hidden_layers": 1},
        "qwen3_5_moe": {"vision_config": _QWEN35_TOWER, "mtp_num_hidden_layers": 1},
        "deepseek_v2": {"first_k_dense_replace": 1, "n_shared_experts": 2, "q_lora_rank": 1536},
        "deepseek_v3": {"q_lora_rank": 1536, "n_shared_experts": 1, "num_nextn_predict_layers": 1},
        "deepseek_v32": {"q_lora_rank": 1536, "n_shared_experts": 1, "num_nextn_predict_layers": 1},
        "deepseek_v4": {"o_groups": 8, "num_nextn_predict_layers": 1, "num_hash_layers": 3, "expert_dtype": "fp4"},
    }
)  # fmt: skip
#: The same for single models: by a part of the id.
_MODELS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "Qwen3-VL-4B": {"vision_config": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096,
                                          "deepstack_visual_indexes": [5, 11, 17]}},
        "Qwen3-VL-2B": {"vision_config": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096,
                                          "deepstack_visual_indexes": [5, 11, 17]}},
        "Qwen2.5-VL-72B": {"vision_config": {**_QWEN25_TOWER, "intermediate_size": 3456}},
        "Qwen3.5-122B": {"shared_expert_intermediate_size": 1024},
        "MiMo-V2-Flash": {
            "v_head_dim": 128,
            "swa_num_key_value_heads": 8,
            "hybrid_layer_pattern": [0, *([1] * 4 + [0]), *([1] * 5 + [0]) * 7],
        },
        "DeepSeek-V2-Lite": {"q_lora_rank": None},
        "Kimi-K2-": {"first_k_dense_replace": 1, "num_nextn_predict_layers": 0},
        "DeepSeek-V4-Flash": {"compress_ratios": [0, 0, *[4, 128] * 20, 4, 0]},
        "DeepSeek-V4-Pro": {"compress_ratios": [128, 128, *[4, 128] * 29, 4, 0], "q_lora_rank": 1536, "o_groups": 16},
    }
)  # fmt: skip
#: Names in tables that are not those of config.json.
_RENAMED = MappingProxyType({"num_experts": "n_routed_experts", "torch_dtype": "dtype"})


def config(model: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the model's config.json says, as far as parameters and caches depend on it. `facts` has config.json's names;
    nulls are values that are not known. A quantization is not among them.
    """
    named = facts.get("architecture_class") or ""
    model_type = _by_class(named) if named else _by_id(model)
    known = {_RENAMED.get(key, key): value for key, value in facts.items() if value is not None}
    for key in (
        "params_total",
        "params_source",
        "source",
        "architecture_class",
        "head_dim_note",
        "quantization_config",
    ):
        known.pop(key, None)
    if not isinstance(known.get("layer_types"), list):
        known.pop("layer_types", None)
    added = dict(_ADDED.get(model_type, {}))
    for part, more in _MODELS.items():
        if part in model:
            added |= more
    return {"model_type": model_type, "architectures": [named] if named else [], **added, **known}


def _by_class(name: str) -> str:
    return max(
        ((prefix, kind) for prefix, kind in _CLASSES.items() if re.match(prefix + r"(For|Model|LM)", name)),
        key=lambda item: len(item[0]),
        default=("", ""),
    )[1]


def _by_id(model: str) -> str:
    return next((kind for pattern, kind in _IDS if pattern.search(model)), "")
