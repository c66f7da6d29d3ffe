"""Which engine: the ones that may and can serve the model here, and why the others may or can not."""

from __future__ import annotations

from collections.abc import Iterator

from agent.engines.base import Capabilities, Engine, Located
from agent.planning.plan import Reason, Rejected
from agent.planning.request import PlanRequest, RefusedError
from agent.status import Diagnosis, DiagnosisCode

_CODES = {
    "policy": DiagnosisCode.POLICY_DENIED,
    "format": DiagnosisCode.MODEL_UNSUPPORTED,
    "task": DiagnosisCode.MODEL_UNSUPPORTED,
    "kv-cache-dtype": DiagnosisCode.MODEL_UNSUPPORTED,
    "not-found": DiagnosisCode.BINARY_MISSING,
}
_HINTS = {
    DiagnosisCode.BINARY_MISSING: "install it, name it in engines.<name>.binary, or install llm-node-agent[embedded]",
    DiagnosisCode.POLICY_DENIED: "policy.engines lists the engines that this node allows",
}


def choose_engine(request: PlanRequest) -> tuple[Engine, Located, Reason, tuple[Rejected, ...]]:
    """The first that fits, in order of preference. Raises `RefusedError`."""
    asked = request.spec.engine
    names = tuple(request.engines) if asked == "auto" else (asked,)
    rejected: list[Rejected] = []
    for name in names:
        problem = next(_problems(request, name), None)
        if problem is None:
            located = request.located[name]
            return request.engines[name], located, _reason(asked, name, located), tuple(rejected)
        rejected.append(Rejected(name, *problem))
    # The rejection that came closest: an engine that only lacks its executable is more help than one of another kind.
    closest = max(rejected, key=lambda candidate: list(_CODES).index(candidate.code))
    code = _CODES[closest.code]
    message = closest.sentence if len(rejected) == 1 else f"no engine can serve it: {closest.sentence}"
    raise RefusedError(Diagnosis(code, message, hint=_HINTS.get(code, "")), tuple(rejected))


def _problems(request: PlanRequest, name: str) -> Iterator[tuple[str, str]]:
    """The rules that the engine breaks, as (code, sentence). Each check relies on those before it."""
    spec, profile, policy = request.spec, request.profile, request.policy
    if name not in request.engines or (policy.engines is not None and name not in policy.engines):
        yield "policy", f"the node policy does not allow the engine {name}"
    capabilities = request.engines[name].capabilities
    if profile.format not in capabilities.formats:
        yield "format", f"{name} does not read {profile.format} files"
    if spec.task not in capabilities.tasks:
        yield "task", f"{name} does not serve the task {spec.task}"
    if (sentence := _pooling_problem(request, capabilities)) is not None:
        yield "task", sentence
    if (dtype := spec.limits.kv_cache_dtype) and dtype not in capabilities.kv_cache_dtypes:
        known = ", ".join(capabilities.kv_cache_dtypes)
        yield "kv-cache-dtype", f"{name} has no KV cache type {dtype}; it has {known}"
    if name not in request.located:
        yield "not-found", f"no executable of {name} was found on this node"


def _pooling_problem(request: PlanRequest, capabilities: Capabilities) -> str | None:
    """A chat model answers an embedding or rerank request too, with vectors and scores that mean nothing."""
    task, pooling = request.spec.task.value, request.profile.pooling
    fitting = {"embedding": {"mean", "cls", "last"}, "rerank": {"rank"}}.get(task)
    if fitting is None or pooling in fitting or not capabilities.pooling_flags.isdisjoint(request.spec.extra_args):
        return None
    flags = ", ".join(sorted(capabilities.pooling_flags))
    return f"the model's file says pooling {pooling or 'nothing'}: it is not made for {task} (otherwise give {flags})"


def _reason(asked: str, name: str, located: Located) -> Reason:
    where = {"config": "configured on this node", "path": "found on PATH", "embedded": "the embedded one"}
    found = f"{where.get(located.origin, located.origin)}, version {located.version}"
    if located.origin == "assumed":
        found = "assumed: no executable was looked for"
    if asked == "auto":
        return Reason("engine", name, "computed", f"the first engine that serves this model on this node; {found}")
    return Reason("engine", name, "from-spec", f"the spec names it; {found}")
