"""What configurations say of how a checkpoint's weights are quantized: which matrices, in tensors of which types.

Sources: the writers and readers of each method. AWQ: casper-hansen/AutoAWQ `WQLinear_GEMM`; GPTQ: ModelCloud/GPTQModel
`BaseQuantLinear`; FP8 blocks: DeepSeek-V3's `weight_scale_inv`; compressed-tensors: its `compressors`; modelopt: vLLM's
`modelopt.py`; MXFP4: gpt-oss's model card; bitsandbytes: `QuantState.as_dict`; MLX: `mlx.nn.QuantizedLinear`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from agent.models.config import Config
from agent.models.profile import Quantization
from agent.models.schemes import Names, Piece, Rules, Scheme

#: Types of 16- and 32-bit weights, by the names that configurations use.
DTYPES: Mapping[str, str] = MappingProxyType({"bfloat16": "BF16", "float16": "F16", "float32": "F32", "half": "F16"})


def _one(dtype: str, elements: int = 1) -> Piece:
    return Piece(dtype, elements, scale=True)


def parse(config: Config, hf_quant: Config | None, dtype: str) -> tuple[Quantization | None, Rules]:
    """What config.json (or modelopt's hf_quant_config.json) says about quantization. `dtype`: of the rest, BF16 ..."""
    section = config.section("quantization_config")
    if not section.data and "compression_config" in config:
        section = config.section("compression_config")
    if not section.data and hf_quant is not None and hf_quant.data:
        section = hf_quant.section("quantization")
        return _modelopt(section, dtype)
    if not section.data:
        return _mlx(config, dtype) if "quantization" in config else (None, Rules())
    method = section.text("quant_method").lower()
    if "quant_algo" in section:
        return _modelopt(section, dtype)
    parsers = {
        "awq": _awq,
        "gptq": _gptq,
        "fp8": _fp8,
        "fbgemm_fp8": _fbgemm,
        "compressed-tensors": _compressed,
        "compressed_tensors": _compressed,
        "modelopt": _modelopt,
        "mxfp4": _mxfp4,
        "bitsandbytes": _bitsandbytes,
    }
    if not method and "bits" in section and "group_size" in section:
        return _mlx(config, dtype)
    if method in parsers:
        found, rules = parsers[method](section, dtype)
        rules = replace(rules, exact=rules.exact and not rules.ignored.too_complex)
        return _with_expert_dtype(config, found, rules)
    bits = section.whole("bits", "w_bit", "num_bits", default=8, most=32)
    return Quantization(method or "unknown", "unknown", bits), Rules(exact=False)


def _with_expert_dtype(config: Config, found: Quantization, rules: Rules) -> tuple[Quantization, Rules]:
    """DeepSeek-V4 keeps its routed experts in 4-bit floats, in a checkpoint that calls itself FP8."""
    if config.text("expert_dtype") != "fp4":
        return found, rules
    scheme = Scheme("mxfp4", 4, "I8", "F8_E8M0", group=32)
    return replace(found, scheme="mixed", bits=4, group_size=32), replace(rules, expert_scheme=scheme)


def _summary(method: str, scheme: Scheme, name: str = "") -> Quantization:
    return Quantization(
        method, name or scheme.name, scheme.bits, scheme.group, scheme.block, bool(scheme.zero), scheme.activations,
        scheme.activation_bits,
    )  # fmt: skip


def _bits(c: Config, *keys: str, default: int = 4) -> int:
    return c.whole(*keys, default=default, least=1, most=16)


def _group(c: Config, *keys: str, default: int = 128) -> int:
    size = c.whole(*keys, default=default, least=-1)
    return max(0, size)


def _awq(c: Config, dtype: str) -> tuple[Quantization, Rules]:  # noqa: ARG001 - every parser's signature
    bits = _bits(c, "bits", "w_bit")
    zero = "packed" if c.flag("zero_point", default=True) else ""
    scheme = Scheme(f"w{bits}a16", bits, "I32", "F16", _group(c, "group_size", "q_group_size"), zero=zero)
    return _summary("awq", scheme), Rules(scheme, Names(c.texts("modules_to_not_convert")))


def _gptq(c: Config, dtype: str) -> tuple[Quantization, Rules]:  # noqa: ARG001
    bits = _bits(c, "bits")
    scheme = Scheme(f"w{bits}a16", bits, "I32", "F16", _group(c, "group_size"), zero="packed", index=True)
    names = Names([*c.texts("modules_to_not_convert"), *_dynamic(c)])
    return _summary("gptq", scheme), Rules(scheme, names, head=c.flag("lm_head"))


def _dynamic(c: Config) -> list[str]:
    """GPTQModel's exceptions: `-:` and a regular expression leaves modules out."""
    return ["re:" + key[2:] for key in c.section("dynamic").data if key.startswith("-:")]


def _fp8(c: Config, dtype: str) -> tuple[Quantization, Rules]:  # noqa: ARG001
    """DeepSeek's, Qwen's and vLLM's own."""
    block, static = c.wholes("weight_block_size", least=1), c.text("activation_scheme") == "static"
    extra = (_one("F32"),) if static else ()
    activations = "static" if static else "dynamic"
    if len(block) == 2:
        tiny = c.text("scale_fmt") == "ue8m0" and "expert_dtype" in c
        scheme = Scheme(
            "fp8-block", 8, "F8_E4M3", "F8_E8M0" if tiny else "F32", block=(block[0], block[1]), extra=extra,
            activations=activations, activation_bits=8,
        )  # fmt: skip
    else:
        scheme = Scheme(
            "fp8", 8, "F8_E4M3", "F32", single=True, extra=extra, activations=activations, activation_bits=8
        )
    names = Names([*c.texts("modules_to_not_convert"), *c.texts("ignored_layers")])
    return _summary("fp8", scheme), Rules(scheme, names)


def _fbgemm(c: Config, dtype: str) -> tuple[Quantization, Rules]:  # noqa: ARG001
    scheme = Scheme("fp8", 8, "F8_E4M3", "F32", extra=(_one("F32"),), activations="dynamic", activation_bits=8)
    return _summary("fbgemm_fp8", scheme), Rules(scheme, Names(c.texts("modules_to_not_convert")))


def _compressed(c: Config, dtype: str) -> tuple[Quantization, Rules]:
    form = c.text("format")
    groups = []
    for name, _ in zip(c.section("config_groups").data, range(64), strict=False):
        group = c.section("config_groups").section(name)
        scheme = _compressed_scheme(group, group.text("format", default=form), dtype)
        if scheme is not None:
            groups.append((Names(group.texts("targets")), scheme))
    ignored = Names(c.texts("ignore"))
    if not groups:
        return Quantization("compressed-tensors", "unknown", 8), Rules(exact=False)
    first = groups[0][1]
    mixed = len({scheme.name for _, scheme in groups}) > 1
    cache = "fp8" if c.section("kv_cache_scheme").data else ""
    summary = _summary("compressed-tensors", first, "mixed" if mixed else "")
    exact = not any(names.too_complex for names, _ in groups)
    rules = Rules(None, ignored, tuple(groups), head=True, exact=exact)
    return replace(summary, kv_cache=cache), rules


def _compressed_scheme(group: Config, form: str, dtype: str) -> Scheme | None:
    weights, inputs = group.section("weights"), group.section("input_activations")
    if not weights.data:
        return None
    bits, kind, strategy = (
        _bits(weights, "num_bits", default=8),
        weights.text("type", default="int"),
        weights.text("strategy"),
    )
    size = _group(weights, "group_size", default=0)
    act_bits = _bits(inputs, "num_bits", default=8) if inputs.data else 16
    act = "" if act_bits == 16 else "dynamic" if inputs.data.get("dynamic") else "static"
    static = (_one(dtype),) if act == "static" else ()
    asymmetric = not weights.flag("symmetric", default=True)
    if kind == "float" and bits == 4:
        if size == 32 or "mxfp4" in form:
            return Scheme("mxfp4", 4, "U8", "U8", 32, activations=act, activation_bits=act_bits)
        extra = (_one("F32"), *((_one("F32"),) if act else ()))
        name = "nvfp4" if act else "nvfp4-w4a16"
        return Scheme(name, 4, "U8", "F8_E4M3", size or 16, extra=extra, activations=act, activation_bits=act_bits)
    packed = "pack" in form or (kind == "int" and bits < 8)
    block = weights.wholes("block_structure", least=1) if strategy == "block" else []
    name = f"w{bits}a{act_bits}" if kind == "int" else "fp8-block" if len(block) == 2 else "fp8"
    if name == "w8a8":
        name = "int8"
    extra = static
    if packed:
        extra = (*static, _one("I64", 2))
    return Scheme(
        name, bits, "I32" if packed else "F8_E4M3" if kind == "float" else "I8", dtype,
        size if strategy in {"group", "tensor_group", ""} else 0,
        block=(block[0], block[1]) if len(block) == 2 else (0, 0),
        single=strategy == "tensor",
        zero=("packed" if packed else "I8") if asymmetric else "",
        extra=extra, index=weights.text("actorder") == "group" and packed,
        activations=act, activation_bits=act_bits,
    )  # fmt: skip


_ONE, _TWO = (_one("F32"),), (_one("F32"), _one("F32"))
_FP8_BLOCK = Scheme("fp8-block", 8, "F8_E4M3", "F32", block=(128, 128), activations="dynamic", activation_bits=8)
_NVFP4 = Scheme("nvfp4", 4, "U8", "F8_E4M3", 16, extra=_TWO, activations="static", activation_bits=4)
_MXFP4 = Scheme("mxfp4", 4, "U8", "U8", 32)
_W4A16 = Scheme("w4a16", 4, "U8", "F16", 128)
#: modelopt's `quant_algo`.
_ALGORITHMS: Mapping[str, Scheme] = MappingProxyType(
    {
        "FP8": Scheme("fp8", 8, "F8_E4M3", "F32", single=True, extra=_ONE, activations="static", activation_bits=8),
        "FP8_PER_CHANNEL_PER_TOKEN": Scheme("fp8", 8, "F8_E4M3", "F32", activations="dynamic", activation_bits=8),
        **dict.fromkeys(("FP8_PB_WO", "FP8_PB_REAL", "FP8_BLOCK_SCALES"), _FP8_BLOCK),
        **dict.fromkeys(("NVFP4", "NVFP4_AWQ"), _NVFP4),
        **dict.fromkeys(("W4A16_NVFP4", "NVFP4_W4A16"), Scheme("nvfp4-w4a16", 4, "U8", "F8_E4M3", 16, extra=_ONE)),
        "W4A8_NVFP4_FP8": replace(_NVFP4, name="w4a8", activation_bits=8),
        **dict.fromkeys(("MXFP4", "W4A8_MXFP4_FP8"), _MXFP4),
        "MXFP8": Scheme("mxfp8", 8, "F8_E4M3", "U8", 32, activations="dynamic", activation_bits=8),
        **dict.fromkeys(("W4A16_AWQ", "INT4_AWQ", "W4A16"), _W4A16),
        "W4A8_AWQ": replace(_W4A16, name="w4a8", activations="static", activation_bits=8),
        "W8A8_SQ_PER_CHANNEL": Scheme("int8", 8, "I8", "F32", extra=_ONE, activations="static", activation_bits=8),
        "W8A16": Scheme("w8a16", 8, "I8", "F32"),
    }
)


def _algorithm(name: str, group: int) -> Scheme | None:
    scheme = _ALGORITHMS.get(name.upper())
    return replace(scheme, group=group) if scheme is not None and scheme.group and group else scheme


def _modelopt(c: Config, dtype: str) -> tuple[Quantization, Rules]:  # noqa: ARG001
    algorithm, group = c.text("quant_algo"), _group(c, "group_size", default=0)
    listed = c.section("quantized_layers")
    ignored = Names([*c.texts("ignore"), *c.texts("exclude_modules")])
    wanted = c.data.get("kv_cache_quant_algo") or c.data.get("kv_cache_scheme")
    cache = "fp8" if wanted == "FP8" or isinstance(wanted, dict) else str(wanted).lower()[:16] if wanted else ""
    if algorithm.upper() == "MIXED_PRECISION" and listed.data:
        schemes: dict[Scheme, list[str]] = {}
        for module in listed.data:
            layer = listed.section(module)
            scheme = _algorithm(layer.text("quant_algo"), _group(layer, "group_size", default=group))
            if scheme is not None:
                schemes.setdefault(scheme, []).append(module)
        if not schemes:
            return Quantization("modelopt", "unknown", 8), Rules(exact=False)
        most = max(schemes, key=lambda scheme: len(schemes[scheme]))
        block = c.wholes("weight_block_size", least=1)
        rest = Scheme("fp8-block", 8, "F8_E4M3", "F8_E8M0", block=(block[0], block[1])) if len(block) == 2 else None
        rules = Rules(rest, ignored, tuple((Names(names), scheme) for scheme, names in schemes.items()))
        return replace(_summary("modelopt", most, "mixed" if len(schemes) > 1 else ""), kv_cache=cache), rules
    scheme = _algorithm(algorithm, group)
    if scheme is None:
        return Quantization("modelopt", algorithm.lower()[:32] or "unknown", 8), Rules(exact=False)
    return replace(_summary("modelopt", scheme), kv_cache=cache), Rules(scheme, ignored, head="lm_head" not in ignored)


def _mxfp4(c: Config, dtype: str) -> tuple[Quantization, Rules]:  # noqa: ARG001
    scheme = Scheme("mxfp4", 4, "U8", "U8", 32)
    return _summary("mxfp4", scheme), Rules(scheme, Names(c.texts("modules_to_not_convert")), only_experts=True)


def _bitsandbytes(c: Config, dtype: str) -> tuple[Quantization, Rules]:  # noqa: ARG001
    names = Names(c.texts("llm_int8_skip_modules"))
    if c.flag("load_in_8bit"):
        scheme = Scheme("int8", 8, "I8", "F32", extra=(_one("U8"),), activations="dynamic", activation_bits=8)
        return _summary("bitsandbytes", scheme), Rules(scheme, names)
    double = c.flag("bnb_4bit_use_double_quant")
    name = c.text("bnb_4bit_quant_type", default="fp4")
    # The state of a matrix is a small JSON of about 90 bytes, whose length depends on its shape.
    extra = (_one("F32", 16), _one("U8", 90), *((_one("F32", 256),) if double else ()))
    scheme = Scheme(name, 4, "U8", "U8" if double else "F32", 64, extra=extra)
    return _summary("bitsandbytes", scheme), Rules(scheme, names)


def _mlx(config: Config, dtype: str) -> tuple[Quantization, Rules]:
    """MLX quantizes embeddings and the head as well; exceptions stand under their modules' names."""
    c = config.section("quantization" if "quantization" in config else "quantization_config")
    scheme = _mlx_scheme(c, c, dtype)
    special: dict[Scheme, list[str]] = {}
    ignored = []
    for module, value in c.data.items():
        if value is False:
            ignored.append(module)
        elif isinstance(value, Mapping):
            special.setdefault(_mlx_scheme(c.section(module), c, dtype), []).append(module)
    groups = tuple((Names(names), each) for each, names in special.items())
    rules = Rules(scheme, Names(ignored), groups, head=True, embedding=True)
    return _summary("mlx", scheme, "mixed" if groups else ""), rules


def _mlx_scheme(c: Config, whole: Config, dtype: str) -> Scheme:
    bits = _bits(c, "bits", default=_bits(whole, "bits"))
    size = _group(c, "group_size", default=_group(whole, "group_size", default=64))
    mode = c.text("mode", default=whole.text("mode", default="affine"))
    if mode == "affine":
        return Scheme(f"w{bits}a16", bits, "U32", dtype, size or 64, zero=dtype)
    return Scheme(mode, bits, "U32", "U8", size or 32)
