"""One HTTP/1.1 request to an engine on loopback, with one deadline for everything.

h11 does the protocol; the connection is not reused, because a kept connection would hold one of the engine's
few HTTP threads, and because "connects and answers" is what a probe must find out.
"""

from __future__ import annotations

import asyncio
import socket

import h11

from agent.engines.base import HttpReply, HttpRequest

#: Engines' answers to probes are a few KiB; /metrics of a large one may reach some hundred.
MAX_BODY = 2 * 1024 * 1024


async def request(host: str, port: int, req: HttpRequest, *, timeout: float, token: str = "") -> HttpReply:
    """Send `req`, return the reply. Status 0: refused, reset, no valid HTTP, or no answer within `timeout` seconds;
    the body then says which."""
    try:
        async with asyncio.timeout(timeout):
            return await _exchange(host, port, req, token)
    except TimeoutError:
        return HttpReply(0, f"no answer within {timeout:g} s")
    except (OSError, h11.ProtocolError) as error:
        return HttpReply(0, str(error) or type(error).__name__)


async def _exchange(host: str, port: int, req: HttpRequest, token: str) -> HttpReply:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # A bare socket: streams would cost more than everything else in a probe, and nothing here is streamed.
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as connection:
        await loop.sock_connect(connection, (host, port))
        protocol = h11.Connection(h11.CLIENT)
        await loop.sock_sendall(connection, _message(protocol, host, port, req, token))
        return await _read_reply(loop, connection, protocol)


def _message(protocol: h11.Connection, host: str, port: int, req: HttpRequest, token: str) -> bytes:
    body = req.body.encode()
    headers = [("Host", f"{host}:{port}"), ("Connection", "close")]
    if body:
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    if token:
        headers.append(("Authorization", f"Bearer {token}"))
    events: list[h11.Event] = [h11.Request(method=req.method, target=req.path, headers=headers)]
    events += [h11.Data(data=body)] if body else []
    return b"".join(protocol.send(event) or b"" for event in (*events, h11.EndOfMessage()))


async def _read_reply(
    loop: asyncio.AbstractEventLoop, connection: socket.socket, protocol: h11.Connection
) -> HttpReply:
    status, parts, size = 0, [], 0
    while True:
        event = protocol.next_event()
        if event is h11.NEED_DATA:
            protocol.receive_data(await loop.sock_recv(connection, 65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > MAX_BODY:
                raise h11.RemoteProtocolError(f"answer is longer than {MAX_BODY} bytes")
            parts.append(bytes(event.data))
        elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
            return HttpReply(status, b"".join(parts).decode(errors="replace"))
