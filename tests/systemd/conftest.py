"""One container engine for all tests here, and one machine for each release of systemd that they look at."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.machine import PREFIX, Docker, Machine, NoEngine, Serving

#: Debian 12 has systemd 252, which knows neither DelegateSubgroup= nor RestartSteps=; Debian 13 has 257.
RELEASES = ("bookworm", "trixie")

#: What the tests deploy: with a secret, and with limits that the kernel may or may not enforce.
SECRET = "not-for-the-journal-4711"
SPEC = """
name: m
model: file:{model}
limits: {{max_num_seqs: 1, max_model_len: 256, threads: 1, memory_bytes: 1GiB, pids: 100}}
secrets: {{ENGINE_TOKEN: {{file: /etc/llm-node-agent/token}}}}
"""
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
    """A machine with agentd installed as an administrator would, and started."""
    release = request.param
    if Path("/usr") == PREFIX and platform.freedesktop_os_release().get("VERSION_CODENAME") != release:
        pytest.skip(f"{release} has another Python than this virtual environment, which is the distribution's")
    node = Machine(docker, release, tiny_model.parent)
    try:
        node.boot()
        node.run("systemd-sysusers", "--inline", *USERS)
        node.write("/etc/llm-node-agent/agentd.yaml", CONFIG)
        node.write("/etc/llm-node-agent/token", SECRET)
        node.write("/root/m.yaml", SPEC.format(model=tiny_model))
        node.install()
        node.systemctl("start", "agentd")
        yield node
    finally:
        node.remove()


@pytest.fixture
def serving(machine: Machine) -> Serving:
    """The deployment, ready, on a running agent: whatever the test before it left."""
    machine.systemctl("start", "agentd")
    machine.run("/opt/llm-node-agent/bin/agentctl", "apply", "-f", "/root/m.yaml")
    return machine.serving()
