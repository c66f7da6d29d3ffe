"""The node's hardware as planning and status see it: the host, surveyed now and then, with the devices as they are."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import structlog

from agent.hardware import containers, disks, host, system
from agent.hardware.inventory import ContainerRuntime, Inventory
from agent.runtimes.threads import in_thread
from agent.settings import NodeConfig
from agent.supervision import clock
from agent.supervision.devices import Devices

log = structlog.get_logger(__name__)

#: A survey asks container engines and file systems, either of which may not answer (seconds).
SURVEY_DEADLINE = 10.0
#: Of container engines alone, before a plan: each gets two seconds to answer.
CONTAINERS_DEADLINE = 5.0
#: One that was well within this time is not asked again: podman's answer takes a second (seconds).
CONTAINERS_FRESH = 60.0


class Hardware:
    """Implements `preparation.Hardware`. `memory` is the last sample of the host's memory."""

    def __init__(self, config: NodeConfig, devices: Devices) -> None:
        self._directories: dict[str, Path] = {
            "state": config.directories.state, "cache": config.directories.cache, "logs": config.directories.logs,
        }  # fmt: skip
        self._devices = devices
        self._socket = config.containers.socket
        self._host = host.inventory()
        self._surveying: asyncio.Task[Inventory] | None = None
        self._looked_at = -CONTAINERS_FRESH  # at container engines, monotonic seconds
        self.memory = self._host.memory

    def sample_memory(self) -> None:
        self.memory = host.memory()

    async def survey(self) -> None:
        """Look anew at what changes seldom: disks, container engines, settings of the system. What hangs is asked by
        one thread, and no second one is started while it does."""
        if self._surveying is None:
            self._surveying = asyncio.create_task(asyncio.to_thread(self._survey))
        done, _ = await asyncio.wait([self._surveying], timeout=SURVEY_DEADLINE)
        if not done:
            log.warning("the survey of disks and container engines does not end", seconds=SURVEY_DEADLINE)
            return
        self._surveying = None
        self._host, self._looked_at = done.pop().result(), clock.now()

    def _survey(self) -> Inventory:
        return replace(
            host.inventory(),
            disks=disks.disks(self._directories),
            containers=self._containers(),
            system=system.system(),
        )

    def _containers(self) -> tuple[ContainerRuntime, ...]:
        """The operator's choice is looked at first, as DOCKER_HOST would be."""
        chosen = {"DOCKER_HOST": f"unix://{self._socket}"} if self._socket is not None else {}
        return containers.containers(environ={**os.environ, **chosen})

    async def container_engines(self) -> tuple[ContainerRuntime, ...]:
        """As they are now, or were a moment ago and well; as they were last seen, where looking takes too long."""
        if clock.now() - self._looked_at < CONTAINERS_FRESH and well(self._host.containers):
            return self._host.containers
        try:
            found = await in_thread(self._containers, deadline=CONTAINERS_DEADLINE)
        except TimeoutError:
            return self._host.containers
        self._host, self._looked_at = replace(self._host, containers=found), clock.now()
        return found

    async def detected(self, deadline: float) -> bool:
        return await self._devices.feed.first(deadline)

    def inventory(self) -> Inventory:
        self.sample_memory()
        return self._devices.inventory(replace(self._host, memory=self.memory))

    def inventory_json(self) -> str:
        """For status: as it was last seen, without another look."""
        return json.dumps(asdict(self._devices.inventory(replace(self._host, memory=self.memory))))

    def unavailable(self, device: str) -> str:
        return self._devices.unavailable(device)


def well(found: Sequence[ContainerRuntime]) -> bool:
    """Whether there are container engines to talk to, and all of them answer. Beside them may be one that is installed
    and has no socket."""
    listening = [engine for engine in found if engine.socket]
    return bool(listening) and not any(engine.problem for engine in listening)
