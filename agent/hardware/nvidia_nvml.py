"""NVML as a whole: begin and end, what its errors mean to an operator, and calls of which any may hang.

Names and numbers are nvml.h's, by way of nvidia-ml-py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pynvml as nvml

from agent.hardware import pci, sysfs
from agent.hardware.inventory import Driver, Problem

NVMLError = nvml.NVMLError
_Key = TypeVar("_Key", bound=Hashable)

VENDOR = "nvidia"
#: Errors after which no other question makes sense. Any other, to an optional question, means: not known.
_FATAL = {
    nvml.NVML_ERROR_UNINITIALIZED,
    nvml.NVML_ERROR_DRIVER_NOT_LOADED,
    nvml.NVML_ERROR_TIMEOUT,
    nvml.NVML_ERROR_GPU_IS_LOST,
    nvml.NVML_ERROR_RESET_REQUIRED,
    nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
}
#: Errors that mean: there is no such device any more.
_GONE = {
    nvml.NVML_ERROR_INVALID_ARGUMENT,
    nvml.NVML_ERROR_NOT_FOUND,
    nvml.NVML_ERROR_GPU_IS_LOST,
    nvml.NVML_ERROR_GPU_NOT_FOUND,
}
_REFUSED = {nvml.NVML_ERROR_NO_PERMISSION, nvml.NVML_ERROR_OPERATING_SYSTEM}
_NOT_LOADED = {nvml.NVML_ERROR_DRIVER_NOT_LOADED, nvml.NVML_ERROR_UNINITIALIZED}


def initialize() -> None:
    """Load the library and reach the driver. Raises NVMLError; may be tried again."""
    nvml.nvmlInit()


def shutdown() -> None:
    """Let go of the driver, if it still answers."""
    ask(nvml.nvmlShutdown, fatal=False)


def count() -> int:
    return int(nvml.nvmlDeviceGetCount())


def driver() -> Driver:
    version = nvml.nvmlSystemGetDriverVersion()
    cuda = ask(nvml.nvmlSystemGetCudaDriverVersion_v2)  # 12040: CUDA 12.4
    return Driver(VENDOR, version, f"CUDA {cuda // 1000}.{cuda % 1000 // 10}" if cuda else "")


def pci_address(info: Any) -> str:
    """The kernel's way to write it: "0000:1b:00.0" for NVML's "00000000:1B:00.0"."""
    domain, _, rest = info.busId.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def ask(function: Callable[..., Any], *arguments: object, fatal: bool = True) -> Any:
    """An optional question: None where this driver or GPU has no answer. Raises NVMLError if none will have one."""
    try:
        return function(*arguments)
    except NVMLError as error:
        if fatal and error.value in _FATAL:
            raise
        return None


class Threads:
    """Makes calls that may hang, each on a thread of its own. One that hung is not made again before it came back."""

    def __init__(self) -> None:
        self._hanging: dict[Hashable, threading.Thread] = {}

    def run(self, calls: Mapping[_Key, Callable[[], None]], seconds: float) -> set[_Key]:
        """Make all of them at once. Returns the keys of those that have not come back by then."""
        threads: dict[_Key, threading.Thread] = {}
        silent = {key for key in calls if key in self._hanging and self._hanging[key].is_alive()}
        for key in calls.keys() - silent:
            threads[key] = threading.Thread(target=calls[key], daemon=True)
            threads[key].start()
        deadline = time.monotonic() + seconds
        for key, thread in threads.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._hanging[key] = thread
                silent.add(key)
            else:
                self._hanging.pop(key, None)
        return silent


# What errors mean


def device_problem(error: Exception, device: str, what: str) -> Problem:
    """Why a device cannot be looked at; `what` names it for a person."""
    code = getattr(error, "value", None)
    if code in _GONE:
        message = (
            f"{what} has fallen off the bus or was taken away ({error}): look at the kernel's log (`dmesg | grep Xid`)"
        )
        return Problem("DeviceLost", message, device, VENDOR)
    if code == nvml.NVML_ERROR_RESET_REQUIRED:
        message = f"{what} must be reset before it works again: `nvidia-smi --gpu-reset`, or restart the host"
        return Problem("ResetRequired", message, device, VENDOR)
    if code in _REFUSED:
        message = f"this process may not use {what}: allow its user, or this container, the device file /dev/nvidia*"
        return Problem("NoPermission", message, device, VENDOR)
    if code in _NOT_LOADED:
        return Problem("DriverNotLoaded", "the NVIDIA driver is no longer loaded", device, VENDOR)
    if code == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return Problem("VersionMismatch", _MISMATCH, device, VENDOR)
    return Problem("NoAnswer", f"the driver answers for {what}: {error}", device, VENDOR)


def fabric_problem(indices: Sequence[int]) -> Problem:
    message = (
        f"the NVLink fabric of GPU {', '.join(map(str, indices))} is not set up, and CUDA does not start on them: see "
        "`systemctl status nvidia-fabricmanager`; its version must be the driver's"
    )
    return Problem("FabricNotReady", message, vendor=VENDOR)


def silent_problem(device: str, what: str) -> Problem:
    message = f"the driver does not come back from a call about {what}; the kernel's log may say why (`dmesg`)"
    return Problem("NoAnswer", message, device, VENDOR)


_MISMATCH = (
    "the loaded kernel module and the libraries of the NVIDIA driver are of different versions, as after an upgrade: "
    "restart the host, or stop everything that uses a GPU and reload the modules"
)


def unusable(error: Exception, root: Path, functions: Sequence[pci.Function]) -> Problem | None:
    """Why NVML as a whole cannot be used; None if nothing says that there should be a GPU."""
    code = getattr(error, "value", None)
    control = root / "dev/nvidiactl"
    loaded = (root / "sys/module/nvidia").exists() or (root / "proc/driver/nvidia/version").exists()
    if code == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return _no_library(functions) if functions or loaded or control.exists() else None
    if code == nvml.NVML_ERROR_GPU_NOT_FOUND or (code in _NOT_LOADED and loaded and not control.exists()):
        return no_devices(root)
    if code in _NOT_LOADED:
        return Problem("DriverNotLoaded", _not_loaded(functions), vendor=VENDOR)
    if code == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return Problem("VersionMismatch", _MISMATCH, vendor=VENDOR)
    # A container whose device cgroup was taken away (`systemctl daemon-reload` does that) gets "Unknown Error".
    if code in _REFUSED or (control.exists() and not sysfs.accessible(control)):
        message = (
            f"this process may not open the device files of the NVIDIA driver ({error}): let its user read and write "
            "/dev/nvidia*; a container that lost them must be started again"
        )
        return Problem("NoPermission", message, vendor=VENDOR)
    message = f"the NVIDIA driver does not answer ({error}): look at the kernel's log (`dmesg | grep -i nvrm`)"
    return Problem("DriverNoAnswer", message, vendor=VENDOR)


def no_devices(root: Path) -> Problem:
    """The driver is there, GPUs are not."""
    if (root / "dev/nvidiactl").exists():
        message = "the NVIDIA driver is loaded and shows no GPU: see whether one is on the bus (`lspci -d 10de:`)"
    else:
        message = (
            "the NVIDIA driver is loaded, but its device files are not here: in a container, start it with the GPUs "
            "(`--gpus all`, or CDI); on the host, run `nvidia-modprobe -c 0 -u`"
        )
    return Problem("NoDevices", message, vendor=VENDOR)


def _no_library(functions: Sequence[pci.Function]) -> Problem:
    message = (
        f"{_where(functions)}the library of the NVIDIA driver (libnvidia-ml.so.1) is not installed: install the "
        "driver; in a container, start it with the NVIDIA runtime or CDI"
    )
    return Problem("LibraryMissing", message, vendor=VENDOR)


def _not_loaded(functions: Sequence[pci.Function]) -> str:
    if not functions:
        return "the library of the NVIDIA driver is installed, but no NVIDIA GPU is on the bus and no driver is loaded"
    return (
        f"{_where(functions)}the NVIDIA driver is not loaded: run `modprobe nvidia`, and see in the kernel's log why "
        "that fails (a new kernel without the module, Secure Boot, nouveau)"
    )


def _where(functions: Sequence[pci.Function]) -> str:
    if not functions:
        return ""
    first = functions[0]
    bound = f", used by the {first.driver} driver" if first.driver not in {"", "nvidia"} else ""
    return f"an NVIDIA GPU is at {first.address}{bound}, but "
