"""What an actor has going on beside its loop: one task for each key, and a new one takes the place of the old."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import structlog

log = structlog.get_logger(__name__)


class Tasks:
    """Of one deployment. A task that dies of a bug says so, and nothing else ends with it."""

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._tasks

    def __iter__(self) -> Iterator[asyncio.Task[None]]:
        return iter(self._tasks.values())

    def spawn(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside the loop, instead of what runs under this key."""
        self.cancel(key)

        async def guarded() -> None:
            try:
                await work
            except Exception:
                log.exception("task failed", deployment=self._deployment, task=key)
                raise

        task = asyncio.create_task(guarded(), name=f"{key} {self._deployment}")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._done(key, done, work))

    def cancel(self, key: str) -> None:
        """No error where none runs."""
        if task := self._tasks.pop(key, None):
            task.cancel()

    def _done(self, key: str, task: asyncio.Task[None], work: Coroutine[Any, Any, None]) -> None:
        work.close()  # of a task that was cancelled before its first step
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled():
            task.exception()  # retrieved: it was logged above
