"""agentctl against a real server on real Unix sockets, in this process (`invoke`) and as a program (`agentctl`)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.api.server import ApiServer
from agent.ctl.app import App
from agent.ctl.main import cli
from agent.status import DeploymentStatus, NodeStatus
from agent.supervision.service import Change
from tests.api.conftest import Background
from tests.ctl.deployments import NODE, NOW

ROOT = Path(__file__).parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., Result]


class Served(Background):
    """A server in a thread, with a node that starts empty."""

    def put(self, *deployments: DeploymentStatus) -> None:
        for deployment in deployments:
            self.do(partial(self.node.put, deployment))

    def be(self, node: NodeStatus) -> None:
        """Let the node be this one, with its devices."""
        self.node.device_list = list(node.devices)
        self.node.node = lambda: replace(node, devices=tuple(self.node.device_list))  # type: ignore[method-assign]

    def restart(self) -> None:
        """As a daemon that is replaced: streams break, the sockets are others, the node is as it was."""
        self.wait(self.server.stop(grace_seconds=0))
        self.server = self.wait(ApiServer.serve(self.control, self.readonly, self.node))

    def go_through(self, *states: DeploymentStatus) -> None:
        """Let a deployment go through `states` as soon as somebody watches."""
        asyncio.run_coroutine_threadsafe(self._go_through(states), self.loop)

    async def _go_through(self, states: tuple[DeploymentStatus, ...]) -> None:
        while not self.node.watchers:
            await asyncio.sleep(0.005)
        for state in states:
            self.node.put(state)


async def _watch_one(everything: Any, deployment: str, resume_token: str, events_only: bool) -> AsyncIterator[Change]:
    """A node tells of the deployment that was asked for, and of no other."""
    async for change in everything(deployment, resume_token, events_only):
        if change.deployment is None or deployment in {"", change.deployment.name}:
            yield change


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    running = Served(tmp_path)
    running.be(NODE)  # of our own version
    everything = running.node.watch
    running.node.watch = partial(_watch_one, everything)  # type: ignore[method-assign]
    yield running
    running.close()


@pytest.fixture
def environment() -> dict[str, str]:
    """A user with nothing: no daemon, no configuration, no colours of the person who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "VIRTUAL_ENV"}}
    return kept | {"HOME": "/nonexistent", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def agentctl(environment: dict[str, str]) -> Run:
    """Runs the program, and returns what it printed and its exit code."""

    def run(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        environ = environment | options.pop("environ", {})
        command = [sys.executable, "-m", "agent.ctl", *args]
        return subprocess.run(command, env=environ, text=True, capture_output=True, timeout=50, check=False, **options)

    return run


@pytest.fixture
def invoke(environment: dict[str, str]) -> Invoke:
    """Runs a command in this process, at the moment NOW."""

    def run(*args: str, environ: dict[str, str] | None = None, **options: Any) -> Result:
        app = App(environ=environment | (environ or {}), now=lambda: NOW)
        return CliRunner().invoke(cli, [str(arg) for arg in args], obj=app, prog_name="agentctl", **options)

    return run


@pytest.fixture
def ctl(invoke: Invoke, served: Served) -> Invoke:
    """`invoke`, with the server's control socket given."""

    def run(*args: str, **options: Any) -> Result:
        return invoke("--socket", str(served.control.path), *args, **options)

    return run
