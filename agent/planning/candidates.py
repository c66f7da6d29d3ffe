"""Which engine with which variant: the pairs that may and can serve the model here, and the rules that others break.

Only what can be said without looking for memory is decided here: policy, formats, tasks, quantizations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain

from agent.engines.base import Capabilities, Engine, Located, Support
from agent.models import gateway
from agent.models.parts import is_split
from agent.models.profile import Basis, ModelProfile
from agent.planning import flags, trust
from agent.planning.images import allowed, may_have, ways
from agent.planning.plan import Rejected
from agent.planning.request import Option, PlanRequest, RefusedError
from agent.status import Diagnosis, DiagnosisCode

#: By the rule that was broken; the later ones come closer to a plan. From "no-image" on, the engine would serve the
#: model, and something of this node keeps it from that. That a "variant" is not the one asked for is never the nearest:
#: either another is, and breaks another rule, or there is none.
_CODES = {
    "policy": DiagnosisCode.POLICY_DENIED,
    "format": DiagnosisCode.MODEL_UNSUPPORTED,
    "task": DiagnosisCode.MODEL_UNSUPPORTED,
    "quantization": DiagnosisCode.MODEL_UNSUPPORTED,
    "remote-code": DiagnosisCode.MODEL_UNSUPPORTED,
    "kv-cache-dtype": DiagnosisCode.MODEL_UNSUPPORTED,
    "arguments": DiagnosisCode.BAD_FLAG,
    "no-image": DiagnosisCode.IMAGE_MISSING,
    "not-found": DiagnosisCode.BINARY_MISSING,
    "runtimes": DiagnosisCode.POLICY_DENIED,
    "runtime": DiagnosisCode.RUNTIME_UNAVAILABLE,
    "image": DiagnosisCode.IMAGE_MISSING,
    "architecture": DiagnosisCode.CPU_UNSUPPORTED,
    "device": DiagnosisCode.DEVICE_UNSUPPORTED,
    "driver": DiagnosisCode.DRIVER_UNSUPPORTED,
    "repository": DiagnosisCode.POLICY_DENIED,
    "digest": DiagnosisCode.POLICY_DENIED,
    "toolkit": DiagnosisCode.TOOLKIT_MISSING,
    "forbidden": DiagnosisCode.POLICY_DENIED,  # an engine that would do but for the policy
    "options": DiagnosisCode.BAD_FLAG,  # of an executable that is here and was asked
}
_RANK = {code: place for place, code in enumerate(_CODES)}
#: Those of an engine that is not here.
_ABSENT = frozenset({"no-image", "not-found"})
_ENGINES = "policy.engines lists the engines that this node allows"
_HINTS = {
    "policy": _ENGINES,
    "forbidden": _ENGINES,
    "runtimes": "policy.runtimes lists what this node allows",
    "no-image": "it needs Docker or podman, and its image named in catalog/engines.yaml of the configuration directory "
    "or as `image` in the spec",
    "runtime": "`agentctl doctor` says what is wrong with Docker or podman",
    "image": "name one in catalog/engines.yaml of the configuration directory",
    "architecture": "name an image for this machine in catalog/engines.yaml of the configuration directory",
    "device": "choose another engine or device",
    "driver": "install a newer driver, or name another image in catalog/engines.yaml of the configuration directory",
    "repository": "allow the repository in images.repositories",
    "digest": "pin it: give its digest in catalog/engines.yaml of the configuration directory",
}
_POOLINGS = {"embedding": frozenset({"mean", "cls", "last"}), "rerank": frozenset({"rank"})}


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
        raise RefusedError(_nothing(request, rejected), tuple(rejected))
    return found, rejected


def _screened(request: PlanRequest, *, thorough: bool) -> tuple[list[Candidate], list[Rejected]]:
    """`thorough`: engines that are not here, or that the policy forbids, are looked at too, which imports their
    adapters.
    """
    asked = request.spec.engine
    found: list[Candidate] = []
    rejected: list[Rejected] = []
    for name in request.engines if asked == "auto" else (asked,):
        if problem := _engine_problem(request, name, thorough=thorough):
            rejected.append(Rejected(name, *problem))
            continue
        able, broken = _screened_alone(request, name)
        found += able
        rejected += broken
    return found, list(dict.fromkeys(rejected))


def _screened_alone(request: PlanRequest, name: str) -> tuple[list[Candidate], list[Rejected]]:
    """One engine with all variants."""
    engine = request.engines[name]
    reads, formats = engine.capabilities.formats, {option.profile.format: None for option in request.options}
    found: list[Candidate] = []
    rejected = [_unread(name, each, alone=len(request.options) == 1) for each in formats if each not in reads]
    if reads.isdisjoint(formats):
        return found, rejected
    readable = [each for each in enumerate(request.options) if each[1].profile.format in reads]
    able = ways(request, engine)
    # What keeps it from being run is no reason where it could serve no variant anyway.
    if able.rejected and any(_lacks_only_a_way(request, engine, option) for _, option in readable):
        rejected += able.rejected
    for located in able.found or (None,):
        for place, option in readable:
            label = labelled(request, name, option)
            support = _support(engine.capabilities, option.profile)
            broken = next(_problems(request, engine, located, option, support), None)
            if broken is not None:
                told = broken[0] in _ABSENT and able.rejected
                rejected += [] if told else [Rejected(label, *broken)]
            elif located is not None:
                label += " in a container" if located.image is not None else ""
                found.append(Candidate(label, engine, located, option, place, support))
    return found, rejected


def _lacks_only_a_way(request: PlanRequest, engine: Engine, option: Option) -> bool:
    support = _support(engine.capabilities, option.profile)
    return next(_problems(request, engine, None, option, support))[0] in _ABSENT


@lru_cache(maxsize=256)
def _unread(name: str, format: str, *, alone: bool) -> Rejected:
    """A line for a format that the engine does not read: it says the same of all variants in it."""
    return Rejected(name if alone else f"{name} with {format}", "format", f"{name} does not read {format} files")


def labelled(request: PlanRequest, name: str, option: Option) -> str:
    """The engine alone where there is no choice of variants."""
    return name if len(request.options) == 1 else f"{name} with {option.profile.quantization} ({option.source})"


def _nothing(request: PlanRequest, rejected: list[Rejected]) -> Diagnosis:
    asked = request.spec.quantization
    wanted = tuple(each for each in request.options if asked == "auto" or is_quantization(each.profile, asked))
    if not wanted:
        return _no_such_variant(request)
    # The rejection that came closest: an engine that only lacks its executable is more help than one of another kind.
    near = [candidate for candidate in rejected if candidate.code != "variant"]
    closest = max(near, key=lambda candidate: _RANK[candidate.code])
    message = closest.sentence if len(rejected) == 1 else f"no engine can serve it: {closest.sentence}"
    hint = _HINTS.get(closest.code, "")
    hint = _readers(replace(request, options=wanted)) if closest.code == "format" else hint
    hint = _installable(replace(request, options=wanted)) if closest.code == "not-found" else hint
    return Diagnosis(_CODES[closest.code], message, hint=hint)


def _no_such_variant(request: PlanRequest) -> Diagnosis:
    """None of the asked quantization, whatever engines there are."""
    asked, code = request.spec.quantization, DiagnosisCode.MODEL_UNSUPPORTED
    if len(request.options) > 1:
        return Diagnosis(code, f"no variant of the model is {asked}", hint=_stored(request))
    return Diagnosis(code, _other_variant(asked, request.options[0]), hint="name another file, or `auto`")


def _other_variant(asked: str, option: Option) -> str:
    return f"the spec asks for {asked}, but {option.source} is {option.profile.quantization}"


def _stored(request: PlanRequest) -> str:
    names = dict.fromkeys(option.profile.quantization for option in request.options)
    return f"it is published as {', '.join(names)}; or say `auto`"


def _readers(request: PlanRequest) -> str:
    """What reads the model's files, and what the engine that was asked for reads."""
    formats = dict.fromkeys(option.profile.format for option in request.options)
    hints = []
    for each in formats:
        engines = [name for name, engine in request.engines.items() if each in engine.capabilities.formats]
        hints += [f"{each} files are read by {', '.join(engines)}"] if engines else []
    if request.spec.engine in request.engines:
        engine = request.engines[request.spec.engine]
        hints.append(f"{engine.name} reads {', '.join(sorted(engine.capabilities.formats))}: name such a variant")
    return "; ".join(hints)


def _installable(request: PlanRequest) -> str:
    """How an engine that reads one of the model's formats gets here."""
    formats, asked = {option.profile.format for option in request.options}, request.spec.engine
    hints = [f"install it, or name it in engines.{'<name>' if asked == 'auto' else asked}.binary"]
    if request.containers is None and "docker" in allowed(request) and _in_containers(request, formats):
        hints.append("or run Docker or podman on this node, and it comes as an image")
    if "gguf" in formats and asked in {"auto", "llama.cpp"}:
        hints.append("or install llm-node-agent[embedded], which serves GGUF")
    elif "safetensors" in formats and asked == "auto":
        hints.append("or name a GGUF variant of the model, which llm-node-agent[embedded] serves")
    return "; ".join(hints)


def _in_containers(request: PlanRequest, formats: set[str]) -> bool:
    asked = request.spec.engine
    engines = request.engines.values() if asked == "auto" else (request.engines[asked],)
    return any(each.container is not None and not each.capabilities.formats.isdisjoint(formats) for each in engines)


def _engine_problem(request: PlanRequest, name: str, *, thorough: bool) -> tuple[str, str] | None:
    """The rule that the engine breaks whatever the variant, as (code, sentence)."""
    policy = request.policy
    if name not in request.engines or (policy.engines is not None and name not in policy.engines):
        sentence = f"the node policy does not allow the engine {name}"
        found = _screened_alone(request, name)[0] if thorough and name in request.engines else ()
        if found:
            return "forbidden", f"{sentence}, which can run here and reads {found[0].profile.format} files"
        return "policy", sentence
    if not thorough and not may_have(request, name):
        return _not_found(name)
    return None


def _not_found(name: str) -> tuple[str, str]:
    return "not-found", f"no executable of {name} was found on this node"


def _no_image(request: PlanRequest, name: str) -> tuple[str, str]:
    why = "the catalog of images names none of it"
    if "docker" not in allowed(request):
        why = "spec or policy allow no containers"
    elif request.containers is None:
        why = "this node has no container engine"
    return "no-image", f"{name} can run as an image only, and {why}"


def _problems(
    request: PlanRequest, engine: Engine, located: Located | None, option: Option, support: Support | None
) -> Iterator[tuple[str, str]]:
    """The rules that the pair breaks, as (code, sentence). Each check relies on those before it."""
    spec, profile, capabilities = request.spec, option.profile, engine.capabilities
    name = engine.name
    if spec.quantization != "auto" and not is_quantization(profile, spec.quantization):
        yield "variant", _other_variant(spec.quantization, option)
    if spec.task not in capabilities.tasks:
        yield "task", f"{name} does not serve the task {spec.task}"
    if (sentence := _pooling_problem(request, capabilities, profile)) is not None:
        yield "task", sentence
    yield from _loading_problems(request, engine, located, option, support)
    if (dtype := spec.limits.kv_cache_dtype) and dtype not in capabilities.kv_cache_dtypes:
        known = ", ".join(capabilities.kv_cache_dtypes)
        yield "kv-cache-dtype", f"{name} has no KV cache type {dtype}; it has {known}"
    yield from _argument_problems(request, engine, located)
    if located is None:
        native = capabilities.native and "process" in allowed(request)
        yield _not_found(name) if native else _no_image(request, name)


def _loading_problems(
    request: PlanRequest, engine: Engine, located: Located | None, option: Option, support: Support | None
) -> Iterator[tuple[str, str]]:
    """Whether the engine's build can load these weights at all; on which devices, is seen when they are chosen."""
    profile = option.profile
    name, capabilities, quantization = engine.name, engine.capabilities, profile.quantization
    if capabilities.quantizations is not None and support is None:
        yield "quantization", f"{name} does not run {quantization} weights"
    if support is not None and located is not None and support.accelerators.isdisjoint(located.accelerators):
        where, build = ", ".join(sorted(support.accelerators)), ", ".join(sorted(located.accelerators))
        yield "quantization", f"{name} runs {quantization} weights on {where}, and this build of it is for {build}"
    if not capabilities.split and is_split(profile.path):
        yield "format", f"{name} does not read a model that is split into several files"
    if (sentence := _code_problem(request, option)) is not None:
        yield "remote-code", sentence


def _argument_problems(request: PlanRequest, engine: Engine, located: Located | None) -> Iterator[tuple[str, str]]:
    """Arguments are an engine's own: with several engines, one that they suit is taken."""
    spec = request.spec
    if spec.extra_args:  # the adapter says what to do instead; an executable's list only that there is no such flag
        for violation in engine.check_extra_args(spec.extra_args):
            yield "arguments", f"{violation.field}: {violation.rule}"
        if located is not None and located.options is not None:
            for flag in flags.unknown(spec.extra_args, located.options):
                yield "options", flags.sentence(flag, located, engine.name)
    for variable in chain(spec.environment, spec.secrets):
        if rule := engine.check_variable(variable):
            yield "arguments", f"{variable}: {rule}"


def _code_problem(request: PlanRequest, option: Option) -> str | None:
    """Python files of the model run where the spec asks for it and the policy names just this source."""
    profile = option.profile
    asked = any(map(trust.is_flag, request.spec.extra_args))
    if asked and not trust.allowed(option.source, request.policy):
        return trust.denied(option.source)
    if asked or not profile.remote_code or profile.basis != Basis.BOUND or profile.format == "gguf":
        return None
    own = f"{profile.architecture} is not known here, and its own Python files would have to run"
    return f"{own}: read them; then name the model in the node's policy.trust_remote_code, and give {trust.FLAG}"


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
    task, pooling = request.spec.task, profile.pooling
    fitting = _POOLINGS.get(task)
    if fitting is None or pooling in fitting or not capabilities.pooling_flags.isdisjoint(request.spec.extra_args):
        return None
    if profile.format == gateway.SCHEME:  # each model behind it was asked
        return None
    flags = ", ".join(sorted(capabilities.pooling_flags))
    otherwise = f" (otherwise give {flags})" if flags else ""
    says = f"says pooling {pooling}" if pooling else "names no pooling"
    return f"the model's file {says}: it is not made for {task}{otherwise}"
