"""What an instance in a container gets of the host: mounts, devices, variables. Nothing of the daemon's own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent.engines.base import CACHE_FOLDER, Containerized
from agent.frozen import frozen
from agent.planning.plan import Image, Plan
from agent.runtimes.base import Container, Mount
from agent.status import Diagnosis, DiagnosisCode
from agent.supervision.preparation import PreparationError

#: Variables that count the devices that are seen; in a container those are the plan's, whatever their numbers outside.
_COUNTING = ("ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


@frozen
class Place:
    """Where on this host a container is made."""

    socket: str  # of the container engine
    address: str
    port: int
    compiled: Path  # for what the engine compiles
    device_files: tuple[str, ...] = ()  # of the plan's devices


def container(plan: Plan, how: Containerized, place: Place) -> Container:
    """Makes the folder for what is compiled, where the engine wants one. Raises `PreparationError`."""
    image, by_uuid = plan.image, plan.placement.accelerator == "cuda"
    if image is None or not image.id:
        raise PreparationError(Diagnosis(DiagnosisCode.IMAGE_MISSING, "the plan's image was not pulled"))
    if how.caches:
        _make(place.compiled)
    return Container(
        image=image.id,
        address=place.address,
        port=place.port,
        socket=place.socket,
        mounts=tuple(_mounts(image, how, place.compiled)),
        gpus=plan.devices if by_uuid else (),
        device_files=() if by_uuid else tuple(dict.fromkeys(place.device_files)),
        shm_bytes=how.shm_bytes,
        ulimits=how.ulimits,
        read_only_root=how.read_only_root,
        user=_user(how),
        stop_seconds=how.stop_seconds,
        own_entrypoint=how.own_entrypoint,
    )


def environment(plan: Plan, how: Containerized, variables: Mapping[str, str]) -> dict[str, str]:
    """`variables`: those of spec and command, which count more than the image's."""
    image = plan.image.environment if plan.image is not None else {}
    joined = {**how.environment, **how.caches, **image, **variables}
    return joined | {name: _counted(joined[name]) for name in _COUNTING if name in joined}


def _counted(value: str) -> str:
    """Ids stay what they are; numbers begin anew."""
    names = value.split(",") if value else []
    return ",".join(str(place) if name.isdecimal() else name for place, name in enumerate(names))


def _make(folder: Path) -> None:
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # no other user of the host gets past it
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)  # the image's own user writes there
    except OSError as error:
        message = f"the folder for what the engine compiles cannot be made: {error.strerror} ({folder})"
        raise PreparationError(Diagnosis(DiagnosisCode.LAUNCH_FAILED, message)) from error


def _mounts(image: Image, how: Containerized, compiled: Path) -> Iterator[Mount]:
    for path in (*image.paths, *how.files):
        yield Mount(path, path)
    if how.caches:
        yield Mount(str(compiled), CACHE_FOLDER, read_only=False)


def _user(how: Containerized) -> str:
    """The agent's own user, who may read the weights: root without its capabilities may not. Root itself is nobody to
    become, and then the image's own user is taken."""
    return f"{os.geteuid()}:{os.getegid()}" if how.any_user and os.geteuid() != 0 else ""
