"""Deployments of LM Studio: the real daemon and the real launcher, with a double of llmster and `lms` (see there)."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.v1 import agent_pb2 as pb
from tests.e2e.launched import UNLOADABLE, is_deleted_while_it_loads, own_folder, says_why_it_does_not_load
from tests.engines.lm_studio_double import install
from tests.harness import Daemon, daemon, gone, wait_true

QUICK = {"period_seconds": 0.5, "timeout_seconds": 0.4}


@pytest.fixture
def lms(tmp_path: Path) -> Path:
    """An operator's own installation, that the node uses, too. It was never started: it has all it brought along."""
    return install(tmp_path / "operator", "llama.cpp-linux-x86_64-nvidia-cuda12-avx2-2.31.2")


@pytest.fixture
def node(tmp_path: Path, tiny_model: Path, lms: Path) -> Iterator[Daemon]:
    yield from daemon(tmp_path, tiny_model, engines={"lm-studio": {"binary": [str(lms)]}})


def apply(node: Daemon, **fields: Any) -> None:
    node.apply(**({"engine": "lm-studio", "limits": {"max_num_seqs": 2, "max_model_len": 128}} | fields))


def home(deployment: pb.Deployment, node: Daemon) -> Path:
    return own_folder(deployment, node) / "lms" / ".lmstudio"


def post(deployment: pb.Deployment, path: str, body: dict[str, object]) -> str:
    data = json.dumps({"model": "m", **body}).encode()
    request = urllib.request.Request(deployment.endpoint + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return str(reply.read().decode())


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below it, with when and what."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in files}


def test_it_is_ready_when_the_model_is_loaded_and_serves_nothing_else(node: Daemon, lms: Path) -> None:
    before = tree(lms.parent.parent)
    apply(node.start(), environment={"LOAD_SECONDS": "1", "OWN_SETTINGS": "1"})

    loading = node.wait(phase="loading")
    ready = node.wait()

    assert ready.instance.ready_time.ToNanoseconds() - loading.instance.create_time.ToNanoseconds() >= 1e9
    assert (ready.granted.max_model_len, ready.granted.max_num_seqs, ready.instance.attempt) == (128, 2, 1)
    assert not (home(ready, node) / "requests").exists()
    assert json.loads(post(ready, "/v1/completions", {"prompt": "a"}))["choices"][0]["text"] == "b"
    assert '"one "' in post(ready, "/v1/chat/completions", {"messages": [], "stream": True})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        post(ready, "/v1/completions", {"model": "another", "prompt": "a"})
    assert (home(ready, node) / "models/agent/model/model.gguf").samefile(node.model)
    assert tree(lms.parent.parent) == before


def test_it_is_adopted_replaced_and_ended_with_what_leads_sessions_of_its_own(node: Daemon) -> None:
    apply(node.start())
    first = node.wait()

    node.kill()
    adopted = node.start().wait()
    assert adopted.instance.pid == first.instance.pid

    (worker,) = [each for each in node.engines() if "time.sleep(1000)" in " ".join(each.cmdline())]
    (llmster,) = [each for each in node.engines() if each.pid == first.instance.pid]
    llmster.kill()
    second = node.wait_until(lambda d: d.instance.attempt == 2 and d.phase == pb.PHASE_READY)
    assert second.previous.diagnosis.code == "killed"
    assert gone(worker.pid)

    with node.client() as client:
        client.delete_deployment("m")
    wait_true(lambda: not node.engines(), what="nothing is left")


def test_a_model_that_does_not_load_ends_the_daemon_and_says_why(node: Daemon) -> None:
    apply(node.start(), environment=UNLOADABLE)
    says_why_it_does_not_load(node)


def test_a_deletion_in_the_middle_of_a_load_leaves_nothing(node: Daemon) -> None:
    apply(node.start(), environment={"LOAD_SECONDS": "600"})
    is_deleted_while_it_loads(node, lambda d: home(d, node).parent / "load.log")


class TestBesideAnOperatorsOwn:
    """Which runs when the deployment comes, in the operator's home."""

    @pytest.fixture
    def operators(self, lms: Path) -> Iterator[subprocess.Popen[bytes]]:
        # Not by `lms daemon up`: that takes any daemon on this host, and another test may have one.
        (llmster,) = lms.parent.parent.glob("llmster/*/llmster")
        with subprocess.Popen([llmster], env=self.environment(lms)) as process:
            wait_true((lms.parent.parent / ".internal" / "http-server.json").exists)
            yield process
            process.kill()

    def environment(self, lms: Path) -> dict[str, str]:
        return {"HOME": str(lms.parents[2]), "PATH": os.environ["PATH"]}

    def ask(self, lms: Path, *arguments: str) -> Any:
        command = [str(lms), *arguments, "--json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, env=self.environment(lms)).stdout)

    def test_one_that_hangs_is_replaced_and_the_operators_is_left_alone(
        self, node: Daemon, lms: Path, operators: subprocess.Popen[bytes]
    ) -> None:
        apply(node.start(), probes={"readiness": QUICK, "liveness": QUICK})
        first = node.wait()
        assert first.instance.pid != operators.pid

        (home(first, node) / "hang").touch()

        second = node.wait_until(lambda d: d.instance.attempt == 2 and d.phase == pb.PHASE_READY)
        assert second.previous.diagnosis.code == "unresponsive"
        assert self.ask(lms, "ls") == []
        assert self.ask(lms, "daemon", "status")["pid"] == operators.pid

    def test_an_lms_that_cannot_be_kept_from_it_loads_nothing(
        self, node: Daemon, lms: Path, operators: subprocess.Popen[bytes]
    ) -> None:
        apply(node.start(), environment={"OLD_LMS": "1"})

        failed = node.wait(phase="failed")

        assert (failed.diagnosis.code, "lms daemon update" in failed.diagnosis.hint) == ("binary_missing", True)
        assert (self.ask(lms, "ls"), operators.poll()) == ([], None)
        wait_true(lambda: not node.engines(), what="nothing is left")
