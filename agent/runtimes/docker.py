"""The `docker` runtime: engines in containers, through dockerd or podman's compatible API.

The container engine keeps a container whatever becomes of the agent; labels say whose it is, a hash says how it was
made. What the engine answers is taken for true; that it does not answer proves nothing, so that an instance is then
neither over nor free to be replaced. What the host's kernel shows of a container's processes needs no engine: so they
are measured and killed even while that hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from agent.runtimes import cgroups, docker_config, docker_log, docker_processes, docker_state, sampling
from agent.runtimes.base import (
    AGAIN,
    Adopted,
    Container,
    Ended,
    Handle,
    Identity,
    LaunchError,
    LaunchRequest,
    Usage,
)
from agent.runtimes.docker_engine import ACT_SECONDS, ASK_SECONDS, Engine, Refused, Silent
from agent.runtimes.docker_making import Maker, Severed
from agent.runtimes.docker_processes import Box
from agent.runtimes.docker_state import Found
from agent.runtimes.docker_watch import Tell, Watch
from agent.runtimes.instance import exit_status
from agent.runtimes.threads import in_thread
from agent.status import ExitStatus

NAME = "docker"

#: Reading smaps of all processes of an engine.
SCAN_DEADLINE_SECONDS = 5.0
#: How long the engine has to say how a container ended whose processes are seen to be gone.
STATUS_SECONDS = 10.0
#: Between two questions meanwhile.
_STATUS_PAUSE = 0.01

_T = TypeVar("_T")


class DockerRuntime:
    """Runs instances in containers of one engine. Methods raise `TimeoutError` where it does not answer, and `OSError`
    where it refuses."""

    name = NAME

    def __init__(self, node_uid: str, socket: str, tell: Tell) -> None:
        """`socket` is the engine's, a path. `tell(status, reason, message)` is called in the event loop with what is
        known of the engine, for the condition "ContainerEngine". Costs nothing before the first call."""
        self._node = node_uid
        self._engine = Engine(socket)
        self._watch = Watch(self._engine, node_uid, tell)
        self._maker = Maker(self._engine)
        self._exits: dict[str, ExitStatus] = {}  # by container id
        self._remarks: dict[str, tuple[str, ...]] = {}
        self._seen: dict[str, Found] = {}  # by container id: the last answer about it
        self._main: dict[str, int] = {}  # by container id: the engine's pid
        self._instances: dict[str, str] = {}  # by container id: whose it is by now, which its labels may not say

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for the end of an instance."""
        return self._watch.awaited

    def close(self) -> None:
        """End what was opened; containers go on."""
        self._watch.close()
        self._engine.close()

    async def launch(self, request: LaunchRequest, record: Callable[[], Coroutine[Any, Any, None]]) -> Handle:
        """See `Runtime.launch`. A container is made while the record is and its port becomes free, and started after
        these. That of the run before is started again if it was asked for, and is what would be made now."""
        container = request.container
        if container is None:
            raise LaunchError("the docker runtime needs an image to make a container of")
        for folder in (request.directory, request.log.parent):
            os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103 - half the time of Path.mkdir
        recorded = asyncio.create_task(record())
        id = ""
        try:
            try:
                id = await self._again(request, container) or await self._made(request, container)
            except asyncio.CancelledError:
                recorded.cancel()
                raise
            finally:
                await recorded
            try:
                found = await self._run(lambda: self._maker.start(id, container))
            except Severed:
                await self._drop(id)
                id = ""  # what is made now has only its name, until the engine says more
                id = await self._made(request, container)
                found = await self._run(lambda: self._maker.start(id, container))
        except Silent as silent:
            await self._drop(id or request.identity.instance)
            raise LaunchError(f"the container engine does not answer: {silent}") from silent
        except Exception:
            await self._drop(id)
            raise
        self._seen[id] = found
        return Handle(NAME, docker_state.box(found, str(request.directory)).data())

    async def _made(self, request: LaunchRequest, container: Container) -> str:
        """The id of a new container, whose port is free."""
        freed = asyncio.create_task(self._run(lambda: self._maker.free(request, container)))
        id = ""
        try:
            id = await self._run(lambda: self._maker.create(request, container))
            await freed
        except Exception:
            await self._drop(id)
            raise
        finally:
            freed.cancel()
            await asyncio.gather(freed, return_exceptions=True)
        return id

    async def _again(self, request: LaunchRequest, container: Container) -> str:
        """The id of the container of the run before, if that can be started again; else ""."""
        if request.again is None:
            return ""
        box = Box.from_data(request.again.data)
        found = self._seen.get(box.id)
        if found is None or docker_state.running(found) or docker_state.remarks(found, box):
            return ""
        wanted = await self._run(lambda: self._maker.config(request, container))
        if wanted["Labels"][docker_config.CONFIG] != box.config:
            return ""
        self._instances[box.id] = request.identity.instance
        self._forget_run(box.id)
        await asyncio.to_thread(docker_log.go_on, Path(box.directory), request.directory)
        return box.id

    async def adopt(self, identity: Identity, handle: Handle | None, directory: Path) -> Adopted | Ended | None:
        """See `Runtime.adopt`. While the engine does not answer, what is recorded counts as running: it is not known,
        and `wait_exit` goes on asking."""
        with contextlib.suppress(ValueError):
            if handle is not None:
                box = Box.from_data(handle.data)
                self._instances[box.id] = identity.instance
                if handle.data.get(AGAIN):
                    return await self._adopt_again(identity, box, str(directory))
                return await self._adopt_recorded(identity, box)
        return await self._adopt_unrecorded(identity, str(directory))

    async def _adopt_recorded(self, identity: Identity, box: Box) -> Adopted | Ended | None:
        recorded = Adopted(Handle(NAME, box.data()))
        try:
            found = await self._inspect(box.id)
        except (Silent, Refused):
            return recorded
        if found is None:  # perhaps of another engine, or one that lost its records: then the kernel knows better
            return recorded if box.members() else Ended(ExitStatus())
        if not _is_of(found, identity, box):
            return Ended(ExitStatus())  # not what was started, whatever it is
        return await self._adopt_found(found, box) or Ended(ExitStatus())

    async def _adopt_again(self, identity: Identity, before: Box, directory: str) -> Adopted | Ended | None:
        """The agent died between recording that the container of the run `before` is to be started again, and recording
        that it was; or it made a new one after all."""
        if (made := await self._adopt_made(identity, directory)) is not None:
            return made
        found = await self._inspect(before.id)
        if found is None or not _is_of(found, identity, before):
            return None
        if not docker_state.restarted(found, before):
            await self._drop(before.id)  # whatever is still under way there
            return None
        return await self._adopt_found(found, docker_state.box(found, directory))

    async def _adopt_unrecorded(self, identity: Identity, directory: str) -> Adopted | Ended | None:
        """The agent died between recording the intent and recording the handle."""
        try:
            return await self._adopt_made(identity, directory)
        except (Silent, Refused):
            return Adopted(Handle(NAME, Box(identity.instance, identity.instance, "", directory).data()))

    async def _adopt_made(self, identity: Identity, directory: str) -> Adopted | Ended | None:
        """What was made for this instance."""
        found = await self._inspect(identity.instance)
        if found is None or docker_config.identity_of(found["Config"].get("Labels")) != identity:
            return None
        return await self._adopt_found(found, docker_state.box(found, directory))

    async def _adopt_found(self, found: Found, box: Box) -> Adopted | Ended | None:
        if docker_state.never_started(found) or docker_state.severed(found):
            await self._drop(found["Id"])
            return None
        self._seen[found["Id"]] = found
        if not docker_state.running(found):
            return Ended(docker_state.ended(found))
        self._remarks[found["Id"]] = docker_state.remarks(found, box)
        fresh = replace(docker_state.box(found, box.directory), name=box.name)
        return Adopted(Handle(NAME, fresh.data()))

    async def wait_exit(self, handle: Handle) -> ExitStatus:
        """See `Runtime.wait_exit`. A container that was removed behind the agent's back has the status that the engine
        told when it ended, or an unknown one."""
        box = Box.from_data(handle.data)
        self._watch.start()
        with self._watch.changes(box.id) as changed, _death(box, changed) as death:
            since = 0.0  # when its processes were first seen to be gone
            while box.id not in self._exits:
                changed.clear()
                if (ended := await self._ended(box)) is not None:
                    self._exits.setdefault(box.id, death.added_to(ended))
                elif death.seen:
                    since = since or time.monotonic()
                    if time.monotonic() - since > STATUS_SECONDS:
                        self._exits.setdefault(box.id, ExitStatus(oom_killed=death.oom, at=time.time()))
                    await asyncio.sleep(_STATUS_PAUSE)
                else:
                    await changed.wait()
        return self._exits[box.id]

    async def _ended(self, box: Box) -> ExitStatus | None:
        """None while it runs, and while that is not known."""
        try:
            found = await self._inspect(box.id)
        except (Silent, Refused):
            return None
        if found is not None:
            self._seen[box.id] = found
            self._remarks[box.id] = docker_state.remarks(found, box)
            if not docker_state.restarted(found, box):
                return None if docker_state.running(found) else docker_state.ended(found)
        elif box.members():
            return None
        code = self._watch.codes.get(box.id)
        return exit_status(code, time.time()) if code is not None else ExitStatus(at=time.time())

    async def kill(self, handle: Handle, sig: signal.Signals) -> None:
        """See `Runtime.kill`. Through the host where it shows the processes: that works on an engine that hangs, and
        reaches all of them."""
        box = Box.from_data(handle.data)
        seen = self._seen.get(box.id)
        if sig == signal.SIGKILL and seen is not None and docker_state.restart_policy(seen) != "no":
            with contextlib.suppress(Silent, Refused):  # else it would be started again
                await self._call(lambda api: api.update_container(box.id, restart_policy={"Name": "no"}))
        if box.visible and not box.members():
            return
        paused = box.frozen if box.visible else seen is not None and bool(seen["State"].get("Paused"))
        done = await in_thread(lambda: box.signal(sig), deadline=SCAN_DEADLINE_SECONDS)
        if done and not paused:
            return
        try:
            if paused:
                await self._thaw(box)
            if not done:
                await self._call(lambda api: api.kill(box.id, sig.name))
        except Refused:
            found = await self._inspect(box.id)
            if found is not None and docker_state.running(found):
                raise

    async def _thaw(self, box: Box) -> None:
        try:
            await self._call(lambda api: api.unpause(box.id))
        except Silent:
            await in_thread(box.thaw, deadline=SCAN_DEADLINE_SECONDS)
            raise

    async def survivors(self, handle: Handle) -> tuple[int, ...]:
        """See `Runtime.survivors`. Where the host shows no processes, the engine says whether there are any."""
        box = Box.from_data(handle.data)
        if box.visible:
            return box.members()
        found = await self._inspect(box.id)
        return (int(found["State"].get("Pid") or 0),) if found is not None and docker_state.running(found) else ()

    async def usage(self, handle: Handle) -> Usage | None:
        """See `Runtime.usage`. Where the host shows no processes, the engine's figures of its cgroup."""
        box = Box.from_data(handle.data)
        if box.visible:
            return sampling.usage(box.members())
        found = await self._inspect(box.id)
        if found is None or not docker_state.running(found):
            return None
        stats = await self._call(lambda api: api.stats(box.id, stream=False))
        return _usage(stats)

    async def footprint(self, handle: Handle) -> Mapping[str, tuple[int, int]]:
        """See `Runtime.footprint`."""
        box = Box.from_data(handle.data)
        return await in_thread(lambda: sampling.footprint(box.members()), deadline=SCAN_DEADLINE_SECONDS)

    def owns(self, handle: Handle, pid: int) -> bool:
        return Box.from_data(handle.data).owns(pid)

    def main_pid(self, handle: Handle) -> int | None:
        """The first process after the init."""
        box = Box.from_data(handle.data)
        members = box.members()
        if self._main.get(box.id) not in members:
            inner = {docker_processes.inner_pid(pid): pid for pid in members}
            engines = sorted(number for number in inner if number > 1)
            self._main[box.id] = inner[engines[0]] if engines else 0
        return self._main[box.id] or None

    def enforcement(self, handle: Handle) -> tuple[str, ...]:
        return Box.from_data(handle.data).enforcement

    async def gather_log(self, handle: Handle, log: Path) -> None:
        """See `Runtime.gather_log`."""
        box = Box.from_data(handle.data)
        await self._run(lambda: docker_log.gather(self._engine, box.id, Path(box.directory), log))

    def remarks(self, handle: Handle) -> tuple[str, ...]:
        return self._remarks.get(Box.from_data(handle.data).id, ())

    async def forget(self, handle: Handle | None, directory: Path) -> None:
        """See `Runtime.forget`. A container that cannot be removed now is removed once the engine answers again."""
        id = directory.name if handle is None else Box.from_data(handle.data).id
        if self._instances.get(id, directory.name) == directory.name:
            await self._drop(id)
            self._forget_run(id)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    def _forget_run(self, id: str) -> None:
        for known in (self._exits, self._remarks, self._seen, self._main):
            known.pop(id, None)
        self._watch.forget(id)

    async def find_all(self, node: str) -> dict[Identity, tuple[int, ...]]:
        """See `Runtime.find_all`. Also those that do not run."""
        filters = {"label": [f"{docker_config.NODE}={node}"]}
        found: dict[Identity, tuple[int, ...]] = {}
        for each in await self._call(lambda api: api.containers(all=True, filters=filters)):
            who = docker_config.identity_of(each.get("Labels"))
            if who is not None:
                found[who] = await self._pids(str(each["Id"])) if each.get("State") == "running" else ()
        return found

    async def _pids(self, id: str) -> tuple[int, ...]:
        found = await self._inspect(id)
        return docker_state.box(found, "").members() if found is not None else ()

    async def kill_stray(self, identity: Identity, pids: tuple[int, ...]) -> None:
        """See `Runtime.kill_stray`."""
        del pids
        found = await self._inspect(identity.instance)
        if found is not None and docker_config.identity_of(found["Config"].get("Labels")) == identity:
            await self._run(lambda: self._maker.remove(found["Id"]))

    async def _run(self, work: Callable[[], _T], deadline: float = ACT_SECONDS) -> _T:
        async with self._watch.answering():
            return await self._engine.run(work, deadline)

    async def _call(self, work: Callable[[Any], _T]) -> _T:
        return await self._run(lambda: self._engine.ask(work), ASK_SECONDS)

    async def _inspect(self, id: str) -> Found | None:
        """None where there is no such container."""
        try:
            found: Found = await self._call(lambda api: api.inspect_container(id))
        except Refused as refusal:
            if refusal.missing:
                return None
            raise
        return found

    async def _drop(self, id: str) -> None:
        """Remove it, now or as soon as that can be done."""
        self._instances.pop(id, None)
        if id:
            try:
                await self._run(lambda: self._maker.remove(id))
            except (Silent, Refused):
                self._watch.remove_later(id)


def _is_of(found: Found, identity: Identity, box: Box) -> bool:
    """Whether this is the container that the box is of, made for this instance or for one before."""
    labels = found["Config"].get("Labels") or {}
    made = docker_config.identity_of(labels)
    return (
        made is not None
        and made == replace(identity, attempt=made.attempt, instance=box.name)
        and made.attempt <= identity.attempt
        and labels.get(docker_config.CONFIG) == box.config
    )


@dataclass(slots=True)
class _Death:
    """What the kernel shows of the end of a container."""

    seen: bool = False
    oom: bool = False  # the out-of-memory killer was there; podman does not always say so

    def added_to(self, status: ExitStatus) -> ExitStatus:
        return replace(status, oom_killed=True) if self.oom and status.code != 0 else status


@contextlib.contextmanager
def _death(box: Box, changed: asyncio.Event) -> Iterator[_Death]:
    """Sets `changed` when the first process is gone: that is a tenth of a second or two before the engine says so."""
    death, fd = _Death(), box.open()
    if fd is None:
        death.seen = box.visible and not box.members()
        yield death
        return
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.remove_reader(fd)
        death.seen, death.oom = True, cgroups.oom_killed(box.cgroups)
        changed.set()

    loop.add_reader(fd, end)
    try:
        yield death
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _usage(stats: Mapping[str, Any]) -> Usage | None:
    memory, cpu = stats.get("memory_stats") or {}, stats.get("cpu_stats") or {}
    if not memory.get("usage"):
        return None
    blocks = (stats.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()
    return Usage(
        memory_bytes=int(memory["usage"]),
        read_bytes=sum(int(each["value"]) for each in blocks if str(each.get("op")).lower() == "read"),
        cpu_seconds=int((cpu.get("cpu_usage") or {}).get("total_usage") or 0) / 10**9,
        pids=(),
    )
