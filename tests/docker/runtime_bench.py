"""A bench for the runtimes' contract (tests/runtimes/contract.py) whose instances live in containers."""

from __future__ import annotations

import gc
import signal
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.runtimes.base import Container, LaunchRequest, Mount
from agent.runtimes.docker import DockerRuntime
from tests.docker.parts import Docker, Engine, free_port
from tests.runtimes.contract import Bench, Running


@dataclass
class Told:
    """What was told of the container engine, for the condition of the node."""

    said: list[tuple[bool | None, str, str]] = field(default_factory=list)

    def __call__(self, status: bool | None, reason: str, message: str) -> None:
        self.said.append((status, reason, message))

    @property
    def status(self) -> bool | None:
        return self.said[-1][0] if self.said else None


@dataclass
class ContainerBench(Bench):
    """Shell scripts run in the instance's directory, which is mounted at its own path."""

    image: str = ""
    engine: Engine | None = None
    told: Told = field(default_factory=Told)
    opened: list[DockerRuntime] = field(default_factory=list)

    def request(self, *argv: str, environment: dict[str, str] | None = None, **limits: float) -> LaunchRequest:
        request = super().request(*argv, environment={"TMPDIR": "/tmp", **(environment or {})}, **limits)
        directory = str(request.directory)
        container = Container(self.image, "127.0.0.1", free_port(), mounts=(Mount(directory, directory, False),))
        if argv[:2] == ("/bin/sh", "-c"):
            request = replace(request, argv=("/bin/sh", "-c", f"cd {directory}\n{argv[2]}"))
        return replace(request, container=container)

    def program(self, name: str) -> str:
        return "/bin/busybox"

    def again(self) -> DockerRuntime:
        assert self.engine is not None
        self.opened.append(DockerRuntime(self.node, str(self.engine.socket), self.told))
        return self.opened[-1]

    async def close(self) -> None:
        await super().close()
        for runtime in self.opened:
            runtime.close()
        with warnings.catch_warnings():  # the SDK leaves sockets of refused connections to the garbage collector
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def make(engine: Engine, image: str, root: Path) -> ContainerBench:
    bench = ContainerBench(None, root, None, image=image, engine=engine, repeats=3, many=10)  # type: ignore[arg-type]
    bench.restarted = bench.again
    bench.runtime = bench.again()
    return bench


@contextmanager
def stopped(engine: Engine) -> Iterator[None]:
    """It hangs: its socket takes connections, and nobody answers."""
    engine.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        engine.signal(signal.SIGCONT)


@contextmanager
def immovable(engine: Engine | None, running: Running) -> Iterator[None]:
    """Its container is none that dockerd could remove: a file of it does not go."""
    assert isinstance(engine, Docker)
    file = engine.data / "containers" / running.handle.data["id"] / "held"
    file.touch()
    subprocess.run(["chattr", "+i", file], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", file], check=True)
