"""NVIDIA hardware without hardware: builds the library of `fakenvml.c`, and writes the state that it speaks from.

double = NvmlDouble(tmp_path)
double.gpus(8, name="NVIDIA H100 80GB HBM3", memory=80 * GIB)
subprocess.run([...], env={**os.environ, **double.environment})
double.take(0, pid=4242, memory=20 * GIB)  # seen by the running process at its next look
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

GIB = 1024**3
SOURCE = Path(__file__).parent / "fakenvml.c"

#: Return codes of NVML (nvml.h), as the double is told to answer them.
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, TIMEOUT, FUNCTION_NOT_FOUND = 3, 4, 9, 10, 13
GPU_IS_LOST, RESET_REQUIRED, VERSION_MISMATCH, UNKNOWN = 15, 16, 18, 999
#: Bits of event types.
DOUBLE_BIT_ECC, XID = 2, 8
#: `nvmlDeviceGetTopologyCommonAncestor`: how far up the PCIe tree two GPUs meet.
SINGLE, MULTIPLE, HOSTBRIDGE, NODE, SYSTEM = 10, 20, 30, 40, 50

Value = str | int | float

#: What a healthy, idle data-centre GPU says. `None` for a key that the file shall not have: "Not Supported".
HEALTHY: dict[str, Value | None] = {
    "compute_capability": "9.0",
    "memory_reserved": 0,
    "memory_used": 0,
    "processes": "",
    "graphics_processes": "",
    "mps_processes": "",
    "mig": 0,
    "ecc": 1,
    "ecc_uncorrected": 0,
    "rows_remap_pending": 0,
    "rows_remap_failed": 0,
    "clock_mhz": 1980,
    "max_clock_mhz": 1980,
    "power_mw": 70_000,
    "power_limit_mw": 700_000,
    "temperature": 35,
    "throttling": 1,  # bit mask; 1: idle
    "utilization": 0,
    "memory_utilization": 0,
    "pcie_generation": 5,
    "pcie_max_generation": 5,
    "pcie_width": 16,
    "pcie_max_width": 16,
    "nvlink": None,  # "switch*18", "gpu1*4,off*2": the far end of each link
    "persistence": 1,
    "event_types": DOUBLE_BIT_ECC | XID,
    "fabric_state": None,  # 1 not started, 2 in progress, 3 completed
}

#: NVML's number of an architecture, by compute capability.
ARCHITECTURES = {
    "7.0": 5,
    "7.5": 6,
    "8.0": 7,
    "8.6": 7,
    "8.7": 7,
    "8.9": 8,
    "9.0": 9,
    "10.0": 10,
    "12.0": 10,
    "12.1": 10,
}

#: profile -> (memory, GPU slices, compute slices) of an 80 GB A100 or H100.
PROFILES = {
    "1g.10gb": (10_200_547_328, 1, 1),
    "2g.20gb": (20_937_965_568, 2, 2),
    "3g.40gb": (42_412_802_048, 3, 3),
    "1c.3g.40gb": (42_412_802_048, 3, 1),
    "7g.80gb": (84_825_604_096, 7, 7),
}


def library() -> Path:
    """The folder with libnvidia-ml.so.1, compiled once for each version of its source."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("the NVML double is compiled from C, and there is no gcc or cc on PATH")
    folder = SOURCE.parent / "__pycache__" / hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    result = folder / "libnvidia-ml.so.1"
    if not result.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{os.getpid()}.part"
        flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", f"-Wl,-soname,{result.name}"]
        subprocess.run([compiler, *flags, "-o", part, SOURCE], check=True)
        part.replace(result)
    return folder


class NvmlDouble:
    """A machine with NVIDIA GPUs, as its driver tells of it. `set` and everything else work on running processes."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "nvml-state.txt"
        self._library = library()
        self._state: dict[str, Value] = {}
        self._count = self._events = 0
        self.update({"driver": "580.95.05", "cuda": 13000, "count": 0, "topology": SYSTEM})

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to load the double instead of NVIDIA's library."""
        path = os.pathsep.join(filter(None, [str(self._library), os.environ.get("LD_LIBRARY_PATH", "")]))
        return {"LD_LIBRARY_PATH": path, "FAKE_NVML_STATE": str(self.file)}

    def gpus(
        self, number: int, *, name: str = "NVIDIA H100 80GB HBM3", memory: int = 85_520_809_984, **keys: Value | None
    ) -> list[str]:
        """Put more GPUs in, all alike; `keys` as in HEALTHY. Their UUIDs."""
        added = range(self._count, self._count + number)
        self._count += number
        changes: dict[str, Value | None] = {"count": self._count}
        for gpu in added:
            own = {
                "name": name,
                "uuid": f"GPU-{gpu:08x}-1111-2222-3333-444444444444",
                "memory_total": memory,
                "architecture": ARCHITECTURES.get(str(keys.get("compute_capability", "9.0"))),
                "minor": gpu,
                "pci": f"0000:{0x10 + gpu:02x}:00.0",
                "numa_node": gpu // 4,
            }
            changes |= {f"gpu{gpu}.{key}": value for key, value in (HEALTHY | own | keys).items()}
        self.update(changes)
        return [self.uuid(gpu) for gpu in added]

    def uuid(self, gpu: int) -> str:
        return str(self._state[f"gpu{gpu}.uuid"])

    def set(self, key: str, value: Value | None) -> None:
        """One key, `gpu0.memory_used`; None takes it out, so that the driver does not support it."""
        self.update({key: value})

    def update(self, changes: dict[str, Value | None]) -> None:
        """Several keys at one moment."""
        self._state = {key: value for key, value in (self._state | changes).items() if value is not None}
        part = self.file.with_suffix(".part")
        part.write_text("".join(f"{key}={value}\n" for key, value in self._state.items()))
        part.replace(self.file)

    def take(self, gpu: int, pid: int, memory: int | None, *, mig: int | None = None) -> None:
        """A process takes device memory; None for a driver that does not say how much."""
        place = f"gpu{gpu}" if mig is None else f"gpu{gpu}.slice{mig}"
        now = str(self._state.get(f"{place}.processes", ""))
        used = int(self._state.get(f"{place}.memory_used", 0)) + (memory or 0)
        item = f"{pid}:{'na' if memory is None else memory}"
        self.update({f"{place}.processes": f"{now},{item}".strip(","), f"{place}.memory_used": used})

    def give_back(self, gpu: int, *, mig: int | None = None) -> None:
        """All processes end, and their memory is free."""
        place = f"gpu{gpu}" if mig is None else f"gpu{gpu}.slice{mig}"
        self.update({f"{place}.processes": "", f"{place}.memory_used": 0})

    def slices(self, gpu: int, *profiles: str) -> list[str]:
        """Switch MIG on and cut the GPU, a GPU instance for each profile; no profile: on, but not cut. Their UUIDs."""
        changes: dict[str, Value | None] = {key: None for key in self._state if key.startswith(f"gpu{gpu}.slice")}
        changes[f"gpu{gpu}.mig"] = 1
        uuids = [f"MIG-{gpu:08x}-{number:04x}-5555-6666-777777777777" for number in range(len(profiles))]
        for number, profile in enumerate(profiles):
            memory, gpu_slices, compute_slices = PROFILES[profile]
            keys = {
                "uuid": uuids[number],
                "name": f"{self._state[f'gpu{gpu}.name']} MIG {profile}",
                "memory_total": memory,
                "memory_used": 0,
                "memory_reserved": 0,
                "gpu_slices": gpu_slices,
                "compute_slices": compute_slices,
                "gi": number + 1,
                "ci": 0,
                "processes": "",
                "graphics_processes": "",
                "mps_processes": "",
            }
            changes |= {f"gpu{gpu}.slice{number}.{key}": value for key, value in keys.items()}
        self.update(changes)
        return uuids

    def whole(self, gpu: int) -> None:
        """Switch MIG off."""
        self.update({key: None for key in self._state if key.startswith(f"gpu{gpu}.slice")} | {f"gpu{gpu}.mig": 0})

    def fail(self, code: int, *, gpu: int | None = None, function: str = "") -> None:
        """Let calls answer an error: of one GPU or all, of one function or all; 0: work again. The library as a whole
        is there only with a function: `fail(DRIVER_NOT_LOADED)` is a driver that has gone."""
        if gpu is None:
            self.set(f"error.{function}" if function else "init_error", code or None)
        else:
            self.set(f"gpu{gpu}.error.{function}" if function else f"gpu{gpu}.error", code or None)

    def hang(self, gpu: int | None = None, *, on: bool = True) -> None:
        """Calls about one GPU, or all calls, do not come back until they are let."""
        self.set("hang" if gpu is None else f"gpu{gpu}.hang", 1 if on else None)

    def event(self, gpu: int, type: int, data: int) -> None:
        """The driver tells of something by itself."""
        self._events += 1
        now = str(self._state.get("events", ""))
        self.set("events", f"{now},{self._events}:{gpu}:{type}:{data}".strip(","))

    def xid(self, gpu: int, number: int) -> None:
        self.event(gpu, XID, number)

    def ecc(self, gpu: int) -> None:
        """A double-bit error: told, and counted."""
        counted = int(self._state.get(f"gpu{gpu}.ecc_uncorrected", 0)) + 1
        self.set(f"gpu{gpu}.ecc_uncorrected", counted)
        self.event(gpu, DOUBLE_BIT_ECC, 0)
