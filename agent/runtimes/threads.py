"""Blocking work beside the event loop, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


async def in_thread(work: Callable[[], _T], *, deadline: float) -> _T:
    """Raises `TimeoutError` after `deadline` seconds; the thread itself cannot be stopped and ends when it can."""
    async with asyncio.timeout(deadline):
        return await asyncio.to_thread(work)
