"""A server that replays what an engine documents of its start, health, metrics and failures, for engines that cannot
run here. It is asked over real HTTP, by the function that the agent's probes use.

A script has phases, each with an answer by "METHOD /path" (without a query); what is not named is 404. In the phase
`CLOSED` the port is bound and nothing listens, as with engines that load first: connections are refused.

    with ContractServer({CLOSED: {}, "ready": {"GET /health": Answer(200)}}) as server:
        server.enter("ready")
        reply = server.ask(HttpRequest("GET", "/health"))
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from agent.engines.base import Activity, Engine, HttpReply, HttpRequest
from agent.planning.plan import Plan
from agent.status import Granted
from agent.supervision.http import request

CLOSED = "closed"


@dataclass(frozen=True)
class Answer:
    """What the engine answers; with `hangs` not before the server is closed or the phase changes."""

    status: int = 200
    body: str = ""
    hangs: bool = False

    @classmethod
    def of(cls, content: object, status: int = 200) -> Answer:
        return cls(status, json.dumps(content))


Phase = Mapping[str, Answer]


class ContractServer:
    """Serves the phases of one engine, the first one of the script to begin with."""

    def __init__(self, phases: Mapping[str, Phase]) -> None:
        self._phases = phases
        self._phase = next(iter(phases))
        self._moved = threading.Condition()
        self._server: ThreadingHTTPServer | None = None
        self._socket = socket.create_server(("127.0.0.1", 0)) if self._phase != CLOSED else _bound()
        self.port: int = self._socket.getsockname()[1]
        #: All requests that came, in their order: "GET /health".
        self.asked: list[str] = []
        #: The bodies of those with one, decoded.
        self.bodies: list[Any] = []

    def __enter__(self) -> Self:
        if self._phase != CLOSED:
            self._serve()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._moved:
            self._phase = ""
            self._moved.notify_all()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._socket.close()

    def enter(self, phase: str) -> None:
        with self._moved:
            if phase not in self._phases:
                raise KeyError(phase)
            self._phase = phase
            self._moved.notify_all()
        if phase != CLOSED and self._server is None:
            self._socket.listen()
            self._serve()

    def ask(self, what: HttpRequest, timeout: float = 10.0) -> HttpReply:
        """As a probe asks."""
        return asyncio.run(request("127.0.0.1", self.port, what, timeout=timeout))

    def answer(self, method: str, path: str) -> Answer:
        with self._moved:
            began = self._phase
            found = self._phases[began].get(f"{method} {path.partition('?')[0]}", Answer(404)) if began else Answer(503)
            while found.hangs and self._phase == began:
                self._moved.wait()
            return found

    def _serve(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append(f"{self.command} {self.path}")
                if length := int(self.headers.get("Content-Length", "0")):
                    outer.bodies.append(json.loads(self.rfile.read(length)))
                found = outer.answer(self.command, self.path)
                body = found.body.encode()
                self.send_response(found.status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - the base class's name

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the tests look at `asked`."""

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler, bind_and_activate=False)
        server.daemon_threads = True
        server.socket.close()
        server.socket = self._socket
        self._server = server
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


def _bound() -> socket.socket:
    """A port of ours on which nothing listens yet."""
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    return made


def is_loading(server: ContractServer, engine: Engine, plan: Plan) -> bool:
    """Whether the agent goes on waiting: the startup probe failed, and the adapter takes that for loading."""
    reply = server.ask(engine.startup_probe(plan))
    return reply.status != 200 and engine.loading(reply)


def is_ready(server: ContractServer, engine: Engine, plan: Plan) -> bool:
    return all(server.ask(probe(plan)).status == 200 for probe in (engine.startup_probe, engine.readiness_probe))


def granted(server: ContractServer, engine: Engine, plan: Plan) -> Granted:
    return engine.parse_granted([server.ask(what) for what in engine.granted_requests(plan)])


def activity(server: ContractServer, engine: Engine, plan: Plan) -> Activity:
    reply = server.ask(engine.activity_request(plan))
    return engine.parse_activity(reply.body)
