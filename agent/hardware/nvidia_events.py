"""What NVIDIA's driver tells by itself: XIDs, and memory errors that ECC could not correct."""

from __future__ import annotations

import time
from collections.abc import Mapping
from ctypes import c_void_p, cast
from functools import partial
from typing import Any

import pynvml as nvml

from agent.hardware.inventory import Fault
from agent.hardware.nvidia_nvml import Threads, ask

_WANTED = nvml.nvmlEventTypeXidCriticalError | nvml.nvmlEventTypeDoubleBitEccError
#: What NVML puts in for "not about one instance".
_NO_INSTANCE = 0xFFFFFFFF
#: Most faults told at once: a sick GPU tells without end.
_MOST = 64


class Events:
    """A set of GPUs that are listened to. `wait` and `free` are called on one thread."""

    def __init__(self, gpus: Mapping[str, Any], threads: Threads, seconds: float) -> None:
        """`gpus`: handles of whole GPUs by id. One that cannot tell, or hangs, is left out."""
        self._ids = {_address(handle): id for id, handle in gpus.items()}
        self._set = ask(nvml.nvmlEventSetCreate, fatal=False)
        self.broken = self._set is None  # nothing will be told any more
        if self.broken:
            return
        threads.run({("events", id): partial(self._register, handle) for id, handle in gpus.items()}, seconds)

    def wait(self, timeout: float) -> tuple[Fault, ...]:
        """At most `timeout` seconds for the first one; what came with it comes along."""
        faults: list[Fault] = []
        try:
            while not self.broken and len(faults) < _MOST:
                event = nvml.nvmlEventSetWait_v2(self._set, 0 if faults else int(timeout * 1000))
                faults.append(self._fault(event))
        except nvml.NVMLError as error:
            self.broken = error.value != nvml.NVML_ERROR_TIMEOUT
        return tuple(faults)

    def free(self) -> None:
        if self._set is not None:
            ask(nvml.nvmlEventSetFree, self._set, fatal=False)

    def _register(self, handle: Any) -> None:
        supported = ask(nvml.nvmlDeviceGetSupportedEventTypes, handle, fatal=False) or 0
        if supported & _WANTED:
            ask(nvml.nvmlDeviceRegisterEvents, handle, supported & _WANTED, self._set, fatal=False)

    def _fault(self, event: Any) -> Fault:
        device = self._ids.get(_address(event.device), "")
        at = time.time()
        if event.eventType == nvml.nvmlEventTypeXidCriticalError:
            where = "" if event.gpuInstanceId == _NO_INSTANCE else f" in GPU instance {event.gpuInstanceId}"
            return Fault(device, "xid", int(event.eventData), at, f"XID {event.eventData}{where}")
        return Fault(device, "ecc", 0, at, "a memory error that ECC could not correct")


def _address(handle: Any) -> int | None:
    """A handle is a pointer to what the library keeps of a GPU: the same for the same GPU."""
    return cast(handle, c_void_p).value
