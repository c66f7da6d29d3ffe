"""What people see: columns, ages and sizes."""

from __future__ import annotations

import json

import click
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.ctl.output import Column, Format, age, emit, fields, size, table

COLUMNS: tuple[Column[tuple[str, str]], ...] = (
    Column("NAME", lambda row: row[0]),
    Column("COUNT", lambda row: row[1], right=True),
    Column("LONG", lambda row: row[1] * 2, wide=True),
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0.9, "0s"), (119, "119s"), (192, "3m12s"), (180, "3m"), (599, "9m59s"), (3600, "60m"),
     (5 * 3600 + 600, "5h10m"), (31 * 3600, "31h"), (86400 * 3 + 4 * 3600, "3d4h"), (90 * 86400, "90d")],
)  # fmt: skip
def test_an_age_has_two_units_only_while_both_matter(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (98_000_000, "93.5 MiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_a_size_is_in_the_largest_unit_below_it(count: int, text: str) -> None:
    assert size(count) == text


def test_columns_are_aligned_and_an_empty_cell_is_a_dash() -> None:
    assert table(COLUMNS, [("chat", "7"), ("", "1000")]) == "NAME   COUNT\nchat       7\n-       1000"


def test_wide_shows_more_columns() -> None:
    assert table(COLUMNS, [("a", "b")], wide=True).splitlines()[0].split() == ["NAME", "COUNT", "LONG"]


def test_colours_do_not_move_columns() -> None:
    coloured: Column[str] = Column("PHASE", lambda row: click.style(row, fg="red"))
    plain: Column[str] = Column("NEXT", lambda row: "x")
    lines = click.unstyle(table((coloured, plain), ["FAILED", "OK"])).splitlines()
    assert [line.rstrip()[-1] for line in lines[1:]] == ["x", "x"]
    assert lines[1].index("x") == lines[2].index("x")


@given(st.lists(st.tuples(st.text(), st.text(alphabet="0123456789")), max_size=5))
def test_a_row_is_always_one_line(rows: list[tuple[str, str]]) -> None:
    assert len(table(COLUMNS, rows).split("\n")) == len(rows) + 1


def test_fields_align_their_values_and_leave_empty_ones_out() -> None:
    assert fields([("a", "1"), ("none", ""), ("long", "2\n3")]) == "a      1\nlong   2\n       3"


def test_json_and_yaml_are_the_same_data(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"name": "déjà", "list": [1, 2.5, None]}
    emit(data, Format.JSON)
    assert json.loads(capsys.readouterr().out) == data
    emit(data, Format.YAML)
    assert yaml.safe_load(capsys.readouterr().out) == data
