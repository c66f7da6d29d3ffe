"""What was measured, and how it reads: a table for people, JSON for programs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """Several runs of the same thing."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Sample:
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def data(self) -> dict[str, float]:
        return {"median": self.median, "min": min(self.values), "max": max(self.values), "runs": len(self.values)}


@dataclass(frozen=True, slots=True)
class Target:
    """`limit` is what `text` comes to in this run, in the figure's unit: it may depend on what a peer needed."""

    text: str
    limit: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the agent beside those of its peers and floors. `never` says who does not do it at all."""

    part: str
    what: str
    unit: str
    agent: Sample
    others: Mapping[str, Sample] = field(default_factory=dict)
    target: Target | None = None
    never: Mapping[str, str] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.agent.median <= self.target.limit

    def ratio(self, other: str) -> float | None:
        """How many times `other` the agent takes; None where `other` was too small to be seen."""
        divisor = self.others[other].median
        return self.agent.median / divisor if divisor else None

    def data(self) -> dict[str, Any]:
        target = self.target
        return {
            "part": self.part,
            "what": self.what,
            "unit": self.unit,
            "agent": self.agent.data(),
            "others": {name: {**sample.data(), "ratio": self.ratio(name)} for name, sample in self.others.items()},
            "never": dict(self.never),
            "target": None if target is None else {"text": target.text, "limit": target.limit, "met": self.met},
        }


def table(figures: Iterable[Figure]) -> str:
    """Aligned columns: who took how long, how many times a peer's time the agent needs, and what is asked of it."""
    rows: list[tuple[str, ...]] = [("what", "who", "median", "min .. max", "agent takes", "target")]
    for figure in figures:
        rows += _rows(figure)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _rows(figure: Figure) -> list[tuple[str, ...]]:
    target = f"{'pass' if figure.met else 'MISS'}: {figure.target.text}" if figure.target else ""
    rows: list[tuple[str, ...]] = [
        (f"{figure.part}: {figure.what} ({figure.unit})", "agent", *_numbers(figure.agent), "", target)
    ]
    for name, sample in figure.others.items():
        ratio = figure.ratio(name)
        rows.append(("", name, *_numbers(sample), f"{ratio:.2f} x" if ratio is not None else "", ""))
    return rows + [("", name, "never", why, "", "") for name, why in figure.never.items()]


def _numbers(sample: Sample) -> tuple[str, str]:
    return _short(sample.median), f"{_short(min(sample.values))} .. {_short(max(sample.values))}"


def _short(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
