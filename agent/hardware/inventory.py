"""What detection finds, and what sampling sees: the data that every vendor, real or simulated, fills in alike.

Frozen data without behaviour or I/O, so that planning, status and tests share it. Bytes are bytes, times are Unix
seconds. What is not known is None or empty: nothing in here is guessed.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from agent.frozen import frozen

#: How two devices reach each other, nearest first. The words of `nvidia-smi topo -m`; xgmi is AMD's NVLink.
LinkKind = Literal["nvlink", "xgmi", "pix", "pxb", "phb", "node", "sys"]
MemoryKind = Literal["dedicated", "unified"]


@frozen
class Memory:
    """Bytes of host memory. `available` is what can be taken without swapping, page cache counted as free."""

    total: int
    available: int
    swap: int = 0


@frozen
class NumaNode:
    """Logical CPUs and memory that are near each other."""

    id: int
    cpus: tuple[int, ...]
    memory_bytes: int


@frozen
class PciLink:
    """Where a device sits, and how wide its link is. A link at rest runs at a lower generation: compare the maxima."""

    address: str  # "0000:1b:00.0"
    generation: int | None = None
    max_generation: int | None = None
    width: int | None = None
    max_width: int | None = None


@frozen
class Facts:
    """What no driver says of a model of device; from the table of `agent.hardware.catalog`, never over a live value."""

    id: str  # "h100-sxm": the name under which it may be simulated
    bandwidth_bytes_per_second: int | None = None
    fp16_tflops: float | None = None  # dense
    native_bf16: bool | None = None
    native_fp8: bool | None = None
    native_fp4: bool | None = None


@frozen
class Device:
    """One schedulable accelerator: a whole GPU, or a slice of one. A sliced GPU is itself no device."""

    id: str  # stable: the vendor's UUID ("GPU-…", "MIG-…"), or "amd-<pci address>" where there is none
    index: int  # as the vendor's tools count it
    vendor: str  # "nvidia", "amd", "intel", "apple"
    name: str
    memory_bytes: int  # total, as the driver says; of unified memory: what the device may use
    memory_kind: MemoryKind = "dedicated"
    parent: str = ""  # of a slice: id of the whole GPU
    slice_profile: str = ""  # "1g.10gb"
    architecture: str = ""  # "hopper", "gfx942"
    compute_capability: str = ""  # "9.0"; NVIDIA only
    pci: PciLink | None = None
    numa_node: int | None = None
    files: tuple[str, ...] = ()  # device files that an engine needs: "/dev/nvidia0", "/dev/dri/renderD128"
    ecc: bool | None = None
    persistence: bool | None = None
    power_limit_watts: float | None = None
    facts: Facts | None = None


@frozen
class Link:
    """The nearest way between two devices, by id (`a` < `b`); `lanes` counts NVLinks or XGMI links, 0 otherwise."""

    a: str
    b: str
    kind: LinkKind
    lanes: int = 0


@frozen
class Driver:
    """The kernel driver of a vendor, and the newest runtime API it can serve."""

    vendor: str
    version: str  # "580.65.06"
    api: str = ""  # "CUDA 13.0", "ROCm 7.0"


@frozen
class Problem:
    """Why devices, or one device, cannot be seen as they should be. `code` is stable, CamelCase."""

    code: str  # LibraryMissing, DriverNotLoaded, VersionMismatch, NoPermission, NoAnswer, DeviceLost, ...
    message: str
    device: str = ""  # id; "" for all of a vendor
    vendor: str = ""


@frozen
class Detection:
    """What one vendor's part found. A vendor whose hardware is absent gives an empty one; one whose hardware is
    there but cannot be used says why in `problems`."""

    vendor: str
    devices: tuple[Device, ...] = ()
    links: tuple[Link, ...] = ()
    driver: Driver | None = None
    problems: tuple[Problem, ...] = ()


@frozen
class DeviceProcess:
    """A process that holds device memory. `memory_bytes` is None where the driver does not tell it (WSL, vGPU)."""

    pid: int
    memory_bytes: int | None
    user: str = ""  # "" where the kernel does not let us see it
    command: str = ""


@frozen
class Sample:
    """One look at one device. None: the driver does not say. A look that failed has `problem` and no numbers."""

    device: str
    at: float
    memory_used: int | None = None  # bytes, of all processes and the driver itself
    memory_total: int | None = None
    processes: tuple[DeviceProcess, ...] | None = None  # None: not known; (): none
    utilization: float | None = None  # percent of time in which a kernel ran
    memory_utilization: float | None = None  # percent of time in which memory was read or written
    power_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_celsius: float | None = None
    clock_mhz: int | None = None  # of the multiprocessors
    max_clock_mhz: int | None = None
    throttling: tuple[str, ...] = ()  # words: "sw-power-cap", "hw-thermal-slowdown", ...
    ecc_uncorrected: int | None = None  # since the driver was loaded (volatile)
    rows_remap_pending: bool | None = None
    rows_remap_failed: bool | None = None
    problem: Problem | None = None


@frozen
class Fault:
    """Something the driver told by itself: an XID, an ECC error. `number` is the XID; 0 for other kinds."""

    device: str  # id of the whole GPU; "" if the driver did not say which
    kind: Literal["xid", "ecc"]
    number: int
    at: float
    message: str = ""


@frozen
class Disk:
    """The file system that holds one of the agent's directories. `purpose`: "state", "cache", "logs", "models"."""

    purpose: str
    path: str
    filesystem: str
    total: int
    free: int  # for this user


#: Beginnings of CDI names. "all" and numbers are no names for the devices of a plan.
_NVIDIA_BY_UUID = ("nvidia.com/gpu=GPU-", "nvidia.com/gpu=MIG-")


@frozen
class ContainerRuntime:
    """A container engine on this host. `problem` says why it cannot be used; "" where it can."""

    name: str  # "docker", "podman"
    socket: str  # "/var/run/docker.sock"; "" where there is only a binary
    version: str = ""
    runtimes: tuple[str, ...] = ()  # OCI runtimes by name: "runc", "nvidia"
    cdi_devices: tuple[str, ...] = ()  # that it can give to containers: "nvidia.com/gpu=all"
    problem: str = ""

    @property
    def nvidia_way(self) -> str:
        """How containers get NVIDIA's devices, by UUID: "the nvidia runtime", "CDI"; "": they get none."""
        if "nvidia" in self.runtimes:
            return "the nvidia runtime"
        return "CDI" if any(name.startswith(_NVIDIA_BY_UUID) for name in self.cdi_devices) else ""


@frozen
class System:
    """Settings of the host that engines stumble over. None: not known."""

    nouveau_loaded: bool | None = None
    shm_bytes: int | None = None  # size of /dev/shm
    open_files: int | None = None  # soft limit of this process, which engines inherit
    locked_memory: int | None = None  # bytes, soft limit; -1: unlimited
    clock_synchronized: bool | None = None
    in_container: bool | None = None
    device_cgroup_denies: tuple[str, ...] = ()  # device files that exist but may not be opened from here


@frozen
class Inventory:
    """What detection found on the host."""

    hostname: str
    os: str
    kernel: str
    machine: str
    cpu_model: str
    physical_cores: int  # usable by this process
    logical_cores: int  # usable by this process: affinity
    cpu_quota: float | None  # cores' worth of time that cgroups grant; None: no limit
    cpu_flags: tuple[str, ...]
    memory: Memory
    numa: tuple[NumaNode, ...] = ()
    disks: tuple[Disk, ...] = ()
    containers: tuple[ContainerRuntime, ...] = ()
    system: System = field(default_factory=System)
    devices: tuple[Device, ...] = ()
    links: tuple[Link, ...] = ()
    drivers: tuple[Driver, ...] = ()
    problems: tuple[Problem, ...] = ()
    simulated: str = ""  # the description that this inventory was made from; "" for real hardware

    @property
    def threads(self) -> int:
        """Threads that compute well: one a physical core, and no more than the quota lets run at once."""
        quota = self.physical_cores if self.cpu_quota is None else int(self.cpu_quota)
        return max(1, min(self.physical_cores, quota))
