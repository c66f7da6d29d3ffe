"""agentd is killed over twenty running engines and started again: how long until it says, and shows, that all serve."""

from __future__ import annotations

import time

from scripts._bench.figures import Figure, Sample, Target
from scripts._bench.place import Place, milliseconds_since, serve
from scripts._bench.startup import floor, notified, start_until_ready
from tests.harness import PHASE, Daemon, wait_true

PART = "adoption"
INSTANCES = 20
RUNS, QUICK_RUNS = 7, 2


def measure(place: Place, *, quick: bool) -> list[Figure]:
    node = place.node("adoption").start()
    serve(place, node, INSTANCES)
    pids = serving(node)
    imports, ready, shown = [], [], []
    with notified(place) as here:
        for _ in range(QUICK_RUNS if quick else RUNS):
            imports.append(floor(place, here))
            node.kill()
            began = time.monotonic_ns()
            ready.append(start_until_ready(node, here))
            wait_true(lambda: serving(node) == pids, what="the same engines are READY")
            shown.append(milliseconds_since(began))
    bare = {"bare imports": Sample.of(imports)}
    second = Target("at most 1 s", 1000)
    return [
        Figure(PART, f"exec to READY=1, {INSTANCES} running instances", "ms", Sample.of(ready), bare, second),
        Figure(PART, f"exec to all {INSTANCES} shown READY with the same pids", "ms", Sample.of(shown), bare, second),
    ]


def serving(node: Daemon) -> dict[str, int]:
    """The pid of each deployment that is READY."""
    with node.client() as client:
        found = client.list_deployments()
    return {each.name: each.instance.pid for each in found if PHASE[each.phase] == "ready"}
