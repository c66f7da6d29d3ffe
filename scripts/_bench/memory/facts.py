"""From the facts of models.json and the words of a case to a model profile.

The facts are turned into a config.json, as far as they go, and read by `agent.models` like any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from agent.models.errors import ProfileError
from agent.models.huggingface import from_config
from agent.models.profile import Basis, Group, ModelProfile, Tensors

#: `architecture_class` to `model_type`.
_TYPES = {
    "Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3_moe", "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2_moe", "Qwen3NextForCausalLM": "qwen3_next",
    "Qwen3VLForConditionalGeneration": "qwen3_vl", "Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe",
    "Qwen2VLForConditionalGeneration": "qwen2_vl", "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3_5ForConditionalGeneration": "qwen3_5", "Qwen3_5MoeForConditionalGeneration": "qwen3_5_moe",
    "DeepseekV2ForCausalLM": "deepseek_v2", "DeepseekV3ForCausalLM": "deepseek_v3",
    "DeepseekV32ForCausalLM": "deepseek_v32", "DeepseekV4ForCausalLM": "deepseek_v4",
    "Gemma2ForCausalLM": "gemma2", "Gemma3ForCausalLM": "gemma3_text", "Gemma3ForConditionalGeneration": "gemma3",
    "Gemma4ForConditionalGeneration": "gemma4", "LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral", "KimiK25ForConditionalGeneration": "kimi_k25",
    "MiniMaxM2ForCausalLM": "minimax_m2", "GptOssForCausalLM": "gpt_oss",
    "MiMoV2FlashForCausalLM": "mimo_v2_flash", "Glm4MoeForCausalLM": "glm4_moe",
    "GlmMoeDsaForCausalLM": "glm_moe_dsa", "Phi3ForCausalLM": "phi3", "CohereForCausalLM": "cohere",
    "OPTForCausalLM": "opt", "FalconForCausalLM": "falcon", "BloomForCausalLM": "bloom",
    "Llama4ForConditionalGeneration": "llama4", "NemotronHForCausalLM": "nemotron_h", "JambaForCausalLM": "jamba",
}  # fmt: skip
#: The same by the repository's name, where no class is stated. The first that matches wins.
_NAMES = (
    (r"qwen3[.\-]?next", "qwen3_next"), (r"qwen3.*vl.*a\d+b", "qwen3_vl_moe"), (r"qwen3.*vl", "qwen3_vl"),
    (r"qwen3\.\d.*a\d+b", "qwen3_5_moe"), (r"qwen3\.\d", "qwen3_5"), (r"qwen3.*a\d+b", "qwen3_moe"),
    (r"qwen3", "qwen3"), (r"qwen2\.5-vl", "qwen2_5_vl"), (r"qwen2-vl", "qwen2_vl"),
    (r"qwen.*moe|qwen2-57b", "qwen2_moe"), (r"qwen|qwq", "qwen2"), (r"deepseek-v4", "deepseek_v4"),
    (r"deepseek-v3\.2", "deepseek_v32"), (r"deepseek-(v3|r1$)", "deepseek_v3"), (r"deepseek-v2", "deepseek_v2"),
    (r"deepseek-r1-distill-qwen", "qwen2"), (r"kimi-k2", "kimi_k2"), (r"gemma-4", "gemma4"),
    (r"gemma-3n", "gemma3n"), (r"gemma-3-(1b|270m)", "gemma3_text"), (r"gemma-3", "gemma3"), (r"gemma-2", "gemma2"),
    (r"gemma", "gemma"), (r"mixtral", "mixtral"), (r"mistral-small-3", "mistral3"), (r"llava.*mistral", "llava_next"),
    (r"mistral|codestral|devstral|magistral", "mistral"), (r"phi-[34]", "phi3"), (r"command-r|c4ai", "cohere"),
    (r"gpt-oss", "gpt_oss"), (r"/opt-", "opt"), (r"glm-4\.\d|glm-4-moe", "glm4_moe"), (r"glm", "glm4"),
    (r"falcon", "falcon"), (r"minimax-m", "minimax_m2"), (r"mimo-v2", "mimo_v2_flash"), (r"pythia|neox", "gpt_neox"),
    (r".", "llama"),
)  # fmt: skip
#: What published configurations of these types say, and the facts do not: the towers, and DeepSeek-V4's ratios.
_TOWERS: Mapping[str, dict[str, Any]] = {
    "qwen3_5": {"depth": 27, "model_type": "qwen3_5"}, "qwen3_5_moe": {"depth": 27, "model_type": "qwen3_5_moe"},
    "qwen3_vl": {
        "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17],
    },
    "qwen3_vl_moe": {"depth": 27, "deepstack_visual_indexes": [8, 16, 24]},
    "gemma4": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
}  # fmt: skip
#: Facts that are not part of a config.json.
_NOTES = {"params_total", "params_source", "source", "head_dim_note", "architecture_class", "quantization_config"}


#: Bits a weight of GGUF levels: of a whole model, and of its embedding (llama.cpp's `tools/quantize/README.md`).
_LEVELS = {
    "f32": (32.0, 32.0), "f16": (16.0, 16.0), "bf16": (16.0, 16.0), "q8_0": (8.5, 8.5), "q6_k": (6.5633, 6.5625),
    "q5_k_m": (5.7036, 5.5), "q5_k_s": (5.5704, 5.5), "q5_0": (5.54, 5.5), "q5_1": (6.04, 6.0),
    "q4_k_m": (4.8944, 4.5), "q4_k_s": (4.6672, 4.5), "q4_k": (4.8944, 4.5), "q4_0": (4.6714, 4.5),
    "q4_1": (5.13, 5.0), "iq4_xs": (4.4597, 4.25), "iq4_nl": (4.6818, 4.5), "q3_k_l": (4.2979, 3.4375),
    "q3_k_m": (3.9960, 3.4375), "q3_k_s": (3.6429, 3.4375), "q2_k": (3.1593, 2.625),
}  # fmt: skip


class LackingError(Exception):
    """The case does not say what a prediction needs."""


def profile(models: Mapping[str, Any], key: str, name: str, quantization: str, family: str) -> ModelProfile:
    """The model's profile; without bytes where it is not said how the weights are stored. Raises `LackingError`."""
    facts = models.get(key)
    if not isinstance(facts, Mapping):
        raise LackingError("the model's facts")
    return _profile(_frozen(facts), key, name.lower(), quantization.lower(), family.lower())


def _frozen(value: object) -> object:
    if isinstance(value, Mapping):
        return tuple((str(name), _frozen(item)) for name, item in value.items())
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


@lru_cache(maxsize=256)
def _profile(frozen: Any, key: str, name: str, quantization: str, family: str) -> ModelProfile:
    facts = dict(frozen)
    config = _config(facts, key)
    # Only the nearest model's facts are there; where the case knows better how deep its model is, that counts.
    layers = re.search(r"\b(\d+) layers", name)
    if layers and family.startswith("gguf") and abs(int(layers[1]) - config["num_hidden_layers"]) > 1:
        config["num_hidden_layers"] = int(layers[1])
    found = _read(config, key)
    found = _with_rest(found, facts, config)
    if family.startswith("gguf"):
        return _gguf(found, family.partition(":")[2])
    method = quantization_config(config, key, name, quantization, family)
    if method is None:
        return found
    quantized = _read(config | {"quantization_config": method[0]} | method[1], key)
    rest = next((each for each in found.groups if each.group == Group.VISION), None)
    if rest is not None and not any(each.group == Group.VISION for each in quantized.groups):
        quantized = _added(quantized, rest)
    return quantized


def _gguf(found: ModelProfile, level: str) -> ModelProfile:
    """The text model alone, in one level; towers are files of their own. A level that is not stated leaves the bytes
    of the weights open: they are 0.
    """
    groups = [
        each for each in found.groups if each.group not in {Group.VISION, Group.PROJECTOR, Group.AUDIO, Group.MTP}
    ]
    whole, embedding = _LEVELS.get(level, (0.0, 0.0))
    scaled = tuple(
        Tensors(
            each.group,
            each.parameters,
            int(each.parameters * (embedding if each.group == Group.EMBEDDING else whole) / 8),
        )
        for each in groups
    )
    held = {each.group: each.bytes for each in scaled}
    return replace(
        found, format="gguf", groups=scaled, tensor_bytes=sum(held.values()), quantization_config=None,
        embedding_bytes=held.get(Group.EMBEDDING, 0), output_bytes=held.get(Group.LM_HEAD, 0),
    )  # fmt: skip


def _read(config: dict[str, Any], key: str) -> ModelProfile:
    try:
        return from_config(config, key)
    except ProfileError as error:
        raise LackingError(f"a profile ({error})") from None


def _config(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    kind = _TYPES.get(str(facts.get("architecture_class")))
    if kind is None:
        kind = next(kind for pattern, kind in _NAMES if re.search(pattern, key.lower()))
    config = {name: value for name, value in facts.items() if name not in _NOTES and value is not None}
    config["model_type"] = kind
    config["architectures"] = [str(facts.get("architecture_class") or "")]
    config.setdefault("max_position_embeddings", _context(kind, key))
    config.setdefault("rope_theta", 10000.0)
    config.pop("layer_types", None)
    layers = int(config.get("num_hidden_layers") or 0)
    return config | _of_kind(kind, key.lower(), layers, config) | _tower(kind)


def _of_kind(kind: str, key: str, layers: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the published configurations of an architecture say, and the facts leave out."""
    if kind == "gpt_oss":
        return {"layer_types": ["sliding_attention", "full_attention"] * (layers // 2)}
    if kind == "gemma4":
        kinds = ["full_attention" if (index + 1) % 6 == 0 else "sliding_attention" for index in range(layers)]
        sparse = {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "top_k_experts": 8}
        return {"layer_types": kinds, "enable_moe_block": "num_experts" in config} | (
            sparse if "num_experts" in config else {}
        )
    if kind == "deepseek_v4":
        return {"compress_ratios": [0, 0, *(4 if index % 2 == 0 else 128 for index in range(layers - 2))]}
    if kind == "deepseek_v2" or "kimi-k2" in key:
        return {"first_k_dense_replace": 1} | ({"q_lora_rank": None} if "lite" in key else {})
    if kind == "qwen3_next" or kind.startswith("qwen3_5"):
        return {"full_attention_interval": 4} | ({} if kind == "qwen3_next" else {"mtp_num_hidden_layers": 1})
    return {}


def _tower(kind: str) -> dict[str, Any]:
    return {"vision_config": dict(_TOWERS[kind])} if kind in _TOWERS else {}


def _context(kind: str, key: str) -> int:
    match = re.search(r"(\d+)k\b", key.lower())
    if match:
        return int(match[1]) * 1024
    by_kind = {"opt": 2048, "llama": 131072 if "3." in key else 4096, "gemma3": 131072, "gemma3_text": 32768}
    return by_kind.get(kind, 32768)


def _with_rest(found: ModelProfile, facts: Mapping[str, Any], config: Mapping[str, Any]) -> ModelProfile:
    """Parameters that are published and not explained by the text model are an image tower's."""
    total = facts.get("params_total")
    if not isinstance(total, int) or found.basis == Basis.BOUND:
        return found
    rest = total - found.parameters
    if rest < 0.002 * total or "(rounded)" in str(facts.get("params_source")):
        return found
    if "MTP" in str(facts.get("params_source")):
        return _added(found, Tensors(Group.MTP, rest, 2 * rest))
    media = re.search(r"vl|gemma3$|llava|mistral3", str(config["model_type"])) is not None
    if not media:
        return found
    return replace(_added(found, Tensors(Group.VISION, rest, 2 * rest)), modalities=("text", "image"))


def _added(found: ModelProfile, tensors: Tensors) -> ModelProfile:
    return replace(
        found,
        groups=(*found.groups, tensors),
        parameters=found.parameters + tensors.parameters,
        tensor_bytes=found.tensor_bytes + tensors.bytes,
    )


def quantization_config(
    config: Mapping[str, Any], key: str, name: str, stated: str, family: str
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What config.json says about it, and further keys. None: as trained. Raises `LackingError`."""
    if family in {"16bit", ""}:
        return None
    if family in {"unstated", "unknown"}:
        raise LackingError("how the weights are quantized")
    if family == "native":
        return _native(str(config["model_type"]), key)
    for prefix, found in _METHODS:
        if family.startswith(prefix):
            return found(config, name, stated), {}
    raise LackingError(f"how {family} stores weights")


def _awq(config: Mapping[str, Any], name: str, stated: str) -> dict[str, Any]:  # noqa: ARG001 - a method's signature
    return {"quant_method": "awq", "bits": 4, "group_size": _group(stated, name), "modules_to_not_convert": ["visual"]}


def _gptq(config: Mapping[str, Any], name: str, stated: str) -> dict[str, Any]:  # noqa: ARG001
    bits = 8 if re.search(r"int8|8[ -]?bit|w8", f"{stated} {name}") else 4
    return {"quant_method": "gptq", "bits": bits, "group_size": _group(stated, name), "sym": True}


def _mxfp4(config: Mapping[str, Any], name: str, stated: str) -> dict[str, Any]:  # noqa: ARG001
    return {"quant_method": "mxfp4"}


def _int4(config: Mapping[str, Any], name: str, stated: str) -> dict[str, Any]:  # noqa: ARG001
    weights = {"num_bits": 4, "type": "int", "group_size": _group(stated, name), "strategy": "group"}
    return _compressed("pack-quantized", weights | {"symmetric": True}, None, _LEFT)


def _int8(config: Mapping[str, Any], name: str, stated: str) -> dict[str, Any]:  # noqa: ARG001
    inputs = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"} if "a16" not in stated else None
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    return _compressed("int-quantized", weights, inputs, _LEFT)


def _nf4(config: Mapping[str, Any], name: str, stated: str) -> dict[str, Any]:  # noqa: ARG001
    return {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def _group(stated: str, name: str) -> int:
    match = re.search(r"g(?:roup)?[ _-]?(?:size)?[ _-]?(32|64|128|256)\b", f"{stated} {name}")
    return int(match[1]) if match else 128


def _fp8(config: Mapping[str, Any], name: str, stated: str) -> dict[str, Any]:
    """Those who train in FP8 blocks name no tool; others' repositories do."""
    if "dynamic" in f"{name} {stated}" or "redhat" in name or "neuralmagic" in name:
        weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
        inputs = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
        return _compressed("float-quantized", weights, inputs, ["lm_head", "re:.*visual.*", "re:.*mlp.gate$"])
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    if config["model_type"] in {"llama", "mistral"}:
        blocks.pop("weight_block_size")
    return blocks | {"modules_to_not_convert": ["visual", "in_proj_a", "in_proj_b"]}


def _nvfp4(config: Mapping[str, Any], name: str, stated: str) -> dict[str, Any]:
    if "compressed" in stated or "redhat" in name:
        weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
        inputs = {"num_bits": 4, "type": "float", "dynamic": "local", "group_size": 16, "strategy": "tensor_group"}
        return _compressed("nvfp4-pack-quantized", weights, inputs, _LEFT)
    # NVIDIA's own convert the feed-forwards, and where there are experts only these.
    excluded = ["lm_head", "*self_attn*", "*linear_attn*", "*visual*", "*vision*", "*router*", "*mlp.gate"]
    if "num_experts" in config:
        excluded += [f"*mlp.{part}_proj" for part in ("gate", "up", "down")]
    named = {"ignore": excluded, "exclude_modules": excluded}
    return {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16} | named


def _compressed(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None, left: list[str]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": left,
    }  # fmt: skip


#: What nobody converts.
_LEFT = ["lm_head", "re:.*visual.*", "re:.*vision.*", "re:.*router.*", "re:.*mlp.gate$"]
_METHODS = (
    ("awq", _awq), ("gptq", _gptq), ("fp8", _fp8), ("mxfp4", _mxfp4), ("nvfp4", _nvfp4), ("w4a16", _int4),
    ("int4", _int4), ("int8", _int8), ("w8a", _int8), ("bnb", _nf4), ("bitsandbytes", _nf4), ("nf4", _nf4),
)  # fmt: skip


def _native(kind: str, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Models that are trained and published quantized."""
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    if kind == "deepseek_v4":
        return blocks | {"scale_fmt": "ue8m0"}, {"expert_dtype": "fp4"}
    if kind in {"deepseek_v3", "deepseek_v32", "minimax_m2", "mimo_v2_flash"} or "Kimi-K2-Instruct" in key:
        return blocks, {}
    if kind == "gpt_oss":
        return {"quant_method": "mxfp4"}, {}
    if kind.startswith("kimi"):
        weights = {"num_bits": 4, "type": "int", "group_size": 32, "strategy": "group", "symmetric": True}
        left = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"]
        return _compressed("pack-quantized", weights, None, left), {}
    raise LackingError("how the model is quantized where it was made")
