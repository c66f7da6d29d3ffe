"""One container engine for all tests here, and one machine for each release of systemd that they look at."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.machine import PREFIX, SECRET, Docker, Machine, NoEngine, Serving

#: Debian 12 has systemd 252, which knows neither DelegateSubgroup= nor RestartSteps=; Debian 13 has 257.
RELEASES = ("bookworm", "trixie")

#: Who is in `operators` may use the control socket.
CONFIG = """
api: {control: {group: operators, mode: "0660"}}
policy: {host_memory_reserve_bytes: 0}
"""
USERS = ("g operators -", "u operator -", "m operator operators", "u visitor -")


def unavailable(reason: str) -> None:
    """Skip; or fail, for who asked for these tests by name."""
    (pytest.fail if os.environ.get("REQUIRE_SYSTEMD") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def docker() -> Iterator[Docker]:
    engine = Docker(Path(tempfile.mkdtemp(prefix="agentd-")))
    try:
        engine.start()
        yield engine
    except NoEngine as reason:
        unavailable(f"no machine with systemd: {reason}")
    finally:
        engine.stop()
    assert (engine.groups(), engine.mounts()) == ([], [])


@pytest.fixture(scope="module", params=RELEASES)
def machine(request: pytest.FixtureRequest, docker: Docker, tiny_model: Path) -> Iterator[Machine]:
    """A machine with agentd installed as an administrator would, and a deployment on it."""
    release = request.param
    if Path("/usr") == PREFIX and platform.freedesktop_os_release().get("VERSION_CODENAME") != release:
        pytest.skip(f"{release} has another Python than this virtual environment, which is the distribution's")
    node = Machine(docker, release, tiny_model.parent)
    try:
        node.boot()
        node.run("systemd-sysusers", "--inline", *USERS)
        node.write("/etc/llm-node-agent/agentd.yaml", CONFIG)
        node.write("/etc/llm-node-agent/token", SECRET)
        node.install()
        node.systemctl("start", "agentd")
        node.apply("m", tiny_model)
        yield node
    finally:
        node.remove()


@pytest.fixture
def serving(machine: Machine) -> Serving:
    """That deployment, ready, on a running agent: whatever the test before left."""
    machine.systemctl("start", "agentd")
    return machine.serving("m")
