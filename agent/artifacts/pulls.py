"""The pulls under way: one child process for each model that is wanted, shared by all who want it.

A child is replaceable: what it brought is on the disk, and the next one takes it up. So it is killed when nobody waits
any more, started again when something else killed it, and replaced when it says nothing for too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from agent.artifacts.errors import ArtifactError, corrupt, not_started, refused, unavailable
from agent.artifacts.job import Job
from agent.frozen import frozen
from agent.status import DiagnosisCode, Progress

#: Children that end without an answer, in a row and without a byte more, until the pull ends with them.
TRIES = 4
#: Seconds beyond its own deadline that a child may say nothing, while it starts or stands still with the machine.
GRACE = 30.0
#: Seconds in which a model's headers are read: less than a call of the API may take (`agent.api.calls`).
LOOK_DEADLINE = 20.0
_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
#: Seconds that a killed child has to be gone; one that hangs in a dead disk is left to the kernel.
_KILL_DEADLINE = 5.0
_ROOT = str(Path(__file__).parent.parent.parent)
#: What of the environment says how strangers are reached: proxies, and whose certificates are trusted.
_NETWORK = (
    "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip

#: What else of it a source's own library reads, by kind: who asks, above all. Beginnings of names.
_OWN = {"s3": ("AWS_", "HOME"), "gs": ("GOOGLE_", "CLOUDSDK_", "GCE_METADATA_", "NO_GCE_CHECK", "HOME")}

Show = Callable[[Progress], None]
#: Makes so many bytes free on the cache's disk; False where it removed nothing.
MakeRoom = Callable[[int], Awaitable[bool]]


@frozen
class Pulled:
    """What a child brought."""

    path: Path
    digest: str
    bytes: int


class Pulls:
    """All pulls of a node. For use in one event loop."""

    def __init__(self) -> None:
        self._under_way: dict[tuple[str, ...], _Pull] = {}
        self.make_room: MakeRoom = _no_room

    @property
    def jobs(self) -> tuple[Job, ...]:
        """What is being fetched at the moment."""
        return tuple(pull.job for pull in self._under_way.values())

    async def look(self, job: Job) -> dict[str, Any]:
        """A model's profile as data, from headers at its source. Raises `ArtifactError`."""
        process = await _started("agent.artifacts.looking", job, OPENBLAS_NUM_THREADS="1")
        try:
            async with asyncio.timeout(LOOK_DEADLINE):
                output, _ = await process.communicate(replace(job, stall_seconds=min(job.stall_seconds, 10.0)).encode())
            answer: dict[str, Any] = json.loads(output)
        except TimeoutError:
            raise unavailable(f"{job.source} could not be read within {LOOK_DEADLINE:g} s") from None
        except ValueError:  # killed by its own limits, or by the kernel
            raise corrupt(f"{job.source} cannot be read: the parser gave up on it") from None
        finally:
            await _end(process)
        if "failed" in answer:
            raise _failed(answer["failed"])
        profile: dict[str, Any] = answer["profile"]
        return profile

    async def fetch(self, job: Job, show: Show) -> Pulled:
        """Joins the pull of the same files, where there is one. Raises `ArtifactError`."""
        files = (job.cache, job.kind, job.repo, job.revision, job.variant, job.url, job.sha256)
        pull = self._under_way.get(files)
        if pull is None or pull.task.done():
            pull = self._under_way[files] = _Pull(job, self.make_room)
            pull.task.add_done_callback(partial(self._ended, files, pull))
            self._share()
        pull.watchers.append(show)
        try:
            return await asyncio.shield(pull.task)
        finally:
            pull.watchers.remove(show)
            if not pull.watchers and not pull.task.done():
                pull.task.cancel()
                # The next pull of these files must not meet this one's child.
                await asyncio.gather(pull.task, return_exceptions=True)

    def _ended(self, files: tuple[str, ...], pull: _Pull, _: object) -> None:
        if self._under_way.get(files) is pull:
            del self._under_way[files]
        if not pull.task.cancelled():
            pull.task.exception()  # retrieved: whoever waited has it
        self._share()

    def _share(self) -> None:
        """The bandwidth is the node's: each pull gets its part of it."""
        for pull in self._under_way.values():
            if pull.job.bytes_per_second:
                pull.limit(max(1, pull.job.bytes_per_second // len(self._under_way)))


class _Pull:
    def __init__(self, job: Job, make_room: MakeRoom) -> None:
        self.job = job
        self._make_room = make_room
        self.watchers: list[Show] = []
        self._rate = job.bytes_per_second
        self._done = -1  # bytes that were here at the last report
        self._input: asyncio.StreamWriter | None = None
        self.task = asyncio.get_running_loop().create_task(self._run())

    def limit(self, rate: int) -> None:
        self._rate = rate
        if self._input is not None and not self._input.is_closing():
            self._input.write(json.dumps({"bytes_per_second": rate}).encode() + b"\n")

    async def _run(self) -> Pulled:
        failures, pause = 0, _PAUSE
        while True:
            before = self._done
            answer, end = await self._child()
            if answer is not None and answer.get("lacking") and await self._make_room(answer["lacking"]):
                continue  # something went for this: at last there is nothing left to go
            if answer is not None:
                return _told(answer)
            failures, pause = (failures + 1, pause * 2) if self._done <= before else (0, _PAUSE)
            if failures >= TRIES:
                message = f"{self.job.source} could not be fetched: the fetching process {end}, {failures} times"
                raise refused(DiagnosisCode.LAUNCH_FAILED, message, "the kernel's log may say who killed it")
            await asyncio.sleep(min(pause, _LONGEST_PAUSE))

    async def _child(self) -> tuple[dict[str, Any] | None, str]:
        """One child's answer, or how it ended without one. It is gone when this returns or raises."""
        process = await _started("agent.artifacts.fetcher", self.job)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            self._input = process.stdin
            self._input.write(replace(self.job, parent=os.getpid(), bytes_per_second=self._rate).encode())
            return await self._listen(process.stdout), f"ended with status {await process.wait()}"
        except TimeoutError:
            return None, "fell silent"
        finally:
            self._input = None
            await _end(process)

    async def _listen(self, output: asyncio.StreamReader) -> dict[str, Any] | None:
        """Pass progress on. Returns the answer; None at the end without one. Raises `TimeoutError`."""
        while True:
            async with asyncio.timeout(GRACE + self.job.stall_seconds):
                line = await output.readline()
            if not line:
                return None
            try:
                message: dict[str, Any] = json.loads(line)
            except ValueError:
                return None  # it was killed in the middle of a line
            if "progress" not in message:
                return message
            step, done, total = message["progress"]
            self._done = max(self._done, done)
            for show in tuple(self.watchers):
                show(Progress(step, done, total))


async def _started(module: str, job: Job, **variables: str) -> asyncio.subprocess.Process:
    """Raises `ArtifactError`."""
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", module,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, cwd="/",
            env=_environment(job) | variables,
        )  # fmt: skip
    except OSError as error:
        raise not_started(f"{job.source}: the process that asks for it", error) from None


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _KILL_DEADLINE)


async def _no_room(lacking: int) -> bool:
    """Nothing is removed."""
    del lacking
    return False


def _told(answer: dict[str, Any]) -> Pulled:
    if (failed := answer.get("failed")) is not None:
        raise _failed(failed)
    fetched = answer["fetched"]
    return Pulled(Path(fetched["path"]), fetched["digest"], fetched["bytes"])


def _failed(told: dict[str, Any]) -> ArtifactError:
    return refused(DiagnosisCode(told["code"]), told["message"], told["hint"], told["evidence"])


def _environment(job: Job) -> dict[str, str]:
    """Nothing of the daemon's own but how strangers are reached; and the hub's client asks nobody else for anything."""
    network = {name: value for name in _NETWORK if (value := os.environ.get(name))}
    own = {name: value for name, value in os.environ.items() if name.startswith(_OWN.get(job.kind, ()))}
    return {"HOME": "/nonexistent"} | network | own | {
        "PYTHONPATH": _ROOT, "PATH": os.defpath, "HF_HOME": f"{job.cache}/client",
        "HF_ENDPOINT": job.endpoint, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "MALLOC_ARENA_MAX": "2",
    }  # fmt: skip
