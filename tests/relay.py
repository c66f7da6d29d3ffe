"""What stands between a client and a real HTTP server, and lets go wrong what the server itself would not."""

from __future__ import annotations

import contextlib
import fnmatch
import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from tests.hub.server import Fault, Request

Answer = tuple[int, dict[str, str], bytes]


class Relay:
    """Passes requests on to a port of this host. Positions of faults are bytes of the file that is asked for."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.guard: Callable[[Request], Answer | None] = lambda _: None  # answers instead, where it has something
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self._server = _Server(self)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def fail(self, fault: Fault) -> None:
        with self.lock:
            self.faults.append(fault)

    def heal(self) -> None:
        with self.lock:
            self.faults.clear()
            self.requests.clear()
            self.guard = lambda _: None

    def asked(self, pattern: str) -> list[Request]:
        """Requests whose path matches."""
        with self.lock:
            return [request for request in self.requests if fnmatch.fnmatchcase(request.path, pattern)]

    def starts(self, pattern: str) -> list[int]:
        """Where requests for parts of a file began."""
        ranges = [each.headers.get("range", "bytes=0-") for each in self.asked(pattern) if each.method == "GET"]
        return [int(re.findall(r"\d+", each)[0]) for each in ranges]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up: that is theirs to do."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Tests print what they find."""

    def do_GET(self) -> None:
        self._pass_on()

    def do_HEAD(self) -> None:
        self._pass_on()

    def do_PUT(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        relay, parts = self.server.relay, urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        path = unquote(parts.path)
        body = self.rfile.read(int(headers.get("content-length", 0)))
        request = Request("relay", self.command, path, parts.query, headers, body)
        with relay.lock:
            relay.requests.append(request)
            fault = next((each for each in relay.faults if each.strikes(path)), Fault())
        status, answered, content = relay.guard(request) or self._answer(body)
        if fault.body is not None:
            status, answered, content = fault.status or status, {}, fault.body
        answered |= {"ETag": f'"{fault.etag}"'} if fault.etag else {}
        answered |= dict(fault.headers)
        self._send(fault.status or status, answered, content, fault)

    def _answer(self, body: bytes) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.relay.target, timeout=30)
        try:
            # With its own Host, which clients may have signed.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            kept = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in {"connection", "transfer-encoding", "date", "server"}
            }
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    def _send(self, status: int, headers: Mapping[str, str], content: bytes, fault: Fault) -> None:
        said = {name.lower(): value for name, value in headers.items()}.get("content-range", "")
        start = int((re.findall(r"bytes (\d+)-", said) or ["0"])[0])
        if start <= fault.flip_at < start + len(content):
            at = fault.flip_at - start
            content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        stops = [stop - start for stop in (fault.reset_at, fault.cut_at, fault.stall_at) if stop >= 0]
        with contextlib.suppress(OSError):
            if self.command == "HEAD":
                return
            if not any(stop < len(content) for stop in stops):
                self.wfile.write(content)
                return
            self.wfile.write(content[: max(0, min(stops))])
            self.wfile.flush()
            self.close_connection = True
            if fault.stall_at >= 0:
                self.server.relay.stopping.wait()
            if fault.reset_at >= 0:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
