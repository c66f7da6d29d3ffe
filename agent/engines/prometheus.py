"""Prometheus' text format, as far as adapters need it: counters, gauges, and labels that carry information.

It runs with each probe, on texts of some hundred KiB: one search for the metrics that are asked for, and no parsing of
the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache

from agent.engines.base import Activity, Metric

_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


@lru_cache(maxsize=64)  # an adapter asks for the same names each time
def _samples(names: tuple[str, ...]) -> re.Pattern[str]:
    alternatives = "|".join(re.escape(name) for name in names)
    return re.compile(rf"^({alternatives})(?:\{{(.*)\}})?[ \t]+(\S+)", re.MULTILINE)


def totals(text: str, *names: str) -> Mapping[str, float]:
    """Each metric's sum over all of its labels. One that is missing, or that is no number, is not in it."""
    found: dict[str, float] = {}
    for name, _labels, value in _samples(names).findall(text):
        try:
            number = float(value)
        except ValueError:
            continue
        if math.isfinite(number):
            found[name] = found.get(name, 0.0) + number
    return found


def activity(text: str, running: str, waiting: str, *work: str) -> Activity:
    """How busy an engine is, by its metrics of those names; `work` are counters, of which one is enough."""
    found = totals(text, running, waiting, *work)
    done = [found[name] for name in work if name in found]
    return Activity(
        int(found[running]) if running in found else None,
        int(found[waiting]) if waiting in found else None,
        sum(done) if done else None,
    )


def activity_of(metrics: Mapping[Metric, str], text: str) -> Activity:
    """The same, of an engine whose work is the tokens that it counts."""
    work = (metrics[Metric.PROMPT_TOKENS], metrics[Metric.GENERATED_TOKENS])
    return activity(text, metrics[Metric.RUNNING], metrics[Metric.WAITING], *work)


def labels(text: str, name: str) -> tuple[Mapping[str, str], ...]:
    """The labels of each of the metric's samples."""
    return tuple(
        {label: _ESCAPED.sub(_unescaped, value) for label, value in _LABEL.findall(found)}
        for _name, found, _value in _samples((name,)).findall(text)
    )


def _unescaped(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
