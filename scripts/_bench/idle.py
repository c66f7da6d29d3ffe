"""What the agent costs while eight instances serve nobody: memory and CPU time, with all probes at their defaults."""

from __future__ import annotations

import time
from pathlib import Path

from scripts._bench import peers
from scripts._bench.figures import Figure, Sample, Target
from scripts._bench.place import Place, serve
from scripts._bench.processes import cpu_seconds, memory
from scripts._bench.startup import IMPORTS, python
from tests.harness import wait_true

PART = "idle"
INSTANCES = 8
#: Real inferences come each minute to engines that were idle for one: the windows hold the same work.
WINDOWS, WINDOW_SECONDS = 3, 60.0
SETTLE_SECONDS = 60.0
QUICK_WINDOWS, QUICK_WINDOW_SECONDS, QUICK_SETTLE_SECONDS = 1, 10.0, 5.0


def measure(place: Place, *, quick: bool) -> list[Figure]:
    node = place.node("idle").start()
    serve(place, node, INSTANCES)
    assert node.process is not None
    pids = {"agent": node.process.pid, **_supervisord(place), "bare imports": _imports(place)}
    shims = [process.pid for process in node.engines() if "shim.sh" in " ".join(process.cmdline())]
    time.sleep(QUICK_SETTLE_SECONDS if quick else SETTLE_SECONDS)
    windows, seconds = (QUICK_WINDOWS, QUICK_WINDOW_SECONDS) if quick else (WINDOWS, WINDOW_SECONDS)
    rss, pss, cpu = _watch(pids, windows, seconds)
    shells = Sample.of([sum(memory(pid)[1] for pid in shims)])
    idle_cpu = {name: sample for name, sample in cpu.items() if name == "supervisord"}
    return [
        Figure(PART, f"PSS with {INSTANCES} instances", "MiB", pss.pop("agent"), pss, Target("at most 75 MiB", 75)),
        Figure(PART, f"RSS with {INSTANCES} instances", "MiB", rss.pop("agent"), rss),
        Figure(PART, f"PSS of the {INSTANCES} shells that wait for the engines", "MiB", shells),
        Figure(PART, f"CPU with {INSTANCES} instances", "% of a core", cpu["agent"], idle_cpu,
               Target("at most 0.3 %", 0.3)),
    ]  # fmt: skip


def _watch(pids: dict[str, int], windows: int, seconds: float) -> tuple[dict[str, Sample], ...]:
    """RSS, PSS (MiB) and CPU (%) of each, one value a window."""
    values: dict[str, list[tuple[float, float, float]]] = {name: [] for name in pids}
    for _ in range(windows):
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        time.sleep(seconds)
        for name, pid in pids.items():
            cpu = (cpu_seconds(pid) - before[name]) / seconds * 100
            values[name].append((*memory(pid), cpu))
    return tuple(
        {name: Sample.of(window[column] for window in found) for name, found in values.items()} for column in range(3)
    )


def _supervisord(place: Place) -> dict[str, int]:
    """With as many children; what they are does not matter to it."""
    if "supervisord" not in peers.present():
        return {}
    children = {f"child{number}": ["sleep", "100000"] for number in range(INSTANCES)}
    return {"supervisord": peers.supervisord(place, place.directory("idle-supervisord"), children, {})}


def _imports(place: Place) -> int:
    """A Python that has imported what the agent stands on, and does nothing."""
    done = place.root / "imported"
    pid = place.spawn(python(f"{IMPORTS}; import time; open({str(done)!r}, 'w').close(); time.sleep(100000)")).pid
    wait_true(Path(done).exists, what="imports done")
    return pid
