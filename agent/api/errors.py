"""Between `AgentError`s and gRPC: rich errors (google.rpc details) on the way out, the same errors on the way in.

Sent: BadRequest with the field violations, ErrorInfo with the stable code, Help with the hint, RetryInfo where a
retry is useful. A client of ours gets back the class, message, violations and hint that the handler raised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from agent.errors import (
    AgentError,
    Conflict,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    ReadOnly,
    StoreError,
    Unavailable,
)

DOMAIN = "llm-node-agent"

#: One row for each class; AIP-154 asks for ABORTED where an etag does not match.
_STATUS: Mapping[type[AgentError], grpc.StatusCode] = {
    AgentError: grpc.StatusCode.INTERNAL,
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Conflict: grpc.StatusCode.ABORTED,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    ReadOnly: grpc.StatusCode.PERMISSION_DENIED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    StoreError: grpc.StatusCode.UNAVAILABLE,
}
_BY_CODE: Mapping[str, type[AgentError]] = {kind.code: kind for kind in _STATUS}
_BY_STATUS: Mapping[grpc.StatusCode, type[AgentError]] = {
    **{status: kind for kind, status in _STATUS.items() if kind is not StoreError},
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Unavailable,  # too many calls at once
    grpc.StatusCode.UNIMPLEMENTED: FailedPrecondition,
}

RETRY_DELAY_SECONDS = 1  # the first step of the restart backoff: what failed is seldom back sooner

# Errors travel in HTTP/2 trailers, of which gRPC clients accept 8 KiB by default. The message is in them twice,
# once percent-encoded (at worst times 3): 4 * 1024 + 512 + 3072 bytes and the frames around them stay below that.
_MESSAGE_BYTES = 1024
_HINT_BYTES = 512
_VIOLATIONS_BYTES = 3072
_FIELD_BYTES = 160
_RULE_BYTES = 480


def to_status(error: AgentError) -> grpc.Status:
    """The gRPC status that tells all of `error`; long texts are cut so that the trailers stay within limits."""
    status = status_pb2.Status(
        code=_STATUS[type(error)].value[0],
        message=_cut(error.message, _MESSAGE_BYTES),
        details=[_packed(detail) for detail in _details(error)],
    )
    return rpc_status.to_status(status)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: AgentError) -> NoReturn:
    """End the call with `error`."""
    status = to_status(error)
    await context.abort(status.code, status.details, status.trailing_metadata)


def from_rpc_error(error: grpc.RpcError) -> AgentError:
    """The error that the server raised; for an error of gRPC itself the nearest class."""
    call = cast("grpc.Call", error)  # every RpcError that a channel raises is one
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # status and details contradict each other: not one of ours
        status = None
    if status is None:
        return _BY_STATUS.get(call.code(), AgentError)(call.details() or call.code().name)
    return _from_status(status, call.code())


def _details(error: AgentError) -> Iterator[Message]:
    # AIP-193 wants upper case for reasons.
    yield error_details_pb2.ErrorInfo(reason=error.code.upper(), domain=DOMAIN)
    if error.violations:
        yield error_details_pb2.BadRequest(field_violations=_violations(error.violations))
    if error.hint:
        hint = _cut(error.hint, _HINT_BYTES)
        yield error_details_pb2.Help(links=[error_details_pb2.Help.Link(description=hint)])
    if error.retryable:
        yield error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=RETRY_DELAY_SECONDS))


def _violations(violations: Sequence[FieldViolation]) -> Iterator[error_details_pb2.BadRequest.FieldViolation]:
    room = _VIOLATIONS_BYTES - _FIELD_BYTES  # for the last line
    for index, violation in enumerate(violations):
        field, rule = _cut(violation.field, _FIELD_BYTES), _cut(violation.rule, _RULE_BYTES)
        room -= len(field.encode()) + len(rule.encode()) + 8  # tags and lengths of the message
        if room < 0:
            more = f"and {len(violations) - index} more rules are broken; mend the ones above first"
            yield error_details_pb2.BadRequest.FieldViolation(field="", description=more)
            return
        yield error_details_pb2.BadRequest.FieldViolation(field=field, description=rule)


def _cut(text: str, limit: int) -> str:
    """`text` in at most `limit` bytes of UTF-8."""
    data = text.encode(errors="replace")
    return (
        data.decode() if len(data) <= limit else data[: limit - 3].decode(errors="ignore") + "\N{HORIZONTAL ELLIPSIS}"
    )


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _from_status(status: status_pb2.Status, code: grpc.StatusCode) -> AgentError:
    info, request, links = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.Help()
    for detail in status.details:
        for known in (info, request, links):
            detail.Unpack(known)  # only where the types agree
    kind = _BY_CODE.get(info.reason.lower()) if info.domain == DOMAIN else None
    return (kind or _BY_STATUS.get(code, AgentError))(
        status.message,
        violations=tuple(FieldViolation(v.field, v.description) for v in request.field_violations),
        hint="; ".join(link.description for link in links.links),
    )
