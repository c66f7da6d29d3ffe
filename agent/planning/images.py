"""What a node and the devices of a plan offer to an engine's image."""

from __future__ import annotations

from collections.abc import Collection

from agent.engines.images import Host
from agent.hardware.inventory import Inventory

_VENDORS = {"cuda": "nvidia", "rocm": "amd", "sycl": "intel"}


def image_host(inventory: Inventory, accelerator: str, devices: Collection[str]) -> Host:
    """For an engine that would reach the devices, by id, through the accelerator."""
    used = [device for device in inventory.devices if device.id in devices]
    vendor = _VENDORS.get(accelerator)
    driver = next((driver.version for driver in inventory.drivers if driver.vendor == vendor), "")
    amd = accelerator == "rocm"
    return Host(
        inventory.machine,
        accelerator,
        driver,
        capabilities=tuple(sorted({device.compute_capability for device in used if device.compute_capability})),
        targets=tuple(sorted({device.architecture for device in used if amd and device.architecture})),
        devices=tuple(device.name for device in used),
    )
