"""scripts/bench memory --cases FILE --models FILE [--json] [--cases-too]: the memory model beside real start-ups.

--cases       cases in the schema of ../shared/memory/README.md
--models      facts of the models that they name
--json        JSON instead of tables
--cases-too   every case with its prediction and its errors
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts._bench.memory import score
from scripts._bench.memory.cases import split
from scripts._bench.memory.judge import OURS, RULES, Result, judge


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench memory", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cases-too", action="store_true")
    options = parser.parse_args(arguments)
    try:
        cases, models = _load(options.cases, list), _load(options.models, dict)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2
    split_cases = [split(case) for case in cases if isinstance(case, dict)]
    for case in split_cases:  # profiles are made once
        judge(case, models)
    begin = time.perf_counter()
    results = [judge(case, models) for case in split_cases]
    rate = len(results) / max(1e-9, time.perf_counter() - begin)
    if options.json:
        print(json.dumps(data(results, rate, each=options.cases_too), indent=2))
    else:
        print(text(results, rate, each=options.cases_too))
    return 0


def _load(path: Path, kind: type) -> Any:
    found = json.loads(path.read_text())
    if not isinstance(found, kind):
        raise _wrong(path, "list" if kind is list else "object")
    return found


def _wrong(path: Path, kind: str) -> ValueError:
    return ValueError(f"{path} must hold a JSON {kind}")


_FIGURES = ("weights", "other", "per_token", "pool")


def data(results: Sequence[Result], rate: float, *, each: bool = False) -> dict[str, Any]:
    report: dict[str, Any] = {
        "cases": len(results),
        "predicted": sum(bool(result.predictions) for result in results),
        "lacking": dict(score.lacking(results).most_common()),
        "predictions_per_second": round(rate),
        "overall": {who: score.scores(results, who).data() for who in score.WHO},
        "halves": {
            name: score.scores(results[start::2], OURS).data() for name, start in (("odd", 0), ("even", 1))
        },
    }  # fmt: skip
    for name, groups in score.grouped(results).items():
        report[f"by_{name}"] = {
            key: {who: score.scores(found, who).data() for who in score.WHO} for key, found in groups.items()
        }
    if each:
        report["each"] = [_row(result) for result in results]
    return report


def _row(result: Result) -> dict[str, Any]:
    ours = result.predictions.get(OURS)
    predicted = ours and {name: getattr(ours, name) for name in (*_FIGURES, "verdict", "reason")}
    measured = {name: getattr(result.measured, name) for name in (*_FIGURES, "outcome")}
    return {"id": result.id, "lacks": list(result.lacks), "measured": measured, "predicted": predicted}


def text(results: Sequence[Result], rate: float, *, each: bool = False) -> str:
    predicted = sum(bool(result.predictions) for result in results)
    lines = [
        f"{len(results)} cases, {predicted} predicted, {rate:.0f} predictions a second",
        "lacking: " + ", ".join(f"{name} {count}" for name, count in score.lacking(results).most_common()),
        "",
        _header("overall"),
        *(_line(who, score.scores(results, who)) for who in score.WHO),
        _line("ours, odd cases", score.scores(results[0::2], OURS)),
        _line("ours, even cases", score.scores(results[1::2], OURS)),
    ]
    for name, groups in score.grouped(results).items():
        lines += ["", _header(f"by {name}")]
        for key, found in groups.items():
            lines.append(_line(key, score.scores(found, OURS)))
            lines += [_line(f"  {who}", score.scores(found, who)) for who in RULES]
    lines += ["", LEGEND]
    if each:
        lines += ["", *(_case(result) for result in results)]
    return "\n".join(lines)


LEGEND = """\
weights, kv/token, pool: median and 90th percentile of the relative error, and how many cases. Pools are judged where
memory and share are stated, those below 1 GiB against 1 GiB. other: GiB, everything but weights and cache. kv/token:
where all layers keep the same of every token; = is the share within 1 %. ok, refused, oom: right/false/unsure
decisions, where memory and ranks are known."""


def _header(title: str) -> str:
    return (
        f"{title:22} {'cases':>5}  {'weights':>18}  {'other GiB':>16}  {'kv/token':>20}  {'pool':>17}"
        f"  {'ok':>8}  {'refused':>8}  {'oom':>8}"
    )


def _line(name: str, found: score.Scores) -> str:
    exact = "" if found.per_token_exact is None else f"={100 * found.per_token_exact:.0f}%"
    return (
        f"{name[:22]:22} {found.cases:5}  {_percent(found.weights):>18}  {_gib(found.other):>16}"
        f"  {_percent(found.per_token) + exact:>20}  {_percent(found.pool):>17}"
        f"  {_decided(found.ok):>8}  {_decided(found.refused):>8}  {_decided(found.oom):>8}"
    )


def _percent(errors: score.Errors) -> str:
    if errors.median is None or errors.p90 is None:
        return "-"
    return f"{100 * errors.median:.1f}/{100 * errors.p90:.1f}% ({errors.n})"


def _gib(errors: score.Errors) -> str:
    if errors.median is None or errors.p90 is None:
        return "-"
    return f"{errors.median:.2f}/{errors.p90:.2f} ({errors.n})"


def _decided(found: score.Decisions) -> str:
    return f"{found.right}/{found.false}/{found.unsure}" if found.n else "-"


def _case(result: Result) -> str:
    row, ours = result.measured, result.predictions.get(OURS)
    if ours is None:
        return f"{result.id:18} lacks {', '.join(result.lacks)}"

    def pair(predicted: float | None, found: float | None, digits: int = 2) -> str:
        shown = [("-" if value is None else f"{value:.{digits}f}") for value in (predicted, found)]
        return f"{shown[0]:>8} {shown[1]:>8}"

    return (
        f"{result.id:18} weights {pair(ours.weights, row.weights)}  other {pair(ours.other, row.other)}"
        f"  kv/token {pair(ours.per_token, row.per_token, 0)}  pool {pair(ours.pool, row.pool)}"
        f"{'*' if result.exact_budget else ' '} {row.outcome or '-':8} {ours.verdict or '-'}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
