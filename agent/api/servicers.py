"""What each method does: check the request, ask the node, map the answer. Knows nothing of gRPC but the messages.

A unary handler answers with a message, with serialised bytes, or with an awaitable of a message; a stream
handler with the node's iterator and the function that maps each item.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from agent.api import mapping, names, requests
from agent.api.structs import struct_to_dict
from agent.errors import NotFound
from agent.lazy import lazily
from agent.status import DeploymentStatus, DeviceStatus, InstanceStatus
from agent.v1 import agent_pb2 as pb

if TYPE_CHECKING:
    from agent.api import artifacts, outlook
    from agent.planning.ledger import Measurement
    from agent.supervision.service import NodeApi
else:
    artifacts, outlook = lazily("agent.api.artifacts"), lazily("agent.api.outlook")

UnaryHandler = Callable[[Any], Message | bytes | Awaitable[Message]]
Stream = tuple[AsyncIterator[Any], Callable[[Any], Message]]
StreamHandler = Callable[[Any], Stream]

_DEPLOYMENTS: requests.Listing[DeploymentStatus] = requests.Listing("deployments", lambda item: (item.name,), (str,))
_INSTANCES: requests.Listing[InstanceStatus] = requests.Listing(
    "instances",
    lambda item: (-item.created_at, item.id),  # newest first
    (float, str),
)
_DEVICES: requests.Listing[DeviceStatus] = requests.Listing(
    "devices",
    lambda item: (item.vendor, item.index, item.id),  # as the vendors' tools list them
    (str, int, str),
)
_MEASUREMENTS: requests.Listing[Measurement] = requests.Listing(
    "measurements", lambda item: (float(item.at), item.id), (float, str)
)


class Servicers:
    """The handlers of all services of one node."""

    def __init__(self, node: NodeApi) -> None:
        self._node = node
        self._status_revision = -1
        self._status = b""
        self.unary: Mapping[str, UnaryHandler] = {
            "agent.v1.NodeService.GetStatus": self.get_status,
            "agent.v1.NodeService.GetNode": self.get_node,
            "agent.v1.NodeService.GetConfig": self.get_config,
            "agent.v1.NodeService.RunDoctor": self.run_doctor,
            "agent.v1.NodeService.SimulateNode": self.simulate_node,
            "agent.v1.DeviceService.ListDevices": self.list_devices,
            "agent.v1.DeviceService.GetDevice": self.get_device,
            "agent.v1.DeviceService.QuarantineDevice": self.quarantine_device,
            "agent.v1.DeviceService.ReleaseDevice": self.release_device,
            "agent.v1.DeploymentService.ApplyDeployment": self.apply_deployment,
            "agent.v1.DeploymentService.GetDeployment": self.get_deployment,
            "agent.v1.DeploymentService.ListDeployments": self.list_deployments,
            "agent.v1.DeploymentService.DeleteDeployment": self.delete_deployment,
            "agent.v1.DeploymentService.PlanDeployment": self.plan_deployment,
            "agent.v1.DeploymentService.RestartDeployment": self.restart_deployment,
            "agent.v1.DeploymentService.StopDeployment": self.stop_deployment,
            "agent.v1.DeploymentService.StartDeployment": self.start_deployment,
            "agent.v1.InstanceService.ListInstances": self.list_instances,
            "agent.v1.InstanceService.GetInstance": self.get_instance,
            "agent.v1.EventService.ListEvents": self.list_events,
            "agent.v1.ArtifactService.ListArtifacts": self.list_artifacts,
            "agent.v1.ArtifactService.PinArtifact": self.pin_artifact,
            "agent.v1.ArtifactService.UnpinArtifact": self.unpin_artifact,
            "agent.v1.ArtifactService.DeleteArtifact": self.delete_artifact,
            "agent.v1.ArtifactService.CollectArtifacts": self.collect_artifacts,
            "agent.v1.CatalogService.ListModels": self.list_models,
            "agent.v1.CatalogService.ResolveModel": self.resolve_model,
            "agent.v1.LedgerService.ListMeasurements": self.list_measurements,
            "agent.v1.LedgerService.ImportMeasurements": self.import_measurements,
        }
        self.streams: Mapping[str, StreamHandler] = {
            "agent.v1.DeploymentService.Watch": self.watch,
            "agent.v1.InstanceService.StreamLogs": self.stream_logs,
            "agent.v1.ArtifactService.PullArtifact": self.pull_artifact,
            "agent.v1.CatalogService.FitCatalog": self.fit_catalog,
        }

    def get_status(self, _request: pb.GetStatusRequest) -> bytes:
        """Asked most often by far, so it is serialised once for each revision."""
        revision = self._node.revision
        if revision != self._status_revision:
            self._status = mapping.snapshot(self._node.snapshot()).SerializeToString()
            self._status_revision = revision
        return self._status

    def get_node(self, _request: pb.GetNodeRequest) -> pb.Node:
        return mapping.node(self._node.node())

    def get_config(self, _request: pb.GetConfigRequest) -> pb.GetConfigResponse:
        return mapping.config(self._node.config())

    async def run_doctor(self, _request: pb.RunDoctorRequest) -> pb.RunDoctorResponse:
        return mapping.findings(await self._node.doctor())

    def simulate_node(self, request: pb.SimulateNodeRequest) -> pb.Node:
        return mapping.node(self._node.simulate(requests.hardware(request.hardware)))

    def list_devices(self, request: pb.ListDevicesRequest) -> pb.ListDevicesResponse:
        page, token = _DEVICES.page(self._node.devices(), request.page_size, request.page_token)
        return pb.ListDevicesResponse(devices=[mapping.device(item) for item in page], next_page_token=token)

    def get_device(self, request: pb.GetDeviceRequest) -> pb.Device:
        wanted = names.parse_device(request.name, "name")
        for device in self._node.devices():
            if device.id == wanted:
                return mapping.device(device)
        raise NotFound(f"there is no device {wanted}", hint="agentctl devices lists them")

    async def quarantine_device(self, request: pb.QuarantineDeviceRequest) -> pb.Device:
        device, reason = names.parse_device(request.name, "name"), requests.reason(request.reason)
        return mapping.device(await self._node.quarantine(device, reason))

    async def release_device(self, request: pb.ReleaseDeviceRequest) -> pb.Device:
        return mapping.device(await self._node.release(names.parse_device(request.name, "name")))

    async def apply_deployment(self, request: pb.ApplyDeploymentRequest) -> pb.ApplyDeploymentResponse:
        applied = await self._node.apply(
            requests.spec(request.spec),
            etag=request.etag,
            request_id=requests.request_id(request.request_id),
            validate_only=request.validate_only,
        )
        return mapping.applied(applied)

    def get_deployment(self, request: pb.GetDeploymentRequest) -> pb.Deployment:
        return mapping.deployment(self._node.get(names.parse_deployment(request.name, "name")))

    def list_deployments(self, request: pb.ListDeploymentsRequest) -> pb.ListDeploymentsResponse:
        page, token = _DEPLOYMENTS.page(self._node.snapshot().deployments, request.page_size, request.page_token)
        return pb.ListDeploymentsResponse(
            deployments=[mapping.deployment(item) for item in page], next_page_token=token
        )

    async def delete_deployment(self, request: pb.DeleteDeploymentRequest) -> pb.Deployment:
        deleted = await self._node.delete(
            names.parse_deployment(request.name, "name"),
            etag=request.etag,
            request_id=requests.request_id(request.request_id),
            allow_missing=request.allow_missing,
        )
        return mapping.deployment(deleted)

    async def plan_deployment(self, request: pb.PlanDeploymentRequest) -> pb.PlanDeploymentResponse:
        spec = requests.spec(request.spec)
        hardware = requests.hardware(request.hardware) if request.HasField("hardware") else None
        return outlook.planned(await self._node.plan(spec, hardware))

    async def restart_deployment(self, request: pb.RestartDeploymentRequest) -> pb.Deployment:
        name, request_id = _target(request)
        return mapping.deployment(await self._node.restart(name, etag=request.etag, request_id=request_id))

    async def stop_deployment(self, request: pb.StopDeploymentRequest) -> pb.Deployment:
        name, request_id = _target(request)
        return mapping.deployment(await self._node.stop(name, etag=request.etag, request_id=request_id))

    async def start_deployment(self, request: pb.StartDeploymentRequest) -> pb.Deployment:
        name, request_id = _target(request)
        return mapping.deployment(await self._node.start(name, etag=request.etag, request_id=request_id))

    def watch(self, request: pb.WatchRequest) -> Stream:
        deployment = names.parse_optional_deployment(request.deployment, "deployment")
        token = requests.resume_token(request.resume_token)
        return self._node.watch(deployment, token, request.events_only), mapping.change

    def list_instances(self, request: pb.ListInstancesRequest) -> pb.ListInstancesResponse:
        deployment = names.parse_deployment(request.parent, "parent")
        page, token = _INSTANCES.page(self._node.instances(deployment), request.page_size, request.page_token)
        return pb.ListInstancesResponse(instances=[mapping.instance(item) for item in page], next_page_token=token)

    def get_instance(self, request: pb.GetInstanceRequest) -> pb.Instance:
        deployment, wanted = names.parse_instance(request.name, "name")
        for instance in self._node.instances(deployment):
            if instance.id == wanted:
                return mapping.instance(instance)
        raise NotFound(
            f"there is no instance {wanted} of deployment {deployment}",
            hint="only the newest instances are kept; list them",
        )

    def stream_logs(self, request: pb.StreamLogsRequest) -> Stream:
        deployment = names.parse_deployment(request.deployment, "deployment")
        chunks = self._node.logs(
            deployment,
            instance=names.parse_optional_instance(request.instance, deployment, "instance"),
            previous=request.previous,
            tail_lines=requests.tail_lines(request.tail_lines),
            follow=request.follow,
        )
        return chunks, mapping.log_chunk

    async def list_events(self, request: pb.ListEventsRequest) -> pb.ListEventsResponse:
        deployment = names.parse_optional_deployment(request.deployment, "deployment")
        size = requests.page_size(request.page_size)
        before = requests.before_seq(request.page_token)
        found = await self._node.events(deployment, before_seq=before, limit=size + 1)
        page = found[-size:]  # the one more that was asked for is the oldest: there is an older page
        token = requests.encode_token("events", (page[0].seq,)) if len(found) > size else ""
        return pb.ListEventsResponse(events=[mapping.event(item) for item in page], next_page_token=token)

    async def list_artifacts(self, request: pb.ListArtifactsRequest) -> pb.ListArtifactsResponse:
        found = await self._node.artifacts()
        page, token = artifacts.LISTING.page(found.artifacts, request.page_size, request.page_token)
        return pb.ListArtifactsResponse(
            artifacts=[artifacts.artifact(item) for item in page],
            next_page_token=token,
            disk=artifacts.disk(found.disk) if found.disk else None,
        )

    def pull_artifact(self, request: pb.PullArtifactRequest) -> Stream:
        return self._node.pull(requests.reference(request.reference)), artifacts.pulling

    async def pin_artifact(self, request: pb.PinArtifactRequest) -> pb.Artifact:
        return artifacts.artifact(await self._node.pin(names.parse_artifact(request.name, "name"), pinned=True))

    async def unpin_artifact(self, request: pb.UnpinArtifactRequest) -> pb.Artifact:
        return artifacts.artifact(await self._node.pin(names.parse_artifact(request.name, "name"), pinned=False))

    async def delete_artifact(self, request: pb.DeleteArtifactRequest) -> pb.DeleteArtifactResponse:
        name, request_id = names.parse_artifact(request.name, "name"), requests.request_id(request.request_id)
        return artifacts.deleted(await self._node.delete_artifact(name, request_id=request_id))

    async def collect_artifacts(self, request: pb.CollectArtifactsRequest) -> pb.CollectArtifactsResponse:
        return artifacts.collection(await self._node.collect(dry_run=request.dry_run, everything=request.all))

    async def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        page, token = outlook.MODELS.page(await self._node.models(), request.page_size, request.page_token)
        return pb.ListModelsResponse(models=[outlook.model(item) for item in page], next_page_token=token)

    async def resolve_model(self, request: pb.ResolveModelRequest) -> pb.ResolveModelResponse:
        found, reference = await self._node.resolve_model(requests.model_name(request.text))
        return pb.ResolveModelResponse(model=outlook.model(found), reference=reference)

    def fit_catalog(self, request: pb.FitCatalogRequest) -> Stream:
        hardware = requests.hardware(request.hardware) if request.HasField("hardware") else None
        return self._node.fit(struct_to_dict(request.template), hardware), outlook.fit

    def list_measurements(self, request: pb.ListMeasurementsRequest) -> pb.ListMeasurementsResponse:
        page, token = _MEASUREMENTS.page(self._node.measurements(), request.page_size, request.page_token)
        return pb.ListMeasurementsResponse(
            measurements=[mapping.measurement(item) for item in page], next_page_token=token
        )

    async def import_measurements(self, request: pb.ImportMeasurementsRequest) -> pb.ImportMeasurementsResponse:
        return mapping.imported(await self._node.import_measurements(requests.ledger(request.ledger)))


def _target(
    request: pb.RestartDeploymentRequest | pb.StopDeploymentRequest | pb.StartDeploymentRequest,
) -> tuple[str, str]:
    return names.parse_deployment(request.name, "name"), requests.request_id(request.request_id)
