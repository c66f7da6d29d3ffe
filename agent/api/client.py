"""The client of the control API that agentctl uses: one method for each RPC, with its messages as answers.

Synchronous, because a command line does one thing at a time and starts faster without an event loop. Every call
has a deadline. A stream may have none, so before it begins somebody must have answered, a health check if nothing
else, and pings notice when nobody does any more. All methods raise `agent.errors.AgentError`s; a deployment or device
may be given by its id or by its resource name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from agent.api import reach
from agent.api.bounds import MAX_PAGE_SIZE, MAX_REQUEST_BYTES
from agent.api.structs import struct_from_dict
from agent.errors import AgentError, FailedPrecondition, InvalidArgument, Unavailable
from agent.v1 import agent_pb2 as pb

M = TypeVar("M", bound=Message)

TIMEOUT_SECONDS = 10.0  # an agent that is well answers within milliseconds; a change waits for the disk
PLAN_SECONDS = 32.0  # the agent may ask a hub; it answers within 30 s, whatever the hub does
REMOVAL_SECONDS = 35.0  # removing files takes some file systems longer; after 30 s the agent says that it goes on
MAX_ANSWER_BYTES = 64 * 1024 * 1024  # a full page of 1000 deployments has some 10 MiB

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.enable_retries", 0),  # a change is repeated by the caller, who knows its request id, or by nobody
    # Streams: ask after 10 s of silence whether the agent lives, and take 5 s without an answer for a no.
    # (grpc.keepalive_timeout_ms has no effect on this: without the second option it takes a minute.)
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
)


class Client:
    """A connection to the agent behind the Unix socket at `path`; `timeout` is each call's, in seconds.

    Raises InvalidArgument for a path that is too long to be a socket's.
    """

    def __init__(self, path: Path, *, timeout: float = TIMEOUT_SECONDS) -> None:
        reach.check_length(path, "socket")  # gRPC would say so only on its own log
        self.path = path
        self.timeout = timeout
        self._channel = grpc.insecure_channel(f"unix:{path}", options=_OPTIONS)
        self._answered = False  # the last call was: somebody is there

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def get_status(self) -> pb.GetStatusResponse:
        return self._call("NodeService/GetStatus", pb.GetStatusRequest(), pb.GetStatusResponse)

    def get_node(self) -> pb.Node:
        return self._call("NodeService/GetNode", pb.GetNodeRequest(), pb.Node)

    def get_config(self) -> pb.GetConfigResponse:
        return self._call("NodeService/GetConfig", pb.GetConfigRequest(), pb.GetConfigResponse)

    def run_doctor(self) -> pb.RunDoctorResponse:
        return self._call("NodeService/RunDoctor", pb.RunDoctorRequest(), pb.RunDoctorResponse)

    def simulate_node(self, hardware: dict[str, Any]) -> pb.Node:
        """A node with the described hardware, as `get_node` would show it."""
        request = pb.SimulateNodeRequest(hardware=struct_from_dict(hardware))
        return self._call("NodeService/SimulateNode", request, pb.Node)

    def list_devices(self) -> list[pb.Device]:
        """All of them, by vendor and index."""
        pages = self._pages("DeviceService/ListDevices", pb.ListDevicesRequest(), pb.ListDevicesResponse)
        return [device for page in pages for device in page.devices]

    def get_device(self, name: str) -> pb.Device:
        return self._call("DeviceService/GetDevice", pb.GetDeviceRequest(name=name), pb.Device)

    def quarantine_device(self, name: str, reason: str) -> pb.Device:
        request = pb.QuarantineDeviceRequest(name=name, reason=reason)
        return self._call("DeviceService/QuarantineDevice", request, pb.Device)

    def release_device(self, name: str) -> pb.Device:
        return self._call("DeviceService/ReleaseDevice", pb.ReleaseDeviceRequest(name=name), pb.Device)

    def apply_deployment(
        self, spec: dict[str, Any], *, etag: str = "", request_id: str = "", validate_only: bool = False
    ) -> pb.ApplyDeploymentResponse:
        request = pb.ApplyDeploymentRequest(
            spec=struct_from_dict(spec), etag=etag, request_id=request_id, validate_only=validate_only
        )
        return self._call("DeploymentService/ApplyDeployment", request, pb.ApplyDeploymentResponse)

    def get_deployment(self, name: str) -> pb.Deployment:
        return self._call("DeploymentService/GetDeployment", pb.GetDeploymentRequest(name=name), pb.Deployment)

    def list_deployments(self) -> list[pb.Deployment]:
        """All of them, by name."""
        pages = self._pages(
            "DeploymentService/ListDeployments", pb.ListDeploymentsRequest(), pb.ListDeploymentsResponse
        )
        return [deployment for page in pages for deployment in page.deployments]

    def delete_deployment(
        self, name: str, *, etag: str = "", request_id: str = "", allow_missing: bool = False
    ) -> pb.Deployment:
        request = pb.DeleteDeploymentRequest(name=name, etag=etag, request_id=request_id, allow_missing=allow_missing)
        return self._call("DeploymentService/DeleteDeployment", request, pb.Deployment)

    def plan_deployment(
        self, spec: dict[str, Any], *, hardware: dict[str, Any] | None = None
    ) -> pb.PlanDeploymentResponse:
        """With `hardware`, the plan is for that instead of the node's own."""
        described = None if hardware is None else struct_from_dict(hardware)
        request = pb.PlanDeploymentRequest(spec=struct_from_dict(spec), hardware=described)
        return self._call("DeploymentService/PlanDeployment", request, pb.PlanDeploymentResponse, PLAN_SECONDS)

    def list_models(self) -> list[pb.Model]:
        """The catalog, by id."""
        pages = self._pages("CatalogService/ListModels", pb.ListModelsRequest(), pb.ListModelsResponse)
        return [model for page in pages for model in page.models]

    def resolve_model(self, text: str) -> pb.ResolveModelResponse:
        """The model of the catalog that a name means. Raises `NotFound` with the nearest names."""
        request = pb.ResolveModelRequest(text=text)
        return self._call("CatalogService/ResolveModel", request, pb.ResolveModelResponse)

    def fit_catalog(
        self, template: dict[str, Any], *, hardware: dict[str, Any] | None = None
    ) -> Iterator[pb.FitCatalogResponse]:
        """Each model of the catalog, planned with the fields of `template`, as soon as it is. Ends when all are."""
        described = None if hardware is None else struct_from_dict(hardware)
        request = pb.FitCatalogRequest(template=struct_from_dict(template), hardware=described)
        return self._stream("CatalogService/FitCatalog", request, pb.FitCatalogResponse, None)

    def restart_deployment(self, name: str, *, etag: str = "", request_id: str = "") -> pb.Deployment:
        request = pb.RestartDeploymentRequest(name=name, etag=etag, request_id=request_id)
        return self._call("DeploymentService/RestartDeployment", request, pb.Deployment)

    def stop_deployment(self, name: str, *, etag: str = "", request_id: str = "") -> pb.Deployment:
        request = pb.StopDeploymentRequest(name=name, etag=etag, request_id=request_id)
        return self._call("DeploymentService/StopDeployment", request, pb.Deployment)

    def start_deployment(self, name: str, *, etag: str = "", request_id: str = "") -> pb.Deployment:
        request = pb.StartDeploymentRequest(name=name, etag=etag, request_id=request_id)
        return self._call("DeploymentService/StartDeployment", request, pb.Deployment)

    def watch(
        self, deployment: str = "", *, resume_token: str = "", events_only: bool = False, timeout: float | None = None
    ) -> Iterator[pb.WatchResponse]:
        """The present state, then `synced`, then changes; of all deployments by default.

        Ends only with Unavailable: when the agent stops or hangs, or after `timeout` seconds. Close the iterator
        to end it from here.
        """
        request = pb.WatchRequest(deployment=deployment, resume_token=resume_token, events_only=events_only)
        return self._stream("DeploymentService/Watch", request, pb.WatchResponse, timeout)

    def list_instances(self, deployment: str) -> list[pb.Instance]:
        """All that are kept, newest first."""
        request = pb.ListInstancesRequest(parent=deployment)
        pages = self._pages("InstanceService/ListInstances", request, pb.ListInstancesResponse)
        return [instance for page in pages for instance in page.instances]

    def get_instance(self, name: str) -> pb.Instance:
        """By resource name: `deployments/{deployment}/instances/{id}`."""
        return self._call("InstanceService/GetInstance", pb.GetInstanceRequest(name=name), pb.Instance)

    def stream_logs(
        self,
        deployment: str,
        *,
        instance: str = "",
        previous: bool = False,
        tail_lines: int = 0,
        follow: bool = False,
        timeout: float | None = None,
    ) -> Iterator[pb.StreamLogsResponse]:
        """What the engine wrote. With `follow` it ends like `watch`, or when the deployment is deleted."""
        request = pb.StreamLogsRequest(
            deployment=deployment, instance=instance, previous=previous, tail_lines=tail_lines, follow=follow
        )
        return self._stream("InstanceService/StreamLogs", request, pb.StreamLogsResponse, timeout)

    def list_events(self, deployment: str = "", *, limit: int = 100) -> list[pb.Event]:
        """The newest `limit` events (at least 1), oldest first."""
        request = pb.ListEventsRequest(deployment=deployment, page_size=min(limit, MAX_PAGE_SIZE))
        found: list[pb.Event] = []
        for page in self._pages("EventService/ListEvents", request, pb.ListEventsResponse):
            found[:0] = page.events
            if len(found) >= limit:
                break
        return found[-limit:]

    def list_artifacts(self) -> list[pb.Artifact]:
        """All of them, last used first."""
        return list(self.get_artifacts().artifacts)

    def get_artifacts(self) -> pb.ListArtifactsResponse:
        """The same, on one page, with the cache's disk."""
        whole = pb.ListArtifactsResponse()
        request = pb.ListArtifactsRequest(page_size=MAX_PAGE_SIZE)
        for page in self._pages("ArtifactService/ListArtifacts", request, pb.ListArtifactsResponse):
            whole.artifacts.extend(page.artifacts)
            if page.HasField("disk"):
                whole.disk.CopyFrom(page.disk)
        return whole

    def pull_artifact(self, reference: str) -> Iterator[pb.PullArtifactResponse]:
        """How far the pull is; the last message has the artifact. Closing the iterator ends it, if nobody else wants
        it."""
        request = pb.PullArtifactRequest(reference=reference)
        return self._stream("ArtifactService/PullArtifact", request, pb.PullArtifactResponse, None)

    def pin_artifact(self, name: str) -> pb.Artifact:
        return self._call("ArtifactService/PinArtifact", pb.PinArtifactRequest(name=name), pb.Artifact)

    def unpin_artifact(self, name: str) -> pb.Artifact:
        return self._call("ArtifactService/UnpinArtifact", pb.UnpinArtifactRequest(name=name), pb.Artifact)

    def delete_artifact(self, name: str, *, request_id: str = "") -> pb.DeleteArtifactResponse:
        request = pb.DeleteArtifactRequest(name=name, request_id=request_id)
        return self._call("ArtifactService/DeleteArtifact", request, pb.DeleteArtifactResponse, REMOVAL_SECONDS)

    def collect_artifacts(self, *, dry_run: bool = False, everything: bool = False) -> pb.CollectArtifactsResponse:
        request = pb.CollectArtifactsRequest(dry_run=dry_run, all=everything)
        return self._call("ArtifactService/CollectArtifacts", request, pb.CollectArtifactsResponse, REMOVAL_SECONDS)

    def list_measurements(self) -> list[pb.Measurement]:
        """The whole ledger, oldest first."""
        request = pb.ListMeasurementsRequest(page_size=MAX_PAGE_SIZE)
        pages = self._pages("LedgerService/ListMeasurements", request, pb.ListMeasurementsResponse)
        return [measurement for page in pages for measurement in page.measurements]

    def import_measurements(self, ledger: dict[str, Any]) -> pb.ImportMeasurementsResponse:
        """`ledger`: `{"measurements": [...]}`, as another node's were exported."""
        request = pb.ImportMeasurementsRequest(ledger=struct_from_dict(ledger))
        return self._call("LedgerService/ImportMeasurements", request, pb.ImportMeasurementsResponse)

    def check_health(self) -> None:
        """Return if the agent serves. Raises Unavailable if it does not."""
        from grpc_health.v1 import health_pb2  # noqa: PLC0415 - for streams only

        path, request = "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest()
        answer = self._unary(path, request, health_pb2.HealthCheckResponse, self.timeout)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise Unavailable("the agent is stopping")

    def _call(self, method: str, request: Message, answer: type[M], least_timeout: float = 0.0) -> M:
        return self._unary(f"/agent.v1.{method}", request, answer, max(self.timeout, least_timeout))

    def _pages(self, method: str, request: Any, answer: type[M]) -> Iterator[M]:
        while True:
            page: Any = self._call(method, request, answer)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _unary(self, path: str, request: Message, answer: type[M], timeout: float) -> M:
        if (size := request.ByteSize()) > MAX_REQUEST_BYTES:
            raise InvalidArgument(f"the request has {size} bytes; an agent takes at most {MAX_REQUEST_BYTES}")
        call = self._channel.unary_unary(path, _serialize, answer.FromString)
        try:
            reply: M = call(request, timeout=timeout)
        except grpc.RpcError as error:
            self._answered = False
            raise self._explained(error, timeout) from error
        self._answered = True
        return reply

    def _stream(self, method: str, request: Message, answer: type[M], timeout: float | None) -> Iterator[M]:
        if not self._answered:
            self.check_health()
        call = self._channel.unary_stream(f"/agent.v1.{method}", _serialize, answer.FromString)
        messages: Any = call(request, timeout=timeout)
        try:
            yield from messages
        except grpc.RpcError as error:
            self._answered = False
            raise self._explained(error, timeout or self.timeout) from error
        finally:
            messages.cancel()

    def _explained(self, error: Any, timeout: float) -> AgentError:
        """What gRPC's own errors mean here; the agent's errors as they are."""
        code = error.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unavailable(
                f"the agent at {self.path} gave no answer within {timeout:g} s",
                hint="it may hang or be overloaded: look at its log",
            )
        if code is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata():
            return self._unreachable()
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return FailedPrecondition(
                f"the agent at {self.path} does not know this request",
                hint="agentctl and agentd should be of the same version",
            )
        from agent.api.errors import from_rpc_error  # noqa: PLC0415 - most commands meet no error

        return from_rpc_error(error)

    def _unreachable(self) -> Unavailable:
        """What keeps us from connecting: gRPC reports all causes alike, a plain connect tells them apart."""
        try:
            listens = reach.listens(self.path)
        except FileNotFoundError:
            return Unavailable(f"no agent runs: there is no socket {self.path}", hint="start it with `agentd`")
        except OSError as error:
            return Unavailable(f"cannot connect to {self.path}: {error.strerror or error}")
        if listens:
            return Unavailable(f"the agent at {self.path} stopped answering", hint="it may be restarting, or hang")
        return Unavailable(f"no agent runs: nobody listens at {self.path}", hint="start it with `agentd`")


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
