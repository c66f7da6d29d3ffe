"""What is taken over when the database was lost."""

from __future__ import annotations

import pytest

from agent.runtimes import process
from agent.supervision import recovery
from agent.supervision.node import Node


async def test_a_look_at_engines_that_hangs_takes_nothing_over_and_is_no_error(
    inside: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SCAN_DEADLINE_SECONDS", 0.0)  # whatever takes any time hangs
    assert await recovery.from_engines(inside.services, (), ()) == ((), ())
