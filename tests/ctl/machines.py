"""A machine with devices in all conditions, as a node reports it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from agent.hardware.inventory import (
    ContainerRuntime,
    Device,
    Disk,
    Driver,
    Facts,
    Inventory,
    Link,
    Memory,
    NumaNode,
    PciLink,
    Problem,
    System,
)
from agent.status import Condition, DeviceCondition, DeviceHold, DeviceProcess, DeviceStatus, NodeStatus
from tests.ctl.deployments import NODE, NOW

GIB = 1024**3


def gpu(index: int, uuid: str) -> Device:
    return Device(
        id=f"GPU-{uuid}-1111-2222-3333-444455556666",
        index=index,
        vendor="nvidia",
        name="NVIDIA H100 80GB HBM3",
        memory_bytes=80 * GIB,
        architecture="hopper",
        compute_capability="9.0",
        pci=PciLink(f"0000:{0x1B + index:02x}:00.0", 1, 5, 16, 16),
        numa_node=index // 2,
        files=(f"/dev/nvidia{index}", "/dev/nvidiactl"),
        ecc=True,
        persistence=index != 2,
        facts=Facts("h100-sxm", native_fp8=True),
    )


GPUS = (gpu(0, "5a1b2c3d"), gpu(1, "5a1bffff"), gpu(2, "77777777"))
SLICE = Device(
    id="MIG-00112233-1111-2222-3333-444455556666", index=3, vendor="nvidia", name="NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    memory_bytes=10 * GIB, parent="GPU-99999999-1111-2222-3333-444455556666", slice_profile="1g.10gb",
)  # fmt: skip

INVENTORY = Inventory(
    hostname="node1",
    os="Debian GNU/Linux 13 (trixie)",
    kernel="6.12.0",
    machine="x86_64",
    cpu_model="AMD EPYC 9654 96-Core Processor",
    physical_cores=96,
    logical_cores=192,
    cpu_quota=48.0,
    cpu_flags=("avx", "avx2", "avx512f"),
    memory=Memory(512 * GIB, 400 * GIB, swap=8 * GIB),
    numa=(
        NumaNode(0, (*range(48), *range(96, 144)), 256 * GIB),
        NumaNode(1, (*range(48, 96), *range(144, 192)), 256 * GIB),
    ),
    disks=(
        Disk("state", "/var/lib/llm-node-agent", "ext4", 100 * GIB, 50 * GIB),
        Disk("cache", "/var/cache/llm-node-agent", "xfs", 2000 * GIB, 9 * GIB),
    ),
    containers=(
        ContainerRuntime("docker", "/var/run/docker.sock", "28.1.1", ("nvidia", "runc"), ("nvidia.com/gpu=all",)),
        ContainerRuntime("podman", "", problem="no permission to open the socket"),
    ),
    system=System(False, 256 * GIB, 65535, -1, True, False),
    devices=(*GPUS, SLICE),
    links=(
        Link(GPUS[0].id, GPUS[1].id, "nvlink", 18),
        Link(GPUS[0].id, GPUS[2].id, "sys"),
        Link(GPUS[1].id, GPUS[2].id, "pix"),
    ),
    drivers=(Driver("nvidia", "580.95.05", "CUDA 13.0"),),
    problems=(Problem("NoAnswer", "the GPU at 0000:1e:00.0 did not answer within 6 s", vendor="nvidia"),),
)


def status(device: Device) -> DeviceStatus:
    """Healthy and idle."""
    return DeviceStatus(
        id=device.id, index=device.index, vendor=device.vendor, name=device.name, condition=DeviceCondition.HEALTHY,
        reason="Healthy", message="", since=NOW - 3600, memory_total=device.memory_bytes, memory_used=GIB // 2,
        sampled_at=NOW - 2, utilization=0.0, temperature_celsius=35.0, power_watts=70.4, power_limit_watts=700.0,
        clock_mhz=345, processes=(), detail_json=json.dumps(asdict(device)),
    )  # fmt: skip


BUSY = replace(
    status(GPUS[0]),
    memory_used=55 * GIB,
    memory_reserved=40 * GIB,
    utilization=97.0,
    temperature_celsius=64.0,
    power_watts=655.0,
    throttling=("sw-power-cap",),
    processes=(
        DeviceProcess(4711, 35 * GIB, "agent", "/opt/llama.cpp/llama-server", "chat-3-1"),
        DeviceProcess(4242, 20 * GIB, "ann", "/usr/bin/python3"),
    ),
    holds=(DeviceHold("chat", "chat-3-1", 36 * GIB, ended=False, since=NOW - 200),),
)
DEGRADED = replace(
    status(GPUS[1]),
    condition=DeviceCondition.DEGRADED,
    reason="RowRemapPending",
    message="a bad row of memory is out of use",
    since=NOW - 300,
    processes=None,
    memory_reserved=2 * GIB,
    holds=(DeviceHold("old", "old-1-1", 2 * GIB, ended=True, since=NOW - 30, message="pid 99 still holds 2.0 GiB"),),
)
LOST = DeviceStatus(
    id=GPUS[2].id, index=2, vendor="nvidia", name=GPUS[2].name, condition=DeviceCondition.LOST, reason="Xid79",
    message="XID 79, the GPU has fallen off the bus", since=NOW - 60, memory_total=80 * GIB,
    detail_json=json.dumps(asdict(GPUS[2])),
)  # fmt: skip
QUARANTINED = replace(
    status(SLICE),
    condition=DeviceCondition.QUARANTINED,
    reason="OperatorQuarantine",
    message="quarantined by an operator: a fan is loud",
)
DEVICES = (BUSY, DEGRADED, LOST, QUARANTINED)

MACHINE: NodeStatus = replace(
    NODE,
    inventory_json=json.dumps(asdict(INVENTORY)),
    conditions=(
        *NODE.conditions,
        Condition("DevicesDetected", False, "NoAnswer", "the GPU at 0000:1e:00.0 did not answer within 6 s", NOW - 60),
        Condition("DevicesHealthy", False, "Xid79", "NVIDIA H100 80GB HBM3 is lost", NOW - 60),
    ),
    memory_total=512 * GIB,
    memory_available=400 * GIB,
    memory_reserved=0,
    devices=DEVICES,
    deployments=2,
    ready=1,
)
