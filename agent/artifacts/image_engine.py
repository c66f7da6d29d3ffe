"""A question to a container engine's API over its socket, where the Docker SDK (a process, or 15 MiB) is too much."""

from __future__ import annotations

import asyncio

#: Bytes of an answer: what an engine says of a thousand images has half a MiB.
MOST_ANSWER = 16 * 1024**2
_PIECE = 256 * 1024


async def ask(socket: str, resource: str, deadline: float) -> bytes:
    """The body of the answer to `GET resource`. HTTP/1.0: it is not in chunks, and ends with the connection.

    Raises `OSError`, among them `TimeoutError` after `deadline` seconds, and `ValueError` for another status than 200.
    """
    try:
        async with asyncio.timeout(deadline):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(f"GET {resource} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                answer = bytearray()
                while len(answer) < MOST_ANSWER and (piece := await reader.read(_PIECE)):
                    answer += piece
            finally:
                writer.close()
    except TimeoutError:
        raise TimeoutError(f"it does not answer within {deadline:g} s") from None
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].decode(errors="replace")
    if " 200 " not in f"{status} ":
        raise ValueError(f"it answers {status[:80]!r}")
    return body
