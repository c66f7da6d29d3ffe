"""One HTTP/1.1 request to an engine on loopback, with one deadline for everything.

h11 does the protocol; the connection is not reused, because a kept connection would hold one of the engine's
few HTTP threads, and because "connects and answers" is what a probe must find out.
"""

from __future__ import annotations

import asyncio

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
    reader, writer = await asyncio.open_connection(host, port)
    try:
        connection = h11.Connection(h11.CLIENT)
        body = req.body.encode()
        headers = [("Host", f"{host}:{port}"), ("Connection", "close")]
        if body:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        if token:
            headers.append(("Authorization", f"Bearer {token}"))
        head = connection.send(h11.Request(method=req.method, target=req.path, headers=headers)) or b""
        data = (connection.send(h11.Data(data=body)) or b"") if body else b""
        writer.write(head + data + (connection.send(h11.EndOfMessage()) or b""))
        return await _read_reply(connection, reader)
    finally:
        # Not waited for: a hung engine never finishes a graceful close.
        writer.transport.abort()


async def _read_reply(connection: h11.Connection, reader: asyncio.StreamReader) -> HttpReply:
    status, parts, size = 0, [], 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > MAX_BODY:
                raise h11.RemoteProtocolError(f"answer is longer than {MAX_BODY} bytes")
            parts.append(bytes(event.data))
        elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
            return HttpReply(status, b"".join(parts).decode(errors="replace"))
