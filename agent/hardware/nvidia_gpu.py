"""One NVIDIA GPU: what it is, and the slices it is cut into."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ctypes import byref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml as nvml

from agent.hardware import host, nvidia_nvml, pci, sysfs
from agent.hardware.inventory import Device, PciLink, Problem
from agent.hardware.nvidia_links import End, lanes
from agent.hardware.nvidia_nvml import VENDOR, ask
from agent.hardware.nvidia_unit import Unit, memory

_ARCHITECTURES = {
    nvml.NVML_DEVICE_ARCH_KEPLER: "kepler",
    nvml.NVML_DEVICE_ARCH_MAXWELL: "maxwell",
    nvml.NVML_DEVICE_ARCH_PASCAL: "pascal",
    nvml.NVML_DEVICE_ARCH_VOLTA: "volta",
    nvml.NVML_DEVICE_ARCH_TURING: "turing",
    nvml.NVML_DEVICE_ARCH_AMPERE: "ampere",
    nvml.NVML_DEVICE_ARCH_ADA: "ada",
    nvml.NVML_DEVICE_ARCH_HOPPER: "hopper",
    nvml.NVML_DEVICE_ARCH_BLACKWELL: "blackwell",
    nvml.NVML_DEVICE_ARCH_RUBIN: "rubin",
}
#: Compute capabilities of GPUs without memory of their own: Tegra X1 and X2, Xavier, Orin, Thor, GB10. Most drivers
#: answer "Not Supported" when asked for their memory, some the host's total.
_INTEGRATED = {(5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0), (12, 1)}
#: 64-bit words of NUMA nodes: the kernel allows 1024 nodes at most.
_NUMA_WORDS = 16


class Gpu:
    """One GPU by its index, and what a look at it found. A look that hangs leaves what it had found until then."""

    def __init__(self, index: int, root: Path) -> None:
        self.index = index
        self.id = ""  # known as soon as the driver has said it
        self.handle: Any = None
        self.answered = False
        self.units: tuple[Unit, ...] = ()  # the GPU itself, or its slices
        self.end: End | None = None  # what other GPUs reach it by
        self.fabric_ready = True
        self._root = root
        self._address = ""  # on the PCI bus
        self._error: Exception | None = None

    def look(self) -> None:
        """Ask for everything. Raises nothing of NVML's."""
        try:
            self.handle = nvml.nvmlDeviceGetHandleByIndex(self.index)
            self.id = nvml.nvmlDeviceGetUUID(self.handle)
            self.fabric_ready = _fabric_ready(self.handle)
            units = tuple(self._units())
            if units and not units[0].device.parent:  # slices reach no other device
                self.end = End(self.id, self.handle, self._address, lanes(self.handle))
            self.units, self.answered = units, True
        except nvml.NVMLError as error:
            self._error = error

    def after(self, before: Gpu | None) -> Gpu:
        """The GPU after a look that has not come back (and may write into this object yet): as it was before."""
        gpu = Gpu(self.index, self._root)
        if before is not None and self.id in {"", before.id}:
            gpu.id, gpu.units = before.id, before.units
        gpu.id = gpu.id or self.id
        return gpu

    def problems(self) -> Iterator[Problem]:
        what = f"GPU {self.index} ({self.id})" if self.id else f"GPU {self.index}"
        if self._error is not None:
            yield nvidia_nvml.device_problem(self._error, self.id, what)
        elif not self.answered:
            yield nvidia_nvml.silent_problem(self.id, what)
        elif not self.units:
            remedy = f"`nvidia-smi mig -i {self.index} -cgi PROFILE -C`, or `nvidia-smi -i {self.index} -mig 0`"
            yield Problem("NoSlices", f"{what} is in MIG mode, but not cut into slices: {remedy}", self.id, VENDOR)

    def _units(self) -> Iterator[Unit]:
        """The GPU as a device; in MIG mode, its slices in its place."""
        handle = self.handle
        mode = ask(nvml.nvmlDeviceGetMigMode, handle)
        minor = ask(nvml.nvmlDeviceGetMinorNumber, handle)
        clock = ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM)
        whole = Unit(self._device(minor), self._root, handle, handle, mode is not None, clock, {})
        if not mode or not mode[0]:
            yield whole
            return
        for index in range(ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            slice_handle = ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
            if slice_handle is not None:
                device = self._slice(whole.device, slice_handle, index, minor)
                yield replace(whole, device=device, handle=slice_handle, names={})

    def _device(self, minor: int | None) -> Device:
        handle = self.handle
        capability = ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)
        told = memory(handle)
        unified = told is None or capability in _INTEGRATED
        link = self._pci()
        self._address = link.address if link else ""
        ecc, persistence = ask(nvml.nvmlDeviceGetEccMode, handle), ask(nvml.nvmlDeviceGetPersistenceMode, handle)
        limit = ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        return Device(
            id=self.id,
            index=self.index,
            vendor=VENDOR,
            name=nvml.nvmlDeviceGetName(handle),
            memory_bytes=host.memory(self._root).total if told is None or unified else told[0],
            memory_kind="unified" if unified else "dedicated",
            architecture=_ARCHITECTURES.get(ask(nvml.nvmlDeviceGetArchitecture, handle), ""),
            compute_capability=f"{capability[0]}.{capability[1]}" if capability else "",
            pci=link,
            numa_node=self._numa_node(),
            files=(f"/dev/nvidia{minor}", "/dev/nvidiactl", "/dev/nvidia-uvm") if minor is not None else (),
            ecc=bool(ecc[0]) if ecc else None,
            persistence=bool(persistence) if persistence is not None else None,
            power_limit_watts=limit / 1000 if limit is not None else None,
        )

    def _slice(self, whole: Device, handle: Any, index: int, minor: int | None) -> Device:
        told = memory(handle)
        if told is None:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
        name = nvml.nvmlDeviceGetName(handle)  # "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
        profile = re.search(r"MIG (\S+)$", name)
        return replace(
            whole,
            id=nvml.nvmlDeviceGetUUID(handle),
            index=index,
            name=name,
            memory_bytes=told[0],
            parent=whole.id,
            slice_profile=profile[1] if profile else "",
            files=(*whole.files, *self._capabilities(handle, minor)),
            power_limit_watts=None,
        )

    def _capabilities(self, handle: Any, minor: int | None) -> Iterator[str]:
        """The files that open a slice, of its GPU and compute instance (MIG User Guide, "Device Nodes")."""
        gpu_instance, compute_instance = (
            ask(nvml.nvmlDeviceGetGpuInstanceId, handle),
            ask(nvml.nvmlDeviceGetComputeInstanceId, handle),
        )
        minors = sysfs.table(self._root / "proc/driver/nvidia-caps/mig-minors")
        place = f"gpu{minor}/gi{gpu_instance}"
        for name in (f"{place}/access", f"{place}/ci{compute_instance}/access"):
            if name in minors:
                yield f"/dev/nvidia-caps/nvidia-cap{minors[name]}"

    def _pci(self) -> PciLink | None:
        info = ask(nvml.nvmlDeviceGetPciInfo_v3, self.handle)
        if info is None:
            return None
        return PciLink(
            address=nvidia_nvml.pci_address(info),
            generation=ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration, self.handle),
            max_generation=ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration, self.handle),
            width=ask(nvml.nvmlDeviceGetCurrPcieLinkWidth, self.handle),
            max_width=ask(nvml.nvmlDeviceGetMaxPcieLinkWidth, self.handle),
        )

    def _numa_node(self) -> int | None:
        """The host's nearest node, as in `nvidia-smi topo -m`; where NVML names none or several, the kernel's."""
        masks = ask(nvml.nvmlDeviceGetMemoryAffinity, self.handle, _NUMA_WORDS, nvml.NVML_AFFINITY_SCOPE_NODE)
        near = [word * 64 + bit for word, mask in enumerate(masks or ()) for bit in range(64) if mask >> bit & 1]
        if len(near) == 1:
            return near[0]
        return pci.numa_node(self._root / "sys/bus/pci/devices" / self._address) if self._address else None


def merged(looks: Mapping[int, Gpu], silent: set[int], before: Mapping[int, Gpu]) -> dict[int, Gpu]:
    """The GPUs after a detection, by index. One that is lost or silent keeps the id that it had."""
    found = {gpu.id for index, gpu in looks.items() if gpu.id}
    gpus = {}
    for index, gpu in looks.items():
        old = before.get(index)
        if old is not None and not gpu.id and old.id in found:
            old = None  # it has another index now
        gpus[index] = gpu.after(old) if index in silent else gpu
        if old is not None and not gpu.id:
            gpus[index].id = old.id
    return gpus


def _fabric_ready(handle: Any) -> bool:
    """Whether the NVSwitch fabric, if the GPU is on one, has been set up: until then CUDA refuses it (error 802)."""
    info = nvml.c_nvmlGpuFabricInfo_v2_t()
    if ask(nvml.nvmlDeviceGetGpuFabricInfoV, handle, byref(info)) is None:
        return True
    if info.state == nvml.NVML_GPU_FABRIC_STATE_COMPLETED:
        return bool(info.status == nvml.NVML_SUCCESS)
    return info.state not in {nvml.NVML_GPU_FABRIC_STATE_NOT_STARTED, nvml.NVML_GPU_FABRIC_STATE_IN_PROGRESS}
