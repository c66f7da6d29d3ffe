"""The ledger of measured memory: written after each start that did what its plan says, read when a plan is made.

Rows are kept in memory as they were stored, and understood when they are first needed: a daemon that plans nothing does
nothing for them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from agent.engines import ENGINES
from agent.errors import AgentError, StoreError
from agent.frozen import frozen
from agent.hardware.inventory import Inventory
from agent.lazy import lazily
from agent.models.parts import parts
from agent.runtimes import logs
from agent.runtimes.base import Handle, Runtime
from agent.runtimes.threads import in_thread
from agent.status import Event, Granted, Severity
from agent.store.records import DropMeasurement, MeasurementRecord, PutEvent, PutMeasurement
from agent.store.sqlite import Store
from agent.supervision import clock
from agent.supervision.devices import FRESH_SECONDS, Devices

if TYPE_CHECKING:
    from agent.planning import ledger as measured
    from agent.planning.ledger import MeasuredTerm, Measurement
    from agent.planning.plan import Plan
    from agent.supervision.service import Imported
else:
    measured = lazily("agent.planning.ledger")

log = structlog.get_logger(__name__)

#: Starts that are kept of one key: what a start takes hardly varies, and the spread of a few shows how much.
EACH = 5
#: Measurements that are kept in all, some 2 KiB each.
TOTAL = 500
#: What an engine reports of itself stands in the first part of its log (bytes): llama.cpp writes some 20 KiB.
HEAD = 512 * 1024
#: Seconds before each look at it: some engines write it in a thread of its own, which may lag behind their answers.
LOOKS = (0.0, 1.0, 5.0, 15.0)
#: For reading a log's head (seconds).
READ_DEADLINE = 10.0


class Hardware(Protocol):
    def inventory(self) -> Inventory: ...


@frozen
class Outside:
    """What the ledger asks of the rest of the node."""

    uid: str
    name: str
    announce: Callable[[Event], None]
    spawn: Callable[[Coroutine[Any, Any, None]], None]


class Ledger:
    """Of one node."""

    def __init__(self, store: Store, runtime: Runtime, hardware: Hardware, devices: Devices, outside: Outside) -> None:
        self._store = store
        self._runtime = runtime
        self._hardware = hardware
        self._devices = devices
        self._outside = outside
        self._stored: tuple[MeasurementRecord, ...] = ()
        self._measurements: tuple[Measurement, ...] = ()
        self._writing = asyncio.Lock()

    def restore(self, records: tuple[MeasurementRecord, ...]) -> None:
        """Take over what the store holds."""
        self._stored = records

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """All of them, oldest first."""
        if self._stored:
            records, self._stored = self._stored, ()
            found = [row for record in records if (row := self._understood(record)) is not None]
            self._measurements = tuple(sorted(found, key=lambda row: (row.at, row.id)))
        return self._measurements

    def _understood(self, record: MeasurementRecord) -> Measurement | None:
        try:
            return _decoded(record)
        except (ValueError, TypeError, KeyError) as error:
            self._outside.spawn(self._set_aside(record.id, f"{type(error).__name__}: {error}"))
            return None

    async def _set_aside(self, id: str, problem: str) -> None:
        try:
            await self._store.quarantine("ledger", id, problem)
        except AgentError as error:
            log.warning("measurement not set aside", measurement=id, error=str(error))
        message = f"measurement {id}: {problem}"
        self._outside.announce(Event("RecordQuarantined", message, Severity.ERROR, at=clock.wall()))

    # After a start ------------------------------------------------------------------------------------------------

    async def record(self, plan: Plan, instance: str, log_path: Path, handle: Handle, granted: Granted | None) -> None:
        """Remember what an instance takes that just became ready. What cannot be seen is left out; a start that was
        granted less than its plan says is no measurement of it."""
        if granted is not None and _less(plan, granted):
            return
        try:
            reported = await _reported(plan, log_path)
            if not reported:
                return
            held = {measured.HOST: await self._host(plan, handle, reported)}
            for place, device in enumerate(plan.devices):
                held[str(place)] = await self._device(device, instance)
            models = [self._devices.find(device).device.name for device in plan.devices]
        except (TimeoutError, OSError, AgentError) as error:
            log.warning("start not measured", instance=instance, error=str(error))
            return
        pools = (measured.HOST, *map(str, range(len(plan.devices))))
        budgets = {pool: budget.terms for pool, budget in zip(pools, plan.budgets, strict=True)}
        await self._keep_own(
            measured.Measurement(
                id=f"{self._outside.uid[:8]}-{instance}", node=self._outside.uid, host=self._outside.name,
                imported=False, at=clock.wall(), model=plan.variant.source,
                key=measured.key_of(plan, self._hardware.inventory().cpu_model, models),
                terms=measured.compared(budgets, reported, held),
            )
        )  # fmt: skip

    async def _host(self, plan: Plan, handle: Handle, reported: tuple[MeasuredTerm, ...]) -> int | None:
        """Bytes of host memory. Of a mapped model those that the engine reports: the kernel holds more pages of it, or
        fewer, as it likes."""
        memory = await self._runtime.footprint(handle)
        if not memory:
            return None
        names = await in_thread(lambda: _files(plan.variant.path), deadline=READ_DEADLINE)
        files = [sizes for path, sizes in memory.items() if path in names]
        weights = sum(term.bytes for term in reported if (term.pool, term.name) == (measured.HOST, measured.WEIGHTS))
        resident = sum(resident for _, resident in memory.values()) - sum(resident for _, resident in files)
        return resident + min(weights, sum(mapped for mapped, _ in files))

    async def _device(self, device: str, instance: str) -> int | None:
        """Bytes that the driver names for the instance, by a look that begins now."""
        await self._devices.feed.fresh(device, FRESH_SECONDS)
        return self._devices.used_by(device, instance) or None

    async def _keep_own(self, measurement: Measurement) -> None:
        try:
            await self._keep((measurement,))
        except StoreError as error:
            log.warning("measurement not durable", measurement=measurement.id, error=str(error))

    async def _keep(self, new: tuple[Measurement, ...], *events: Event) -> int:
        """Store them, within the bounds; how many of `new` were kept. Raises `StoreError`: then nothing changed."""
        async with self._writing:
            before = {row.id: row for row in self.measurements}
            kept = measured.newest((before | {row.id: row for row in new}).values(), EACH, TOTAL)
            ids = {row.id for row in kept}
            added = [row for row in new if row.id in ids]
            await self._store.write(
                *(PutMeasurement(_encoded(row)) for row in added),
                *(DropMeasurement(id) for id in before if id not in ids),
                *map(PutEvent, events),
            )
            self._measurements = kept
        return len(added)

    # Import -------------------------------------------------------------------------------------------------------

    async def take(self, data: Mapping[str, Any]) -> Imported:
        """Import an exported ledger. Raises `InvalidArgument` with the paths of what is wrong in it, `StoreError`."""
        # The models of such a file cost a daemon that never imports 1 MiB.
        from agent.supervision import ledger_file  # noqa: PLC0415
        from agent.supervision.service import Imported  # noqa: PLC0415

        rows = ledger_file.parse(data, self._outside.uid, clock.wall())
        known = {row.id for row in self.measurements}
        new = tuple(row for row in rows if row.id not in known)
        if not new:
            return Imported(0, len(rows), 0)
        hosts = ", ".join(sorted({row.host or row.node for row in new}))
        told = Event("MeasurementsImported", f"{len(new)} measurements of {hosts}", at=clock.wall())
        added = await self._keep(new, told)
        return Imported(added, len(rows) - len(new), len(new) - added)


async def _reported(plan: Plan, log_path: Path) -> tuple[MeasuredTerm, ...]:
    """What the engine says of its memory. Raises `OSError`, `TimeoutError`."""
    for pause in LOOKS:
        await asyncio.sleep(pause)
        head = await in_thread(lambda: logs.head_text(log_path, HEAD), deadline=READ_DEADLINE)
        if found := ENGINES[plan.engine].parse_memory(head, plan):
            return found
    return ()


def _files(path: str) -> set[str]:
    """The model's files, as the kernel names them."""
    return {os.path.realpath(part) for part in parts(Path(path))}


def _less(plan: Plan, granted: Granted) -> bool:
    limits = plan.limits
    return (granted.max_model_len is not None and granted.max_model_len < limits.max_model_len) or (
        granted.max_num_seqs is not None and granted.max_num_seqs < limits.max_num_seqs
    )


def _encoded(row: Measurement) -> MeasurementRecord:
    return MeasurementRecord(
        row.id, row.node, row.host, int(row.imported), row.at, row.model,
        measured.key_to_json(row.key), measured.terms_to_json(row.terms),
    )  # fmt: skip


def _decoded(record: MeasurementRecord) -> Measurement:
    """Raises `ValueError`, `TypeError` or `KeyError` for a record that says something else."""
    return measured.Measurement(
        record.id, record.node, record.host, bool(record.imported), record.at, record.model,
        measured.key_from_json(record.key_json), measured.terms_from_json(record.terms_json),
    )  # fmt: skip
