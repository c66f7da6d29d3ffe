"""NVIDIA GPUs and their slices, through NVML.

Cheap to import: what loads the library and calls the driver stands in the modules `nvidia_*` beside it, which the
first detection imports. No lock is held over a driver call, and each GPU is asked on a
thread of its own: one that hangs costs the others nothing.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agent.hardware import pci
from agent.hardware.inventory import Detection, Fault, Link, Problem, Sample

if TYPE_CHECKING:
    from agent.hardware.nvidia_events import Events
    from agent.hardware.nvidia_gpu import Gpu
    from agent.hardware.nvidia_nvml import Threads
    from agent.hardware.nvidia_unit import Unit

LIBRARY = "libnvidia-ml.so.1"
#: What a loaded driver shows on the host, and in a container that was given GPUs.
_TRACES = ("dev/nvidiactl", "proc/driver/nvidia/version", "sys/module/nvidia")
#: Where the dynamic linker looks besides its cache (ld.so(8)).
_FOLDERS = ("lib64", "usr/lib64", "lib", "usr/lib")
#: Seconds within which each GPU answers a detection. Without persistence mode the driver sets a GPU up at the first
#: call, which takes one to three.
_DETECT_SECONDS = 6.0
#: Seconds for calls that need no hardware set up: the ways between GPUs, and the registration for events.
_SHORT_SECONDS = 1.0


class Nvidia:
    """All NVIDIA GPUs of this host. One thread may be in `detect`, one in `faults`, one for each device in `sample`."""

    name = "nvidia"

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` is where /dev, /proc and /sys are found."""
        self._root = root
        self._initialized = False
        self._threads: Threads | None = None
        self._gpus: dict[int, Gpu] = {}  # by index, as last answered
        self._units: dict[str, Unit] = {}  # by device id; replaced as a whole, never changed
        self._events: Events | None = None
        self._retired: list[Events] = []  # freed by the thread that may still wait for them

    def present(self) -> bool:
        return any((self._root / path).exists() for path in _TRACES) or self._installed() or bool(self._functions())

    def detect(self) -> Detection:
        from agent.hardware import nvidia_gpu, nvidia_links, nvidia_nvml  # noqa: PLC0415 - loads the binding

        try:
            if not self._initialized:
                nvidia_nvml.initialize()
                self._initialized = True
            count, driver = nvidia_nvml.count(), nvidia_nvml.driver()
        except nvidia_nvml.NVMLError as error:
            self.close()
            problem = nvidia_nvml.unusable(error, self._root, self._functions())
            return Detection(self.name, problems=(problem,) if problem else ())
        if not count:
            self._gpus, self._units = {}, {}
            return Detection(self.name, driver=driver, problems=(nvidia_nvml.no_devices(self._root),))

        if self._threads is None:
            self._threads = nvidia_nvml.Threads()
        looks = {index: nvidia_gpu.Gpu(index, self._root) for index in range(count)}
        silent = self._threads.run({("look", index): gpu.look for index, gpu in looks.items()}, _DETECT_SECONDS)
        gpus = nvidia_gpu.merged(looks, {index for _, index in silent}, self._gpus)
        answered = [gpu for gpu in gpus.values() if gpu.answered]
        links: list[Link] = []
        ends = [gpu.end for gpu in answered if gpu.end is not None]
        self._threads.run({"links": partial(nvidia_links.between, ends, links)}, _SHORT_SECONDS)
        self._listen(answered)
        units = [unit for gpu in gpus.values() for unit in gpu.units]
        self._gpus, self._units = gpus, {unit.device.id: unit for unit in units}
        problems = [problem for gpu in gpus.values() for problem in gpu.problems()]
        if waiting := [gpu.index for gpu in answered if not gpu.fabric_ready]:
            problems.append(nvidia_nvml.fabric_problem(waiting))
        devices = tuple(unit.device for unit in units)
        return Detection(self.name, devices, tuple(links), driver, tuple(problems))

    def sample(self, device: str) -> Sample:
        unit = self._units.get(device)
        if unit is None:
            problem = Problem("DeviceLost", "it was not found by the last detection", device, self.name)
            return Sample(device, time.time(), problem=problem)
        return unit.sample()

    def faults(self, timeout: float) -> tuple[Fault, ...]:
        while self._retired:
            self._retired.pop().free()
        events = self._events
        return events.wait(timeout) if events else ()

    def close(self) -> None:
        """The library stays loaded; a later `detect` begins anew."""
        if not self._initialized:
            return
        from agent.hardware import nvidia_nvml  # noqa: PLC0415 - it was loaded by detect

        self._initialized, self._gpus, self._units, self._events = False, {}, {}, None
        nvidia_nvml.shutdown()

    def _listen(self, gpus: list[Gpu]) -> None:
        """Be told of faults of these GPUs. A GPU that does not answer now is still listened to: it may say why."""
        from agent.hardware.nvidia_events import Events  # noqa: PLC0415 - loads the binding

        events, known = self._events, {gpu.id for gpu in self._gpus.values() if gpu.answered}
        if self._threads is None or (events and not events.broken and {gpu.id for gpu in gpus} <= known):
            return
        self._events = Events({gpu.id: gpu.handle for gpu in gpus}, self._threads, _SHORT_SECONDS)
        if events is not None:
            self._retired.append(events)

    def _functions(self) -> list[pci.Function]:
        """GPUs on the bus that this host may use: not those given away to a virtual machine."""
        return [function for function in pci.graphics(self._root, pci.NVIDIA) if function.driver != "vfio-pci"]

    def _installed(self) -> bool:
        """Whether the dynamic linker would find the library. To ask it would load the library."""
        folders = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
        if any((folder / LIBRARY).exists() for folder in (*folders, *(self._root / folder for folder in _FOLDERS))):
            return True
        try:
            return f"{LIBRARY}\0".encode() in (self._root / "etc/ld.so.cache").read_bytes()
        except OSError:
            return False
