"""NVIDIA's part through the real binding, in a process of its own, against the NVML double."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.hardware.inventory import (
    Detection,
    Device,
    DeviceProcess,
    Driver,
    Fault,
    Link,
    LinkKind,
    PciLink,
    Problem,
    Sample,
)
from tests.nvml.double import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    GIB,
    GPU_IS_LOST,
    HOSTBRIDGE,
    MULTIPLE,
    NO_PERMISSION,
    NODE,
    RESET_REQUIRED,
    SINGLE,
    SYSTEM,
    TIMEOUT,
    UNKNOWN,
    VERSION_MISMATCH,
    NvmlDouble,
)

#: Obeys pickled lists: a method's name and its arguments; "later" and "now" start a call and fetch its result.
RUNNER = """
import pickle, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from agent.hardware import nvidia

nvidia._DETECT_SECONDS = 1.5
part, pool, calls = nvidia.Nvidia(), ThreadPoolExecutor(16), {}
output, sys.stdout = sys.stdout.buffer, sys.stderr
while True:
    name, *arguments = pickle.load(sys.stdin.buffer)
    if name == "new":
        part.close()
        answer = part = nvidia.Nvidia(Path(arguments[0]))
    elif name == "later":
        calls[arguments[0]] = pool.submit(getattr(part, arguments[1]), *arguments[2:])
    elif name == "modules":
        answer = [module for module in sys.modules if module == "pynvml"]
    else:
        answer = calls.pop(arguments[0]).result() if name == "now" else getattr(part, name)(*arguments)
    pickle.dump(None if name in ("new", "later") else answer, output)
    output.flush()
"""


class Part:
    """`Nvidia` in another process: LD_LIBRARY_PATH must be set before a process starts."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
        )

    def call(self, name: str, *arguments: object) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        pickle.dump([name, *arguments], self.process.stdin)
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)

    def new(self, root: Path) -> None:
        self.call("new", str(root))

    def detect(self) -> Detection:
        found: Detection = self.call("detect")
        return found

    def sample(self, device: str) -> Sample:
        seen: Sample = self.call("sample", device)
        return seen

    def faults(self, timeout: float) -> tuple[Fault, ...]:
        told: tuple[Fault, ...] = self.call("faults", timeout)
        return told

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Part, Path]]:
    """One process for all tests, and the folder of the state that its library reads."""
    folder = tmp_path_factory.mktemp("nvml")
    part = Part(NvmlDouble(folder).environment | {"FAKE_NVML_CALLS": str(folder / "calls")})
    yield part, folder
    part.end()


@pytest.fixture
def double(shared: tuple[Part, Path]) -> NvmlDouble:
    """A machine with a driver and no GPU yet."""
    return NvmlDouble(shared[1])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a host with 128 GiB, half of them free."""
    write(tmp_path / "proc/meminfo", f"MemTotal: {128 << 20} kB\nMemFree: 0 kB\nMemAvailable: {64 << 20} kB\n")
    return tmp_path


@pytest.fixture
def part(shared: tuple[Part, Path], double: NvmlDouble, root: Path) -> Part:
    """On the fresh machine, knowing nothing of it yet."""
    shared[0].new(root)
    return shared[0]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def on_the_bus(root: Path, address: str = "0000:1b:00.0", driver: str = "") -> None:
    folder = root / "sys/bus/pci/devices" / address
    for name, value in (("vendor", "0x10de"), ("class", "0x030200"), ("device", "0x2330")):
        write(folder / name, f"{value}\n")
    if driver:
        (folder / "driver").symlink_to(f"../../../drivers/{driver}")


def codes(detection: Detection) -> list[str]:
    return [problem.code for problem in detection.problems]


def ids(detection: Detection) -> list[str]:
    return [device.id for device in detection.devices]


# What a machine has


def test_a_gpu_is_described_by_what_its_driver_says(part: Part, double: NvmlDouble) -> None:
    (uuid,) = double.gpus(1)

    found = part.detect()

    assert found == Detection(
        vendor="nvidia",
        devices=(
            Device(
                id=uuid,
                index=0,
                vendor="nvidia",
                name="NVIDIA H100 80GB HBM3",
                memory_bytes=85_520_809_984,
                architecture="hopper",
                compute_capability="9.0",
                pci=PciLink("0000:10:00.0", generation=5, max_generation=5, width=16, max_width=16),
                numa_node=0,
                files=("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"),
                ecc=True,
                persistence=True,
                power_limit_watts=700.0,
            ),
        ),
        driver=Driver("nvidia", "580.95.05", "CUDA 13.0"),
    )


def test_a_look_at_a_gpu_has_all_its_numbers(part: Part, double: NvmlDouble) -> None:
    (uuid,) = double.gpus(
        1,
        memory=80 * GIB,
        memory_reserved=GIB,
        memory_used=20 * GIB,
        utilization=97,
        memory_utilization=55,
        power_mw=650_500,
        temperature=81,
        clock_mhz=1410,
        ecc_uncorrected=2,
        rows_remap_pending=1,
    )
    part.detect()

    seen = part.sample(uuid)

    assert seen == Sample(
        device=uuid,
        at=seen.at,
        memory_used=21 * GIB,
        memory_total=80 * GIB,
        processes=(),
        utilization=97.0,
        memory_utilization=55.0,
        power_watts=650.5,
        power_limit_watts=700.0,
        temperature_celsius=81.0,
        clock_mhz=1410,
        max_clock_mhz=1980,
        throttling=(),
        ecc_uncorrected=2,
        rows_remap_pending=True,
        rows_remap_failed=False,
    )


def test_sixteen_gpus_of_several_models_keep_their_order_and_their_own_numbers(part: Part, double: NvmlDouble) -> None:
    uuids = [
        *double.gpus(8),
        *double.gpus(7, name="NVIDIA GeForce RTX 4090", memory=24 * GIB, compute_capability="8.9", ecc=None, mig=None),
        *double.gpus(1, name="Tesla T4", memory=15 * GIB, compute_capability="7.5"),
    ]

    found = part.detect()

    assert ids(found) == uuids
    assert [device.index for device in found.devices] == list(range(16))
    assert [device.architecture for device in found.devices] == ["hopper"] * 8 + ["ada"] * 7 + ["turing"]
    assert found.devices[9].memory_bytes == 24 * GIB
    assert found.devices[9].ecc is None
    assert len(found.links) == 16 * 15 // 2
    assert part.sample(uuids[15]).memory_total == 15 * GIB


@pytest.mark.parametrize(
    ("key", "field", "unknown"),
    [
        ("compute_capability", "compute_capability", ""),
        ("architecture", "architecture", ""),
        ("pci", "pci", None),
        ("numa_node", "numa_node", None),
        ("minor", "files", ()),
        ("ecc", "ecc", None),
        ("persistence", "persistence", None),
        ("power_limit_mw", "power_limit_watts", None),
    ],
)
def test_what_a_driver_does_not_say_of_a_gpu_is_not_known(
    part: Part, double: NvmlDouble, key: str, field: str, unknown: object
) -> None:
    double.gpus(1, **{key: None})

    (device,) = part.detect().devices

    assert getattr(device, field) == unknown
    assert device.memory_bytes == 85_520_809_984


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("processes,graphics_processes,mps_processes", ["processes"]),
        ("utilization", ["utilization", "memory_utilization"]),
        ("power_mw", ["power_watts"]),
        ("power_limit_mw", ["power_limit_watts"]),
        ("temperature", ["temperature_celsius"]),
        ("clock_mhz", ["clock_mhz"]),
        ("max_clock_mhz", ["max_clock_mhz"]),
        ("ecc", ["ecc_uncorrected"]),
        ("rows_remap_pending", ["rows_remap_pending", "rows_remap_failed"]),
    ],
)
def test_what_a_driver_does_not_say_in_a_look_is_not_known(
    part: Part, double: NvmlDouble, key: str, fields: list[str]
) -> None:
    (uuid,) = double.gpus(1, **dict.fromkeys(key.split(",")))
    part.detect()

    seen = part.sample(uuid)

    assert seen.problem is None
    unknown = [field for field in Sample.__dataclass_fields__ if getattr(seen, field) is None and field != "problem"]
    assert unknown == fields


@pytest.mark.parametrize(
    "function",
    [
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetCurrentClocksEventReasons",
    ],
)
def test_an_older_driver_is_asked_in_the_older_way(part: Part, double: NvmlDouble, function: str) -> None:
    (uuid,) = double.gpus(1, memory=80 * GIB, memory_reserved=GIB, throttling=4)
    double.take(0, pid=77, memory=5 * GIB)
    double.fail(FUNCTION_NOT_FOUND, function=function)
    part.detect()

    seen = part.sample(uuid)

    assert seen.memory_used == 6 * GIB
    assert seen.processes == (DeviceProcess(77, 5 * GIB),)
    assert seen.temperature_celsius == 35
    assert seen.throttling == ("sw-power-cap",)


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (0x0, ()),
        (0x1, ()),
        (0x2, ("applications-clocks",)),
        (0x4, ("sw-power-cap",)),
        (0x8 | 0x40, ("hw-slowdown", "hw-thermal-slowdown")),
        (0x8 | 0x80, ("hw-slowdown", "hw-power-brake")),
        (0x10 | 0x20, ("sync-boost", "sw-thermal-slowdown")),
        (0x100, ("display-clock",)),
    ],
)
def test_reasons_for_a_slower_clock_are_words(
    part: Part, double: NvmlDouble, bits: int, words: tuple[str, ...]
) -> None:
    (uuid,) = double.gpus(1, throttling=bits)
    part.detect()

    assert part.sample(uuid).throttling == words


@pytest.mark.parametrize(
    "keys",
    [
        {"memory_total": None, "compute_capability": "12.1"},  # GB10: "Not Supported"
        {"memory_total": None, "compute_capability": "14.0"},  # the same of a GPU that nobody knows yet
        {"compute_capability": "12.1"},  # some drivers answer with the host's memory
        {"memory_total": 0, "compute_capability": "8.7"},
    ],
)
def test_a_gpu_without_memory_of_its_own_uses_the_hosts(
    part: Part, double: NvmlDouble, keys: dict[str, str | int | None]
) -> None:
    (uuid,) = double.gpus(1, name="NVIDIA GB10", **keys)
    double.take(0, pid=77, memory=10 * GIB)

    (device,) = part.detect().devices
    seen = part.sample(uuid)

    assert (device.memory_kind, device.memory_bytes) == ("unified", 128 * GIB)
    assert (seen.memory_total, seen.memory_used) == (128 * GIB, 64 * GIB)
    assert seen.processes == (DeviceProcess(77, 10 * GIB),)


def test_the_numa_node_is_the_kernels_where_nvml_does_not_say(part: Part, double: NvmlDouble, root: Path) -> None:
    double.gpus(1, numa_node=None)
    write(root / "sys/bus/pci/devices/0000:10:00.0/numa_node", "3\n")

    assert part.detect().devices[0].numa_node == 3


def test_a_look_costs_few_calls_of_the_driver(part: Part, double: NvmlDouble, shared: tuple[Part, Path]) -> None:
    (uuid,) = double.gpus(1)
    part.detect()
    calls = shared[1] / "calls"
    calls.unlink()

    part.sample(uuid)

    assert len(calls.read_text().split()) <= 13  # each is a system call or several on a real machine


# Processes


def test_a_process_is_named_with_its_user_and_program(part: Part, double: NvmlDouble) -> None:
    part.new(Path("/"))
    (uuid,) = double.gpus(1)
    double.take(0, pid=os.getpid(), memory=3 * GIB)
    part.detect()

    processes = part.sample(uuid).processes

    assert processes
    assert processes[0].user
    assert "py" in processes[0].command
    assert (processes[0].pid, processes[0].memory_bytes) == (os.getpid(), 3 * GIB)


def test_a_pid_that_begins_anew_gets_its_new_name(part: Part, double: NvmlDouble, root: Path) -> None:
    (uuid,) = double.gpus(1)
    double.take(0, pid=77, memory=GIB)
    part.detect()
    stat = "77 (a) b) S" + " 0" * 18 + " {start} 0\n"

    write(root / "proc/77/cmdline", "train\0--secret\0")
    write(root / "proc/77/stat", stat.format(start=100))
    first = part.sample(uuid).processes
    write(root / "proc/77/cmdline", "serve\0")
    same = part.sample(uuid).processes
    write(root / "proc/77/stat", stat.format(start=200))
    second = part.sample(uuid).processes

    assert first == same == (DeviceProcess(77, GIB, command="train"),)
    assert second == (DeviceProcess(77, GIB, command="serve"),)


def test_a_process_of_which_the_kernel_shows_nothing_has_no_name(part: Part, double: NvmlDouble) -> None:
    (uuid,) = double.gpus(1)
    double.take(0, pid=77, memory=GIB)
    part.detect()

    assert part.sample(uuid).processes == (DeviceProcess(77, GIB, user="", command=""),)


def test_processes_of_all_kinds_are_told_once_each_by_pid(part: Part, double: NvmlDouble) -> None:
    keys = {"processes": "30:300,10:na,20:200", "graphics_processes": "20:250,40:na", "mps_processes": "10:100"}
    (uuid,) = double.gpus(1, **keys)
    part.detect()

    processes = part.sample(uuid).processes

    assert processes
    assert [(one.pid, one.memory_bytes) for one in processes] == [(10, 100), (20, 250), (30, 300), (40, None)]


# How GPUs reach each other


def test_gpus_on_nvswitch_all_reach_each_other_by_it(part: Part, double: NvmlDouble) -> None:
    a, b, c = sorted(double.gpus(3, nvlink="switch*18"))
    double.set("gpu2.nvlink", "switch*16,off*2")

    links = part.detect().links

    assert links == (Link(a, b, "nvlink", 18), Link(a, c, "nvlink", 16), Link(b, c, "nvlink", 16))


def test_a_bridge_joins_the_two_gpus_that_it_is_on(part: Part, double: NvmlDouble) -> None:
    a, b, c = double.gpus(3)
    double.update({"gpu0.nvlink": "off*8,gpu1*4", "gpu1.nvlink": "gpu0*4,off*8", "gpu2.nvlink": "off*12"})

    assert part.detect().links == (Link(a, b, "nvlink", 4), Link(a, c, "sys"), Link(b, c, "sys"))


@pytest.mark.parametrize(
    ("level", "kind"),
    [
        (0, "pix"),
        (SINGLE, "pix"),
        (MULTIPLE, "pxb"),
        (HOSTBRIDGE, "phb"),
        (NODE, "node"),
        (SYSTEM, "sys"),
    ],
)
def test_the_way_over_pcie_has_nvidias_words(part: Part, double: NvmlDouble, level: int, kind: LinkKind) -> None:
    a, b = double.gpus(2)
    double.set("topology.0.1", level)

    assert part.detect().links == (Link(a, b, kind),)


@pytest.mark.parametrize("level", [None, 70])
def test_a_way_that_is_not_known_is_left_out(part: Part, double: NvmlDouble, level: int | None) -> None:
    double.gpus(2)
    double.set("topology", level)

    found = part.detect()

    assert (len(found.devices), found.links) == (2, ())


@pytest.mark.parametrize(("state", "problems"), [(None, []), (1, ["FabricNotReady"]), (2, ["FabricNotReady"]), (3, [])])
def test_gpus_whose_nvlink_fabric_is_not_set_up_are_named(
    part: Part, double: NvmlDouble, state: int | None, problems: list[str]
) -> None:
    double.gpus(2, fabric_state=3)
    double.set("gpu1.fabric_state", state)

    found = part.detect()

    assert codes(found) == problems
    assert all("GPU 1 is" in problem.message for problem in found.problems)
    assert len(found.devices) == 2


# Slices


def test_a_sliced_gpu_is_its_slices(part: Part, double: NvmlDouble, root: Path) -> None:
    whole, other = double.gpus(2)
    small, large = double.slices(0, "1g.10gb", "3g.40gb")
    minors = "gpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\ngpu0/gi2/access 21\ngpu0/gi2/ci0/access 22\n"
    write(root / "proc/driver/nvidia-caps/mig-minors", minors)

    found = part.detect()

    assert ids(found) == [small, large, other]
    first, second, _ = found.devices
    assert (first.parent, first.slice_profile, first.index) == (whole, "1g.10gb", 0)
    assert (second.parent, second.slice_profile, second.index) == (whole, "3g.40gb", 1)
    assert first.memory_bytes == 10_200_547_328
    assert first.name == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert (first.compute_capability, first.ecc, first.power_limit_watts) == ("9.0", True, None)
    assert second.files[3:] == ("/dev/nvidia-caps/nvidia-cap21", "/dev/nvidia-caps/nvidia-cap22")
    assert found.links == ()
    assert found.problems == ()


def test_a_look_at_a_slice_has_its_own_memory_and_its_gpus_health(part: Part, double: NvmlDouble) -> None:
    double.gpus(1, temperature=88, throttling=0x40, ecc_uncorrected=3)
    first, second = double.slices(0, "1g.10gb", "2g.20gb")
    double.take(0, pid=77, memory=4 * GIB, mig=1)
    part.detect()

    idle, busy = part.sample(first), part.sample(second)

    assert (idle.memory_used, idle.processes) == (0, ())
    assert (busy.memory_used, busy.memory_total) == (4 * GIB, 20_937_965_568)
    assert busy.processes == (DeviceProcess(77, 4 * GIB),)
    assert (busy.temperature_celsius, busy.throttling, busy.ecc_uncorrected) == (88, ("hw-thermal-slowdown",), 3)
    assert (busy.utilization, busy.power_watts, busy.power_limit_watts) == (None, None, None)


def test_a_gpu_in_mig_mode_without_slices_is_a_problem_with_a_remedy(part: Part, double: NvmlDouble) -> None:
    double.gpus(1)
    double.slices(0)

    found = part.detect()

    assert (found.devices, codes(found)) == ((), ["NoSlices"])
    assert found.problems[0].device == double.uuid(0)
    assert "nvidia-smi mig -i 0 -cgi" in found.problems[0].message


def test_a_gpu_that_is_sliced_at_run_time_is_no_device_as_a_whole_any_more(part: Part, double: NvmlDouble) -> None:
    (whole,) = double.gpus(1)
    part.detect()
    (piece,) = double.slices(0, "7g.80gb")

    problem = part.sample(whole).problem
    now = part.detect()
    double.whole(0)
    gone = part.sample(piece).problem
    then = part.detect()

    assert problem
    assert problem.code == "Sliced"
    assert ids(now) == [piece]
    assert gone
    assert gone.code == "DeviceLost"
    assert ids(then) == [whole]


# What may be wrong with all of them


@pytest.mark.parametrize(
    ("code", "traces", "problem", "advice"),
    [
        (DRIVER_NOT_LOADED, [], "DriverNotLoaded", "no NVIDIA GPU is on the bus"),
        (DRIVER_NOT_LOADED, ["bus"], "DriverNotLoaded", "modprobe nvidia"),
        (DRIVER_NOT_LOADED, ["bus", "module"], "NoDevices", "--gpus all"),
        (VERSION_MISMATCH, ["bus", "module", "control"], "VersionMismatch", "restart the host"),
        (NO_PERMISSION, ["bus", "module", "control"], "NoPermission", "/dev/nvidia*"),
        (17, ["module", "control"], "NoPermission", "/dev/nvidia*"),  # the operating system blocks it
        (28, ["module", "control"], "NoDevices", "lspci"),  # GPU not found
        (UNKNOWN, ["bus", "module", "control"], "DriverNoAnswer", "dmesg"),
        (TIMEOUT, ["module", "control"], "DriverNoAnswer", "dmesg"),
    ],
)
def test_a_driver_that_cannot_be_used_says_why_and_what_to_do(
    part: Part, double: NvmlDouble, root: Path, code: int, traces: list[str], problem: str, advice: str
) -> None:
    double.gpus(2)
    double.fail(code)
    if "bus" in traces:
        on_the_bus(root)
    if "module" in traces:
        write(root / "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module 580.95.05\n")
    if "control" in traces:
        write(root / "dev/nvidiactl", "")

    found = part.detect()

    assert (found.devices, found.driver) == ((), None)
    assert [(one.code, one.device, one.vendor) for one in found.problems] == [(problem, "", "nvidia")]
    assert advice in found.problems[0].message


def test_a_driver_without_gpus_is_a_problem(part: Part, double: NvmlDouble) -> None:
    found = part.detect()

    assert (found.devices, codes(found)) == ((), ["NoDevices"])
    assert found.driver == Driver("nvidia", "580.95.05", "CUDA 13.0")


def test_a_driver_that_goes_and_comes_back_is_used_again(part: Part, double: NvmlDouble) -> None:
    (uuid,) = double.gpus(1)
    part.detect()

    double.fail(DRIVER_NOT_LOADED)
    problem = part.sample(uuid).problem
    gone = part.detect()
    double.fail(0)
    back = part.detect()

    assert problem
    assert (problem.code, problem.device) == ("DriverNotLoaded", uuid)
    assert codes(gone) == ["DriverNotLoaded"]
    assert (ids(back), back.problems) == ([uuid], ())
    assert part.sample(uuid).problem is None


@pytest.mark.parametrize(
    ("bus", "problems"), [(None, []), ("", ["LibraryMissing"]), ("nouveau", ["LibraryMissing"]), ("vfio-pci", [])]
)
def test_a_missing_library_is_a_problem_only_where_a_gpu_is(
    tmp_path: Path, root: Path, bus: str | None, problems: list[str]
) -> None:
    write(tmp_path / "broken/libnvidia-ml.so.1", "not a library")
    if bus is not None:
        on_the_bus(root, driver=bus)
    part = Part({"LD_LIBRARY_PATH": str(tmp_path / "broken")})
    try:
        part.new(root)
        found = part.detect()
    finally:
        part.end()

    assert (found.devices, codes(found)) == ((), problems)
    assert all("0000:1b:00.0" in problem.message and (bus or "") in problem.message for problem in found.problems)


# What may be wrong with one of them


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (GPU_IS_LOST, "DeviceLost"),
        (RESET_REQUIRED, "ResetRequired"),
        (TIMEOUT, "NoAnswer"),
        (UNKNOWN, "NoAnswer"),
        (NO_PERMISSION, "NoPermission"),
    ],
)
def test_a_sick_gpu_is_named_and_the_others_are_as_ever(
    part: Part, double: NvmlDouble, code: int, problem: str
) -> None:
    sick, well = double.gpus(2)
    part.detect()
    double.fail(code, gpu=0)

    seen, found = part.sample(sick), part.detect()

    assert seen.problem
    assert (seen.problem.code, seen.problem.device, seen.memory_used) == (problem, sick, None)
    assert ids(found) == [well]
    assert [(one.code, one.device) for one in found.problems] == [(problem, sick)]
    assert part.sample(well).problem is None


def test_a_gpu_that_was_lost_is_a_device_again_when_it_answers(part: Part, double: NvmlDouble) -> None:
    first, second = double.gpus(2)
    part.detect()
    double.fail(GPU_IS_LOST, gpu=1)
    part.detect()
    again = part.detect()  # it is still known by its id
    double.fail(0, gpu=1)
    back = part.detect()

    assert [(one.code, one.device) for one in again.problems] == [("DeviceLost", second)]
    assert (ids(back), back.problems) == ([first, second], ())


def test_a_gpu_that_is_taken_out_is_lost_though_another_has_its_index(part: Part, double: NvmlDouble) -> None:
    first, second = double.gpus(2)
    part.detect()
    double.update({"gpu0.uuid": second, "gpu1.uuid": None, "count": 1, "gpu0.memory_used": 5 * GIB})

    assert part.sample(first).problem == Problem(
        "DeviceLost",
        "NVIDIA H100 80GB HBM3 has fallen off the bus or was taken away (GPU is lost): look at the kernel's log "
        "(`dmesg | grep Xid`)",
        first,
        "nvidia",
    )
    assert part.sample(second).memory_used == 5 * GIB
    assert ids(part.detect()) == [second]


def test_a_device_that_was_never_found_is_lost(part: Part, double: NvmlDouble) -> None:
    double.gpus(1)
    part.detect()

    problem = part.sample("GPU-nobody").problem

    assert problem
    assert problem.code == "DeviceLost"


def test_one_failing_question_costs_its_answer_and_nothing_else(part: Part, double: NvmlDouble) -> None:
    (uuid,) = double.gpus(1)
    double.fail(UNKNOWN, gpu=0, function="nvmlDeviceGetUtilizationRates")
    part.detect()

    seen = part.sample(uuid)

    assert (seen.problem, seen.utilization, seen.temperature_celsius) == (None, None, 35)


def test_a_gpu_that_is_lost_in_the_middle_of_a_look_is_lost(part: Part, double: NvmlDouble) -> None:
    (uuid,) = double.gpus(1)
    part.detect()
    double.fail(GPU_IS_LOST, gpu=0, function="nvmlDeviceGetPowerUsage")

    seen = part.sample(uuid)

    assert seen.problem
    assert (seen.problem.code, seen.memory_used) == ("DeviceLost", None)


def test_a_gpu_that_does_not_answer_is_not_taken_for_one_that_had_its_index(part: Part, double: NvmlDouble) -> None:
    _, second = double.gpus(2)
    part.detect()
    double.update({"gpu0.uuid": second, "gpu1.uuid": "GPU-new", "gpu1.error": UNKNOWN})

    found = part.detect()

    assert ids(found) == [second]
    assert [(one.code, one.device) for one in found.problems] == [("NoAnswer", "")]


def test_a_gpu_that_hangs_holds_up_no_look_at_another(part: Part, double: NvmlDouble) -> None:
    hanging, well = double.gpus(2)
    part.detect()
    double.hang(0)
    part.call("later", "look", "sample", hanging)

    meanwhile = part.sample(well)
    double.hang(0, on=False)

    assert meanwhile.problem is None
    assert part.call("now", "look").problem is None


def test_a_gpu_that_hangs_at_a_detection_stays_what_it_was(part: Part, double: NvmlDouble) -> None:
    first, hanging = double.gpus(2)
    part.detect()
    double.hang(1)

    found = part.detect()
    double.hang(1, on=False)
    while (back := part.detect()).problems:  # until the call under way has come back
        pass

    assert ids(found) == [first, hanging]
    assert [(one.code, one.device) for one in found.problems] == [("NoAnswer", hanging)]
    assert (ids(back), back.problems) == ([first, hanging], ())


def test_a_gpu_that_hangs_from_the_beginning_leaves_the_others_to_be_found(
    part: Part, double: NvmlDouble, shared: tuple[Part, Path]
) -> None:
    _, well = double.gpus(2)
    double.hang(0)
    calls = shared[1] / "calls"
    calls.unlink(missing_ok=True)

    found = part.detect()
    again = part.detect()
    double.hang(0, on=False)

    assert ids(found) == ids(again) == [well]
    assert codes(found) == codes(again) == ["NoAnswer"]
    assert part.sample(well).problem is None
    # The call under way is not made a second time: threads that hang must not pile up.
    assert calls.read_text().split().count("nvmlDeviceGetHandleByIndex_v2") == 3


# What the driver tells by itself


def test_an_xid_is_told_with_its_number_and_its_gpu(part: Part, double: NvmlDouble) -> None:
    _, second = double.gpus(2)
    part.detect()
    double.xid(1, 79)

    (fault,) = part.faults(5)

    assert (fault.device, fault.kind, fault.number) == (second, "xid", 79)


def test_faults_that_come_together_are_told_together_in_order(part: Part, double: NvmlDouble) -> None:
    first, second = double.gpus(2)
    part.detect()
    double.xid(0, 48)
    double.ecc(0)
    double.xid(1, 94)

    told = [(fault.device, fault.kind, fault.number) for fault in part.faults(90)]  # waits for the first one only

    assert told == [(first, "xid", 48), (first, "ecc", 0), (second, "xid", 94)]
    assert part.sample(first).ecc_uncorrected == 1


def test_the_fault_of_a_gpu_that_is_lost_by_it_has_its_name(part: Part, double: NvmlDouble) -> None:
    (uuid,) = double.gpus(1)
    part.detect()
    double.fail(GPU_IS_LOST, gpu=0)
    double.xid(0, 79)

    assert [fault.device for fault in part.faults(5)] == [uuid]


def test_without_faults_the_wait_ends_with_none(part: Part, double: NvmlDouble) -> None:
    double.gpus(1)

    assert part.faults(0.01) == ()
    part.detect()
    assert part.faults(0.01) == ()


def test_a_fault_between_two_detections_is_told_once(part: Part, double: NvmlDouble) -> None:
    double.gpus(1)
    part.detect()
    double.xid(0, 31)
    part.detect()

    assert [fault.number for fault in part.faults(5)] == [31]
    assert part.faults(0.01) == ()


def test_a_gpu_that_comes_later_is_listened_to_as_well(part: Part, double: NvmlDouble) -> None:
    double.gpus(1)
    part.detect()
    (late,) = double.gpus(1)
    part.detect()
    double.xid(1, 63)

    assert [fault.device for fault in part.faults(5)] == [late]


def test_a_gpu_that_hangs_is_still_listened_to(part: Part, double: NvmlDouble) -> None:
    _, hanging = double.gpus(2)
    part.detect()
    double.hang(1)
    part.detect()
    double.xid(1, 119)

    told = part.faults(5)
    double.hang(1, on=False)

    assert [(fault.device, fault.number) for fault in told] == [(hanging, 119)]


def test_the_faults_of_a_slice_are_its_gpus(part: Part, double: NvmlDouble) -> None:
    (whole,) = double.gpus(1)
    double.slices(0, "1g.10gb", "1g.10gb")
    part.detect()
    double.xid(0, 94)

    assert [fault.device for fault in part.faults(5)] == [whole]


def test_listening_goes_on_after_the_next_detection_when_it_broke(part: Part, double: NvmlDouble) -> None:
    (uuid,) = double.gpus(1)
    part.detect()
    double.fail(GPU_IS_LOST, function="nvmlEventSetWait_v2")
    broken = part.faults(5)
    double.fail(0, function="nvmlEventSetWait_v2")
    still = part.faults(5)
    part.detect()
    double.xid(0, 13)

    assert (broken, still) == ((), ())
    assert [fault.device for fault in part.faults(5)] == [uuid]


@pytest.mark.parametrize("keys", [{"event_types": None}, {"event_types": 4}])
def test_a_gpu_that_tells_nothing_by_itself_is_a_device_like_any(
    part: Part, double: NvmlDouble, keys: dict[str, int | None]
) -> None:
    double.gpus(1, **keys)

    assert part.detect().problems == ()
    assert part.faults(0.01) == ()


# Whether there is anything to look for


def test_nothing_is_present_on_a_host_without_nvidia(root: Path, tmp_path: Path) -> None:
    part = Part({"LD_LIBRARY_PATH": str(tmp_path / "empty")})
    try:
        part.new(root)
        assert part.call("present") is False
        assert part.detect() == Detection("nvidia")
    finally:
        part.end()


def test_a_look_for_hardware_loads_nothing(double: NvmlDouble, root: Path) -> None:
    part = Part(double.environment)
    try:
        part.new(root)
        assert part.call("present") is True  # the double is on LD_LIBRARY_PATH
        assert part.call("modules") == []
    finally:
        part.end()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("dev/nvidiactl", ""),
        ("proc/driver/nvidia/version", "580"),
        ("sys/module/nvidia/version", "580"),
        ("usr/lib64/libnvidia-ml.so.1", ""),
        ("etc/ld.so.cache", "glibc-ld.so.cache1.1 libnvidia-ml.so.1\0/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1\0"),
    ],
)
def test_any_trace_of_a_driver_makes_nvidia_present(
    monkeypatch: pytest.MonkeyPatch, root: Path, path: str, content: str
) -> None:
    from agent.hardware.nvidia import Nvidia

    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    assert not Nvidia(root).present()

    write(root / path, content)

    assert Nvidia(root).present()


@pytest.mark.parametrize(("driver", "present"), [("", True), ("nouveau", True), ("vfio-pci", False)])
def test_a_gpu_on_the_bus_makes_nvidia_present_unless_it_was_given_to_a_guest(
    monkeypatch: pytest.MonkeyPatch, root: Path, driver: str, present: bool
) -> None:
    from agent.hardware.nvidia import Nvidia

    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    on_the_bus(root, driver=driver)

    assert Nvidia(root).present() is present
