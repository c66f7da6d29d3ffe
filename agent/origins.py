"""Servers that are asked over HTTP: which addresses may be, and connections to them, through the proxies that the
environment names. For the processes that ask strangers; the daemon is none of them.
"""

from __future__ import annotations

import base64
import functools
import http.client
import ssl
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

#: Scheme, host, port.
Origin = tuple[str, str, int]

#: Redirects in a row that are followed, and the answers that are some.
REDIRECTS, REDIRECTING = 5, frozenset({301, 302, 303, 307, 308})


class NotFollowed(Exception):
    """The other side leads to where nobody goes, or cannot be trusted. Trying again does not help."""


class _Proxy(NamedTuple):
    host: str
    port: int
    headers: Mapping[str, str]


def parsed(url: str) -> SplitResult | None:
    """None for what is not asked: other schemes than http and https, no host, somebody's password."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return None
    return parts if sound and url.isprintable() and "@" not in parts.netloc else None


def followed(url: str) -> SplitResult:
    """Raises `NotFollowed` for what is not asked."""
    if (parts := parsed(url)) is None:
        raise NotFollowed(f"it leads to {url[:80]!r}, which is no address that is followed")
    return parts


def redirected(url: SplitResult, location: str) -> str:
    """Where an answer leads. Raises `NotFollowed` where that would be in the clear, and was not before."""
    target = urljoin(url.geturl(), location)
    if url.scheme == "https" and urlsplit(target).scheme != "https":
        raise NotFollowed(f"{url.hostname} redirects from https to what is not https")
    return target


def said(error: Exception) -> str:
    """Why a connection failed, in a few words."""
    return getattr(error, "strerror", None) or str(error)[:120] or type(error).__name__


def origin_of(parts: SplitResult) -> Origin:
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def asked(parts: SplitResult) -> tuple[str, dict[str, str]]:
    """What the line of a request names, and what every request carries; a proxy is told more."""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"User-Agent": "llm-node-agent", "Accept-Encoding": "identity"}
    if parts.scheme == "http" and (proxy := _proxy(origin_of(parts))):
        return f"http://{parts.netloc}{target}", headers | dict(proxy.headers)
    return target, headers


def connection(origin: Origin, timeout: float) -> http.client.HTTPConnection:
    """That opens with its first request: to the origin, or to the proxy for it."""
    (scheme, host, port), proxy = origin, _proxy(origin)
    at, at_port = (proxy.host, proxy.port) if proxy else (host, port)
    if scheme == "http":
        return http.client.HTTPConnection(at, at_port, timeout=timeout)
    opened = http.client.HTTPSConnection(at, at_port, timeout=timeout, context=_trust())
    if proxy:
        opened.set_tunnel(host, port, dict(proxy.headers))
    return opened


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


@functools.cache
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context()
