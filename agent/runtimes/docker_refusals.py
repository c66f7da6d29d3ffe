"""What an engine's refusal to make or start a container means, for people, and whether a retry may help."""

from __future__ import annotations

import re
from typing import Any

from agent.frozen import frozen
from agent.runtimes.base import Container, LaunchError
from agent.runtimes.docker_config import NETWORK
from agent.status import DiagnosisCode

_IMAGE = r"no such image|unable to find .*image|image not known"
#: "failed to bind" stands before any reason (dockerd 28, podman's pasta): other ones have rows of their own.
_PORT = (
    r"port is already allocated|address already in use"
    r"|failed to bind(?!.*(cannot assign requested address|permission denied))"
)

#: CDI specifications tell how a device is given to a container, of which driver. Some hosts write them anew at each
#: boot and with each driver, a moment later than this agent starts: so it is tried again.
_SPECIFY = "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` writes the specification anew"


@frozen
class _Meaning:
    sentence: str
    code: DiagnosisCode = DiagnosisCode.LAUNCH_FAILED
    hint: str = ""


def _device(sentence: str, hint: str) -> _Meaning:
    return _Meaning(sentence, DiagnosisCode.DEVICE_FAILED, hint)


#: What engines say (dockerd 20.10 to 28, podman 4 and 5), and what it means; the first that fits. What NVIDIA's
#: toolkit says in between is its own (nvidia-container-cli of libnvidia-container, nvidia-cdi-hook).
_MEANINGS: dict[str, _Meaning] = {
    _IMAGE: _Meaning("the image {image} is gone from the container engine"),
    _PORT: _Meaning("port {port} of {address} is taken by another process or container"),
    r"cannot expose privileged port|bind: permission denied|failed to bind port \d+ \(permission denied": _Meaning(
        "the container engine runs without root, and may not publish port {port}: low ports are root's",
        hint="choose a port from 1024 on, or lower the sysctl net.ipv4.ip_unprivileged_port_start",
    ),
    r"cannot assign requested address": _Meaning("this host has no address {address} to publish port {port} at"),
    r"could not select device driver|unknown or invalid runtime|nvidia[\w-]*: (no such file|executable file)"
    r"|executable file `\S*nvidia[\w-]*` not found": (
        _Meaning(
            "the container engine cannot give NVIDIA devices to containers: it finds no nvidia-container-toolkit",
            DiagnosisCode.TOOLKIT_MISSING,
            "install nvidia-container-toolkit, then `nvidia-ctk runtime configure --runtime=docker`, and restart the "
            "container engine, which looks for it only at its start",
        )
    ),
    r"unresolvable cdi device": _device(
        "no CDI specification that the container engine reads names a device of the plan by its UUID",
        f"{_SPECIFY}; nvidia-container-toolkit before 1.15 names devices by UUID only with --device-name-strategy=uuid",
    ),
    r"cdi host device|cdi device injection|setting up cdi devices": _device(
        "the container engine cannot give a device of the plan to a container as its CDI specification says",
        f"{_SPECIFY}, as the devices are by now; `nvidia-smi` shows them",
    ),
    r"(error mounting|mount request: open) \S*(nvidia|cuda|libnv)\S*.*no such file": _device(
        "the CDI specification of a device names a file of the driver that is not on this host",
        f"{_SPECIFY}, for the driver as it is by now",
    ),
    r"requirement error|unsatisfied condition": _Meaning(
        "NVIDIA's container toolkit finds the driver too old for the image",
        DiagnosisCode.DRIVER_UNSUPPORTED,
        "update the driver, or name an image that was built with an older CUDA",
    ),
    r"unknown device": _device(
        "NVIDIA's container toolkit does not know a device of the plan", "`nvidia-smi -L` lists those that it knows"
    ),
    r"nvidia-container-cli|nvidia-cdi-hook|nvidia-ctk|nvidia-container-runtime": _device(
        "NVIDIA's container toolkit cannot give the devices to the container",
        "`nvidia-container-cli info` and `nvidia-smi` show whether the driver answers",
    ),
    r"name \S+ is already in use": _Meaning(
        "another container has the name that this instance was to get: `docker rm` it"
    ),
    r"error gathering device information|no such device|stat /dev/\S+: no such file": _device(
        "a device file to be handed in is not on this host",
        "`ls -l /dev/kfd /dev/dri` and `agentctl devices` show them",
    ),
    # Two tables that fill up while the disk has room: podman's locks (since 4.0 by their name), the kernel's cgroups.
    r"allocating lock .*(no space left on device|num_locks)": _Meaning(
        "podman has no lock left for another container",
        hint="each container, pod and volume holds one: remove unused ones (`podman ps -a`, `podman volume ls`), or "
        "raise num_locks in containers.conf, then `podman system renumber`",
    ),
    r"/sys/fs/cgroup\S*: no space left on device": _Meaning(
        "the kernel has no room for another control group, or the one above it has no CPUs",
        hint="too many are left of containers that ended (/proc/cgroups counts them): a reboot ends them",
    ),
    r"no space left on device|disk quota exceeded": _Meaning(
        "no space is left on the container engine's disk",
        DiagnosisCode.DISK_FULL,
        "free space where it keeps its data (`docker system df` or `podman system df` tells what takes it, "
        "`docker info` where it is)",
    ),
    r"setting rlimit|setrlimit": _Meaning(
        "the container engine may not raise a limit (ulimit) as high as this engine needs it"
    ),
    r"init binary not found|catatonit": _Meaning(
        "the container engine lacks its init program (podman: install catatonit)"
    ),
}


def launch_error(said: str, container: Container) -> LaunchError:
    """With the engine's own words behind what they mean."""
    said = " ".join(said.split())  # hooks write several lines
    for pattern, meaning in _MEANINGS.items():
        if re.search(pattern, said, re.IGNORECASE):
            facts: dict[str, Any] = {
                "image": container.image, "port": container.port, "address": container.address
            }  # fmt: skip
            return LaunchError(f"{meaning.sentence.format(**facts)} ({_end(said)})", meaning.code, meaning.hint)
    return LaunchError(f"the container engine refuses: {said[:600]}")


def never_started(seconds: float, container: Container) -> LaunchError:
    """The engine answers, and yet this start does not end."""
    message = f"the container engine answers, but did not start the container within {seconds:g} s"
    if not container.gpus and not container.device_files:
        return LaunchError(message)
    hint = "`nvidia-smi` and the kernel's log show whether a driver hangs"
    return LaunchError(f"{message}: the driver of a device may hang", DiagnosisCode.DEVICE_FAILED, hint)


def _end(said: str) -> str:
    """The cause: what the outermost part says comes first, and the innermost last."""
    return said if len(said) <= 300 else f"… {said[-300:]}"


def port_taken(said: str) -> bool:
    return re.search(_PORT, said, re.IGNORECASE) is not None


def lacks_network(said: str) -> bool:
    """Or has more than one of its name."""
    return (
        re.search(
            rf"network {NETWORK} (not found|is ambiguous)|unable to find network .*{NETWORK}", said, re.IGNORECASE
        )
        is not None
    )


def network_gone(said: str) -> bool:
    """The one that a container was made on, by its id; another of the same name is no help to it."""
    return re.search(r"network [0-9a-f]{64} not found", said) is not None


def already(said: str) -> bool:
    return "already" in said
