"""One HTTP/1.1 request with a deadline, for probes. Never raises for what the other side does.

httptools reads the answer; the connection is not reused, because a kept connection would hold one of the engine's
few HTTP threads, and because "connects and answers" is what a probe must find out.
"""

from __future__ import annotations

import asyncio
import os
import socket
from functools import lru_cache

import httptools

from agent.engines.base import HttpReply, HttpRequest

#: Engines' answers to probes are a few KiB; /metrics of a large one may reach some hundred.
MAX_BODY = 2 * 1024 * 1024
#: The head of an answer: larger than any server's own limit, so only a broken one reaches it.
MAX_HEAD = 64 * 1024


async def request(host: str, port: int, req: HttpRequest, *, timeout: float, token: str = "") -> HttpReply:
    """Send `req`, return the reply. Status 0: refused, reset, no valid HTTP, or no answer within `timeout` seconds;
    the body then says which."""
    try:
        async with asyncio.timeout(timeout):
            return await _exchange(host, port, _message(host, port, req, token))
    except TimeoutError:
        return HttpReply(0, f"no answer within {timeout:g} s")
    except OSError as error:
        return HttpReply(0, os.strerror(error.errno) if error.errno else str(error) or type(error).__name__)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade, _UnusableError) as error:
        return HttpReply(0, str(error) or type(error).__name__)


class _UnusableError(Exception):
    """No exchange, or no answer that can be used."""


class _Answer:
    """What httptools tells of the message that it reads."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body = bytearray()
        self.head = 0
        self.measured = False  # the head says where the body ends; otherwise the end of the connection does
        self.begun = self.complete = False

    def on_header(self, name: bytes, _value: bytes) -> None:
        self.measured = self.measured or name.lower() in {b"content-length", b"transfer-encoding"}

    def on_headers_complete(self) -> None:
        self.begun = True

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        # An informational answer (1xx) comes before the one that is meant.
        self.complete = self.parser.get_status_code() >= 200

    def feed(self, data: bytes) -> None:
        """Take the next bytes; none means that the other side closed the connection."""
        if data:
            self.parser.feed_data(data)
            self.head += 0 if self.begun else len(data)
        elif self.begun and not self.measured:
            self.complete = True
        elif not self.complete:
            raise _UnusableError("the connection was closed before the end of the answer")
        if len(self.body) > MAX_BODY or self.head > MAX_HEAD:
            raise _UnusableError(f"the answer is longer than {MAX_BODY} bytes, or its head than {MAX_HEAD}")


async def _exchange(host: str, port: int, message: bytes) -> HttpReply:
    loop, answer = asyncio.get_running_loop(), _Answer()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # A bare socket: streams would cost more than everything else in a probe, and nothing here is streamed.
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as connection:
        await loop.sock_connect(connection, (host, port))
        await loop.sock_sendall(connection, message)
        while not answer.complete:
            answer.feed(await loop.sock_recv(connection, 65536))
    return HttpReply(answer.parser.get_status_code(), answer.body.decode(errors="replace"))


@lru_cache(maxsize=1024)  # a node repeats the same few probes of each instance
def _message(host: str, port: int, req: HttpRequest, token: str) -> bytes:
    body = req.body.encode()
    lines = [f"{req.method} {req.path} HTTP/1.1", f"Host: {host}:{port}", "Connection: close"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    if token:
        if not (token.isascii() and token.isprintable()):
            raise _UnusableError("the API key has characters that no HTTP header can carry")
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode() + body
