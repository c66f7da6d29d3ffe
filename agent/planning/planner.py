"""The decision for a deployment. Pure: everything is in the request, and equal requests get equal plans.

Steps, each in its own module: which engines and variants could serve (`candidates`), which of them comes first
(`ranking`), which of them fits where, with which limits (`selection`, with `fitting` and `ranks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agent.engines.base import Engine, Located
from agent.planning import flags
from agent.planning.candidates import candidates
from agent.planning.images import planned, runtime_reason
from agent.planning.plan import Plan, Reason, Variant
from agent.planning.ranking import Ranked, Ranking
from agent.planning.remedies import with_remedies
from agent.planning.request import MisfitError, PlanRequest, Refusal, RefusedError
from agent.planning.selection import Selection
from agent.planning.supply import Supply

__all__ = ["PlanRequest", "Refusal", "assumed", "plan"]


def plan(request: PlanRequest) -> Plan | Refusal:
    """A plan with a reason for every value, or why there is none."""
    answer = _answer(request)
    return replace(answer, rejected=(*answer.rejected, *request.left_out)) if request.left_out else answer


def _answer(request: PlanRequest) -> Plan | Refusal:
    try:
        return _plan(Supply(request))
    except RefusedError as refused:
        if isinstance(refused, MisfitError):
            return with_remedies(refused.refusal, request, _plan)
        return refused.refusal


def assumed(engines: Mapping[str, Engine]) -> dict[str, Located]:
    """For hardware that is not here: every engine, as if there were a build of it for all accelerators."""
    return {
        name: Located((engine.executable,), "", "assumed", engine.capabilities.accelerators)
        for name, engine in engines.items()
    }


def _plan(supply: Supply) -> Plan:
    request = supply.request
    found, broken = candidates(request)
    ranking = Ranking(request, supply.devices)
    found, away = ranking.at_home(found)
    chosen, fitted, others = Selection(supply, ranking, found, (*broken, *away)).chosen()
    spec, candidate = request.spec, chosen.candidate
    engine, located, profile = candidate.engine, candidate.located, candidate.profile
    name = spec.served_name or spec.name
    runtime = runtime_reason(request, engine, located)
    reasons = (
        _engine_reason(request, chosen, ranking, alone=len(found) == 1),
        _binary_reason(located),
        runtime,
        *(located.image.reasons if located.image is not None else ()),
        _variant_reason(request, chosen, ranking),
        fitted.devices,
        Reason("model_name", name, "from-spec", "served_name" if spec.served_name else "the deployment's name"),
        Reason("task", spec.task.value, "from-spec", "the spec says so"),
        *fitted.choice.reasons.values(),
        *fitted.reasons,
        *(Reason("extra_args", argument, "from-spec", "the spec says so") for argument in spec.extra_args),
    )
    made = Plan(
        deployment=spec.name,
        generation=request.generation,
        model_name=name,
        task=spec.task.value,
        engine=engine.name,
        engine_version=located.version,
        binary=located.argv,
        runtime=runtime.value,
        variant=Variant(
            source=candidate.option.source,
            path=profile.path,
            format=profile.format,
            quantization=profile.quantization,
            bytes=profile.file_bytes,
            architecture=profile.architecture,
            digest=candidate.option.digest,
        ),
        devices=tuple(offer.device.id for offer in fitted.layout.offers),
        limits=fitted.choice.limits,
        budgets=fitted.layout.budgets,
        extra_args=spec.extra_args,
        reasons=reasons,
        rejected=(*others, *fitted.rejected),
        placement=fitted.layout.placement,
        capacity=fitted.capacity,
        image=planned(located.image) if located.image is not None else None,
    )
    if (problem := flags.problem(made, engine, located)) is not None:
        raise RefusedError(problem)
    return made


def _engine_reason(request: PlanRequest, chosen: Ranked, ranking: Ranking, *, alone: bool) -> Reason:
    asked, name, located = request.spec.engine, chosen.engine, chosen.candidate.located
    where = {"config": "configured on this node", "path": "found on PATH", "embedded": "the embedded one"}
    found = f"{where.get(located.origin, located.origin)}, version {located.version}"
    if located.image is not None:
        found = f"in its image {located.version}"
    if located.origin == "assumed":
        found = "assumed: no executable was looked for"
    if asked != "auto":
        return Reason("engine", name, "from-spec", f"the spec names it; {found}")
    if alone:
        return Reason("engine", name, "computed", f"the only engine that serves this model on this node; {found}")
    return Reason("engine", name, "computed", f"the best that fits, {ranking.purpose}; {found}")


def _variant_reason(request: PlanRequest, chosen: Ranked, ranking: Ranking) -> Reason:
    quantization = chosen.candidate.profile.quantization
    if request.spec.quantization != "auto":
        return Reason("variant", quantization, "from-spec", "the spec names it, and the file is it")
    if len(request.options) == 1:
        return Reason("variant", quantization, "model", "what the model reference holds")
    return Reason("variant", quantization, "computed", ranking.why_variant(chosen))


def _binary_reason(located: Located) -> Reason:
    command = " ".join(located.argv)
    if located.origin == "assumed":
        return Reason("binary", command, "assumed", "assumed: no executable was looked for")
    if located.image is not None:
        return Reason("binary", command, "computed", "what starts it in its image")
    code = "from-policy" if located.origin == "config" else "computed"
    return Reason("binary", command, code, f"found by: {located.origin}")
