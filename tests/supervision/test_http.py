"""A probe's request against servers that answer well, badly, late or never: real sockets, bytes as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from agent.engines.base import HttpReply, HttpRequest
from agent.supervision import http
from tests.harness import free_port

GET = HttpRequest("GET", "/health")
OK = b"HTTP/1.1 200 OK\r\n"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    serving = await asyncio.start_server(handle, host, 0)
    try:
        yield serving.sockets[0].getsockname()[1]
    finally:
        serving.close()


def says(*parts: bytes) -> Handler:
    """Reads the head of the request, then sends the parts, each in a packet of its own, and closes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.005)

    return handler


async def ask(*parts: bytes, timeout: float = 5.0) -> HttpReply:
    async with server(says(*parts)) as port:
        return await http.request("127.0.0.1", port, GET, timeout=timeout)


@pytest.mark.parametrize(
    ("parts", "status", "body"),
    [
        ((OK + b"Content-Length: 2\r\n\r\nok",), 200, "ok"),
        ((OK, b"Content-Le", b"ngth: 4\r\n\r", b"\nab", b"cd"), 200, "abcd"),
        ((OK + b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\nab\r\n", b"1\r\nc\r\n0\r\n\r\n"), 200, "abc"),
        ((OK + b"Connection: close\r\n\r\n", b"until ", b"the end"), 200, "until the end"),
        ((b"HTTP/1.0 200 OK\r\n\r\nold",), 200, "old"),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), 204, ""),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", OK + b"Content-Length: 1\r\n\r\nx"), 200, "x"),
        ((b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 7\r\n\r\nloading",), 503, "loading"),
        ((OK + b"Content-Length: 2\r\n\r\n\xff\xfe",), 200, "\ufffd\ufffd"),
    ],
)
async def test_answers_are_read_however_they_are_cut(parts: tuple[bytes, ...], status: int, body: str) -> None:
    assert await ask(*parts) == HttpReply(status, body)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ((), "closed before the end"),
        ((OK,), "closed before the end"),
        ((OK + b"Content-Length: 5\r\n\r\nabc",), "closed before the end"),
        ((OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",), "closed before the end"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), ""),
        ((b"\x16\x03\x01garbage",), ""),
        ((b"HTTP/1.1 abc\r\n\r\n",), ""),
        ((OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nab",), ""),
        ((b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",), ""),
    ],
)
async def test_what_is_no_answer_has_status_0_and_says_why(parts: tuple[bytes, ...], why: str) -> None:
    reply = await ask(*parts)

    assert reply.status == 0
    assert reply.body
    assert why in reply.body


async def test_an_endless_body_is_cut_off() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with server(endless) as port:
        reply = await http.request("127.0.0.1", port, GET, timeout=20)

    assert reply == HttpReply(0, f"the answer is longer than {http.MAX_BODY} bytes, or its head than {http.MAX_HEAD}")


async def test_an_endless_head_is_cut_off() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        while True:
            writer.write(b"X-Padding: " + b"x" * 8192 + b"\r\n")
            await writer.drain()

    async with server(endless) as port:
        reply = await http.request("127.0.0.1", port, GET, timeout=20)

    assert reply.status == 0
    assert "no answer within" not in reply.body


async def test_silence_ends_with_the_timeout() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async with server(silent) as port:
        assert await http.request("127.0.0.1", port, GET, timeout=0.1) == HttpReply(0, "no answer within 0.1 s")


async def test_a_refused_connection_says_so() -> None:
    reply = await http.request("127.0.0.1", free_port(), GET, timeout=5)

    assert reply.status == 0
    assert "refused" in reply.body.lower()


async def test_body_and_token_are_sent() -> None:
    seen = b""

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        head = await reader.readuntil(b"\r\n\r\n")
        seen = head + await reader.readexactly(len('{"n": "ü"}'.encode()))
        writer.write(OK + b"Content-Length: 0\r\n\r\n")

    async with server(record) as port:
        post = HttpRequest("POST", "/v1/completions", '{"n": "ü"}')
        assert await http.request("127.0.0.1", port, post, timeout=5, token="sesame") == HttpReply(200, "")

    assert seen.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{port}\r\n".encode() in seen
    assert b"Authorization: Bearer sesame\r\n" in seen
    assert seen.endswith(b"Content-Type: application/json\r\nContent-Length: 11\r\n"
                         b"Authorization: Bearer sesame\r\n\r\n" + '{"n": "ü"}'.encode())  # fmt: skip


async def test_a_token_that_would_break_the_head_is_not_sent() -> None:
    reply = await http.request("127.0.0.1", free_port(), GET, timeout=5, token="a\r\nX-Evil: 1")

    assert reply == HttpReply(0, "the API key has characters that no HTTP header can carry")
