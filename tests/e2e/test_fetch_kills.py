"""kill -9 of agentd while several pulls are under way, and a disk that fills: what came stays, and nothing is stuck.

FETCH_KILLS and FETCH_FILLS say how often, FETCH_SEED from where.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest

from agent.artifacts.locks import Lock
from agent.errors import AgentError
from tests.gguf_factory import make_gguf
from tests.harness import PHASE, Daemon, complete, daemon, gone, wait_true
from tests.hub.server import Hub, Request
from tests.small_disk import small_disk

MIB = 1024**2
KILLS, FILLS = int(os.environ.get("FETCH_KILLS", "2")), int(os.environ.get("FETCH_FILLS", "3"))
SEED = int(os.environ.get("FETCH_SEED", "1"))
RATE = 8 * MIB  # bytes a second, of all pulls together
#: Seconds that each life of the daemon fetches for, about.
LIFE = 0.4
NAMES = ("one", "two", "three")
#: What a plan reads of a file that is not here, whole: its header.
HEADER = f"bytes=0-{2 * MIB - 1}"

pytestmark = pytest.mark.chaos


def contents(tmp_path: Path, size: int) -> dict[str, bytes]:
    """Models that engines load, each of them about as long; what follows the tensors is nothing to them."""
    head, chance = make_gguf(tmp_path / "m.gguf", hidden=256, vocab=4096, quantization="F16").read_bytes(), random
    return {name: head + chance.Random(name).randbytes(max(0, size - len(head)) + 1000) for name in NAMES}


def offer(hub: Hub, models: Mapping[str, bytes]) -> None:
    for name, content in models.items():
        hub.repo(f"org/{name}-GGUF", {f"{name}-F16.gguf": content})


def reference(name: str) -> str:
    return f"hf:org/{name}-GGUF:F16"


def fetching(node: Daemon) -> list[psutil.Process]:
    assert node.process is not None
    found = []
    for child in psutil.Process(node.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if "agent.artifacts.fetcher" in child.cmdline():
                found.append(child)
    return found


def noted(cache: Path) -> dict[str, tuple[int, list[int]]]:
    """Of each content that is on its way: how long its parts are, and how much of each is there."""
    found = {}
    for path in cache.glob("hub/*/blobs/*.parts"):
        notes = path.read_bytes()
        if notes[1024:]:  # else it was killed while it began them
            counts = [int(line) for line in notes[1024:].split()]
            found[path.name.partition(".")[0]] = (json.loads(notes[:1024])["part"], counts)
    return found


def twice(requests: Sequence[Request], before: Mapping[str, tuple[int, list[int]]], digests: Mapping[str, str]) -> int:
    """Bytes that were noted as there, and asked for all the same."""
    bytes_again = 0
    for request in requests:
        part, counts = before.get(digests.get(request.path.rpartition("/")[2], ""), (0, []))
        asked = request.headers.get("range", "bytes=0-")
        if request.origin == "cdn" and part and asked != HEADER:
            first = int(asked.split("=")[1].split("-")[0])
            bytes_again += max(0, counts[first // part] - first % part)
    return bytes_again


def busy_or_done(node: Daemon) -> bool:
    """Whether a pull is under way, or no deployment wants one any more."""
    with node.client() as client:
        wanting = [one for one in client.list_deployments() if PHASE[one.phase] in {"pending", "planning", "fetching"}]
    return bool(fetching(node)) or not wanting


def there(cache: Path) -> int:
    """Bytes of the one that is on its way."""
    return sum(sum(counts) for _, counts in noted(cache).values())


def pull(node: Daemon, name: str, ends: list[AgentError | None]) -> None:
    try:
        with node.client(timeout=50) as client:
            for _ in client.pull_artifact(reference(name)):
                pass
        ends.append(None)
    except AgentError as error:
        ends.append(error)


def assert_sound(cache: Path) -> None:
    """While nobody fetches: contents are what their names say, links lead to contents, nothing is held or promised."""
    for blob in cache.glob("hub/*/blobs/*"):
        if "." not in blob.name:
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    assert all(link.exists() for link in cache.glob("hub/*/snapshots/*/*"))
    for path in (*cache.glob("hub/.locks/*/*.lock"), *cache.glob("reserved/*")):
        lock = Lock(path)
        # A process that is seen to have ended may have threads that are still ending, and hold its files so long.
        wait_true(lock.acquire, what=f"{path} is held by nobody who lives")
        lock.release()


@pytest.mark.timeout(120 + 15 * KILLS)
def test_agentd_is_killed_while_pulls_are_under_way_and_all_go_on_where_they_were(tmp_path: Path) -> None:
    chance, cache = random.Random(SEED), tmp_path / "cache"
    models = contents(tmp_path, int(KILLS * LIFE * RATE / len(NAMES)))
    digests = {f"{name}-F16.gguf": hashlib.sha256(content).hexdigest() for name, content in models.items()}
    again = amid = asked = 0
    before = noted(cache)
    with Hub() as hub:
        offer(hub, models)
        fetch = {"endpoint": hub.endpoint, "bytes_per_second": RATE, "disk_reserve_bytes": 0}
        for node in daemon(tmp_path, tmp_path / "m.gguf", fetch=fetch):
            node.start()
            for name in NAMES:
                node.apply(name, model=reference(name))
            for _ in range(KILLS):
                if chance.random() < 0.8:  # else at any moment since the start
                    wait_true(partial(busy_or_done, node), what="pulls are under way", timeout=60)
                time.sleep(chance.uniform(0, 2 * LIFE))
                left = fetching(node)
                node.kill()
                wait_true(lambda left=left: all(gone(each.pid) for each in left), what="no fetcher outlives it")
                amid += bool(left)
                again += twice(hub.requests[asked:], before, digests)
                assert not again, f"seed {SEED}: bytes that were there and were asked for again"
                assert_sound(cache)
                before, asked = noted(cache), len(hub.requests)
                node.start()
            for name, content in models.items():
                ready = node.wait(name, timeout=60 + len(content) * len(NAMES) / RATE)
                assert complete(ready.endpoint)
            assert {path.name for path in cache.glob("hub/*/blobs/*")} == set(digests.values())
            assert [path.name for path in (cache / "reserved").iterdir()] == ["lock"]
            assert_sound(cache)
    again += twice(hub.requests[asked:], before, digests)
    assert amid > KILLS / 3  # else it was killed too early or too late to tell anything
    assert not again, f"seed {SEED}: bytes that were there and were asked for again"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "cache", "16m") as cache:
        yield cache


@pytest.mark.timeout(60 + 15 * FILLS)
def test_the_disk_fills_at_any_moment_of_a_pull_and_the_next_one_goes_on(tmp_path: Path, small: Path) -> None:
    chance, cache, stranger = random.Random(SEED), small, small / "stranger"
    models, filled = contents(tmp_path, 0), 0
    name = NAMES[0]
    with Hub() as hub:
        offer(hub, models)
        fetch = {"endpoint": hub.endpoint, "bytes_per_second": 12 * MIB, "disk_reserve_bytes": 0}
        marks = {"disk_high": 1, "disk_low": 1}
        for node in daemon(tmp_path, tmp_path / "m.gguf", fetch=fetch, artifacts=marks):
            node.start()
            for _ in range(FILLS):
                ends: list[AgentError | None] = []

                had = there(cache)
                thread = threading.Thread(target=pull, args=(node, name, ends))
                thread.start()
                due = had + chance.uniform(0, len(models[name]) - had)
                wait_true(lambda due=due, ends=ends: ends or there(cache) >= due, timeout=30, what="on its way")
                with pytest.raises(OSError, match="No space left"), stranger.open("wb", buffering=0) as file:
                    while file.write(bytes(64 * 1024)):
                        pass
                thread.join(40)
                assert_sound(cache)
                stranger.unlink()
                filled += ends[0] is not None
                if ends[0] is not None:
                    assert "disk_full" in ends[0].message
                    assert ends[0].hint
                else:
                    with node.client() as client:
                        client.delete_artifact(reference(name))
            with node.client() as client:
                for message in client.pull_artifact(reference(name)):
                    last = message
            assert last.artifact.source == reference(name)
            assert_sound(cache)
            assert [path.name for path in (cache / "reserved").iterdir()] == ["lock"]
    assert filled
