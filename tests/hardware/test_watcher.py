"""The real watcher on the NVML double: a process, its lines, and everything that drivers do to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.hardware import vendors
from agent.hardware.messages import EXIT_REPLACE
from tests.nvml.double import DRIVER_NOT_LOADED, GPU_IS_LOST, VERSION_MISMATCH, NvmlDouble

COMMAND = (sys.executable, "-m", "agent.hardware.watcher", "--period")
ROOT = Path(__file__).parents[2]


class Watcher:
    """A watcher, and what it has said so far."""

    def __init__(self, errors: Path, environment: dict[str, str], period: float) -> None:
        self.errors = errors
        self.said: list[dict[str, Any]] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        with errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*COMMAND, str(period)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT,
                env={**os.environ, **environment},
            )  # fmt: skip

    def listen(self) -> Watcher:
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.said.append(json.loads(line))
                self._more.notify_all()

    def until(self, condition: Callable[[], Any]) -> None:
        with self._more:
            assert self._more.wait_for(condition, 30), f"{self.said[-20:]}\n{self.errors.read_text()}"

    def command(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(words.encode() + b"\n")
        self.process.stdin.flush()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._reader.ident is not None:
            self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    # What it said

    @property
    def detections(self) -> list[dict[str, Any]]:
        return [line["detected"] for line in list(self.said) if "detected" in line]

    def devices(self) -> set[str]:
        """As last detected."""
        return {device["id"] for device in self.detections[-1]["devices"]} if self.detections else set()

    def problems(self) -> set[str]:
        """Of the last detection."""
        return {problem["code"] for problem in self.detections[-1]["problems"]} if self.detections else set()

    def samples(self, device: str, *, since: int = 0) -> list[dict[str, Any]]:
        lines = list(self.said)[since:]
        return [line["sampled"] for line in lines if "sampled" in line and line["sampled"]["device"] == device]

    def well(self, device: str, *, since: int = 0) -> bool:
        """Whether its last sample, if any since then, has numbers."""
        return any(sample["problem"] is None for sample in self.samples(device, since=since)[-1:])

    def sick(self, device: str, code: str) -> bool:
        return any((sample["problem"] or {}).get("code") == code for sample in self.samples(device)[-1:])


@pytest.fixture
def double(tmp_path: Path) -> NvmlDouble:
    return NvmlDouble(tmp_path)


Start = Callable[..., Watcher]


@pytest.fixture
def start(tmp_path: Path, double: NvmlDouble) -> Iterator[Start]:
    started: list[Watcher] = []

    def start(period: float = 0.1, **environment: str) -> Watcher:
        errors = tmp_path / f"errors-{len(started)}"
        started.append(Watcher(errors, {**double.environment, **environment}, period))
        return started[-1]

    yield start
    double.hang(on=False)
    for watcher in started:
        watcher.end()


def test_eight_gpus_are_detected_once_and_sampled_each_period(start: Start, double: NvmlDouble) -> None:
    ids = double.gpus(8)
    watcher = start().listen()
    watcher.until(lambda: all(len(watcher.samples(id)) >= 5 for id in ids))
    assert watcher.said[0] == {"vendors": ["nvidia"]}
    assert [device["id"] for detection in watcher.detections for device in detection["devices"]] == ids
    assert all(sample["problem"] is None for id in ids for sample in watcher.samples(id))


def test_a_stranger_that_takes_memory_is_seen(start: Start, double: NvmlDouble) -> None:
    (id,) = double.gpus(1)
    watcher = start().listen()
    watcher.until(lambda: watcher.well(id))
    double.take(0, pid=os.getpid(), memory=20 << 30)
    watcher.until(lambda: watcher.samples(id)[-1]["processes"])
    (process,) = watcher.samples(id)[-1]["processes"]
    assert (process["pid"], process["memory_bytes"]) == (os.getpid(), 20 << 30)


def test_a_hanging_device_is_told_once_while_the_others_stay_fresh_and_again_when_it_answers(
    start: Start, double: NvmlDouble
) -> None:
    first, *others = double.gpus(3)
    watcher = start().listen()
    watcher.until(lambda: watcher.well(first))
    double.hang(0)
    watcher.until(lambda: watcher.sick(first, "NoAnswer"))
    since = len(watcher.said)
    watcher.until(lambda: all(len(watcher.samples(id, since=since)) >= 5 for id in others))
    assert all(watcher.well(id, since=since) for id in others)
    assert watcher.samples(first, since=since) == []
    watcher.command(f"sample {first} 5")  # is not kept waiting
    watcher.until(lambda: any(line.get("token") == 5 for line in watcher.said))
    assert watcher.sick(first, "NoAnswer")
    double.hang(0, on=False)
    watcher.until(lambda: watcher.well(first, since=since))
    assert first in watcher.devices()


def test_a_driver_that_hangs_altogether_leaves_a_watcher_that_says_it_is_alive(
    start: Start, double: NvmlDouble
) -> None:
    ids = double.gpus(2)
    double.hang()
    watcher = start().listen()
    watcher.until(lambda: watcher.said.count({}) >= 3)
    assert watcher.detections == []
    double.hang(on=False)
    watcher.until(lambda: all(watcher.well(id) for id in ids))


def test_a_device_that_is_lost_is_told_and_so_is_its_return(start: Start, double: NvmlDouble) -> None:
    lost, other = double.gpus(2)
    watcher = start().listen()
    watcher.until(lambda: watcher.well(lost))
    double.fail(GPU_IS_LOST, gpu=0)
    watcher.until(lambda: watcher.sick(lost, "DeviceLost") and len(watcher.detections) > 1)
    since = len(watcher.said)
    double.fail(0, gpu=0)
    watcher.until(lambda: watcher.well(lost, since=since) and not watcher.problems())
    assert watcher.devices() == {lost, other}
    assert watcher.well(other, since=since)


def test_a_device_that_is_pulled_out_and_put_back_is_told(start: Start, double: NvmlDouble) -> None:
    ids = double.gpus(2)
    watcher = start().listen()
    watcher.until(lambda: watcher.devices() == set(ids))
    double.set("count", 1)
    watcher.until(lambda: watcher.devices() == {ids[0]})
    since = len(watcher.said)
    double.set("count", 2)
    watcher.until(lambda: watcher.devices() == set(ids) and watcher.well(ids[1], since=since))


def test_a_gpu_that_is_cut_into_slices_is_replaced_by_them_and_comes_back_whole(
    start: Start, double: NvmlDouble
) -> None:
    cut, other = double.gpus(2)
    watcher = start().listen()
    watcher.until(lambda: watcher.devices() == {cut, other})
    slices = double.slices(0, "3g.40gb", "3g.40gb")
    watcher.until(lambda: watcher.devices() == {*slices, other} and all(watcher.well(id) for id in slices))
    double.whole(0)
    watcher.until(lambda: watcher.devices() == {cut, other})


def test_a_driver_that_goes_and_comes_back_takes_and_brings_its_devices(start: Start, double: NvmlDouble) -> None:
    (id,) = double.gpus(1)
    watcher = start().listen()
    watcher.until(lambda: watcher.well(id))
    double.update({"init_error": DRIVER_NOT_LOADED, "gpu0.error": DRIVER_NOT_LOADED})
    watcher.until(lambda: watcher.problems() == {"DriverNotLoaded"})
    since = len(watcher.said)
    double.update({"init_error": None, "gpu0.error": None})
    watcher.until(lambda: watcher.devices() == {id} and watcher.well(id, since=since))


def test_an_xid_is_told_and_devices_are_looked_for_at_once(start: Start, double: NvmlDouble, tmp_path: Path) -> None:
    ids = double.gpus(2)
    watcher = start().listen()
    watcher.until(lambda: all(watcher.well(id) for id in ids))
    double.xid(1, 79)
    double.gpus(1)  # seen by no sample
    watcher.until(lambda: any("fault" in line for line in watcher.said) and len(watcher.devices()) == 3)
    (fault,) = [line["fault"] for line in watcher.said if "fault" in line]
    assert (fault["device"], fault["kind"], fault["number"]) == (ids[1], "xid", 79)


def test_a_storm_of_one_fault_is_told_once_a_period(start: Start, double: NvmlDouble) -> None:
    (id,) = double.gpus(1)
    watcher = start(period=60).listen()
    watcher.until(lambda: watcher.well(id))
    for number in (31, 31, 31, 31, 94):
        double.xid(0, number)
    watcher.until(lambda: any(line.get("fault", {}).get("number") == 94 for line in watcher.said))
    assert sorted(line["fault"]["number"] for line in watcher.said if "fault" in line) == [31, 94]


def test_a_library_that_no_longer_fits_the_driver_makes_it_ask_for_a_new_process(
    start: Start, double: NvmlDouble
) -> None:
    (id,) = double.gpus(1)
    watcher = start().listen()
    watcher.until(lambda: watcher.well(id))
    double.update({"init_error": VERSION_MISMATCH, "gpu0.error": VERSION_MISMATCH})
    assert watcher.process.wait(30) == EXIT_REPLACE
    assert watcher.problems() == {"VersionMismatch"}


def test_no_devices_end_it_at_once(start: Start, double: NvmlDouble) -> None:
    if any(vendor.present() for vendor in vendors()):
        pytest.skip("this machine has devices")
    watcher = start(LD_LIBRARY_PATH="").listen()
    assert watcher.process.wait(30) == 0
    watcher.until(lambda: watcher.said)
    assert watcher.said == [{"vendors": []}]
    assert watcher.errors.read_text() == ""


# Commands


def test_a_sample_that_is_asked_for_comes_at_once_with_its_token(start: Start, double: NvmlDouble) -> None:
    (id,) = double.gpus(1)
    watcher = start(period=60).listen()
    watcher.until(lambda: watcher.well(id))
    double.set("gpu0.temperature", 77)
    watcher.command(f"sample {id} 7")
    watcher.until(lambda: watcher.said[-1].get("token") == 7)
    assert watcher.samples(id)[-1]["temperature_celsius"] == 77


def test_a_sample_asked_for_during_another_is_a_new_look(start: Start, double: NvmlDouble) -> None:
    slow, other = double.gpus(2)
    watcher = start(period=60).listen()
    watcher.until(lambda: watcher.well(slow) and watcher.well(other))
    double.hang(0)
    for command in (f"sample {slow} 1", f"sample {slow} 2", f"sample {slow} 3", f"sample {other} 4"):
        watcher.command(command)
    watcher.until(lambda: watcher.said[-1].get("token") == 4)
    double.hang(0, on=False)
    watcher.until(lambda: watcher.said[-1].get("token") == 3)
    assert [line["token"] for line in watcher.said if line.get("token")] == [4, 1, 3]
    assert watcher.well(slow)


def test_detect_looks_for_devices_anew(start: Start, double: NvmlDouble) -> None:
    double.gpus(1)
    watcher = start(period=60).listen()
    watcher.until(lambda: len(watcher.devices()) == 1)
    double.gpus(1)
    watcher.command("detect")
    watcher.until(lambda: len(watcher.devices()) == 2)


def test_what_is_no_command_is_refused_and_costs_nothing(start: Start, double: NvmlDouble) -> None:
    (id,) = double.gpus(1)
    watcher = start(period=60).listen()
    watcher.until(lambda: watcher.well(id))
    watcher.command("dance\nsample\nsample a b\n\xff")
    watcher.command(f"sample {id} 1")
    watcher.until(lambda: watcher.said[-1].get("token") == 1)
    assert watcher.errors.read_text().count("not a command") == 4


# Its end, and its pipes


def test_it_ends_with_its_input_even_while_everything_hangs(start: Start, double: NvmlDouble) -> None:
    double.gpus(1)
    double.hang()
    watcher = start().listen()
    watcher.until(lambda: {} in watcher.said)
    assert watcher.process.stdin is not None
    watcher.process.stdin.close()
    assert watcher.process.wait(30) == 0


def test_it_ends_with_its_parent_even_when_others_hold_its_pipes(double: NvmlDouble, tmp_path: Path) -> None:
    double.gpus(1)
    double.hang()
    pids = tmp_path / "pids"
    parent = f"""
import os, subprocess, time
watcher = subprocess.Popen([*{COMMAND!r}, "0.1", "--parent", str(os.getpid())], stdin=subprocess.PIPE)
holder = subprocess.Popen(["sleep", "60"], pass_fds=[watcher.stdin.fileno()])
open({str(pids)!r}, "w").write(f"{{watcher.pid}} {{holder.pid}}\\n")
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=ROOT, env={**os.environ, **double.environment}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert b"nvidia" in process.stdout.readline()
    while not pids.exists() or not pids.read_text().endswith("\n"):  # else it runs into the test's limit
        time.sleep(0.01)
    watcher, holder = map(psutil.Process, map(int, pids.read_text().split()))
    try:
        process.kill()
        process.wait()
        watcher.wait(30)
        assert holder.is_running()
    finally:
        holder.kill()
        process.stdout.close()


def test_it_does_not_begin_for_a_parent_that_is_gone(double: NvmlDouble) -> None:
    double.gpus(1)
    gone = subprocess.Popen(["true"])
    gone.wait()
    with subprocess.Popen(
        [*COMMAND, "0.1", "--parent", str(gone.pid)], cwd=ROOT, env={**os.environ, **double.environment},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as watcher:  # fmt: skip
        assert watcher.stdout is not None
        assert watcher.stdout.read() == b""
        assert watcher.wait(30) == 0


def test_what_a_library_prints_does_not_get_between_the_messages(start: Start, double: NvmlDouble) -> None:
    (id,) = double.gpus(1)
    watcher = start().listen()
    watcher.until(lambda: watcher.well(id))
    Path(f"/proc/{watcher.process.pid}/fd/1").write_text("printed by a library\n")
    since = len(watcher.said)
    watcher.until(lambda: len(watcher.samples(id, since=since)) > 3)  # each line is JSON
    assert "printed by a library" in watcher.errors.read_text()


def test_a_daemon_that_does_not_read_stops_the_looks_and_nothing_piles_up(
    start: Start, double: NvmlDouble, tmp_path: Path
) -> None:
    double.gpus(8)
    calls = tmp_path / "calls"
    watcher = start(period=0.01, FAKE_NVML_CALLS=str(calls))

    def looks() -> int:
        return calls.read_text().count("nvmlDeviceGetTemperature") if calls.exists() else 0

    before, now = -1, 0
    while before != now or now == 0:  # else it runs into the test's limit
        before = now
        time.sleep(0.5)
        now = looks()
    watcher.listen()
    watcher.until(lambda: looks() > now + 100)


def test_a_crash_says_where(start: Start, double: NvmlDouble) -> None:
    (id,) = double.gpus(1)
    watcher = start().listen()
    watcher.until(lambda: watcher.well(id))
    watcher.process.send_signal(signal.SIGSEGV)
    assert watcher.process.wait(30) == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in watcher.errors.read_text()
