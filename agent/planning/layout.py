"""What an instance would need in each pool, and how its layers are laid over a set of devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

from agent.engines.base import LayersEngine
from agent.planning.devices import Offer, environment
from agent.planning.ledger import CACHE, WEIGHTS, Experience
from agent.planning.plan import Limits, MemoryBudget, MemoryTerm, Placement
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
    _known: dict[tuple[Limits, str], tuple[int, int]] = field(default_factory=dict)
    _guesses: dict[tuple[Limits, tuple[int, ...]], tuple[int, ...]] = field(default_factory=dict)
    _filled_with: dict[tuple[Limits, tuple[int, ...]], Layout | None] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """All that can lie on devices."""
        return self.engine.device_layers(self.request.profile)

    @property
    def least(self) -> int:
        """Bytes of the layers' weights, which devices that hold all layers need at least."""
        profile = self.request.profile
        return 0 if self.experience else profile.tensor_bytes - profile.embedding_bytes - profile.output_bytes

    def may_share(self, group: tuple[Offer, ...], limits: Limits) -> bool:
        """Whether devices and host have room for weights and cache together."""
        if self.experience:
            return True
        room = self.free + sum(offer.free for offer in group)
        return self.request.profile.tensor_bytes <= room and self._least(limits, group)[1] <= room

    def _least(self, limits: Limits, group: tuple[Offer, ...]) -> tuple[int, int]:
        """Bytes with all layers on one device, which several take at least; and its weights and cache, which lie
        somewhere in any case.
        """
        key = (limits, group[0].accelerator)
        if key not in self._known:
            budget = self.evenly(limits, group[:1], self.layers).budgets[1]
            kept = sum(term.bytes for term in budget.terms if term.name in {WEIGHTS, CACHE})
            self._known[key] = (budget.bytes, kept)
        return self._known[key]

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
        if not self.experience and self._least(limits, group)[0] > sum([offer.free for offer in group]):
            return None
        layout = self._laid_out(limits, group, self.layers)
        return layout if self.fits(layout) else None

    def most_layers(self, limits: Limits, group: tuple[Offer, ...]) -> Layout | None:
        """As many layers as the devices hold, the rest on the CPU, if that fits."""
        layout = self.filled(limits, group)
        return layout if self.fits(layout) else None

    def filled(self, limits: Limits, group: tuple[Offer, ...]) -> Layout | None:
        """As many layers as the devices hold, whether the host has room for the rest or not."""
        key = (limits, tuple(map(id, group)))
        if key not in self._filled_with:
            self._filled_with[key] = self._as_many(limits, group)
        return self._filled_with[key]

    def _as_many(self, limits: Limits, group: tuple[Offer, ...]) -> Layout | None:
        made: dict[int, Layout | None] = {}

        def laid_out(total: int) -> Layout | None:
            if total not in made:
                made[total] = self._laid_out(limits, group, total)
            return made[total]

        least, most = len(group), self.layers - 1
        if least < most:
            guess = sum(self._guessed(limits, group))
            for total in (guess, guess - 1):
                if least <= total < most and laid_out(total) is not None and laid_out(total + 1) is None:
                    return laid_out(total)
        found = largest(lambda count: laid_out(count) is not None, least, most)
        return None if found is None else laid_out(found)

    def _guessed(self, limits: Limits, group: tuple[Offer, ...]) -> tuple[int, ...]:
        """About as many layers as each device holds: what it takes for one layer, and what a layer adds."""
        key = (limits, tuple(map(id, group)))
        if key not in self._guesses:
            few, many = (self.evenly(limits, group, total) for total in (len(group), self.layers - 1))
            sizes = zip(few.budgets[1:], many.budgets[1:], many.placement.layers, group, strict=True)
            held = []
            for one, all_of_it, layers, offer in sizes:
                each = (all_of_it.bytes - one.bytes) / max(1, layers - 1)
                held.append(1 + max(0, int((offer.free - one.bytes) / each)) if each > 0 else layers)
            self._guesses[key] = tuple(held)
        return self._guesses[key]

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
        alike = len({offer.free for offer in group}) == 1
        for _ in group:
            count = self._most_on_next(limits, group, total, done)
            if count is None:
                return None
            done = (*done, count)
            # Layers differ little: what one of equal devices holds, the others hold give or take one.
            if alike and (count + 1) * (len(group) - len(done)) < total - sum(done):
                return None
        return done

    def _most_on_next(self, limits: Limits, group: tuple[Offer, ...], total: int, done: tuple[int, ...]) -> int | None:
        """The most layers that the next device holds, with `done` on those before it, and one left for each after."""
        offer, after, left = group[len(done)], len(group) - len(done) - 1, total - sum(done)
        least, most = (1, left - after) if after else (left, left)

        @cache
        def holds(count: int) -> bool:
            return self._next_budget(limits, group, done, (count, left - count)) <= offer.free

        guess = max(least, min(most, self._guessed(limits, group)[len(done)]))
        for count in (guess, guess - 1, guess + 1):
            if least <= count <= most and holds(count) and (count == most or not holds(count + 1)):
                return count
        return largest(holds, least, most)

    def _next_budget(
        self, limits: Limits, group: tuple[Offer, ...], done: tuple[int, ...], count_and_rest: tuple[int, int]
    ) -> int:
        """Bytes of the device after `done` with so many layers. What lies before and after it is taken as one device
        each, so that its layers have their own numbers; measurements are of whole layouts.
        """
        count, rest = count_and_rest
        place, after = len(done), len(group) - len(done) - 1
        if self.experience:
            layers, offers = (*done, count, *([0] * (after - 1)), *([rest] * bool(after))), group
        else:
            layers, offers = (count,), (group[place],)
            if done:
                layers, offers, place = (sum(done), *layers), (group[0], *offers), 1
            if after:
                layers, offers = (*layers, rest), (*offers, group[-1])
        placement = Placement(accelerator=group[0].accelerator, layers=layers)
        return MemoryBudget("", self._pools(limits, offers, placement)[place + 1]).bytes

    def _pools(
        self, limits: Limits, group: tuple[Offer, ...], placement: Placement
    ) -> Sequence[tuple[MemoryTerm, ...]]:
        """Terms of the host, then of each device."""
        pools = self.engine.memory_terms(self.request.profile, limits, self.request.spec.task, placement)
        if self.experience:
            return self.experience.applied(pools, limits, placement, [offer.device.name for offer in group])
        return pools

    def _layout(self, limits: Limits, group: tuple[Offer, ...], layers: tuple[int, ...]) -> Layout:
        names = tuple(offer.name for offer in group)
        placement = Placement(
            accelerator=group[0].accelerator if group else "cpu",
            layers=layers,
            names=names if all(names) else (),
            environment=environment([offer.device for offer in group]),
        )
        host, *each = self._pools(limits, group, placement)
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
