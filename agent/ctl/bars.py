"""Memory as bars: what a plan takes of each device and of the host, what others have, and what stays free.

Which segments there are is said once here; `picture` draws them with characters, `agent.ctl.svg` as a drawing.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Final

import click

from agent.ctl.output import GAP, size
from agent.frozen import frozen
from agent.planning.plan import MemoryBudget, Plan
from agent.v1 import agent_pb2 as pb

#: Columns of a bar at most: on wider terminals it would no longer be taken in at a glance.
WIDEST: Final = 100


class Kind(Enum):
    """What a part of memory is for: its word, a block and a plain character for it, and its colour in a terminal."""

    WEIGHTS = ("weights", "█", "#", "blue")
    CACHE = ("cache", "▓", "=", "green")
    WORKING = ("activations, graphs, context", "▒", "+", "yellow")
    MARGIN = ("uncertain", "░", "~", "magenta")
    OTHERS = ("others", "▚", "x", "red")
    RESERVE = ("reserved by policy", "-", "-", "bright_black")
    FREE = ("free", "·", ".", "bright_black")

    @property
    def word(self) -> str:
        return self.value[0]

    @property
    def colour(self) -> str:
        return self.value[3]

    def character(self, *, blocks: bool) -> str:
        return self.value[1 if blocks else 2]


@frozen
class Bar:
    """One pool of memory. Bytes by kind, in the order of `Kind`; kinds without bytes are left out."""

    title: str
    total: int
    parts: tuple[tuple[Kind, int], ...]


def bars(plan: Plan, pools: Iterable[pb.MemoryPool]) -> list[Bar]:
    """Of the plan's devices, then of the host; devices that look alike are one bar."""
    known = {pool.id: pool for pool in pools}
    alike: dict[tuple[str, int, tuple[tuple[Kind, int], ...]], list[str]] = {}
    for budget in sorted(plan.budgets, key=lambda one: one.pool == "host"):
        if (pool := known.get(budget.pool)) is not None:
            look = (pool.display_name, pool.total_bytes, tuple(_parts(budget, pool)))
            alike.setdefault(look, []).append(pool.id)
    return [Bar(_title(ids, name, total), total, parts) for (name, total, parts), ids in alike.items()]


def _title(ids: Sequence[str], name: str, total: int) -> str:
    if ids == ["host"]:
        return f"{name}, {size(total)}"
    if len(ids) == 1:
        return f"{name}, {size(total)} ({ids[0]})"
    return f"{len(ids)} devices, each {name}, {size(total)} ({', '.join(ids)})"


def _parts(budget: MemoryBudget, pool: pb.MemoryPool) -> Iterator[tuple[Kind, int]]:
    taken = dict.fromkeys(Kind, 0)
    for term in budget.terms:
        taken[_kind(term.name)] += term.bytes
    if budget.claimed is None:
        taken[Kind.MARGIN] = sum(term.uncertainty for term in budget.terms)
    else:  # what the engine claims beside its other terms is cache, and their uncertainty is the cache's
        taken[Kind.CACHE] += max(0, budget.claimed - sum(taken.values()))
    taken[Kind.OTHERS], taken[Kind.RESERVE] = pool.others_bytes, pool.reserve_bytes
    taken[Kind.FREE] = max(0, pool.total_bytes - sum(taken.values()))
    return ((kind, count) for kind, count in taken.items() if count)


def _kind(term: str) -> Kind:
    name = term.lower()
    if "weights" in name:
        return Kind.WEIGHTS
    return Kind.CACHE if "cache" in name or name.startswith("kv") or "state" in name else Kind.WORKING


def picture(bar: Bar) -> str:
    """The title, the bar over the width of the terminal, and the legend; blocks where the output can show them."""
    blocks = "utf" in (sys.stdout.encoding or "").lower()
    columns = min(WIDEST, shutil.get_terminal_size().columns)
    cells = _cells([count for _, count in bar.parts], max(len(bar.parts), columns - 2))
    drawn = (
        click.style(kind.character(blocks=blocks) * count, fg=kind.colour)
        for (kind, _), count in zip(bar.parts, cells, strict=True)
    )
    legend = [(f"{kind.character(blocks=blocks)} {kind.word} {size(count)}", kind.colour) for kind, count in bar.parts]
    return "\n".join((bar.title, f"[{''.join(drawn)}]", *_wrapped(legend, columns)))


def _wrapped(words: Iterable[tuple[str, str]], columns: int) -> Iterator[str]:
    """Lines of coloured words, none longer than `columns` unless a word is."""
    line, width = "", 0
    for word, colour in words:
        if line and width + len(GAP) + len(word) > columns:
            yield line
            line, width = "", 0
        mark = click.style(word[0], fg=colour) + word[1:]
        line, width = (f"{line}{GAP}{mark}", width + len(GAP) + len(word)) if line else (mark, len(word))
    yield line


def _cells(counts: Sequence[int], columns: int) -> list[int]:
    """Columns in proportion, together exactly `columns`; each part gets at least one, at the largest ones' expense."""
    whole = sum(counts) or 1
    cells = [max(1, columns * count // whole) for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda at: -(columns * counts[at] % whole))
    for at in by_remainder[: max(0, columns - sum(cells))]:
        cells[at] += 1
    while sum(cells) > columns:
        cells[cells.index(max(cells))] -= 1
    return cells
