"""The host's inventory: on this machine, and on machines described by their files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from agent.hardware import host
from agent.hardware.inventory import Memory, NumaNode

GIB = 1024**3
MEMINFO = "MemTotal: 16777216 kB\nMemFree: 1048576 kB\nMemAvailable: 8388608 kB\nSwapTotal: 0 kB\nHugePages_Total: 0\n"
CPU = "processor : {n}\nmodel name : Some CPU\nphysical id : 0\ncore id : {core}\nflags : fpu avx avx2 avx512f\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """16 GiB, 8 of them available, without cgroup limits."""
    write(tmp_path / "proc/meminfo", MEMINFO)
    write(tmp_path / "proc/self/cgroup", "4:memory:/a/b\n3:cpu,cpuacct:/a\n0::/a/b\n")
    cpus = sorted(os.sched_getaffinity(0))
    write(tmp_path / "proc/cpuinfo", "\n".join(CPU.format(n=n, core=n // 2) for n in range(max(cpus) + 1)))
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_this_machine_is_described_by_what_the_kernel_says() -> None:
    found = host.inventory()

    assert found.logical_cores == len(os.sched_getaffinity(0))
    assert 1 <= found.threads <= found.physical_cores <= found.logical_cores
    assert 0 < found.memory.available <= found.memory.total
    assert found.devices == ()


def test_without_cgroup_limits_the_memory_is_the_machines(machine: Path) -> None:
    assert host.memory(machine) == Memory(total=16 * GIB, available=8 * GIB)


def test_a_limit_of_cgroup_v2_holds_and_page_cache_is_not_counted_as_used(machine: Path) -> None:
    group = machine / "sys/fs/cgroup/a/b"
    write(group / "memory.max", f"{4 * GIB}\n")
    write(group / "memory.current", f"{3 * GIB}\n")
    write(group / "memory.stat", f"anon 5\ninactive_file {2 * GIB}\n")

    assert host.memory(machine) == Memory(total=4 * GIB, available=3 * GIB)


def test_the_smallest_limit_above_holds(machine: Path) -> None:
    write(machine / "sys/fs/cgroup/a/b/memory.max", "max\n")
    write(machine / "sys/fs/cgroup/a/memory.max", f"{2 * GIB}\n")
    write(machine / "sys/fs/cgroup/a/memory.current", f"{3 * GIB}\n")

    assert host.memory(machine) == Memory(total=2 * GIB, available=0)


def test_a_limit_of_cgroup_v1_holds(machine: Path) -> None:
    group = machine / "sys/fs/cgroup/memory/a/b"
    write(group / "memory.limit_in_bytes", f"{6 * GIB}\n")
    write(group / "memory.usage_in_bytes", f"{5 * GIB}\n")
    write(group / "memory.stat", f"inactive_file 1\ntotal_inactive_file {GIB}\n")
    write(machine / "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")

    assert host.memory(machine) == Memory(total=6 * GIB, available=2 * GIB)


def test_inside_of_a_container_the_mount_itself_is_the_own_group(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "4:memory:/docker/abc\n")
    write(machine / "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{GIB}\n")

    assert host.memory(machine).total == GIB


@pytest.mark.parametrize(
    ("path", "text", "quota"),
    [
        ("sys/fs/cgroup/a/b/cpu.max", "150000 100000\n", 1.5),
        ("sys/fs/cgroup/a/cpu.max", "max 100000\n", None),
        ("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "50000\n", 0.5),
        ("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "-1\n", None),
    ],
)
def test_a_cpu_quota_bounds_the_threads(machine: Path, path: str, text: str, quota: float | None) -> None:
    write(machine / "sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n")
    (machine / "sys/fs/cgroup/a/b").mkdir(parents=True)
    write(machine / path, text)

    found = host.inventory(machine)

    assert found.cpu_quota == quota
    assert found.threads == (1 if quota else found.physical_cores)


def test_cores_that_share_a_core_id_are_one_physical_core(machine: Path) -> None:
    found = host.inventory(machine)

    assert found.physical_cores == len({cpu // 2 for cpu in os.sched_getaffinity(0)})
    assert found.cpu_flags == ("avx", "avx2", "avx512f")
    assert found.cpu_model == "Some CPU"


def test_numa_nodes_have_their_cpus_and_memory(machine: Path) -> None:
    """The second is memory on a card (CXL): it has no CPUs."""
    nodes = machine / "sys/devices/system/node"
    write(nodes / "node0/cpulist", "0-3,8-9\n")
    write(nodes / "node0/meminfo", "Node 0 MemTotal:       16777216 kB\nNode 0 MemFree:        1048576 kB\n")
    write(nodes / "node10/cpulist", "\n")
    write(nodes / "node10/meminfo", "Node 10 MemTotal:      8388608 kB\n")
    write(nodes / "possible", "0-31\n")

    assert host.inventory(machine).numa == (
        NumaNode(0, (0, 1, 2, 3, 8, 9), 16 * GIB),
        NumaNode(10, (), 8 * GIB),
    )


def test_the_numa_nodes_of_this_machine_have_all_cpus() -> None:
    found = host.inventory()

    assert {cpu for node in found.numa for cpu in node.cpus} >= os.sched_getaffinity(0)


@pytest.mark.parametrize("content", ["", "\udcff", "x", "processor : x", "0:", "MemTotal: x kB", "-1"])
def test_files_that_cannot_be_understood_are_never_an_error(machine: Path, content: str) -> None:
    write(machine / "sys/devices/system/node/node0/cpulist", "0")
    for path in machine.rglob("*"):
        if path.is_file():
            path.write_text(content, errors="surrogateescape")

    found = host.inventory(machine)

    assert found.physical_cores == 1
    assert found.memory == Memory(0, 0)


def test_the_module_names_no_controller_of_its_own() -> None:
    """Detection reads; limits are the runtime's business."""
    assert not re.search(r"write_text|open\(.*w", Path(host.__file__).read_text())
