"""Latency of GetStatus while eight instances serve, against an empty grpc.aio echo; the two take turns."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from scripts._bench import echo
from scripts._bench.figures import Figure, Sample, Target
from scripts._bench.load import CONCURRENCIES
from scripts._bench.place import ROOT, Place, serve
from tests.harness import wait_true

PART = "rpc"
DEPLOYMENTS = 8
ROUNDS, CALLS = 7, 3000
QUICK_ROUNDS, QUICK_CALLS = 3, 1000
LOAD_SECONDS = 300.0


def measure(place: Place, *, quick: bool) -> list[Figure]:
    node = place.node("rpc").start()
    serve(place, node, DEPLOYMENTS)
    path = place.root / "echo.sock"
    place.spawn([sys.executable, "-m", "scripts._bench.echo", str(path)])
    wait_true(path.exists, what="the echo listens")
    agent = f"agent={node.control}:/agent.v1.NodeService/GetStatus"
    rounds, calls = (QUICK_ROUNDS, QUICK_CALLS) if quick else (ROUNDS, CALLS)
    results = load(rounds, calls, agent, f"echo={path}:/{echo.SERVICE}/{echo.METHOD}")
    with node.client() as client:
        size = client.get_status().ByteSize() / 1024
    figures = [_figure(results, concurrency, quantile) for concurrency in CONCURRENCIES for quantile in ("p50", "p99")]
    return [*figures, Figure(PART, "size of the answer", "KiB", Sample.of([size]))]


def load(rounds: int, calls: int, *targets: str) -> list[dict[str, Any]]:
    """Rows of name, concurrency, p50 and p99 (milliseconds), of calls in turns; `targets` as `load` takes them."""
    argv = [sys.executable, "-m", "scripts._bench.load", str(rounds), str(calls), *targets]
    done = subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=LOAD_SECONDS)
    return list(json.loads(done.stdout))


def _figure(results: list[dict[str, Any]], concurrency: int, quantile: str) -> Figure:
    def sample(name: str) -> Sample:
        return Sample.of(row[quantile] for row in results if (row["name"], row["concurrency"]) == (name, concurrency))

    floor = sample("echo")
    target = Target("at most 2 x echo", 2 * floor.median) if quantile == "p99" else None
    what = f"GetStatus, {DEPLOYMENTS} deployments, concurrency {concurrency}, {quantile}"
    return Figure(PART, what, "ms", sample("agent"), {"echo": floor}, target)
