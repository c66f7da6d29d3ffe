"""agentctl against a real daemon, where what it says depends on what a node really does."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from agent.ctl.exits import Exit
from tests.ctl.conftest import Run
from tests.harness import Daemon, complete

Ctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def node_ctl(node: Daemon, agentctl: Run) -> Ctl:
    """`agentctl` of a node that holds two deployments at most."""
    config = yaml.safe_load(node.config.read_text())
    config["policy"]["max_deployments"] = 2
    node.config.write_text(yaml.safe_dump(config))
    node.start()
    environ = {"AGENTD_SOCKET": str(node.control), "HOME": os.fspath(node.root)}
    return lambda *words: agentctl(*map(str, words), environ=environ)


def written(node: Daemon, *names: str) -> Path:
    file = node.root / "specs.yaml"
    file.write_text(yaml.safe_dump_all([node.spec(name) for name in names]))
    return file


def test_a_stopped_deployment_is_started_by_serve_and_waited_for_by_nobody(node: Daemon, node_ctl: Ctl) -> None:
    file, words = written(node, "m"), ("serve", node.model, "--name", "m", "--max-model-len", "256")
    assert node_ctl(*words).returncode == Exit.OK
    assert node_ctl("stop", "m", "--wait").returncode == Exit.OK

    waited = node_ctl("wait", "m")
    assert (waited.returncode, waited.stderr.splitlines()[1:]) == (
        Exit.PRECONDITION,
        ["error: deployment m is stopped, and is ready only after a start", "hint: `agentctl start m`"],
    )
    served = node_ctl(*words)
    assert (served.returncode, served.stderr.splitlines()[0]) == (
        Exit.OK,
        "deployment m unchanged, and started: it was stopped",
    )
    assert complete(node.get().endpoint)

    assert node_ctl("stop", "m", "--wait").returncode == Exit.OK
    applied = node_ctl("apply", "-f", file, "--wait")
    assert (applied.returncode, applied.stdout) == (Exit.PRECONDITION, "deployment m replaced\n")
    assert "hint: `agentctl start m`" in applied.stderr
    served = node_ctl(*words, "--max-num-seqs", "2")
    assert (served.returncode, served.stderr.splitlines()[0]) == (
        Exit.OK,
        "deployment m replaced, and started: it was stopped",
    )


def test_where_no_engine_runs_no_endpoint_is_shown(node: Daemon, node_ctl: Ctl) -> None:
    assert node_ctl("apply", "-f", written(node, "m"), "--wait").returncode == Exit.OK
    endpoint = node.get().endpoint
    shown = [node_ctl(*words).stdout for words in (["status", "-o", "wide"], ["describe", "m"])]
    assert all(endpoint in text and "1 x 256" in text for text in shown)
    assert node_ctl("stop", "m", "--wait").returncode == Exit.OK

    columns, row = node_ctl("get", "m", "-o", "wide").stdout.splitlines()
    described = node_ctl("describe", "m").stdout.splitlines()
    for column in ("GRANTED", "ENDPOINT", "MEMORY"):
        assert row[columns.index(column) :].lstrip().startswith("- "), column
    assert [line for line in described if line.startswith(("endpoint ", "granted "))] == []


def test_an_apply_that_ends_half_way_says_what_it_did(node: Daemon, node_ctl: Ctl) -> None:
    file = written(node, "a", "b", "c")
    done = node_ctl("apply", "-f", file)
    assert (done.returncode, done.stdout) == (Exit.PRECONDITION, "deployment a created\ndeployment b created\n")
    full = "this node already has 2 deployments, the policy's maximum"
    assert f"error: {file}, document 3 (c): {full}; applied before it: a, b\n" in done.stderr

    assert node_ctl("delete", "a", "b", "--wait").returncode == Exit.OK
    done = node_ctl("apply", "-f", file, "-o", "json")
    results = json.loads(done.stdout)["results"]
    assert [(one["deployment"]["id"], one["outcome"]) for one in results] == [
        ("a", "OUTCOME_CREATED"),
        ("b", "OUTCOME_CREATED"),
    ]
    assert json.loads(done.stderr)["error"]["message"].endswith("applied before it: a, b")


def test_a_name_that_is_right_is_not_suggested(node: Daemon, node_ctl: Ctl) -> None:
    assert node_ctl("apply", "-f", written(node, "m"), "--wait").returncode == Exit.OK
    for words in (["--previous"], ["--instance", "nope"]):
        done = node_ctl("logs", "m", *words)
        assert done.returncode == Exit.NOT_FOUND
        assert "did you mean" not in done.stderr
        assert "hint: " in done.stderr
