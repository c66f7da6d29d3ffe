"""How data is printed: aligned columns for people, JSON and YAML for programs.

Plain columns as kubectl has them: they survive `grep`, `awk` and narrow terminals, and need no import that
would slow `agentctl status`. Colour only where it reaches a terminal (`click.echo` strips it elsewhere).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

import click

from agent.frozen import frozen

Row = TypeVar("Row")

GAP: Final = "   "  # between columns, as kubectl: two spaces already occur inside cells


class Format(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    SVG = "svg"  # of commands that draw

    @property
    def for_people(self) -> bool:
        return self in {Format.TABLE, Format.WIDE}


@frozen
class Column(Generic[Row]):
    """One column: its title, a row's cell (it may be coloured), and whether only `wide` shows it."""

    title: str
    cell: Callable[[Row], str]
    wide: bool = False
    right: bool = False


def table(columns: Sequence[Column[Row]], rows: Iterable[Row], *, wide: bool = False) -> str:
    """Aligned lines with a heading; an empty cell is `-`, so that columns can be counted."""
    shown = [column for column in columns if wide or not column.wide]
    cells = [[" ".join(column.cell(row).splitlines()) or "-" for column in shown] for row in rows]
    lines = [[column.title for column in shown], *cells]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(shown))]
    return "\n".join(GAP.join(_pad(*cell) for cell in zip(line, widths, shown, strict=True)).rstrip() for line in lines)


def _pad(text: str, width: int, column: Column[Any]) -> str:
    padding = " " * (width - _width(text))
    return padding + text if column.right else text + padding


def _width(text: str) -> int:
    return len(click.unstyle(text))


def fields(pairs: Iterable[tuple[str, str]], indent: str = "") -> str:
    """`key   value` lines with the values aligned; pairs without a value are left out, further lines are indented."""
    kept = [(key, value) for key, value in pairs if value]
    width = max((len(key) for key, _ in kept), default=0)
    margin = "\n" + indent + " " * width + GAP
    return "\n".join(f"{indent}{key.ljust(width)}{GAP}{margin.join(value.splitlines())}" for key, value in kept)


def emit(data: Any, form: Format) -> None:
    """Prints plain data as JSON or YAML."""
    if form is Format.JSON:
        import json  # noqa: PLC0415  (as below: for those who ask for it)

        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return
    import yaml  # noqa: PLC0415  (25 ms that only `-o yaml` pays)

    click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


def size(count: int) -> str:
    """Bytes in the largest binary unit that keeps at least one digit before the point."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the loop always returns")


#: (below this many seconds, divisor and unit of the first number, of the second): two numbers only while both matter
_AGES: Final = (
    (120, (1, "s"), None),
    (600, (60, "m"), (1, "s")),
    (3 * 3600, (60, "m"), None),
    (8 * 3600, (3600, "h"), (60, "m")),
    (48 * 3600, (3600, "h"), None),
    (8 * 86400, (86400, "d"), (3600, "h")),
)


def age(seconds: float) -> str:
    """`45s`, `3m12s`, `47m`, `5h10m`, `31h`, `3d4h`, `90d`: kubectl's steps, which people know."""
    whole = max(0, int(seconds))
    for below, (divisor, unit), rest in _AGES:
        if whole < below:
            tail = whole % divisor // rest[0] if rest else 0
            return f"{whole // divisor}{unit}" + (f"{tail}{rest[1]}" if rest and tail else "")
    return f"{whole // 86400}d"
