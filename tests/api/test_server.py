from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from google.protobuf import message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from agent.api.methods import METHODS, MethodClass
from agent.v1 import agent_pb2 as pb
from tests.api.conftest import Api, serving
from tests.api.fake_node import make_deployment

SERVICES = [service.full_name for service in pb.DESCRIPTOR.services_by_name.values()]


def _descriptor(name: str):
    service, _, method = name.removeprefix("agent.v1.").partition(".")
    return pb.DESCRIPTOR.services_by_name[service].methods_by_name[method]


async def _code(channel: grpc.aio.Channel, name: str) -> tuple[grpc.StatusCode, str]:
    """How a call of the method with an empty request, that is ended after its first message, ends."""
    method = _descriptor(name)
    request = message_factory.GetMessageClass(method.input_type)()
    path = "/" + "/".join(name.rsplit(".", 1))
    if method.server_streaming:
        call = channel.unary_stream(path)(request.SerializeToString(), timeout=10)
        first = call.read()
    else:
        call = first = channel.unary_unary(path)(request.SerializeToString(), timeout=10)
    try:
        await first
    except grpc.aio.AioRpcError as error:
        return error.code(), _hint(error)
    call.cancel()
    return grpc.StatusCode.OK, ""


def _hint(error: grpc.aio.AioRpcError) -> str:
    links = error_details_pb2.Help()
    for detail in rpc_status.from_call(error).details:
        detail.Unpack(links)
    return links.links[0].description if links.links else ""


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind is MethodClass.CHANGE])
async def test_the_read_only_socket_refuses_each_change_and_names_the_control_socket(api: Api, name: str):
    code, hint = await _code(api.readonly, name)
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert str(api.directory / "control.sock") in hint
    assert (await _code(api.control, name))[0] is not grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind is MethodClass.READ])
async def test_the_read_only_socket_answers_each_read_like_the_control_socket(api: Api, name: str):
    answered = await _code(api.readonly, name)
    assert answered == await _code(api.control, name)
    assert answered[0] in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)  # names are empty here


async def test_a_method_that_nobody_declared_is_not_served(api: Api):
    for path in ("/agent.v1.NodeService/Shutdown", "/agent.v2.NodeService/GetStatus", "/x/y"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await api.control.unary_unary(path)(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_method_that_is_not_in_the_table_is_refused_even_where_everything_is_served(api: Api, tmp_path: Path):
    undeclared = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name["Check"]
    handler = api.server._method(undeclared, frozenset(MethodClass), hint="")
    async with serving(tmp_path / "s", "Check", handler) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test.Service/Check")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("socket", ["control", "readonly"])
async def test_health_answers_for_the_whole_and_for_each_service(api: Api, socket: str):
    stub = health_pb2_grpc.HealthStub(getattr(api, socket))
    for service in ["", *SERVICES]:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("socket", ["control", "readonly"])
async def test_reflection_lists_all_services(api: Api, socket: str):
    stub = reflection_pb2_grpc.ServerReflectionStub(getattr(api, socket))
    call = stub.ServerReflectionInfo(timeout=10)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = {service.name for service in (await call.read()).list_services_response.service}
    assert listed >= {*SERVICES, "grpc.health.v1.Health"}
    await call.done_writing()


async def test_a_request_above_the_limit_is_refused_and_the_next_one_answered(api: Api):
    call = api.control.unary_unary("/agent.v1.DeploymentService/ApplyDeployment")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\0" * (4 * 1024 * 1024 + 1), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await api.call("NodeService/GetNode", pb.GetNodeRequest())


async def test_stop_ends_open_streams_at_once_and_says_why(api: Api):
    api.node.put(make_deployment("chat"))
    watch = api.stream("DeploymentService/Watch", pb.WatchRequest(events_only=True))
    logs = api.stream("InstanceService/StreamLogs", pb.StreamLogsRequest(deployment="chat", tail_lines=1, follow=True))
    assert (await watch.read()).HasField("synced")
    assert (await logs.read()).data == b"three\n"
    async with asyncio.timeout(30):  # far below the grace
        await api.server.stop(grace_seconds=600)
    for call in (watch, logs):
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert await call.details() == "the agent is stopping"
    assert not list(api.directory.iterdir())


async def test_stop_lets_a_change_that_is_under_way_finish(api: Api):
    api.node.put(make_deployment("chat"))
    api.node.gate.clear()
    change = asyncio.create_task(api.call("DeploymentService/StopDeployment", pb.StopDeploymentRequest(name="chat")))
    await api.node.waiting.wait()
    stopping = asyncio.create_task(api.server.stop(grace_seconds=30))
    await asyncio.sleep(0)
    assert not stopping.done()
    api.node.gate.set()
    assert (await change).phase == pb.PHASE_STOPPED
    await stopping


async def test_stop_gives_up_on_a_change_that_hangs_after_the_grace(api: Api):
    api.node.put(make_deployment("chat"))
    api.node.gate.clear()
    change = asyncio.create_task(api.call("DeploymentService/StopDeployment", pb.StopDeploymentRequest(name="chat")))
    await api.node.waiting.wait()
    await api.server.stop(grace_seconds=0.05)
    with pytest.raises(grpc.aio.AioRpcError):
        await change
    api.node.gate.set()


async def test_stop_may_be_called_twice(api: Api):
    await api.server.stop(grace_seconds=0)
    await api.server.stop(grace_seconds=0)
