"""A model's weights, taken together where they differ in nothing but their layer: each kind is counted once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from agent.models.families.base import Weight
from agent.models.groups import LAYER
from agent.models.profile import Attention


class Alike(NamedTuple):
    """Equal weights in layers with equal attention."""

    weight: Weight  # the first one
    layers: tuple[int, ...]  # (-1,): in none
    numbers: tuple[int, ...]  # where each stands among all of the model's weights

    def module(self, layer: int) -> str:
        """The name of the module that the weight of this layer belongs to."""
        name = self.weight.name
        if layer >= 0 and (match := LAYER.search(name)):
            name = f"{name[: match.start(1)]}{layer}{name[match.end(1) :]}"
        return name.removesuffix(".weight")


def alike(weights: Iterable[Weight], attentions: Sequence[Attention] = ()) -> tuple[Alike, ...]:
    """All weights, in the order of the first of each kind. `attentions`: of the layers that the names number."""
    known: dict[Attention, int] = {}
    kinds = [known.setdefault(at, len(known)) for at in attentions]
    found: dict[tuple[object, ...], tuple[Weight, list[int], list[int]]] = {}
    for number, weight in enumerate(weights):
        name, layer, kind = weight.name, -1, -1
        if match := LAYER.search(name):
            layer = int(match[1])
            name = name[: match.start(1)] + "#" + name[match.end(1) :]
            kind = kinds[layer] if layer < len(kinds) else -1
        key = (name, weight.shape, weight.kind, weight.count, kind)
        if (same := found.get(key)) is None:
            same = found[key] = (weight, [], [])
        same[1].append(layer)
        same[2].append(number)
    return tuple(Alike(weight, tuple(layers), tuple(numbers)) for weight, layers, numbers in found.values())
