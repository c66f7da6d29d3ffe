"""Everything before a launch that takes time: find the model, know it, plan, fetch and verify.

Effects around the pure planner: sources, profiles, the engines of this node.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agent.artifacts.base import ArtifactError, Fetched, SourcePolicy
from agent.artifacts.pulls import Pulls
from agent.engines import ENGINES
from agent.frozen import frozen
from agent.models.errors import ProfileError
from agent.runtimes.threads import in_thread
from agent.settings import NodeConfig
from agent.status import Diagnosis, DiagnosisCode, Progress

if TYPE_CHECKING:
    from agent.artifacts.images import ImagePulls
    from agent.engines.base import Located
    from agent.hardware.inventory import ContainerRuntime, Inventory
    from agent.hardware.simulated import Simulated
    from agent.models.profiles import Profiles
    from agent.planning.ledger import Measurement
    from agent.planning.plan import Image, Plan
    from agent.planning.request import Containers, DeviceState, PlanRequest
    from agent.spec import DeploymentSpec
    from agent.supervision.hub import Meaning
    from agent.supervision.models import Models

# What only plans and fetches need is imported where they are made: together it is a sixth of the daemon's start.
# ruff: noqa: PLC0415

#: Finding all engines' executables may run each one's `--version` once (10 s each at worst).
LOCATE_DEADLINE = 60.0

#: Seconds for an executable's list of options: llama-server needs a tenth, and those that need a minute tell later.
LEARN_WAIT = 1.0

#: A look at a model's file takes microseconds, and for ever where its disk is dead (seconds).
FILE_DEADLINE = 5.0

#: What says that a file is still the one that was planned for: size, modification time, inode.
_Fingerprint = tuple[int, int, int]


#: The first look at the devices takes a fraction of a second; one that hangs must not keep a CPU node from planning.
DETECTION_DEADLINE = 10.0


@frozen
class Held:
    """What others hold at the moment of planning. Host memory in bytes, and the devices by id."""

    reserved: int = 0  # budgets of all other deployments
    resident: int = 0  # how much of these is in use already
    released: int = 0  # what this deployment's own engine gives back before its replacement starts
    devices: Mapping[str, DeviceState] = field(default_factory=dict)


class Hardware(Protocol):
    """What planning asks of the node's hardware."""

    async def container_engines(self) -> tuple[ContainerRuntime, ...]:
        """As they are now, within a few seconds."""

    async def detected(self, deadline: float) -> bool:
        """Wait for the first look at the devices, at most `deadline` seconds; whether it was completed."""

    def inventory(self) -> Inventory:
        """The node as it is by now, a sample of its memory included."""

    def unavailable(self, device: str) -> str:
        """Why no plan may have the device now; "" if it may."""


@frozen
class Surroundings:
    """What plans are made within: a machine, and what is known of its engines."""

    inventory: Inventory
    located: Mapping[str, Located]
    held: Held
    measurements: tuple[Measurement, ...] = ()
    containers: Containers | None = None  # what runs images, if anything does


class PreparationError(Exception):
    """No launch is possible; `diagnosis` says why, and whether trying again can help."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.message)
        self.diagnosis = diagnosis


def only_whole(model: str) -> bool:
    """Whether what a model is, is not known before all of its file is here."""
    return model.startswith(("https:", "http:"))


class Preparation:
    """Plans and fetches for all deployments of a node."""

    def __init__(
        self, config: NodeConfig, hardware: Hardware, measurements: Callable[[], tuple[Measurement, ...]]
    ) -> None:
        self._config = config
        self._hardware = hardware
        self._measurements = measurements
        self._verified: dict[str, _Fingerprint] = {}
        self._located: Mapping[str, Located] = {}  # as the last plan was made with
        self.pulls = Pulls()
        self.last_used: Callable[[], str] = str  # the socket of the container engine by which instances ran so far
        self.warm: Callable[[str], Coroutine[Any, Any, None]] = _at_once  # make the container engine at a socket ready
        self._socket = ""  # of the one that plans are made for
        self._images: set[str] = set()  # by id: what this agent knows to be here
        self.settled: Callable[[str], Awaitable[None]] = _at_once  # nothing beside these files is being removed
        directories = config.policy.model_directories
        self._sources = SourcePolicy(
            schemes=frozenset(config.policy.model_sources),
            directories=None if directories is None else tuple(directories),
            cache=config.directories.cache,
            organisations=_lower(config.policy.model_organisations),
            pickle=config.policy.pickle,
            fetching=config.fetch,
            images=config.images,
            token=self._token,
            pulls=self.pulls,
        )

    @cached_property
    def _profiles(self) -> Profiles:
        from agent.models.profiles import Profiles

        return Profiles()

    @cached_property
    def _image_pulls(self) -> ImagePulls:
        from agent.artifacts.images import ImagePulls

        return ImagePulls()

    @property
    def socket(self) -> str:
        """Of the container engine that runs new instances; "" where there is none."""
        return self._socket or self.last_used()

    async def _containers(self) -> Containers | None:
        """Raises `PreparationError` where the operator's catalog of images cannot be used."""
        # One that is installed and does not run is the doctor's business: plans are those of a node without it.
        found = [engine for engine in await self._hardware.container_engines() if engine.socket]
        if not found:
            return None
        from agent.supervision import containers

        engine = containers.chosen(found, self.last_used())
        if engine is None:
            return None
        self._socket = engine.socket
        return await containers.supply(engine, self._config)

    @cached_property
    def models(self) -> Models:
        """What references and names mean."""
        from agent.supervision.models import Models

        variants = self._config.policy.model_variants
        return Models(self._config.catalog.models, self._profiles, self._sources, variants)

    async def plan(self, spec: DeploymentSpec, generation: int, held: Callable[[], Held]) -> Plan:
        """The plan for `spec` on this node. Nothing is awaited after `held`, so that the caller can make its own
        reservation before anybody else plans. Raises `PreparationError`."""
        from agent.planning.planner import plan
        from agent.planning.request import Refusal

        if only_whole(spec.model):
            await self.bring(spec.model, lambda _: None)
        answer = plan(await self.question(spec, generation, held))
        if isinstance(answer, Refusal):
            raise PreparationError(answer.diagnosis)
        return answer

    async def question(
        self,
        spec: DeploymentSpec,
        generation: int,
        held: Callable[[], Held],
        simulated: Simulated | None = None,
    ) -> PlanRequest:
        """All that the plan for `spec` depends on, on this node or on a described one. `held` (what deployments hold by
        now) is asked last. Raises `PreparationError`, and `InvalidArgument` for the operator's own catalog."""
        try:
            async with asyncio.TaskGroup() as group:  # engines tell their versions while the header is read
                looked = group.create_task(self._look(simulated))
                meaning = await self._meaning(spec)
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return self.request(spec, generation, meaning, looked.result()(held))

    async def surroundings(self, held: Callable[[], Held], simulated: Simulated | None = None) -> Surroundings:
        """As they are now; `held` is asked last. Raises `PreparationError`."""
        return (await self._look(simulated))(held)

    async def _look(self, simulated: Simulated | None) -> Callable[[Callable[[], Held]], Surroundings]:
        """What takes time of the surroundings; the rest is asked by the answer, which takes none."""
        if simulated is not None:
            from agent.planning.planner import assumed
            from agent.planning.request import DeviceState
            from agent.supervision import containers

            used = {id: DeviceState(used=used) for id, used in simulated.used.items()}
            pulled = await containers.assumed(self._config)
            described = Surroundings(simulated.inventory, assumed(ENGINES), Held(devices=used), containers=pulled)
            return lambda _: described
        located = await self._engines()
        images = await self._containers()
        await self._hardware.detected(DETECTION_DEADLINE)
        return lambda held: Surroundings(self._hardware.inventory(), located, held(), self._measurements(), images)

    def request(self, spec: DeploymentSpec, generation: int, meaning: Meaning, around: Surroundings) -> PlanRequest:
        from agent.planning.request import PlanRequest

        now = around.held
        return PlanRequest(
            spec=spec,
            generation=generation,
            options=meaning.options,
            left_out=meaning.left_out,
            inventory=around.inventory,
            policy=self._config.policy,
            engines=ENGINES,
            located=around.located,
            reserved_bytes=now.reserved,
            resident_bytes=now.resident,
            released_bytes=now.released,
            devices=now.devices,
            measurements=around.measurements,
            containers=around.containers,
        )

    async def _meaning(self, spec: DeploymentSpec) -> Meaning:
        """What the model's reference can mean."""
        from agent.artifacts import sources
        from agent.models import gateway
        from agent.planning.request import Option
        from agent.supervision.hub import Meaning

        scheme, _, rest = spec.model.partition(":")
        if scheme == gateway.SCHEME:
            return Meaning((Option(gateway.profile(rest), spec.model),))
        try:
            if scheme == "hf":
                return await self.models.options(rest)
            looked = await sources.look(spec.model, self._sources)
            if looked is not None:
                from agent.models.profiles import parsed

                return Meaning((Option(parsed(looked, spec.model), spec.model),))
            found = await sources.resolve(spec.model, self._sources)
            return Meaning((Option(await self._profiles.profile(found.path), spec.model, found.digest),))
        except (ArtifactError, ProfileError) as error:
            raise PreparationError(error.diagnosis) from error

    async def bring(self, reference: str, show: Callable[[Progress], None]) -> Fetched:
        """See that the files of exactly this reference are here and whole. Raises `PreparationError`."""
        from agent.artifacts import sources

        await self.settled(reference)
        try:
            return await sources.fetch(reference, self._sources, show)
        except ArtifactError as error:
            raise PreparationError(error.diagnosis) from error

    async def fetch(self, planned: Plan, show: Callable[[Progress], None]) -> Plan:
        """See that the plan's files and its image are here and whole; the plan comes back with their path and digest.

        Raises `PreparationError`."""
        if planned.image is None:
            asked = asyncio.create_task(self._flag_problem(planned))
            try:
                fetched = await self._weights(planned, show)
                problem = await asked
            finally:
                asked.cancel()
            if problem is not None:
                raise PreparationError(problem)
            return fetched
        from agent.supervision import containers

        together = containers.Together(show)
        bring = containers.bring(
            planned.image, self.socket, self._config.images, self._image_pulls, together.of("image")
        )
        warm = self.warm(self.socket)
        weights, image = await _all(self._weights(planned, together.of("weights")), bring, warm)
        path = weights.variant.path
        try:
            paths = await in_thread(lambda: containers.paths(path), deadline=containers.LOOK_DEADLINE)
        except (OSError, TimeoutError, ValueError) as error:
            diagnosis = Diagnosis(DiagnosisCode.MODEL_MISSING, f"{path} cannot be looked at", str(error))
            raise PreparationError(diagnosis) from error
        self._images.add(image.id)
        return replace(weights, image=replace(image, paths=paths))

    async def _flag_problem(self, planned: Plan) -> Diagnosis | None:
        """What of the plan's command the executable does not know. Asked while the files come: a minute's answer is not
        waited for, but serves the next plan, and is no objection to this one."""
        from agent.engines import executables
        from agent.planning import flags

        located = self._located.get(planned.engine)
        if located is None or located.argv != planned.binary:
            return None
        known = await asyncio.to_thread(executables.learn, located, LEARN_WAIT)
        return flags.problem(planned, ENGINES[planned.engine], replace(located, options=known))

    async def _weights(self, planned: Plan, show: Callable[[Progress], None]) -> Plan:
        if not planned.variant.path:  # a gateway, which has no files
            self._verified[""] = _fingerprint("")
            return planned
        fetched = await self.bring(planned.variant.source, show)
        path = str(fetched.path)
        if path != planned.variant.path:  # it came from elsewhere: no engine sees it before its header was read
            try:
                await self._profiles.profile(fetched.path)
            except ProfileError as error:
                raise PreparationError(error.diagnosis) from error
        self._verified[path] = await asyncio.to_thread(_fingerprint, path)
        return replace(planned, variant=replace(planned.variant, path=path, digest=fetched.digest))

    def _token(self) -> str:
        """The hub's token, as it is now; "" where none is named. Raises `PreparationError`."""
        from agent.spec import SecretRef
        from agent.supervision.secrets import resolve  # it needs this module's error

        file, variable = self._config.fetch.token_file, self._config.fetch.token_env
        if file is None:
            return os.environ.get(variable, "").strip()
        return resolve({"fetch.token_file": SecretRef(file=file)})["fetch.token_file"].strip()

    async def still_valid(self, planned: Plan) -> int | None:
        """The bytes to load, if `planned` may be launched again as it is: its file is the one that was verified by
        this agent, and its engine is still there. One stat each: this is on the way from a crash to its replacement."""
        path, image = planned.variant.path, planned.image

        def look() -> bool:
            here = os.access(planned.binary[0], os.X_OK) if image is None else image.id in self._images
            return here and self._verified.get(path) == _fingerprint(path)

        try:
            same = await in_thread(look, deadline=FILE_DEADLINE)
        except OSError:
            return None
        same = same and not any(map(self._hardware.unavailable, planned.devices))
        return planned.variant.bytes if same else None

    async def trust(self, planned: Plan, launched_at: float) -> None:
        """Take over, with an instance of an earlier agent, the verification that was made before its launch: valid
        while the file was not touched since (`launched_at`, Unix seconds)."""
        path = planned.variant.path
        if planned.image is not None and planned.image.id:
            self._images.add(planned.image.id)

        def look() -> _Fingerprint | None:
            return _fingerprint(path) if Path(path).stat().st_ctime < launched_at else None

        try:
            found = await in_thread(look, deadline=FILE_DEADLINE)
        except OSError:
            return  # gone meanwhile, or its disk is dead: planning will say so when it is needed
        if found is not None:
            self._verified.setdefault(path, found)

    def doubt(self, planned: Plan) -> None:
        """Its launch failed: whether its image is still here is asked before the next one."""
        if planned.image is not None:
            self._images.discard(planned.image.id)

    async def _engines(self) -> Mapping[str, Located]:
        try:
            async with asyncio.timeout(LOCATE_DEADLINE):
                self._located = await asyncio.to_thread(self._locate)
        except TimeoutError as error:
            raise PreparationError(
                Diagnosis(DiagnosisCode.LAUNCH_FAILED, "the engines' executables did not answer --version in time")
            ) from error
        return self._located

    def _locate(self) -> dict[str, Located]:
        from agent.engines import executables

        found = {}
        for name, engine in ENGINES.items():
            configured = self._config.engines.get(name)
            located = engine.locate(configured.binary if configured else None)
            if located is not None:
                found[name] = replace(located, options=executables.options(located))
        if len(found) == 1:  # whatever the plan will be, it is of this one: while the header is read it tells its flags
            executables.learn(next(iter(found.values())), 0)
        return found


async def _all(
    weights: Coroutine[Any, Any, Plan], image: Coroutine[Any, Any, Image], warm: Coroutine[Any, Any, None]
) -> tuple[Plan, Image]:
    """Side by side; the first that fails ends the other. Raises `PreparationError`."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = group.create_task(weights), group.create_task(image)
            group.create_task(warm)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return tasks[0].result(), tasks[1].result()


def _lower(names: tuple[str, ...] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(name.lower() for name in names)


async def _at_once(reference: str) -> None:
    """Nothing is being removed."""
    del reference


def _fingerprint(path: str) -> _Fingerprint:
    if not path:
        return (0, 0, 0)
    status = Path(path).stat()
    return (status.st_size, status.st_mtime_ns, status.st_ino)
