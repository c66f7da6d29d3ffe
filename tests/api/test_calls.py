"""What happens to a call when a handler, its client or the node misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import structlog.testing

from agent.api import mapping
from agent.api.calls import Calls
from agent.supervision.service import LogChunk
from agent.v1 import agent_pb2 as pb
from tests.api.conftest import Api, serving
from tests.api.fake_node import make_deployment


async def test_an_unexpected_error_is_logged_once_with_the_method_and_told_without_internals(api: Api):
    api.node.failure = ZeroDivisionError("secret internals")
    with structlog.testing.capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.call("NodeService/GetNode", pb.GetNodeRequest())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in caught.value.details() + str(caught.value.trailing_metadata())
    (line,) = logs
    assert (line["event"], line["method"]) == ("api.call.failed", "agent.v1.NodeService.GetNode")
    assert line["exc_info"] is api.node.failure
    api.node.failure = None
    assert await api.call("NodeService/GetNode", pb.GetNodeRequest())


async def test_an_unexpected_error_within_a_stream_is_treated_alike(api: Api):
    api.node.failure = TimeoutError("an inner one, not the stop of the agent")
    with structlog.testing.capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.stream("DeploymentService/Watch", pb.WatchRequest()).read()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert [line["method"] for line in logs] == ["agent.v1.DeploymentService.Watch"]


async def test_bytes_that_are_no_message_are_an_invalid_argument(api: Api):
    with structlog.testing.capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.control.unary_unary("/agent.v1.NodeService/GetStatus")(b"\xff\xff", timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not logs


async def test_a_change_is_carried_out_even_if_its_client_goes_away(api: Api):
    api.node.put(make_deployment("chat"))
    api.node.gate.clear()
    change = asyncio.create_task(api.call("DeploymentService/StopDeployment", pb.StopDeploymentRequest(name="chat")))
    await api.node.waiting.wait()
    change.cancel()
    await asyncio.wait([change])
    await api.call("NodeService/GetNode", pb.GetNodeRequest())  # the cancellation has arrived before this
    api.node.gate.set()
    watch = api.stream("DeploymentService/Watch", pb.WatchRequest())
    while (await watch.read()).deployment.phase != pb.PHASE_STOPPED:
        pass
    watch.cancel()


async def test_the_error_of_a_change_whose_client_went_away_is_logged(api: Api):
    api.node.gate.clear()
    change = asyncio.create_task(api.call("DeploymentService/StopDeployment", pb.StopDeploymentRequest(name="none")))
    await api.node.waiting.wait()
    change.cancel()
    await asyncio.wait([change])
    await api.call("NodeService/GetNode", pb.GetNodeRequest())
    with structlog.testing.capture_logs() as logs:
        api.node.gate.set()
        await api.server.stop(grace_seconds=30)
    assert [(line["method"], line["abandoned"]) for line in logs] == [
        ("agent.v1.DeploymentService.StopDeployment", True)
    ]


async def test_a_watch_ends_in_the_node_when_its_client_goes_away(api: Api):
    watch = api.stream("DeploymentService/Watch", pb.WatchRequest())
    assert (await watch.read()).HasField("synced")
    assert len(api.node.watchers) == 1
    watch.cancel()
    await api.node.watch_ended.wait()
    assert not api.node.watchers


async def test_a_handler_that_does_not_finish_in_time_is_unavailable_and_goes_on(tmp_path: Path):
    finish, finished = asyncio.Event(), asyncio.Event()

    async def slow(_request: pb.GetNodeRequest) -> pb.Node:
        await finish.wait()
        finished.set()
        return pb.Node()

    handler = Calls(call_seconds=0.05).unary("test.Service.Slow", pb.GetNodeRequest, slow)
    async with serving(tmp_path / "s", "Slow", handler) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test.Service/Slow")(b"", timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "not finished within 0.05 s" in caught.value.details()
        assert not finished.is_set()
        finish.set()
        await finished.wait()


async def test_a_client_that_does_not_read_holds_the_source_back(tmp_path: Path):
    """Buffers on the way are some hundred KiB; a source of 64 MiB must be left waiting, not read ahead."""
    produced, chunk, chunks = 0, b"x" * 65536, 1024

    async def source() -> AsyncIterator[LogChunk]:
        nonlocal produced
        for _ in range(chunks):
            produced += 1
            yield LogChunk("i-1", chunk)

    handler = Calls().stream("test.Service.Logs", pb.StreamLogsRequest, lambda _: (source(), mapping.log_chunk))
    async with serving(tmp_path / "s", "Logs", handler) as channel:
        messages = aiter(channel.unary_stream("/test.Service/Logs")(b"", timeout=60))
        await anext(messages)
        settled = -1
        while settled != produced:
            settled = produced
            await asyncio.sleep(0.1)
        assert produced < chunks / 4
        assert len([message async for message in messages]) == chunks - 1
