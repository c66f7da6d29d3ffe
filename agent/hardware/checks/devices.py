"""The devices themselves: healthy, permitted, fully connected, and whose memory they hold."""

from __future__ import annotations

from collections.abc import Iterator

from agent.hardware.checks.base import Case, Check, error, note, ok, size, unknown, warning
from agent.hardware.inventory import Device
from agent.status import DeviceCondition, DeviceProcess, DeviceStatus, Finding

#: What the condition means for plans, and the next step; the device's own message says what is wrong with it.
_REMEDIES = {
    DeviceCondition.DEGRADED: "plans go on to use it; `agentctl devices quarantine {id} --reason TEXT` keeps new ones "
    "away until it is mended",
    DeviceCondition.QUARANTINED: "no plan gets it; once it is mended: `agentctl devices release {id}`",
    DeviceCondition.LOST: "no plan gets it; read the kernel log (`journalctl -k`) for the moment when it went, and "
    "reboot; have it reseated or replaced if that does not bring it back",
    DeviceCondition.UNKNOWN: "no plan gets it until it answers; read the kernel log (`journalctl -k`): a driver that "
    "never answers needs a reset of the device, or a reboot",
}


def health(case: Case) -> Iterator[Finding]:
    """The condition of each device that is not well, and how many are."""
    if not case.inventory.devices and not case.devices:
        yield note("devices", "no accelerator was found: engines run on the CPU")
        return
    sick = [device for device in case.devices if device.condition is not DeviceCondition.HEALTHY]
    for device in sick:
        message = f"{_named(device)} is {device.condition}: {device.reason}: {device.message}"
        remedy = _REMEDIES[device.condition].format(id=device.id)
        if device.reason == "NotSampled":  # the agent has just begun to look
            yield unknown("device-health", message)
        elif device.condition is DeviceCondition.DEGRADED or device.reason == "OperatorQuarantine":
            yield warning("device-health", message, remedy)
        else:
            yield error("device-health", message, remedy)
    if not case.devices:
        yield unknown(
            "device-health", f"{len(case.inventory.devices)} devices were found; how they are was not sampled"
        )
    if well := len(case.devices) - len(sick):
        yield ok("device-health", f"{well} of {len(case.devices)} devices are healthy")


def permitted(case: Case) -> Iterator[Finding]:
    """Device files that are there, and may not be opened from here: a container's cgroup, or a unit's DeviceAllow."""
    denied = case.inventory.system.device_cgroup_denies
    if denied:
        yield error(
            "device-files",
            f"present, but may not be opened from here: {', '.join(denied)}",
            "start the container with its devices (`--gpus all`, or `--device`); in a systemd unit, add DeviceAllow "
            "for them; `systemctl daemon-reload` takes devices from running containers: restart those",
        )
    elif case.inventory.devices:
        yield ok("device-files", "all device files that were found may be opened")


def persistence(case: Case) -> Iterator[Finding]:
    """Without it the driver forgets a device that nobody uses: each start waits for seconds, and settings are lost."""
    known = [device for device in case.inventory.devices if device.persistence is not None]
    off = [device for device in known if not device.persistence]
    if off:
        yield warning(
            "persistence",
            f"persistence mode is off: {_listed(off)}; each start of an engine waits until the driver is set up again",
            "`systemctl enable --now nvidia-persistenced`, or `nvidia-smi -pm 1` until the next boot",
        )
    elif known:
        yield ok("persistence", "persistence mode is on")


def pcie(case: Case) -> Iterator[Finding]:
    """Lanes that are missing stay missing, unlike the speed, which is lowered while a device rests."""
    known = {device: device.pci for device in case.inventory.devices if device.pci and device.pci.width}
    narrow = [
        f"{_listed([device])} x{pci.width} of x{pci.max_width}"
        for device, pci in known.items()
        if pci.width and pci.max_width and pci.width < pci.max_width
    ]
    if narrow:
        yield warning(
            "pcie-width",
            f"fewer PCIe lanes than device and slot allow: {', '.join(narrow)}; loading, and traffic between devices, "
            "is slower",
            "reseat the device and its riser; look at the slot's bifurcation in the firmware's settings",
        )
    elif known:
        yield ok("pcie-width", "all devices use all of their PCIe lanes")


def tenants(case: Case) -> Iterator[Finding]:
    """Who else holds memory of the devices. Only the program's name: arguments may hold what is nobody's business."""
    for device in case.devices:
        strangers = [process for process in device.processes or () if not process.instance]
        if strangers:
            told = "; ".join(map(_tenant, strangers))
            yield note("device-tenants", f"{_named(device)} is also used by others, around whom is planned: {told}")


def _tenant(process: DeviceProcess) -> str:
    words = process.command.split()
    program = words[0].rpartition("/")[2] if words else "a process"
    held = "memory not told" if process.memory_bytes is None else size(process.memory_bytes)
    return f"{program} (pid {process.pid}, user {process.user or 'unknown'}, {held})"


def _named(device: DeviceStatus) -> str:
    return f"device {device.index} ({device.name}, {device.id})"


def _listed(devices: list[Device]) -> str:
    return ", ".join(f"device {device.index} ({device.name})" for device in devices)


CHECKS: tuple[Check, ...] = (health, permitted, persistence, pcie, tenants)
