"""Weights from a hub, on the real daemon: fetched with progress, served, served without the hub, and through kills."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agent.v1 import agent_pb2 as pb
from tests.gguf_factory import make_gguf
from tests.harness import PHASE, Daemon, complete, daemon, wait_true
from tests.hub.server import Fault, Hub

TOKEN = "hf_canary_3c8b21"
MIB = 1024**2
BEFORE = {"pending", "planning", "fetching"}
KILLS = int(os.environ.get("FETCH_KILLS", "2"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """About 6 MB: long enough on the way to be seen."""
    path = make_gguf(tmp_path_factory.mktemp("model") / "m.gguf", hidden=256, vocab=4096, quantization="F16")
    return path.read_bytes()


@pytest.fixture
def hub(model: bytes) -> Iterator[Hub]:
    with Hub() as running:
        running.tokens.add(TOKEN)
        running.repo(
            "org/tiny-GGUF", {"tiny-F16.gguf": model, "tiny-Q8_0.gguf": b"GGUF"}, gated="auto", granted={TOKEN}
        )
        yield running


@pytest.fixture
def node(tmp_path: Path, tiny_model: Path, hub: Hub) -> Iterator[Daemon]:
    (tmp_path / "token").write_text(TOKEN + "\n")
    fetch = {
        "endpoint": hub.endpoint, "token_file": str(tmp_path / "token"), "bytes_per_second": 4 * MIB,
        "stall_seconds": 5, "disk_reserve_bytes": 0,
    }  # fmt: skip
    yield from daemon(tmp_path, tiny_model, fetch=fetch, policy={"model_sources": ["hf", "file", "http"]})


def fetching(deployment: pb.Deployment) -> bool:
    return (
        PHASE[deployment.phase] == "fetching" and 0 < deployment.progress.done_bytes < deployment.progress.total_bytes
    )


def fetchers(node: Daemon) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if "agent.artifacts.fetcher" in (process.info["cmdline"] or [])
        and str(node.root) in (process.info["environ"] or {}).get("HF_HOME", "")
    ]


def test_a_model_is_fetched_served_and_served_again_without_its_hub(node: Daemon, hub: Hub, model: bytes) -> None:
    node.start().apply(model="hf:org/tiny-GGUF:F16")
    seen = node.wait_until(fetching, what="on its way")
    assert seen.progress.total_bytes == len(model)
    ready = node.wait(timeout=40)
    assert complete(ready.endpoint)
    (blob,) = (node.root / "cache/hub").glob("models--org--tiny-GGUF/blobs/*")
    assert blob.read_bytes() == model
    assert str(blob.parent.parent) in " ".join(node.servers()[0].cmdline())
    asked = len(hub.requests)
    hub.fail(Fault("*", status=503, body=b""))

    with node.client() as client:
        client.stop_deployment("m")
    node.wait(phase="stopped")
    node.kill()
    node.start()
    with node.client() as client:
        client.start_deployment("m")
    node.wait()

    assert len(hub.requests) == asked
    everything = [node.log.read_bytes(), repr(node.events()).encode(), repr(node.get()).encode()]
    everything += [path.read_bytes() for path in (node.root / "state").rglob("*") if path.is_file()]
    everything += [path.read_bytes() for path in (node.root / "logs").rglob("*") if path.is_file()]
    assert not [text[:200] for text in everything if TOKEN.encode() in text]
    with sqlite3.connect(node.root / "state/agent.db") as database:
        assert TOKEN not in "\n".join(database.iterdump())


@pytest.mark.chaos
@pytest.mark.timeout(60 + 4 * KILLS)
def test_the_daemon_is_killed_while_it_fetches_and_goes_on_where_it_was(node: Daemon, hub: Hub, model: bytes) -> None:
    chance = random.Random(int(os.environ.get("FETCH_SEED", "1")))
    node.start().apply(model="hf:org/tiny-GGUF:F16")
    most = 0
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.1, 1.0))
        left = fetchers(node)
        node.kill()
        wait_true(lambda left=left: not any(process.is_running() for process in left), what="no fetcher outlives it")
        notes = [*(node.root / "cache/hub").glob("*/blobs/*.parts")]
        counts = [int(line) for path in notes for line in path.read_bytes()[1024:].split()]
        asked = len(hub.requests)
        node.start()
        most = max(most, sum(counts))
        wait_true(
            lambda asked=asked: len(hub.requests) > asked or PHASE[node.get().phase] not in BEFORE, what="it goes on"
        )

    node.wait(timeout=40)
    starts = [request.headers.get("range", "bytes=0-") for request in hub.asked("/cdn/*")]
    begun = [int(each.split("=")[1].split("-")[0]) for each in starts]
    assert begun == sorted(begun)
    assert most == 0 or begun[-1] > 0
    assert not [*(node.root / "cache").rglob("*.incomplete*")]
    assert [path.name for path in (node.root / "cache/reserved").iterdir()] == ["lock"]


def test_a_file_is_fetched_by_its_url(node: Daemon, hub: Hub, model: bytes) -> None:
    commit = hub.repos["org/tiny-GGUF"].refs["main"]

    node.start().apply(model=f"{hub.cdn}/cdn/org/tiny-GGUF/{commit}/tiny-F16.gguf")

    assert complete(node.wait(timeout=40).endpoint)


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("hf:org/tiny-GGUF:Q8_0", "model_corrupt", "truncated"),
        ("hf:org/none", "model_missing", "may not be seen"),
    ],
)
def test_what_cannot_be_had_fails_with_its_diagnosis(node: Daemon, reference: str, code: str, words: str) -> None:
    failed = node.start().apply(model=reference) and node.wait(phase="failed")

    assert failed.diagnosis.code == code
    assert words in failed.diagnosis.message
