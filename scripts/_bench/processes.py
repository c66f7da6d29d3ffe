"""What a process costs, as the kernel accounts for it."""

from __future__ import annotations

import os
from pathlib import Path


def memory(pid: int) -> tuple[float, float]:
    """RSS and PSS in MiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
    return sizes["Rss"] / 1024, sizes["Pss"] / 1024


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads; to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
