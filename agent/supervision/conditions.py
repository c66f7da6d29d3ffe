"""Standing facts about the node, each with its reason and since when."""

from __future__ import annotations

from collections.abc import Callable

from agent.status import Condition, Event, Severity
from agent.supervision import clock


class Conditions:
    """Set from anywhere; `announce` is told of every change of a condition, as an event."""

    def __init__(self, announce: Callable[[Event], None]) -> None:
        self._announce = announce
        self._all: dict[str, Condition] = {}

    def set(self, type: str, status: bool | None, reason: str, message: str) -> None:
        """Record a condition. The same status and reason again only renews the message."""
        old = self._all.get(type)
        changed = old is None or (old.status, old.reason) != (status, reason)
        since = clock.wall() if changed or old is None else old.since
        self._all[type] = Condition(type, status, reason, message, since)
        # A good condition at the start is no news.
        if changed and not (old is None and status):
            severity = Severity.INFO if status else Severity.WARNING
            self._announce(Event(reason, f"{type}: {message}", severity, at=clock.wall()))

    def get(self, type: str) -> str:
        """The present reason; "" while it was never set."""
        return self._all[type].reason if type in self._all else ""

    def all(self) -> tuple[Condition, ...]:
        return tuple(self._all.values())
