"""Everything before a launch that takes time: find the model, know it, plan, fetch and verify.

Effects around the pure planner: sources, profiles, the engines of this node.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agent.artifacts import sources
from agent.artifacts.base import ArtifactError, SourcePolicy
from agent.engines import ENGINES
from agent.engines.base import Located
from agent.hardware.inventory import Inventory
from agent.models.profiles import ProfileError, Profiles
from agent.planning.ledger import Measurement
from agent.planning.plan import Plan
from agent.planning.planner import assumed, plan
from agent.planning.request import DeviceState, Option, PlanRequest, Refusal
from agent.settings import NodeConfig
from agent.spec import DeploymentSpec
from agent.status import Diagnosis, DiagnosisCode, Progress

if TYPE_CHECKING:
    from agent.hardware.simulated import Simulated

#: Finding all engines' executables may run each one's `--version` once (10 s each at worst).
LOCATE_DEADLINE = 60.0

#: What says that a file is still the one that was planned for: size, modification time, inode.
_Fingerprint = tuple[int, int, int]


#: The first look at the devices takes a fraction of a second; one that hangs must not keep a CPU node from planning.
DETECTION_DEADLINE = 10.0


@dataclass(frozen=True, slots=True)
class Held:
    """What others hold at the moment of planning. Host memory in bytes, and the devices by id."""

    reserved: int = 0  # budgets of all other deployments
    resident: int = 0  # how much of these is in use already
    released: int = 0  # what this deployment's own engine gives back before its replacement starts
    devices: Mapping[str, DeviceState] = field(default_factory=dict)


class Hardware(Protocol):
    """What planning asks of the node's hardware."""

    async def detected(self, deadline: float) -> bool:
        """Wait for the first look at the devices, at most `deadline` seconds; whether it was completed."""

    def inventory(self) -> Inventory:
        """The node as it is by now, a sample of its memory included."""

    def unavailable(self, device: str) -> str:
        """Why no plan may have the device now; "" if it may."""


class PreparationError(Exception):
    """No launch is possible; `diagnosis` says why, and whether trying again can help."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.message)
        self.diagnosis = diagnosis


class Preparation:
    """Plans and fetches for all deployments of a node."""

    def __init__(
        self, config: NodeConfig, hardware: Hardware, measurements: Callable[[], tuple[Measurement, ...]]
    ) -> None:
        self._config = config
        self._hardware = hardware
        self._measurements = measurements
        self._profiles = Profiles()
        self._verified: dict[str, _Fingerprint] = {}
        directories = config.policy.model_directories
        self._sources = SourcePolicy(
            schemes=frozenset(config.policy.model_sources),
            directories=None if directories is None else tuple(directories),
            cache=config.directories.cache,
        )

    async def plan(
        self,
        spec: DeploymentSpec,
        generation: int,
        held: Callable[[], Held],
        simulated: Simulated | None = None,
    ) -> Plan:
        """The plan for `spec`, on this node or on a described one. `held` (what deployments hold by now) is asked last,
        and nothing is awaited after it, so that the caller can make its own reservation before anybody else plans.
        Raises `PreparationError`."""
        try:
            found = await sources.resolve(spec.model, self._sources)
            profile = await self._profiles.profile(found.path)
        except (ArtifactError, ProfileError) as error:
            raise PreparationError(error.diagnosis) from error
        if simulated is None:
            located = await self._engines()
            await self._hardware.detected(DETECTION_DEADLINE)
            inventory, now = self._hardware.inventory(), held()
        else:
            located, inventory = assumed(ENGINES), simulated.inventory
            now = Held(devices={id: DeviceState(used=used) for id, used in simulated.used.items()})
        answer = plan(
            PlanRequest(
                spec=spec,
                generation=generation,
                options=(Option(profile, spec.model, found.digest),),
                inventory=inventory,
                policy=self._config.policy,
                engines=ENGINES,
                located=located,
                reserved_bytes=now.reserved,
                resident_bytes=now.resident,
                released_bytes=now.released,
                devices=now.devices,
                measurements=self._measurements() if simulated is None else (),
            )
        )
        if isinstance(answer, Refusal):
            raise PreparationError(answer.diagnosis)
        return answer

    async def fetch(self, planned: Plan, show: Callable[[Progress], None]) -> Plan:
        """See that the plan's files are here and whole; the plan comes back with their digest.

        Raises `PreparationError`."""
        try:
            fetched = await sources.fetch(planned.variant.source, self._sources, show)
        except ArtifactError as error:
            raise PreparationError(error.diagnosis) from error
        self._verified[planned.variant.path] = _fingerprint(planned.variant.path)
        return replace(planned, variant=replace(planned.variant, digest=fetched.digest))

    def still_valid(self, planned: Plan) -> int | None:
        """The bytes to load, if `planned` may be launched again as it is: its file is the one that was verified by
        this agent, and its engine is still there. One stat each: this is on the way from a crash to its replacement."""
        path = planned.variant.path
        try:
            same = self._verified.get(path) == _fingerprint(path) and os.access(planned.binary[0], os.X_OK)
        except OSError:
            return None
        same = same and not any(map(self._hardware.unavailable, planned.devices))
        return planned.variant.bytes if same else None

    def trust(self, planned: Plan, launched_at: float) -> None:
        """Take over, with an instance of an earlier agent, the verification that was made before its launch: valid
        while the file was not touched since (`launched_at`, Unix seconds)."""
        path = planned.variant.path
        try:
            if Path(path).stat().st_ctime < launched_at:
                self._verified.setdefault(path, _fingerprint(path))
        except OSError:
            return  # gone meanwhile: planning will say so when it is needed

    async def _engines(self) -> dict[str, Located]:
        try:
            async with asyncio.timeout(LOCATE_DEADLINE):
                return await asyncio.to_thread(self._locate)
        except TimeoutError as error:
            raise PreparationError(
                Diagnosis(DiagnosisCode.LAUNCH_FAILED, "the engines' executables did not answer --version in time")
            ) from error

    def _locate(self) -> dict[str, Located]:
        found = {}
        for name, engine in ENGINES.items():
            configured = self._config.engines.get(name)
            located = engine.locate(configured.binary if configured else None)
            if located is not None:
                found[name] = located
        return found


def _fingerprint(path: str) -> _Fingerprint:
    status = Path(path).stat()
    return (status.st_size, status.st_mtime_ns, status.st_ino)
