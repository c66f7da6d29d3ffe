"""What an engine's refusal to make or start a container means, for people."""

from __future__ import annotations

import re

from agent.runtimes.base import Container
from agent.runtimes.docker_config import NETWORK

_IMAGE = r"no such image|unable to find .*image|image not known"
_PORT = r"port is already allocated|address already in use|failed to bind"

#: What engines say (dockerd 20.10 to 28, podman 4 and 5), and what it means.
_MEANINGS = {
    _IMAGE: "the image {image} is gone from the container engine",
    _PORT: "port {port} of {address} is taken by another process or container",
    r"cannot assign requested address": "this host has no address {address} to publish port {port} at",
    r"could not select device driver|unknown or invalid runtime|nvidia-container-cli|unresolvable cdi device": (
        "the container engine cannot give the NVIDIA devices to a container: check nvidia-container-toolkit, then "
        "`nvidia-ctk runtime configure --runtime=docker` and restart the engine"
    ),
    r"name \S+ is already in use": "another container has the name that this instance was to get: `docker rm` it",
    r"error gathering device information|no such device": "a device file to be handed in is not on this host",
    r"no space left on device": "no space is left on the container engine's disk",
    r"setting rlimit": "the container engine may not raise a limit (ulimit) as high as this engine needs it",
    r"init binary not found|catatonit": "the container engine lacks its init program (podman: install catatonit)",
}


def sentence(said: str, container: Container) -> str:
    """With the engine's own words behind it."""
    for pattern, meaning in _MEANINGS.items():
        if re.search(pattern, said, re.IGNORECASE):
            known = meaning.format(image=container.image, port=container.port, address=container.address)
            return f"{known} ({said[:300]})"
    return f"the container engine refuses: {said[:600]}"


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


def already(said: str) -> bool:
    return "already" in said
