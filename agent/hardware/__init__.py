"""What the host has, one file a vendor; all return the same inventory."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.hardware.base import Vendor

#: Each vendor's part, by module and class. Imported only where devices are looked for (`vendors`).
VENDORS = (
    "agent.hardware.nvidia.Nvidia",
    "agent.hardware.amd.Amd",
    "agent.hardware.intel.Intel",
    "agent.hardware.apple.Apple",
)


def vendors() -> tuple[Vendor, ...]:
    """One part a vendor, none of which has called a driver yet."""
    found = []
    for path in VENDORS:
        module, _, name = path.rpartition(".")
        found.append(getattr(importlib.import_module(module), name)())
    return tuple(found)
