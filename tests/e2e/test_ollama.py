"""Deployments of Ollama: the real daemon and the real launcher, with a double of the executable (see there)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.v1 import agent_pb2 as pb
from tests.e2e.launched import UNLOADABLE, is_deleted_while_it_loads, own_folder, says_why_it_does_not_load
from tests.harness import Daemon, daemon, wait_true

DOUBLE = Path(__file__).parents[1] / "engines" / "ollama_double.py"


@pytest.fixture
def node(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    executable = tmp_path / "ollama"
    executable.write_text(f'#!/bin/sh\nexec {sys.executable} -S {DOUBLE} "$@"\n')
    executable.chmod(0o755)
    yield from daemon(tmp_path, tiny_model, engines={"ollama": {"binary": [str(executable)]}})


def apply(node: Daemon, **fields: Any) -> None:
    node.apply(**({"engine": "ollama", "limits": {"max_num_seqs": 2, "max_model_len": 128}} | fields))


def store(deployment: pb.Deployment, node: Daemon) -> Path:
    return own_folder(deployment, node) / "ollama"


def asked(deployment: pb.Deployment, node: Daemon) -> list[str]:
    return (store(deployment, node) / "requests").read_text().splitlines()


def test_it_is_ready_when_the_model_is_loaded_and_no_probe_loads_it(node: Daemon) -> None:
    apply(node.start(), environment={"LOAD_SECONDS": "1.5"})

    loading = node.wait(phase="loading")
    ready = node.wait()

    assert ready.instance.ready_time.ToNanoseconds() - loading.instance.create_time.ToNanoseconds() >= 1.5e9
    assert asked(ready, node) == ["/api/generate ''"]
    assert (ready.granted.max_model_len, ready.instance.attempt) == (128, 1)
    assert (store(ready, node) / ".ollama/id_ed25519").exists()
    (server,) = [each for each in node.engines() if each.pid == ready.instance.pid]
    kept = Path.home() / ".nv/ComputeCache"  # unlike the store, which goes with its instance
    assert server.environ()["CUDA_CACHE_PATH"] == str(kept)


def test_it_is_adopted_replaced_and_ended_as_every_engine_is(node: Daemon) -> None:
    apply(node.start())
    first = node.wait()

    node.kill()
    adopted = node.start().wait()
    assert adopted.instance.pid == first.instance.pid

    (server,) = [each for each in node.engines() if each.pid == first.instance.pid]
    server.kill()
    second = node.wait_until(lambda d: d.instance.attempt == 2 and d.phase == pb.PHASE_READY)
    assert second.previous.diagnosis.code == "killed"

    with node.client() as client:
        client.delete_deployment("m")
    wait_true(lambda: not node.engines(), what="nothing is left")


def test_a_model_that_does_not_load_ends_the_server_and_says_why(node: Daemon) -> None:
    apply(node.start(), environment=UNLOADABLE)
    says_why_it_does_not_load(node)


def test_a_deletion_in_the_middle_of_a_load_leaves_nothing(node: Daemon) -> None:
    apply(node.start(), environment={"LOAD_SECONDS": "600"})
    is_deleted_while_it_loads(node, lambda d: store(d, node) / "requests")
