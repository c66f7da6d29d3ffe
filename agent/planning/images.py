"""How an engine can be run here: by the executable that was found, and by images of the catalog.

Which of an engine's images runs depends on the devices that it would use, so there is a way for each accelerator.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.engines.base import Containerized, Engine, Located
from agent.hardware.inventory import Device, Inventory
from agent.planning.plan import Image, Reason, Rejected
from agent.planning.request import Containers, PlanRequest

if TYPE_CHECKING:
    from agent.engines.images import Host, ImageChoice

# A node without containers plans without the images' part.
# ruff: noqa: PLC0415

_VENDORS = {"cuda": "nvidia", "rocm": "amd", "sycl": "intel"}
RUNTIMES = ("process", "docker")


def image_host(inventory: Inventory, accelerator: str, devices: Collection[str]) -> Host:
    """For an engine that would reach the devices, by id, through the accelerator."""
    from agent.engines.images import Host

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


@dataclass(frozen=True, slots=True)
class Ways:
    """How an engine can be run, and why not otherwise."""

    found: tuple[Located, ...] = ()
    rejected: tuple[Rejected, ...] = ()


def may_have(request: PlanRequest, name: str) -> bool:
    """Whether there may be a way to run the engine; its adapter is not looked at."""
    if request.spec.image:
        return True
    return name in request.located or (request.containers is not None and name in request.containers.catalog.engines)


def ways(request: PlanRequest, engine: Engine) -> Ways:
    """Those of one engine, within what spec and policy allow."""
    may, native = allowed(request), request.located.get(engine.name)
    found = [native] if native is not None and "process" in may and engine.capabilities.native else []
    rejected = [*_not_native(request, engine, native, may)]
    if "docker" in may and engine.container is not None and request.containers is not None:
        by_image = _Images(request, engine, engine.container, request.containers)
        images = list(by_image.ways())
        rejected += by_image.rejected
        if images and not by_image.rejected and native is not None and native.origin == "assumed":
            found = []  # of a machine that is not here, what would be pulled says more than what might be installed
        found += images
    return Ways(tuple(found), tuple(rejected))


def allowed(request: PlanRequest) -> tuple[str, ...]:
    """The runtimes that spec and policy leave."""
    asked, policy = _asked(request), request.policy.runtimes
    return tuple(
        [runtime for runtime in RUNTIMES if asked in {"auto", runtime} and (policy is None or runtime in policy)]
    )


def _asked(request: PlanRequest) -> str:
    return "docker" if request.spec.image else request.spec.runtime


def _not_native(
    request: PlanRequest, engine: Engine, native: Located | None, allowed: tuple[str, ...]
) -> Iterator[Rejected]:
    name, asked = engine.name, _asked(request)
    if native is not None and asked == "auto" and "process" not in allowed:
        yield Rejected(name, "runtimes", f"the node policy does not let {name} run natively")
    if asked == "docker" and engine.container is None:
        yield Rejected(name, "runtime", f"{name} has no image that this agent runs")
    elif asked == "docker" and request.containers is None:
        yield Rejected(name, "runtime", f"{name} cannot run in a container: this node has no container engine")


class _Images:
    """The images of one engine. `rejected` is filled by `ways`."""

    def __init__(self, request: PlanRequest, engine: Engine, container: Containerized, containers: Containers) -> None:
        self._request, self._engine, self._container, self._containers = request, engine, container, containers
        self.rejected: list[Rejected] = []

    def ways(self) -> Iterator[Located]:
        from agent.engines.images import NoImage

        name, containers = self._engine.name, self._containers
        if name not in containers.catalog.engines and not self._request.spec.image:
            return
        if containers.problem:
            self._reject("runtime", f"no image of {name} can be run: {containers.problem}")
            return
        for accelerator, devices in self._accelerators():
            if accelerator == "cuda" and containers.no_gpus:
                self._reject("toolkit", containers.no_gpus)
                continue
            try:
                yield self._way(accelerator, devices)
            except NoImage as none:
                # A processor for which there is no image costs nothing where devices have one.
                if accelerator != "cpu" or not self._request.inventory.devices:
                    broken = [each.code for each in none.rejected if each.code != "accelerator"]
                    self._reject(broken[-1] if broken else "image", none.diagnosis.message)

    def _reject(self, code: str, sentence: str) -> None:
        self.rejected.append(Rejected(f"{self._engine.name} in a container", code, sentence))

    def _accelerators(self) -> Iterator[tuple[str, list[Device]]]:
        """By which it could compute, with the devices of each."""
        can, asked = self._engine.capabilities.accelerators, self._request.spec.devices
        for accelerator, vendor in _VENDORS.items():
            devices = [device for device in self._request.inventory.devices if device.vendor == vendor]
            if devices and accelerator in can and asked != "cpu":
                yield accelerator, devices
        if "cpu" in can and asked in {"auto", "cpu"}:
            yield "cpu", []

    def _way(self, accelerator: str, devices: list[Device]) -> Located:
        """For all the devices; or else for the largest ones that an image has code for. Raises `NoImage`."""
        from agent.engines.images import NoImage

        try:
            return self._located(accelerator, devices, None)
        except NoImage:
            alike: dict[tuple[str, str], list[Device]] = {}
            for device in sorted(devices, key=lambda device: -device.memory_bytes):
                alike.setdefault((device.compute_capability, device.architecture), []).append(device)
            for group in alike.values() if len(alike) > 1 else ():
                try:
                    return self._located(accelerator, group, frozenset(device.id for device in group))
                except NoImage:
                    continue
            raise

    def _located(self, accelerator: str, devices: list[Device], only: frozenset[str] | None) -> Located:
        host = image_host(self._request.inventory, accelerator, [device.id for device in devices])
        catalog, rules = self._containers.catalog, self._containers.rules
        choice = (
            catalog.named(self._engine.name, self._request.spec.image, host, rules)
            if self._request.spec.image
            else catalog.choose(self._engine.name, host, rules)
        )
        argv = choice.command or self._container.command
        return Located(argv, choice.image.tag, "image", frozenset({accelerator}), image=choice, only=only)


def order(located: Located) -> int:
    """The place of a way among those of one engine: the operator's choice; then what reaches devices, and of that what
    need not be pulled; then the same without devices."""
    if located.origin == "config":
        return 0
    places = ("path", "image", "embedded", "assumed") if located.accelerators != {"cpu"} else _WITHOUT_DEVICES
    return 1 + places.index(located.origin) + (0 if places is not _WITHOUT_DEVICES else len(places))


_WITHOUT_DEVICES = ("path", "embedded", "image", "assumed")


def planned(choice: ImageChoice) -> Image:
    """An image as a plan names it."""
    image = choice.image
    return Image(image.repository, image.tag, image.digest, image.architecture, image.bytes, choice.environment)


def runtime_reason(request: PlanRequest, engine: Engine, located: Located) -> Reason:
    """Why it runs natively, or in a container."""
    runtime = "docker" if located.image is not None else "process"
    if request.spec.runtime != "auto":
        return Reason("runtime", runtime, "from-spec", "the spec says so")
    if request.spec.image:
        return Reason("runtime", runtime, "from-spec", "the spec names an image")
    if located.image is not None:
        return Reason("runtime", runtime, *_why_a_container(request, engine))
    return Reason("runtime", runtime, "computed", "the engine runs natively")


def _why_a_container(request: PlanRequest, engine: Engine) -> tuple[str, str]:
    """A code and a sentence."""
    name, policy, native = engine.name, request.policy.runtimes, request.located.get(engine.name)
    by = request.containers.engine if request.containers is not None else ""
    if policy is not None and "process" not in policy:
        return "from-policy", "the node policy allows nothing else"
    if native is None and not engine.capabilities.native:
        return "computed", f"{name} is published as an image only; {by} runs it"
    if native is None:
        return "computed", f"no executable of {name} was found on this node; {by} runs its image"
    if native.origin == "assumed":
        return "assumed", "assumed: the machine runs containers"
    reaches = "the executable that was found ({}) does not serve it on these devices, and the image does; {} runs that"
    return "computed", reaches.format(native.origin, by)
