"""Container engines: can be reached, and can hand GPUs to their containers."""

from __future__ import annotations

from collections.abc import Iterator

from agent.hardware.checks.base import Case, Check, note, ok, warning
from agent.hardware.inventory import ContainerRuntime
from agent.status import Finding


def reachable(case: Case) -> Iterator[Finding]:
    """On a CPU none is needed: engines run as processes. One that is there and does not answer is worth a word."""
    if not case.inventory.containers and case.inventory.devices:
        message = "neither docker nor podman was found: only engines that are installed here can use the devices"
        yield warning(
            "containers", message, "install one (docker.io, podman); or name executables in engines.<name>.binary"
        )
    elif not case.inventory.containers:
        yield note("containers", "neither docker nor podman was found: engines run as processes")
    for runtime in case.inventory.containers:
        if runtime.problem:
            yield warning("containers", f"{_named(runtime)} cannot be used: {runtime.problem}", _remedy(runtime))
        else:
            yield ok("containers", f"{_named(runtime)} answers")


def gpus(case: Case) -> Iterator[Finding]:
    """Whether containers get NVIDIA's devices: by an OCI runtime, or by CDI. Others need no more than their files."""
    usable = [runtime for runtime in case.inventory.containers if not runtime.problem]
    if not any(device.vendor == "nvidia" for device in case.inventory.devices):
        return
    for runtime in usable:
        if runtime.nvidia_way:
            yield ok("container-gpus", f"{runtime.name} gives GPUs to containers by {runtime.nvidia_way}")
        else:
            yield warning(
                "container-gpus",
                f"the driver shows GPUs, but {_named(runtime)} has neither the nvidia runtime nor CDI devices by UUID "
                "for containers",
                _toolkit(runtime.name),
            )


def _remedy(runtime: ContainerRuntime) -> str:
    if "ermission" in runtime.problem:
        group = "docker" if runtime.name == "docker" else "the socket's group"
        return f"add the user of agentd to {group} (which is as much as root there), and start agentd anew"
    unit = "podman.socket" if runtime.name == "podman" else runtime.name
    return f"`systemctl enable --now {unit}`; or leave it: engines that are installed here need none"


def _toolkit(name: str) -> str:
    install = "install nvidia-container-toolkit, then "
    if name == "docker":
        return install + "`nvidia-ctk runtime configure --runtime=docker && systemctl restart docker`"
    return f"use podman 5.4 or newer, {install}`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`"


def _named(runtime: ContainerRuntime) -> str:
    return " ".join(filter(None, (runtime.name, runtime.version, f"at {runtime.socket}" if runtime.socket else "")))


CHECKS: tuple[Check, ...] = (reachable, gpus)
