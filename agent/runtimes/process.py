"""The `process` runtime: native engines that outlive the agent, each below a small shell (`shim.sh`).

The shim leads a session of its own, waits for the engine and leaves its exit status in a file, so that the status is
known even if the engine ends while no agent runs; the end of the shim, seen through a pidfd, is the end of the
instance's main process. The identity travels in the environment of every process of the instance; pid and start
time, within one boot, prove that a shim is still the same one. Nothing is ever signalled without such a proof.

Where an instance has a cgroup, that lists its processes, and nothing escapes from it. Without one its processes are
those of the shim's session and those that carry its identity.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from agent.errors import FailedPrecondition
from agent.runtimes import cgroups, identity, instance, procfs, sampling
from agent.runtimes.base import Adopted, Ended, Handle, Identity, LaunchError, LaunchRequest, Usage
from agent.runtimes.instance import Instance
from agent.runtimes.threads import in_thread
from agent.status import ExitStatus

NAME = "process"
SHELL = "/bin/sh"
SHIM = Path(__file__).with_name("shim.sh")

#: Exit code of an instance whose engine was never tried: its directory or cgroup vanished while it was launched.
EXIT_NOT_TRIED = 125

#: Reading all of /proc takes a millisecond; a process that hangs in a driver can make it take for ever.
SCAN_DEADLINE_SECONDS = 5.0

#: How long `usage` of an instance without a cgroup may miss a new process: looking for one means asking all pids.
MEMBERS_MAX_AGE_SECONDS = 30.0

_CATCHABLE = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})

_REFUSALS: Mapping[int | None, str] = {
    errno.EAGAIN: "the limit of processes is reached (ulimit -u, TasksMax= of the unit or kernel.pid_max)",
    errno.ENOMEM: "the host is out of memory",
    errno.ENOSPC: "no space is left on the device",
    errno.EROFS: "the file system is read-only",
    errno.EMFILE: "the agent has too many open files (ulimit -n)",
    errno.E2BIG: "arguments and environment are too long together",
}
_HINTS: Mapping[int | None, str] = {
    errno.ENOSPC: "free disk space there",
    errno.EDQUOT: "free disk space there, or raise this user's quota",
    errno.EROFS: "remount the file system writable",
}

_log = structlog.get_logger(__name__)


class ProcessRuntime:
    """Runs instances as native processes, with limits where `groups` allows them."""

    name = NAME

    def __init__(self, node_uid: str, groups: cgroups.Cgroups | None = None) -> None:
        """Raises `FailedPrecondition` where the kernel (before Linux 5.4) or a sandbox offers no pidfd."""
        self._node = node_uid
        self._groups = groups or cgroups.Cgroups.none("cgroups are not used")
        self._exits: dict[str, ExitStatus] = {}  # by instance: a zombie tells its status only once
        self._killed: set[str] = set()  # instances that got SIGKILL: their shims could not write the exit file
        self._members: dict[str, tuple[float, tuple[int, ...]]] = {}  # see MEMBERS_MAX_AGE_SECONDS
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError as error:
            message = f"the process runtime needs pidfd_open(2), which fails here: {error.strerror}"
            raise FailedPrecondition(message, hint="use Linux 5.4 or newer and a sandbox that allows it") from error

    async def launch(self, request: LaunchRequest, record: Callable[[], Coroutine[Any, Any, None]]) -> Handle:
        """See `Runtime.launch`. The shim starts, and waits before the engine, while the record is made: so both take
        their time together. Blocks for a millisecond, most of it in the fork: a thread would add to it."""
        argv = (_executable(request), *request.argv[1:])
        recorded = asyncio.create_task(record())
        try:
            await asyncio.sleep(0)  # now it is on its way to the disk
            return await self._started(request, argv, recorded)
        except asyncio.CancelledError:
            recorded.cancel()
            raise
        except Exception:
            await recorded  # what it raises is told, whatever else failed: where nothing is recorded, nothing starts
            raise

    async def _started(self, request: LaunchRequest, argv: Sequence[str], recorded: asyncio.Task[None]) -> Handle:
        """Once it is recorded; that is not awaited where nothing came to be started."""
        group = cgroups.Group()
        try:
            for folder in (request.directory, request.directory / "tmp", request.log.parent):
                os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103 - half the time of Path.mkdir
            group = self._groups.create(request.identity.instance, request.resources)
            prepared = Instance(
                id=request.identity.instance,
                directory=str(request.directory),
                cgroups=group.paths,
                enforcement=group.enforcement,
                boot=procfs.boot_id(),
            )
            prepared.prepare()
            pid, gate = _spawn(request, argv, group.entrances)
        except (OSError, ValueError) as error:
            await asyncio.to_thread(cgroups.remove, group.paths)
            raise _refused(argv[0], error, request.directory) from error
        this = replace(prepared, pid=pid, start=stat.start if (stat := procfs.stat(pid)) is not None else 0)
        try:
            await recorded
            await _identified(this)
            with contextlib.suppress(BrokenPipeError):  # the shim has ended, and left a word why
                gate.write(b"go\n")
        except Exception:
            await self._abandon(this, gate)
            raise
        finally:
            gate.close()  # unless it was opened, this ends the shim
        return Handle(NAME, this.data())

    async def _abandon(self, this: Instance, gate: BinaryIO) -> None:
        """End a shim that shall not go on; nothing is left of it, not even a zombie."""
        gate.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SCAN_DEADLINE_SECONDS):
                await self.wait_exit(Handle(NAME, this.data()))
        self._exits.pop(this.id, None)

    async def adopt(self, identity: Identity, handle: Handle | None, directory: Path) -> Adopted | Ended | None:
        """See `Runtime.adopt`. An instance that lost its shim, but not all of its processes, is adopted: `wait_exit`
        returns at once for it, and `survivors` shows what is left to be killed."""
        with contextlib.suppress(ValueError):
            if handle is not None:
                return await in_thread(
                    lambda: _adopt_recorded(Instance.from_data(handle.data)), deadline=SCAN_DEADLINE_SECONDS
                )
        return await in_thread(lambda: _adopt_unrecorded(identity.instance, directory), deadline=SCAN_DEADLINE_SECONDS)

    async def wait_exit(self, handle: Handle) -> ExitStatus:
        """See `Runtime.wait_exit`. The status is unknown if something outside of the agent killed the shim, too."""
        this = Instance.from_data(handle.data)
        if (fd := this.open()) is not None:
            try:
                await _readable(fd)
                self._reap(this.id, fd)
            finally:
                os.close(fd)
        self._exits[this.id] = ended = this.exit(self._exits.get(this.id) or self._unseen(this.id))
        return ended

    def _reap(self, id: str, fd: int) -> None:
        with contextlib.suppress(ChildProcessError):  # adopted, so it is init's child
            ended = os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
            if ended is not None:
                status = ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
                self._exits[id] = instance.exit_status(status, time.time())

    def _unseen(self, id: str) -> ExitStatus | None:
        return ExitStatus(signal=signal.SIGKILL, at=time.time()) if id in self._killed else None

    async def kill(self, handle: Handle, sig: signal.Signals) -> None:
        this = Instance.from_data(handle.data)
        if sig == signal.SIGKILL:
            self._killed.add(this.id)
        await in_thread(lambda: this.signal(sig), deadline=SCAN_DEADLINE_SECONDS)

    async def survivors(self, handle: Handle) -> tuple[int, ...]:
        """See `Runtime.survivors`. Raises `TimeoutError` rather than guess when /proc does not answer."""
        this = Instance.from_data(handle.data)
        if this.tracked() is not None:
            return this.living()  # reads a few small files
        return await in_thread(this.living, deadline=SCAN_DEADLINE_SECONDS)

    async def usage(self, handle: Handle) -> Usage | None:
        """See `Runtime.usage`."""
        return sampling.usage(self._sampled(Instance.from_data(handle.data)))

    async def footprint(self, handle: Handle) -> Mapping[str, tuple[int, int]]:
        """See `Runtime.footprint`."""
        pids = self._sampled(Instance.from_data(handle.data))
        return await in_thread(lambda: sampling.footprint(pids), deadline=SCAN_DEADLINE_SECONDS)

    def _sampled(self, this: Instance) -> tuple[int, ...]:
        if (tracked := this.tracked()) is not None:
            return tracked
        if this.shim() is None:  # then its session id proves nothing without reading environments
            return ()
        read_at, pids = self._members.get(this.id, (float("-inf"), ()))
        if time.monotonic() - read_at > MEMBERS_MAX_AGE_SECONDS:
            pids = procfs.session_members(this.pid)
            self._members[this.id] = (time.monotonic(), pids)
        return tuple(pid for pid in pids if procfs.in_session(pid, this.pid))

    def owns(self, handle: Handle, pid: int) -> bool:
        """See `Runtime.owns`. Without a cgroup, one that left the shim's session is not known to be ours."""
        this = Instance.from_data(handle.data)
        if (tracked := this.tracked()) is not None:
            return pid in tracked
        return this.shim() is not None and procfs.in_session(pid, this.pid)

    def main_pid(self, handle: Handle) -> int | None:
        text = procfs.read(f"{Instance.from_data(handle.data).directory}/engine.pid") or b""
        return int(text) if text.endswith(b"\n") else None

    def enforcement(self, handle: Handle) -> tuple[str, ...]:
        return Instance.from_data(handle.data).enforcement

    async def gather_log(self, handle: Handle, log: Path) -> None:
        """See `Runtime.gather_log`: the engine writes there itself."""

    def remarks(self, handle: Handle) -> tuple[str, ...]:
        """See `Runtime.remarks`: a process has nothing that others could change."""
        del handle
        return ()

    async def forget(self, handle: Handle | None, directory: Path) -> None:
        """See `Runtime.forget`. What cannot be removed is logged, not raised: nothing depends on it."""
        this = Instance.from_data(handle.data) if handle is not None else Instance.prepared(directory)
        if this is not None:
            self._exits.pop(this.id, None)
            self._killed.discard(this.id)
            self._members.pop(this.id, None)
        await asyncio.to_thread(_forget, this.cgroups if this is not None else (), directory)

    async def find_all(self, node: str) -> dict[Identity, tuple[int, ...]]:
        return await in_thread(lambda: instance.find_all(node), deadline=SCAN_DEADLINE_SECONDS)

    async def kill_stray(self, identity: Identity, pids: tuple[int, ...]) -> None:
        await in_thread(lambda: instance.kill_stray(identity, pids), deadline=SCAN_DEADLINE_SECONDS)


def _executable(request: LaunchRequest) -> str:
    """The absolute path of the engine's binary. Raises `LaunchError`: sh could only say so by an exit status."""
    name = request.argv[0]
    found = shutil.which(name, path=request.environment.get("PATH"))
    if found is not None:
        return str(Path(found).absolute())
    if os.sep not in name:
        raise LaunchError(f"the engine's binary {name} is not in PATH")
    problem = "is not an executable file" if Path(name).exists() else "does not exist"
    raise LaunchError(f"the engine's binary {name} {problem}")


def _environment(request: LaunchRequest) -> dict[str, str]:
    """What was asked for and what belongs to this runtime; nothing of the agent's own, which may hold secrets."""
    return {
        **request.environment,
        "TMPDIR": str(request.directory / "tmp"),
        # setproctitle (in vLLM's workers) overwrites the environment that the kernel shows, unless it is told not to.
        "SPT_NOENV": "1",
        **identity.variables(request.identity),
    }


def _spawn(request: LaunchRequest, argv: Sequence[str], entrances: tuple[str, ...]) -> tuple[int, BinaryIO]:
    """Start the shim. Returns its pid and the gate before which it waits: a line lets it go, a close ends it. It has
    the identity in its environment from its first instant."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    gate = open(write_end, "wb", buffering=0)  # noqa: PTH123, SIM115 - a descriptor, for the caller to close
    log = os.open(request.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        pid = os.posix_spawn(
            SHELL,
            [SHELL, str(SHIM), str(request.directory), *entrances, "--", *argv],
            _environment(request),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, read_end, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()),
            ],
            setsid=True,
            # What the agent ignores or blocks would stay ignored or blocked in the engine.
            setsigmask=(),
            setsigdef=_CATCHABLE,
        )
    except BaseException:
        gate.close()
        raise
    finally:
        os.close(log)
        os.close(read_end)
    return pid, gate


def _inheritable() -> list[int]:
    """Descriptors that an engine would inherit: libraries and whoever started the agent may have left such open."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are what is wanted
        with contextlib.suppress(OSError):
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


async def _identified(this: Instance) -> None:
    """Wait until the kernel shows the shim's environment: posix_spawn returns some microseconds before that, from
    within the exec. Raises `LaunchError`, with nothing left running, where environments are never shown."""
    try:
        async with asyncio.timeout(SCAN_DEADLINE_SECONDS):
            while (shim := this.shim()) and shim.alive and not this.carried_by(this.pid):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.0002)
    except TimeoutError as error:
        this.signal(signal.SIGKILL)
        raise LaunchError("the kernel does not show the environment of our own processes in /proc") from error


def _refused(binary: str, error: OSError | ValueError, directory: Path) -> LaunchError:
    """A disk that takes no write does not say which: what is written here is below `directory`."""
    number = getattr(error, "errno", None)
    said = _REFUSALS.get(number) or getattr(error, "strerror", None) or str(error)
    hint = _HINTS.get(number, "")
    where = getattr(error, "filename", None) or (directory if hint else None)
    return LaunchError(f"cannot start {binary}: {said}" + (f" ({where})" if where else ""), hint=hint)


def _adopt_recorded(this: Instance) -> Adopted | Ended:
    if this.shim() is not None and not this.carried_by(this.pid):
        this = replace(this, pid=0, start=0)  # a zombie, or the record names a stranger
    return Adopted(Handle(NAME, this.data())) if this.living() else Ended(this.exit())


def _adopt_unrecorded(id: str, directory: Path) -> Adopted | Ended | None:
    """The agent died between recording the intent and recording the handle."""
    this = Instance.prepared(directory) or Instance(id, str(directory), boot=procfs.boot_id())
    carriers = this.carriers()
    for pid in carriers:
        if instance.leads(pid, SHIM.name) and (shim := procfs.stat(pid)) is not None:
            return Adopted(Handle(NAME, replace(this, pid=pid, start=shim.start).data()))
    if carriers:
        return Adopted(Handle(NAME, this.data()))
    return Ended(this.exit()) if this.started() else None


def _forget(groups: tuple[str, ...], directory: Path) -> None:
    cgroups.remove(groups)
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("instance directory not removed", directory=str(directory), error=str(error))


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
