"""The inventory of a real NVIDIA machine, held against `nvidia-smi`. Skipped where there is none."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agent.hardware.inventory import Detection, Device
from agent.hardware.nvidia import Nvidia

MIB = 1024**2
#: Holds 1 GiB of the first GPU that CUDA shows, until its stdin ends.
HOLDER = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
context, memory = ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(1 << 30)) == 0
print("holding", flush=True)
sys.stdin.read()
"""


def smi(*arguments: str) -> str:
    return subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=30, check=True).stdout


def table(what: str, *columns: str) -> list[dict[str, str]]:
    rows = smi(f"--query-{what}={','.join(columns)}", "--format=csv,noheader,nounits").splitlines()
    return [dict(zip(columns, (cell.strip() for cell in row.split(",")), strict=True)) for row in rows if row]


def known(cell: str) -> str | None:
    """None for "[N/A]" and "[Not Supported]"."""
    return None if cell.startswith("[") or cell == "N/A" else cell


@pytest.fixture(scope="module")
def part() -> Iterator[Nvidia]:
    try:
        smi("-L")
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no nvidia-smi answers here: {error}")
    part = Nvidia()
    yield part
    part.close()


@pytest.fixture
def found(part: Nvidia) -> Detection:
    return part.detect()


def whole(found: Detection) -> dict[str, Device]:
    return {device.id: device for device in found.devices if not device.parent}


def test_devices_are_those_that_nvidia_smi_lists(part: Nvidia, found: Detection) -> None:
    assert part.present()
    assert found.problems == ()

    listed: list[str] = []
    for line in smi("-L").splitlines():
        uuid = re.search(r"UUID: ((?:GPU|MIG)-[^)]+)", line)
        assert uuid
        if uuid[1].startswith("MIG-") and listed and listed[-1].startswith("GPU-"):
            listed.pop()  # a sliced GPU is itself no device
        listed.append(uuid[1])

    assert [device.id for device in found.devices] == listed


def test_each_gpu_is_as_nvidia_smi_says(found: Detection) -> None:
    columns = (
        "uuid",
        "index",
        "name",
        "memory.total",
        "driver_version",
        "compute_cap",
        "pci.bus_id",
        "enforced.power.limit",
    )
    switches = ("ecc.mode.current", "persistence_mode", "pcie.link.gen.max", "pcie.link.width.max")
    devices = whole(found)
    assert found.driver

    for row in table("gpu", *columns, *switches):
        assert row["driver_version"] == found.driver.version
        device = devices.get(row["uuid"])
        if device is None:
            continue  # sliced
        assert (str(device.index), device.name) == (row["index"], row["name"])
        assert device.compute_capability == row["compute_cap"]
        if (memory := known(row["memory.total"])) is not None:
            assert device.memory_kind == "unified" or device.memory_bytes // MIB == int(memory)
        if (limit := known(row["enforced.power.limit"])) is not None:
            assert device.power_limit_watts == pytest.approx(float(limit), abs=0.01)
        for told, cell in ((device.ecc, row["ecc.mode.current"]), (device.persistence, row["persistence_mode"])):
            assert told == (None if known(cell) is None else cell == "Enabled")
        assert device.pci
        assert row["pci.bus_id"].lower().endswith(device.pci.address)
        assert str(device.pci.max_generation or "[N/A]") == row["pcie.link.gen.max"]
        assert str(device.pci.max_width or "[N/A]") == row["pcie.link.width.max"]
    assert f"CUDA Version: {found.driver.api.removeprefix('CUDA ')}" in smi()


def test_links_are_those_of_nvidia_smis_matrix(found: Detection) -> None:
    devices = sorted(whole(found).values(), key=lambda device: device.index)
    if len(devices) < 2:
        pytest.skip("one GPU has no links")
    rows = [line.split() for line in smi("topo", "-m").splitlines() if re.match(r"GPU\d+\s.*\bX\s", line)]
    expected = set()
    for a, row in zip(devices, rows, strict=True):
        for b, cell in zip(devices, row[1:], strict=False):
            if a.id < b.id:
                lanes = int(cell[2:]) if cell.startswith("NV") else 0
                expected.add((a.id, b.id, "nvlink" if lanes else cell.lower(), lanes))

    assert {(link.a, link.b, link.kind, link.lanes) for link in found.links} == expected


def test_processes_and_memory_are_those_that_nvidia_smi_lists(part: Nvidia, found: Detection) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        if holder.stdout.readline() != b"holding\n":
            pytest.skip("CUDA does not start here, so that no process can hold memory")
        apps = table("compute-apps", "gpu_uuid", "pid", "used_memory")
        gpus = {row["uuid"]: row for row in table("gpu", "uuid", "memory.used", "memory.reserved", "memory.free")}
        samples = {id: part.sample(id) for id in whole(found)}
        holder.stdin.close()

    for id, sample in samples.items():
        assert sample.problem is None
        if known(gpus[id]["memory.used"]) is not None and sample.memory_used is not None:
            told = int(gpus[id]["memory.used"]) + int(gpus[id]["memory.reserved"])
            assert sample.memory_used / MIB == pytest.approx(told, abs=2)  # each of the two is rounded
        ours = {one.pid: one for one in sample.processes or ()}
        for row in (row for row in apps if row["gpu_uuid"] == id):
            one = ours[int(row["pid"])]
            if (memory := known(row["used_memory"])) is not None:
                assert one.memory_bytes is not None
                assert one.memory_bytes // MIB == int(memory)
        if holder.pid in ours:  # a driver may hide processes inside of a container
            assert (ours[holder.pid].memory_bytes or 0) >= 1024 * MIB
            assert "python" in ours[holder.pid].command
