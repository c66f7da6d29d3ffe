"""Kernel drivers and their libraries: there, loaded, of one version, and new enough."""

from __future__ import annotations

from collections.abc import Iterator

from agent.frozen import frozen
from agent.hardware.checks.base import Case, Check, error, ok, unknown, warning
from agent.hardware.inventory import Driver
from agent.status import Finding

_RELOAD = (
    "reboot; or stop everything that uses the GPUs and reload the modules: "
    "`modprobe -r nvidia_uvm nvidia_drm nvidia_modeset nvidia && modprobe nvidia`"
)

_HUNG = "read the kernel log (`journalctl -k`); a driver that never answers needs a reset of the device, or a reboot"

#: What to do about a problem of detection, by vendor and code.
_REMEDIES = {
    ("nvidia", "DriverNotLoaded"): "install NVIDIA's driver, 580 or newer, and reboot; where it is installed, "
    "`dkms status` and `journalctl -k -g NVRM` say why it does not load (Secure Boot refuses unsigned modules)",
    ("nvidia", "LibraryMissing"): "install the driver's own libraries (libnvidia-ml.so.1), of the driver's version; "
    "in a container, start it with the GPUs: `--gpus all`",
    ("nvidia", "FabricNotReady"): "`systemctl enable --now nvidia-fabricmanager`, of the driver's own version",
    ("nvidia", "VersionMismatch"): f"the driver was upgraded under the running kernel: {_RELOAD}",
}

#: The same, where it does not depend on the vendor.
_COMMON_REMEDIES = {
    "NoPermission": "let the user of agentd open the device files: add it to the groups `video` and `render`; in a "
    "container, pass the devices; in a systemd unit, allow them with DeviceAllow",
    "NoDeviceFile": "in a container, start it with these device files; else read the kernel log (`journalctl -k`)",
    "NoAnswer": _HUNG,
    "DriverNoAnswer": _HUNG,
    "ResetRequired": "reset the device (`nvidia-smi --gpu-reset -i INDEX`) once nothing uses it, or reboot",
    "NoDevices": "in a container, start it with its devices (`--gpus all`); else read the kernel log (`journalctl -k`)",
}


@frozen
class Requirement:
    """The oldest NVIDIA driver, by branch, with which engines run."""

    engines: str
    branch: int


#: Newest first; as configs/catalog/engines.yaml has it. TensorRT-LLM asks devices for more or less: its plan says so.
REQUIREMENTS = (
    Requirement("the images of vLLM and SGLang (CUDA 13)", 580),
    Requirement("llama.cpp's image (CUDA 12)", 570),
    Requirement("Ollama", 550),
    Requirement("images with CUDA 12 on data-centre devices", 535),
)


def loaded(case: Case) -> Iterator[Finding]:
    """One finding for each driver, and for each reason why a vendor's devices cannot be used."""
    for problem in case.inventory.problems:
        vendor, code = problem.vendor, problem.code
        remedy = _REMEDIES.get((vendor, code)) or _COMMON_REMEDIES.get(code) or "read the kernel log: `journalctl -k`"
        if not problem.device:
            yield error(f"{vendor or 'device'}-driver", f"{code}: {problem.message}", remedy)
        elif problem.device not in {device.id for device in case.devices}:  # else its condition says it
            yield error("device-detection", f"{problem.device}: {code}: {problem.message}", remedy)
    for driver in case.inventory.drivers:
        yield ok(f"{driver.vendor}-driver", _told(driver))


def new_enough(case: Case) -> Iterator[Finding]:
    """Whether the engines' CUDA builds run with the driver that is loaded."""
    for driver in case.inventory.drivers:
        if driver.vendor != "nvidia":
            continue
        branch = driver.version.partition(".")[0]
        if not branch.isdecimal():
            yield unknown("engine-images", f"the driver's version {driver.version!r} is no version that we can read")
            continue
        refused = [needed for needed in REQUIREMENTS if int(branch) < needed.branch]
        if not refused:
            enough = f"driver {driver.version} is new enough for the images of vLLM, SGLang, llama.cpp and Ollama"
            yield ok("engine-images", enough)
            continue
        told = "; ".join(f"{needed.engines}: {needed.branch} or newer" for needed in refused)
        message = f"{_told(driver)} is too old for {told}"
        remedy = f"install driver {REQUIREMENTS[0].branch} or newer, and reboot"
        none_left = len(refused) == len(REQUIREMENTS)
        yield error("engine-images", message, remedy) if none_left else warning("engine-images", message, remedy)


def nouveau(case: Case) -> Iterator[Finding]:
    """The free driver takes NVIDIA's devices, and computes nothing."""
    taken = case.inventory.system.nouveau_loaded
    working = any(driver.vendor == "nvidia" for driver in case.inventory.drivers)
    remedy = (
        "write `blacklist nouveau` and `options nouveau modeset=0` into /etc/modprobe.d/blacklist-nouveau.conf, "
        "run `update-initramfs -u` (or `dracut --force`), install NVIDIA's driver and reboot"
    )
    if taken and not working:
        yield error("nouveau", "the kernel uses nouveau for an NVIDIA GPU; no engine can compute with it", remedy)
    elif taken:
        yield warning("nouveau", "nouveau is loaded beside NVIDIA's driver, and may take a GPU from it", remedy)
    elif taken is False and case.has("nvidia"):
        yield ok("nouveau", "not loaded")


def _told(driver: Driver) -> str:
    return f"{driver.vendor} driver {driver.version}" + (f" ({driver.api})" if driver.api else "")


CHECKS: tuple[Check, ...] = (loaded, new_enough, nouveau)
