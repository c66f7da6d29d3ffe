"""HTTP as fetching needs it: kept connections, proxies, redirects, and bodies that are read into the caller's memory.

Python's own client, because its sockets can be read into a buffer of ours: a body costs one copy, and no object for
each piece (docs/decisions/0010-fetching.md has the numbers).
"""

from __future__ import annotations

import base64
import functools
import http.client
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

REDIRECTS = 5
_REDIRECTING = frozenset({301, 302, 303, 307, 308})
#: Bytes of an answer that is no file: what is left of it is not read, and its connection is given up.
_MOST_TALK = 64 * 1024

Origin = tuple[str, str, int]


class ConnectionFailed(Exception):
    """The other side could not be reached, fell silent, or broke off. Trying again may help."""


class NotFollowed(Exception):
    """The other side leads to where nobody goes, or cannot be trusted. Trying again does not help."""


@dataclass(slots=True)
class Answer:
    """The head of an answer; the body is read by `readinto`, then `close`."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    url: str  # that answered, behind all redirects
    linked: Mapping[str, str]  # headers of the first redirect, {} without one
    _response: http.client.HTTPResponse
    _connections: Connections

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

    def close(self) -> None:
        """A connection whose body was read to its end is kept."""
        if not self._response.isclosed() or self._response.will_close:
            self._connections.drop(self.url)


class Connections:
    """One thread's connections. `token` is sent to `home` only: a token for the hub is not for its CDN."""

    def __init__(self, home: str, token: str, timeout: float) -> None:
        self._home, self._token, self._timeout = origin_of(urlsplit(home)), token, timeout
        self._kept: dict[Origin, http.client.HTTPConnection] = {}

    def get(self, url: str, headers: Mapping[str, str]) -> Answer:
        """Follows redirects. Raises `ConnectionFailed` and `NotFollowed`."""
        linked: Mapping[str, str] = {}
        for _ in range(REDIRECTS + 1):
            parts = parsed(url)
            if parts is None:
                raise NotFollowed(f"it leads to {url[:80]!r}, which is no address that is followed")
            response = self._exchange(parts, headers)
            named = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, named, url, linked, response, self)
            if answer.status not in _REDIRECTING or "location" not in named:
                return answer
            self._finish(answer)
            linked = linked or named
            target = urljoin(url, named["location"])
            if parts.scheme == "https" and urlsplit(target).scheme != "https":
                raise NotFollowed(f"{parts.hostname} redirects from https to what is not https")
            url = target
        raise NotFollowed(f"it redirects more than {REDIRECTS} times")

    def drop(self, url: str) -> None:
        if (connection := self._kept.pop(origin_of(urlsplit(url)), None)) is not None:
            connection.close()

    def close(self) -> None:
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()

    def _exchange(self, parts: SplitResult, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        origin = origin_of(parts)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = {"User-Agent": "llm-node-agent", "Accept-Encoding": "identity", **headers}
        if (proxy := _proxy(origin)) and parts.scheme == "http":
            target = f"http://{parts.netloc}{target}"
            sent |= proxy.headers
        if self._token and origin == self._home:
            sent["Authorization"] = f"Bearer {self._token}"
        reused = origin in self._kept
        if not reused:
            self._kept[origin] = _open(origin, proxy, self._timeout)
        connection = self._kept[origin]
        try:
            connection.request("GET", target, headers=sent)
            return connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            self.drop(parts.geturl())
            raise NotFollowed(f"{parts.hostname} is not trusted ({error.verify_message})") from None
        except (OSError, http.client.HTTPException) as error:
            self.drop(parts.geturl())
            if reused and not isinstance(error, TimeoutError):  # kept for too long: the other side closed it
                return self._exchange(parts, headers)
            raise ConnectionFailed(f"{parts.hostname}: {_said(error)}") from None

    def _finish(self, answer: Answer) -> None:
        """Read a short body away."""
        room = memoryview(bytearray(_MOST_TALK))
        while room and (count := answer.readinto(room)):
            room = room[count:]
        answer.close()


def parsed(url: str) -> SplitResult | None:
    """None for what is not asked: other schemes than http and https, no host, somebody's password."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return None
    return parts if sound and url.isprintable() and "@" not in parts.netloc else None


def origin_of(parts: SplitResult) -> Origin:
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


class _Proxy(NamedTuple):
    host: str
    port: int
    headers: Mapping[str, str]


def _proxy(origin: Origin) -> _Proxy | None:
    """From HTTPS_PROXY, HTTP_PROXY and NO_PROXY."""
    scheme, host, _ = origin
    named = urllib.request.getproxies().get(scheme, "")
    if not named or urllib.request.proxy_bypass(host):
        return None
    parts = urlsplit(named if "://" in named else f"http://{named}")
    headers = {}
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    return _Proxy(parts.hostname or "", parts.port or 80, headers)


def _open(origin: Origin, proxy: _Proxy | None, timeout: float) -> http.client.HTTPConnection:
    scheme, host, port = origin
    at, at_port = (proxy.host, proxy.port) if proxy else (host, port)
    if scheme == "http":
        return http.client.HTTPConnection(at, at_port, timeout=timeout)
    connection = http.client.HTTPSConnection(at, at_port, timeout=timeout, context=_trust())
    if proxy:
        connection.set_tunnel(host, port, dict(proxy.headers))
    return connection


@functools.cache
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context()


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "silent for too long"
    return getattr(error, "strerror", None) or str(error)[:120] or type(error).__name__
