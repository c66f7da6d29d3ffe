"""Every method over a real socket, and what each of them refuses."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from agent.supervision.service import ArtifactState
from agent.v1 import agent_pb2 as pb
from tests.api.conftest import Api
from tests.api.fake_node import make_artifact, make_deployment, make_device, make_fit, make_model


def _struct(data: dict[str, Any]) -> Struct:
    return ParseDict(data, Struct())


async def _refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def test_get_status_shows_node_and_deployments(api: Api):
    api.node.put(make_deployment("chat"))
    answer = await api.call("NodeService/GetStatus", pb.GetStatusRequest())
    assert (answer.node.host, [d.name for d in answer.deployments]) == ("testhost", ["deployments/chat"])


async def test_status_is_serialised_once_for_each_revision(api: Api):
    first = await api.call("NodeService/GetStatus", pb.GetStatusRequest())
    again = await api.call("NodeService/GetStatus", pb.GetStatusRequest(), readonly=True)
    assert (again, api.node.snapshots) == (first, 1)
    api.node.put(make_deployment("chat"))
    changed = await api.call("NodeService/GetStatus", pb.GetStatusRequest())
    assert (changed.revision, len(changed.deployments), api.node.snapshots) == (first.revision + 1, 1, 2)


async def test_get_node_and_get_config(api: Api):
    assert (await api.call("NodeService/GetNode", pb.GetNodeRequest())).name == "node"
    config = await api.call("NodeService/GetConfig", pb.GetConfigRequest())
    assert config.config["node_name"] == "testhost"
    assert [(o.field, o.value, o.origin) for o in config.origins] == [("node_name", '"testhost"', "default")]


async def test_apply_creates_replaces_and_leaves_unchanged(api: Api):
    outcomes = []
    for port in (8100, 8101, 8101):
        request = pb.ApplyDeploymentRequest(spec=_struct({"name": "chat", "port": port}))
        outcomes.append((await api.call("DeploymentService/ApplyDeployment", request)).outcome)
    kinds = pb.ApplyDeploymentResponse
    assert outcomes == [kinds.OUTCOME_CREATED, kinds.OUTCOME_REPLACED, kinds.OUTCOME_UNCHANGED]
    assert api.node.applied_specs[0] == {"name": "chat", "port": 8100}
    assert type(api.node.applied_specs[0]["port"]) is int


async def test_apply_only_to_validate_changes_nothing(api: Api):
    request = pb.ApplyDeploymentRequest(spec=_struct({"name": "chat"}), validate_only=True)
    await api.call("DeploymentService/ApplyDeployment", request)
    assert not api.node.snapshot().deployments


async def test_apply_with_another_etag_is_aborted(api: Api):
    request = pb.ApplyDeploymentRequest(spec=_struct({"name": "chat"}), etag="e7")
    code, _ = await _refused(api.call("DeploymentService/ApplyDeployment", request))
    assert code is grpc.StatusCode.ABORTED


async def test_plan_tells_a_refusal(api: Api):
    request = pb.PlanDeploymentRequest(spec=_struct({"name": "chat"}))
    answer = await api.call("DeploymentService/PlanDeployment", request)
    assert (answer.refusal.code, answer.refusal.fatal, list(answer.argv)) == ("does_not_fit", True, ["engine", "-x"])
    assert not answer.HasField("plan")


async def test_a_plan_is_for_this_node_unless_hardware_is_described(api: Api):
    request = pb.PlanDeploymentRequest(spec=_struct({"name": "chat"}))
    await api.call("DeploymentService/PlanDeployment", request)
    assert api.node.planned_for is None
    request.hardware.update({"devices": [{"model": "h100-sxm", "count": 8}]})
    await api.call("DeploymentService/PlanDeployment", request)
    assert api.node.planned_for == {"devices": [{"model": "h100-sxm", "count": 8}]}
    assert type(api.node.planned_for["devices"][0]["count"]) is int


async def test_simulated_hardware_is_shown_as_a_node_and_to_those_who_may_only_look(api: Api):
    request = pb.SimulateNodeRequest(hardware=_struct({"short": "h100-sxm:8"}))
    node = await api.call("NodeService/SimulateNode", request, readonly=True)
    assert node.inventory["simulated"] == "{'short': 'h100-sxm:8'}"
    unknown = pb.SimulateNodeRequest(hardware=_struct({"short": "unknown"}))
    assert (await _refused(api.call("NodeService/SimulateNode", unknown)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_doctor_may_be_asked_by_those_who_may_only_look(api: Api):
    answer = await api.call("NodeService/RunDoctor", pb.RunDoctorRequest(), readonly=True)
    assert [(found.check, found.level) for found in answer.findings] == [("open-files", pb.FINDING_LEVEL_WARNING)]


async def test_devices_are_listed_by_vendor_and_index_and_found_by_name(api: Api):
    api.node.device_list = [make_device(index) for index in (2, 10, 0)]
    api.node.device_list.append(replace(make_device(1), vendor="amd", id="amd-0000:c1:00.0"))
    request, pages = pb.ListDevicesRequest(page_size=2), []
    while True:
        answer = await api.call("DeviceService/ListDevices", request)
        pages.append([device.index for device in answer.devices])
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert pages == [[1, 0], [2, 10]]
    found = await api.call("DeviceService/GetDevice", pb.GetDeviceRequest(name="devices/amd-0000:c1:00.0"))
    assert found.vendor == "amd"
    missing = pb.GetDeviceRequest(name="GPU-none")
    assert (await _refused(api.call("DeviceService/GetDevice", missing)))[0] is grpc.StatusCode.NOT_FOUND


async def test_a_device_is_quarantined_with_a_reason_and_released(api: Api):
    request = pb.QuarantineDeviceRequest(name="devices/GPU-0a2b3c4d", reason=" a fan is loud ")
    device = await api.call("DeviceService/QuarantineDevice", request)
    assert (device.condition, device.message) == (pb.DEVICE_CONDITION_QUARANTINED, "a fan is loud")
    released = await api.call("DeviceService/ReleaseDevice", pb.ReleaseDeviceRequest(name="GPU-0a2b3c4d"))
    assert released.condition == pb.DEVICE_CONDITION_HEALTHY


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("QuarantineDevice", pb.QuarantineDeviceRequest(name="GPU-0a2b3c4d", reason="loud")),
        ("ReleaseDevice", pb.ReleaseDeviceRequest(name="GPU-0a2b3c4d")),
    ],
    ids=["quarantine", "release"],
)
async def test_those_who_may_only_look_change_no_device(api: Api, method, request_):
    code, _ = await _refused(api.call(f"DeviceService/{method}", request_, readonly=True))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert api.node.device_list[0] == make_device(0)


async def test_get_and_list_deployments(api: Api):
    for name in ("c", "a", "b"):
        api.node.put(make_deployment(name))
    assert (
        await api.call("DeploymentService/GetDeployment", pb.GetDeploymentRequest(name="deployments/b"))
    ).uid == "uid-b"
    page = await api.call("DeploymentService/ListDeployments", pb.ListDeploymentsRequest(page_size=2))
    assert [d.name for d in page.deployments] == ["deployments/a", "deployments/b"]
    rest = pb.ListDeploymentsRequest(page_size=2, page_token=page.next_page_token)
    page = await api.call("DeploymentService/ListDeployments", rest)
    assert ([d.name for d in page.deployments], page.next_page_token) == (["deployments/c"], "")


@pytest.mark.parametrize(
    ("method", "request_type", "phase", "desired"),
    [
        ("RestartDeployment", pb.RestartDeploymentRequest, pb.PHASE_STARTING, pb.DESIRED_RUN),
        ("StopDeployment", pb.StopDeploymentRequest, pb.PHASE_STOPPED, pb.DESIRED_STOP),
        ("StartDeployment", pb.StartDeploymentRequest, pb.PHASE_READY, pb.DESIRED_RUN),
        ("DeleteDeployment", pb.DeleteDeploymentRequest, pb.PHASE_DELETED, pb.DESIRED_DELETE),
    ],
)
async def test_the_life_of_a_deployment_is_changed_by_name(api: Api, method, request_type, phase, desired):
    api.node.put(make_deployment("chat"))
    answer = await api.call(f"DeploymentService/{method}", request_type(name="deployments/chat", request_id="r-1"))
    assert (answer.name, answer.phase, answer.desired) == ("deployments/chat", phase, desired)
    missing = request_type(name="none")
    code, _ = await _refused(api.call(f"DeploymentService/{method}", missing))
    assert code is grpc.StatusCode.NOT_FOUND
    too_long = request_type(name="chat", request_id="x" * 65)
    code, details = await _refused(api.call(f"DeploymentService/{method}", too_long))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("request_id")


async def test_delete_of_a_missing_one_is_allowed_on_request(api: Api):
    request = pb.DeleteDeploymentRequest(name="none", allow_missing=True)
    assert (await api.call("DeploymentService/DeleteDeployment", request)).phase == pb.PHASE_DELETED


async def test_instances_are_listed_newest_first_and_found_by_name(api: Api):
    api.node.put(make_deployment("chat"), instances=3)
    request = pb.ListInstancesRequest(parent="deployments/chat", page_size=2)
    page = await api.call("InstanceService/ListInstances", request)
    assert [i.attempt for i in page.instances] == [3, 2]
    request.page_token = page.next_page_token
    assert [i.attempt for i in (await api.call("InstanceService/ListInstances", request)).instances] == [1]
    name = page.instances[1].name
    assert (await api.call("InstanceService/GetInstance", pb.GetInstanceRequest(name=name))).attempt == 2
    missing = pb.GetInstanceRequest(name="deployments/chat/instances/i-9")
    assert (await _refused(api.call("InstanceService/GetInstance", missing)))[0] is grpc.StatusCode.NOT_FOUND


async def test_events_are_paged_from_the_newest_back(api: Api):
    for number in range(5):
        api.node.happen(f"Event{number}", deployment="chat" if number % 2 else "")
    request, pages = pb.ListEventsRequest(page_size=2), []
    while True:
        answer = await api.call("EventService/ListEvents", request)
        pages.append([event.seq for event in answer.events])
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert pages == [[4, 5], [2, 3], [1]]
    of_one = await api.call("EventService/ListEvents", pb.ListEventsRequest(deployment="deployments/chat"))
    assert [(event.name, event.deployment) for event in of_one.events] == [
        ("events/2", "deployments/chat"),
        ("events/4", "deployments/chat"),
    ]


async def test_artifacts_are_listed_last_used_first_with_their_disk(api: Api):
    api.node.artifact_list.append(make_artifact("ffff", state=ArtifactState.EXTERNAL, used_at=None))
    api.node.artifact_list.append(make_artifact("0000", used_at=api.node.artifact_list[0].used_at + 1))
    first = await api.call("ArtifactService/ListArtifacts", pb.ListArtifactsRequest(page_size=3), readonly=True)
    rest = pb.ListArtifactsRequest(page_size=3, page_token=first.next_page_token)
    second = await api.call("ArtifactService/ListArtifacts", rest)
    found = [artifact.name for artifact in (*first.artifacts, *second.artifacts)]
    assert found == ["artifacts/0000", "artifacts/0b1c2d3e4f50", "artifacts/a1b2c3d4e5f6", "artifacts/ffff"]
    assert (first.disk.total_bytes, first.disk.high) == (500 << 30, 0.9)


async def test_a_pull_tells_how_far_it_is_and_ends_with_the_artifact(api: Api):
    stream = api.stream("ArtifactService/PullArtifact", pb.PullArtifactRequest(reference=" hf:a/b "))
    messages = [message async for message in stream]
    assert [message.progress.done_bytes for message in messages] == [0, 40 << 20, 80 << 20, 0]
    assert {message.reference for message in messages} == {"hf:a/b"}
    assert [message.HasField("artifact") for message in messages] == [False, False, False, True]


async def test_a_client_that_goes_ends_its_pull(api: Api):
    api.node.gate.clear()
    stream = api.stream("ArtifactService/PullArtifact", pb.PullArtifactRequest(reference="hf:a/b"))
    await stream.read()
    stream.cancel()
    await asyncio.wait_for(api.node.pull_ended.wait(), 10)


async def test_artifacts_are_pinned_and_deleted_by_id_or_reference(api: Api):
    pinned = await api.call("ArtifactService/PinArtifact", pb.PinArtifactRequest(name="artifacts/a1b2c3d4e5f6"))
    assert pinned.pinned
    unpinned = await api.call("ArtifactService/UnpinArtifact", pb.UnpinArtifactRequest(name="hf:Qwen/Qwen3-0.6B"))
    assert (unpinned.name, unpinned.pinned) == (pinned.name, False)
    deleted = await api.call("ArtifactService/DeleteArtifact", pb.DeleteArtifactRequest(name="0b1c2d3e4f50"))
    assert (deleted.name, deleted.source, deleted.freed_bytes) == ("artifacts/0b1c2d3e4f50", "hf:a/old", 1_519_206_400)
    code, said = await _refused(api.call("ArtifactService/DeleteArtifact", pb.DeleteArtifactRequest(name=pinned.name)))
    assert (code, said) == (
        grpc.StatusCode.FAILED_PRECONDITION, "hf:Qwen/Qwen3-0.6B stays: deployment chat runs with it"
    )  # fmt: skip


@pytest.mark.parametrize("method", ["PinArtifact", "UnpinArtifact", "DeleteArtifact"])
@pytest.mark.parametrize("name", ["", "artifacts/", "a\nb", "x" * 5000])
async def test_what_cannot_name_an_artifact_is_refused(api: Api, method: str, name: str):
    request = getattr(pb, f"{method}Request")(name=name)
    code, said = await _refused(api.call(f"ArtifactService/{method}", request))
    assert (code, said[:4]) == (grpc.StatusCode.INVALID_ARGUMENT, "name")


async def test_a_dry_run_of_a_collection_removes_nothing(api: Api):
    would = await api.call("ArtifactService/CollectArtifacts", pb.CollectArtifactsRequest(dry_run=True))
    assert len(api.node.artifact_list) == 2
    did = await api.call("ArtifactService/CollectArtifacts", pb.CollectArtifactsRequest())
    assert (did, [one.id for one in api.node.artifact_list]) == (would, ["a1b2c3d4e5f6"])


async def test_the_catalog_is_listed_by_id_and_to_those_who_may_only_look(api: Api):
    request, found = pb.ListModelsRequest(page_size=1), []
    while True:
        answer = await api.call("CatalogService/ListModels", request, readonly=True)
        found += answer.models
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert [model.name for model in found] == ["models/BAAI/bge-m3", "models/Qwen/Qwen3-8B"]
    assert (found[1].parameter_count, found[1].gated) == (8_190_735_360, pb.TERNARY_FALSE)
    assert [one.reference for one in found[1].variants] == ["hf:Qwen/Qwen3-8B:bf16", "hf:them/Qwen3-8B-GGUF:Q4_K_M"]


async def test_a_name_is_resolved_to_a_reference(api: Api):
    request = pb.ResolveModelRequest(text=" qwen3:8b ")
    answer = await api.call("CatalogService/ResolveModel", request, readonly=True)
    assert (answer.reference, answer.model.task) == ("hf:Qwen/Qwen3-8B", "chat")
    unknown = pb.ResolveModelRequest(text="qwen9")
    assert (await _refused(api.call("CatalogService/ResolveModel", unknown)))[0] is grpc.StatusCode.NOT_FOUND


async def test_a_fit_sends_each_model_as_soon_as_it_is_planned(api: Api):
    api.node.gate.clear()  # the catalog has no end
    api.node.fits = [make_fit(model, number, 2) for number, model in enumerate(api.node.model_list, 1)]
    request = pb.FitCatalogRequest(template=_struct({"task": "chat"}), hardware=_struct({"short": "rtx4090"}))
    fit = api.stream("CatalogService/FitCatalog", request)
    first, second = await fit.read(), await fit.read()
    assert (first.model.name, first.number, second.number, second.count) == ("models/Qwen/Qwen3-8B", 1, 2, 2)
    assert (first.verdict, first.missing_bytes) == (pb.FIT_VERDICT_DOES_NOT_FIT, 3 << 30)
    assert (api.node.fit_template, api.node.planned_for) == ({"task": "chat"}, {"short": "rtx4090"})
    fit.cancel()
    await api.node.fit_ended.wait()


async def test_a_fit_ends_with_the_catalog_and_needs_no_template(api: Api):
    api.node.fits = [make_fit(make_model("a/b"), 1, 1)]
    assert [one.number async for one in api.stream("CatalogService/FitCatalog", pb.FitCatalogRequest())] == [1]
    assert (api.node.fit_template, api.node.planned_for) == ({}, None)


async def test_measurements_are_paged_from_the_oldest_on(api: Api):
    request, found = pb.ListMeasurementsRequest(page_size=1), []
    while True:
        answer = await api.call("LedgerService/ListMeasurements", request)
        found += answer.measurements
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert [one.name for one in found] == ["measurements/node-1-chat-1-0", "measurements/node-1-chat-1-1"]
    context = found[1].terms[2]
    assert (context.pool, context.term, context.measured_bytes) == ("0", "context", 401 << 20)
    assert context.formula_bytes == 512 << 20
    assert not found[1].terms[3].HasField("formula_bytes")


async def test_an_import_hands_the_ledger_to_the_node(api: Api):
    request = pb.ImportMeasurementsRequest(ledger={"measurements": []})
    answer = await api.call("LedgerService/ImportMeasurements", request)
    assert api.node.imported == {"measurements": []}
    assert (answer.added_count, answer.known_count, answer.dropped_count) == (1, 1, 2)


async def test_watch_sends_the_present_then_replayed_events_then_synced_then_changes(api: Api):
    api.node.put(make_deployment("chat"))
    api.node.happen("First")
    api.node.happen("Second")
    watch = api.stream("DeploymentService/Watch", pb.WatchRequest(resume_token="1"))
    kinds = []
    while "synced" not in kinds:
        kinds.append((await watch.read()).WhichOneof("change"))
    assert kinds == ["deployment", "event", "synced"]
    api.node.happen("Third")
    message = await watch.read()
    assert (message.event.reason, message.resume_token) == ("Third", "3")
    await api.node.quarantine("GPU-0a2b3c4d", "loud")
    message = await watch.read()
    assert [device.condition for device in message.node.devices] == [
        pb.DEVICE_CONDITION_QUARANTINED,
        pb.DEVICE_CONDITION_HEALTHY,
    ]
    watch.cancel()


async def test_a_watch_whose_token_is_too_old_says_that_events_were_lost(api: Api):
    watch = api.stream("DeploymentService/Watch", pb.WatchRequest(resume_token="ancient", events_only=True))
    assert (await watch.read()).synced.events_lost
    watch.cancel()


async def test_logs_stream_the_tail_and_end_without_follow(api: Api):
    api.node.put(make_deployment("chat"))
    request = pb.StreamLogsRequest(deployment="deployments/chat", instance="i-1", tail_lines=2)
    chunks = [chunk async for chunk in api.stream("InstanceService/StreamLogs", request)]
    assert [(chunk.instance, chunk.data) for chunk in chunks] == [("i-1", b"two\n"), ("i-1", b"three\n")]


BAD = [
    ("DeploymentService/ApplyDeployment", pb.ApplyDeploymentRequest(), "spec"),
    ("DeploymentService/PlanDeployment", pb.PlanDeploymentRequest(), "spec"),
    ("DeploymentService/PlanDeployment", pb.PlanDeploymentRequest(spec={"name": "a"}, hardware={}), "hardware"),
    ("NodeService/SimulateNode", pb.SimulateNodeRequest(), "hardware"),
    ("CatalogService/ListModels", pb.ListModelsRequest(page_token="?"), "page_token"),
    ("CatalogService/ResolveModel", pb.ResolveModelRequest(text=" "), "text"),
    ("CatalogService/ResolveModel", pb.ResolveModelRequest(text="a" * 301), "text"),
    ("DeviceService/ListDevices", pb.ListDevicesRequest(page_token="?"), "page_token"),
    ("DeviceService/GetDevice", pb.GetDeviceRequest(name="a/b"), "name"),
    ("DeviceService/QuarantineDevice", pb.QuarantineDeviceRequest(name="GPU-0a2b3c4d"), "reason"),
    ("DeviceService/ReleaseDevice", pb.ReleaseDeviceRequest(), "name"),
    ("DeploymentService/GetDeployment", pb.GetDeploymentRequest(name="No Name"), "name"),
    ("DeploymentService/ListDeployments", pb.ListDeploymentsRequest(page_size=-1), "page_size"),
    ("DeploymentService/ListDeployments", pb.ListDeploymentsRequest(page_token="?"), "page_token"),
    ("InstanceService/ListInstances", pb.ListInstancesRequest(), "parent"),
    ("InstanceService/GetInstance", pb.GetInstanceRequest(name="i-1"), "name"),
    ("EventService/ListEvents", pb.ListEventsRequest(deployment="a/b"), "deployment"),
    ("EventService/ListEvents", pb.ListEventsRequest(page_token="?"), "page_token"),
    ("ArtifactService/ListArtifacts", pb.ListArtifactsRequest(page_token="?"), "page_token"),
    ("LedgerService/ListMeasurements", pb.ListMeasurementsRequest(page_token="?"), "page_token"),
    ("LedgerService/ImportMeasurements", pb.ImportMeasurementsRequest(), "ledger"),
]


@pytest.mark.parametrize(("method", "request_", "field"), BAD, ids=lambda value: str(value)[:40].strip())
async def test_bad_requests_are_refused_with_their_field(api: Api, method, request_, field):
    code, details = await _refused(api.call(method, request_))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in details


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("DeploymentService/Watch", pb.WatchRequest(deployment="a/b")),
        ("DeploymentService/Watch", pb.WatchRequest(resume_token="x" * 513)),
        ("InstanceService/StreamLogs", pb.StreamLogsRequest()),
        ("InstanceService/StreamLogs", pb.StreamLogsRequest(deployment="chat", tail_lines=-2)),
    ],
    ids=lambda value: str(value)[:40].strip(),
)
async def test_bad_requests_for_streams_are_refused(api: Api, method, request_):
    code, _ = await _refused(api.stream(method, request_).read())
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_of_what_does_not_exist_is_not_found(api: Api):
    request = pb.StreamLogsRequest(deployment="none", follow=True)
    assert (await _refused(api.stream("InstanceService/StreamLogs", request).read()))[0] is grpc.StatusCode.NOT_FOUND
