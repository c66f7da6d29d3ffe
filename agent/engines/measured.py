"""What an engine measures of its work, by the one set of names, out of its own metrics."""

from __future__ import annotations

from collections.abc import Mapping

from agent.engines.base import Metric
from agent.engines.prometheus import totals

#: Shown as the mean since the engine's start: its sum by its count.
_HISTOGRAMS = frozenset({Metric.FIRST_TOKEN, Metric.INTER_TOKEN})


def measured(names: Mapping[Metric, str], text: str) -> Mapping[str, float]:
    """By `Metric`'s names. What the engine does not offer, or has not measured yet, is missing."""
    wanted = [f"{name}{end}" for metric, name in names.items() for end in _ends(metric)]
    found = totals(text, *wanted) if wanted else {}
    values: dict[str, float] = {}
    for metric, name in names.items():
        total, *count = (found.get(f"{name}{end}") for end in _ends(metric))
        if total is not None and not count:
            values[metric.value] = total
        elif total is not None and count[0]:
            values[metric.value] = total / count[0]
    return values


def _ends(metric: Metric) -> tuple[str, ...]:
    return ("_sum", "_count") if metric in _HISTOGRAMS else ("",)
