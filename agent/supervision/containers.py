"""What plans and fetches need of container engines: which one, its images, and the files that a container sees."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from agent.artifacts.errors import ArtifactError
from agent.artifacts.images import ImagePolicy, ImagePulls, mirrored, pull
from agent.engines.images import Catalog, ImageRules, load
from agent.errors import InvalidArgument
from agent.hardware.inventory import ContainerRuntime
from agent.models.parts import parts
from agent.planning.plan import Image
from agent.planning.request import Containers
from agent.references import ImageReference
from agent.settings import ImagesConfig, NodeConfig
from agent.status import Diagnosis, DiagnosisCode, Progress
from agent.supervision.preparation import PreparationError

#: For looking which files belong to a model (seconds).
LOOK_DEADLINE = 10.0

Show = Callable[[Progress], None]


def chosen(found: Sequence[ContainerRuntime], last_used: str) -> ContainerRuntime | None:
    """The container engine that runs this node's containers: the one that did so far, else the first that answers."""
    usable = [engine for engine in found if not engine.problem]
    used = [engine for engine in found if engine.socket and engine.socket == last_used]
    return next(iter((*used, *usable, *found)), None)


async def supply(engine: ContainerRuntime, config: NodeConfig) -> Containers:
    """For plans. Raises `PreparationError` where the operator's catalog cannot be used."""
    name = f"{engine.name} {engine.version}".strip()
    problem = f"{name} cannot be used: {engine.problem}" if engine.problem else ""
    return Containers(await _catalog(config), _rules(config.images), name, problem, _no_gpus(engine))


async def assumed(config: NodeConfig) -> Containers:
    """For a machine that is not here."""
    return Containers(await _catalog(config), _rules(config.images), "a container engine")


async def _catalog(config: NodeConfig) -> Catalog:
    try:
        return await asyncio.to_thread(load, config.catalog.engines)
    except InvalidArgument as error:
        rules = "; ".join(f"{each.field}: {each.rule}" for each in error.violations)
        hint = f"mend or remove {config.catalog.engines}"
        raise PreparationError(Diagnosis(DiagnosisCode.IMAGE_MISSING, error.message, rules, hint)) from None


async def repositories(config: NodeConfig) -> frozenset[str]:
    """Of all images that engines may run in, at their mirrors too; none where the operator's catalog cannot be used."""
    try:
        catalog = await _catalog(config)
    except PreparationError:
        return frozenset()
    own = {image.repository for several in catalog.engines.values() for image in several}
    return frozenset(own | {mirrored(repository, config.images.mirrors) for repository in own})


def _rules(config: ImagesConfig) -> ImageRules:
    return ImageRules(config.repositories, config.require_digest)


def _no_gpus(engine: ContainerRuntime) -> str:
    if engine.nvidia_way:
        return ""
    way = (
        "install nvidia-container-toolkit, then `nvidia-ctk runtime configure --runtime=docker`, and restart it"
        if engine.name == "docker"
        else "it takes podman 5.4 or newer, and `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`"
    )
    return (
        f"{engine.name} {engine.version} cannot give NVIDIA's devices to containers: it has neither the nvidia runtime "
        f"nor CDI devices by UUID ({way})"
    )


async def bring(image: Image, socket: str, config: ImagesConfig, pulls: ImagePulls, show: Show) -> Image:
    """The image, on this node. Raises `PreparationError`."""
    reference = ImageReference(image.repository, image.tag, image.digest, image.architecture, image.bytes)
    try:
        pulled = await pull(reference, ImagePolicy(Path(socket), config, pulls), show)
    except ArtifactError as error:
        raise PreparationError(error.diagnosis) from error
    return replace(image, id=pulled.id, digest=pulled.digest or image.digest)


def paths(model: str) -> tuple[str, ...]:
    """What a container must see so that it can open the model: its files, and the folders that its links lead to. Looks
    at the disk."""
    path = Path(model)
    if not path.is_dir():
        return tuple(str(part) for part in parts(path))
    return tuple(dict.fromkeys(_folders(path)))


def _folders(model: Path) -> Iterator[str]:
    """A hub's cache has links from a snapshot into the folder beside it; those of others lead anywhere."""
    inside = model
    if model.parent.name == "snapshots" and model.parent.parent.name.startswith("models--"):
        inside = model.parent.parent
    yield str(inside)
    for entry in sorted(model.iterdir()):
        if entry.is_symlink():
            target = Path(os.path.normpath(entry.parent / entry.readlink()))
            if not target.is_relative_to(inside):
                yield str(target)


class Together:
    """The progress of an image and of weights, as one."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._last: dict[str, Progress] = {}

    def of(self, what: str) -> Show:
        def tell(progress: Progress) -> None:
            self._last[what] = progress
            self._show(self._joined())

        return tell

    def _joined(self) -> Progress:
        under_way = {what: each for what, each in self._last.items() if not each.total or each.done < each.total}
        step = "; ".join(f"{what}: {each.step}" for what, each in (under_way or self._last).items())
        every = self._last.values()
        total = sum(each.total for each in every) if all(each.total for each in every) else 0
        return Progress(step, sum(each.done for each in every), total)
