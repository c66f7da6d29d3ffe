"""What a gateway forwards to follows what is deployed. Its proxy is one that never comes up: only its file is looked at
here, and tests/real_litellm has the rest.
"""

from __future__ import annotations

import json
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Daemon, daemon, gone, wait_true

NO_LIMITS = {"max_num_seqs": None, "max_model_len": None, "threads": None}


@pytest.fixture
def node(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    """An environment with something that calls itself LiteLLM and hangs while it is imported."""
    environment = tmp_path / "venv"
    venv.EnvBuilder(symlinks=True).create(environment)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment), "platbase": str(environment)}))
    (packages / "uvicorn.py").write_text("import time\ntime.sleep(1000)\n")
    (packages / "litellm-1.0.dist-info").mkdir()
    (packages / "litellm-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: litellm\nVersion: 1.0\n")
    binary = [str(environment / "bin" / "python3")]
    for one in daemon(tmp_path, tiny_model, engines={"litellm": {"binary": binary}}):
        yield one.start()


def routes(node: Daemon) -> list[tuple[str, str]]:
    """Names and back ends, in their order."""
    (file,) = node.root.glob("state/instances/gate-*/litellm.yaml")
    entries: list[dict[str, Any]] = json.loads(file.read_text())["model_list"]
    return [(each["model_name"], each["litellm_params"]["api_base"]) for each in entries]


def test_it_follows_what_is_deployed_and_a_crash_changes_nothing(node: Daemon) -> None:
    gate = node.root / "two"
    gate.touch()
    node.apply("gate", model="gateway:two,one", engine="litellm", limits=NO_LIMITS)
    node.apply("one")
    one = f"{node.wait('one').endpoint}/v1"
    wait_true(lambda: list(node.root.glob("state/instances/gate-*/litellm.yaml")))
    wait_true(lambda: routes(node) == [("one", one), ("gate", one)])

    node.apply("two", served_name="org/two", environment={"GATE": str(gate)})
    two = f"{node.wait('two').endpoint}/v1"
    wait_true(lambda: routes(node) == [("org/two", two), ("one", one), ("gate", two)])
    (file,) = node.root.glob("state/instances/gate-*/litellm.yaml")
    written = file.stat().st_mtime_ns

    gate.unlink()  # its replacement waits for it
    (server,) = node.servers("two")
    server.kill()
    wait_true(lambda: gone(server.pid))
    node.wait("two", phase="loading")
    node.kill()
    node.start()  # the new agent knows it from the records
    node.wait("one")
    gate.touch()
    node.wait("two")
    with node.client() as client:
        client.stop_deployment("one")
    node.wait("one", phase="stopped")
    wait_true(lambda: routes(node) == [("org/two", two), ("gate", two)])

    told = ["forwards to one", "forwards to two, one", "forwards to two"]
    wait_true(lambda: [each.message for each in node.events("gate") if each.reason == "GatewayConfigured"][-3:] == told)
    assert written != file.stat().st_mtime_ns
    assert file.stat().st_mode & 0o777 == 0o600
