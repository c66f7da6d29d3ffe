"""How a container is made: the engine's own JSON out of a launch request. Pure.

What an engine of ours never gets is written out here, not left to defaults: privileges, capabilities, new privileges by
setuid files, a restart policy, the host's network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from agent.frozen import frozen
from agent.runtimes.base import Container, Identity, LaunchError, LaunchRequest, Resources
from agent.runtimes.docker_engine import Facts
from agent.status import DiagnosisCode

LABEL = "llm-node-agent"
NODE, CONFIG = f"{LABEL}.node", f"{LABEL}.config"
NETWORK = LABEL

#: Containers that SELinux confines read only files that are labelled for them, and reach few devices. Weights lie in
#: people's own folders too, whose labels are not ours to change (`:z` would): so this confinement is left out.
_NO_SELINUX = "label=disable"
_NANO = 10**9


@frozen
class Surroundings:
    """What a container's configuration depends on besides the request."""

    facts: Facts
    groups: tuple[int, ...] = ()  # which own the device files


def labels(identity: Identity) -> dict[str, str]:
    return {
        NODE: identity.node,
        f"{LABEL}.deployment": identity.deployment,
        f"{LABEL}.generation": str(identity.generation),
        f"{LABEL}.attempt": str(identity.attempt),
        f"{LABEL}.instance": identity.instance,
    }


def identity_of(found: Mapping[str, str] | None) -> Identity | None:
    """Who a container says it is, from its labels; None when it says nothing, or not all of it."""
    found = found or {}
    try:
        return Identity(
            found[NODE],
            found[f"{LABEL}.deployment"],
            int(found[f"{LABEL}.generation"]),
            int(found[f"{LABEL}.attempt"]),
            found[f"{LABEL}.instance"],
        )
    except (KeyError, ValueError):
        return None


def created(request: LaunchRequest, container: Container, around: Surroundings) -> dict[str, Any]:
    """The body of POST /containers/create, with its hash among its labels. Raises `LaunchError`."""
    port = f"{container.port}/tcp"
    config: dict[str, Any] = {
        "Image": container.image,
        "Env": [f"{name}={value}" for name, value in sorted(_environment(request, container, around).items())],
        "ExposedPorts": {port: {}},
        "StopSignal": container.stop_signal.name,
        "StopTimeout": container.stop_seconds,
        "User": container.user,
        "Healthcheck": {"Test": ["NONE"]},  # the image's own asks the image's port: llama.cpp's would never be healthy
        "HostConfig": {
            "RestartPolicy": {"Name": "no"},
            "Init": True,
            "Privileged": False,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges", _NO_SELINUX],
            "NetworkMode": NETWORK,
            "PortBindings": {port: [{"HostIp": container.address, "HostPort": str(container.port)}]},
            "Mounts": [  # which, other than Binds, never make a missing source
                {"Type": "bind", "Source": mount.source, "Target": mount.target, "ReadOnly": mount.read_only}
                for mount in container.mounts
            ],
            "ReadonlyRootfs": container.read_only_root,
            "Tmpfs": {"/tmp": "rw,exec,nosuid,nodev,mode=1777"} if container.read_only_root else {},  # noqa: S108
            "Ulimits": [
                {"Name": name, "Soft": value, "Hard": value} for name, value in sorted(container.ulimits.items())
            ],
            "LogConfig": _log(container, around.facts),
            "ShmSize": container.shm_bytes,
            **_limits(request.resources),
            **_devices(container, around),
        },
        **_command(request, container),
    }
    config["Labels"] = labels(request.identity) | {CONFIG: digest(config)}
    return config


def digest(config: Mapping[str, Any]) -> str:
    """Of what was asked of the engine, save for whom: two containers with the same one are the same."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:32]


def _environment(request: LaunchRequest, container: Container, around: Surroundings) -> dict[str, str]:
    """Images of CUDA want all devices, and where NVIDIA's runtime is the default one, it obeys them: also for what is
    to have none, or gets its own by CDI. "void" is its word for leaving a container alone."""
    visible = ",".join(container.gpus) if _by_runtime(around.facts) else ""
    return {**request.environment, "NVIDIA_VISIBLE_DEVICES": visible or "void"}


def _by_runtime(facts: Facts) -> bool:
    return "nvidia" in facts.runtimes


def _command(request: LaunchRequest, container: Container) -> dict[str, Any]:
    if container.own_entrypoint:
        return {"Cmd": list(request.argv)}
    return {"Entrypoint": [request.argv[0]], "Cmd": list(request.argv[1:])}


def _limits(resources: Resources) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if resources.memory_bytes is not None:
        limits |= {"Memory": resources.memory_bytes, "MemorySwap": resources.memory_bytes}  # the same: no swap
    if resources.cpus is not None:
        limits["NanoCpus"] = int(resources.cpus * _NANO)
    if resources.pids is not None:
        limits["PidsLimit"] = resources.pids
    return limits


def _log(container: Container, facts: Facts) -> dict[str, Any]:
    """A file a container, with a cap: text that a reader of today and one of the next version understand, and of which
    a torn line costs that line. podman's own is one such file, started anew when it is full."""
    if facts.podman:
        return {"Type": "k8s-file", "Config": {"max-size": str(container.log_bytes * container.log_files)}}
    files = {"max-size": str(container.log_bytes), "max-file": str(container.log_files)}
    return {"Type": "json-file", "Config": files}


def _devices(container: Container, around: Surroundings) -> dict[str, Any]:
    files = [
        {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"} for path in container.device_files
    ]
    devices: dict[str, Any] = {"Devices": files, "GroupAdd": [str(group) for group in around.groups]}
    if container.gpus:
        devices["DeviceRequests"] = [_gpus(container.gpus, around.facts)]
    return devices


def _gpus(uuids: tuple[str, ...], facts: Facts) -> dict[str, Any]:
    """By UUID: an index names another card after a reboot."""
    if _by_runtime(facts):
        return {"Driver": "nvidia", "DeviceIDs": list(uuids), "Capabilities": [["gpu", "compute", "utility"]]}
    if facts.takes_cdi:
        names = [f"nvidia.com/gpu={uuid}" for uuid in uuids]
        return {"Driver": "cdi", "DeviceIDs": names, "Capabilities": [[]]}
    if facts.podman:
        message = f"podman {facts.podman} gives no NVIDIA device to containers of this API, and does not say so"
        hint = "podman 5.4 is the first that does; or name Docker's socket in `containers.socket`"
    else:
        message = (
            "Docker can give no NVIDIA device to a container: it has no nvidia runtime, and CDI is not switched on"
        )
        hint = (
            "install nvidia-container-toolkit, then `nvidia-ctk runtime configure --runtime=docker`, and restart Docker"
        )
    raise LaunchError(message, DiagnosisCode.TOOLKIT_MISSING, hint)
