"""Which devices a plan may take, how much of each is free, and in which order sets of them are tried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

from agent.engines.base import Located
from agent.hardware.inventory import Device, Link
from agent.planning.amounts import gib
from agent.planning.plan import Rejected
from agent.planning.request import IDLE, DeviceState, PlanRequest, RefusedError
from agent.status import Diagnosis, DiagnosisCode

#: The vendor whose devices an accelerator reaches, best first: all of them, and no others, are made visible to an
#: engine by its vendor's variable. Metal and Vulkan have none: their devices are found by the engine's own names.
_VENDORS = {"cuda": "nvidia", "rocm": "amd", "sycl": "intel", "metal": "apple"}
_SPARED = "left to models that generate; `devices` in the spec can name it"
#: Links by what they cost, nearest first: those that make devices one island, much faster than the way over PCIe;
#: one PCIe switch; several; one host bridge; one NUMA node; and the way between processors.
_DISTANCE = {"nvlink": 0, "xgmi": 0, "pix": 1, "pxb": 2, "phb": 3, "node": 4, "sys": 5}
_FARTHEST = 5


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
        parts = [f"{self.utilization:g} of it may be used"] if self.utilization < 1 else []
        if self.state.reserved:
            parts.append(f"{gib(self.state.reserved)} GiB for other deployments")
        if strangers := _strangers(self.state):
            parts.append(f"{gib(strangers)} GiB used by others")
        if self.policy < 1:
            parts.append(f"the node policy leaves {self.policy:g} of it to all deployments")
        said = f" ({', '.join(parts)})" if parts else ""
        return f"{gib(self.free)} GiB is free of {gib(total)} GiB{said}"


@dataclass(frozen=True, slots=True)
class Offers:
    """What there is to choose from."""

    usable: tuple[Offer, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    links: tuple[Link, ...] = ()

    def are_island(self, members: Sequence[Offer]) -> bool:
        """Whether fast links join all of them, with others or without."""
        chosen = {offer.device.id for offer in members}
        return any(
            chosen <= {offer.device.id for offer in island} for island in _joined(self.usable, _distances(self), 0)
        )


@dataclass(frozen=True, slots=True)
class Alike:
    """Devices for ranks, which are of one kind unless the spec names others, and what decides about a place on them."""

    offers: tuple[Offer, ...]
    free: int  # bytes of each, at least
    unified: bool  # their memory is the host's
    spans: bool  # several of the islands that fast links make
    kind: tuple[str, int, bool]  # what else decides


def label(device: Device) -> str:
    """A device as people know it."""
    return f"{device.vendor} device {device.index} ({device.name})"


def offers(
    request: PlanRequest,
    asked: str | Sequence[str],
    located: Located,
    utilization: float,
    spared: frozenset[str] = frozenset(),
) -> Offers:
    """What this executable can have of the devices that are asked for, without those that are `spared`. Raises
    `RefusedError` for one that is named and cannot be had."""
    inventory = request.inventory
    if asked == "cpu":
        return Offers()
    candidates = inventory.devices if asked == "auto" else _named(request, asked)
    usable, rejected = [], []
    for device in candidates:
        if device.id in spared:
            rejected.append(Rejected(device.id, "spared", _SPARED))
            continue
        state = request.devices.get(device.id, IDLE)
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
    why = request.devices.get(device.id, IDLE).unavailable
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
    if located.only is not None and device.id not in located.only:
        return None
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


class Sets:
    """Sets of the offered devices to try for `auto`, by size; each size is worked out when it is first asked for."""

    def __init__(self, found: Offers) -> None:
        self._found = found
        self._known: dict[int, tuple[tuple[Offer, ...], ...]] = {}
        self._alike: dict[int, tuple[Alike, ...]] = {}
        self._roomiest: dict[int, tuple[Alike, ...]] = {}
        whole = [offer.accelerator for offer in found.usable if not offer.device.parent]
        self.most = max((whole.count(name) for name in set(whole)), default=min(1, len(found.usable)))

    def __iter__(self) -> Iterator[tuple[Offer, ...]]:
        """Fewest devices first."""
        return self.with_free(0)

    def with_free(self, least: int) -> Iterator[tuple[Offer, ...]]:
        """Those that have so many bytes together, fewest devices first."""
        free = sorted((offer.free for offer in self._found.usable), reverse=True)
        for size in range(1, self.most + 1):
            if sum(free[:size]) >= least:
                yield from (group for group in self.of(size) if _free(group) >= least)

    @cached_property
    def largest(self) -> tuple[tuple[Offer, ...], ...]:
        return largest_sets(self)

    def of(self, size: int) -> tuple[tuple[Offer, ...], ...]:
        """Those that are joined best first, then those with the least free memory. Of sets that differ in nothing but
        the devices' numbers, one.
        """
        if size not in self._known:
            self._known[size] = tuple(self._made(size))
        return self._known[size]

    def alike(self, size: int) -> tuple[Alike, ...]:
        """Those of one kind of device."""
        if size not in self._alike:
            groups = (group for group in self.of(size) if len({offer.device.name for offer in group}) == 1)
            self._alike[size] = tuple(self.looked_at(group) for group in groups)
        return self._alike[size]

    def roomiest(self, size: int) -> tuple[Alike, ...]:
        """Of each kind, the one with the most memory."""
        if size not in self._roomiest:
            self._roomiest[size] = tuple(most for *_, most in by_kind(self.alike(size)).values())
        return self._roomiest[size]

    def looked_at(self, group: tuple[Offer, ...]) -> Alike:
        free = min(offer.free for offer in group)
        unified = any(offer.device.memory_kind == "unified" for offer in group)
        device, spans = group[0].device, len(group) > 1 and 1 < self.island(group) < len(group)
        return Alike(group, free, unified, spans, (device.name, device.memory_bytes, unified))

    def _made(self, size: int) -> list[tuple[Offer, ...]]:
        best: dict[tuple[object, ...], tuple[tuple[int, int, object], tuple[Offer, ...]]] = {}
        for group, reach in self._groups if size > 1 else [((offer,), 0) for offer in self._found.usable]:
            for window in _windows(group, size):
                kind = tuple((offer.device.name, offer.device.parent, offer.free) for offer in window)
                order = (reach, _free(window), _numbers(window))
                known = best.get(kind)
                if known is None or order < known[0]:
                    best[kind] = (order, window)
        return [window for _, window in sorted(best.values(), key=lambda found: found[0])]

    @cached_property
    def _distances(self) -> dict[frozenset[str], int]:
        return _distances(self._found)

    @cached_property
    def _groups(self) -> list[tuple[tuple[Offer, ...], int]]:
        """Devices that one instance can use together, by their memory, and the longest way between neighbours among
        them: those that are joined better than the rest, and all of an accelerator. Slices stand alone.
        """
        groups: dict[tuple[Offer, ...], int] = {}
        for accelerator in sorted({offer.accelerator for offer in self._found.usable}):
            whole = tuple(o for o in self._found.usable if o.accelerator == accelerator and not o.device.parent)
            for reach in sorted(set(self._distances.values()) - {_FARTHEST}):
                for group in _joined(whole, self._distances, reach):
                    groups.setdefault(group, reach)
            groups.setdefault(whole, _FARTHEST)
        return [(tuple(sorted(group, key=_by_memory)), reach) for group, reach in groups.items()]

    def island(self, members: Sequence[Offer]) -> int:
        """How many of these devices the fastest links join, at most."""
        ids = {offer.device.id for offer in members}
        return max((len(ids & island) for island in self._islands), default=1)

    @cached_property
    def _islands(self) -> list[set[str]]:
        joined = _joined(self._found.usable, self._distances, 0)
        return [{offer.device.id for offer in island} for island in joined]


def by_kind(sets: Iterable[Alike]) -> Mapping[tuple[str, int, bool], Sequence[Alike]]:
    """Those with the least memory first; of those with as much, the first."""
    found: dict[tuple[str, int, bool], dict[int, Alike]] = {}
    for place in sets:
        found.setdefault(place.kind, {}).setdefault(place.free, place)
    return {kind: sorted(alike.values(), key=attrgetter("free")) for kind, alike in found.items()}


def _numbers(window: tuple[Offer, ...]) -> tuple[tuple[int, str], ...]:
    return tuple((offer.device.index, offer.device.id) for offer in window)


def largest_sets(candidates: Iterable[tuple[Offer, ...]]) -> tuple[tuple[Offer, ...], ...]:
    """Of each size, the set with the most free memory; smallest first."""
    by_size: dict[int, tuple[Offer, ...]] = {}
    for candidate in candidates:
        best = by_size.get(len(candidate))
        if best is None or _free(candidate) > _free(best):
            by_size[len(candidate)] = candidate
    return tuple(by_size[size] for size in sorted(by_size))


def _free(members: Iterable[Offer]) -> int:
    return sum([offer.free for offer in members])


def _distances(found: Offers) -> dict[frozenset[str], int]:
    """Between two usable devices, where it is known."""
    usable = {offer.device.id for offer in found.usable}
    return {
        frozenset((link.a, link.b)): _DISTANCE[link.kind]
        for link in found.links
        if link.a in usable and link.b in usable
    }


def _joined(
    members: Sequence[Offer], distances: Mapping[frozenset[str], int], reach: int
) -> Iterator[tuple[Offer, ...]]:
    """Groups of several members that links no longer than `reach` join, directly or through others."""
    root = {offer.device.id: offer.device.id for offer in members}
    for pair, distance in distances.items():
        if distance > reach:
            continue
        a, b = pair
        if a in root and b in root and root[a] != root[b]:
            old, new = root[b], root[a]
            root = {device: new if at == old else at for device, at in root.items()}
    for first in dict.fromkeys(root.values()):
        connected = tuple(offer for offer in members if root[offer.device.id] == first)
        if len(connected) > 1:
            yield connected


def _by_memory(offer: Offer) -> tuple[int, int, str]:
    return offer.free, offer.device.index, offer.device.id


def _windows(ordered: Sequence[Offer], size: int) -> Iterator[tuple[Offer, ...]]:
    """Neighbours by free memory, each set in the order of their indices. One that differs from the one before only in
    which of two equal devices is in it is left out.
    """
    for start in range(len(ordered) - size + 1):
        if start and _alike(ordered[start - 1], ordered[start - 1 + size]):
            continue
        yield tuple(sorted(ordered[start : start + size], key=lambda offer: (offer.device.index, offer.device.id)))


def _alike(one: Offer, other: Offer) -> bool:
    return (one.free, one.device.name, one.device.parent) == (other.free, other.device.name, other.device.parent)


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
