"""What llama.cpp itself says of its memory at the start: its `buffer size` lines, by device.

They are printed at log verbosity 4, which names buffers and slots but no text of a request. Formats: build 11549
(`tests/engines/data/report-*.log`); the words have been the same since build 10434, the first that the adapter serves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from agent.planning.ledger import CACHE, COMPUTE, HOST, REPACKED, WEIGHTS, MeasuredTerm

MIB = 1024**2
#: "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB"
_BUFFER = re.compile(r"(\S+) +(model|KV|RS|output|compute) buffer size = +(\d+\.\d+) MiB")
#: "print_info: file size   = 85.77 MiB (5.35 BPW)": of all tensors.
_FILE = re.compile(r"print_info: file size +=\s*(\d+\.\d+) (MiB|GiB) ")
#: A model with a draft has two contexts, each with buffers of its own.
_CONTEXT = "llama_context: constructing llama_context"
_TERMS: Mapping[str, str] = {"KV": CACHE, "RS": CACHE, "output": COMPUTE, "compute": COMPUTE}
#: Weights that the CPU keeps in a layout of its kernels, beside the mapped originals.
_COPIES = frozenset({"CPU_REPACK", "CPU_AARCH64", "AMX"})


def parse(log: str, devices: tuple[str, ...]) -> tuple[MeasuredTerm, ...]:
    """The terms in the log of one start, of the host and of each of `devices` (the engine's names of them).

    Nothing where the log has no such lines, names a device that was not asked for, or misses one that was: such a start
    is not what its plan says.
    """
    sizes = _sizes(log)
    pools = {name: _pool(name, devices) for name, _ in sizes}
    if not sizes or None in pools.values() or {HOST, *map(str, range(len(devices)))} != set(pools.values()):
        return ()
    found: dict[tuple[str, str], float] = {}
    for (name, kind), size in sizes.items():
        term = (WEIGHTS if name not in _COPIES else REPACKED) if kind == "model" else _TERMS[kind]
        place = (pools[name] or HOST, term)
        found[place] = found.get(place, 0.0) + size
    _count_once(found, log)
    return tuple(MeasuredTerm(pool, term, round(size * MIB)) for (pool, term), size in found.items())


def _sizes(log: str) -> dict[tuple[str, str], float]:
    """MiB by buffer's name and kind. A context may reserve its compute buffer again: then the last one counts."""
    sizes: dict[tuple[str, str], float] = {}
    for part in log.split(_CONTEXT):
        compute: dict[tuple[str, str], float] = {}
        for name, kind, text in _BUFFER.findall(part):
            place = (name, kind)
            if kind == "compute":
                compute[place] = float(text)
            else:
                sizes[place] = sizes.get(place, 0.0) + float(text)
        for place, size in compute.items():
            sizes[place] = sizes.get(place, 0.0) + size
    return sizes


def _pool(name: str, devices: tuple[str, ...]) -> str | None:
    """Whose memory a buffer is of: "CPU_Mapped" and the pinned "CUDA_Host" are the host's. None: not known."""
    for place, device in enumerate(devices):
        if name == device or name.startswith(f"{device}_"):
            return str(place)
    return HOST if name.startswith("CPU") or name.endswith("_Host") or name in _COPIES else None


def _count_once(found: dict[tuple[str, str], float], log: str) -> None:
    """Originals of repacked weights are mapped, and no more than page cache that the kernel may take back: where both
    are all of the file's tensors and more, the copies are not weights on top."""
    mapped, copies = found.get((HOST, WEIGHTS), 0.0), found.get((HOST, REPACKED), 0.0)
    file = _FILE.search(log)
    if not copies or file is None:
        return
    unit = 1024 if file[2] == "GiB" else 1
    least, most = (float(file[1]) - 0.005) * unit, (float(file[1]) + 0.005) * unit  # it is printed rounded
    whole = mapped if mapped >= least else min(mapped + copies, most)
    found[HOST, WEIGHTS] = whole
    found[HOST, REPACKED] = mapped + copies - whole
