"""The page of diagnoses names every code, under the heading that says what the agent does about it."""

from __future__ import annotations

import re
from pathlib import Path

from agent.status import FATAL, DiagnosisCode

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "diagnoses.md"


def test_every_code_is_documented_where_it_belongs() -> None:
    _, retried, fatal = re.split("^## A retry .*$", PAGE.read_text(), flags=re.MULTILINE)

    assert set(_codes(fatal)) == FATAL
    assert set(_codes(retried)) == set(DiagnosisCode) - FATAL


def _codes(table: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
