"""One case at a time: what is predicted, by us and by the rules that others use, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.models.profile import ModelProfile
from agent.planning.memory import estimate
from agent.planning.memory.base import GIB, MIB, Estimate, Verdict
from agent.planning.memory.kv_cache import attentions, has_cache
from scripts._bench.memory import facts
from scripts._bench.memory.asking import Question, question
from scripts._bench.memory.cases import Asked, Case
from scripts._bench.memory.facts import LackingError

OURS = "ours"
#: The rules: weights times a factor, plus a constant; and bytes a parameter by the width of its quantization.
RULES = ("x1.2", "x1.2+2", "2GB/B 0.5", "2GB/B 0.7")


@dataclass(frozen=True, slots=True)
class Prediction:
    """GiB a device; bytes a token. None: not predicted."""

    weights: float | None = None
    other: float | None = None
    per_token: float | None = None
    pool: float | None = None
    accepts: bool | None = None  # None: unsure, or no verdict
    verdict: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    weights: float | None = None
    other: float | None = None
    per_token: float | None = None
    rounding: float = 0.0  # of `per_token`, half a unit of the last printed digit, relative
    pool: float | None = None
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    id: str
    engine: str
    architecture: str
    quantization: str
    measured: Measured
    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()  # what the case does not say, by what cannot be judged for it
    uniform: bool = False  # all layers keep the same of every token
    exact_budget: bool = False  # memory and share are stated


def predict(asked: Asked, models: Mapping[str, Any]) -> tuple[dict[str, Prediction], tuple[str, ...], bool, bool]:
    """Sees what was asked, and nothing that was measured: predictions, what is lacking, uniformity, exact budget."""
    try:
        profile = facts.profile(models, asked.models_json_key, asked.model, asked.quantization, asked.quant_family)
        asking = question(asked)
        found = estimate(profile, asking.request)
    except LackingError as error:
        return {}, (str(error),), False, False
    except ValueError as error:
        return {}, (f"sound arguments ({error})",), False, False
    except KeyError as error:
        return {}, (f"a known engine and cache type ({error})",), False, False
    lacks = _lacks(profile, asking)
    exact = {"exact memory", "utilization"} <= asking.stated and not asking.request.card.unified
    uniform = all(has_cache(at) and not at.window and not at.compression for at in attentions(profile))
    ours = _ours(found, profile, asking, lacks)
    rules = {name: _rule(name, profile, asking, lacks) for name in RULES}
    return {OURS: ours, **rules}, lacks, uniform, exact


def judge(case: Case, models: Mapping[str, Any]) -> Result:
    predictions, lacks, uniform, exact = predict(case.asked, models)
    return Result(
        case.asked.id, case.asked.engine or "unknown", case.asked.architecture or "unknown",
        case.asked.quant_family or "unknown", measured(case.measured), predictions, lacks, uniform, exact,
    )  # fmt: skip


def _lacks(profile: ModelProfile, asking: Question) -> tuple[str, ...]:
    missing = []
    if not profile.tensor_bytes:
        missing.append("how the weights are stored")
    if "ranks" not in asking.stated:
        missing.append("over how many devices")
    if "memory" not in asking.stated:
        missing.append("the device's memory")
    if asking.request.card.unified:
        missing.append("what is free of unified memory")
    if "length" not in asking.stated:
        missing.append("the longest request")
    return tuple(missing)


def _ours(found: Estimate, profile: ModelProfile, asking: Question, lacks: tuple[str, ...]) -> Prediction:
    known, spread = bool(profile.tensor_bytes), "over how many devices" not in lacks
    weights = sum(term.bytes for term in found.terms if term.name.startswith("weights")) / GIB
    other = sum(term.bytes for term in found.terms if not term.name.startswith("weights")) / GIB
    sized = known and spread and "memory" in asking.stated and found.pool is not None
    pooled = sized and asking.request.engine in {"vllm", "sglang"}
    accepts, verdict = None, ""
    if sized:
        verdict = found.verdict.value
        accepts = {Verdict.FITS: True, Verdict.TOO_LARGE: False, Verdict.CONDITIONAL: False}.get(found.verdict)
        pool = found.pool.bytes if found.pool is not None else 0
        if "the longest request" in lacks and accepts is False and pool > 0 and found.needed > pool:
            accepts, verdict = (
                None,
                "unsure",
            )  # too small for the model's longest request, which nobody may have asked for
    return Prediction(
        weights if known and spread else None,
        other,
        found.bytes_per_token if spread else None,
        found.pool.bytes / GIB if pooled and found.pool is not None else None,
        accepts,
        verdict,
        found.reason,
    )


def _bits(profile: ModelProfile) -> int:
    quantization = profile.quantization_config
    if quantization is not None:
        return quantization.bits
    return 16 if profile.format != "gguf" else round(8 * profile.tensor_bytes / max(1, profile.parameters))


def _rule(name: str, profile: ModelProfile, asking: Question, lacks: tuple[str, ...]) -> Prediction:
    """Weights by parameters, everything else by a factor or a constant, and no cache at all."""
    request = asking.request
    if not profile.tensor_bytes or "over how many devices" in lacks:
        return Prediction()
    bits = _bits(profile)
    each = bits / 8
    if name.startswith("2GB/B") and bits <= 4:
        each = float(name.split()[1])
    ranks = max(1, request.tensor * request.pipeline)
    weights = profile.parameters * each / ranks / GIB
    if name.startswith("2GB/B"):
        weights *= GIB / 1e9 * 1e9 / GIB
    other = 0.0 if name.startswith("2GB/B") else 0.2 * weights + (2.0 if name.endswith("+2") else 0.0)
    if "memory" not in asking.stated:
        return Prediction(weights, other)
    total = request.card.total / GIB
    budget = total * (request.utilization if request.utilization is not None else 0.9)
    pool = budget - weights - other
    accepts = weights + other <= budget
    return Prediction(weights, other, None, pool if request.engine in {"vllm", "sglang"} else None, accepts,
                      Verdict.FITS if accepts else Verdict.TOO_LARGE)  # fmt: skip


# What was measured


def measured(case: Mapping[str, Any]) -> Measured:
    outcome = case.get("outcome")
    per_token, rounding = _per_token(case)
    return Measured(
        _weights(case), _other(case), per_token, rounding, _number(case, "kv_cache_gib"),
        outcome if isinstance(outcome, str) and outcome in {"ok", "oom", "refused"} else "",
    )  # fmt: skip


def _number(data: Mapping[str, Any], *keys: str) -> float | None:
    for key in keys:
        value = data.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _part(case: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = case.get(key)
    return value if isinstance(value, Mapping) else {}


def _devices(buffers: object) -> list[float]:
    """MiB of the buffers that lie on devices."""
    if not isinstance(buffers, Mapping):
        return []
    return [
        float(size)
        for name, size in buffers.items()
        if isinstance(size, int | float) and not str(name).startswith("CPU") and "Host" not in str(name)
        and ".." not in str(name) and float(size) > 16
    ]  # fmt: skip


def _weights(case: Mapping[str, Any]) -> float | None:
    if (stated := _number(case, "weights_gib")) is not None:
        return stated
    sglang = _part(case, "sglang")
    before, after = _number(sglang, "avail_before_weights_gib"), _number(sglang, "avail_after_weights_gib")
    if before is not None and after is not None:
        return before - after
    sizes = _devices(_part(case, "llama_cpp").get("model_buffer_mib"))
    devices = _number(case, "n_gpus") or len(sizes)
    return sum(sizes) * MIB / GIB / max(len(sizes), devices if len(sizes) == 1 else 1) if sizes else None


def _other(case: Mapping[str, Any]) -> float | None:
    """Activations, what is outside of PyTorch, and graphs where the engine counts them. New versions print graphs
    with the activations, and what is outside with the weights.
    """
    activation = _number(case, "activation_peak_gib")
    if activation is None:
        return None
    consumed = _number(_part(case, "other_measured"), "consumed_weights_plus_non_torch_gib")
    weights, outside = _number(case, "weights_gib"), _number(case, "non_torch_gib")
    if consumed is not None:
        return activation + consumed - weights if weights is not None else None
    return activation + outside if outside is not None else None


def _per_token(case: Mapping[str, Any]) -> tuple[float | None, float]:
    pool, tokens = _number(case, "kv_cache_gib"), _number(case, "kv_cache_tokens")
    blocks = _number(case, "num_gpu_blocks")
    if tokens is None and blocks is not None:
        tokens = blocks * (_number(case, "block_size") or 16)
    if pool is not None and pool > 0 and tokens:
        return pool * GIB / tokens, 0.005 / pool
    sglang = _part(case, "sglang")
    keys, values = _number(sglang, "k_size_gib"), _number(sglang, "v_size_gib")
    if keys is not None and tokens:
        both = keys + (values or 0)
        return both * GIB / tokens, 0.01 / both
    llama = _part(case, "llama_cpp")
    sizes, cells = _devices(llama.get("kv_buffer_mib")), _number(llama, "n_ctx")
    if sizes and cells and (_number(case, "n_gpus") or 1) == len(sizes):
        return sum(sizes) * MIB / (-(-cells // 256) * 256), 0.005 / sum(sizes)
    return None, 0.0
