"""What the layers of a model come to, found once for each profile: estimates are made by the hundred for one plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import Any, TypeVar

from agent.models.profile import Attention, ModelProfile

#: Profiles that are remembered, the oldest one goes first; and what is remembered of each at the same time.
_KEPT, _FACTS = 128, 1024


class Layers:
    """Of one profile. Stages of a pipeline are ranges of layers."""

    def __init__(self, profile: ModelProfile) -> None:
        self.profile = profile
        numbers: dict[Attention, int] = {}
        self._numbers = [numbers.setdefault(each.attention, len(numbers)) for each in profile.layer_details]
        self.different = tuple(numbers)
        self.memo: dict[tuple[object, ...], Any] = {}
        self.all: Mapping[Attention, int] = MappingProxyType(self._counted(self._numbers))
        self._parts: dict[range, Mapping[Attention, int]] = {}

    def attentions(self, layers: range | None) -> Mapping[Attention, int]:
        """How many there are of each kind, in the order of their first ones."""
        if layers is None:
            return self.all
        found = self._parts.get(layers)
        if found is None:
            found = self._parts[layers] = self._counted(self._numbers[layers.start : layers.stop])
        return found

    def bytes(self, layers: range) -> tuple[int, int]:
        """Of these layers, without routed experts, and of those."""
        dense, sparse = self._sums
        return dense[layers.stop] - dense[layers.start], sparse[layers.stop] - sparse[layers.start]

    def accumulated(self, of: Callable[[Attention], int]) -> list[int]:
        """What the layers before each come to; the last number is that of all."""
        values = [of(each) for each in self.different]
        return [0, *accumulate(map(values.__getitem__, self._numbers))]

    def _counted(self, numbers: list[int]) -> dict[Attention, int]:
        return {self.different[number]: count for number, count in Counter(numbers).items()}

    @cached_property
    def _sums(self) -> tuple[list[int], list[int]]:
        details = self.profile.layer_details
        return (
            [0, *accumulate(each.bytes - each.expert_bytes for each in details)],
            [0, *accumulate(each.expert_bytes for each in details)],
        )


_known: dict[int, Layers] = {}
_T = TypeVar("_T")
_MISSING: Any = object()


def layers_of(profile: ModelProfile) -> Layers:
    """By identity: comparing profiles would cost more than what is saved. The profile is held, so its id is its own."""
    found = _known.get(id(profile))
    if found is None or found.profile is not profile:
        while len(_known) >= _KEPT:
            del _known[next(iter(_known))]
        found = _known[id(profile)] = Layers(profile)
    return found


def remembered(profile: ModelProfile, key: tuple[object, ...], make: Callable[[], _T]) -> _T:
    """What `make` says of the profile, found once. The key's first part says what it is; its others, what else it
    depends on.
    """
    memo = layers_of(profile).memo
    found: _T = memo.get(key, _MISSING)
    if found is _MISSING:
        if len(memo) >= _FACTS:
            memo.clear()
        found = memo[key] = make()
    return found
