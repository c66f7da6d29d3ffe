"""The two clocks: one to decide by, one to show."""

from __future__ import annotations

import asyncio
import time
from functools import cache
from pathlib import Path


def now() -> float:
    """Seconds of CLOCK_BOOTTIME: monotonic, the same for every process until the host restarts, unlike wall time."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def beat(period: float, began: float) -> None:
    """Wait for the whole multiple of `period` (seconds) that comes half a period or more after `began`, both by `now`.

    Everything periodic keeps this time: one wake-up of a cold processor then serves all of it, where each on its own
    would cost several times its own work.
    """
    await asyncio.sleep((round(began / period) + 1) * period - now())


def wall() -> float:
    """Unix seconds, for people and other machines; nothing is decided by it."""
    return time.time()


def as_wall(moment: float) -> float:
    """Unix seconds of a CLOCK_BOOTTIME moment."""
    return wall() + (moment - now())


@cache
def boot_id() -> str:
    """The kernel's id of this boot: stored times of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
