"""Everything before a launch that takes time: find the model, know it, plan, fetch and verify.

Effects around the pure planner: sources, profiles, the engines of this node.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from agent.artifacts import sources
from agent.artifacts.base import ArtifactError, SourcePolicy
from agent.engines import ENGINES
from agent.engines.base import Located
from agent.hardware import host
from agent.hardware.inventory import Inventory
from agent.models.profiles import ProfileError, Profiles
from agent.planning.plan import Plan
from agent.planning.planner import plan
from agent.planning.request import PlanRequest, Refusal
from agent.settings import NodeConfig
from agent.spec import DeploymentSpec
from agent.status import Diagnosis, DiagnosisCode, Progress

#: Finding all engines' executables may run each one's `--version` once (10 s each at worst).
LOCATE_DEADLINE = 60.0

#: What says that a file is still the one that was planned for: size, modification time, inode.
_Fingerprint = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Held:
    """Host memory in bytes, at the moment of planning."""

    reserved: int  # budgets of all other deployments
    resident: int  # how much of these is in use already
    released: int  # what this deployment's own engine gives back before its replacement starts


class PreparationError(Exception):
    """No launch is possible; `diagnosis` says why, and whether trying again can help."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.message)
        self.diagnosis = diagnosis


class Preparation:
    """Plans and fetches for all deployments of a node."""

    def __init__(self, config: NodeConfig, inventory: Inventory) -> None:
        self._config = config
        self._inventory = inventory
        self._profiles = Profiles()
        self._verified: dict[str, _Fingerprint] = {}
        directories = config.policy.model_directories
        self._sources = SourcePolicy(
            schemes=frozenset(config.policy.model_sources),
            directories=None if directories is None else tuple(directories),
            cache=config.directories.cache,
        )

    async def plan(self, spec: DeploymentSpec, generation: int, held: Callable[[], Held]) -> Plan:
        """The plan for `spec`. `held` (what deployments hold by now) is asked last, and nothing is awaited after it,
        so that the caller can make its own reservation before anybody else plans. Raises `PreparationError`."""
        try:
            found = await sources.resolve(spec.model, self._sources)
            profile = await self._profiles.profile(found.path)
        except (ArtifactError, ProfileError) as error:
            raise PreparationError(error.diagnosis) from error
        located = await self._engines()
        now = held()
        answer = plan(
            PlanRequest(
                spec=spec,
                generation=generation,
                profile=profile,
                inventory=replace(self._inventory, memory=host.memory()),
                policy=self._config.policy,
                engines=ENGINES,
                located=located,
                digest=found.digest,
                reserved_bytes=now.reserved,
                resident_bytes=now.resident,
                released_bytes=now.released,
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
