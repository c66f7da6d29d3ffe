"""What a check gets, and how it says what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent.frozen import frozen
from agent.hardware.inventory import Inventory
from agent.status import Condition, DeviceStatus, Finding, FindingLevel


@frozen
class Case:
    """All that is known of a host at one moment."""

    inventory: Inventory
    devices: tuple[DeviceStatus, ...]
    conditions: tuple[Condition, ...]

    def has(self, vendor: str) -> bool:
        """Whether the vendor's hardware is here, be it usable or not."""
        found = self.inventory
        vendors = {device.vendor for device in found.devices} | {driver.vendor for driver in found.drivers}
        return vendor in vendors | {problem.vendor for problem in found.problems}


Check = Callable[[Case], Iterator[Finding]]


def ok(check: str, message: str) -> Finding:
    return Finding(check, FindingLevel.OK, message)


def note(check: str, message: str) -> Finding:
    return Finding(check, FindingLevel.NOTE, message)


def warning(check: str, message: str, remedy: str) -> Finding:
    return Finding(check, FindingLevel.WARNING, message, remedy)


def error(check: str, message: str, remedy: str) -> Finding:
    return Finding(check, FindingLevel.ERROR, message, remedy)


def unknown(check: str, message: str, remedy: str = "") -> Finding:
    return Finding(check, FindingLevel.UNKNOWN, message, remedy)


def size(count: float) -> str:
    """Bytes as people say them: `512 MiB`, `19.5 GiB`."""
    gib = count / 1024**3
    return f"{gib:.1f} GiB" if gib >= 1 else f"{count / 1024**2:.0f} MiB"
