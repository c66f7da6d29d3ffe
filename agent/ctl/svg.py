"""Memory bars as one drawing: self-contained SVG, readable on light and dark grounds, without any library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from xml.sax.saxutils import escape

from agent.ctl.bars import Bar, Kind
from agent.ctl.output import size

#: In user units, which are pixels where nothing scales the drawing.
WIDTH: Final = 800
_MARGIN: Final = 20
_BAR: Final = 34
_LINE: Final = 20
#: Entries of a legend in one line.
_ACROSS: Final = 3

#: Fills that differ in lightness, too, so that they stay apart in grey and for the colour-blind.
_FILLS: Final = {
    Kind.WEIGHTS: "#2f6fde",
    Kind.CACHE: "#2fa866",
    Kind.WORKING: "#e0a526",
    Kind.MARGIN: "#b07cd8",
    Kind.OTHERS: "#d2524a",
    Kind.RESERVE: "#8a8f98",
    Kind.FREE: "none",
}
_STYLE: Final = """
    text { font: 13px system-ui, sans-serif; fill: #1c2024 }
    .title { font-weight: 600 }
    .frame { fill: none; stroke: #6b7280 }
    .ground { fill: #ffffff }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6e8eb }
      .frame { stroke: #9aa1ab }
      .ground { fill: #14171a }
    }
"""


def drawing(heading: str, bars: Sequence[Bar]) -> str:
    """All bars below one heading."""
    body: list[str] = []
    top = _MARGIN + _LINE
    for bar in bars:
        body += _bar(bar, top)
        top += _height(bar)
    height = top + _MARGIN
    lines = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f"  <title>{_text(heading)}</title>",
        f"  <style>{_STYLE}  </style>",
        f'  <rect class="ground" width="{WIDTH}" height="{height}"/>',
        f'  <text class="title" x="{_MARGIN}" y="{_MARGIN + 5}">{_text(heading)}</text>',
        *body,
        "</svg>",
    )
    return "\n".join(lines) + "\n"


def _height(bar: Bar) -> int:
    return _LINE + _BAR + _LINE * -(-len(bar.parts) // _ACROSS) + _LINE


def _bar(bar: Bar, top: int) -> Iterator[str]:
    """The title, the segments with their sizes as tooltips, the frame, the legend."""
    across, y = WIDTH - 2 * _MARGIN, top + _LINE
    yield f'  <text x="{_MARGIN}" y="{top + 13}">{_text(bar.title)}</text>'
    whole, left = sum(count for _, count in bar.parts) or 1, float(_MARGIN)
    for kind, count in bar.parts:
        width = across * count / whole
        yield (
            f'  <rect x="{left:.2f}" y="{y}" width="{width:.2f}" height="{_BAR}" fill="{_FILLS[kind]}">'
            f"<title>{_text(kind.word)}: {size(count)}</title></rect>"
        )
        left += width
    yield f'  <rect class="frame" x="{_MARGIN}" y="{y}" width="{across}" height="{_BAR}"/>'
    for index, (kind, count) in enumerate(bar.parts):
        x = _MARGIN + across * (index % _ACROSS) // _ACROSS
        line = y + _BAR + _LINE * (index // _ACROSS) + 16
        yield f'  <rect class="frame" x="{x}" y="{line - 10}" width="11" height="11" style="fill: {_FILLS[kind]}"/>'
        yield f'  <text x="{x + 18}" y="{line}">{_text(kind.word)} {size(count)}</text>'


def _text(text: str) -> str:
    """Escaped, and without characters that XML cannot have."""
    return escape("".join(one if one.isprintable() else " " for one in text))
