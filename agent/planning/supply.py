"""What a node can give to a plan, found once for all of its candidates: host memory, devices, and sets of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from agent.engines.base import Located
from agent.hardware.inventory import Device
from agent.planning.amounts import free_memory
from agent.planning.devices import Offer, Offers, Sets, offers
from agent.planning.limits import POOLING_TASKS
from agent.planning.request import IDLE, PlanRequest


class Supply:
    """Of one request. `brief`: nobody reads why there is no plan. `whole`: a plan must have all of it on devices."""

    def __init__(self, request: PlanRequest, *, brief: bool = False, whole: bool = False) -> None:
        self.request, self.brief, self.whole = request, brief, whole
        self.free = free_memory(request)
        self.spared = _spared(request)
        self._offers: dict[tuple[object, ...], Offers] = {}
        self._alike: dict[tuple[object, ...], Offer] = {}
        self._sets: dict[tuple[int, ...], Sets] = {}  # by the identity of what is offered, which lives as long

    @cached_property
    def devices(self) -> Sequence[Device]:
        """Those that a plan may take, whatever the engine."""
        request = self.request
        if request.spec.devices == "cpu":
            return ()
        return [
            device
            for device in request.inventory.devices
            if device.id not in self.spared and not request.devices.get(device.id, IDLE).unavailable
        ]

    def offers(self, located: Located, utilization: float, asked: str | Sequence[str] | None = None) -> Offers:
        """As `devices.offers`, of the devices that the spec asks for, or of others. Raises `RefusedError`."""
        wanted = self.request.spec.devices if asked is None else asked
        key = (located.argv, located.accelerators, utilization, wanted)
        if key not in self._offers:
            found = offers(self.request, wanted, located, utilization, self.spared)
            self._offers[key] = replace(found, usable=tuple(map(self._shared, found.usable)))
        return self._offers[key]

    def _shared(self, offer: Offer) -> Offer:
        """One for all engines that reach the device alike, so that they have the same sets."""
        return self._alike.setdefault((offer.device.id, offer.accelerator, offer.name, offer.utilization), offer)

    def sets(self, found: Offers) -> Sets:
        """Of what `offers` gave."""
        key = tuple(map(id, found.usable))
        known = self._sets.get(key)
        if known is None:
            known = self._sets[key] = Sets(found)
        return known


def _spared(request: PlanRequest) -> frozenset[str]:
    """Devices that `auto` leaves to models that generate: embeddings and scores would take their memory and time. Those
    that another deployment is on, and the largest ones, which could serve generation best.
    """
    if request.spec.task not in POOLING_TASKS or request.spec.devices != "auto":
        return frozenset()
    devices = request.inventory.devices
    largest = max((device.memory_bytes for device in devices), default=0)
    return frozenset(
        device.id
        for device in devices
        if device.memory_bytes == largest or request.devices.get(device.id, IDLE).reserved
    )
