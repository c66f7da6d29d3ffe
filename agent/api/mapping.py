"""From the node's status to the messages of the API. Clients use these messages as they are: nothing maps them back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from google.protobuf.timestamp_pb2 import Timestamp

from agent import status
from agent.api.names import (
    NODE,
    deployment_name,
    device_name,
    event_name,
    instance_name,
    measurement_name,
)
from agent.api.structs import struct_from_dict, struct_from_json
from agent.v1 import agent_pb2 as pb

if TYPE_CHECKING:
    from agent.planning.ledger import MeasuredTerm, Measurement
    from agent.supervision.service import Applied, Change, ConfigInForce, Imported, LogChunk

# Built from the names at import, so that a value that the proto lacks is found at once.
PHASES: Final[Mapping[status.Phase, pb.Phase]] = {p: getattr(pb, f"PHASE_{p.name}") for p in status.Phase}
DESIRED: Final[Mapping[status.Desired, pb.Desired]] = {d: getattr(pb, f"DESIRED_{d.name}") for d in status.Desired}
SEVERITIES: Final[Mapping[status.Severity, pb.Severity]] = {
    s: getattr(pb, f"SEVERITY_{s.name}") for s in status.Severity
}
DEVICE_CONDITIONS: Final[Mapping[status.DeviceCondition, pb.DeviceCondition]] = {
    c: getattr(pb, f"DEVICE_CONDITION_{c.name}") for c in status.DeviceCondition
}
FINDING_LEVELS: Final[Mapping[status.FindingLevel, pb.FindingLevel]] = {
    level: getattr(pb, f"FINDING_LEVEL_{level.name}") for level in status.FindingLevel
}
TERNARIES: Final[Mapping[bool | None, pb.Ternary]] = {
    None: pb.TERNARY_UNSPECIFIED,
    True: pb.TERNARY_TRUE,
    False: pb.TERNARY_FALSE,
}
OUTCOMES: Final[Mapping[str, pb.ApplyDeploymentResponse.Outcome]] = {
    "created": pb.ApplyDeploymentResponse.OUTCOME_CREATED,
    "replaced": pb.ApplyDeploymentResponse.OUTCOME_REPLACED,
    "unchanged": pb.ApplyDeploymentResponse.OUTCOME_UNCHANGED,
}


def timestamp(seconds: float | None) -> Timestamp | None:
    """Unix seconds to a Timestamp, to the microsecond (what a double holds); None stays unset."""
    if seconds is None:
        return None
    whole, micros = divmod(round(seconds * 1e6), 1_000_000)
    return Timestamp(seconds=whole, nanos=micros * 1000)


def snapshot(value: status.Snapshot) -> pb.GetStatusResponse:
    return pb.GetStatusResponse(
        revision=value.revision, node=node(value.node), deployments=[deployment(item) for item in value.deployments]
    )


def node(value: status.NodeStatus) -> pb.Node:
    return pb.Node(
        name=NODE,
        host=value.name,
        uid=value.uid,
        version=value.version,
        start_time=timestamp(value.started_at),
        scope=value.scope,
        inventory=struct_from_json(value.inventory_json),
        policy=struct_from_json(value.policy_json),
        conditions=[_condition(item) for item in value.conditions],
        memory_total_bytes=value.memory_total,
        memory_available_bytes=value.memory_available,
        memory_reserved_bytes=value.memory_reserved,
        deployment_count=value.deployments,
        ready_count=value.ready,
        devices=[device(item) for item in value.devices],
    )


def device(value: status.DeviceStatus) -> pb.Device:
    return pb.Device(
        name=device_name(value.id),
        index=value.index,
        vendor=value.vendor,
        display_name=value.name,
        condition=DEVICE_CONDITIONS[value.condition],
        reason=value.reason,
        message=value.message,
        condition_time=timestamp(value.since),
        memory_total_bytes=value.memory_total,
        memory_used_bytes=value.memory_used,
        memory_reserved_bytes=value.memory_reserved,
        sample_time=timestamp(value.sampled_at),
        utilization_percent=value.utilization,
        temperature_celsius=value.temperature_celsius,
        power_watts=value.power_watts,
        power_limit_watts=value.power_limit_watts,
        clock_mhz=value.clock_mhz,
        throttling=value.throttling,
        processes=[_process(item) for item in value.processes or ()],
        processes_known=value.processes is not None,
        holds=[_hold(item) for item in value.holds],
        detail=struct_from_json(value.detail_json),
    )


def deployment(value: status.DeploymentStatus) -> pb.Deployment:
    return pb.Deployment(
        name=deployment_name(value.name),
        uid=value.uid,
        generation=value.generation,
        observed_generation=value.observed_generation,
        etag=value.etag,
        desired=DESIRED[value.desired],
        phase=PHASES[value.phase],
        reason=value.reason,
        message=value.message,
        phase_time=timestamp(value.since),
        create_time=timestamp(value.created_at),
        update_time=timestamp(value.updated_at),
        spec=struct_from_json(value.spec_json),
        plan=struct_from_json(value.plan_json) if value.plan_json else None,
        endpoint=value.endpoint,
        restarts=value.restarts,
        next_attempt_time=timestamp(value.next_attempt_at),
        progress=progress(value.progress) if value.progress else None,
        granted=_granted(value.granted) if value.granted else None,
        diagnosis=diagnosis(value.diagnosis) if value.diagnosis else None,
        instance=instance(value.instance) if value.instance else None,
        previous=instance(value.previous) if value.previous else None,
        conditions=[_condition(item) for item in value.conditions],
    )


def instance(value: status.InstanceStatus) -> pb.Instance:
    return pb.Instance(
        name=instance_name(value.deployment, value.id),
        deployment=deployment_name(value.deployment),
        generation=value.generation,
        attempt=value.attempt,
        runtime=value.runtime,
        live=value.live,
        pid=value.pid,
        port=value.port,
        create_time=timestamp(value.created_at),
        start_time=timestamp(value.started_at),
        ready_time=timestamp(value.ready_at),
        end_time=timestamp(value.ended_at),
        exit=_exit(value.exit) if value.exit else None,
        diagnosis=diagnosis(value.diagnosis) if value.diagnosis else None,
        probes=[_probe(item) for item in value.probes],
        log_path=value.log_path,
        memory_bytes=value.memory_bytes,
        enforcement=value.enforcement,
        device_uses=[_device_use(item) for item in value.device_uses],
        container=value.container,
        image=value.image,
        image_digest=value.image_digest,
        metrics=value.measured.values if value.measured else None,
        metrics_time=timestamp(value.measured.at) if value.measured else None,
    )


def event(value: status.Event) -> pb.Event:
    return pb.Event(
        name=event_name(value.seq),
        seq=value.seq,
        time=timestamp(value.at),
        severity=SEVERITIES[value.severity],
        reason=value.reason,
        message=value.message,
        deployment=deployment_name(value.deployment),
        instance=value.instance,
    )


def measurement(value: Measurement) -> pb.Measurement:
    key = value.key
    return pb.Measurement(
        name=measurement_name(value.id),
        node=value.node,
        host=value.host,
        imported=value.imported,
        measure_time=timestamp(value.at),
        model=value.model,
        digest=key.digest,
        file_bytes=key.file_bytes,
        architecture=key.architecture,
        quantization=key.quantization,
        engine=key.engine,
        engine_version=key.engine_version,
        task=key.task,
        accelerator=key.accelerator,
        device_models=key.device_models,
        layers=key.layers,
        kv_cache_dtype=key.kv_cache_dtype,
        max_num_seqs=key.max_num_seqs,
        max_model_len=key.max_model_len,
        max_num_batched_tokens=key.max_num_batched_tokens,
        extra_args=key.extra_args,
        terms=[_measured_term(item) for item in value.terms],
        ranks=key.ranks,
    )


def imported(value: Imported) -> pb.ImportMeasurementsResponse:
    return pb.ImportMeasurementsResponse(added_count=value.added, known_count=value.known, dropped_count=value.dropped)


def applied(value: Applied) -> pb.ApplyDeploymentResponse:
    return pb.ApplyDeploymentResponse(outcome=OUTCOMES[value.outcome], deployment=deployment(value.deployment))


def findings(value: tuple[status.Finding, ...]) -> pb.RunDoctorResponse:
    return pb.RunDoctorResponse(findings=[_finding(item) for item in value])


def config(value: ConfigInForce) -> pb.GetConfigResponse:
    return pb.GetConfigResponse(
        config=struct_from_dict(value.config),
        origins=[pb.ConfigOrigin(field=item.field, value=item.value, origin=item.origin) for item in value.origins],
    )


def change(value: Change) -> pb.WatchResponse:
    response = pb.WatchResponse(resume_token=value.resume_token)
    if value.deployment:
        response.deployment.CopyFrom(deployment(value.deployment))
    elif value.node:
        response.node.CopyFrom(node(value.node))
    elif value.event:
        response.event.CopyFrom(event(value.event))
    else:
        response.synced.CopyFrom(pb.Synced(events_lost=value.events_lost))
    return response


def log_chunk(value: LogChunk) -> pb.StreamLogsResponse:
    return pb.StreamLogsResponse(data=value.data, instance=value.instance)


def _condition(value: status.Condition) -> pb.Condition:
    return pb.Condition(
        type=value.type,
        status=TERNARIES[value.status],
        reason=value.reason,
        message=value.message,
        since=timestamp(value.since),
    )


def _measured_term(value: MeasuredTerm) -> pb.MeasuredTerm:
    return pb.MeasuredTerm(
        pool=value.pool,
        term=value.name,
        measured_bytes=value.bytes,
        formula_bytes=value.formula,
        source=value.source,
    )


def _process(value: status.DeviceProcess) -> pb.DeviceProcess:
    return pb.DeviceProcess(
        pid=value.pid,
        memory_bytes=value.memory_bytes,
        user=value.user,
        command=value.command,
        instance=value.instance,
    )


def _hold(value: status.DeviceHold) -> pb.DeviceHold:
    return pb.DeviceHold(
        deployment=deployment_name(value.deployment),
        instance=value.instance,
        bytes=value.bytes,
        ended=value.ended,
        hold_time=timestamp(value.since),
        message=value.message,
    )


def _device_use(value: status.DeviceUse) -> pb.DeviceUse:
    return pb.DeviceUse(
        device=device_name(value.device),
        planned=value.planned,
        budget_bytes=value.budget_bytes,
        used_bytes=value.used_bytes,
    )


def _finding(value: status.Finding) -> pb.Finding:
    return pb.Finding(check=value.check, level=FINDING_LEVELS[value.level], message=value.message, remedy=value.remedy)


def diagnosis(value: status.Diagnosis) -> pb.Diagnosis:
    return pb.Diagnosis(
        code=value.code, message=value.message, evidence=value.evidence, hint=value.hint, fatal=value.fatal
    )


def _exit(value: status.ExitStatus) -> pb.ExitStatus:
    return pb.ExitStatus(code=value.code, signal=value.signal, oom_killed=value.oom_killed, time=timestamp(value.at))


def _probe(value: status.ProbeVerdict) -> pb.ProbeVerdict:
    return pb.ProbeVerdict(
        kind=value.kind,
        verdict=value.verdict,
        time=timestamp(value.at),
        detail=value.detail,
        failures=value.failures,
    )


def progress(value: status.Progress) -> pb.Progress:
    return pb.Progress(step=value.step, done_bytes=value.done, total_bytes=value.total)


def _granted(value: status.Granted) -> pb.Granted:
    return pb.Granted(
        max_model_len=value.max_model_len, max_num_seqs=value.max_num_seqs, model=value.model, kv_tokens=value.kv_tokens
    )
