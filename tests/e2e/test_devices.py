"""Devices of a machine that has none: the NVML double, the real binding, the real watcher and the real daemon.

What is changed in the double must be seen in `agentctl node -o json`, in the watch stream and in the events, within ten
seconds (the waits below end with an error after that).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.v1 import agent_pb2 as pb
from tests.harness import Daemon, daemon, wait_true
from tests.nvml.double import DRIVER_NOT_LOADED, GIB, GPU_IS_LOST, NO_PERMISSION, VERSION_MISMATCH, NvmlDouble

WITHIN = 10.0  # seconds: what the issue asks for

HEALTHY, DEGRADED, QUARANTINED, LOST, UNKNOWN = range(1, 6)


@pytest.fixture
def machine(tmp_path: Path) -> NvmlDouble:
    return NvmlDouble(tmp_path)


@pytest.fixture
def host(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    """A node that looks at its devices every half a second."""
    yield from daemon(tmp_path, tiny_model, daemon={"sample_seconds": 0.5})


def agentctl(node: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent.ctl", "--socket", str(node.control), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def devices(node: Daemon) -> list[pb.Device]:
    with node.client() as client:
        return list(client.get_node().devices)


def device(node: Daemon, id: str) -> pb.Device:
    return next(found for found in devices(node) if found.name == f"devices/{id}")


def condition(node: Daemon, type: str) -> pb.Condition:
    with node.client() as client:
        return next(found for found in client.get_node().conditions if found.type == type)


def seen(node: Daemon, id: str, wanted: int, reason: str) -> pb.Device:
    """Wait until the device is so; it is in the watch stream, in agentctl's JSON and in the events then, too."""
    found = _watched(node, lambda each: each.condition == wanted and each.reason == reason, id)
    shown = json.loads(agentctl(node, "node", "-o", "json").stdout)
    words = {each["name"]: each for each in shown["devices"]}
    assert words[f"devices/{id}"]["reason"] == reason
    word = pb.DeviceCondition.Name(found.condition).removeprefix("DEVICE_CONDITION_").capitalize()
    told = [event.message for event in node.events() if event.reason == f"Device{word}" and id in event.message]
    assert any(reason in message or word == "Healthy" for message in told), node.events()
    return found


def _watched(node: Daemon, check: Callable[[pb.Device], bool], id: str) -> pb.Device:
    with node.client() as client:
        for change in client.watch("", timeout=WITHIN):
            if change.HasField("node"):
                for each in change.node.devices:
                    if each.name == f"devices/{id}" and check(each):
                        return each
    raise AssertionError(f"{id} was not seen so: {devices(node)}")


def started(node: Daemon, machine: NvmlDouble) -> Daemon:
    node.start(environ=machine.environment)
    wait_true(lambda: all(each.condition == HEALTHY for each in devices(node)) and devices(node), WITHIN, "sampled")
    return node


def test_eight_gpus_are_found_sampled_and_shown(host: Daemon, machine: NvmlDouble) -> None:
    ids = machine.gpus(8, nvlink="switch*18")
    started(host, machine)

    shown = json.loads(agentctl(host, "node", "-o", "json").stdout)
    assert [each["name"] for each in shown["devices"]] == [f"devices/{id}" for id in ids]
    inventory = shown["inventory"]
    assert inventory["drivers"] == [{"vendor": "nvidia", "version": "580.95.05", "api": "CUDA 13.0"}]
    assert len(inventory["links"]) == 28
    assert {link["kind"] for link in inventory["links"]} == {"nvlink"}
    assert inventory["devices"][0]["facts"]["native_fp8"] is True
    table = agentctl(host, "devices")
    assert table.returncode == 0
    assert table.stdout.count("NVIDIA H100") == 8


def test_a_strangers_memory_is_seen_and_named(host: Daemon, machine: NvmlDouble) -> None:
    (id,) = machine.gpus(1)
    started(host, machine)

    machine.take(0, os.getpid(), 20 * GIB)

    wait_true(lambda: device(host, id).memory_used_bytes == 20 * GIB, WITHIN, "used")
    (process,) = device(host, id).processes
    assert (process.pid, process.memory_bytes, process.instance) == (os.getpid(), 20 * GIB, "")
    assert process.user == psutil.Process().username()
    assert "pytest" in process.command or "python" in process.command
    assert str(os.getpid()) in agentctl(host, "devices", id).stdout


def test_a_gpu_that_is_lost_comes_back(host: Daemon, machine: NvmlDouble) -> None:
    lost, other = machine.gpus(2)
    started(host, machine)

    machine.fail(GPU_IS_LOST, gpu=0)
    seen(host, lost, LOST, "DeviceLost")
    assert device(host, other).condition == HEALTHY
    machine.fail(0, gpu=0)
    seen(host, lost, HEALTHY, "Healthy")
    assert "DeviceReturned" in host.reasons("")


def test_a_gpu_whose_driver_calls_hang_is_unknown_and_the_others_stay_fresh(host: Daemon, machine: NvmlDouble) -> None:
    hanging, other = machine.gpus(2)
    started(host, machine)

    machine.hang(0)
    seen(host, hanging, UNKNOWN, "NoAnswer")
    before = device(host, other).sample_time.ToMilliseconds()
    wait_true(lambda: device(host, other).sample_time.ToMilliseconds() > before, WITHIN, "a fresh sample of the other")
    machine.hang(0, on=False)
    seen(host, hanging, HEALTHY, "Healthy")


@pytest.mark.parametrize(
    ("number", "wanted", "reason"), [(79, QUARANTINED, "Xid79"), (48, QUARANTINED, "Xid48"), (94, DEGRADED, "Xid94")]
)
def test_a_fault_of_the_hardware_changes_the_condition(
    host: Daemon, machine: NvmlDouble, number: int, wanted: int, reason: str
) -> None:
    sick, _ = machine.gpus(2)
    started(host, machine)

    machine.xid(0, number)

    seen(host, sick, wanted, reason)
    assert "DeviceFault" in host.reasons("")


def test_a_fault_of_a_program_leaves_the_device_healthy(host: Daemon, machine: NvmlDouble) -> None:
    (id,) = machine.gpus(1)
    started(host, machine)

    machine.xid(0, 31)

    wait_true(lambda: "DeviceFault" in host.reasons(""), WITHIN, "told")
    assert device(host, id).condition == HEALTHY


def test_a_quarantine_survives_the_agent_and_is_lifted_by_an_operator_only(host: Daemon, machine: NvmlDouble) -> None:
    (id,) = machine.gpus(1)
    started(host, machine)
    machine.xid(0, 48)
    seen(host, id, QUARANTINED, "Xid48")

    host.kill()
    host.start(environ=machine.environment)

    found = wait_true(lambda: next((each for each in devices(host)), None), WITHIN, "found again")
    assert (found.condition, found.reason) == (QUARANTINED, "Xid48")
    released = agentctl(host, "devices", "release", id)
    assert released.returncode == 0, released.stderr
    wait_true(lambda: device(host, id).condition == HEALTHY, WITHIN, "released")


def test_an_operator_quarantines_a_device(host: Daemon, machine: NvmlDouble) -> None:
    (id,) = machine.gpus(1)
    started(host, machine)

    done = agentctl(host, "devices", "quarantine", id, "--reason", "fan rattles")

    assert done.returncode == 0, done.stderr
    found = device(host, id)
    assert (found.condition, found.reason) == (QUARANTINED, "OperatorQuarantine")
    assert "fan rattles" in found.message


def test_a_gpu_that_is_cut_into_slices_and_made_whole_again(host: Daemon, machine: NvmlDouble) -> None:
    whole, other = machine.gpus(2)
    started(host, machine)

    slices = machine.slices(0, "1g.10gb", "2g.20gb")

    wait_true(lambda: {each.name for each in devices(host)} == {f"devices/{id}" for id in (*slices, other)}, WITHIN)
    detail = json.loads(agentctl(host, "node", "-o", "json").stdout)["inventory"]["devices"]
    assert {each["parent"] for each in detail if each["id"] in slices} == {whole}
    machine.whole(0)
    wait_true(lambda: {each.name for each in devices(host)} == {f"devices/{id}" for id in (whole, other)}, WITHIN)
    assert host.reasons("").count("DeviceResliced") == 3


def test_a_driver_that_goes_away_and_returns(host: Daemon, machine: NvmlDouble) -> None:
    (id,) = machine.gpus(1)
    started(host, machine)

    machine.fail(DRIVER_NOT_LOADED)

    wait_true(lambda: device(host, id).condition == LOST, WITHIN, "lost")
    wait_true(lambda: condition(host, "DevicesDetected").reason == "DriverNotLoaded", WITHIN, "said why")
    machine.fail(0)
    wait_true(lambda: device(host, id).condition == HEALTHY, WITHIN, "back")
    assert condition(host, "DevicesDetected").status == pb.TERNARY_TRUE


@pytest.mark.parametrize(
    ("code", "reason"), [(DRIVER_NOT_LOADED, "DriverNotLoaded"), (VERSION_MISMATCH, "VersionMismatch"),
                         (NO_PERMISSION, "NoPermission")],
)  # fmt: skip
def test_a_driver_that_does_not_work_makes_a_cpu_node_that_says_why_once(
    host: Daemon, machine: NvmlDouble, code: int, reason: str
) -> None:
    machine.gpus(1)
    machine.fail(code)
    host.start(environ=machine.environment)

    found = wait_true(lambda: _set(host, "DevicesDetected"), WITHIN, "said")
    assert (found.status, found.reason) == (pb.TERNARY_FALSE, reason)
    host.apply()
    host.wait()
    assert devices(host) == []
    assert host.reasons("").count(reason) == 1


def test_a_host_without_devices_says_so_and_serves_on_the_cpu(host: Daemon) -> None:
    host.start()

    found = wait_true(lambda: _set(host, "DevicesWatched"), WITHIN, "said")
    assert (found.status, found.reason) == (pb.TERNARY_TRUE, "NoDevices")
    host.apply()
    host.wait()
    assert devices(host) == []


def test_a_watcher_that_is_killed_or_stopped_is_replaced(host: Daemon, machine: NvmlDouble) -> None:
    (id,) = machine.gpus(1)
    started(host, machine)
    first = _watcher(host)

    first.send_signal(signal.SIGKILL)

    wait_true(lambda: condition(host, "DevicesWatched").reason == "Restarting", WITHIN, "seen")
    wait_true(lambda: condition(host, "DevicesWatched").reason == "Watching", WITHIN, "replaced")
    assert _watcher(host).pid != first.pid
    machine.take(0, os.getpid(), GIB)
    wait_true(lambda: device(host, id).memory_used_bytes == GIB, WITHIN, "sampled again")


def test_the_watcher_ends_with_the_agent(host: Daemon, machine: NvmlDouble) -> None:
    machine.gpus(1)
    started(host, machine)
    watcher = _watcher(host)

    host.kill()

    wait_true(lambda: not watcher.is_running() or watcher.status() == psutil.STATUS_ZOMBIE, WITHIN, "ended")


def _set(node: Daemon, type: str) -> pb.Condition | None:
    with node.client() as client:
        return next((found for found in client.get_node().conditions if found.type == type), None)


def _watcher(node: Daemon) -> psutil.Process:
    def find() -> psutil.Process | None:
        assert node.process is not None
        for child in psutil.Process(node.process.pid).children():
            if "agent.hardware.watcher" in child.cmdline():
                return child
        return None

    found: Any = wait_true(find, WITHIN, "a watcher runs")
    return found
