"""Where an engine of ranks runs: the fewest devices that hold what is asked for, and how its ranks lie on them.

For `devices: auto`: sets of equal devices, smallest first, with all ranks sharing each layer; then with stages; then
replicas, where more requests are asked for than one of them holds. Then, with a shorter context and fewer requests
where nobody insists, the largest sets; then the CPU. Never devices of two kinds: the smaller would decide for both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from math import ceil
from operator import itemgetter

from agent.engines.base import Located, RanksEngine, Support
from agent.models.profile import Group
from agent.planning.amounts import gib
from agent.planning.devices import Alike, Offer, by_kind, environment, label
from agent.planning.fitting import SHORTEST_DEFAULT, Fitted, experience, numa_reason
from agent.planning.joint import Way, Wish
from agent.planning.layout import Layout
from agent.planning.limits import Choice, Usual, choose_limits, utilization
from agent.planning.memory.base import Card
from agent.planning.memory.weights import heaviest
from agent.planning.plan import MemoryBudget, Placement, Rejected
from agent.planning.ranking import capability
from agent.planning.request import FAR, MisfitError, PlanRequest
from agent.planning.running import instead, runnable
from agent.planning.shapes import MOST_STAGES, Shape, Shapes
from agent.planning.supply import Supply
from agent.planning.telling import (
    budget_reasons,
    budgets,
    cache,
    capacity,
    capacity_reason,
    devices_reason,
    limit_reasons,
    pool_told,
    shape_reason,
    shortage,
    too_heavy,
)
from agent.planning.trial import HostTrial, Subject, Trial, shown
from agent.status import Diagnosis, DiagnosisCode

#: A default context is not cut below while more devices could hold it: a long conversation, or a document.
COMFORTABLE = 8192
#: Tokens of one of several requests at the same time whose length nobody says: a chat's prompt and its answer.
USUAL_REQUEST = 2048
#: So few places are tried as quickly as they are looked at.
FEW = 5
_CPU = "cpu"


class Ranks:
    """One engine with one variant."""

    def __init__(
        self, request: PlanRequest, engine: RanksEngine, located: Located, support: Support | None, supply: Supply
    ) -> None:
        self.request, self.engine, self.supply = request, engine, supply
        self.profile = request.profile
        _, self.shared = utilization(request, engine)
        self._offers = supply.offers(located, 1.0)
        self.found = runnable(self._offers, support, self.profile.quantization, engine.name)
        self.sets = supply.sets(self.found)
        self.shapes = Shapes(self.profile, engine.capabilities)
        self.subject = Subject(request, engine, experience(request, engine, located))
        self.on_host = _runs_on_host(request, located, support, supply)
        self.builds = ", ".join(sorted(located.accelerators))
        self.doubtful: Way | None = None
        self.nearest: Way | None = None  # of those that do not fit
        self.host_lacks: int | None = None  # where devices have room, and the host has none for the processes
        self.heavy: tuple[int, tuple[Offer, ...], Shape] | None = (
            None  # the same, where the weights alone are too large
        )
        self._weights = self.profile.tensor_bytes - self.profile.group(Group.MTP).bytes
        self._choices: dict[object, Choice] = {}
        self._trials: dict[object, Trial] = {}
        self._hopeless: dict[object, int] = {}  # of a device and shape, what of memory no limits are enough for
        self._hosts: dict[object, MemoryBudget] = {}

    def fit(self) -> Fitted:
        """Raises `RefusedError`."""
        way = next((way for way in self._all() if way.assured), None) or self.doubtful
        if way is None:
            rejected = (*self.found.rejected, *self._passed_over(None))
            raise MisfitError(self.diagnosis(), self.missing, rejected)
        flags = {argument.partition("=")[0] for argument in self.request.spec.extra_args}
        if flags & self.engine.capabilities.sharing_flags:
            way = replace(way, doubt=way.doubt or "extra_args ask for what takes memory of the cache")
        choice, host, each, held = self._choice_of(way), self._host(way), budgets(way), capacity(way)
        pool = pool_told(way, held)
        reasons = limit_reasons(self.request, way, choice, self.shared, pool)
        return Fitted(
            choice=replace(choice, limits=way.limits, reasons=reasons),
            layout=Layout(way.offers, way.placement, (host, *each)),
            devices=devices_reason(self.request, self.found, way),
            reasons=(
                *shape_reason(way, self.shapes),
                *numa_reason(self.request, [offer.device for offer in way.offers]),
                *budget_reasons(way, each, host, self.supply.free),
                capacity_reason(self.request, held, pool),
            ),
            rejected=(*self.found.rejected, *self._passed_over(way)),
            capacity=held,
            assured=way.assured,
            whole=bool(way.offers) or not self.supply.devices,
        )

    # Ways, best first

    def _all(self) -> Iterator[Way]:
        """More are only tried when those before were not taken."""
        if self.found.usable and not self._is_futile():
            workload = self.request.spec.workload
            requests = workload.concurrency if workload.context_tokens is not None else None
            if requests is not None:
                # Replicas come before stages, which are for models that fewer devices do not hold.
                yield from self._tries(self._whole(), self._wish(requests))
                yield from self._replicated(requests)
            wish = self._wish(requests)
            if requests is None and workload.concurrency is not None:
                longest = self._choice(self.found.usable[0]).limits.max_model_len
                wish = replace(wish, tokens=workload.concurrency * min(USUAL_REQUEST, longest))
            yield from self._on_devices(wish, smallest_first=True)
            if workload.concurrency is not None:
                yield from self._on_devices(self._wish(None), smallest_first=False)
            yield from self._on_devices(self._least, smallest_first=False)
        if self.on_host:
            trial = HostTrial(self.subject, self._choice(None), _placed(()), self.supply.free.bytes)
            for wish in (self._wish(None), self._least):
                yield self._remembered(trial.solved(wish))

    def _is_futile(self) -> bool:
        """Whether not even the least fits anywhere: found out first, by one look at each shape, where there is the most
        memory. No look is needed where the weights take less than half of it.
        """
        self._choice(self.found.usable[0])  # raises for limits that could not be, whatever fits
        places = []
        for shape in chain(self._whole(), self._staged()):
            weights = self._weights // (shape.tensor * shape.pipeline)
            for most in self._roomiest(shape.devices):
                lacks = self._lacks(most, weights)
                if lacks < -weights:
                    return False
                places.append((lacks, most, shape))
        if len(places) <= FEW:
            return False
        return not any(self._may_hold(most, shape) for _, most, shape in sorted(places, key=itemgetter(0)))

    def _may_hold(self, place: Alike, shape: Shape) -> bool:
        """Whether the least fits, or may fit. What the weights alone show to be farther off than another place, whose
        numbers are told, is not looked at any closer.
        """
        trial = self._trial(place, shape)
        if trial is None:
            return False
        told = 0 if self.supply.brief else self.nearest.missing if self.nearest is not None else FAR
        if self.subject.experience or self._lacks(place, heaviest(self.profile, shape.split)) <= told:
            way = self._with_host(trial.least(self._least))
            if not way.missing:
                return True
            self._remembered(way)
        self._hopeless[place.kind, shape] = place.free
        return False

    def _lacks(self, place: Alike, weights: int) -> int:
        """Bytes of each device that are missing for so much of weights alone, or for the share that is asked for."""
        asked = self.request.spec.limits.gpu_memory_utilization
        if asked is None:
            return weights - place.free
        share = int(asked * min(map(shown, place.offers)))
        return max(weights - share, share - place.free)

    @property
    def _fixed(self) -> frozenset[str]:
        asked = self.request.spec.limits
        return frozenset(name for name in ("max_num_seqs", "max_model_len") if getattr(asked, name) is not None)

    def _wish(self, requests: int | None) -> Wish:
        """What spec and workload ask for, whole."""
        workload = self.request.spec.workload
        hints = (("max_num_seqs", workload.concurrency), ("max_model_len", workload.context_tokens))
        kept = self._fixed | {name for name, hint in hints if hint is not None}
        return Wish(self._shortest(COMFORTABLE, kept), kept, requests=requests)

    @cached_property
    def _least(self) -> Wish:
        """What nobody would call less than asked for."""
        return Wish(self._shortest(SHORTEST_DEFAULT, self._fixed), self._fixed, fewest=1)

    def _shortest(self, least: int, kept: frozenset[str]) -> int:
        wanted = self._choice(self.found.usable[0] if self.found.usable else None).limits.max_model_len
        return wanted if "max_model_len" in kept else min(wanted, least)

    def _on_devices(self, wish: Wish, *, smallest_first: bool) -> Iterator[Way]:
        """All devices share each layer, where fast links join them or none; then in stages, the fewest that do; then
        those that share each layer over slow links between islands.
        """
        yield from self._tries(self._whole(smallest_first=smallest_first), wish, over_islands=False)
        yield from self._tries(self._staged(smallest_first=smallest_first), wish)
        yield from self._tries(self._whole(smallest_first=smallest_first), wish, over_islands=True)

    def _tries(self, shapes: Iterable[Shape], wish: Wish, *, over_islands: bool | None = None) -> Iterator[Way]:
        """`over_islands` None: or not."""
        for shape in shapes:
            sets = [each for each in self._sets(shape.devices) if over_islands in {None, each.spans}]
            yield from self._tried(sets, shape, wish)

    def _whole(self, *, smallest_first: bool = True) -> Iterator[Shape]:
        for size in self._sizes[:: 1 if smallest_first else -1]:
            yield from self.shapes.whole(size)

    def _staged(self, *, smallest_first: bool = True) -> Iterator[Shape]:
        for stages in range(2, MOST_STAGES + 1):
            for size in self._sizes[:: 1 if smallest_first else -1]:
                if size % stages == 0:
                    yield from self.shapes.staged(size // stages, stages)

    @property
    def _sizes(self) -> Sequence[int]:
        auto = self.request.spec.devices == "auto"
        return range(1, self.sets.most + 1) if auto else (len(self.found.usable),)

    def _sets(self, size: int) -> Sequence[Alike]:
        """Of so many devices."""
        return self.sets.alike(size) if self.request.spec.devices == "auto" else self._named

    def _roomiest(self, size: int) -> Sequence[Alike]:
        return self.sets.roomiest(size) if self.request.spec.devices == "auto" else self._named

    @cached_property
    def _named(self) -> tuple[Alike]:
        """All of the devices that the spec names."""
        return (self.sets.looked_at(self.found.usable),)

    def _replicated(self, requests: int) -> Iterator[Way]:
        """As many replicas of the smallest set that holds one request as the rest of the requests needs."""
        one = next((way for way in self._on_devices(self._wish(None), smallest_first=True) if way.assured), None)
        if one is None or self.request.spec.devices != "auto":
            return
        shape, each = replace(Shape.of(one.placement), data=1), max(1, int(one.requests))
        most = self.sets.most // shape.devices
        for data in range(min(most, ceil(requests / each)), most + 1):
            wish = self._wish(ceil(requests / data))
            for replicas in self.shapes.replicas(shape, data):
                yield from self._tried(self.sets.alike(replicas.devices), replicas, wish)

    def _tried(self, sets: Sequence[Alike], shape: Shape, wish: Wish) -> Iterator[Way]:
        """On those of the sets, all of one size, that have enough memory."""
        found = {kind: self._enough(alike, shape, wish) for kind, alike in by_kind(sets).items()}
        for place in sets:
            least, assured = found[place.kind]
            if place.free < least or (self.doubtful is not None and not assured):
                continue
            if (way := self._way(place, shape, wish)) is not None:
                yield self._remembered(way)

    def _enough(self, alike: Sequence[Alike], shape: Shape, wish: Wish) -> tuple[int, bool]:
        """Bytes of each device that hold it, or may hold it, and whether it is assured on any. Less memory never holds
        what more does not, so the most is looked at first, and then no more than it takes to find the least.
        """
        *others, most = alike
        way = self._way(most, shape, wish)
        if way is None or way.missing:
            return FAR, False
        if not way.assured and self.doubtful is not None:  # none of them is better than what there is
            return FAR, False
        first = bisect_left(others, True, key=lambda place: self._holds(place, shape, wish))
        return alike[first].free, way.assured

    def _holds(self, place: Alike, shape: Shape, wish: Wish) -> bool:
        way = self._way(place, shape, wish)
        return way is not None and not way.missing

    def _way(self, place: Alike, shape: Shape, wish: Wish) -> Way | None:
        """None where no limits help."""
        trial = self._trial(place, shape)
        if trial is None:
            return None
        way = trial.solved(wish)
        if way.offers != place.offers:
            way = replace(way, offers=place.offers, placement=_placed(place.offers, shape))
        way = self._with_host(way)
        return self._remembered(way) if way.missing else way

    def _trial(self, place: Alike, shape: Shape) -> Trial | None:
        """None where no limits help: the weights alone are too large, or it was seen before."""
        free, group = place.free, place.offers
        if place.unified:
            free = max(0, min(free, self.supply.free.bytes - self._processes(_placed(group, shape)).bytes))
        heavy = self._weights // (shape.tensor * shape.pipeline) - free
        if heavy > 0 and not self.subject.experience:
            if self.heavy is None or heavy < self.heavy[0]:
                self.heavy = (heavy, group, shape)
            return None
        if place.free <= self._hopeless.get((place.kind, shape), -1):
            return None
        key = (place.kind, shape, free)
        if key not in self._trials:
            self._trials[key] = Trial(self.subject, self._choice(group[0]), group, _placed(group, shape), free)
        return self._trials[key]

    def _remembered(self, way: Way) -> Way:
        if way.doubt and not way.missing and self.doubtful is None:
            self.doubtful = way
        if way.missing and (self.nearest is None or way.missing < self.nearest.missing):
            self.nearest = way
        return way

    def _with_host(self, way: Way) -> Way:
        """It does not fit where the host lacks memory for the processes."""
        lacking = self._processes(way.placement).bytes - self.supply.free.bytes
        if lacking <= 0 or way.missing:
            return way
        self.host_lacks = lacking if self.host_lacks is None else min(lacking, self.host_lacks)
        return replace(way, missing=lacking)

    def _processes(self, placement: Placement) -> MemoryBudget:
        key = (placement.tensor, placement.pipeline, placement.data, placement.accelerator)
        if key not in self._hosts:
            self._hosts[key] = MemoryBudget("host", self.engine.host_terms(self.profile, placement))
        return self._hosts[key]

    def _host(self, way: Way) -> MemoryBudget:
        processes = self._processes(way.placement)
        return processes if way.offers else MemoryBudget("host", (*way.estimate.terms, cache(way), *processes.terms))

    def _choice_of(self, way: Way) -> Choice:
        return self._choice(way.offers[0] if way.offers else None)

    def _choice(self, offer: Offer | None) -> Choice:
        """Limits as asked for, or as the engine takes them on such a device; None: on the host."""
        if offer is None:
            if None not in self._choices:
                self._choices[None] = choose_limits(self.request, self.engine)
            return self._choices[None]
        device = offer.device
        key = (device.memory_bytes, device.name)
        if key not in self._choices:
            unified = device.memory_kind == "unified"
            card = Card(shown(offer), None, device.name, capability(device), device.vendor, unified)
            usual = Usual(*self.engine.batch_defaults(self.profile, card, self.request.spec.task))
            self._choices[key] = choose_limits(self.request, self.engine, usual)
        return self._choices[key]

    # Refusals

    @property
    def missing(self) -> int:
        """Bytes that a device lacks where it came closest."""
        found = [self.nearest.missing] if self.nearest is not None else []
        found += [self.heavy[0]] if self.heavy is not None else []
        return min(found, default=FAR)

    def diagnosis(self) -> Diagnosis:
        """The numbers of the way that came closest."""
        if self.host_lacks is not None:
            message = f"does not fit by {gib(self.host_lacks)} GiB of host memory for its processes; {self.supply.free}"
        elif self.nearest is not None:
            message = shortage(self.nearest)
        elif self.heavy is not None:
            missing, group, shape = self.heavy
            message = too_heavy(self._weights // (shape.tensor * shape.pipeline), missing, group, shape)
        elif self.request.spec.devices == _CPU:
            message = f"this build of {self.engine.name} is for {self.builds}, not for the CPU"
            return Diagnosis(DiagnosisCode.BINARY_MISSING, message, hint="install such a build, or say `devices: auto`")
        elif not self.found.usable:
            reasons = "; ".join(dict.fromkeys(rejected.sentence for rejected in self.found.rejected))
            message = f"{self.engine.name} has no device to run on: {reasons or 'this node has none'}"
            return Diagnosis(DiagnosisCode.DEVICE_UNSUPPORTED, message, hint=instead(self._offers, self.engine))
        else:
            sizes = range(2, self.sets.most + 1) if self.request.spec.devices == "auto" else [len(self.found.usable)]
            counts = "; ".join(self.shapes.problem(size) for size in sizes)
            message = f"{self.engine.name} cannot divide the model over the devices: {counts}"
        return Diagnosis(DiagnosisCode.DOES_NOT_FIT, message)

    def _passed_over(self, way: Way | None) -> Iterable[Rejected]:
        if self.request.spec.devices != "auto":
            return
        taken = way.offers if way is not None else ()
        chosen = {offer.device.id for offer in taken}
        tightest = min((offer.free for offer in taken), default=None)
        for offer in self.found.usable:
            if offer.device.id in chosen:
                continue
            where = f"{label(offer.device)}: {offer}"
            if tightest is None or offer.free < tightest:
                sentence = f"{where}; {gib(self.missing)} GiB are missing" if self.nearest or self.heavy else where
                yield Rejected(offer.device.id, "too-small", sentence)
            else:
                yield Rejected(offer.device.id, "best-fit", f"{where}; a tighter fit leaves it to larger models")


def _runs_on_host(request: PlanRequest, located: Located, support: Support | None, supply: Supply) -> bool:
    """Where the spec says so, and where there is nothing else for this build: engines of layers use both together."""
    if _CPU not in located.accelerators or (support is not None and _CPU not in support.accelerators):
        return False
    # Of images there are others, for devices: who has some does not want the CPU unasked.
    nothing_else = not supply.devices or (located.accelerators == {_CPU} and located.image is None)
    return request.spec.devices == _CPU or (request.spec.devices == "auto" and nothing_else)


def _placed(group: tuple[Offer, ...], shape: Shape | None = None) -> Placement:
    shape = shape or Shape(1)
    return Placement(
        accelerator=group[0].accelerator if group else _CPU,
        environment=environment([offer.device for offer in group]),
        tensor=shape.tensor,
        pipeline=shape.pipeline,
        data=shape.data,
        experts=shape.experts,
    )
