"""The decision for a deployment. Pure: everything is in the request, and equal requests get equal plans.

Steps, each in its own module: which engine (`candidates`), which limits (`limits`), where it runs and whether it fits
(`fitting`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from agent.engines.base import Engine, LayersEngine, Located
from agent.planning.candidates import choose_engine
from agent.planning.fitting import fit
from agent.planning.limits import choose_limits
from agent.planning.plan import Plan, Reason, Variant
from agent.planning.request import PlanRequest, Refusal, RefusedError
from agent.status import Diagnosis, DiagnosisCode

__all__ = ["PlanRequest", "Refusal", "assumed", "plan"]


def plan(request: PlanRequest) -> Plan | Refusal:
    """A plan with a reason for every value, or why there is none."""
    try:
        return _plan(request)
    except RefusedError as refused:
        return refused.refusal


def assumed(engines: Mapping[str, Engine]) -> dict[str, Located]:
    """For hardware that is not here: every engine, as if there were a build of it for all accelerators."""
    return {
        name: Located((engine.executable,), "", "assumed", engine.capabilities.accelerators)
        for name, engine in engines.items()
    }


def _plan(request: PlanRequest) -> Plan:
    spec = request.spec
    variant, variant_reason = _variant(request)
    engine, located, engine_reason, rejected = choose_engine(request)
    fitted = fit(request, cast("LayersEngine", engine), located, choose_limits(request, engine))
    name = spec.served_name or spec.name
    reasons = (
        engine_reason,
        _binary_reason(located),
        Reason("runtime", "process", "computed", "the engine runs natively"),
        variant_reason,
        fitted.devices,
        Reason("model_name", name, "from-spec", "served_name" if spec.served_name else "the deployment's name"),
        Reason("task", spec.task.value, "from-spec", "the spec says so"),
        *fitted.choice.reasons.values(),
        *fitted.reasons,
        *(Reason("extra_args", argument, "from-spec", "the spec says so") for argument in spec.extra_args),
    )
    return Plan(
        deployment=spec.name,
        generation=request.generation,
        model_name=name,
        task=spec.task.value,
        engine=engine.name,
        engine_version=located.version,
        binary=located.argv,
        runtime="process",
        variant=variant,
        devices=tuple(offer.device.id for offer in fitted.layout.offers),
        limits=fitted.choice.limits,
        budgets=fitted.layout.budgets,
        extra_args=spec.extra_args,
        reasons=reasons,
        rejected=(*rejected, *fitted.rejected),
        placement=fitted.layout.placement,
    )


def _variant(request: PlanRequest) -> tuple[Variant, Reason]:
    """The one variant that the reference names. Raises `RefusedError` when the spec wants another quantization."""
    profile, asked = request.profile, request.spec.quantization
    variant = Variant(
        source=request.spec.model,
        path=profile.path,
        format=profile.format,
        quantization=profile.quantization,
        bytes=profile.file_bytes,
        architecture=profile.architecture,
        digest=request.digest,
    )
    if asked == "auto":
        return variant, Reason("variant", profile.quantization, "model", "what the model reference holds")
    if asked.upper() != profile.quantization.upper():
        message = f"the spec asks for {asked}, but {request.spec.model} is {profile.quantization}"
        raise RefusedError(Diagnosis(DiagnosisCode.MODEL_UNSUPPORTED, message, hint="name another file, or `auto`"))
    return variant, Reason("variant", profile.quantization, "from-spec", "the spec names it, and the file is it")


def _binary_reason(located: Located) -> Reason:
    command = " ".join(located.argv)
    if located.origin == "assumed":
        return Reason("binary", command, "assumed", "assumed: no executable was looked for")
    code = "from-policy" if located.origin == "config" else "computed"
    return Reason("binary", command, code, f"found by: {located.origin}")
