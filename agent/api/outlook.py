"""Plans, and the catalog as it fits, to the messages of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.api.mapping import TERNARIES, diagnosis
from agent.api.names import model_name
from agent.api.requests import Listing
from agent.api.structs import struct_from_dict
from agent.planning.plan import Plan
from agent.supervision.service import Fit, FitVerdict, KnownModel, Planned
from agent.v1 import agent_pb2 as pb

#: Built from the names at import, so that a value that the proto lacks is found at once.
VERDICTS: Final[Mapping[FitVerdict, pb.FitVerdict]] = {v: getattr(pb, f"FIT_VERDICT_{v.name}") for v in FitVerdict}
MODELS: Listing[KnownModel] = Listing("models", lambda item: (item.id,), (str,))


def planned(value: Planned) -> pb.PlanDeploymentResponse:
    return pb.PlanDeploymentResponse(
        plan=struct_from_dict(value.plan.to_dict()) if value.plan else None,
        refusal=diagnosis(value.refusal) if value.refusal else None,
        argv=value.argv,
        environment=value.environment,
        secrets=value.secrets,
        verdict=_verdict(value),
        missing_bytes=value.missing_bytes,
        rejected=[
            pb.Rejection(candidate=item.candidate, code=item.code, message=item.sentence) for item in value.rejected
        ],
        remedies=value.remedies,
        notes=value.notes,
        pools=[
            pb.MemoryPool(
                id=pool.id,
                display_name=pool.name,
                total_bytes=pool.total,
                others_bytes=pool.others,
                reserve_bytes=pool.reserve,
            )
            for pool in value.pools
        ],
    )


def fit(value: Fit) -> pb.FitCatalogResponse:
    found = value.planned
    response = pb.FitCatalogResponse(
        model=model(value.model),
        number=value.number,
        count=value.count,
        verdict=_verdict(found),
        refusal=diagnosis(found.refusal) if found.refusal else None,
        missing_bytes=found.missing_bytes,
        notes=found.notes,
    )
    if found.plan is not None:
        response.MergeFrom(_decided(found.plan))
    return response


def _decided(plan: Plan) -> pb.FitCatalogResponse:
    capacity = plan.capacity
    return pb.FitCatalogResponse(
        reference=plan.variant.source,
        format=plan.variant.format,
        quantization=plan.variant.quantization,
        size_bytes=plan.variant.bytes,
        engine=plan.engine,
        devices=plan.devices,
        max_model_len=plan.limits.max_model_len,
        max_num_seqs=plan.limits.max_num_seqs,
        cache_tokens=None if capacity is None else capacity.kv_tokens,
        requests=None if capacity is None else capacity.requests,
        host_bytes=plan.host_bytes,
        device_bytes=sum(plan.device_bytes.values()),
    )


def model(value: KnownModel) -> pb.Model:
    return pb.Model(
        name=model_name(value.id),
        aliases=value.aliases,
        family=value.family,
        licence=value.licence,
        gated=TERNARIES[value.gated],
        task=value.task,
        context_tokens=value.context_tokens,
        parameter_count=value.parameters,
        variants=[
            pb.ModelVariant(
                reference=item.reference, format=item.format, quantization=item.quantization, trust=item.trust
            )
            for item in value.variants
        ],
    )


def _verdict(value: Planned) -> pb.FitVerdict:
    return pb.FIT_VERDICT_UNSPECIFIED if value.verdict is None else VERDICTS[value.verdict]
