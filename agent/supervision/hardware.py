"""The node's hardware as planning and status see it: the host, surveyed now and then, with the devices as they are."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace
from pathlib import Path

import structlog

from agent.hardware import containers, disks, host, system
from agent.hardware.inventory import Inventory
from agent.settings import NodeConfig
from agent.supervision.devices import Devices

log = structlog.get_logger(__name__)

#: A survey asks container engines and file systems, either of which may not answer (seconds).
SURVEY_DEADLINE = 10.0


class Hardware:
    """Implements `preparation.Hardware`. `memory` is the last sample of the host's memory."""

    def __init__(self, config: NodeConfig, devices: Devices) -> None:
        self._directories: dict[str, Path] = {
            "state": config.directories.state, "cache": config.directories.cache, "logs": config.directories.logs,
        }  # fmt: skip
        self._devices = devices
        self._host = host.inventory()
        self._surveying: asyncio.Task[Inventory] | None = None
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
        self._host = done.pop().result()

    def _survey(self) -> Inventory:
        return replace(
            host.inventory(),
            disks=disks.disks(self._directories),
            containers=containers.containers(),
            system=system.system(),
        )

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
