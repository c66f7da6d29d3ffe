"""What a deployment still has to make durable: collected, then written in one transaction.

Writes that fail are kept and tried again; only what must be durable *before* an effect (the intent of a
launch) asks for an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from dataclasses import replace
from typing import Any

from agent.errors import StoreError
from agent.status import Event, Phase, Severity
from agent.store.records import (
    Change,
    DeploymentRecord,
    DropDeployment,
    DropInstance,
    InstanceRecord,
    PutDeployment,
    PutEvent,
    PutInstance,
)  # fmt: skip
from agent.supervision import clock, codec
from agent.supervision.machine import State
from agent.supervision.services import Services

#: Events kept in memory while the store refuses to write; older ones are only in the log then.
MAX_PENDING_EVENTS = 1000


class Journal:
    """Of one deployment. `instance` is the present (or last) run, `older` the ones before, newest last."""

    def __init__(self, deployment: str, services: Services) -> None:
        self.instance: InstanceRecord | None = None
        self.older: list[InstanceRecord] = []
        self._deployment = deployment
        self._services = services
        self._events: list[Event] = []
        self._instances: dict[str, InstanceRecord] = {}
        self._dropped: list[InstanceRecord] = []
        self._state_changed = False
        self._writing: asyncio.Task[None] | None = None

    def touch(self) -> None:
        """The supervisor's state changed."""
        self._state_changed = True

    def note(self, **fields: Any) -> None:
        """Change the present instance's record."""
        if self.instance is not None:
            self.instance = replace(self.instance, **fields)
            self._instances[self.instance.id] = self.instance

    def begin(self, record: InstanceRecord, *, keep: int) -> list[InstanceRecord]:
        """A new instance. Returns the records beyond `keep` that were dropped, so that their logs can go."""
        if self.instance is not None:
            self.older.append(self.instance)
        self.instance = record
        self._instances[record.id] = record
        dropped = self.older[: max(0, len(self.older) - keep + 1)]
        del self.older[: len(dropped)]
        self._dropped += dropped
        return dropped

    def event(self, reason: str, message: str, severity: Severity = Severity.INFO) -> None:
        instance = self.instance.id if self.instance else ""
        self._events.append(Event(reason, message, severity, self._deployment, instance, clock.wall()))
        del self._events[:-MAX_PENDING_EVENTS]

    async def flush(self, record: DeploymentRecord, state: State, *extra: Change) -> DeploymentRecord:
        """Write everything noted, and `extra`, in one transaction; returns the record as written.

        Raises `StoreError`; then nothing was written, and what was noted is still noted. A caller that is cancelled
        meanwhile does not cancel the write: nothing is ever written twice.
        """
        if self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing])
        if not (self._events or self._instances or self._dropped or extra or self._state_changed):
            return record
        record = codec.with_state(record, state)
        self._writing = asyncio.create_task(self._write(record, state, extra))
        await asyncio.shield(self._writing)
        return record

    def _write(self, record: DeploymentRecord, state: State, extra: tuple[Change, ...]) -> Coroutine[Any, Any, None]:
        """Begin to write what is noted by now. To be awaited: what was written is noted no more."""
        events, instances, dropped = list(self._events), dict(self._instances), list(self._dropped)
        changes: list[Change] = [PutEvent(event) for event in events]
        if state.phase is Phase.DELETED:
            changes.append(DropDeployment(record.name))
        else:
            changes.append(PutDeployment(record))
            changes += [PutInstance(instance) for instance in instances.values()]
            changes += [DropInstance(instance.id) for instance in dropped]
        self._state_changed = False

        async def finish(written: Awaitable[tuple[Event, ...]]) -> None:
            try:
                durable = await written
            except StoreError as error:
                self._state_changed = True
                self._services.store_failed(error)
                raise
            # What was noted while the write was under way stays for the next one.
            del self._events[: len(events)]
            del self._dropped[: len(dropped)]
            self._instances = {key: value for key, value in self._instances.items() if instances.get(key) is not value}
            self._services.history(durable)

        return finish(self._services.store.write(*changes, *extra))
