"""The way of one call: bytes in, handler, bytes out, and whatever goes wrong turned into a status.

Messages are parsed and serialised here and not by gRPC, so that garbage gets INVALID_ARGUMENT instead of a
stack trace, and so that an answer that is already serialised passes through untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from agent.api import errors
from agent.api.servicers import StreamHandler, UnaryHandler
from agent.errors import AgentError, InvalidArgument, Unavailable

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")

CALL_SECONDS = 30.0  # the longest a unary call may take; every step inside has a shorter deadline of its own

_log = structlog.get_logger(__name__)


class Calls:
    """Makes gRPC method handlers of our handlers, and ends what is still open when the agent stops."""

    def __init__(self, call_seconds: float = CALL_SECONDS) -> None:
        self._call_seconds = call_seconds
        self._streams: set[asyncio.Timeout] = set()
        self._tasks: set[asyncio.Task[Message]] = set()

    def unary(self, method: str, request: type[Message], handle: UnaryHandler) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler for one request and one answer."""

        async def call(raw: bytes, context: Context) -> bytes:
            try:
                answer = handle(_parse(request, raw))
                if isinstance(answer, bytes):
                    return answer
                if not isinstance(answer, Message):
                    answer = await self._finish(method, answer)
                return answer.SerializeToString()
            except Exception as error:  # noqa: BLE001  (the outermost place: it is logged and becomes a status)
                await _fail(context, method, error)

        return grpc.unary_unary_rpc_method_handler(call)

    def stream(self, method: str, request: type[Message], handle: StreamHandler) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler that streams until its source ends, the client goes (which cancels it) or the agent stops."""

        async def call(raw: bytes, context: Context) -> None:
            scope = asyncio.timeout(None)
            try:
                async with scope:
                    self._streams.add(scope)
                    await _send(context, *handle(_parse(request, raw)))
            except Exception as error:  # noqa: BLE001  (as above)
                stopping = isinstance(error, TimeoutError) and scope.expired()
                await _fail(context, method, Unavailable("the agent is stopping") if stopping else error)
            finally:
                self._streams.discard(scope)

        return grpc.unary_stream_rpc_method_handler(call)

    async def stop(self, grace_seconds: float) -> None:
        """End the streams now, since they never end themselves, and let changes that are under way finish."""
        for scope in self._streams:
            with contextlib.suppress(RuntimeError):  # it has ended, and its client is being told
                scope.reschedule(0)  # in the past: it expires at once
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_seconds)

    async def _finish(self, method: str, answer: Awaitable[Message]) -> Message:
        """Wait for the answer in a task of its own: a client that goes away must not tear a change apart."""
        task = asyncio.create_task(_awaited(answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            done, _ = await asyncio.wait((task,), timeout=self._call_seconds)
        finally:
            if not task.done():
                task.add_done_callback(lambda ended: _log_abandoned(method, ended))
        if not done:
            raise Unavailable(
                f"not finished within {self._call_seconds:g} s; it goes on, and may still be done",
                hint="look at the status, or send the same request with the same request id again",
            )
        return task.result()


def refused(error: AgentError) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that answers every call with `error`."""

    async def call(_raw: bytes, context: Context) -> NoReturn:
        await errors.abort(context, error)

    return grpc.unary_unary_rpc_method_handler(call)


async def _send(context: Context, source: Any, to_message: Callable[[Any], Message]) -> None:
    try:
        async for item in source:
            await context.write(to_message(item).SerializeToString())  # waits while the client does not read
    finally:
        if isinstance(source, AsyncGenerator):
            await source.aclose()  # now, not when it is collected: it may hold a subscription or a file


async def _fail(context: Context, method: str, error: Exception) -> NoReturn:
    if not isinstance(error, AgentError):
        _log.error("api.call.failed", method=method, exc_info=error)
        error = AgentError("internal error", hint="the agent's log tells the cause")
    await errors.abort(context, error)


def _parse(request: type[Message], raw: bytes) -> Message:
    try:
        return request.FromString(raw)
    except DecodeError:
        raise InvalidArgument(f"the request is not a valid {request.DESCRIPTOR.full_name} message") from None


async def _awaited(answer: Awaitable[Message]) -> Message:
    return await answer


def _log_abandoned(method: str, task: asyncio.Task[Message]) -> None:
    """A task that nobody waits for any more: its error would be seen nowhere else."""
    if not task.cancelled() and (error := task.exception()):
        _log.error("api.call.failed", method=method, abandoned=True, exc_info=error)
