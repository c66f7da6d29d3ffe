"""Which limits: the spec's values as they are; where it is silent, hints, node policy and engine, in this order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from agent.engines.base import Engine
from agent.planning.plan import Limits, Reason
from agent.planning.request import PlanRequest, RefusedError
from agent.status import Diagnosis, DiagnosisCode

#: Tasks whose inputs are computed in one piece, so that a batch must hold a whole sequence.
POOLING_TASKS = frozenset({"embedding", "rerank"})
#: Context is reduced in steps of this many tokens, which engines allocate in blocks anyway.
STEP = 256


_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class Choice:
    """Limits with their reasons (by field), and which of them a person asked for: those are never changed."""

    limits: Limits
    reasons: dict[str, Reason]
    fixed: frozenset[str]
    utilization: float  # of each device, where the plan has some
    utilization_reason: Reason


@dataclass(frozen=True, slots=True)
class Usual:
    """What an engine takes by itself on a kind of device, where it knows more than `Engine.defaults`."""

    max_num_batched_tokens: int
    max_num_seqs: int
    sentence: str = "the engine's own on such a device"


def choose_limits(request: PlanRequest, engine: Engine, usual: Usual | None = None) -> Choice:
    """With `usual`, the context that the model was trained for is the default one: a pool of cache is shared, and no
    sequence reserves its whole context. Raises `RefusedError` for a value of the spec that policy or model does not
    allow.
    """
    asked, defaults = request.spec.limits, engine.defaults
    seqs, seqs_reason = _sequences(request, engine, usual)
    length, length_reason = _length(request, engine, pooled=usual is not None)
    dtype, dtype_reason = _cache_type(request, engine)
    threads = asked.threads or request.inventory.threads
    if asked.cpus is not None and asked.threads is None:
        threads = max(1, min(threads, int(asked.cpus)))
    pooling = request.spec.task in POOLING_TASKS
    usual_batch = usual.max_num_batched_tokens if usual is not None else defaults.max_num_batched_tokens
    batched = max(length, usual_batch if usual is not None else 0) if pooling else usual_batch
    reasons = (
        seqs_reason,
        length_reason,
        dtype_reason,
        Reason("limits.max_num_batched_tokens", str(batched), "computed", "an input is computed in one piece")
        if pooling
        else _engine_default("max_num_batched_tokens", batched, engine, usual),
        Reason("limits.threads", str(threads), "from-spec", "the spec says so")
        if asked.threads
        else Reason("limits.threads", str(threads), "computed", "one for each physical core that the instance may use"),
        Reason("limits.gpu_memory_utilization", "none", "computed", "no device is used; host memory bounds it"),
    )
    return Choice(
        Limits(seqs, length, dtype, batched, threads),
        {reason.field: reason for reason in reasons},
        frozenset(name for name in ("max_num_seqs", "max_model_len") if getattr(asked, name) is not None),
        *utilization(request, engine),
    )


def with_length(limits: Limits, length: int, task: str) -> Limits:
    """The limits for another context, and the batch that follows from it."""
    batched = length if task in POOLING_TASKS else limits.max_num_batched_tokens
    return replace(limits, max_model_len=length, max_num_batched_tokens=batched)


def _sequences(request: PlanRequest, engine: Engine, usual: Usual | None) -> tuple[int, Reason]:
    field, bound = "limits.max_num_seqs", request.policy.limits.max_num_seqs
    if (asked := request.spec.limits.max_num_seqs) is not None:
        _check_maximum(field, asked, bound.max)
        return asked, Reason(field, str(asked), "from-spec", "the spec says so")
    if (hint := request.spec.workload.concurrency) is not None:
        return _bounded(field, hint, bound.max, "from-spec", "workload.concurrency asks for it")
    if bound.default is not None:
        return bound.default, Reason(field, str(bound.default), "from-policy", "the node policy's default")
    if usual is not None:
        return _bounded(field, usual.max_num_seqs, bound.max, "engine-default", usual.sentence)
    default = engine.defaults.max_num_seqs
    return _bounded(field, default, bound.max, "engine-default", engine.defaults.reasons["max_num_seqs"])


def _length(request: PlanRequest, engine: Engine, *, pooled: bool) -> tuple[int, Reason]:
    field, bound, trained = "limits.max_model_len", request.policy.limits.max_model_len, request.profile.context_length
    if (asked := request.spec.limits.max_model_len) is not None:
        _check_maximum(field, asked, bound.max)
        if asked > trained and not _extends(request, engine):
            flags = ", ".join(sorted(engine.capabilities.context_extending_flags)) or "no flag of this engine"
            raise RefusedError(
                Diagnosis(
                    DiagnosisCode.MODEL_UNSUPPORTED,
                    f"{field} is {asked}, but the model was trained for {trained} tokens of context",
                    hint=f"ask for at most {trained}, or extend the context in extra_args ({flags})",
                )
            )
        return asked, Reason(field, str(asked), "from-spec", "the spec says so")
    if (hint := request.spec.workload.context_tokens) is not None:
        length, reason = _bounded(field, hint, bound.max, "from-spec", "workload.context_tokens asks for it")
    elif bound.default is not None:
        length, reason = _bounded(field, bound.default, None, "from-policy", "the node policy's default")
    elif pooled:
        length, reason = _bounded(field, trained, bound.max, "model", "the context that the model was trained for")
    else:
        cap = engine.defaults.max_model_len_cap
        sentence = engine.defaults.reasons["max_model_len"]
        length, reason = _bounded(field, cap, bound.max, "engine-default", sentence)
    if length > trained:
        return trained, Reason(field, str(trained), "model", "the context that the model was trained for")
    return length, reason


def utilization(request: PlanRequest, engine: Engine) -> tuple[float, Reason]:
    """The part of each device that is asked for, by whom. Raises `RefusedError` for more than the policy allows."""
    field, bound = "limits.gpu_memory_utilization", request.policy.limits.gpu_memory_utilization
    if (asked := request.spec.limits.gpu_memory_utilization) is not None:
        _check_maximum(field, asked, bound.max)
        return asked, Reason(field, str(asked), "from-spec", "the spec says so")
    if bound.default is not None:
        return bound.default, Reason(field, str(bound.default), "from-policy", "the node policy's default")
    default = engine.defaults.gpu_memory_utilization
    return _bounded(field, default, bound.max, "engine-default", engine.defaults.reasons["gpu_memory_utilization"])


def _cache_type(request: PlanRequest, engine: Engine) -> tuple[str, Reason]:
    field, allowed = "limits.kv_cache_dtype", request.policy.limits.kv_cache_dtypes
    asked, default = request.spec.limits.kv_cache_dtype, engine.defaults.kv_cache_dtype
    if asked is not None:
        if allowed is not None and asked not in allowed:
            raise _denied(f"{field} is {asked}; the node policy allows {', '.join(allowed)}")
        return asked, Reason(field, asked, "from-spec", "the spec says so")
    if allowed is None or default in allowed:
        return default, Reason(field, default, "engine-default", engine.defaults.reasons["kv_cache_dtype"])
    known = [name for name in allowed if name in engine.capabilities.kv_cache_dtypes]
    if not known:
        raise _denied(f"{engine.name} has none of the KV cache types that the node policy allows")
    return known[0], Reason(field, known[0], "from-policy", "the first type that the node policy allows")


def _engine_default(name: str, value: object, engine: Engine, usual: Usual | None) -> Reason:
    sentence = engine.defaults.reasons[name] if usual is None else usual.sentence
    return Reason(f"limits.{name}", str(value), "engine-default", sentence)


def _bounded(field: str, value: _Number, maximum: _Number | None, code: str, sentence: str) -> tuple[_Number, Reason]:
    """A value that nobody insists on, cut to the policy's maximum."""
    if maximum is not None and value > maximum:
        cut = f"the node policy's maximum (otherwise {value}: {sentence})"
        return maximum, Reason(field, str(maximum), "from-policy", cut)
    return value, Reason(field, str(value), code, sentence)


def _check_maximum(field: str, value: float, maximum: float | None) -> None:
    if maximum is not None and value > maximum:
        raise _denied(f"{field} is {value}; the node policy allows at most {maximum}")


def _denied(message: str) -> RefusedError:
    return RefusedError(Diagnosis(DiagnosisCode.POLICY_DENIED, message, hint="change the spec, or the node's policy"))


def _extends(request: PlanRequest, engine: Engine) -> bool:
    return not engine.capabilities.context_extending_flags.isdisjoint(request.spec.extra_args)
