"""The node's devices as they are by now: what was detected, the last sample of each, its health, and who holds it.

It listens to the feed (`agent.hardware.feed`) and decides nothing about a deployment. A quarantine is durable: it is
lifted by an operator, not by a restart of the agent. Samples arrive by themselves; nothing in here calls a driver.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import structlog

from agent.errors import NotFound, StoreError
from agent.frozen import frozen
from agent.hardware import health as rules
from agent.hardware.feed import Feed
from agent.hardware.health import Health, Presence
from agent.hardware.inventory import Detection, Device, DeviceProcess, Fault, Inventory, Problem, Sample
from agent.hardware.xids import Effect, xid
from agent.status import DeviceCondition, DeviceHold, DeviceStatus, Event, Severity
from agent.status import DeviceProcess as ProcessStatus
from agent.store.records import PutEvent, PutMeta
from agent.store.sqlite import Store
from agent.supervision import clock
from agent.supervision.conditions import Conditions

if TYPE_CHECKING:
    from agent.planning.request import DeviceState

log = structlog.get_logger(__name__)

GIB = 1024**3

#: Quarantines stand in the store's key-value table under this prefix and the device's id.
META_PREFIX = "device/"
#: A fresh look at a device must answer within this (seconds), or what it holds is not known.
FRESH_SECONDS = 2.0
#: Memory of a device that no process is named for may grow by this much (bytes) without being held by somebody: driver
#: allocations and contexts come and go in steps of tens of MiB.
UNNAMED_SLACK = 256 * 1024 * 1024
#: The reason of a device that was found, and not looked at yet: no news.
NOT_SAMPLED = Health().reason
#: Conditions under which a plan may have the device.
USABLE = frozenset({DeviceCondition.HEALTHY, DeviceCondition.DEGRADED})
_SEVERITY = {
    DeviceCondition.HEALTHY: Severity.INFO,
    DeviceCondition.DEGRADED: Severity.WARNING,
    DeviceCondition.UNKNOWN: Severity.WARNING,
    DeviceCondition.QUARANTINED: Severity.ERROR,
    DeviceCondition.LOST: Severity.ERROR,
}


@dataclass(slots=True)
class Entry:
    """One device. `unnamed` is the least memory (bytes) that was ever used by no named process: the driver's own."""

    device: Device
    health: Health
    detail_json: str
    seen_at: float  # monotonic seconds: last sample, or when it appeared
    present: bool = True
    sample: Sample | None = None
    unnamed: int | None = None
    owners: dict[int, str] = field(default_factory=dict)  # of the processes in the last sample: pid -> instance


@frozen
class Outside:
    """What the registry asks of the rest of the node."""

    announce: Callable[[Event], None]
    changed: Callable[[], None]  # status shows something else
    owner: Callable[[int], str]  # the live instance that a process belongs to; "" for a stranger
    holds: Callable[[str], tuple[DeviceHold, ...]]  # of a device
    spawn: Callable[[Coroutine[Any, Any, None]], None]


class Devices:
    """The registry. Listens to `feed`, which the caller runs."""

    def __init__(self, period: float, store: Store, conditions: Conditions, outside: Outside) -> None:
        self.feed = Feed(period, self)
        self._period = period
        self._store = store
        self._conditions = conditions
        self._outside = outside
        self._entries: dict[str, Entry] = {}
        self._detections: dict[str, Detection] = {}
        self._kept: dict[str, Health] = {}  # stored quarantines of devices that were not seen yet
        self._released: set[tuple[str, str]] = set()  # (device, instance): an operator says that it is free

    def restore(self, meta: Mapping[str, str]) -> None:
        """Take over the quarantines of the agent before. An unreadable one is a quarantine still."""
        for key, text in meta.items():
            if key.startswith(META_PREFIX) and text:
                self._kept[key.removeprefix(META_PREFIX)] = rules.from_json(text, clock.wall())

    # The feed's listener ------------------------------------------------------------------------------------------

    def detected(self, detection: Detection) -> None:
        from agent.hardware import catalog  # noqa: PLC0415 - a node without devices never needs it

        first = detection.vendor not in self._detections
        detection = replace(detection, devices=tuple(map(catalog.complete, detection.devices)))
        self._detections[detection.vendor] = detection
        found = {device.id for device in detection.devices}
        for entry in list(self._entries.values()):
            if entry.device.vendor == detection.vendor and entry.device.id not in found:
                self._vanished(entry, detection.devices)
        for device in detection.devices:
            self._found(device, announce=not first)
        self._tell_detection()
        self._outside.changed()

    def sampled(self, sample: Sample) -> None:
        entry = self._entries.get(sample.device)
        if entry is None or not entry.present:
            return
        if sample.problem is None:
            self._take(entry, sample)
        self._assess(entry, rules.assess(entry.health, sample, clock.wall()))
        self._outside.changed()

    def fault(self, fault: Fault) -> None:
        hit = [entry for entry in self._entries.values() if fault.device in {entry.device.id, entry.device.parent}]
        if not hit:
            self._announce("DeviceFault", f"a device that is not known: {rules.explained(fault)}", Severity.WARNING)
        for entry in hit:
            self._announce("DeviceFault", f"{_name(entry.device)}: {rules.explained(fault)}", _severity(fault))
            self._assess(entry, rules.assess(entry.health, fault, clock.wall()))
        self._outside.changed()

    def watcher(self, status: bool | None, reason: str, message: str) -> None:
        # That there is nothing to watch is as good as watching it.
        self._conditions.set("DevicesWatched", status is not False, reason, message)
        self._outside.changed()

    def tick(self) -> None:
        """Once a period: what was not seen lately is not known."""
        for entry in self._entries.values():
            if entry.present:
                silence = clock.now() - entry.seen_at
                self._assess(entry, rules.overdue(entry.health, silence, self._period, clock.wall()))

    def _take(self, entry: Entry, sample: Sample) -> None:
        entry.sample, entry.seen_at = sample, clock.now()
        pids = {process.pid for process in sample.processes or ()}
        # Whose a process is does not change while it is there.
        entry.owners = {pid: entry.owners[pid] if pid in entry.owners else self._outside.owner(pid) for pid in pids}
        unnamed = _unnamed(sample)
        if unnamed is not None:
            entry.unnamed = unnamed if entry.unnamed is None else min(entry.unnamed, unnamed)

    def _found(self, device: Device, *, announce: bool) -> None:
        entry = self._entries.get(device.id)
        if entry is None:
            health = self._kept.pop(device.id, Health(since=clock.wall()))
            self._entries[device.id] = Entry(device, health, _detail(device), clock.now())
            if announce:
                self._announce("DeviceFound", f"{_name(device)} appeared")
            return
        if not entry.present:
            entry.present, entry.seen_at = True, clock.now()
            self._announce("DeviceReturned", f"{_name(device)} is back")
            self._assess(entry, rules.assess(entry.health, Presence.RETURNED, clock.wall()))
        if entry.device != device:
            names = (each.name for each in fields(device))
            changed = [name for name in names if getattr(device, name) != getattr(entry.device, name)]
            if set(changed) != {"pci"}:  # a link at rest changes its generation all the time
                self._announce("DeviceChanged", f"{_name(device)} changed: {', '.join(changed)}")
            entry.device, entry.detail_json = device, _detail(device)

    def _vanished(self, entry: Entry, found: Iterable[Device]) -> None:
        """A whole GPU that is sliced now, or whose slices were taken back, is not lost: it is something else."""
        device = entry.device
        if any(device.id == other.parent or device.parent == other.id for other in found):
            del self._entries[device.id]
            self._announce("DeviceResliced", f"{_name(device)} is no device any more: its slices changed")
        elif entry.present:
            entry.present, entry.sample, entry.owners = False, None, {}
            self._assess(entry, rules.assess(entry.health, Presence.VANISHED, clock.wall()))

    def _assess(self, entry: Entry, health: Health) -> None:
        old, entry.health = entry.health, health
        changed = (old.condition, old.reason) != (health.condition, health.reason)
        first_look = old.reason == NOT_SAMPLED and health.condition is DeviceCondition.HEALTHY
        if changed and not first_look:
            self._announce(
                f"Device{health.condition.value.capitalize()}",
                f"{_name(entry.device)}: {health.reason}: {health.message}",
                _SEVERITY[health.condition],
            )
        if changed:
            self._tell_detection()
        stored = rules.to_json(health)
        if stored != rules.to_json(old):
            self._outside.spawn(self._store_health(entry.device.id, stored))

    async def _store_health(self, id: str, text: str) -> None:
        try:
            await self._store.write(PutMeta(META_PREFIX + id, text))
        except StoreError as error:
            log.error("a device's quarantine is not durable", device=id, error=str(error))

    def _tell_detection(self) -> None:
        problems = self.problems()
        looked_at = [entry for entry in self._entries.values() if entry.health.reason != NOT_SAMPLED]
        bad = [entry for entry in looked_at if entry.health.condition is not DeviceCondition.HEALTHY]
        if problems:
            sentences = "; ".join(dict.fromkeys(problem.message for problem in problems))
            self._conditions.set("DevicesDetected", False, problems[0].code, sentences)
        else:
            count = len(self.present())
            what = f"{count} device{'s' * (count != 1)}" if count else "no devices: engines run on the CPU"
            self._conditions.set("DevicesDetected", True, "DevicesDetected", what)
        if bad:
            sentences = "; ".join(f"{_name(e.device)} is {e.health.condition.value}: {e.health.message}" for e in bad)
            self._conditions.set("DevicesHealthy", False, bad[0].health.reason, sentences)
        elif looked_at:
            self._conditions.set("DevicesHealthy", True, "DevicesHealthy", "all devices are healthy")

    def _announce(self, reason: str, message: str, severity: Severity = Severity.INFO) -> None:
        self._outside.announce(Event(reason, message, severity, at=clock.wall()))

    # For planning and status --------------------------------------------------------------------------------------

    def present(self) -> tuple[Device, ...]:
        return tuple(entry.device for entry in self._entries.values() if entry.present)

    def problems(self) -> tuple[Problem, ...]:
        return tuple(problem for detection in self._detections.values() for problem in detection.problems)

    def inventory(self, host: Inventory) -> Inventory:
        """The host with its devices."""
        detections = self._detections.values()
        return replace(
            host,
            devices=self.present(),
            links=tuple(link for detection in detections for link in detection.links),
            drivers=tuple(detection.driver for detection in detections if detection.driver),
            problems=self.problems(),
        )

    def unavailable(self, id: str) -> str:
        """Why no plan may have the device now; "" if it may."""
        entry = self._entries.get(id)
        if entry is None:
            return "it is not there"
        if entry.health.condition not in USABLE:
            return f"it is {entry.health.condition.value}: {entry.health.message}"
        if entry.sample is None:
            return "it was not sampled yet"
        held = [hold for hold in self._outside.holds(id) if hold.ended]
        return f"{held[0].deployment} ended, but {held[0].message or 'its memory is not back'}" if held else ""

    def lost(self, id: str) -> bool:
        """Whether the device was there and is gone, as seen by now."""
        return id in self._entries and self._entries[id].health.condition is DeviceCondition.LOST

    def state(self, id: str, deployment: str) -> DeviceState:
        """The device from the view of one deployment, at this moment."""
        from agent.planning.request import DeviceState  # noqa: PLC0415 - only plans ask

        entry = self._entries[id]
        others = [hold for hold in self._outside.holds(id) if hold.deployment != deployment]
        mine = [hold.instance for hold in self._outside.holds(id) if hold.deployment == deployment]
        return DeviceState(
            unavailable=self.unavailable(id),
            used=(entry.sample.memory_used or 0) if entry.sample else 0,
            reserved=sum(hold.bytes for hold in others),
            resident=sum(min(self.used_by(id, hold.instance) or 0, hold.bytes) for hold in others),
            released=sum(self.used_by(id, instance) or 0 for instance in mine),
        )

    def states(self, deployment: str) -> dict[str, DeviceState]:
        return {id: self.state(id, deployment) for id, entry in self._entries.items() if entry.present}

    def used_by(self, id: str, instance: str) -> int | None:
        """Bytes that an instance holds on a device, by the last sample; None where the driver does not tell."""
        entry = self._entries.get(id)
        if entry is None or entry.sample is None or entry.sample.processes is None:
            return None
        sizes = [
            process.memory_bytes for process in entry.sample.processes if entry.owners.get(process.pid) == instance
        ]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def used_anywhere(self, instance: str) -> tuple[str, ...]:
        """The devices on which an instance has a process."""
        return tuple(id for id, entry in self._entries.items() if instance in entry.owners.values())

    def find(self, id: str) -> Entry:
        """Raises `NotFound`, naming what there is."""
        entry = self._entries.get(id)
        if entry is None:
            known = ", ".join(sorted(self._entries)) or "none"
            raise NotFound(f"no device {id!r}", hint=f"Devices of this node: {known}.")
        return entry

    def statuses(self) -> tuple[DeviceStatus, ...]:
        entries = sorted(self._entries.values(), key=lambda e: (e.device.vendor, e.device.index, e.device.id))
        return tuple(map(self.status, entries))

    def status(self, entry: Entry) -> DeviceStatus:
        device, health, sample = entry.device, entry.health, entry.sample or Sample(entry.device.id, 0.0)
        holds = self._outside.holds(device.id)
        return DeviceStatus(
            id=device.id, index=device.index, vendor=device.vendor, name=device.name, condition=health.condition,
            reason=health.reason, message=health.message, since=health.since, memory_total=device.memory_bytes,
            memory_used=sample.memory_used, memory_reserved=sum(hold.bytes for hold in holds),
            sampled_at=sample.at or None, utilization=sample.utilization,
            temperature_celsius=sample.temperature_celsius, power_watts=sample.power_watts,
            power_limit_watts=sample.power_limit_watts, clock_mhz=sample.clock_mhz, throttling=sample.throttling,
            processes=_processes(sample.processes, entry.owners), holds=holds, detail_json=entry.detail_json,
        )  # fmt: skip

    # A stop is a stop ---------------------------------------------------------------------------------------------

    async def held(self, instance: str, ids: Iterable[str]) -> str:
        """What of the devices an ended instance still holds, in a sentence; "" once all of it was seen to be back.

        A device that is lost holds nothing that could be handed out, and will be looked at anew when it returns.
        """
        for id in ids:
            entry = self._entries.get(id)
            if entry is None or not entry.present or (id, instance) in self._released:
                continue
            owners = dict(entry.owners)
            sample = await self.feed.fresh(id, FRESH_SECONDS)
            if sample is None or sample.problem is not None:
                return f"{_name(entry.device)} does not say whether its memory is back"
            for process in sample.processes or ():
                if owners.get(process.pid) == instance:
                    who = f"pid {process.pid} {process.command}".rstrip()
                    return f"{who} still holds {_gib(process.memory_bytes)} of {_name(entry.device)}"
            unnamed = _unnamed(sample)
            if unnamed is not None and entry.unnamed is not None and unnamed > entry.unnamed + UNNAMED_SLACK:
                extra = _gib(unnamed - entry.unnamed)
                return f"{extra} of {_name(entry.device)} is held by no process that the driver names"
        return ""

    # Changes by an operator ---------------------------------------------------------------------------------------

    async def quarantine(self, id: str, reason: str) -> DeviceStatus:
        """Raises `NotFound`, and `StoreError` if it cannot be made durable: then nothing changed."""
        entry = self.find(id)
        await self._change(entry, rules.quarantined(entry.health, reason, clock.wall()), "DeviceQuarantined", reason)
        return self.status(entry)

    async def release(self, id: str) -> DeviceStatus:
        """Raises `NotFound`, and `StoreError` if it cannot be made durable: then nothing changed."""
        entry = self.find(id)
        ended = [hold.instance for hold in self._outside.holds(id) if hold.ended]
        await self._change(
            entry, rules.released(entry.health, clock.wall()), "DeviceReleased", "released by an operator"
        )
        self._released |= {(id, instance) for instance in ended}
        if entry.sample is not None:  # what is used now is taken for the driver's own
            entry.unnamed = _unnamed(entry.sample)
        return self.status(entry)

    async def _change(self, entry: Entry, health: Health, reason: str, message: str) -> None:
        event = Event(reason, f"{_name(entry.device)}: {message}", Severity.WARNING, at=clock.wall())
        await self._store.write(PutMeta(META_PREFIX + entry.device.id, rules.to_json(health)), PutEvent(event))
        entry.health = health
        self._tell_detection()
        self._outside.changed()


def _severity(fault: Fault) -> Severity:
    grave = fault.kind == "xid" and xid(fault.number).effect in {Effect.QUARANTINE, Effect.LOST}
    return Severity.ERROR if grave else Severity.WARNING


def _unnamed(sample: Sample) -> int | None:
    """Bytes in use that no process is named for; None where the driver does not tell enough."""
    if sample.memory_used is None or sample.processes is None:
        return None
    sizes = [process.memory_bytes for process in sample.processes]
    return None if None in sizes else max(0, sample.memory_used - sum(size for size in sizes if size is not None))


def _processes(found: tuple[DeviceProcess, ...] | None, owners: Mapping[int, str]) -> tuple[ProcessStatus, ...] | None:
    if found is None:
        return None
    return tuple(
        ProcessStatus(process.pid, process.memory_bytes, process.user, process.command, owners.get(process.pid, ""))
        for process in found
    )


def _detail(device: Device) -> str:
    return json.dumps(asdict(device))


def _name(device: Device) -> str:
    return f"{device.name} ({device.id})"


def _gib(size: int | None) -> str:
    return "memory" if size is None else f"{size / GIB:.1f} GiB"
