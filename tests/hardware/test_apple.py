"""Apple silicon: what macOS's commands print, by stand-ins for the commands; and hosts that are no such Mac."""

from __future__ import annotations

import json
import plistlib
from pathlib import Path

import pytest

from agent.hardware.apple import Apple, displays, performance, working_set
from agent.hardware.inventory import Driver

GIB = 1024**3
#: `system_profiler SPDisplaysDataType -json` of an M3 Max, shortened.
DISPLAYS = {
    "SPDisplaysDataType": [
        {
            "_name": "Apple M3 Max",
            "spdisplays_mtlgpufamilysupport": "spdisplays_metal3",
            "spdisplays_ndrvs": [{"_name": "Color LCD", "_spdisplays_pixels": "3456 x 2234"}],
            "spdisplays_vendor": "sppci_vendor_Apple",
            "sppci_bus": "spdisplays_builtin",
            "sppci_cores": "40",
            "sppci_device_type": "spdisplays_gpu",
            "sppci_model": "Apple M3 Max",
        }
    ]
}
#: `ioreg -r -d 1 -c IOAccelerator -a` of the same, shortened.
ACCELERATOR = [
    {
        "IOClass": "AGXAcceleratorG15X",
        "gpu-core-count": 40,
        "PerformanceStatistics": {
            "Alloc system memory": 21474836480,
            "Device Utilization %": 63,
            "In use system memory": 19327352832,
            "In use system memory (driver)": 0,
            "Renderer Utilization %": 61,
        },
    }
]
SYSCTL = {
    "hw.optional.arm64": "1",
    "hw.memsize": str(128 * GIB),
    "machdep.cpu.brand_string": "Apple M3 Max",
    "iogpu.wired_limit_mb": "0",
}


@pytest.fixture
def mac(tmp_path: Path) -> Path:
    """Commands that print what a MacBook Pro with an M3 Max and 128 GiB prints."""
    version = tmp_path / "System/Library/CoreServices/SystemVersion.plist"
    version.parent.mkdir(parents=True)
    version.write_bytes(plistlib.dumps({"ProductName": "macOS", "ProductVersion": "15.5"}))
    sysctl(tmp_path, SYSCTL)
    prints(tmp_path, "system_profiler", json.dumps(DISPLAYS).encode())
    prints(tmp_path, "ioreg", plistlib.dumps(ACCELERATOR))
    return tmp_path


def prints(root: Path, command: str, output: bytes) -> None:
    (root / "usr/sbin").mkdir(parents=True, exist_ok=True)
    (root / f"usr/sbin/{command}.out").write_bytes(output)
    script(root, command, 'exec cat "$0.out"')


def sysctl(root: Path, values: dict[str, str]) -> None:
    """Knows these keys, and fails for others, as on a Mac of another kind."""
    cases = "".join(f"{key}) echo '{value}';;\n" for key, value in values.items())
    script(root, "sysctl", f'case "$2" in\n{cases}*) exit 1;;\nesac')


def script(root: Path, command: str, text: str) -> None:
    path = root / "usr/sbin" / command
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_host_without_macos_has_nothing_to_say(tmp_path: Path) -> None:
    assert not Apple(tmp_path).present()
    assert Apple(tmp_path).detect().devices == Apple(tmp_path).detect().problems == ()


def test_this_host_is_looked_at_without_running_a_command() -> None:
    assert Apple().present() is Path("/System/Library/CoreServices/SystemVersion.plist").exists()


def test_a_mac_has_one_gpu_in_the_hosts_memory(mac: Path) -> None:
    apple = Apple(mac)

    found = apple.detect()

    (device,) = found.devices
    assert apple.present()
    assert (device.id, device.name, device.vendor) == ("apple-gpu", "Apple M3 Max", "apple")
    assert (device.memory_bytes, device.memory_kind) == (96 * GIB, "unified")
    assert found.driver == Driver("apple", "macOS 15.5", "Metal 3")
    assert found.problems == ()


def test_a_limit_that_the_operator_set_holds(mac: Path) -> None:
    sysctl(mac, SYSCTL | {"iogpu.wired_limit_mb": str(120 * 1024)})

    assert Apple(mac).detect().devices[0].memory_bytes == 120 * GIB


def test_a_sample_says_what_the_gpu_uses_and_how_busy_it_is(mac: Path) -> None:
    apple = Apple(mac)
    apple.detect()

    sample = apple.sample("apple-gpu")

    assert (sample.memory_used, sample.memory_total) == (18 * GIB, 96 * GIB)
    assert sample.utilization == 63
    assert sample.processes is None
    assert sample.problem is None


def test_a_mac_with_an_intel_processor_has_no_device(mac: Path) -> None:
    sysctl(mac, {"hw.memsize": str(16 * GIB)})

    assert Apple(mac).detect().devices == ()


def test_a_gpu_that_the_profiler_does_not_describe_is_named_after_its_processor(mac: Path) -> None:
    script(mac, "system_profiler", "exit 1")

    found = Apple(mac).detect()

    assert found.devices[0].name == "Apple M3 Max"
    assert found.driver == Driver("apple", "macOS 15.5", "")


def test_a_memory_that_is_not_told_is_a_problem(mac: Path) -> None:
    sysctl(mac, {"hw.optional.arm64": "1"})

    (problem,) = Apple(mac).detect().problems

    assert (problem.code, problem.vendor) == ("NoAnswer", "apple")


@pytest.mark.parametrize("text", ["exec sleep 60", "exit 1", "echo garbage", "echo '<plist>'", ""])
def test_a_command_that_hangs_or_fails_is_no_answer(mac: Path, text: str) -> None:
    script(mac, "ioreg", text)
    apple = Apple(mac)
    apple.detect()

    problem = apple.sample("apple-gpu").problem

    assert problem is not None
    assert problem.code == "NoAnswer"


@pytest.mark.parametrize(("memory", "megabytes"), [(32, 22906.50), (36, 28991.03), (128, 103079.22)])
def test_the_working_set_is_what_metal_recommends(memory: int, megabytes: float) -> None:
    """As llama.cpp logs it on such Macs; macOS rounds it to whole pages."""
    assert working_set(memory * GIB, 0) / 1e6 == pytest.approx(megabytes, abs=0.05)


def test_a_limit_beyond_the_memory_gives_all_of_it() -> None:
    assert working_set(64 * GIB, 100 * 1024) == 64 * GIB


@pytest.mark.parametrize(
    "listing", [b"", b"{}", b"[]", b"\xff", b'{"SPDisplaysDataType": [1]}', b'{"SPDisplaysDataType": 1}']
)
def test_other_listings_describe_no_gpu(listing: bytes) -> None:
    assert displays(listing) == {}


@pytest.mark.parametrize("value", [{}, [], [1], [{"PerformanceStatistics": 1}], "text"])
def test_other_registries_tell_no_performance(value: object) -> None:
    assert performance(plistlib.dumps(value)) == {}


def test_waiting_for_faults_ends_when_the_driver_is_let_go(tmp_path: Path) -> None:
    apple = Apple(tmp_path)

    assert apple.faults(0) == ()
    apple.close()
    assert apple.faults(3600) == ()
