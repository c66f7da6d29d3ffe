"""An engine of ranks in one place: on a set of devices, each of which it takes a share of, or on the host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, floor

from agent.engines.base import RanksEngine
from agent.planning.devices import Offer
from agent.planning.joint import Joint, Way, Wish
from agent.planning.ledger import CONTEXT, Experience
from agent.planning.limits import POOLING_TASKS, Choice
from agent.planning.memory.base import Card, Estimate, Verdict, gib, spread
from agent.planning.memory.decision import CONTEXT as DRIVER
from agent.planning.memory.decision import SHARED_CONTEXT as SHARED_DRIVER
from agent.planning.memory.layers import layers_of
from agent.planning.plan import Limits, MemoryTerm, Placement
from agent.planning.ranking import capability
from agent.planning.request import PlanRequest

#: Shares are given to engines in thousandths.
_PARTS = 1000
#: What CUDA shows of a device to a process is a little less than its driver's total (the memory model's own figure).
_SHOWN = 0.9845
#: Inputs of the longest length that a share is sized for where a task computes them in one piece: they keep no cache.
POOLING_REQUESTS = 2


@dataclass(slots=True)
class Subject:
    """What is tried: an engine with one variant."""

    request: PlanRequest
    engine: RanksEngine
    experience: Experience
    counts_context: bool = False  # the engine's share has the driver's context in it: the first estimate shows it

    @property
    def beyond(self) -> int:
        """Bytes that were taken on top of the share by the estimate before. It saves one where it is so again."""
        found: int = layers_of(self.request.profile).memo.get(("beyond", self.engine.name), 0)
        return found

    @beyond.setter
    def beyond(self, size: int) -> None:
        layers_of(self.request.profile).memo["beyond", self.engine.name] = size

    def estimate(self, limits: Limits, placement: Placement, card: Card) -> Estimate:
        return self.engine.estimate(self.request.profile, limits, self.request.spec.task, placement, card)


class Trial(Joint):
    """One set of devices and one shape. `free` is what each of them has, in bytes."""

    def __init__(
        self, subject: Subject, choice: Choice, group: tuple[Offer, ...], placement: Placement, free: int
    ) -> None:
        super().__init__(choice, subject.request.spec.task)
        self._subject, self._group, self._placement, self._free = subject, group, placement, free
        self._total = min(shown(offer) for offer in group)
        self._fixed = subject.request.spec.limits.gpu_memory_utilization is not None
        self._known: dict[tuple[Limits, float], Way] = {}

    def at(self, limits: Limits, most: float = 1.0) -> Way:
        """With these limits, and the largest share that may be taken (`most`: or less)."""
        found = self._known.get((limits, most))
        if found is None:
            found = self._known[limits, most] = self._at(limits, most)
        return found

    def _at(self, limits: Limits, most: float) -> Way:
        room = self._room
        share = self.choice.utilization if self._fixed else min(self.choice.utilization, most, self._share(room))
        guess = share if self._fixed else min(share, max(0.0, self._share(room - self._subject.beyond)))
        tried = replace(limits, gpu_memory_utilization=guess)
        found = self._estimated(tried, room)
        if not self._subject.counts_context and found.term(CONTEXT) is not None:
            self._subject.counts_context = True
            return self._at(limits, most)
        if not self._fixed:
            self._subject.beyond = beyond = _most(found.beyond)
            share = min(share, max(0.0, self._share(room - beyond)))
            if share != guess:
                tried = replace(limits, gpu_memory_utilization=share)
                found = self._estimated(tried, room)
        return self._way(tried, found, room)

    def no_larger(self, way: Way, wish: Wish) -> Way:
        """No more than the workload needs, where it says how much that is: others can have the rest."""
        requests = wish.requests or (POOLING_REQUESTS if self.task in POOLING_TASKS else None)
        pool, share = way.estimate.pool, way.limits.gpu_memory_utilization or 0.0
        if requests is None or pool is None or self._fixed:
            return way
        spare = pool.bytes - pool.uncertainty - max(1, requests * way.estimate.needed)
        less = ceil((share - spare / self._total) * _PARTS) / _PARTS
        if not 0 < less < share:
            return way
        smaller = self.at(way.limits, less)
        return smaller if self.reaches(smaller, replace(wish, requests=requests)) else way

    @property
    def _context(self) -> int:
        """Of the driver, beside what the engine counts."""
        if self._subject.counts_context:
            return 0
        return SHARED_DRIVER if len(self._group) > 1 else DRIVER

    @property
    def _room(self) -> int:
        return max(0, self._free - self._context)

    def _share(self, size: int) -> float:
        """The largest share of no more bytes."""
        return floor(size / self._total * _PARTS) / _PARTS

    def _estimated(self, limits: Limits, room: int) -> Estimate:
        best = self._group[0].device
        card = Card(self._total, max(1, room), best.name, capability(best), best.vendor, best.memory_kind == "unified")
        if (limits.gpu_memory_utilization or 0.0) < 1 / _PARTS:
            limits = replace(limits, gpu_memory_utilization=1 / _PARTS)
        found = self._subject.estimate(limits, self._placement, card)
        return found if not self._subject.experience else self._measured(found, limits, self._subject.experience)

    def _measured(self, found: Estimate, limits: Limits, experience: Experience) -> Estimate:
        """With measured terms in place of formulas: what they take less or more is the pool's."""
        names = [offer.device.name for offer in self._group]
        pools = [(), *([found.terms] * len(self._group))]
        _, *each = experience.applied(pools, limits, self._placement, names)
        terms = max(each, key=lambda terms: sum(term.bytes for term in terms))
        if terms == found.terms or found.pool is None:
            return found
        size = found.pool.bytes + sum(term.bytes for term in found.terms) - sum(term.bytes for term in terms)
        pool = replace(found.pool, bytes=size, uncertainty=spread(terms))
        least, most = size - pool.uncertainty, size + pool.uncertainty
        fits = least > 0 and least >= found.needed
        verdict = Verdict.FITS if fits else Verdict.UNSURE if most >= max(1, found.needed) else Verdict.TOO_LARGE
        return replace(
            found, terms=terms, pool=pool, verdict=verdict,
            tokens=int(max(0, size) / found.bytes_per_token) if found.bytes_per_token else 0,
            concurrency=max(0, size) / found.needed if found.needed else 0.0,
        )  # fmt: skip

    def _way(self, limits: Limits, found: Estimate, room: int) -> Way:
        share = limits.gpu_memory_utilization or 0.0
        named = sum([term.bytes for term in found.terms]) + (found.pool.bytes if found.pool is not None else 0)
        budget = max(int(share * self._total), named)
        # An engine that always takes some cache does not keep to a share that is too small for the rest.
        over = budget - int(share * self._total) if self._fixed else 0
        least, most = budget + (found.beyond.bytes if found.beyond is not None else 0), budget + _most(found.beyond)
        context, missing, doubt = self._context, 0, ""
        if least > room:
            missing = least - room
        elif found.pool is not None and over > found.pool.uncertainty:
            missing = over
        elif found.verdict == Verdict.UNSURE or most > room:
            doubt = (
                found.reason
                if found.verdict == Verdict.UNSURE
                else f"up to {gib(most - room)} more than is free may be taken on top of the share"
            )
        elif found.verdict != Verdict.FITS:
            missing = max(1, found.shortfall)
        if share <= 0:
            missing = max(missing, 1, -(found.pool.bytes if found.pool is not None else 0) + found.needed)
        claimed = min(most, room) if not missing else most
        return Way(
            self._group, self._placement, limits, found, room + context, claimed + context, context, missing, doubt
        )  # fmt: skip


class HostTrial(Joint):
    """On the CPU: the engine's cache is as large as it is told, so the estimate's pool is what it gets."""

    def __init__(self, subject: Subject, choice: Choice, placement: Placement, free: int) -> None:
        super().__init__(choice, subject.request.spec.task)
        self._subject, self._placement, self._free = subject, placement, free

    def at(self, limits: Limits) -> Way:
        request, engine = self._subject.request, self._subject.engine
        inventory = request.inventory
        card = Card(max(1, inventory.memory.total), self._free, inventory.cpu_model, vendor="", unified=True)
        found = self._subject.estimate(limits, self._placement, card)
        terms = (*found.terms, *engine.host_terms(request.profile, self._placement))
        pool = max(0, found.pool.bytes) if found.pool is not None else 0
        taken = sum(term.bytes + term.uncertainty for term in terms) + pool
        missing = max(0, taken - self._free)
        if found.verdict not in {Verdict.FITS, Verdict.UNSURE}:
            missing = max(missing, found.shortfall, 1)
        doubt = found.reason if found.verdict == Verdict.UNSURE and not missing else ""
        return Way((), self._placement, limits, found, self._free, taken, 0, missing, doubt)

    def no_larger(self, way: Way, wish: Wish) -> Way:  # noqa: ARG002 - the estimate's pool is no larger than needed
        return way


def shown(offer: Offer) -> int:
    """Bytes of the device as a process sees them."""
    device = offer.device
    return (
        int(device.memory_bytes * _SHOWN)
        if device.vendor == "nvidia" and device.memory_kind == "dedicated"
        else device.memory_bytes
    )


def _most(term: MemoryTerm | None) -> int:
    return 0 if term is None else term.bytes + term.uncertainty
