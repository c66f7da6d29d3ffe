"""`python -m scripts._bench.load ROUNDS CALLS NAME=SOCKET:/METHOD...`: asks each in turn, prints latencies as JSON.

A process of its own, and the same one for all, so that the client's part of each latency is the same. Answers stay
bytes: parsing them is no server's work.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import sys
import time
from collections.abc import Sequence

import grpc

CONCURRENCIES = (1, 16)
WARM_UP_CALLS = 200


async def latencies(call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], calls: int, concurrency: int) -> list[float]:
    """Milliseconds of each of `calls` calls, by `concurrency` callers of which each waits for its answer."""
    took: list[float] = []
    turns = iter(range(calls))

    async def caller() -> None:
        for _ in turns:
            began = time.perf_counter_ns()
            await call(b"")
            took.append((time.perf_counter_ns() - began) / 1e6)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(caller())
    return sorted(took)


async def main(rounds: int, calls: int, targets: Sequence[str]) -> None:
    results = []
    callables = {}
    for target in targets:
        name, _, address = target.partition("=")
        path, _, method = address.partition(":")
        callables[name] = grpc.aio.insecure_channel(f"unix:{path}").unary_unary(method, None, None)
        await latencies(callables[name], WARM_UP_CALLS, max(CONCURRENCIES))
    gc.freeze()
    for _, concurrency, (name, call) in itertools.product(range(rounds), CONCURRENCIES, callables.items()):
        took = await latencies(call, calls, concurrency)
        p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
        results.append({"name": name, "concurrency": concurrency, "p50": p50, "p99": p99})
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
