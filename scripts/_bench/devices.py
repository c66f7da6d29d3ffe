"""What eight GPUs cost, spoken for by the NVML double: finding them, looking at them, and one whose driver hangs."""

from __future__ import annotations

import json
import os
import subprocess
import time

import psutil

from scripts._bench.figures import Figure, Sample, Target
from scripts._bench.place import ROOT, Place, serve
from scripts._bench.processes import cpu_seconds, memory
from scripts._bench.rpc import load
from scripts._bench.startup import python
from tests.harness import Daemon, wait_true
from tests.nvml.double import NvmlDouble

PART = "devices"
GPUS, INSTANCES = 8, 8
RUNS, QUICK_RUNS = 9, 3
#: As in part `idle`, with as many instances.
WINDOWS, WINDOW_SECONDS, SETTLE_SECONDS = 3, 60.0, 60.0
QUICK_WINDOWS, QUICK_WINDOW_SECONDS, QUICK_SETTLE_SECONDS = 1, 10.0, 5.0
ROUNDS, CALLS = 7, 3000
QUICK_ROUNDS, QUICK_CALLS = 3, 1000
PERIOD = 5.0  # seconds: the default of daemon.sample_seconds
HEALTHY, UNKNOWN = 1, 5

#: In a process of its own, as in the watcher: the library's start, detection, and ten looks at all devices.
LOOK = """
import json, time
began = time.perf_counter()
import pynvml
pynvml.nvmlInit(); pynvml.nvmlShutdown()
library = time.perf_counter() - began
from agent.hardware.nvidia import Nvidia
vendor = Nvidia()
began = time.perf_counter()
found = vendor.detect()
detect = time.perf_counter() - began
for device in found.devices: vendor.sample(device.id)
began = time.process_time()
for _ in range(10):
    for device in found.devices: assert vendor.sample(device.id).problem is None
sample = (time.process_time() - began) / 10
print(json.dumps([len(found.devices), library * 1e3, detect * 1e3, sample * 1e3]))
"""


def measure(place: Place, *, quick: bool) -> list[Figure]:
    machine = NvmlDouble(place.directory("double"))
    machine.gpus(GPUS, nvlink="switch*18")
    figures = _looks(machine, QUICK_RUNS if quick else RUNS)
    for instances in (0, INSTANCES):
        figures += _idle(place, machine, instances, quick=quick)
        place.end()
    return [*figures, *_hanging(place, machine, quick=quick)]


def _looks(machine: NvmlDouble, runs: int) -> list[Figure]:
    rows = []
    for _ in range(runs):
        environment = {**os.environ, **machine.environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(python(LOOK), env=environment, check=True, stdout=subprocess.PIPE, timeout=60)
        count, *row = json.loads(done.stdout)
        assert count == GPUS
        rows.append(row)
    library, detect, sample = (Sample.of(column) for column in zip(*rows, strict=True))
    return [
        Figure(PART, f"detection of {GPUS} GPUs, the library started", "ms", detect, {"library's own start": library},
               Target("at most 150 ms", 150)),
        Figure(PART, f"CPU of one sample of {GPUS} GPUs", "ms", sample, target=Target("at most 10 ms", 10)),
    ]  # fmt: skip


def _node(place: Place, name: str, machine: NvmlDouble) -> Daemon:
    node = place.node(name).start(environ=machine.environment)
    wait_true(lambda: _conditions(node) == [HEALTHY] * GPUS, what="all GPUs were sampled")
    return node


def _conditions(node: Daemon) -> list[int]:
    with node.client() as client:
        return [int(device.condition) for device in client.get_node().devices]


def _idle(place: Place, machine: NvmlDouble, instances: int, *, quick: bool) -> list[Figure]:
    node = _node(place, f"devices-{instances}", machine)
    serve(place, node, instances)
    assert node.process is not None
    agent = psutil.Process(node.process.pid)
    watcher = next(child for child in agent.children() if "agent.hardware.watcher" in child.cmdline())
    time.sleep(QUICK_SETTLE_SECONDS if quick else SETTLE_SECONDS)
    windows, seconds = (QUICK_WINDOWS, QUICK_WINDOW_SECONDS) if quick else (WINDOWS, WINDOW_SECONDS)
    values = []
    for _ in range(windows):
        before = [cpu_seconds(process.pid) for process in (agent, watcher)]
        time.sleep(seconds)
        after = [cpu_seconds(process.pid) for process in (agent, watcher)]
        values.append([(b - a) / seconds * 100 for a, b in zip(before, after, strict=True)]
                      + [memory(process.pid)[1] for process in (agent, watcher)])  # fmt: skip
    agent_cpu, watcher_cpu, agent_pss, watcher_pss = zip(*values, strict=True)
    what = f"{instances} instances and {GPUS} GPUs, sampled every {PERIOD:g} s"
    return [
        Figure(PART, f"PSS with {what}: agent and watcher", "MiB", _sum(agent_pss, watcher_pss),
               {"of which the watcher": Sample.of(watcher_pss)}, Target("at most 75 MiB", 75)),
        Figure(PART, f"CPU with {what}: agent and watcher", "% of a core", _sum(agent_cpu, watcher_cpu),
               {"of which the watcher": Sample.of(watcher_cpu)}, None if instances else Target("at most 0.3 %", 0.3)),
    ]  # fmt: skip


def _sum(*columns: tuple[float, ...]) -> Sample:
    return Sample.of(map(sum, zip(*columns, strict=True)))


def _hanging(place: Place, machine: NvmlDouble, *, quick: bool) -> list[Figure]:
    """Two agents over two doubles, one of which has a GPU that hangs; they are asked in turns."""
    sick = NvmlDouble(place.directory("sick"))
    sick.gpus(GPUS, nvlink="switch*18")
    well_node, sick_node = _node(place, "well", machine), _node(place, "sick-node", sick)
    sick.hang(0)
    wait_true(lambda: UNKNOWN in _conditions(sick_node), timeout=20, what="the hang is seen")
    rounds, calls = (QUICK_ROUNDS, QUICK_CALLS) if quick else (ROUNDS, CALLS)
    method = "/agent.v1.NodeService/GetStatus"
    results = load(rounds, calls, f"hanging={sick_node.control}:{method}", f"well={well_node.control}:{method}")

    def p99(name: str) -> Sample:
        return Sample.of(row["p99"] for row in results if (row["name"], row["concurrency"]) == (name, 1))

    limit = Target("at most 1.5 x without", 1.5 * p99("well").median)
    what = f"GetStatus p99 with one of {GPUS} GPUs hanging"
    return [
        Figure(PART, what, "ms", p99("hanging"), {"none hanging": p99("well")}, limit),
        Figure(PART, "age of the other GPUs' samples meanwhile", "s", Sample.of(_ages(sick_node)),
               target=Target(f"at most two periods, {2 * PERIOD:g} s", 2 * PERIOD)),
    ]  # fmt: skip


def _ages(node: Daemon) -> list[float]:
    """Of the devices that answer, looked at for two periods."""
    ages = []
    for _ in range(int(2 * PERIOD)):
        time.sleep(1.0)
        with node.client() as client:
            answering = [device for device in client.get_node().devices if device.condition == HEALTHY]
        assert len(answering) == GPUS - 1
        ages += [time.time() - device.sample_time.ToNanoseconds() / 1e9 for device in answering]
    return ages
