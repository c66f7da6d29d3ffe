"""Which engine with which variant: the pairs that may and can serve the model here, and the rules that others break.

Only what can be said without looking for memory is decided here: policy, formats, tasks, quantizations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from agent.engines.base import Capabilities, Engine, Located, Support
from agent.models.profile import Basis, ModelProfile
from agent.planning.plan import Rejected
from agent.planning.request import Option, PlanRequest, RefusedError
from agent.status import Diagnosis, DiagnosisCode

#: By the rule that was broken; the later ones come closer to a plan.
_CODES = {
    "policy": DiagnosisCode.POLICY_DENIED,
    "format": DiagnosisCode.MODEL_UNSUPPORTED,
    "variant": DiagnosisCode.MODEL_UNSUPPORTED,
    "task": DiagnosisCode.MODEL_UNSUPPORTED,
    "quantization": DiagnosisCode.MODEL_UNSUPPORTED,
    "remote-code": DiagnosisCode.MODEL_UNSUPPORTED,
    "kv-cache-dtype": DiagnosisCode.MODEL_UNSUPPORTED,
    "arguments": DiagnosisCode.BAD_FLAG,
    "not-found": DiagnosisCode.BINARY_MISSING,
}
_RANK = {code: place for place, code in enumerate(_CODES)}
_HINTS = {
    DiagnosisCode.BINARY_MISSING: "install it, name it in engines.<name>.binary, or install llm-node-agent[embedded]",
    DiagnosisCode.POLICY_DENIED: "policy.engines lists the engines that this node allows",
}
_POOLINGS = {"embedding": frozenset({"mean", "cls", "last"}), "rerank": frozenset({"rank"})}
_TRUSTS_CODE = "--trust-remote-code"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that could serve one of the variants."""

    name: str  # of both, as people read it
    engine: Engine
    located: Located
    option: Option
    place: int  # of the option in the request
    support: Support | None  # where the engine runs the quantization; None: wherever the engine runs

    @property
    def profile(self) -> ModelProfile:
        return self.option.profile

    def request(self, request: PlanRequest) -> PlanRequest:
        """The question about this variant alone."""
        return request if len(request.options) == 1 else replace(request, options=(self.option,))


def candidates(request: PlanRequest) -> tuple[list[Candidate], list[Rejected]]:
    """Those that break no rule, in the order of engines and options. Raises `RefusedError` if there are none."""
    found, rejected = _screened(request, thorough=False)
    if not found:
        _, rejected = _screened(request, thorough=True)
        raise RefusedError(_nothing(rejected), tuple(rejected))
    return found, rejected


def _screened(request: PlanRequest, *, thorough: bool) -> tuple[list[Candidate], list[Rejected]]:
    """`thorough`: engines that are not here are looked at too, which imports their adapters."""
    asked = request.spec.engine
    found: list[Candidate] = []
    rejected: list[Rejected] = []
    for name in request.engines if asked == "auto" else (asked,):
        if problem := _engine_problem(request, name, thorough=thorough):
            rejected.append(Rejected(name, *problem))
            continue
        engine, located = request.engines[name], request.located.get(name)
        rejected += _unreadable(request, engine)
        for place, option in enumerate(request.options):
            if option.profile.format not in engine.capabilities.formats:
                continue
            label = labelled(request, name, option)
            broken = next(_problems(request, engine, located, option), None)
            if broken is not None:
                rejected.append(Rejected(label, *broken))
            elif located is not None:
                support = _support(engine.capabilities, option.profile)
                found.append(Candidate(label, engine, located, option, place, support))
    return found, rejected


def _unreadable(request: PlanRequest, engine: Engine) -> Iterator[Rejected]:
    """A line for each format that the engine does not read: it says the same of all variants in it."""
    formats = dict.fromkeys(option.profile.format for option in request.options)
    for each in formats:
        if each not in engine.capabilities.formats:
            label = engine.name if len(request.options) == 1 else f"{engine.name} with {each}"
            yield Rejected(label, "format", f"{engine.name} does not read {each} files")


def labelled(request: PlanRequest, name: str, option: Option) -> str:
    """The engine alone where there is no choice of variants."""
    return name if len(request.options) == 1 else f"{name} with {option.profile.quantization} ({option.source})"


def _nothing(rejected: list[Rejected]) -> Diagnosis:
    # The rejection that came closest: an engine that only lacks its executable is more help than one of another kind.
    closest = max(rejected, key=lambda candidate: _RANK[candidate.code])
    code = _CODES[closest.code]
    message = closest.sentence if len(rejected) == 1 else f"no engine can serve it: {closest.sentence}"
    hint = "name another file, or `auto`" if closest.code == "variant" else _HINTS.get(code, "")
    return Diagnosis(code, message, hint=hint)


def _engine_problem(request: PlanRequest, name: str, *, thorough: bool) -> tuple[str, str] | None:
    """The rule that the engine breaks whatever the variant, as (code, sentence)."""
    policy = request.policy
    if name not in request.engines or (policy.engines is not None and name not in policy.engines):
        return "policy", f"the node policy does not allow the engine {name}"
    if not thorough and name not in request.located:
        return _not_found(name)
    return None


def _not_found(name: str) -> tuple[str, str]:
    return "not-found", f"no executable of {name} was found on this node"


def _problems(
    request: PlanRequest, engine: Engine, located: Located | None, option: Option
) -> Iterator[tuple[str, str]]:
    """The rules that the pair breaks, as (code, sentence). Each check relies on those before it."""
    spec, profile, capabilities = request.spec, option.profile, engine.capabilities
    name = engine.name
    if spec.quantization != "auto" and not is_quantization(profile, spec.quantization):
        yield "variant", f"the spec asks for {spec.quantization}, but {option.source} is {profile.quantization}"
    if spec.task not in capabilities.tasks:
        yield "task", f"{name} does not serve the task {spec.task}"
    if (sentence := _pooling_problem(request, capabilities, profile)) is not None:
        yield "task", sentence
    yield from _loading_problems(request, engine, located, profile)
    if (dtype := spec.limits.kv_cache_dtype) and dtype not in capabilities.kv_cache_dtypes:
        known = ", ".join(capabilities.kv_cache_dtypes)
        yield "kv-cache-dtype", f"{name} has no KV cache type {dtype}; it has {known}"
    yield from _argument_problems(request, engine)
    if located is None:
        code, sentence = _not_found(name)
        yield code, capabilities.not_run or sentence


def _loading_problems(
    request: PlanRequest, engine: Engine, located: Located | None, profile: ModelProfile
) -> Iterator[tuple[str, str]]:
    """Whether the engine's build can load these weights at all; on which devices, is seen when they are chosen."""
    name, capabilities, quantization = engine.name, engine.capabilities, profile.quantization
    support = _support(capabilities, profile)
    if capabilities.quantizations is not None and support is None:
        yield "quantization", f"{name} does not run {quantization} weights"
    if support is not None and located is not None and support.accelerators.isdisjoint(located.accelerators):
        where, build = ", ".join(sorted(support.accelerators)), ", ".join(sorted(located.accelerators))
        yield "quantization", f"{name} runs {quantization} weights on {where}, and this build of it is for {build}"
    if profile.remote_code and profile.basis == Basis.BOUND and profile.format != "gguf" and not _trusts_code(request):
        own = f"{profile.architecture} is not known here, and its own Python files would have to run"
        yield "remote-code", f"{own}: {_TRUSTS_CODE} in extra_args allows it"


def _argument_problems(request: PlanRequest, engine: Engine) -> Iterator[tuple[str, str]]:
    """Arguments are an engine's own: with several engines, one that they suit is taken."""
    spec = request.spec
    if spec.extra_args:
        for violation in engine.check_extra_args(spec.extra_args):
            yield "arguments", f"{violation.field}: {violation.rule}"
    for variable in chain(spec.environment, spec.secrets):
        if rule := engine.check_variable(variable):
            yield "arguments", f"{variable}: {rule}"


def _trusts_code(request: PlanRequest) -> bool:
    return any(argument.replace("_", "-").startswith(_TRUSTS_CODE) for argument in request.spec.extra_args)


def _support(capabilities: Capabilities, profile: ModelProfile) -> Support | None:
    """Where the quantization runs; None where the engine says nothing about it."""
    known, config = capabilities.quantizations, profile.quantization_config
    if known is None:
        return None
    found = known.get(profile.quantization)
    return known.get(config.method) if found is None and config is not None else found


def is_quantization(profile: ModelProfile, asked: str) -> bool:
    """Whether a person means this one: "fp8" is "fp8-block" too, and "gptq" is "gptq-w8a16"."""
    name, asked = profile.quantization.lower(), asked.lower()
    method = profile.quantization_config.method if profile.quantization_config is not None else ""
    return asked in {name, method} or name.startswith(f"{asked}-")


def _pooling_problem(request: PlanRequest, capabilities: Capabilities, profile: ModelProfile) -> str | None:
    """A chat model answers an embedding or rerank request too, with vectors and scores that mean nothing."""
    task, pooling = request.spec.task.value, profile.pooling
    fitting = _POOLINGS.get(task)
    if fitting is None or pooling in fitting or not capabilities.pooling_flags.isdisjoint(request.spec.extra_args):
        return None
    flags = ", ".join(sorted(capabilities.pooling_flags))
    return f"the model's file says pooling {pooling or 'nothing'}: it is not made for {task} (otherwise give {flags})"
