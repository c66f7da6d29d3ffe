"""Fetching weights over loopback: the fetching process beside curl, and hashlib over the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.artifacts import cache
from agent.artifacts.job import Job
from scripts._bench.figures import Figure, Sample, Target
from scripts._bench.place import ROOT, Place

PART = "fetch"
GIB = 1024**3
SIZE, QUICK_SIZE = 2 * GIB, GIB // 8
RUNS, QUICK_RUNS = 7, 3
#: Memory, so that no disk is measured.
MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it
HASH = "import hashlib, sys; print(hashlib.file_digest(open(sys.argv[1], 'rb', buffering=0), 'sha256').hexdigest())"


@dataclass(frozen=True, slots=True)
class Run:
    """What one process took."""

    cpu: float  # user and system seconds
    wall: float  # seconds


@dataclass(frozen=True, slots=True)
class Server:
    """That has one file."""

    address: str
    pid: int


def measure(place: Place, *, quick: bool) -> list[Figure]:
    size, runs = (QUICK_SIZE, QUICK_RUNS) if quick else (SIZE, RUNS)
    if shutil.which("curl") is None or shutil.disk_usage(MEMORY).free < 3 * size:
        sys.stderr.write(f"bench: fetch is left out: it needs curl, and {3 * size >> 20} MiB in {MEMORY}\n")
        return []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=MEMORY) as name:
        return _measure(place, Path(name), size, runs)


def _measure(place: Place, memory: Path, size: int, runs: int) -> list[Figure]:
    file = memory / "model.gguf"
    fill(file, size)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    rows: dict[str, list[Run]] = {"agent": [], "curl": [], "hashlib": []}
    with served(place, file) as server:
        url = f"{server.address}/model.gguf"
        for _ in range(runs):
            rows["curl"].append(_run(["curl", "-sS", "-o", os.devnull, url]))
            rows["hashlib"].append(_run([sys.executable, "-c", HASH, str(file)]))
            rows["agent"].append(_fetch(memory, url, digest, size))
    cpu = {who: Sample.of(run.cpu / (size / GIB) for run in found) for who, found in rows.items()}
    rate = {who: Sample.of(size / run.wall / 1e6 for run in found) for who, found in rows.items()}
    both = Sample.of(
        (curl.cpu + hashed.cpu) / (size / GIB) for curl, hashed in zip(rows["curl"], rows["hashlib"], strict=True)
    )
    slower = min(rate["curl"].median, rate["hashlib"].median)
    seconds = {who: Sample.of(run.wall / (size / GIB) for run in found) for who, found in rows.items()}
    return [
        Figure(PART, "user and system CPU, sha256 verified while it comes", "s per GiB", cpu["agent"],
               {"curl and hashlib": both, "curl to /dev/null": cpu["curl"], "hashlib": cpu["hashlib"]},
               Target("at most 1.5 x curl and hashlib", 1.5 * both.median)),
        Figure(PART, f"time to a warm file, {slower:.0f} MB/s is the slower of the others", "s per GiB",
               seconds["agent"], {"curl to /dev/null": seconds["curl"], "hashlib": seconds["hashlib"]},
               Target("at least 0.8 x the throughput of the slower", GIB / 1e6 / (0.8 * slower))),
    ]  # fmt: skip


def _fetch(memory: Path, url: str, digest: str, size: int) -> Run:
    """Into a cache of its own, where a file of this length is already: its pages are not touched for the first time."""
    root = memory / "cache"
    folder = cache.of_url(root, url)
    folder.blobs.mkdir(parents=True)
    fill(folder.blobs / f"{digest}.incomplete", size)
    job = Job(source=url, cache=str(root), kind="url", url=url, sha256=digest)
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-P", "-m", "agent.artifacts.fetcher"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(job.encode())
    process.stdin.flush()
    answer = [json.loads(line) for line in process.stdout][-1]
    run = _ended(process, began)
    process.stdin.close()
    process.stdout.close()
    assert answer["fetched"]["digest"] == f"sha256:{digest}", answer
    shutil.rmtree(root)
    return run


def _run(argv: Sequence[str]) -> Run:
    began = time.perf_counter()
    return _ended(subprocess.Popen(argv, stdout=subprocess.DEVNULL), began)


def _ended(process: subprocess.Popen[bytes], began: float) -> Run:
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.args
    return Run(used.ru_utime + used.ru_stime, time.perf_counter() - began)


def fill(path: Path, size: int) -> None:
    """With what no file system and no network makes shorter."""
    block = random.Random(1).randbytes(1024**2)
    with path.open("wb") as file:
        for number in range(size // len(block)):
            file.write(number.to_bytes(8) + block[8:])


@contextmanager
def served(place: Place, file: Path) -> Iterator[Server]:
    """By a server that answers with this file whatever is asked for."""
    with (place.root / "log").open("ab") as log:
        server = subprocess.Popen([sys.executable, "-m", "scripts._bench.file_server", str(file)],
                                  stdout=subprocess.PIPE, stderr=log, cwd=ROOT)  # fmt: skip
    assert server.stdout is not None
    try:
        with server.stdout:
            yield Server(f"http://127.0.0.1:{int(server.stdout.readline())}", server.pid)
    finally:
        server.kill()
        server.wait()
