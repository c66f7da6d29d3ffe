"""The page of events names every reason that the code can give."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from agent.supervision.transitions import EVENT_RULES, LEVEL_RULES

ROOT = Path(__file__).parents[2]


def _reasons(tree: ast.AST) -> Iterator[str]:
    """String constants in the place of a reason: Event("X"), journal.event("X"), conditions.set(_, _, "X")."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        place = {"Event": 0, "event": 0, "set": 2}.get(name)
        if place is not None and len(node.args) > place:
            argument = node.args[place]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and argument.value:
                yield argument.value


def test_every_reason_is_documented() -> None:
    reasons = {rule.id for rule in (*EVENT_RULES, *LEVEL_RULES) if rule.severity is not None}
    for path in (ROOT / "agent").rglob("*.py"):
        reasons |= {reason for reason in _reasons(ast.parse(path.read_text())) if reason[0].isupper()}
    assert len(reasons) > 30
    page = (ROOT / "docs/reference/events.md").read_text()
    assert {reason for reason in reasons if f"`{reason}`" not in page} == set()
