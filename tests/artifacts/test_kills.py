"""kill -9 at seeded random moments: what came is never asked for again, nothing is half-visible, nothing stays locked.

FETCH_KILLS and FETCH_SEED say how often, and from where (default: 20 kills).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from agent.artifacts import cache
from agent.artifacts.job import Job
from agent.artifacts.locks import Lock
from tests.artifacts.killed_fetcher import PART

MIB = 1024**2
CONNECTIONS = 3
KILLS = int(os.environ.get("FETCH_KILLS", "20"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(60 + 2 * KILLS)]


def recorded(blobs: Path) -> dict[str, list[int]]:
    """Of each file that is being fetched: how much of each part is there, as its notes say."""
    found = {}
    for path in blobs.glob("*.parts"):
        lines = path.read_bytes()[1024:].split(b"\n")[:-1]
        found[path.name.partition(".")[0]] = [int(line) for line in lines if len(line) == 19]
    return found


class Fetchers:
    """Forks fetching processes, and kills them."""

    def __init__(self) -> None:
        argv = [sys.executable, "-m", "tests.artifacts.killed_fetcher"]
        self.server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def run(self, job: Job, seconds: float, begun: Callable[[], bool]) -> bool:
        """Whether it came to its end before it was killed, so long after it had `begun`."""
        self.server.stdin.write(job.encode())
        pid = int(self.server.stdout.readline())
        while not begun() and not select.select([self.server.stdout], [], [], 0.005)[0]:
            pass
        if not select.select([self.server.stdout], [], [], seconds)[0]:
            os.kill(pid, signal.SIGKILL)
        return int(self.server.stdout.readline()) == 0


@pytest.fixture
def fetchers() -> Iterator[Fetchers]:
    made = Fetchers()
    with made.server:
        yield made
        made.server.stdin.close()


def assert_nothing_is_half_visible(folder: cache.Folder, commit: str, names: Mapping[str, str]) -> None:
    """What is named as content is whole, and nothing else is linked."""
    whole = {path.name for path in folder.blobs.glob("*") if "." not in path.name}
    for name in whole & names.keys():
        assert hashlib.sha256((folder.blobs / name).read_bytes()).hexdigest() == name
    if folder.kept(commit, "") is None:
        assert not [path for path in folder.snapshot(commit).glob("*") if not path.exists()]


def test_no_finished_byte_comes_twice_and_no_half_file_is_visible(pulling, hub, fetchers):
    seed = int(os.environ.get("FETCH_SEED", "1"))
    chance = random.Random(seed)
    shards = {f"model-0000{n}-of-00004.safetensors": chance.randbytes(5 * MIB + n) for n in range(1, 5)}
    index = json.dumps({"weight_map": {f"t{n}": name for n, name in enumerate(shards)}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, **shards}
    commit = hub.repo("org/m", files).refs["main"]
    names = {hashlib.sha256(content).hexdigest(): name for name, content in shards.items()}
    folder = cache.repository(pulling.cache, "org/m")
    job = pulling.job("org/m", connections=CONNECTIONS, bytes_per_second=20 * MIB)
    begun, kills, refetched = 0, 0, defaultdict[str, int](int)
    while True:
        before = recorded(folder.blobs)
        asked = len(hub.requests)
        early = chance.random() < 0.2  # else when bytes come
        ended = fetchers.run(
            job, 60 if kills >= KILLS else chance.uniform(0, 0.3),
            lambda asked=asked, early=early: early or any(one.origin == "cdn" for one in hub.requests[asked:]),
        )  # fmt: skip
        kills += not ended
        begun += bool(before)

        kept = folder.kept(commit, "")
        assert_nothing_is_half_visible(folder, commit, names)
        # What was noted as there is not asked for again.
        for request in hub.requests[asked:]:
            name = request.path.rpartition("/")[2]
            blob = next((blob for blob, known in names.items() if known == name), "")
            if request.origin == "cdn" and blob in before:
                first = int(request.headers.get("range", "bytes=0-").split("=")[1].split("-")[0])
                noted = before[blob][first // PART :]  # none where it was killed while it began its notes
                if noted and first - first // PART * PART < noted[0]:
                    refetched[name] += 1
        # No lock is stuck, no promise is left.
        for path in [*pulling.cache.glob("hub/.locks/*/*.lock"), *pulling.cache.glob("reserved/*")]:
            lock = Lock(path)
            assert lock.acquire(), path
            lock.release()
        if ended and kept is not None and kills >= KILLS:
            break
        if ended and kept is not None:  # done before all kills were spent: once more
            for path in (folder.record(commit, ""), *folder.snapshot(commit).iterdir(), *folder.blobs.iterdir()):
                path.unlink()

    assert begun > KILLS / 3  # else it was killed too early to tell anything
    assert not refetched, f"seed {seed}"
    assert {file.name: (kept.path / file.name).read_bytes() for file in kept.files} == files
