"""What holds for each engine that a launcher of ours loads a model into: asked of Ollama's and of LM Studio's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.v1 import agent_pb2 as pb
from tests.harness import Daemon, gone, wait_true

#: In the doubles' environment: what llama.cpp says of a model that it cannot load.
UNLOADABLE = {"LOAD_FAILS": "unable to load model: unknown model architecture: 'nosuch'"}


def own_folder(deployment: pb.Deployment, node: Daemon) -> Path:
    """TMPDIR of the present instance."""
    return node.root / "state" / "instances" / deployment.instance.name.rpartition("/")[2] / "tmp"


def says_why_it_does_not_load(node: Daemon) -> None:
    failed = node.wait(phase="failed")

    assert failed.diagnosis.code == "model_unsupported"
    assert failed.diagnosis.evidence.startswith("Error: ")
    wait_true(lambda: not node.engines(), what="nothing is left")


def is_deleted_while_it_loads(node: Daemon, begun: Callable[[pb.Deployment], Path]) -> None:
    """`begun` names the file that is there once the load is under way."""
    loading = node.wait(phase="loading")
    wait_true(begun(loading).exists)

    with node.client() as client:
        client.delete_deployment("m")

    wait_true(lambda: not node.engines(), what="nothing is left")
    assert gone(loading.instance.pid)
