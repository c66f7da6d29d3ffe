"""Which devices a plan may take, how much of each is free, and in which order sets of them are tried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent.engines.base import Located
from agent.hardware.inventory import Device, Link
from agent.planning.amounts import gib
from agent.planning.plan import Rejected
from agent.planning.request import DeviceState, PlanRequest, RefusedError
from agent.status import Diagnosis, DiagnosisCode

#: The vendor whose devices an accelerator reaches, best first: all of them, and no others, are made visible to an
#: engine by its vendor's variable. Metal and Vulkan have none: their devices are found by the engine's own names.
_VENDORS = {"cuda": "nvidia", "rocm": "amd", "sycl": "intel", "metal": "apple"}
#: Links that make devices one island: much faster than the way over PCIe.
_FAST = frozenset({"nvlink", "xgmi"})


@dataclass(frozen=True, slots=True)
class Offer:
    """A device that the plan may take, and how much of it. Bytes."""

    device: Device
    accelerator: str
    name: str  # the engine's own name for it; "" where the engine counts the visible devices
    free: int
    state: DeviceState
    utilization: float  # the part of it that this plan may use
    policy: float  # the part of it that all deployments together may use

    def __str__(self) -> str:
        total = self.device.memory_bytes
        parts = [f"{self.utilization:g} of it may be used"]
        if self.state.reserved:
            parts.append(f"{gib(self.state.reserved)} GiB for other deployments")
        if strangers := _strangers(self.state):
            parts.append(f"{gib(strangers)} GiB used by others")
        if self.policy < 1:
            parts.append(f"the node policy leaves {self.policy:g} of it to all deployments")
        return f"{gib(self.free)} GiB is free of {gib(total)} GiB ({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class Offers:
    """What there is to choose from."""

    usable: tuple[Offer, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    links: tuple[Link, ...] = ()

    def are_island(self, members: Sequence[Offer]) -> bool:
        """Whether fast links join all of them, with others or without."""
        ids = {offer.device.id for offer in members}
        return any(ids <= {offer.device.id for offer in island} for island in _islands(self.usable, self.links))


def label(device: Device) -> str:
    """A device as people know it."""
    return f"{device.vendor} device {device.index} ({device.name})"


def offers(request: PlanRequest, asked: str | Sequence[str], located: Located, utilization: float) -> Offers:
    """What this executable can have of the devices that are asked for. Raises `RefusedError` for one that is named
    and cannot be had."""
    inventory = request.inventory
    if asked == "cpu":
        return Offers()
    candidates = inventory.devices if asked == "auto" else _named(request, asked)
    usable, rejected = [], []
    for device in candidates:
        state = request.devices.get(device.id, DeviceState())
        reach = _reach(device, located, inventory.devices)
        if reach is not None and not state.unavailable:
            usable.append(_offer(request, device, state, reach, utilization))
            continue
        problem = _problem(request, device, state, located)
        if asked != "auto":
            raise RefusedError(problem)
        rejected.append(Rejected(device.id, "unavailable" if state.unavailable else "accelerator", problem.message))
    found = Offers(tuple(usable), tuple(rejected), inventory.links)
    if asked != "auto":
        _check_together(found.usable)
    return found


def _named(request: PlanRequest, asked: Sequence[str]) -> tuple[Device, ...]:
    """The devices that the spec names: by id, by the only id that begins so, or by index."""
    devices = request.inventory.devices
    found: list[Device] = []
    for name in asked:
        exact = [device for device in devices if device.id == name]
        matching = exact or [device for device in devices if str(device.index) == name or device.id.startswith(name)]
        if not matching:
            raise _refused(
                request, DiagnosisCode.DOES_NOT_FIT, f"this node has no device {name}{_slices(request, name)}"
            )
        if len(matching) > 1:
            several = ", ".join(device.id for device in matching)
            raise _refused(request, DiagnosisCode.DOES_NOT_FIT, f"{name} means several devices: {several}")
        if matching[0] in found:
            raise _refused(request, DiagnosisCode.DOES_NOT_FIT, f"{name} names a device twice: {matching[0].id}")
        found.append(matching[0])
    return tuple(found)


def _slices(request: PlanRequest, name: str) -> str:
    slices = ", ".join(device.id for device in request.inventory.devices if device.parent and device.parent == name)
    return f" to be used whole: it is divided into {slices}" if slices else ""


def _refused(request: PlanRequest, code: DiagnosisCode, message: str) -> RefusedError:
    known = "; ".join(_line(request, device) for device in request.inventory.devices) or "none"
    return RefusedError(Diagnosis(code, message, hint=f"devices of this node: {known}"))


def _line(request: PlanRequest, device: Device) -> str:
    why = request.devices.get(device.id, DeviceState()).unavailable
    return f"{device.id} ({label(device)})" + (f", unavailable: {why}" if why else "")


def _problem(request: PlanRequest, device: Device, state: DeviceState, located: Located) -> Diagnosis:
    if state.unavailable:
        message = f"{label(device)} is unavailable: {state.unavailable}"
        hint = "; ".join(_line(request, other) for other in request.inventory.devices)
        return Diagnosis(DiagnosisCode.DEVICE_FAILED, message, hint=f"devices of this node: {hint}")
    engine = " ".join(located.argv)
    can = ", ".join(sorted(located.accelerators))
    wanted = next((name for name, vendor in _VENDORS.items() if vendor == device.vendor), "vulkan")
    return Diagnosis(
        DiagnosisCode.BINARY_MISSING,
        f"{engine} cannot use {label(device)}: it needs a build for {wanted} that lists the device (this one: {can})",
        hint="install such a build, name it in engines.<name>.binary, or say `devices: cpu`",
    )


def _reach(device: Device, located: Located, among: Iterable[Device]) -> tuple[str, str] | None:
    """The accelerator by which this executable reaches the device, and its own name for it."""
    for accelerator in ("cuda", "rocm", "sycl"):
        if accelerator in located.accelerators and _VENDORS[accelerator] == device.vendor:
            return accelerator, ""
    if "metal" in located.accelerators and device.vendor == "apple":
        listed = [own.name for own in located.devices if own.accelerator == "metal"]
        return ("metal", listed[0]) if len(listed) == 1 else ("metal", "") if not listed else None
    # Vulkan's own numbers mean nothing to others, so a device is known by its name, and that only where it is the one.
    own = [
        entry.name for entry in located.devices if entry.accelerator == "vulkan" and _same(entry.description, device)
    ]
    alike = [other for other in among if other.name == device.name]
    return ("vulkan", own[0]) if len(own) == 1 and len(alike) == 1 else None


def _same(description: str, device: Device) -> bool:
    """Vulkan's drivers add to the name: "AMD Radeon RX 7900 XTX (RADV NAVI31)"."""
    return description.casefold().startswith(device.name.casefold())


def _offer(
    request: PlanRequest, device: Device, state: DeviceState, reach: tuple[str, str], utilization: float
) -> Offer:
    """What is free is what others leave of the whole, within this plan's part and the policy's part of it."""
    total, policy = device.memory_bytes, request.policy.limits.gpu_memory_utilization.max
    left = total - _strangers(state) - state.reserved
    allowed = total if policy is None else int(total * policy) - state.reserved
    free = max(0, min(left, allowed, int(total * utilization)))
    return Offer(device, *reach, free, state, utilization, 1.0 if policy is None else policy)


def _strangers(state: DeviceState) -> int:
    """Bytes in use that are no deployment's: other deployments are counted by what they were promised."""
    return max(0, state.used - state.resident - state.released)


def _check_together(chosen: Sequence[Offer]) -> None:
    """Devices that one instance cannot use at the same time."""
    accelerators = sorted({offer.accelerator for offer in chosen})
    if len(accelerators) > 1:
        rule = f"the devices need several accelerators ({', '.join(accelerators)}), and an instance has one"
    elif len(chosen) > 1 and any(offer.device.parent for offer in chosen):
        rule = "an instance sees only one slice of a GPU, and it is given several"
    else:
        return
    raise RefusedError(Diagnosis(DiagnosisCode.DOES_NOT_FIT, rule, hint="name one device, or whole GPUs of one vendor"))


def sets(found: Offers) -> Iterator[tuple[Offer, ...]]:
    """Sets to try for `auto`: fewest devices first, then those of one island, then the least free memory."""
    groups = _groups(found)
    for size in range(1, max((len(group) for group, _ in groups), default=0) + 1):
        candidates = [
            (not island and size > 1, _free(window), tuple(offer.device.index for offer in window), window)
            for group, island in groups
            for window in _windows(group, size)
        ]
        seen: set[tuple[str, ...]] = set()
        for *_, window in sorted(candidates, key=lambda candidate: candidate[:3]):
            ids = tuple(offer.device.id for offer in window)
            if ids not in seen:
                seen.add(ids)
                yield window


def largest_sets(candidates: Iterable[tuple[Offer, ...]]) -> tuple[tuple[Offer, ...], ...]:
    """Of each size, the set with the most free memory; smallest first."""
    by_size: dict[int, tuple[Offer, ...]] = {}
    for candidate in candidates:
        best = by_size.get(len(candidate))
        if best is None or _free(candidate) > _free(best):
            by_size[len(candidate)] = candidate
    return tuple(by_size[size] for size in sorted(by_size))


def _groups(found: Offers) -> list[tuple[tuple[Offer, ...], bool]]:
    """Devices that one instance can use together, and whether they are one island. Slices stand alone."""
    groups: list[tuple[tuple[Offer, ...], bool]] = [((offer,), False) for offer in found.usable]
    for accelerator in sorted({offer.accelerator for offer in found.usable}):
        whole = tuple(o for o in found.usable if o.accelerator == accelerator and not o.device.parent)
        groups.append((whole, False))
        groups += [(island, True) for island in _islands(whole, found.links)]
    return groups


def _free(members: Iterable[Offer]) -> int:
    return sum(offer.free for offer in members)


def _islands(members: Sequence[Offer], links: Iterable[Link]) -> Iterator[tuple[Offer, ...]]:
    island = {offer.device.id: offer.device.id for offer in members}
    for link in links:
        if link.kind in _FAST and link.a in island and link.b in island:
            old, new = island[link.b], island[link.a]
            island = {device: new if root == old else root for device, root in island.items()}
    for root in sorted(set(island.values())):
        connected = tuple(offer for offer in members if island[offer.device.id] == root)
        if len(connected) > 1:
            yield connected


def _windows(group: Sequence[Offer], size: int) -> Iterator[tuple[Offer, ...]]:
    """Neighbours by free memory, each set in the order of their indices."""
    ordered = sorted(group, key=lambda offer: (offer.free, offer.device.index, offer.device.id))
    for start in range(len(ordered) - size + 1):
        yield tuple(sorted(ordered[start : start + size], key=lambda offer: (offer.device.index, offer.device.id)))


def environment(chosen: Sequence[Device]) -> dict[str, str]:
    """Variables that show an engine the chosen devices and no others, in their order, whatever its build could use.

    Intel's has no value for "none": without a device of Intel's it is left out.
    """
    ids = {vendor: [device for device in chosen if device.vendor == vendor] for vendor in ("nvidia", "amd", "intel")}
    visible = {
        "CUDA_VISIBLE_DEVICES": ",".join(device.id for device in ids["nvidia"]),
        "ROCR_VISIBLE_DEVICES": ",".join(
            device.id if device.id.startswith("GPU-") else str(device.index) for device in ids["amd"]
        ),
    }
    if ids["intel"]:
        visible["ZE_AFFINITY_MASK"] = ",".join(str(device.index) for device in ids["intel"])
    return visible
