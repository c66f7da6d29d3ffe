"""A real server on real Unix sockets: `api` in the test's own event loop, `background` in a thread's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.api.client import Client
from agent.api.server import ApiServer
from agent.v1 import agent_pb2
from tests.api.fake_node import FakeNode


@dataclass(frozen=True)
class Socket:
    """Settings of a socket, as the configuration has them."""

    path: Path
    owner: str | None = None
    group: str | None = None
    mode: int = 0o600


@dataclass
class Api:
    """A running server, the node behind it, and a channel to each of its sockets."""

    server: ApiServer
    node: FakeNode
    directory: Path
    control: grpc.aio.Channel
    readonly: grpc.aio.Channel

    async def call(self, method: str, request: Any, *, readonly: bool = False) -> Any:
        """Call `Service/Method` with a message, and parse the answer."""
        channel = self.readonly if readonly else self.control
        call = channel.unary_unary(
            f"/agent.v1.{method}", type(request).SerializeToString, answer_type(method).FromString
        )
        return await call(request, timeout=10)

    def stream(self, method: str, request: Any) -> Any:
        path = f"/agent.v1.{method}"
        return self.control.unary_stream(path, type(request).SerializeToString, answer_type(method).FromString)(request)


def answer_type(method: str) -> Any:
    service, name = method.split("/")
    descriptor = agent_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[name]
    return getattr(agent_pb2, descriptor.output_type.name)


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def control(tmp_path: Path) -> Socket:
    return Socket(tmp_path / "control.sock")


@pytest.fixture
def readonly(tmp_path: Path) -> Socket:
    return Socket(tmp_path / "readonly.sock", mode=0o666)


@pytest.fixture
async def api(node: FakeNode, control: Socket, readonly: Socket) -> AsyncIterator[Api]:
    server = await ApiServer.serve(control, readonly, node)
    async with (
        grpc.aio.insecure_channel(f"unix:{control.path}") as control_channel,
        grpc.aio.insecure_channel(f"unix:{readonly.path}") as readonly_channel,
    ):
        yield Api(server, node, control.path.parent, control_channel, readonly_channel)
        await server.stop(grace_seconds=0)


@asynccontextmanager
async def serving(path: Path, name: str, handler: Any) -> AsyncIterator[grpc.aio.Channel]:
    """One handler, as the method `/test.Service/{name}` of a bare server, and a channel to it."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {name: handler}),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        yield channel
        await server.stop(0)


class Background:
    """A server in a thread of its own, for the synchronous client."""

    def __init__(self, directory: Path) -> None:
        self.control = Socket(directory / "control.sock")
        self.readonly = Socket(directory / "readonly.sock")
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.node: FakeNode = self.do(FakeNode)
        self.server = self.wait(ApiServer.serve(self.control, self.readonly, self.node))

    def wait(self, work: Any) -> Any:
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=30)

    def do(self, work: Callable[[], Any]) -> Any:
        """Call a function in the server's loop."""
        done: Future[Any] = Future()
        self.loop.call_soon_threadsafe(lambda: done.set_result(work()))
        return done.result(timeout=30)

    def close(self) -> None:
        self.wait(self.server.stop(grace_seconds=0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(timeout=30)
        self.loop.close()


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Background]:
    running = Background(tmp_path)
    yield running
    running.close()


@pytest.fixture(scope="module")
def shared_background(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    """One server for many generated requests."""
    running = Background(tmp_path_factory.mktemp("api"))
    yield running
    running.close()


@pytest.fixture
def client(background: Background) -> Iterator[Client]:
    with Client(background.control.path) as connected:
        yield connected
