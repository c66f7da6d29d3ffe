"""Everything periodic keeps one time."""

from __future__ import annotations

import asyncio

import pytest

from agent.supervision import clock


@pytest.mark.parametrize("late", [-0.24, -0.01, 0.0, 0.01, 0.24])
async def test_a_beat_is_a_whole_multiple_of_its_period_half_to_one_and_a_half_periods_away(late, monkeypatch):
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(clock, "now", lambda: 100.0 + late)
    await clock.beat(0.5, 100.0 + late)
    assert slept == [pytest.approx(0.5 - late)]


async def test_work_that_takes_its_whole_period_is_followed_by_the_next_at_once(monkeypatch):
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(clock, "now", lambda: 105.01)
    await clock.beat(5.0, began=100.0)  # a probe that ran into its timeout: the next one is due by now
    assert slept == [pytest.approx(-0.01)]


async def test_a_beat_really_waits_until_then():
    began = clock.now()
    await clock.beat(0.05, began)
    assert clock.now() >= (round(began / 0.05) + 1) * 0.05
