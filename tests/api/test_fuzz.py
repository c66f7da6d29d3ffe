"""Random bytes and random valid messages on every method: each gets an answer or an error of ours, and life goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import grpc
import pytest
import structlog.testing
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.v1 import agent_pb2 as pb
from tests.api.conftest import Background
from tests.api.fake_node import make_deployment
from tests.api.messages import messages

METHODS = [method for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods]
STREAM_SECONDS = 0.03  # a stream that was accepted goes on for ever: long enough to be refused, short enough to test

FINE = {
    None,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.PERMISSION_DENIED,
}

few = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
on_every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


@pytest.fixture(params=["control", "readonly"])
def channel(request, shared_background: Background) -> Iterator[grpc.Channel]:
    shared_background.do(lambda: shared_background.node.put(make_deployment("chat"), instances=1))
    path = getattr(shared_background, request.param).path
    with grpc.insecure_channel(f"unix:{path}") as connected, structlog.testing.capture_logs() as logs:
        yield connected
        answer = connected.unary_unary("/agent.v1.NodeService/GetStatus")(b"", timeout=10)
        assert pb.GetStatusResponse.FromString(answer).node.host == "testhost"
        assert not [line for line in logs if line["event"] == "api.call.failed"]


def _send(channel: grpc.Channel, method: MethodDescriptor, data: bytes) -> grpc.StatusCode | None:
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.server_streaming:
            list(channel.unary_stream(path)(data, timeout=STREAM_SECONDS))
        else:
            channel.unary_unary(path)(data, timeout=10)
    except grpc.RpcError as error:
        accepted = method.server_streaming and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return None if accepted else error.code()
    return None


@on_every_method
def test_random_bytes_are_answered(channel: grpc.Channel, method: MethodDescriptor):
    @few
    @given(st.binary(max_size=200))
    def check(data: bytes) -> None:
        assert _send(channel, method, data) in FINE

    check()


@on_every_method
def test_random_valid_messages_are_answered(channel: grpc.Channel, method: MethodDescriptor):
    @few
    @given(messages(method.input_type))
    def check(message) -> None:
        assert _send(channel, method, message.SerializeToString()) in FINE

    check()


@pytest.mark.parametrize(
    "path", ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
)
def test_random_bytes_on_the_standard_services_are_survived(channel: grpc.Channel, path: str):
    @few
    @given(st.binary(max_size=200))
    def check(data: bytes) -> None:
        with suppress(grpc.RpcError):
            list(channel.stream_stream(path)(iter([data]), timeout=10))

    check()
