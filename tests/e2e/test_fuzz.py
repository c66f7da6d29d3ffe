"""Nonsense on every method of the real daemon's control socket: each call gets an answer or an error of ours, a refused
one changes nothing, and the daemon and its engines live on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.v1 import agent_pb2 as pb
from tests.api.messages import messages
from tests.harness import Daemon, complete, wait_true

METHODS = [method for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods]
APPLY = "/agent.v1.DeploymentService/ApplyDeployment"
LIST = "/agent.v1.DeploymentService/ListDeployments"
#: A stream that was accepted goes on for ever: long enough to be refused, short enough to test.
STREAM_SECONDS = 0.03

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.FAILED_PRECONDITION,
}

few = settings(max_examples=15, suppress_health_check=list(HealthCheck))
many = settings(max_examples=200, suppress_health_check=list(HealthCheck))


class Target:
    """A daemon with one deployment that serves and one, `chat`, that random messages may name."""

    def __init__(self, node: Daemon, channel: grpc.Channel) -> None:
        self.spec = node.spec("chat", environment={"MODE": "never"})
        self._channel = channel
        self._renew()

    def send(self, path: str, data: bytes, *, streaming: bool = False) -> None:
        """One call. Whatever was refused must have changed nothing."""
        before = self._deployments()
        code = self._code(path, data, streaming=streaming)
        if code is None:
            self._renew()
        else:
            assert code in REFUSALS
            assert self._deployments() == before

    def _code(self, path: str, data: bytes, *, streaming: bool) -> grpc.StatusCode | None:
        try:
            if streaming:
                list(self._channel.unary_stream(path)(data, timeout=STREAM_SECONDS))
            else:
                self._channel.unary_unary(path)(data, timeout=10)
        except grpc.RpcError as error:
            accepted = streaming and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return None if accepted else error.code()
        return None

    def _deployments(self) -> dict[str, tuple[str, pb.Desired]]:
        data = self._channel.unary_unary(LIST)(b"", timeout=10)
        found = pb.ListDeploymentsResponse.FromString(data).deployments
        return {deployment.name: (deployment.etag, deployment.desired) for deployment in found}

    def _renew(self) -> None:
        """What was accepted may have deleted `chat`, which takes a moment."""
        chat = "deployments/chat"
        wait_true(lambda: self._deployments().get(chat, ("", pb.DESIRED_RUN))[1] != pb.DESIRED_DELETE)
        if chat not in self._deployments():
            request = pb.ApplyDeploymentRequest()
            request.spec.update(self.spec)
            self._channel.unary_unary(APPLY)(request.SerializeToString(), timeout=10)


@pytest.fixture
def target(node: Daemon) -> Iterator[Target]:
    node.start().apply("steady")
    steady = node.wait("steady")
    with grpc.insecure_channel(f"unix:{node.control}") as channel:
        yield Target(node, channel)
    assert node.process is not None
    assert node.process.poll() is None
    after = node.get("steady")
    assert (after.etag, after.instance.pid, after.restarts) == (steady.etag, steady.instance.pid, 0)
    assert complete(after.endpoint)["content"]
    log = node.log.read_text()
    assert [bug for bug in ("Traceback", "api.call.failed", "step failed") if bug in log] == []


def _bombard(target: Target, method: MethodDescriptor, payloads: st.SearchStrategy[bytes]) -> None:
    @few
    @given(payloads)
    def check(data: bytes) -> None:
        target.send(f"/{method.containing_service.full_name}/{method.name}", data, streaming=method.server_streaming)

    check()


def test_random_bytes_are_answered_by_every_method(target: Target) -> None:
    for method in METHODS:
        _bombard(target, method, st.binary(max_size=200))


def test_random_valid_messages_are_answered_by_every_method(target: Target) -> None:
    for method in METHODS:
        _bombard(target, method, messages(method.input_type).map(lambda message: message.SerializeToString()))


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)


def _places(value: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every value in a spec."""
    if not isinstance(value, dict):
        return [at]
    inside = [place for key, child in value.items() for place in _places(child, (*at, key))]
    return [at, *inside] if at else inside


def _with(value: Any, place: tuple[str, ...], new: Any) -> Any:
    return {**value, place[0]: _with(value[place[0]], place[1:], new)} if place else new


def test_a_spec_with_one_wrong_value_is_refused_or_taken_whole(target: Target) -> None:
    # Not the name: others that happen to be valid would fill the node.
    places = [place for place in _places(target.spec) if place != ("name",)]

    @many
    @given(st.sampled_from(places), _json)
    def check(place: tuple[str, ...], value: Any) -> None:
        request = pb.ApplyDeploymentRequest()
        request.spec.update(_with(target.spec, place, value))
        target.send(APPLY, request.SerializeToString())

    check()
