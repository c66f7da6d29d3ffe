"""From the exec of agentd to READY=1, as systemd would see it: with an empty store, and with stored deployments."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scripts._bench.figures import Figure, Sample, Target
from scripts._bench.place import Place, milliseconds_since, spec
from tests.harness import PHASE, Daemon, wait_true

PART = "startup"
STORED = 50
RUNS, QUICK_RUNS = 11, 3
READY_SECONDS = 60.0

#: What the agent stands on: nothing that is written in Python with these can start sooner.
IMPORTS = "import grpc.aio, pydantic, structlog"


class Notified:
    """The socket of NOTIFY_SOCKET, as the service manager owns it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(READY_SECONDS)

    def wait_ready(self) -> None:
        """Raises `TimeoutError`."""
        while b"READY=1" not in self._socket.recv(4096):
            pass

    def drop_waiting(self) -> None:
        """What an earlier process said is not the next one's."""
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(4096)
        self._socket.settimeout(READY_SECONDS)

    def close(self) -> None:
        self._socket.close()


@contextmanager
def notified(place: Place) -> Iterator[Notified]:
    here = Notified(place.root / f"notify-{time.monotonic_ns()}")
    os.environ["NOTIFY_SOCKET"] = str(here.path)
    try:
        yield here
    finally:
        del os.environ["NOTIFY_SOCKET"]
        here.close()


def start_until_ready(node: Daemon, here: Notified) -> float:
    """Milliseconds."""
    here.drop_waiting()
    began = time.monotonic_ns()
    node.start(wait=False)
    here.wait_ready()
    return milliseconds_since(began)


def floor(place: Place, here: Notified) -> float:
    """Milliseconds until a Python that only imports says READY=1 in the same way."""
    here.drop_waiting()
    say = "import os, socket; socket.socket(1, 2).sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])"
    began = time.monotonic_ns()
    process = place.spawn(python(f"{IMPORTS}; {say}"))
    here.wait_ready()
    took = milliseconds_since(began)
    process.wait()
    return took


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def measure(place: Place, *, quick: bool) -> list[Figure]:
    full = place.node("stored")
    _store_deployments(place, full)
    imports: list[float] = []
    empty: list[float] = []
    stored: list[float] = []
    with notified(place) as here:
        for run in range(QUICK_RUNS if quick else RUNS):
            imports.append(floor(place, here))
            for node, times in ((place.node(f"empty-{run}"), empty), (full, stored)):
                times.append(start_until_ready(node, here))
                node.stop()
    bare, nothing = {"bare imports": Sample.of(imports)}, Sample.of(empty)
    more = Target("at most 0.4 s more than with none", nothing.median + 400)
    return [
        Figure(PART, "exec to READY=1, empty store", "ms", nothing, bare, Target("at most 0.6 s", 600)),
        Figure(PART, f"exec to READY=1, {STORED} stored deployments", "ms", Sample.of(stored), bare, more),
    ]


def _store_deployments(place: Place, node: Daemon) -> None:
    """Applied and stopped: what counts here is what is read and made at start, not what runs."""
    node.start()
    with node.client() as client:
        for number in range(STORED):
            client.apply_deployment(spec(place, f"m{number}"))
            client.stop_deployment(f"m{number}")
        wait_true(lambda: all(PHASE[each.phase] == "stopped" for each in client.list_deployments()), READY_SECONDS)
    node.stop()
