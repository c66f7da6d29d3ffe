"""A look at an NVIDIA device: a whole GPU, or a slice of one."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml as nvml

from agent.frozen import frozen
from agent.hardware import host, nvidia_nvml, processes, sysfs
from agent.hardware.inventory import Device, DeviceProcess, Problem, Sample
from agent.hardware.nvidia_nvml import VENDOR, ask

#: What slows the clock, by NVML's bit. Left out: nothing to do (1).
_THROTTLING = {
    nvml.nvmlClocksEventReasonApplicationsClocksSetting: "applications-clocks",
    nvml.nvmlClocksEventReasonSwPowerCap: "sw-power-cap",
    nvml.nvmlClocksEventReasonHwSlowdown: "hw-slowdown",
    nvml.nvmlClocksEventReasonSyncBoost: "sync-boost",
    nvml.nvmlClocksEventReasonSwThermalSlowdown: "sw-thermal-slowdown",
    nvml.nvmlClocksEventReasonHwThermalSlowdown: "hw-thermal-slowdown",
    nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "hw-power-brake",
    nvml.nvmlClocksEventReasonDisplayClockSetting: "display-clock",
    nvml.nvmlClocksThrottleReasonBoardLimit: "board-limit",
    nvml.nvmlClocksThrottleReasonReliability: "reliability",
}
_PROCESS_LISTS = (
    nvml.nvmlDeviceGetComputeRunningProcesses_v3,
    nvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
    nvml.nvmlDeviceGetMPSComputeRunningProcesses_v3,
)
#: Answers to a question that this driver, or this GPU, does not know.
_UNANSWERED = {
    nvml.NVML_ERROR_NOT_SUPPORTED,
    nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
}
#: Processes whose names are kept; more do not hold memory of one host's GPUs at a time.
_NAMES = 1000


@frozen
class Unit:
    """A device, and how it is looked at."""

    device: Device
    root: Path
    handle: Any  # of the device
    whole: Any  # of the GPU; the same, unless the device is a slice
    sliceable: bool
    max_clock_mhz: int | None
    names: dict[tuple[int, str], DeviceProcess]  # by pid and start time

    def sample(self) -> Sample:
        at = time.time()
        try:
            return self._sample(at)
        except nvml.NVMLError as error:
            problem = nvidia_nvml.device_problem(error, self.device.id, self.device.name)
            return Sample(self.device.id, at, problem=problem)

    def _sample(self, at: float) -> Sample:
        device, whole = self.device, self.whole
        if self.sliceable and not device.parent and _sliced(whole):
            problem = Problem("Sliced", "it was switched to MIG mode, and is no device as a whole", device.id, VENDOR)
            return Sample(device.id, at, problem=problem)
        total, used = self._memory()
        rows = ask(nvml.nvmlDeviceGetRemappedRows, whole)
        sample = Sample(
            device.id,
            at,
            memory_used=used,
            memory_total=total,
            processes=self._processes(),
            temperature_celsius=_temperature(whole),
            clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, whole, nvml.NVML_CLOCK_SM),
            max_clock_mhz=self.max_clock_mhz,
            throttling=_throttling(whole),
            ecc_uncorrected=_uncorrected(whole) if device.ecc else None,
            rows_remap_pending=bool(rows[2]) if rows else None,
            rows_remap_failed=bool(rows[3]) if rows else None,
        )
        if device.parent:  # what follows is not told for slices, and the whole GPU's is not theirs
            return sample
        power, limit = ask(nvml.nvmlDeviceGetPowerUsage, whole), ask(nvml.nvmlDeviceGetEnforcedPowerLimit, whole)
        busy = ask(nvml.nvmlDeviceGetUtilizationRates, whole)
        return replace(
            sample,
            utilization=float(busy.gpu) if busy else None,
            memory_utilization=float(busy.memory) if busy else None,
            power_watts=power / 1000 if power is not None else None,
            power_limit_watts=limit / 1000 if limit is not None else None,
        )

    def _memory(self) -> tuple[int, int]:
        """Total and used bytes."""
        if self.device.memory_kind == "unified":
            shared = host.memory(self.root)
            return shared.total, shared.total - shared.available
        found = memory(self.handle)
        if found is None:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
        return found

    def _processes(self) -> tuple[DeviceProcess, ...] | None:
        """Of all kinds. One that both computes and draws is in two lists, with the same memory in each."""
        lists = [ask(function, self.handle) for function in _PROCESS_LISTS]
        if lists[0] is None:
            lists[0] = ask(nvml.nvmlDeviceGetComputeRunningProcesses_v2, self.handle)
        if all(entries is None for entries in lists):
            return None
        held: dict[int, int | None] = {}
        for entry in (entry for entries in lists if entries for entry in entries):
            told = [memory for memory in (held.get(entry.pid), entry.usedGpuMemory) if memory is not None]
            held[entry.pid] = max(told, default=None)
        return tuple(self._process(pid, held[pid]) for pid in sorted(held))

    def _process(self, pid: int, memory_bytes: int | None) -> DeviceProcess:
        """With its name, if it is of this PID namespace: the driver gives the ids of the caller's (os_find_ns_pid)."""
        stat = sysfs.text(self.root / f"proc/{pid}/stat")
        if not stat:
            return DeviceProcess(pid, memory_bytes)
        key = pid, stat.rpartition(")")[2].split()[19]  # start time: field 22, the name before may hold anything
        if key not in self.names:
            if len(self.names) >= _NAMES:
                self.names.clear()
            self.names[key] = processes.describe(self.root, pid, None)
        return replace(self.names[key], memory_bytes=memory_bytes)


def memory(handle: Any) -> tuple[int, int] | None:
    """Total and used bytes, what the driver keeps for itself counted as used; None where there is no such memory."""
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
        return (info.total, info.used + info.reserved) if info.total else None
    except nvml.NVMLError as error:
        if error.value not in _UNANSWERED:
            raise
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(handle)  # drivers before R510, whose "used" has what is reserved in it
        return (info.total, info.used) if info.total else None
    except nvml.NVMLError as error:
        if error.value != nvml.NVML_ERROR_NOT_SUPPORTED:
            raise
        return None


def _sliced(handle: Any) -> bool:
    mode = ask(nvml.nvmlDeviceGetMigMode, handle)
    return bool(mode and mode[0])


def _temperature(handle: Any) -> float | None:
    celsius = ask(nvml.nvmlDeviceGetTemperatureV, handle, nvml.NVML_TEMPERATURE_GPU)
    if celsius is None:  # drivers before R575
        celsius = ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
    return None if celsius is None else float(celsius)


def _throttling(handle: Any) -> tuple[str, ...]:
    reasons = ask(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if reasons is None:  # drivers before R535
        reasons = ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return tuple(word for bit, word in _THROTTLING.items() if reasons and reasons & bit)


def _uncorrected(handle: Any) -> int | None:
    errors = ask(
        nvml.nvmlDeviceGetTotalEccErrors, handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    )
    return None if errors is None else int(errors)
