"""What pulls cost the daemon: its memory while a large file comes, and how fast it answers while eight come."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from scripts._bench import rpc
from scripts._bench.fetch import MEMORY, Server, fill, served
from scripts._bench.figures import Figure, Sample, Target
from scripts._bench.load import CONCURRENCIES
from scripts._bench.place import Place, spec
from scripts._bench.processes import memory
from tests.harness import Daemon, gone, wait_true

PART = "pulls"
GIB, MIB = 1024**3, 1024**2
SIZE, QUICK_SIZE = 2 * GIB, GIB // 8
RUNS, QUICK_RUNS = 3, 1
ABOVE_IDLE = 64  # MiB
PULLS = 8
#: Bytes of each of the eight files: enough to outlast the calls, few enough to lie in memory at the same time.
EACH, QUICK_EACH = GIB // 2, GIB // 8
ROUNDS, CALLS = 7, 600
QUICK_ROUNDS, QUICK_CALLS = 1, 100
TIMES_IDLE = 3
_SAMPLE_SECONDS = 0.05
_BEGIN_SECONDS, _PULL_SECONDS = 60.0, 300.0


def measure(place: Place, *, quick: bool) -> list[Figure]:
    size, each = (QUICK_SIZE, QUICK_EACH) if quick else (SIZE, EACH)
    needed = 2 * size + PULLS * each
    if shutil.disk_usage(MEMORY).free < needed:
        sys.stderr.write(f"bench: pulls is left out: it needs {needed >> 20} MiB in {MEMORY}\n")
        return []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=MEMORY) as name:
        folder = Path(name)
        node = place.node(
            "pulls", directories={"cache": str(folder / "cache")}, policy={"model_sources": ["file", "http"]},
            fetch={"disk_reserve_bytes": 0}, artifacts={"disk_high": 1},
        ).start()  # fmt: skip
        return [
            *_memory(place, node, folder, size, QUICK_RUNS if quick else RUNS),
            *_latency(place, node, folder, each, *(QUICK_ROUNDS, QUICK_CALLS) if quick else (ROUNDS, CALLS)),
        ]


def _memory(place: Place, node: Daemon, folder: Path, size: int, runs: int) -> list[Figure]:
    fill(folder / "large", size)
    assert node.process is not None
    idle, most, child = [], [], []
    with served(place, folder / "large") as server:
        for number in range(runs):
            idle.append(memory(node.process.pid)[1])
            pull = threading.Thread(target=_pull, args=(node, f"{server.address}/{number}.gguf"))
            pull.start()
            seen = [(idle[-1], 0.0)]
            while pull.is_alive():
                seen.append((memory(node.process.pid)[1], max(map(_pss, _fetchers(node)), default=0.0)))
                time.sleep(_SAMPLE_SECONDS)
            most.append(max(each[0] for each in seen))
            child.append(max(each[1] for each in seen))
            shutil.rmtree(folder / "cache")
    (folder / "large").unlink()
    what = f"while a file of {size / GIB:g} GiB comes, at most"
    before = Sample.of(idle)
    return [
        Figure(PART, f"PSS of the agent {what}", "MiB", Sample.of(most), {"before": before},
               Target(f"at most {ABOVE_IDLE} MiB above idle", before.median + ABOVE_IDLE)),
        Figure(PART, f"PSS of the fetching process {what}", "MiB", Sample.of(child)),
    ]  # fmt: skip


def _latency(place: Place, node: Daemon, folder: Path, each: int, rounds: int, calls: int) -> list[Figure]:
    fill(folder / "each", each)
    agent = f"agent={node.control}:/agent.v1.NodeService/GetStatus"
    idle, pulling = list[dict[str, float]](), list[dict[str, float]]()
    with served(place, folder / "each") as server:
        for number in range(rounds):
            idle += rpc.load(1, calls, agent)
            with _pulled(place, node, server, [f"{number}-{index}.gguf" for index in range(PULLS)]):
                pulling += rpc.load(1, calls, agent)
                under_way = len(_fetchers(node))
            if under_way < PULLS:
                sys.stderr.write(f"bench: {PULLS - under_way} pulls of {PULLS} were over before the calls were\n")
            shutil.rmtree(folder / "cache")
    return [_figure(idle, pulling, concurrency) for concurrency in CONCURRENCIES]


def _figure(idle: list[dict[str, float]], pulling: list[dict[str, float]], concurrency: int) -> Figure:
    def sample(rows: list[dict[str, float]]) -> Sample:
        return Sample.of(row["p99"] for row in rows if row["concurrency"] == concurrency)

    before = sample(idle)
    return Figure(
        PART, f"GetStatus while {PULLS} pull, concurrency {concurrency}, p99", "ms", sample(pulling),
        {"the same, idle": before}, Target(f"at most {TIMES_IDLE} x idle", TIMES_IDLE * before.median),
    )  # fmt: skip


@contextlib.contextmanager
def _pulled(place: Place, node: Daemon, server: Server, files: list[str]) -> Iterator[None]:
    """A deployment for each, all of which are being fetched: the first byte comes when the last one has begun."""
    names = [f"m{index}" for index in range(len(files))]
    with node.client() as client:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for name, file in zip(names, files, strict=True):
                client.apply_deployment(spec(place, name, model=f"{server.address}/{file}"))
            wait_true(lambda: len(_fetchers(node)) == len(files), timeout=_BEGIN_SECONDS, what="all are fetched")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        try:
            yield
        finally:
            for name in names:
                client.delete_deployment(name)
            wait_true(lambda: not client.list_deployments(), timeout=_PULL_SECONDS, what="all are gone")


def _pull(node: Daemon, url: str) -> None:
    with node.client(timeout=_PULL_SECONDS) as client:
        for _ in client.pull_artifact(url):
            pass


def _fetchers(node: Daemon) -> list[int]:
    assert node.process is not None
    found = []
    for process in psutil.Process(node.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if "agent.artifacts.fetcher" in process.cmdline():
                found.append(process.pid)
    return found


def _pss(pid: int) -> float:
    with contextlib.suppress(OSError, KeyError):  # it ended
        return memory(pid)[1] if not gone(pid) else 0.0
    return 0.0
