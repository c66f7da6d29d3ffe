"""Errors of many cases: medians, 90th percentiles, and decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts._bench.memory.judge import OURS, RULES, Prediction, Result

#: Architectures whose cache takes the same of every token, where bytes a token are a number of their own.
UNIFORM = {"dense", "dense-vlm", "moe", "mla-moe"}
#: A pool below this is compared with this: a third of nothing says little.
LEAST_POOL = 1.0


@dataclass(frozen=True, slots=True)
class Errors:
    n: int
    median: float | None
    p90: float | None


@dataclass(frozen=True, slots=True)
class Decisions:
    """`right` + `false` + `unsure` = `n`."""

    n: int
    right: int
    false: int
    unsure: int


@dataclass(frozen=True, slots=True)
class Scores:
    cases: int
    weights: Errors  # relative
    other: Errors  # GiB
    per_token: Errors  # relative
    per_token_exact: float | None  # share within 1 %
    pool: Errors  # relative
    ok: Decisions  # false: refused
    refused: Decisions  # false: accepted
    oom: Decisions

    def data(self) -> dict[str, Any]:
        return asdict(self)


def scores(results: Sequence[Result], who: str) -> Scores:
    per_token = [error for result in results if (error := token_error(result, who)) is not None]
    return Scores(
        len(results),
        _errors(weight_error(result, who) for result in results),
        _errors(other_error(result, who) for result in results),
        _errors(per_token),
        sum(error <= 0.01 for error in per_token) / len(per_token) if per_token else None,
        _errors(pool_error(result, who) for result in results),
        *(decisions(results, who, outcome) for outcome in ("ok", "refused", "oom")),
    )


def _of(result: Result, who: str) -> Prediction:
    return result.predictions.get(who, Prediction())


def _relative(predicted: float | None, found: float | None, least: float = 0.0) -> float | None:
    if predicted is None or found is None or found <= 0:
        return None
    return abs(predicted - found) / max(found, least)


def weight_error(result: Result, who: str) -> float | None:
    return _relative(_of(result, who).weights, result.measured.weights)


def other_error(result: Result, who: str) -> float | None:
    predicted, found = _of(result, who).other, result.measured.other
    if predicted is None or found is None or _of(result, who).weights is None:
        return None
    return abs(predicted - found)


def token_error(result: Result, who: str) -> float | None:
    """Beyond the rounding of what was printed; only where all layers keep the same of every token."""
    if not result.uniform or result.architecture not in UNIFORM:
        return None
    error = _relative(_of(result, who).per_token, result.measured.per_token)
    return None if error is None else max(0.0, error - result.measured.rounding)


def pool_error(result: Result, who: str) -> float | None:
    if not result.exact_budget:
        return None
    return _relative(_of(result, who).pool, result.measured.pool, LEAST_POOL)


def decisions(results: Iterable[Result], who: str, outcome: str) -> Decisions:
    counts: Counter[str] = Counter()
    for result in results:
        prediction = _of(result, who)
        if result.measured.outcome != outcome or not prediction.verdict:
            continue
        if prediction.accepts is None:
            counts["unsure"] += 1
        else:
            counts["right" if prediction.accepts == (outcome == "ok") else "false"] += 1
    return Decisions(sum(counts.values()), counts["right"], counts["false"], counts["unsure"])


def _errors(values: Iterable[float | None]) -> Errors:
    found = sorted(value for value in values if value is not None)
    return Errors(len(found), percentile(found, 0.5), percentile(found, 0.9))


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Between the two nearest values, in proportion."""
    if not ordered:
        return None
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def lacking(results: Iterable[Result]) -> Counter[str]:
    return Counter(reason.partition(" (")[0] for result in results for reason in result.lacks)


def grouped(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    keys: dict[str, Callable[[Result], str]] = {
        "engine": lambda result: result.engine,
        "architecture": lambda result: result.architecture,
        "quantization": lambda result: result.quantization,
    }
    found: dict[str, dict[str, list[Result]]] = {}
    for name, key in keys.items():
        groups: dict[str, list[Result]] = {}
        for result in results:
            groups.setdefault(key(result), []).append(result)
        found[name] = dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))
    return found


WHO = (OURS, *RULES)
