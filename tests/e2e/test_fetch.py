"""Weights from a hub, on the real daemon: fetched with progress, served, and served without the hub."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from agent.v1 import agent_pb2 as pb
from tests.gguf_factory import make_gguf
from tests.harness import PHASE, Daemon, complete, daemon
from tests.hub.server import Fault, Hub

TOKEN = "hf_canary_3c8b21"
MIB = 1024**2


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
            "org/tiny-GGUF",
            {"tiny-F16.gguf": model, "tiny-Q8_0.gguf": b"GGUF", "tiny-Q4_0.gguf": b""},
            gated="auto",
            granted={TOKEN},
        )
        yield running


@pytest.fixture
def rate() -> int:
    """Bytes a second."""
    return 0


@pytest.fixture
def node(tmp_path: Path, tiny_model: Path, hub: Hub, rate: int) -> Iterator[Daemon]:
    (tmp_path / "token").write_text(TOKEN + "\n")
    fetch = {
        "endpoint": hub.endpoint, "token_file": str(tmp_path / "token"), "bytes_per_second": rate,
        "stall_seconds": 5, "disk_reserve_bytes": 0,
    }  # fmt: skip
    yield from daemon(tmp_path, tiny_model, fetch=fetch, policy={"model_sources": ["hf", "file", "http"]})


def fetching(deployment: pb.Deployment) -> bool:
    return (
        PHASE[deployment.phase] == "fetching" and 0 < deployment.progress.done_bytes < deployment.progress.total_bytes
    )


@pytest.mark.parametrize("rate", [4 * MIB])
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


def blob(node: Daemon) -> Path:
    (found,) = (node.root / "cache/hub").glob("models--org--tiny-GGUF/blobs/*")
    return found


def wait_replaced(node: Daemon, before: pb.Deployment) -> pb.Deployment:
    """Until the next engine of it answers."""
    return node.wait_until(
        lambda now: PHASE[now.phase] == "ready" and now.instance.name != before.instance.name, timeout=40, what="again"
    )


def test_a_cache_that_is_deleted_or_changed_under_a_running_engine_costs_a_fetch_and_nothing_else(
    node: Daemon, hub: Hub, model: bytes
) -> None:
    node.start().apply(model="hf:org/tiny-GGUF:F16")
    first = node.wait(timeout=40)
    shutil.rmtree(node.root / "cache")
    assert complete(first.endpoint)  # what it has opened stays

    node.servers()[0].kill()
    second = wait_replaced(node, first)
    assert complete(second.endpoint)
    assert blob(node).read_bytes() == model
    asked = len(hub.asked("/cdn/*"))
    with blob(node).open("r+b") as file:  # in place: the engine may have mapped it, and is not asked any more
        file.seek(len(model) - 1)
        file.write(bytes([model[-1] ^ 1]))

    node.servers()[0].kill()
    assert complete(wait_replaced(node, second).endpoint)
    assert blob(node).read_bytes() == model
    assert len(hub.asked("/cdn/*")) > asked


def test_two_daemons_and_the_hubs_own_tool_share_a_cache_and_fetch_once(
    tmp_path: Path, hub: Hub, model: bytes, tiny_model: Path
) -> None:
    cache, nodes = tmp_path / "shared", []
    fetch = {"endpoint": hub.endpoint, "token_file": str(tmp_path / "token"), "disk_reserve_bytes": 0}
    (tmp_path / "token").write_text(TOKEN)
    try:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            nodes.append(Daemon(tmp_path / name, tiny_model, fetch=fetch, directories={"cache": str(cache)}).start())
        with ThreadPoolExecutor() as pool:
            theirs = pool.submit(
                hf_hub_download, "org/tiny-GGUF", "tiny-F16.gguf", cache_dir=cache / "hub", endpoint=hub.endpoint,
                token=TOKEN,
            )  # fmt: skip
            for one in nodes:
                one.apply(model="hf:org/tiny-GGUF:F16")
            assert all(complete(one.wait(timeout=40).endpoint) for one in nodes)
            assert Path(theirs.result(40)).read_bytes() == model
    finally:
        for one in nodes:
            one.cleanup()
    whole = [one for one in hub.asked("/cdn/*F16.gguf") if one.method == "GET" and "range" not in one.headers]
    assert len(whole) == 1  # others read headers
    assert [path.name for path in cache.glob("hub/*/blobs/*")] == [hashlib.sha256(model).hexdigest()]


def test_a_file_is_fetched_by_its_url(node: Daemon, hub: Hub, model: bytes) -> None:
    commit = hub.repos["org/tiny-GGUF"].refs["main"]

    node.start().apply(model=f"{hub.cdn}/cdn/org/tiny-GGUF/{commit}/tiny-F16.gguf")

    assert complete(node.wait(timeout=40).endpoint)


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("hf:org/tiny-GGUF:Q8_0", "model_corrupt", "truncated"),
        ("hf:org/tiny-GGUF:Q4_0", "model_corrupt", "tiny-Q4_0.gguf"),
        ("hf:org/none", "model_missing", "may not be seen"),
    ],
)
def test_what_cannot_be_had_fails_with_its_diagnosis(node: Daemon, reference: str, code: str, words: str) -> None:
    failed = node.start().apply(model=reference) and node.wait(phase="failed")

    assert failed.diagnosis.code == code
    assert words in failed.diagnosis.message
