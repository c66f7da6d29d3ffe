"""Engine images, pulled once, whole and verified, by the node's container engine.

One child process (`agent.artifacts.image_puller`) for each image that is wanted, shared by all who want it. A child
that hears nothing for too long is killed, and another one starts: the container engine keeps the layers that are whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from agent.artifacts.errors import ArtifactError, not_started, refused
from agent.artifacts.image_engine import ask
from agent.artifacts.image_job import ImageJob, Stage
from agent.frozen import frozen
from agent.references import ImageReference, allowed
from agent.settings import ImagesConfig
from agent.status import Diagnosis, DiagnosisCode, Progress

__all__ = ["ImagePolicy", "ImagePulls", "PulledImage", "pull"]

#: Seconds beyond its deadline that a child may take to start, and that a container engine may take for a ping.
_GRACE, _PING = 5.0, 5.0
#: Seconds between two tries.
_LONGEST_PAUSE = 60.0
#: Seconds that a killed child has to be gone.
_KILL_DEADLINE = 5.0
#: Bytes of an answer line; an error of an engine repeats what a registry said.
_MOST_LINE = 256 * 1024
_ROOT = str(Path(__file__).parent.parent.parent)
#: What of the environment a credential helper needs.
_KEPT = ("PATH", "HOME", "LANG")
#: What trying again may mend; the last one is a child that somebody killed.
_TRANSIENT = frozenset(
    {DiagnosisCode.SOURCE_UNAVAILABLE, DiagnosisCode.RUNTIME_UNAVAILABLE, DiagnosisCode.LAUNCH_FAILED}
)

Show = Callable[[Progress], None]


@frozen
class PulledImage:
    """An image that is on this node. A container is made from `id`: that names this content, whatever a tag becomes."""

    reference: str  # by which it was pulled, mirror applied
    digest: str  # in its registry; "" for one that was loaded here and came from none
    id: str
    bytes: int  # unpacked
    present: bool  # it was here before


@frozen
class ImagePolicy:
    """What the node allows, and the container engine that pulls."""

    socket: Path
    config: ImagesConfig = field(default_factory=ImagesConfig)
    pulls: ImagePulls = field(default_factory=lambda: ImagePulls())  # noqa: PLW0108 - defined below


async def pull(image: ImageReference, policy: ImagePolicy, progress: Show) -> PulledImage:
    """The image on this node; `progress` is called in the event loop. Raises `ArtifactError`.

    Several who want one image share one pull. It ends when nobody waits for it any more.
    """
    job = _job(image, policy)
    return await _present(job) or await policy.pulls.fetch(job, policy.config, progress)


def _job(image: ImageReference, policy: ImagePolicy) -> ImageJob:
    """What is to be pulled, as the policy has it. Raises `ArtifactError` where it refuses."""
    config = policy.config
    if not allowed(image.repository, config.repositories):
        listed = ", ".join(config.repositories or ()) or "none"
        message = f"the node policy does not allow images of {image.repository}"
        raise refused(DiagnosisCode.POLICY_DENIED, message, f"images.repositories allows: {listed}")
    if config.require_digest and not image.digest:
        message = f"{image} is not pinned to a digest, which images.require_digest asks for"
        hint = "give its digest in catalog/engines.yaml of the configuration directory"
        raise refused(DiagnosisCode.POLICY_DENIED, message, hint)
    return ImageJob(
        socket=str(policy.socket),
        repository=mirrored(image.repository, config.mirrors),
        tag=image.tag,
        digest=image.digest,
        architecture=image.architecture,
        expected=image.bytes,
        credentials=str(config.credentials or ""),
        offline=config.offline,
        answer_seconds=config.answer_seconds,
        reserve_bytes=config.disk_reserve_bytes,
    )


async def _present(job: ImageJob) -> PulledImage | None:
    """The image, if it is plainly here: then no process is started to look. None for whatever needs a closer look."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        found: dict[str, Any] = json.loads(await ask(job.socket, f"/images/{job.pinned}/json", _PING))
        if job.architecture in {"", found.get("Architecture")}:
            names = (str(name).partition("@") for name in found.get("RepoDigests") or ())
            digest = job.digest or next((digest for name, _, digest in names if name == job.repository), "")
            return PulledImage(job.name, digest, str(found["Id"]), int(found.get("Size") or 0), present=True)
    return None


def mirrored(repository: str, mirrors: Mapping[str, str]) -> str:
    """The repository at its registry's mirror; below that of "*" it keeps the registry's name."""
    registry, _, path = repository.partition("/")
    if registry in mirrors:
        return f"{mirrors[registry]}/{path}"
    return f"{mirrors['*']}/{repository}" if "*" in mirrors else repository


class ImagePulls:
    """All pulls of images on a node. For use in one event loop."""

    def __init__(self) -> None:
        self._under_way: dict[ImageJob, _Pull] = {}

    async def fetch(self, job: ImageJob, config: ImagesConfig, show: Show) -> PulledImage:
        """Joins the pull of the same image, where there is one. Raises `ArtifactError`."""
        shared = self._under_way.get(job)
        if shared is None or shared.task.done():
            shared = self._under_way[job] = _Pull(job, config)
        shared.watchers.append(show)
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.watchers.remove(show)
            if not shared.watchers:
                if self._under_way.get(job) is shared:
                    del self._under_way[job]
                shared.task.cancel()
                await asyncio.gather(shared.task, return_exceptions=True)


class _Pull:
    def __init__(self, job: ImageJob, config: ImagesConfig) -> None:
        self.job = job
        self.watchers: list[Show] = []
        self._config = config
        self._moved = False  # this try brought bytes
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> PulledImage:
        tries, damaged = 0, 0
        while True:
            self._moved = False
            try:
                return await self._try()
            except ArtifactError as error:
                tries = 1 if self._moved else tries + 1
                code = error.diagnosis.code
                damaged += code == DiagnosisCode.IMAGE_CORRUPT
                # A transfer that was damaged once may come whole the next time; twice is no accident.
                may_help = code in _TRANSIENT or (code == DiagnosisCode.IMAGE_CORRUPT and damaged == 1)
                if not may_help or tries >= self._config.tries:
                    raise
                pause = min(self._config.retry_seconds * 2 ** (tries - 1), _LONGEST_PAUSE)
                self._show(Progress(f"waiting {pause:.0f} s to try again: {error.diagnosis.message}"))
                await asyncio.sleep(pause * random.uniform(0.75, 1.25))

    async def _try(self) -> PulledImage:
        """One child, gone when this returns or raises. Raises `ArtifactError`."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "agent.artifacts.image_puller",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd="/",
                env={"PYTHONPATH": _ROOT} | {name: os.environ[name] for name in _KEPT if name in os.environ},
                limit=_MOST_LINE, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise not_started(f"{self.job.pinned} cannot be pulled: the process that does", error) from None
        try:
            assert process.stdin is not None
            process.stdin.write(self.job.encode())
            return _answered(self.job, await self._listen(process))
        finally:
            await _end(process)

    async def _listen(self, process: asyncio.subprocess.Process) -> Mapping[str, Any]:
        """Pass progress on. Returns the answer."""
        assert process.stdout is not None
        stage, clock = Stage.ENGINE, asyncio.get_running_loop()
        until = clock.time() + self._patience(stage)
        while True:
            try:
                async with asyncio.timeout_at(until):
                    line = await process.stdout.readline()
                message: dict[str, Any] = json.loads(line) if line else {}
            except TimeoutError:
                raise ArtifactError(await self._silent(stage)) from None
            except ValueError:  # killed in the middle of a line, or no line of ours
                message = {}
            if not message:
                raise await _died(process, self.job)
            if "stage" in message:
                stage = Stage(message["stage"])
            elif "progress" in message:
                self._moved = True
                self._show(Progress(*message["progress"]))
            else:
                return message
            until = clock.time() + self._patience(stage)

    def _show(self, progress: Progress) -> None:
        for show in tuple(self.watchers):
            show(progress)

    def _patience(self, stage: Stage) -> float:
        return self._config.stall_seconds if stage == Stage.PULL else self._config.answer_seconds + _GRACE

    async def _silent(self, stage: Stage) -> Diagnosis:
        """Whose fault it is that nothing came: the container engine's, if it does not even answer a ping."""
        waited = f"{self._patience(stage):g} s"
        if not await _answers(self.job.socket):
            return Diagnosis(
                DiagnosisCode.RUNTIME_UNAVAILABLE,
                f"{self.job.pinned} cannot be pulled: the container engine at {self.job.socket} does not answer "
                f"(nothing came for {waited})",
                hint="it hangs: `systemctl restart docker`; containers go on meanwhile where live-restore is set",
            )
        if stage == Stage.ENGINE:
            message = f"the container engine at {self.job.socket} does not answer questions about images ({waited})"
            return Diagnosis(DiagnosisCode.RUNTIME_UNAVAILABLE, message, hint="its disk may hang: see the kernel's log")
        return Diagnosis(
            DiagnosisCode.SOURCE_UNAVAILABLE,
            f"{self.job.pinned} cannot be pulled: nothing came from the registry for {waited}",
            hint="check that the container engine reaches it; or use a mirror (images.mirrors)",
        )


def _answered(job: ImageJob, message: Mapping[str, Any]) -> PulledImage:
    if (failed := message.get("failed")) is not None:
        code = DiagnosisCode(failed["code"])
        raise ArtifactError(Diagnosis(code, failed["message"], failed["evidence"], failed["hint"]))
    return PulledImage(job.name, **message["pulled"])


async def _died(process: asyncio.subprocess.Process, job: ImageJob) -> ArtifactError:
    """It ended without an answer."""
    assert process.stderr is not None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PING):
            words = (await process.stderr.read(_MOST_LINE)).decode(errors="replace").strip().splitlines()
            status = await process.wait()
            last = words[-1][:500] if words else ""
            if last.startswith("ModuleNotFoundError") and "docker" in last:
                hint = "pip install 'llm-node-agent[docker]'"
                return refused(DiagnosisCode.BINARY_MISSING, "images need the Docker SDK, which is not installed", hint)
            message = f"{job.pinned} cannot be pulled: the pulling process ended with status {status}"
            return refused(DiagnosisCode.LAUNCH_FAILED, message, "the kernel's log may say who killed it", last)
    message = f"{job.pinned} cannot be pulled: the pulling process fell silent"
    return refused(DiagnosisCode.LAUNCH_FAILED, message)


async def _end(process: asyncio.subprocess.Process) -> None:
    """With all that it started (credential helpers)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _KILL_DEADLINE)


async def _answers(socket: str) -> bool:
    """Whether a container engine listens there and answers a ping."""
    try:
        await ask(socket, "/_ping", _PING)
    except (OSError, ValueError):
        return False
    return True
