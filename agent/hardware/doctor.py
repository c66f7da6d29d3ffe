"""What is wrong with a host, and what to do about it.

`diagnose` is pure: facts in, findings out, each check saying something wherever it applies, so that a report shows
what was looked at. The daemon calls it with what it knows; `examine` collects the same facts where there is no daemon.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from agent.hardware import containers, disks, host, system
from agent.hardware.checks import containers as container_checks
from agent.hardware.checks import devices as device_checks
from agent.hardware.checks import drivers as driver_checks
from agent.hardware.checks import host as host_checks
from agent.hardware.checks.base import Case
from agent.hardware.feed import Feed
from agent.hardware.health import Health, assess
from agent.hardware.inventory import (
    ContainerRuntime,
    Detection,
    Device,
    DeviceProcess,
    Disk,
    Fault,
    Inventory,
    Problem,
    Sample,
)
from agent.status import Condition, DeviceStatus, Finding
from agent.status import DeviceProcess as ProcessStatus

CHECKS = (*driver_checks.CHECKS, *device_checks.CHECKS, *container_checks.CHECKS, *host_checks.CHECKS)

#: Seconds for disks and container engines; each of these gives up after two.
SURVEY_SECONDS = 10.0
#: Seconds for all devices to be found. The watcher itself gives up on a driver after ten, and says so.
DETECT_SECONDS = 12.0
#: Seconds for one look at each device; the watcher gives up after two.
SAMPLE_SECONDS = 4.0


def diagnose(
    inventory: Inventory, devices: Iterable[DeviceStatus] = (), conditions: Iterable[Condition] = ()
) -> tuple[Finding, ...]:
    """All findings, in the order of the checks. `conditions` are the node's, where there is a daemon to have them."""
    case = Case(inventory, tuple(devices), tuple(conditions))
    return tuple(finding for check in CHECKS for finding in check(case))


def examine(directories: Mapping[str, Path]) -> tuple[Inventory, tuple[DeviceStatus, ...]]:
    """Look at this host once, with the rights of this process. `directories`: by purpose, as `Disk` has them.

    Takes seconds where a driver or a file system hangs, and never longer than the deadlines above together.
    """
    surveyed = _survey(directories)
    found = replace(host.inventory(), disks=surveyed.disks, containers=surveyed.containers, system=system.system())
    seen = asyncio.run(_look())
    detections = seen.detections.values()
    inventory = replace(
        found,
        devices=tuple(device for detection in detections for device in detection.devices),
        links=tuple(link for detection in detections for link in detection.links),
        drivers=tuple(detection.driver for detection in detections if detection.driver),
        problems=(*(problem for detection in detections for problem in detection.problems), *seen.problems),
    )
    return inventory, tuple(_status(device, seen.samples.get(device.id)) for device in inventory.devices)


@dataclass(slots=True)
class _Survey:
    """What may hang, one after the other; what did not answer in time stays empty."""

    disks: tuple[Disk, ...] = ()
    containers: tuple[ContainerRuntime, ...] = ()


def _survey(directories: Mapping[str, Path]) -> _Survey:
    found = _Survey()

    def work() -> None:
        found.containers = containers.containers()
        found.disks = disks.disks(directories)  # hangs where a file server is gone

    thread = threading.Thread(target=work, daemon=True)  # such a thread cannot be ended, and must not keep us from it
    thread.start()
    thread.join(SURVEY_SECONDS)
    return found


class _Seen:
    """Listens to the feed, and keeps the last of everything."""

    def __init__(self) -> None:
        self.detections: dict[str, Detection] = {}
        self.samples: dict[str, Sample] = {}
        self.problems: tuple[Problem, ...] = ()

    def detected(self, detection: Detection) -> None:
        self.detections[detection.vendor] = detection

    def sampled(self, sample: Sample) -> None:
        self.samples[sample.device] = sample

    def fault(self, fault: Fault) -> None:
        """One look is too short to wait for faults."""

    def watcher(self, status: bool | None, reason: str, message: str) -> None:
        self.problems = (Problem(reason, message),) if status is False else ()


async def _look() -> _Seen:
    seen = _Seen()
    feed = Feed(1.0, seen)
    running = asyncio.create_task(feed.run())
    try:
        await feed.first(DETECT_SECONDS)
        ids = [device.id for detection in seen.detections.values() for device in detection.devices]
        await asyncio.gather(*(feed.fresh(id, SAMPLE_SECONDS) for id in ids))
    finally:
        await feed.close()
        await asyncio.gather(running, return_exceptions=True)
    return seen


def _status(device: Device, sample: Sample | None) -> DeviceStatus:
    """As the daemon would show it after its first sample."""
    now = time.time()
    health = assess(Health(since=now), sample, now) if sample else Health(since=now)
    told = sample or Sample(device.id, now)
    return DeviceStatus(
        id=device.id, index=device.index, vendor=device.vendor, name=device.name, condition=health.condition,
        reason=health.reason, message=health.message, since=health.since, memory_total=device.memory_bytes,
        memory_used=told.memory_used, sampled_at=sample.at if sample else None, utilization=told.utilization,
        temperature_celsius=told.temperature_celsius, power_watts=told.power_watts,
        power_limit_watts=told.power_limit_watts, clock_mhz=told.clock_mhz, throttling=told.throttling,
        processes=None if told.processes is None else tuple(map(_process, told.processes)),
        detail_json=json.dumps(asdict(device)),
    )  # fmt: skip


def _process(process: DeviceProcess) -> ProcessStatus:
    return ProcessStatus(process.pid, process.memory_bytes, process.user, process.command)
