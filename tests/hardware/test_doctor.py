"""The doctor's checks on a healthy machine, and on the same machine with one fault planted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.hardware.doctor import diagnose
from agent.hardware.inventory import (
    ContainerRuntime,
    Device,
    Disk,
    Driver,
    Inventory,
    Memory,
    PciLink,
    Problem,
    System,
)
from agent.status import Condition, DeviceCondition, DeviceProcess, DeviceStatus, Finding, FindingLevel

GIB = 1024**3
ERROR, WARNING, UNKNOWN, NOTE, OK = (
    FindingLevel.ERROR,
    FindingLevel.WARNING,
    FindingLevel.UNKNOWN,
    FindingLevel.NOTE,
    FindingLevel.OK,
)

GPU = Device(
    id="GPU-5a1b2c3d-0000-1111-2222-333344445555",
    index=0,
    vendor="nvidia",
    name="NVIDIA H100 80GB HBM3",
    memory_bytes=80 * GIB,
    pci=PciLink("0000:1b:00.0", generation=1, max_generation=5, width=16, max_width=16),
    persistence=True,
)
STATUS = DeviceStatus(
    id=GPU.id,
    index=0,
    vendor="nvidia",
    name=GPU.name,
    condition=DeviceCondition.HEALTHY,
    reason="Healthy",
    message="",
    since=1.0,
    memory_total=80 * GIB,
    processes=(DeviceProcess(10, GIB, "agent", "llama-server", instance="chat-1"),),
)
DOCKER = ContainerRuntime("docker", "/var/run/docker.sock", "28.1.1", runtimes=("runc", "nvidia"))
HEALTHY = Inventory(
    hostname="node1",
    os="Debian GNU/Linux 13 (trixie)",
    kernel="6.12.0",
    machine="x86_64",
    cpu_model="AMD EPYC 9654 96-Core Processor",
    physical_cores=96,
    logical_cores=192,
    cpu_quota=None,
    cpu_flags=("avx", "avx2", "avx512f"),
    memory=Memory(512 * GIB, 400 * GIB),
    disks=(
        Disk("state", "/var/lib/llm-node-agent", "ext4", 100 * GIB, 50 * GIB),
        Disk("cache", "/var/cache/llm-node-agent", "xfs", 2000 * GIB, 900 * GIB),
    ),
    containers=(DOCKER,),
    system=System(
        nouveau_loaded=False,
        shm_bytes=256 * GIB,
        open_files=65535,
        locked_memory=-1,
        clock_synchronized=True,
        in_container=False,
    ),
    devices=(GPU,),
    drivers=(Driver("nvidia", "580.95.05", "CUDA 13.0"),),
)
CPU_ONLY = replace(HEALTHY, devices=(), drivers=(), containers=(), system=replace(HEALTHY.system, nouveau_loaded=False))
CONDITIONS = (
    Condition("StateHealthy", True, "StateWritable", "changes are made durable", 1.0),
    Condition("LimitsEnforced", True, "CgroupsWritable", "limits of a spec are enforced by the kernel", 1.0),
    Condition("DevicesDetected", True, "DevicesDetected", "1 device", 1.0),
    Condition("DevicesWatched", None, "NoDevices", "no hardware is here", 1.0),
)


def of(check: str, found: tuple[Finding, ...]) -> list[Finding]:
    return [finding for finding in found if finding.check == check]


def test_a_healthy_machine_is_all_ok() -> None:
    found = diagnose(HEALTHY, [STATUS], CONDITIONS)
    assert {finding.level for finding in found} == {OK}
    assert all(finding.message and not finding.remedy for finding in found)


def test_a_healthy_machine_without_devices_has_notes_and_nothing_worse() -> None:
    found = diagnose(CPU_ONLY, [], CONDITIONS)
    assert {finding.check for finding in found if finding.level is not OK} == {"devices", "containers"}
    assert {finding.level for finding in found} == {OK, NOTE}


def test_every_check_is_said_on_a_healthy_machine_so_that_a_report_shows_what_was_looked_at() -> None:
    checks = [finding.check for finding in diagnose(HEALTHY, [STATUS], CONDITIONS)]
    assert checks == [
        "nvidia-driver", "engine-images", "nouveau", "device-health", "device-files", "persistence", "pcie-width",
        "containers", "container-gpus", "disk-space", "shared-memory", "open-files", "locked-memory", "clock",
        "cpu-flags", "state-healthy", "limits-enforced",
    ]  # fmt: skip


def system(**changes: Any) -> Inventory:
    return replace(HEALTHY, system=replace(HEALTHY.system, **changes))


def device(**changes: Any) -> Inventory:
    return replace(HEALTHY, devices=(replace(GPU, **changes),))


def driver(version: str, api: str = "") -> Inventory:
    return replace(HEALTHY, drivers=(Driver("nvidia", version, api),))


def undriven(code: str, message: str) -> Inventory:
    """A GPU in the machine, and no driver that shows it."""
    return replace(HEALTHY, devices=(), drivers=(), problems=(Problem(code, message, vendor="nvidia"),))


def disk(purpose: str, free: int) -> Inventory:
    return replace(HEALTHY, disks=(Disk(purpose, f"/{purpose}", "ext4", 100 * GIB, free),))


#: Numbers and "all" name no device of a plan.
NUMBERED = ContainerRuntime("podman", "", "5.4", cdi_devices=("nvidia.com/gpu=0", "nvidia.com/gpu=all"))
#: Fault, the machine with it, the check that says so, its level, words of its message, words of its remedy.
FAULTS: list[tuple[str, Inventory, str, FindingLevel, str, str]] = [
    ("no driver", undriven("DriverNotLoaded", "an NVIDIA GPU is at 0000:1b:00.0"), "nvidia-driver", ERROR,
     "DriverNotLoaded: an NVIDIA GPU", "install NVIDIA's driver"),
    ("no library", undriven("LibraryMissing", "no libnvidia-ml.so.1"), "nvidia-driver", ERROR,
     "LibraryMissing", "libnvidia-ml.so.1"),
    ("mismatch", undriven("VersionMismatch", "580.95 and 580.65"), "nvidia-driver", ERROR,
     "VersionMismatch", "modprobe -r nvidia_uvm"),
    ("no permission", undriven("NoPermission", "/dev/nvidiactl"), "nvidia-driver", ERROR, "NoPermission", "`video`"),
    ("no fabric", undriven("FabricNotReady", "of GPU 0, 1"), "nvidia-driver", ERROR, "GPU 0, 1", "fabricmanager"),
    ("a hanging driver", undriven("NoAnswer", "for 10 s"), "nvidia-driver", ERROR, "NoAnswer", "journalctl -k"),
    ("a problem of a newer part", undriven("SomethingNew", "odd"), "nvidia-driver", ERROR, "SomethingNew: odd",
     "kernel log"),
    ("a driver too old for CUDA 13", driver("570.124.06", "CUDA 12.8"), "engine-images", WARNING,
     "nvidia driver 570.124.06 (CUDA 12.8) is too old for the images of vLLM", "580 or newer"),
    ("a driver too old for two", driver("535.129.03"), "engine-images", WARNING, "Ollama: 550 or newer", "580"),
    ("a driver too old for all", driver("470.256.02"), "engine-images", ERROR, "images with CUDA 12", "580"),
    ("a driver of no version", driver("unknown"), "engine-images", UNKNOWN, "'unknown'", ""),
    ("nouveau", replace(undriven("DriverNotLoaded", "x"), system=replace(HEALTHY.system, nouveau_loaded=True)),
     "nouveau", ERROR, "no engine can compute", "blacklist nouveau"),
    ("nouveau beside the driver", system(nouveau_loaded=True), "nouveau", WARNING, "beside", "blacklist nouveau"),
    ("no persistence", device(persistence=False), "persistence", WARNING,
     "device 0 (NVIDIA H100 80GB HBM3)", "nvidia-persistenced"),
    ("half the lanes", device(pci=replace(GPU.pci, width=8)), "pcie-width", WARNING, "x8 of x16", "reseat"),  # type: ignore[type-var]
    ("denied files", system(device_cgroup_denies=("/dev/nvidia0", "/dev/nvidiactl")), "device-files", ERROR,
     "/dev/nvidia0, /dev/nvidiactl", "--gpus all"),
    ("docker that does not answer", replace(HEALTHY, containers=(replace(DOCKER, problem="connection refused"),)),
     "containers", WARNING, "docker 28.1.1 at /var/run/docker.sock cannot be used", "systemctl enable --now docker"),
    ("docker that is not permitted", replace(HEALTHY, containers=(replace(DOCKER, problem="Permission denied"),)),
     "containers", WARNING, "Permission denied", "add the user of agentd to docker"),
    ("docker without GPUs", replace(HEALTHY, containers=(replace(DOCKER, runtimes=("runc",)),)), "container-gpus",
     WARNING, "neither the nvidia runtime nor CDI", "nvidia-ctk runtime configure"),
    ("podman without GPUs", replace(HEALTHY, containers=(ContainerRuntime("podman", "", "5.4"),)), "container-gpus",
     WARNING, "podman 5.4 has neither", "nvidia-ctk cdi generate"),
    ("a specification without UUIDs", replace(HEALTHY, containers=(NUMBERED,)), "container-gpus", WARNING,
     "nor CDI devices by UUID", "nvidia-ctk cdi generate"),
    ("a cache disk that is low", disk("cache", 19 * GIB), "disk-space", WARNING, "less than 20.0 GiB",
     "directories.cache"),
    ("a state disk that is low", disk("state", GIB - 1), "disk-space", WARNING, "1024 MiB free of 100.0 GiB",
     "directories.state"),
    ("a state disk that is full", disk("state", 1024), "disk-space", ERROR, "0 MiB free", "free space"),
    ("a container's shared memory", system(shm_bytes=64 * 1024**2), "shared-memory", WARNING, "64 MiB", "--shm-size"),
    ("unknown shared memory", system(shm_bytes=None), "shared-memory", UNKNOWN, "not known", ""),
    ("few open files", system(open_files=1024), "open-files", WARNING, "1024 files", "LimitNOFILE=65535"),
    ("no disk to be looked at", replace(HEALTHY, disks=()), "disk-space", UNKNOWN, "could be looked at", ""),
    ("unknown open files", system(open_files=None), "open-files", UNKNOWN, "not known", ""),
    ("locked memory", system(locked_memory=8 * 1024**2), "locked-memory", NOTE, "8 MiB", ""),
    ("a clock that runs free", system(clock_synchronized=False), "clock", WARNING, "not synchronised", "set-ntp"),
    ("an unknown clock", system(clock_synchronized=None), "clock", UNKNOWN, "not known", ""),
    ("swap", replace(HEALTHY, memory=replace(HEALTHY.memory, swap=8 * GIB)), "swap", NOTE, "8.0 GiB of swap", ""),
    ("an old CPU", replace(HEALTHY, cpu_flags=("avx",)), "cpu-flags", WARNING, "no AVX2 (flags: avx)", "build"),
    ("a container", system(in_container=True), "container", NOTE, "runs in a container", ""),
    ("simulation", replace(HEALTHY, simulated="h100-sxm:8"), "simulated", NOTE, "h100-sxm:8", ""),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
def test_a_planted_fault_is_said_with_its_remedy_and_nothing_else_is(fault: tuple[Any, ...]) -> None:
    name, machine, check, level, words, remedy = fault
    found = diagnose(machine, [STATUS] if machine.devices else [], CONDITIONS)
    told = [finding for finding in of(check, found) if finding.level is level and words in finding.message]
    assert len(told) == 1, found
    assert remedy in told[0].remedy
    assert bool(told[0].remedy) == (level in {WARNING, ERROR})
    allowed = {check, "devices"} | ({"nvidia-driver"} if "nouveau" in name else set())
    assert {finding.check for finding in found if finding.level is not OK} <= allowed


#: Condition and reason of a device, and how bad the doctor calls it.
SICK = [
    (DeviceCondition.DEGRADED, "RowRemapPending", WARNING, "agentctl devices quarantine"),
    (DeviceCondition.QUARANTINED, "Xid48", ERROR, f"agentctl devices release {GPU.id}"),
    (DeviceCondition.QUARANTINED, "OperatorQuarantine", WARNING, f"agentctl devices release {GPU.id}"),
    (DeviceCondition.LOST, "Xid79", ERROR, "reseated"),
    (DeviceCondition.UNKNOWN, "NoAnswer", ERROR, "reset of the device"),
    (DeviceCondition.UNKNOWN, "NotSampled", UNKNOWN, ""),
]


@pytest.mark.parametrize(("condition", "reason", "level", "remedy"), SICK)
def test_a_device_that_is_not_well_is_said_by_name(
    condition: DeviceCondition, reason: str, level: FindingLevel, remedy: str
) -> None:
    second = replace(STATUS, id="GPU-2", index=1)
    sick = replace(STATUS, condition=condition, reason=reason, message="what it says")
    first, rest = of("device-health", diagnose(HEALTHY, [sick, second]))
    assert first.level is level
    assert first.message == f"device 0 (NVIDIA H100 80GB HBM3, {GPU.id}) is {condition}: {reason}: what it says"
    assert remedy in first.remedy
    assert (rest.level, rest.message) == (OK, "1 of 2 devices are healthy")


def test_devices_that_were_not_sampled_are_not_called_healthy() -> None:
    (finding,) = of("device-health", diagnose(HEALTHY))
    assert finding.level is UNKNOWN


def test_a_problem_of_one_device_is_said_once_by_its_condition() -> None:
    lost = replace(STATUS, condition=DeviceCondition.LOST, reason="DeviceLost", message="gone")
    problem = Problem("DeviceLost", "gone", device=GPU.id, vendor="nvidia")
    machine = replace(HEALTHY, problems=(problem,))
    assert [finding.check for finding in diagnose(machine, [lost]) if finding.level is ERROR] == ["device-health"]
    assert [finding.check for finding in diagnose(machine) if finding.level is ERROR] == ["device-detection"]


def test_strangers_on_a_device_are_named_without_their_arguments() -> None:
    stranger = DeviceProcess(4242, 20 * GIB, "ann", "/usr/bin/python3 train.py --api-key sk-123")
    hidden = DeviceProcess(7, None)
    (finding,) = of("device-tenants", diagnose(HEALTHY, [replace(STATUS, processes=(stranger, hidden))]))
    assert finding.level is NOTE
    assert "python3 (pid 4242, user ann, 20.0 GiB); a process (pid 7, user unknown, memory not told)" in finding.message
    assert "sk-123" not in finding.message


def test_containers_get_gpus_by_cdi_too() -> None:
    podman = ContainerRuntime("podman", "", "5.4", cdi_devices=("nvidia.com/gpu=GPU-1", "nvidia.com/gpu=all"))
    (finding,) = of("container-gpus", diagnose(replace(HEALTHY, containers=(podman,)), [STATUS]))
    assert (finding.level, finding.message) == (OK, "podman gives GPUs to containers by CDI")


def test_containers_need_nothing_of_nvidia_for_an_amd_device() -> None:
    machine = replace(HEALTHY, devices=(replace(GPU, vendor="amd"),), containers=(replace(DOCKER, runtimes=("runc",)),))
    assert of("container-gpus", diagnose(machine)) == []


def test_a_small_shared_memory_is_no_fault_where_there_are_no_devices() -> None:
    machine = replace(CPU_ONLY, system=replace(CPU_ONLY.system, shm_bytes=64 * 1024**2))
    assert [finding.level for finding in of("shared-memory", diagnose(machine))] == [OK]


def test_a_cpu_of_another_kind_needs_no_avx2() -> None:
    assert of("cpu-flags", diagnose(replace(HEALTHY, machine="aarch64", cpu_flags=())))[0].level is OK


@pytest.mark.parametrize(
    ("condition", "level"),
    [
        (Condition("StateHealthy", False, "StateNotWritable", "the disk is full", 1.0), ERROR),
        (Condition("StateHealthy", False, "StateRecreated", "begun anew", 1.0), WARNING),
        (Condition("StraysAbsent", False, "StraysFound", "pid 7", 1.0), WARNING),
        (Condition("StraysAbsent", None, "NotSwept", "not yet", 1.0), UNKNOWN),
        (Condition("LimitsEnforced", None, "CgroupsNotWritable", "not writable", 1.0), WARNING),
        (Condition("DevicesWatched", False, "Restarting", "it crashed", 1.0), WARNING),
    ],
)
def test_what_the_agent_complains_of_is_a_finding(condition: Condition, level: FindingLevel) -> None:
    found = [finding for finding in diagnose(HEALTHY, [STATUS], [condition]) if finding.level is not OK]
    assert [(finding.level, finding.message) for finding in found] == [
        (level, f"{condition.reason}: {condition.message}")
    ]
