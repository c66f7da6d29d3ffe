"""The API of a running agent: two gRPC servers in one process, one for each Unix socket.

gRPC for Python does not tell who the peer is, so the sockets' permissions decide: whoever may open the control
socket may change, whoever may open the read-only one may look. `agent.api.methods` says which method is which.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agent.api import calls, sockets
from agent.api.bounds import MAX_REQUEST_BYTES
from agent.api.methods import METHODS, MethodClass
from agent.api.servicers import Servicers
from agent.api.sockets import BoundSocket, SocketSettings
from agent.errors import ReadOnly
from agent.v1 import agent_pb2

if TYPE_CHECKING:
    from agent.supervision.service import NodeApi

MAX_CONCURRENT_CALLS = 256  # for each socket: who may only look cannot use up what who may change needs
MIN_PING_MILLISECONDS = 5_000  # clients of ours ping each 10 s to notice that the agent hangs

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_MILLISECONDS),
)


class ApiServer:
    """Serves one node on two sockets until it is stopped. Made by `serve`."""

    def __init__(self, node: NodeApi) -> None:
        self._handlers = Servicers(node)
        self._calls = calls.Calls()
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in the stubs
        self._servers: list[grpc.aio.Server] = []
        self._sockets: list[BoundSocket] = []

    @classmethod
    async def serve(cls, control: SocketSettings, readonly: SocketSettings, node: NodeApi) -> ApiServer:
        """Start serving; both sockets answer when this returns.

        Raises InvalidArgument or FailedPrecondition, and leaves nothing behind, where a socket cannot be made.
        """
        self = cls(node)
        try:
            self._bind(control, "api.control", frozenset(MethodClass), hint="")
            self._bind(
                readonly,
                "api.readonly",
                frozenset({MethodClass.READ}),
                hint=f"ask the control socket, {control.path}, which its owner may open",
            )
            for service in _service_names():
                await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
            for server in self._servers:
                await server.start()
        except BaseException:
            await self.stop(grace_seconds=0)
            raise
        return self

    async def stop(self, grace_seconds: float) -> None:
        """Take no more calls, end the streams, give the other calls `grace_seconds` to finish, remove the sockets."""
        await self._health.enter_graceful_shutdown()
        await asyncio.gather(self._calls.stop(grace_seconds), *(server.stop(grace_seconds) for server in self._servers))
        for bound in self._sockets:
            bound.remove()

    def _bind(self, settings: SocketSettings, field: str, served: frozenset[MethodClass], hint: str) -> None:
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS)
        self._servers.append(server)
        for service in agent_pb2.DESCRIPTOR.services_by_name.values():
            server.add_generic_rpc_handlers((self._service(service, served, hint),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection([*_service_names(), health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        self._sockets.append(sockets.bind(server, settings, field))

    def _service(
        self, service: ServiceDescriptor, served: frozenset[MethodClass], hint: str
    ) -> grpc.GenericRpcHandler[Any, Any]:
        handlers = {method.name: self._method(method, served, hint) for method in service.methods}
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def _method(
        self, method: MethodDescriptor, served: frozenset[MethodClass], hint: str
    ) -> grpc.RpcMethodHandler[Any, Any]:
        name = method.full_name
        if METHODS.get(name) not in served:  # a method that is not in the table is served nowhere
            return calls.refused(ReadOnly(f"this socket does not serve {name}", hint=hint))
        request = message_factory.GetMessageClass(method.input_type)
        if method.server_streaming:
            return self._calls.stream(name, request, self._handlers.streams[name])
        return self._calls.unary(name, request, self._handlers.unary[name])


def _service_names() -> Iterator[str]:
    for service in agent_pb2.DESCRIPTOR.services_by_name.values():
        yield service.full_name
