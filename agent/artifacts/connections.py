"""HTTP as fetching needs it: kept connections, proxies, redirects, and bodies that are read into the caller's memory.

Python's own client, because its sockets can be read into a buffer of ours: a body costs one copy, and no object for
each piece (docs/decisions/0010-fetching.md has the numbers).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import SplitResult, urlencode, urlsplit

from agent.origins import (
    REDIRECTING,
    REDIRECTS,
    NotFollowed,
    Origin,
    asked,
    connection,
    followed,
    origin_of,
    redirected,
    said,
)
from agent.retries import Again

#: Bytes of an answer that is no file: what is left of it is not read, and its connection is given up.
_MOST_TALK = 64 * 1024


class ConnectionFailed(Again):
    """The other side could not be reached, fell silent, or broke off."""


@dataclass(slots=True)
class Answer:
    """The head of an answer; the body is read by `readinto`, then `close`."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    url: str  # that answered, behind all redirects
    linked: Mapping[str, str]  # headers of the first redirect, {} without one
    _response: http.client.HTTPResponse
    _connections: Connections
    _drained: bool = False  # nothing of the body lies in the response's buffer
    shown: str = ""  # the Authorization that its request carried

    @property
    def length(self) -> int | None:
        return self._response.length

    def readinto(self, view: memoryview) -> int:
        """Bytes that came, at least one; 0 at the end. Raises `ConnectionFailed`."""
        response = self._response
        try:
            if response.chunked:
                piece = response.read1(len(view))
                view[: len(piece)] = piece
                return len(piece)
            # Not `response.readinto`: that one waits until the whole view is full, and what came before a failure
            # would be lost.
            if response.length is not None:
                view = view[: response.length]
            count = response.fp.readinto1(view) if view and not response.isclosed() else 0
            if response.length is not None:
                response.length -= count
                if response.length == 0:
                    response.close()  # the connection can be used again
            return count
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ConnectionFailed(_said(error)) from None

    def body(self, most: int) -> bytes:
        """All of a short one. Raises `ConnectionFailed`, and `NotFollowed` for a longer one."""
        data, room = bytearray(), memoryview(bytearray(_MOST_TALK))
        while len(data) <= most and (count := self.readinto(room)):
            data += room[:count]
        self.close()
        if len(data) > most:
            raise NotFollowed(f"{urlsplit(self.url).hostname} answers with more than {most} bytes")
        return bytes(data)

    @property
    def spliceable(self) -> bool:
        """Whether the kernel has the body as it is: not encrypted, not in chunks."""
        return sys.platform == "linux" and self.url.startswith("http:") and not self._response.chunked

    def splice(self, pipe: int, most: int) -> int | None:
        """As `readinto`, into a pipe that does not block, without a copy; None where that is full. Raises `OSError` of
        a kernel that cannot, too."""
        response = self._response
        most = most if response.length is None else min(most, response.length)
        if not most or response.isclosed():
            return 0
        try:
            count = self._spliced(pipe, most) if self._drained else self._early(pipe, most)
        except BlockingIOError:
            return None
        except (TimeoutError, ConnectionError, ValueError, http.client.HTTPException) as error:
            raise ConnectionFailed(_said(error)) from None
        if response.length is not None:
            response.length -= count
            if response.length == 0:
                response.close()
        return count

    def _early(self, pipe: int, most: int) -> int:
        """What came with the head lies in the response's buffer; its first byte is asked for, so that there is one."""
        early = self._response.fp.peek(1)
        count = os.write(pipe, early[:most]) if early else 0
        self._response.fp.read(count)
        self._drained = count == len(early)
        return count

    def _spliced(self, pipe: int, most: int) -> int:
        """Raises `BlockingIOError` when something came, and the pipe does not take it."""
        source = self._response.fp.fileno()
        with contextlib.suppress(BlockingIOError):
            return os.splice(source, pipe, most, flags=os.SPLICE_F_NONBLOCK)
        ready = select.poll()
        ready.register(source, select.POLLIN)
        if not ready.poll(1000 * self._connections.timeout):
            raise TimeoutError
        return os.splice(source, pipe, most, flags=os.SPLICE_F_NONBLOCK)

    def close(self) -> None:
        """A connection whose body was read to its end is kept."""
        if not self._response.isclosed() or self._response.will_close:
            self._connections.drop(self.url)


class Access(Protocol):
    """What requests to one source need. Used by several threads; `agent.artifacts.access` has the plain ones."""

    def address(self, url: str) -> str:
        """Where a file is by now, of what stands for it."""

    def headers(self, origin: Origin) -> Mapping[str, str]:
        """What a request carries there; {} for strangers: a token for a hub is not for its CDN."""

    def renew(self, answer: Answer) -> bool:
        """After a 401: whether other headers may help."""


class Connections:
    """One thread's connections."""

    def __init__(self, access: Access, timeout: float) -> None:
        self._access, self.timeout = access, timeout
        self._kept: dict[Origin, http.client.HTTPConnection] = {}

    def get(self, url: str, headers: Mapping[str, str]) -> Answer:
        """Follows redirects. Raises `ConnectionFailed` and `NotFollowed`."""
        url, linked = self._access.address(url), dict[str, str]()
        for _ in range(REDIRECTS + 1):
            parts = followed(url)
            carried = self._access.headers(origin_of(parts))
            response = self._exchange(parts, {**headers, **carried})
            named = {name.lower(): value for name, value in response.getheaders()}
            shown = carried.get("Authorization", "")
            answer = Answer(response.status, named, url, linked, response, self, shown=shown)
            if answer.status == 401 and self._access.renew(answer):
                self._finish(answer)
                continue
            if answer.status not in REDIRECTING or "location" not in named:
                return answer
            self._finish(answer)
            linked = linked or named
            url = redirected(parts, named["location"])
        raise NotFollowed(f"it redirects more than {REDIRECTS} times")

    def post(self, url: str, form: Mapping[str, str]) -> Answer:
        """Leads nowhere else: what a form says is for one place. Raises as `get` does."""
        parts = followed(url)
        headers = {"Content-Type": "application/x-www-form-urlencoded", **self._access.headers(origin_of(parts))}
        response = self._exchange(parts, headers, urlencode(form).encode())
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, url, {}, response, self)

    def drop(self, url: str) -> None:
        if (kept := self._kept.pop(origin_of(urlsplit(url)), None)) is not None:
            kept.close()

    def close(self) -> None:
        for kept in self._kept.values():
            kept.close()
        self._kept.clear()

    def _exchange(
        self, parts: SplitResult, headers: Mapping[str, str], form: bytes | None = None
    ) -> http.client.HTTPResponse:
        origin = origin_of(parts)
        target, sent = asked(parts)
        reused = origin in self._kept
        if not reused:
            self._kept[origin] = connection(origin, self.timeout)
        kept = self._kept[origin]
        try:
            kept.request("GET" if form is None else "POST", target, form, {**sent, **headers})
            return kept.getresponse()
        except ssl.SSLCertVerificationError as error:
            self.drop(parts.geturl())
            raise NotFollowed(f"{parts.hostname} is not trusted ({error.verify_message})") from None
        except (OSError, http.client.HTTPException) as error:
            self.drop(parts.geturl())
            if reused and not isinstance(error, TimeoutError):  # kept for too long: the other side closed it
                return self._exchange(parts, headers, form)
            raise ConnectionFailed(f"{parts.hostname}: {_said(error)}") from None

    def _finish(self, answer: Answer) -> None:
        """Read a short body away."""
        room = memoryview(bytearray(_MOST_TALK))
        while room and (count := answer.readinto(room)):
            room = room[count:]
        answer.close()


def _said(error: Exception) -> str:
    return "silent for too long" if isinstance(error, TimeoutError) else said(error)
