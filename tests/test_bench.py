"""The benchmarks run, say what they measured in a shape that programs can rely on, and leave nothing behind.

What the numbers are is no test's business: they are the machine's as much as ours.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCH = [sys.executable, "-m", "scripts._bench"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def place() -> Iterator[Path]:
    """Where all of a benchmark's files go. Not tmp_path: sockets' paths are limited to 107 characters."""
    with tempfile.TemporaryDirectory(prefix="b-") as name:
        yield Path(name)


def processes_that_name(place: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{place}/bench-".encode() in (entry / "environ").read_bytes():
                found.append(f"{entry.name} {(entry / 'cmdline').read_text()}")
        except OSError:
            continue  # it has ended
    return found


def test_a_figure_is_printed_with_its_ratio_to_a_floor_of_the_same_run_and_its_target(place):
    done = subprocess.run(
        [*BENCH, "--quick", "--json", "--only", "startup"],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(place)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert {"date", "quick", "cpus", "cpu", "memory_gib", "kernel", "python", "load_before", "figures"} == set(report)
    empty, stored = report["figures"]
    assert set(empty) == {"part", "what", "unit", "agent", "others", "never", "target"}
    assert (empty["part"], empty["unit"], "empty store" in empty["what"]) == ("startup", "ms", True)
    assert empty["target"]["text"] == "at most 0.6 s"
    agent, floor = empty["agent"], empty["others"]["bare imports"]
    assert 0 < agent["min"] <= agent["median"] <= agent["max"]
    assert agent["runs"] == floor["runs"] == 3
    assert floor["ratio"] == pytest.approx(agent["median"] / floor["median"])
    assert empty["target"]["met"] == (agent["median"] <= empty["target"]["limit"])
    assert stored["target"]["limit"] == pytest.approx(agent["median"] + 400)
    assert processes_that_name(place) == []
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM], ids=lambda sig: sig.name)
def test_an_interrupted_benchmark_ends_everything_it_started(place, sig):
    bench = subprocess.Popen(
        [*BENCH, "--quick", "--only", "rpc"],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(place)}, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert bench.stderr is not None
    with bench.stderr as output:
        while not (engines := [line for line in processes_that_name(place) if "llama_server" in line]):
            assert bench.poll() is None
        os.kill(bench.pid, sig)
        told = output.read()
    assert bench.wait(60) == 130, told
    assert engines
    assert processes_that_name(place) == []
    assert list(place.iterdir()) == []


def test_an_unknown_part_is_refused_with_those_that_there_are():
    done = subprocess.run([*BENCH, "--only", "crsh"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no crsh; there are crash, idle, rpc, startup, adoption" in done.stderr
