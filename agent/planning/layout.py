"""What an instance would need in each pool, and how its layers are laid over a set of devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.engines.base import LayersEngine
from agent.planning.devices import Offer, environment
from agent.planning.ledger import Experience
from agent.planning.plan import Limits, MemoryBudget, Placement
from agent.planning.request import PlanRequest


@dataclass(frozen=True, slots=True)
class Layout:
    """An instance on these devices (none: the CPU), with its budgets: of the host, then of each device."""

    offers: tuple[Offer, ...]
    placement: Placement
    budgets: tuple[MemoryBudget, ...]

    @property
    def host_bytes(self) -> int:
        return sum(budget.bytes for budget in self.budgets if budget.pool == "host" or budget.unified)

    @property
    def fits_devices(self) -> bool:
        return all(budget.bytes <= offer.free for budget, offer in zip(self.budgets[1:], self.offers, strict=True))


@dataclass(frozen=True, slots=True)
class Designer:
    """Lays one model of one request out. `free` is the host memory that there is, in bytes."""

    request: PlanRequest
    engine: LayersEngine
    free: int
    experience: Experience

    @property
    def layers(self) -> int:
        """All that can lie on devices."""
        return self.engine.device_layers(self.request.profile)

    def fits(self, layout: Layout | None) -> bool:
        return layout is not None and layout.fits_devices and layout.host_bytes <= self.free

    def on_cpu(self, limits: Limits) -> Layout:
        """Nothing on devices, whether that fits or not."""
        return self._layout(limits, (), ())

    def only_cpu(self, limits: Limits) -> Layout | None:
        """Nothing on devices, if it fits."""
        layout = self.on_cpu(limits)
        return layout if self.fits(layout) else None

    def evenly(self, limits: Limits, group: tuple[Offer, ...], total: int) -> Layout:
        """`total` layers in equal parts, whether that fits or not."""
        part, more = divmod(total, len(group))
        return self._layout(limits, group, tuple(part + (index < more) for index in range(len(group))))

    def all_layers(self, limits: Limits, group: tuple[Offer, ...]) -> Layout | None:
        """Everything on these devices, if it fits."""
        layout = self._laid_out(limits, group, self.layers)
        return layout if self.fits(layout) else None

    def most_layers(self, limits: Limits, group: tuple[Offer, ...]) -> Layout | None:
        """As many layers as the devices hold, the rest on the CPU, if that fits."""
        total = largest(lambda count: self._laid_out(limits, group, count) is not None, len(group), self.layers - 1)
        layout = None if total is None else self._laid_out(limits, group, total)
        return layout if self.fits(layout) else None

    def _laid_out(self, limits: Limits, group: tuple[Offer, ...], total: int) -> Layout | None:
        """`total` layers on these devices: evenly, or else each device filled in turn. None: they do not hold it."""
        if total < len(group):
            return None
        even = self.evenly(limits, group, total)
        if even.fits_devices:
            return even
        if len(group) == 1 or sum(b.bytes for b in even.budgets[1:]) > sum(offer.free for offer in group):
            return None
        layers = self._filled(limits, group, total)
        return None if layers is None else self._layout(limits, group, layers)

    def _filled(self, limits: Limits, group: tuple[Offer, ...], total: int) -> tuple[int, ...] | None:
        """`total` layers, each device getting as many as it holds."""
        done: tuple[int, ...] = ()
        for _ in group:
            count = self._most_on_next(limits, group, total, done)
            if count is None:
                return None
            done = (*done, count)
        return done

    def _most_on_next(self, limits: Limits, group: tuple[Offer, ...], total: int, done: tuple[int, ...]) -> int | None:
        """The most layers that the next device holds, with `done` on those before it, and one left for each after."""
        offer, after, left = group[len(done)], len(group) - len(done) - 1, total - sum(done)

        def holds(count: int) -> bool:
            # The rest on the last device, so that these layers have the numbers that they will have.
            layers = (*done, count, *([0] * (after - 1)), left - count) if after else (*done, count)
            return self._layout(limits, group, layers).budgets[len(done) + 1].bytes <= offer.free

        return largest(holds, 1 if after else left, left - after)

    def _layout(self, limits: Limits, group: tuple[Offer, ...], layers: tuple[int, ...]) -> Layout:
        names = tuple(offer.name for offer in group)
        placement = Placement(
            accelerator=group[0].accelerator if group else "cpu",
            layers=layers,
            names=names if all(names) else (),
            environment=environment([offer.device for offer in group]),
        )
        pools = self.engine.memory_terms(self.request.profile, limits, self.request.spec.task, placement)
        if self.experience:
            pools = self.experience.applied(pools, limits, placement, [offer.device.name for offer in group])
        host, *each = pools
        budgets = (
            MemoryBudget("host", host),
            *(
                MemoryBudget(offer.device.id, of_device, unified=offer.device.memory_kind == "unified")
                for offer, of_device in zip(group, each, strict=True)
            ),
        )
        return Layout(group, placement, budgets)


def largest(fits: Callable[[int], bool], smallest: int, most: int, step: int = 1) -> int | None:
    """The largest number that fits: one of the bounds, or a multiple of `step` between. More never needs less."""
    if smallest > most or not fits(smallest):
        return None
    if fits(most):
        return most
    low, high = smallest // step, -(-most // step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle)
    return max(smallest, low * step)
