"""What can be refused before anything is read or measured: the spec against node policy and adapters. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from agent.errors import FieldViolation
from agent.planning import trust
from agent.settings import Policy
from agent.spec import DeploymentSpec

if TYPE_CHECKING:
    from agent.engines.base import Engine

_NUMBER = re.compile(r"-\d")


def admit(spec: DeploymentSpec, policy: Policy, engines: Mapping[str, Engine]) -> tuple[FieldViolation, ...]:
    """Every rule that the spec breaks on this node, whatever its model is; empty: admitted."""
    return (
        *_engine(spec, policy, engines),
        *_runtime(spec, policy),
        *_image(spec, policy, engines),
        *_source(spec, policy),
        *_limits(spec, policy),
        *_port(spec, policy),
        *_extra_args(spec, policy),
    )


def _engine(spec: DeploymentSpec, policy: Policy, engines: Mapping[str, Engine]) -> Iterator[FieldViolation]:
    if spec.engine == "auto":
        names = [name for name in engines if policy.engines is None or name in policy.engines]
        if not names:
            yield FieldViolation("engine", "the node policy allows no engine that this agent knows")
        elif len(names) == 1:
            yield from _adapter(spec, engines[names[0]])
        else:
            yield from _adapters(spec, (engines[name] for name in names))
    elif spec.engine not in engines:
        nearest = difflib.get_close_matches(spec.engine, engines, n=1, cutoff=0.4)
        guess = f"; did you mean {nearest[0]!r}?" if nearest else ""
        yield FieldViolation("engine", f"unknown engine {spec.engine!r} (known: {', '.join(engines)}){guess}")
    elif policy.engines is not None and spec.engine not in policy.engines:
        allowed = ", ".join(policy.engines) or "none"
        yield FieldViolation("engine", f"the node policy does not allow {spec.engine!r} (allowed: {allowed})")
    else:
        yield from _adapter(spec, engines[spec.engine])


def _runtime(spec: DeploymentSpec, policy: Policy) -> Iterator[FieldViolation]:
    if spec.runtime != "auto" and policy.runtimes is not None and spec.runtime not in policy.runtimes:
        allowed = ", ".join(policy.runtimes) or "none"
        yield FieldViolation("runtime", f"the node policy does not allow {spec.runtime!r} (allowed: {allowed})")


def _image(spec: DeploymentSpec, policy: Policy, engines: Mapping[str, Engine]) -> Iterator[FieldViolation]:
    """Whether its repository is allowed, planning says, as of all images."""
    if not spec.image:
        return
    if spec.engine in engines and engines[spec.engine].container is None:
        yield FieldViolation("image", f"{spec.engine} is not run in containers by this agent: leave it out")
    if spec.runtime == "auto" and policy.runtimes is not None and "docker" not in policy.runtimes:
        yield FieldViolation("image", "the node policy allows no containers: leave it out")


def _adapters(spec: DeploymentSpec, candidates: Iterable[Engine]) -> Iterator[FieldViolation]:
    """With several engines planning takes one that the spec suits; where it suits none, the closest one says why."""
    if not (spec.extra_args or spec.environment or spec.secrets):
        return  # adapters are imported as they are asked
    refusing: list[tuple[str, list[FieldViolation]]] = []
    for engine in candidates:
        gateway = "gateway" in engine.capabilities.formats
        if gateway != spec.model.startswith("gateway:") or spec.task not in engine.capabilities.tasks:
            continue
        broken = list(_adapter(spec, engine))
        if not broken:
            return
        refusing.append((engine.name, broken))
    if refusing:
        name, broken = min(refusing, key=lambda each: _distance(each[1]))
        yield from (FieldViolation(each.field, f"no engine takes it; {name}: {each.rule}") for each in broken)


def _distance(broken: Sequence[FieldViolation]) -> tuple[int, int]:
    """An engine that knows a flag takes its value for one, and its rule is about the flag: it begins with it."""
    return len(broken), sum(not each.rule.startswith("-") for each in broken)


def _adapter(spec: DeploymentSpec, engine: Engine) -> Iterator[FieldViolation]:
    """The rules of the adapter."""
    yield from engine.check_extra_args(spec.extra_args)
    for section in ("environment", "secrets"):
        for name in getattr(spec, section):
            if rule := engine.check_variable(name):
                yield FieldViolation(f"{section}.{name}", rule)
    if spec.task not in engine.capabilities.tasks:
        yield FieldViolation("task", f"{engine.name} does not serve {spec.task.value}")
    dtype, known = spec.limits.kv_cache_dtype, engine.capabilities.kv_cache_dtypes
    if dtype is not None and dtype not in known:
        yield FieldViolation(
            "limits.kv_cache_dtype", f"{engine.name} has no type {dtype!r} (it has {', '.join(known)})"
        )


def _source(spec: DeploymentSpec, policy: Policy) -> Iterator[FieldViolation]:
    scheme, _, rest = spec.model.partition(":")
    if scheme not in policy.model_sources:
        allowed = ", ".join(policy.model_sources) or "none"
        yield FieldViolation("model", f"the node policy does not allow the source {scheme!r} (allowed: {allowed})")
    if scheme == "gateway" and spec.name in rest.split(","):
        yield FieldViolation("model", f"a gateway forwards to other deployments, and {spec.name} is itself")


def _limits(spec: DeploymentSpec, policy: Policy) -> Iterator[FieldViolation]:
    for name in ("max_num_seqs", "max_model_len", "gpu_memory_utilization"):
        value, maximum = getattr(spec.limits, name), getattr(policy.limits, name).max
        if value is not None and maximum is not None and value > maximum:
            yield FieldViolation(f"limits.{name}", f"the node policy allows at most {maximum} (got {value})")
    allowed = policy.limits.kv_cache_dtypes
    if (dtype := spec.limits.kv_cache_dtype) is not None and allowed is not None and dtype not in allowed:
        yield FieldViolation("limits.kv_cache_dtype", f"the node policy allows {', '.join(allowed)} (got {dtype})")


def _port(spec: DeploymentSpec, policy: Policy) -> Iterator[FieldViolation]:
    ports = policy.ports
    if spec.port != "auto" and not ports.first <= spec.port <= ports.last:
        yield FieldViolation("port", f"the node policy allows {ports.first} to {ports.last} (got {spec.port})")


def _extra_args(spec: DeploymentSpec, policy: Policy) -> Iterator[FieldViolation]:
    for index, argument in enumerate(spec.extra_args):
        flag = argument.partition("=")[0]
        if trust.is_flag(argument):  # the policy's word about the model is the leave for the flag
            if not trust.allowed(spec.model, policy):
                yield FieldViolation(f"extra_args[{index}]", trust.denied(spec.model))
        elif "*" in policy.extra_args:
            continue
        elif flag.startswith("-") and not _NUMBER.match(flag) and flag not in policy.extra_args:
            allowed = ", ".join(policy.extra_args) or "none"
            yield FieldViolation(f"extra_args[{index}]", f"the node policy does not allow {flag} (allowed: {allowed})")
