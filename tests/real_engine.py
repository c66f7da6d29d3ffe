"""Running a real engine by its adapter's own command, for tests that hold the adapter's promises against it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.engines.base import Activity, Engine, HttpReply, HttpRequest
from agent.hardware import host
from agent.models.profiles import Profiles
from agent.planning.plan import Plan
from agent.planning.planner import plan
from agent.planning.request import Option, PlanRequest
from agent.settings import Policy
from agent.spec import parse_spec
from agent.status import ExitStatus
from tests.harness import free_port

DEADLINE = 40.0


async def planned(engine: Engine, binary: str, model: Path, **fields: Any) -> Plan:
    """A plan for this machine's CPU."""
    located = engine.locate([binary])
    assert located is not None
    answer = plan(
        PlanRequest(
            spec=parse_spec({"name": "d", "model": f"file:{model}", "engine": engine.name} | fields),
            generation=1,
            options=(Option(await Profiles().profile(model), f"file:{model}"),),
            inventory=host.inventory(),
            policy=Policy(),
            engines={engine.name: engine},
            located={engine.name: located},
        )
    )
    assert isinstance(answer, Plan), answer
    return answer


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def send(self, request: HttpRequest, timeout: float = DEADLINE) -> HttpReply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(request.method, request.path, request.body or None)
            reply = connection.getresponse()
            return HttpReply(reply.status, reply.read().decode())
        except (ConnectionError, TimeoutError):
            return HttpReply(0, "")
        finally:
            connection.close()

    def complete(self, **fields: Any) -> HttpReply:
        body = {"model": "d", "prompt": "hello", "max_tokens": 4} | fields
        return self.send(HttpRequest("POST", "/v1/completions", json.dumps(body)))

    def activity(self, engine: Engine, chosen: Plan) -> Activity:
        return engine.parse_activity(self.send(engine.activity_request(chosen)).body)

    def end(self) -> ExitStatus:
        code = self.process.wait(DEADLINE)
        return ExitStatus(signal=-code) if code < 0 else ExitStatus(code=code)


@contextmanager
def launched(engine: Engine, chosen: Plan, folder: Path, port: int | None = None) -> Iterator[Running]:
    """The plan's own command."""
    port, log = port or free_port(), folder / "log"
    command = engine.command(chosen, "127.0.0.1", port)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), **command.environment}
    with log.open("wb") as output:
        process = subprocess.Popen(command.argv, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment)
    try:
        yield Running(process, port, log)
    finally:
        process.kill()
        process.wait(DEADLINE)


@contextmanager
def running(engine: Engine, chosen: Plan, folder: Path) -> Iterator[Running]:
    """Ready; until then every answer to the startup probe must mean "loading"."""
    with launched(engine, chosen, folder) as started:
        end = time.monotonic() + DEADLINE
        while (reply := started.send(engine.startup_probe(chosen))).status != 200:
            assert engine.loading(reply), reply
            assert started.process.poll() is None, started.log.read_text()
            assert time.monotonic() < end, started.log.read_text()
            time.sleep(0.02)
        yield started


def moved(chosen: Plan, old: Path, new: Path) -> Plan:
    """The same plan for a copy of its model: a damaged one is refused before it is planned."""
    return Plan.from_json(chosen.to_json().replace(str(old), str(new)))
