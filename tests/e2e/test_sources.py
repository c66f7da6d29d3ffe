"""Weights from a container registry and from object stores, on the real daemon: served, listed, and no secret told."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.artifacts.registries import DOCKER, push
from tests.docker.parts import PASSWORD, Registry
from tests.gguf_factory import make_gguf
from tests.harness import Daemon, complete, daemon
from tests.hub.server import Fault
from tests.relay import Relay

SECRET = "canary-secret-9c41"
pytestmark = pytest.mark.skipif(shutil.which("docker-registry") is None, reason="no docker-registry is installed")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Relay]:
    """With users, and a model of half a MB."""
    model = make_gguf(tmp_path / "m.gguf", hidden=64, vocab=512, quantization="F16").read_bytes()
    server = Registry(tmp_path / "registry", users=True)
    server.start()
    try:
        push(server.port, "ai/tiny", "v1", [(f"{DOCKER}.gguf.v3", model, {}), (f"{DOCKER}.license", b"MIT", {})])
        with Relay(server.port) as relay:
            yield relay
    finally:
        server.kill()


@pytest.fixture
def node(tmp_path: Path, tiny_model: Path, registry: Relay) -> Iterator[Daemon]:
    pair = base64.b64encode(f"reader:{PASSWORD}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {f"127.0.0.1:{registry.port}": {"auth": pair}}}))
    (tmp_path / "s3").write_text(f"[default]\naws_access_key_id = AKIAEXAMPLE\naws_secret_access_key = {SECRET}\n")
    (tmp_path / "ms").write_text(SECRET)
    (tmp_path / "gs.json").write_text(json.dumps({"type": "service_account", "private_key": SECRET}))
    endpoint = f"http://127.0.0.1:{registry.port}"
    fetch = {
        "s3_endpoint": endpoint, "s3_credentials_file": str(tmp_path / "s3"), "ms_endpoint": endpoint,
        "ms_token_file": str(tmp_path / "ms"), "ollama_endpoint": endpoint,
        "gs_credentials_file": str(tmp_path / "gs.json"), "disk_reserve_bytes": 0, "stall_seconds": 5,
    }  # fmt: skip
    sources = ["file", "s3", "gs", "oci", "ollama", "ms"]
    images = {"credentials": str(tmp_path / "config.json")}
    yield from daemon(tmp_path, tiny_model, fetch=fetch, images=images, policy={"model_sources": sources})


def test_models_of_all_sources_are_served_or_refused_and_no_secret_is_told(node, registry):
    reference = f"oci:127.0.0.1:{registry.port}/ai/tiny:v1"
    secrets = [SECRET, PASSWORD, base64.b64encode(f"reader:{PASSWORD}".encode()).decode()]
    denied = b"<Error><Code>SignatureDoesNotMatch</Code><Message>canary-secret-9c41</Message></Error>"
    registry.fail(Fault("/bucket*", status=403, body=denied))
    registry.fail(Fault("/api/v1/models/*", status=403, body=SECRET.encode()))
    told, over = [], threading.Event()

    def look() -> None:
        """What others on this host can see of the processes."""
        while not over.wait(0.02):
            told.extend(" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        node.start().apply(model=reference)
        refused = {
            "s3": ("s3://bucket/m.gguf", "secret_missing"), "gs": ("gs://bucket/m.gguf", "secret_missing"),
            "ms": ("ms:org/m", "model_gated"), "ollama": ("ollama:none", "model_gated"),
        }  # fmt: skip
        for name, (model, _) in refused.items():
            node.apply(name, model=model)
        assert complete(node.wait(timeout=40).endpoint)
        for name, (_, code) in refused.items():
            assert node.wait(name, phase="failed", timeout=40).diagnosis.code == code, name
    finally:
        over.set()
        watcher.join()

    with node.client() as client:
        (artifact,) = [each for each in client.list_artifacts() if each.source == reference]
        assert (artifact.used_by, artifact.desired_by) == (["deployments/m"], ["deployments/m"])
        told += [repr(client.list_artifacts()), repr(client.list_events(limit=1000)), repr(client.get_node())]
        told += [repr(node.get(name)) for name in ("m", *refused)]
    node.kill()
    told += [node.log.read_text()]
    for folder in ("state", "logs", "cache"):
        told += [path.read_bytes().decode("latin-1") for path in (node.root / folder).rglob("*") if path.is_file()]
    with sqlite3.connect(node.root / "state/agent.db") as database:
        told += list(database.iterdump())
    assert not [text[:200] for text in told for secret in secrets if secret in text]
