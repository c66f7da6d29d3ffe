"""AMD GPUs, from what the kernel says of them in sysfs: no ROCm library is needed, none is loaded.

Two parts of the amdgpu driver speak. KFD, the compute part, has a node for each GPU or partition
(/sys/class/kfd/kfd/topology/nodes/N: `properties`, `mem_banks`, `io_links`) and the memory of each compute process
(/sys/class/kfd/kfd/proc/PID/vram_GPUID); ROCm counts devices in the order of these nodes, and so does `index`. The PCI
device has memory, load, clocks, power and errors (Documentation/gpu/amdgpu/driver-misc.rst, thermal.rst, ras.rst).

Memory is what KFD gives out to compute. On a graphics card that is its VRAM. A processor with graphics (Strix Halo) has
no VRAM but a carve-out that the firmware made: the driver gives out the carve-out when it is at least as large as the
part of host memory that graphics may map (GTT: `ttm.pages_limit`, by default half of the memory), else that part of
host memory, and never both (`apu_prefer_gtt` in amdgpu_ttm.c, Linux 6.10; older kernels: always the carve-out). In the
first case host memory lacks the carve-out anyway, and the device is like a card: "dedicated"; in the second the
device's bytes are the host's: "unified".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from agent.frozen import frozen
from agent.hardware import drm, pci, processes, sysfs
from agent.hardware.inventory import Detection, Device, DeviceProcess, Driver, Fault, Link, Problem, Sample

#: KFD's type of a link that is XGMI (CRAT_IOLINK_TYPE_XGMI in kfd_crat.h).
_XGMI = 11
#: Heaps that are a GPU's own (HSA_MEM_HEAP_TYPE_FB_PUBLIC and FB_PRIVATE in kfd_topology.h).
_GPU_HEAPS = (1, 2)
#: KFD's bit for "the memory has ECC" (HSA_CAP_MEM_EDCSUPPORTED).
_MEMORY_ECC = 0x00100000
#: Two compute units are the display output of a desktop Ryzen (gfx1036). They compute slower than the processor beside
#: them, and ROCm does not support them: no accelerator.
_DISPLAY_ONLY_UNITS = 2
#: MI300A: host memory is HBM, and all of it is the GPU's too; KFD tells of no carve-out to compare with.
_ALWAYS_UNIFIED = frozenset({0x74A0})
#: Where libdrm keeps AMD's own list of product names: "744C,\tC8,\tAMD Radeon RX 7900 XTX".
_NAMES = ("usr/share/libdrm/amdgpu.ids", "opt/amdgpu/share/libdrm/amdgpu.ids")


@frozen
class _Node:
    """A GPU, or a partition of one, as KFD sees it."""

    folder: Path
    number: int
    gpu_id: int
    properties: dict[str, int]

    def __getitem__(self, name: str) -> int:
        return self.properties.get(name, 0)

    @property
    def slot(self) -> str:
        """PCI domain, bus and device. The function is left to `_place`: partitions are counted in it."""
        location = self["location_id"]
        return f"{self['domain']:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}"

    @property
    def architecture(self) -> str:
        """110001 is gfx1101, 90402 gfx942, 90010 gfx90a: two decimal digits each, shown in hexadecimal."""
        version = self["gfx_target_version"]
        return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version else ""

    @property
    def compute_units(self) -> int:
        return self["simd_count"] // (self["simd_per_cu"] or 4)

    @property
    def memory(self) -> int:
        """Bytes that KFD gives out on this node."""
        banks = (sysfs.table(folder / "properties") for folder in sysfs.folders(self.folder / "mem_banks"))
        return sum(bank.get("size_in_bytes", 0) for bank in banks if bank.get("heap_type") in _GPU_HEAPS)


@frozen
class _Gpu:
    """What sampling needs of a device that was found."""

    device: Device
    node: _Node
    folder: Path  # of the PCI function
    files: tuple[str, ...]  # of the graphics stack


class Amd:
    """AMD's part of the inventory. `root` is where /sys, /proc and /dev are found."""

    name = "amd"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._gpus: dict[str, _Gpu] = {}
        self._clients = drm.Clients(root)
        self._closed = threading.Event()

    def present(self) -> bool:
        return (self._root / "sys/module/amdgpu").is_dir() or any(pci.graphics(self._root, pci.AMD))

    def detect(self) -> Detection:
        functions = {function.address: function for function in pci.graphics(self._root, pci.AMD)}
        nodes, hidden = self._nodes()
        gpus = list(self._found(nodes, functions))
        self._gpus = {gpu.device.id: gpu for gpu in gpus}
        shown = {_place(node, functions) for node in nodes}
        if hidden:  # a container that was given some of the GPUs does not want to hear of the others
            problems = [] if nodes else [_all_hidden(hidden)]
        else:
            problems = list(_driver_problems(one for one in functions.values() if one.address not in shown))
        return Detection(
            vendor=self.name,
            devices=tuple(gpu.device for gpu in gpus),
            links=tuple(_links(gpus)),
            driver=self._driver(),
            problems=(*problems, *self._permission_problems(gpus)),
        )

    def sample(self, device: str) -> Sample:
        now = time.time()
        gpu = self._gpus.get(device)
        if gpu is None or pci.gone(gpu.folder):
            message = f"{device} is no longer on the PCI bus, or never was"
            return Sample(device, now, problem=Problem("DeviceLost", message, device, self.name))
        held = self._held(gpu.node)
        used = _memory_used(gpu, held)
        if used is None:
            message = f"amdgpu does not say how much memory of {device} is in use; the kernel log may say why"
            return Sample(device, now, problem=Problem("NoAnswer", message, device, self.name))
        pages = _bad_pages(gpu.folder)
        sample = Sample(
            device,
            now,
            memory_used=used,
            memory_total=gpu.device.memory_bytes,
            processes=self._processes(gpu, held),
            ecc_uncorrected=_uncorrected(gpu.folder),
            rows_remap_pending=None if pages is None else "P" in pages,
            rows_remap_failed=None if pages is None else "F" in pages,
        )
        # A slice has no sensors of its own; a card that sleeps would be woken up by a look at them.
        return sample if gpu.device.parent or pci.asleep(gpu.folder) else _with_sensors(sample, gpu.folder)

    def faults(self, timeout: float) -> tuple[Fault, ...]:
        """The driver tells nothing by itself that a file can be read for: errors are counted, and sampled."""
        self._closed.wait(timeout)
        return ()

    def close(self) -> None:
        self._closed.set()

    def _nodes(self) -> tuple[list[_Node], int]:
        """The GPUs among KFD's nodes, and how many more there are that the device cgroup hides from us: KFD refuses to
        describe a node whose file we may not open."""
        nodes, hidden = [], 0
        for folder in sysfs.folders(self._root / "sys/class/kfd/kfd/topology/nodes"):
            gpu_id = sysfs.number(folder / "gpu_id")
            if gpu_id is None:
                hidden += 1
            elif gpu_id > 0 and folder.name.isdecimal():
                nodes.append(_Node(folder, int(folder.name), gpu_id, sysfs.table(folder / "properties")))
        return nodes, hidden

    def _found(self, nodes: list[_Node], functions: dict[str, pci.Function]) -> Iterator[_Gpu]:
        owners: dict[str, str] = {}
        parts: dict[str, list[_Node]] = {}
        for node in nodes:
            parts.setdefault(_place(node, functions), []).append(node)
        for index, node in enumerate(nodes):
            address = _place(node, functions)
            function = functions.get(address)
            if function is None or node.compute_units <= _DISPLAY_ONLY_UNITS:
                continue
            device = self._device(index, node, function)
            if owners.setdefault(device.id, address) != address:  # virtual functions may all tell their card's number
                device = replace(device, id=f"amd-{address}")
            if len(parts[address]) > 1:
                device = replace(
                    device,
                    id=f"{device.id}.{parts[address].index(node)}",
                    parent=device.id,
                    slice_profile=_partitioning(function.folder),
                )
            files = [file for file in device.files if file.startswith("/dev/dri/")]
            if not device.parent:
                files += [f"/dev/dri/{card.name}" for card in sysfs.folders(function.folder / "drm", "card*")]
            yield _Gpu(device, node, function.folder, tuple(files))

    def _device(self, index: int, node: _Node, function: pci.Function) -> Device:
        folder = function.folder
        unique = sysfs.text(folder / "unique_id").removeprefix("0x").lower() or f"{node['unique_id']:016x}"
        vram = sysfs.number(folder / "mem_info_vram_total") or 0
        memory = node.memory or vram
        unified = memory > vram > 0 or function.device in _ALWAYS_UNIFIED
        render = node["drm_render_minor"]
        cap = _first_number(_hwmon(folder), "power1_cap")
        return Device(
            id=f"amd-{unique if unique.strip('0') else function.address}",
            index=index,
            vendor=self.name,
            name=self._product(function)
            or f"AMD {node.architecture or 'GPU'} ({function.vendor:04x}:{function.device:04x})",
            memory_bytes=memory,
            memory_kind="unified" if unified else "dedicated",
            architecture=node.architecture,
            pci=pci.link(folder),
            numa_node=pci.numa_node(folder),
            files=("/dev/kfd", *((f"/dev/dri/renderD{render}",) if render else ())),
            ecc=bool(node["capability"] & _MEMORY_ECC) if node["capability"] else None,
            power_limit_watts=cap / 1e6 if cap else None,
        )

    def _product(self, function: pci.Function) -> str:
        """What the card's EEPROM says; else AMD's list, by device and revision; else the list of all PCI devices."""
        if name := sysfs.text(function.folder / "product_name"):
            return name
        for path in _NAMES:
            for line in sysfs.text(self._root / path).splitlines():
                fields = [part.strip() for part in line.split(",", 2)]
                if fields[:2] == [f"{function.device:04X}", f"{function.revision:02X}"]:
                    return fields[-1]
        return pci.name(self._root, function.vendor, function.device)

    def _driver(self) -> Driver | None:
        """AMD's own package has a version; the driver that comes with the kernel has the kernel's."""
        module = self._root / "sys/module/amdgpu"
        if not module.is_dir():
            return None
        version = sysfs.text(module / "version") or sysfs.text(self._root / "proc/sys/kernel/osrelease")
        rocm = sysfs.text(self._root / "opt/rocm/.info/version").split("-")[0]
        return Driver(self.name, version, f"ROCm {rocm}" if rocm else "")

    def _permission_problems(self, gpus: list[_Gpu]) -> Iterator[Problem]:
        files = dict.fromkeys(file for gpu in gpus for file in gpu.device.files)
        paths = {file: self._root / file.lstrip("/") for file in files}
        if missing := [file for file, path in paths.items() if not path.exists()]:
            message = f"{_listed(missing)} missing: a container must be given them; on a host, amdgpu makes them"
            yield Problem("NoDeviceFile", message, vendor=self.name)
        if locked := [file for file, path in paths.items() if path.exists() and not sysfs.accessible(path)]:
            message = f"{_listed(locked)} not to be opened by this user: add it to the files' group (render or video)"
            yield Problem("NoPermission", message, vendor=self.name)

    def _held(self, node: _Node) -> dict[int, int]:
        """Bytes by compute process, of all users. The process ids are those of the host, also inside of a container."""
        held = {}
        for folder in sysfs.folders(self._root / "sys/class/kfd/kfd/proc", "[0-9]*"):
            size, pid = sysfs.number(folder / f"vram_{node.gpu_id}"), sysfs.integer(folder.name)
            if size and pid is not None:  # who has only asked what devices there are has a folder, and holds nothing
                held[pid] = size
        return held

    def _processes(self, gpu: _Gpu, held: dict[int, int]) -> tuple[DeviceProcess, ...] | None:
        """Compute processes, and what else holds memory (Vulkan). Inside of a container, where KFD's process ids mean
        nothing, those that the container's own /proc tells of."""
        usage = self._clients.usage(gpu.files)
        sizes = usage.of("gtt" if gpu.device.memory_kind == "unified" else "vram")
        if processes.sees_all(self._root):
            sizes = {pid: max(sizes.get(pid, 0), held.get(pid, 0)) for pid in sizes.keys() | held.keys()}
        elif not sizes and held:
            return None  # somebody out there holds memory; who cannot be seen from here
        return tuple(processes.describe(self._root, pid, size) for pid, size in sorted(sizes.items()))


def _listed(files: list[str]) -> str:
    """As the beginning of a sentence: the first three, how many more, and the verb."""
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return f"{', '.join(files[:3])}{more} {'are' if len(files) > 1 else 'is'}"


def _place(node: _Node, functions: dict[str, pci.Function]) -> str:
    """The PCI function of a node. Partitions have the numbers 0 to 7 in its place (newer kernels: 0, and the number in
    the topmost bits); virtual functions of a machine with SR-IOV are real ones."""
    exact = f"{node.slot}.{node['location_id'] & 7}"
    return exact if exact in functions else f"{node.slot}.0"


def _partitioning(folder: Path) -> str:
    """How compute and memory are divided: "cpx-nps4"."""
    words = (sysfs.text(folder / f"current_{what}_partition") for what in ("compute", "memory"))
    return "-".join(word.lower() for word in words if word)


def _links(gpus: list[_Gpu]) -> Iterator[Link]:
    by_node = {gpu.node.number: gpu for gpu in gpus}
    xgmi: dict[tuple[str, str], int] = {}
    for gpu in gpus:
        for folder in sysfs.folders(gpu.node.folder / "io_links"):
            way = sysfs.table(folder / "properties")
            peer = by_node.get(way.get("node_to", -1))
            if way.get("type") == _XGMI and peer is not None and peer is not gpu:
                xgmi[gpu.device.id, peer.device.id] = _lanes(way)
    for index, gpu in enumerate(gpus):
        for other in gpus[index + 1 :]:
            a, b = sorted((gpu, other), key=lambda one: one.device.id)
            lanes = xgmi.get((a.device.id, b.device.id), xgmi.get((b.device.id, a.device.id)))
            if lanes is not None:
                yield Link(a.device.id, b.device.id, "xgmi", lanes)
            else:
                yield Link(a.device.id, b.device.id, pci.relation(a.folder, b.folder))


def _lanes(way: dict[str, int]) -> int:
    """KFD gives the bandwidth of one link and that of all; neither where the way leads over another GPU."""
    one = way.get("min_bandwidth", 0)
    return way.get("max_bandwidth", 0) // one if one > 0 else 0


def _memory_used(gpu: _Gpu, held: dict[int, int]) -> int | None:
    """Bytes. The driver counts for the whole GPU; of a slice only what its compute processes hold is known."""
    if gpu.device.parent:
        return sum(held.values())
    pool = "gtt" if gpu.device.memory_kind == "unified" else "vram"
    return sysfs.number(gpu.folder / f"mem_info_{pool}_used")


def _uncorrected(folder: Path) -> int | None:
    """Memory errors that ECC could not correct, since the driver was loaded: "ue: 0", and "ce: 0" below it."""
    words = sysfs.text(folder / "ras/umc_err_count").split()
    return sysfs.integer(words[1]) if len(words) > 1 and words[0] == "ue:" else None


def _bad_pages(folder: Path) -> set[str] | None:
    """Pages that are not used any more because of errors (R), are to be (P) or could not be taken out of use (F): lines
    of address, size and letter. None where the driver keeps no such list."""
    path = folder / "ras/gpu_vram_bad_pages"
    if not path.is_file():
        return None
    return {line.rpartition(":")[2].strip() for line in sysfs.text(path).splitlines()}


def _with_sensors(sample: Sample, folder: Path) -> Sample:
    monitor = _hwmon(folder)
    watts = _first_number(monitor, "power1_average", "power1_input")
    cap = _first_number(monitor, "power1_cap")
    hertz = _first_number(monitor, "freq1_input")
    steps = sysfs.text(folder / "pp_dpm_sclk").splitlines()
    now = hertz // 10**6 if hertz is not None else max((_step(line) for line in steps if "*" in line), default=None)
    return replace(
        sample,
        utilization=sysfs.number(folder / "gpu_busy_percent"),
        memory_utilization=sysfs.number(folder / "mem_busy_percent"),
        power_watts=watts / 1e6 if watts is not None else None,
        power_limit_watts=cap / 1e6 if cap else None,
        temperature_celsius=_temperature(monitor),
        clock_mhz=now,
        max_clock_mhz=max((_step(line) for line in steps), default=0) or None,
    )


def _temperature(monitor: Path) -> float | None:
    """Of the hottest place in the chip ("junction"), by which the card throttles; of its edge on cards without that."""
    by_place = {
        sysfs.text(path): path.name.replace("_label", "_input") for path in sysfs.folders(monitor, "temp*_label")
    }
    files = [by_place[place] for place in ("junction", "edge") if place in by_place]
    value = _first_number(monitor, *files, "temp1_input")
    return value / 1000 if value is not None else None


def _step(line: str) -> int:
    """MHz out of "1: 2100Mhz *"; 0 for any other line."""
    words = line.split()
    return (sysfs.integer(words[1].lower().removesuffix("mhz")) or 0) if len(words) > 1 else 0


def _hwmon(folder: Path) -> Path:
    return next(iter(sysfs.folders(folder / "hwmon", "hwmon*")), folder / "hwmon")


def _first_number(folder: Path, *names: str) -> int | None:
    return next((value for name in names if (value := sysfs.number(folder / name)) is not None), None)


def _all_hidden(count: int) -> Problem:
    message = f"all {count} AMD GPUs are hidden from this container: give it /dev/kfd and /dev/dri/renderD*"
    return Problem("NoPermission", message, vendor="amd")


def _driver_problems(functions: Iterable[pci.Function]) -> Iterator[Problem]:
    """Why there are GPUs that KFD does not show. One with another driver (vfio-pci) was given away."""
    for function in functions:
        if not function.driver:
            message = "has no driver: load amdgpu; the kernel log says why it did not start"
            yield Problem("DriverNotLoaded", f"the AMD GPU at {function.address} {message}", vendor="amd")
        elif function.driver == "amdgpu":
            message = "is not offered for compute: amdgpu has no KFD node for it; the kernel log says why"
            yield Problem("NoComputeNode", f"the AMD GPU at {function.address} {message}", vendor="amd")
