from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from agent import errors as tree
from agent.api.errors import to_status
from agent.errors import AgentError, FailedPrecondition, FieldViolation, InvalidArgument, NotFound, Unavailable
from agent.v1 import agent_pb2 as pb
from tests.api.conftest import Api, Background

ALL = [AgentError, *(kind for kind in AgentError.__subclasses__() if kind.__module__ == AgentError.__module__)]


def _details(error: grpc.RpcError, kind: type) -> list:
    found = []
    for detail in rpc_status.from_call(error).details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found


async def _raised(api: Api, error: Exception) -> grpc.aio.AioRpcError:
    api.node.failure = error
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.call("NodeService/GetNode", pb.GetNodeRequest())
    return caught.value


def test_every_error_of_the_tree_has_a_status_and_keeps_its_code():
    for kind in ALL:
        status = to_status(kind("sentence"))
        assert status.details == "sentence"
        assert status.code is not grpc.StatusCode.UNKNOWN
    assert len({kind.code for kind in ALL}) == len(ALL)
    assert {name for name, kind in vars(tree).items() if isinstance(kind, type) and issubclass(kind, AgentError)} == {
        kind.__name__ for kind in ALL
    }


async def test_field_violations_code_hint_and_retry_travel_as_google_rpc_details(api: Api):
    violation = FieldViolation("limits.max_model_len", "must be at least 16")
    error = await _raised(api, InvalidArgument("bad spec", violations=(violation,), hint="see the reference"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    (request,) = _details(error, error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in request.field_violations] == [(violation.field, violation.rule)]
    (info,) = _details(error, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("INVALID_ARGUMENT", "llm-node-agent")
    (help_,) = _details(error, error_details_pb2.Help)
    assert [link.description for link in help_.links] == ["see the reference"]
    assert not _details(error, error_details_pb2.RetryInfo)

    retryable = await _raised(api, Unavailable("the disk does not answer"))
    (retry,) = _details(retryable, error_details_pb2.RetryInfo)
    assert retry.retry_delay.seconds == 1


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_client_raises_what_the_handler_raised(background: Background, client, kind):
    violations = (FieldViolation("a.b", "must be c"),)
    background.node.failure = kind("a sentence, größer", violations=violations, hint="do this")
    with pytest.raises(kind) as caught:
        client.get_node()
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.violations, caught.value.hint) == (
        "a sentence, größer",
        violations,
        "do this",
    )


def test_errors_of_any_length_arrive_cut_and_the_number_of_missing_violations_is_told(background: Background, client):
    """Trailers are limited to 8 KiB: a longer error would arrive as another one."""
    violations = tuple(FieldViolation("ü" * 500, "ö" * 5000) for _ in range(500))
    background.node.failure = FailedPrecondition("ä" * 100_000, violations=violations, hint="ß" * 100_000)
    with pytest.raises(FailedPrecondition) as caught:
        client.get_node()
    error = caught.value
    assert error.message.startswith("äää")
    assert error.message.endswith("…")
    assert error.hint.endswith("…")
    *told, last = error.violations
    assert told
    assert last.rule.startswith(f"and {500 - len(told)} more")


def test_an_error_with_many_short_violations_keeps_the_first_ones(background: Background, client):
    violations = tuple(FieldViolation(f"f{n}", "must be 1") for n in range(3))
    background.node.failure = NotFound("x", violations=violations)
    with pytest.raises(NotFound) as caught:
        client.get_node()
    assert caught.value.violations == violations
