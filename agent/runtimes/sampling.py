"""What the processes of an instance use together, whichever runtime they belong to."""

from __future__ import annotations

from collections.abc import Iterable

from agent.runtimes import procfs
from agent.runtimes.base import Usage


def usage(pids: Iterable[int]) -> Usage | None:
    """About 50 microseconds a process; None when none is left. Files that are mapped, as llama.cpp loads weights, count
    as read as far as they are resident: so `read_bytes` grows while any engine loads."""
    samples = {pid: sample for pid in pids if (sample := procfs.sample(pid)) is not None}
    if not samples:
        return None
    return Usage(
        memory_bytes=sum(sample.resident_bytes for sample in samples.values()),
        read_bytes=sum(sample.read_bytes + sample.mapped_bytes for sample in samples.values()),
        cpu_seconds=sum(sample.cpu_seconds for sample in samples.values()),
        pids=tuple(samples),
    )


def footprint(pids: Iterable[int]) -> dict[str, tuple[int, int]]:
    """Bytes mapped and bytes resident of each file, "" for all other memory. May block: call it in a thread."""
    found: dict[str, tuple[int, int]] = {}
    for mapped in map(procfs.mapped, pids):
        for file, (size, resident) in (mapped or {}).items():
            sizes = found.get(file, (0, 0))
            found[file] = (sizes[0] + size, sizes[1] + resident)
    return found
