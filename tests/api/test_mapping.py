from __future__ import annotations

import dataclasses
from dataclasses import replace

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from agent import status
from agent.api import artifacts, mapping, outlook
from agent.api.structs import struct_to_dict
from agent.planning.plan import Limits, Plan, Variant
from agent.supervision.service import Change, Collected, Collection, Deleted, Planned, Pulling
from agent.v1 import agent_pb2 as pb
from tests.api.fake_node import DISK, FakeNode, make_artifact, make_deployment

NOW = 1_700_000_000.5
DIAGNOSIS = status.Diagnosis(status.DiagnosisCode.DOES_NOT_FIT, "too large", "needs 9 GiB", "a smaller one")
ARTIFACT = make_artifact(pinned=True, variant="bf16", desired_by=("chat",))
INSTANCE = status.InstanceStatus(
    id="i-1",
    deployment="chat",
    generation=3,
    attempt=4,
    runtime="process",
    live=True,
    pid=12,
    port=8100,
    created_at=NOW,
    started_at=NOW + 1,
    ready_at=NOW + 2,
    ended_at=NOW + 3,
    exit=status.ExitStatus(1, 9, oom_killed=True, at=NOW + 4),
    diagnosis=DIAGNOSIS,
    probes=(status.ProbeVerdict(status.ProbeKind.LIVENESS, status.Verdict.FAIL, NOW, "refused", 2),),
    log_path="/logs/1",
    memory_bytes=5_000_000_000,
    enforcement=("memory by cgroup",),
    device_uses=(status.DeviceUse("GPU-1", planned=True, budget_bytes=7, used_bytes=9),),
    container="4f5e",
    image="docker.io/vllm/vllm-openai:v0.33.0",
    image_digest="sha256:0",
    measured=status.Measured(NOW + 5, {"running": 1.0}),
)
DEVICE = status.DeviceStatus(
    id="GPU-1",
    index=3,
    vendor="nvidia",
    name="NVIDIA H200",
    condition=status.DeviceCondition.DEGRADED,
    reason="RowRemapPending",
    message="rows wait to be remapped",
    since=NOW,
    memory_total=141 << 30,
    memory_used=0,
    memory_reserved=5,
    sampled_at=NOW + 1,
    utilization=0.0,
    temperature_celsius=40.5,
    power_watts=80.0,
    power_limit_watts=700.0,
    clock_mhz=1980,
    throttling=("sw-power-cap",),
    processes=(status.DeviceProcess(7, 1 << 30, "ann", "python", "i-1"),),
    holds=(status.DeviceHold("chat", "i-1", 5, ended=True, since=NOW, message="not back yet"),),
    detail_json='{"compute_capability": "9.0"}',
)
DEPLOYMENT = status.DeploymentStatus(
    name="chat",
    uid="u",
    generation=3,
    observed_generation=2,
    etag="e",
    desired=status.Desired.STOP,
    phase=status.Phase.BACKOFF,
    reason="Backoff",
    message="waits",
    since=NOW,
    created_at=NOW + 1,
    updated_at=NOW + 2,
    spec_json='{"model": "m"}',
    plan_json='{"engine": "x"}',
    endpoint="http://127.0.0.1:8100",
    restarts=7,
    next_attempt_at=NOW + 3,
    progress=status.Progress("fetching", 3, 9),
    granted=status.Granted(2048, 4, "m", 8192),
    diagnosis=DIAGNOSIS,
    instance=INSTANCE,
    previous=INSTANCE,
    conditions=(status.Condition("WithinDeviceBudget", False, "OffBudget", "2 bytes too many", NOW),),
)


def _unset(message: Message, path: str = "") -> list[str]:
    """The fields of our own messages, at any depth, that are not set."""
    set_fields = {field.name: value for field, value in message.ListFields()}
    missing = []
    for field in message.DESCRIPTOR.fields:
        if field.name not in set_fields:
            missing.append(path + field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.full_name.startswith("agent."):
            if field.message_type.GetOptions().map_entry:  # of plain values
                continue
            values = set_fields[field.name] if field.is_repeated else [set_fields[field.name]]
            for value in values:
                missing += _unset(value, f"{path}{field.name}.")
    return missing


def test_every_field_of_a_full_deployment_is_sent():
    assert _unset(mapping.deployment(DEPLOYMENT)) == []


def test_what_is_not_known_stays_unset():
    message = mapping.deployment(make_deployment("chat"))
    for field in ("plan", "next_attempt_time", "progress", "granted", "diagnosis", "instance", "previous"):
        assert not message.HasField(field), field
    bare = mapping.instance(
        status.InstanceStatus(id="i", deployment="d", generation=1, attempt=1, runtime="process", live=False)
    )
    for field in ("pid", "port", "start_time", "ready_time", "end_time", "exit", "memory_bytes"):
        assert not bare.HasField(field), field
    assert not mapping.deployment(replace(DEPLOYMENT, granted=status.Granted())).granted.HasField("max_model_len")


def test_every_field_of_the_node_an_event_and_an_artifact_is_sent():
    node = status.NodeStatus(
        name="h",
        uid="u",
        version="1",
        started_at=NOW,
        scope="user",
        inventory_json='{"a": 1}',
        policy_json='{"b": 1}',
        conditions=(status.Condition("DiskSpace", False, "Full", "no space", NOW),),
        memory_total=1,
        memory_available=2,
        memory_reserved=3,
        deployments=4,
        ready=5,
        devices=(DEVICE,),
    )
    assert _unset(mapping.node(node)) == []
    assert mapping.node(node).conditions[0].status == pb.TERNARY_FALSE
    event = status.Event("Ready", "it is", status.Severity.ERROR, "chat", "i-1", NOW, 9)
    assert _unset(mapping.event(event)) == []
    assert _unset(artifacts.artifact(ARTIFACT)) == []


def test_every_field_of_a_pull_a_removal_and_a_collection_is_sent():
    pulling = Pulling("hf:a/b", status.Progress("fetching", 1, 2), ARTIFACT)
    assert _unset(artifacts.pulling(pulling)) == []
    assert _unset(artifacts.deleted(Deleted("a1", "hf:a/b", 3))) == []
    collection = Collection((Collected(ARTIFACT, 3, "old"), Collected(ARTIFACT, 4, "old")), DISK, "full")
    sent = artifacts.collection(collection)
    assert _unset(sent) == []
    assert (sent.freed_bytes, [one.freed_bytes for one in sent.removed]) == (7, [3, 4])
    assert _unset(artifacts.disk(DISK)) == []


def test_what_a_driver_does_not_tell_of_a_device_stays_unset_and_a_zero_is_sent():
    silent = mapping.device(
        status.DeviceStatus(
            id="amd-0000:c1:00.0",
            index=0,
            vendor="amd",
            name="MI300X",
            condition=status.DeviceCondition.UNKNOWN,
            reason="NotSampled",
            message="",
            since=NOW,
            memory_total=1,
        )
    )
    told = {field.name for field in pb.Device.DESCRIPTOR.fields if field.has_presence and silent.HasField(field.name)}
    assert told == {"condition_time", "detail"}
    assert (silent.name, silent.processes_known) == ("devices/amd-0000:c1:00.0", False)
    idle = mapping.device(replace(DEVICE, processes=()))
    assert idle.HasField("memory_used_bytes")
    assert idle.HasField("utilization_percent")
    assert (idle.processes_known, len(idle.processes)) == (True, 0)


def test_a_process_and_a_use_whose_memory_is_not_told_stay_unset():
    process = mapping.device(replace(DEVICE, processes=(status.DeviceProcess(7, None),))).processes[0]
    assert not process.HasField("memory_bytes")
    stray = status.DeviceUse("GPU-2", planned=False, budget_bytes=0, used_bytes=None)
    use = mapping.instance(replace(INSTANCE, device_uses=(stray,))).device_uses[0]
    assert (use.device, use.planned, use.HasField("used_bytes")) == ("devices/GPU-2", False, False)


def test_findings_are_sent_in_their_order():
    found = (
        status.Finding("nvidia-driver", status.FindingLevel.ERROR, "not loaded", "load it"),
        status.Finding("clock", status.FindingLevel.OK, "synchronised"),
    )
    sent = mapping.findings(found).findings
    assert [(one.check, one.level, one.message, one.remedy) for one in sent] == [
        ("nvidia-driver", pb.FINDING_LEVEL_ERROR, "not loaded", "load it"),
        ("clock", pb.FINDING_LEVEL_OK, "synchronised", ""),
    ]


def test_every_value_of_our_enums_has_a_number_of_its_own_and_none_is_unspecified():
    for ours, table in (
        (status.Phase, mapping.PHASES),
        (status.Desired, mapping.DESIRED),
        (status.Severity, mapping.SEVERITIES),
        (status.DeviceCondition, mapping.DEVICE_CONDITIONS),
        (status.FindingLevel, mapping.FINDING_LEVELS),
    ):
        assert set(table) == set(ours)
        assert len(set(table.values())) == len(table)
        assert 0 not in table.values()


def test_times_are_exact_to_the_microsecond():
    for seconds in (0.0, 1_700_000_000.999999, 1_700_000_000.000001, 1e9):
        stamp = mapping.timestamp(seconds)
        assert stamp is not None
        assert stamp.seconds + stamp.nanos / 1e9 == seconds
    assert mapping.timestamp(1_700_000_000.9999999).ToJsonString() == "2023-11-14T22:13:21Z"


def test_a_plan_is_sent_whole():
    limits = Limits(max_num_seqs=4, max_model_len=2048, kv_cache_dtype="f16", max_num_batched_tokens=512, threads=2)
    variant = Variant("file:/m", "/m", "gguf", "Q4", 1, "llama")
    plan = Plan("chat", 1, "chat", "chat", "x", "1", ("/bin/x",), "process", variant, (), limits, ())
    message = outlook.planned(Planned(plan, None, ("/bin/x", "-c"), {"A": "1"}, ("KEY",)))
    assert struct_to_dict(message.plan)["limits"] == dataclasses.asdict(limits)
    assert list(message.argv) == ["/bin/x", "-c"]
    assert (dict(message.environment), list(message.secrets)) == ({"A": "1"}, ["KEY"])
    assert not message.HasField("refusal")


def test_each_kind_of_change_is_sent_as_itself_with_its_token():
    event = status.Event("Ready", "it is", seq=4)
    changes = (
        (Change(deployment=DEPLOYMENT), "deployment"),
        (Change(node=FakeNode().node()), "node"),
        (Change(event=event), "event"),
    )
    for change, kind in changes:
        assert mapping.change(change).WhichOneof("change") == kind
    lost = mapping.change(Change(synced=True, events_lost=True, resume_token="7"))
    assert (lost.synced.events_lost, lost.resume_token) == (True, "7")
    assert mapping.change(Change(synced=True)).WhichOneof("change") == "synced"


def test_a_snapshot_holds_the_node_and_all_deployments():
    node = FakeNode()
    node.put(DEPLOYMENT)
    message = mapping.snapshot(node.snapshot())
    assert (message.revision, message.node.host, [d.name for d in message.deployments]) == (
        node.revision,
        "testhost",
        ["deployments/chat"],
    )
