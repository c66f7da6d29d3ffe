"""How an instance is executed: the interface that `process` and `docker` implement.

The contract that both must keep, and that `tests/runtimes/contract.py` holds against each:

* `launch` returns only after the instance carries its identity where `find_all` sees it, whatever dies next.
* What is launched outlives the agent, and writes its log without passing through it.
* `wait_exit` fires at once, for adopted instances too, and reports the status even if the instance ended
  while no agent ran.
* `kill` reaches every process of the instance; `survivors` is empty only when all of them are gone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Protocol

from agent.frozen import frozen
from agent.status import DiagnosisCode, ExitStatus

#: In the data of a handle that is recorded with the intent: it is of the run before, which is to be executed again.
AGAIN = "again"


@frozen
class Identity:
    """Who an instance is; carried by the instance itself, so that it is found again whatever dies."""

    node: str  # node uid: one per state directory
    deployment: str
    generation: int
    attempt: int
    instance: str  # unique id of this instance


@frozen
class Resources:
    """Kernel-enforced limits; None means not limited."""

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None


@frozen
class Mount:
    """A file or folder of the host, seen inside of a container at `target`."""

    source: str
    target: str
    read_only: bool = True


@frozen
class Container:
    """What a launch in a container needs beyond a command. What it never gets is not here: privileges, capabilities,
    the host's network."""

    image: str  # "sha256:...": an image's id, which names this content whatever a tag becomes
    address: str  # of the host, where `port` is published; the engine listens on the same port inside
    port: int
    socket: str = ""  # of the container engine that shall run it
    mounts: tuple[Mount, ...] = ()
    gpus: tuple[str, ...] = ()  # NVIDIA's UUIDs, of GPUs or MIG slices
    device_files: tuple[str, ...] = ()  # "/dev/kfd", "/dev/dri/renderD128": with the groups that own them
    shm_bytes: int = 64 * 1024**2  # Docker's own default
    ulimits: Mapping[str, int] = field(default_factory=dict)  # -1: unlimited
    read_only_root: bool = False  # with a writable /tmp of its own
    user: str = ""  # "uid:gid"; "": the image's own
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: int = 30  # from it to SIGKILL, where somebody else says `docker stop`
    own_entrypoint: bool = False  # `argv` is what the image's own entry point gets; else it is the whole command
    log_bytes: int = 16 * 1024**2  # of each of `log_files` that the container engine keeps
    log_files: int = 2


@frozen
class Handle:
    """How to find an instance again: plain JSON data, stored right after the launch."""

    runtime: str
    data: Mapping[str, Any]


@frozen
class LaunchRequest:
    """Everything needed to start an instance. `environment` may hold resolved secrets: never log it."""

    identity: Identity
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path  # the instance's own directory (records, TMPDIR); removed by `forget`
    log: Path  # stdout and stderr, appended
    resources: Resources = field(default_factory=Resources)
    container: Container | None = None  # None: a native process
    again: Handle | None = None  # of the run before, whose container may be started again if it is what is wanted now


@frozen
class Usage:
    """One sample of a live instance. Bytes are cumulative reads; memory is resident bytes of all its processes."""

    memory_bytes: int
    read_bytes: int  # from files, page cache included: the measure of loading progress
    cpu_seconds: float
    pids: tuple[int, ...]


@frozen
class Adopted:
    """The instance still runs and is ours again."""

    handle: Handle


@frozen
class Ended:
    """The instance is over. `exit` may be of unknown status (reboot, power loss)."""

    exit: ExitStatus


class Runtime(Protocol):
    """One way to execute instances. Methods never block the loop and all have a deadline of their own."""

    name: str

    async def launch(self, request: LaunchRequest, record: Callable[[], Coroutine[Any, Any, None]]) -> Handle:
        """Make everything ready, then await `record()`, which makes the intent durable, and only then execute the
        engine: what must come after the record is the engine, not what is prepared for it.

        Raises `LaunchError` when the operating system refuses, and what `record` raises; then nothing is left
        running."""

    async def adopt(self, identity: Identity, handle: Handle | None, directory: Path) -> Adopted | Ended | None:
        """Find it again after the agent's restart. `handle` None: intent was recorded, the launch may or may
        not have happened; the answer None then means that it never did."""

    async def wait_exit(self, handle: Handle) -> ExitStatus:
        """Return when the instance's main process has ended. Safe to cancel."""

    async def kill(self, handle: Handle, sig: signal.Signals) -> None:
        """Send `sig` to every process of the instance. No error when none is left."""

    async def survivors(self, handle: Handle) -> tuple[int, ...]:
        """Pids of the instance that still exist (zombies excluded)."""

    async def usage(self, handle: Handle) -> Usage | None:
        """Sample it; None when it is gone."""

    async def footprint(self, handle: Handle) -> Mapping[str, tuple[int, int]]:
        """Bytes mapped and bytes resident of each file that its processes map, "" for all other memory; {} where that
        cannot be seen. Raises `TimeoutError`."""

    def owns(self, handle: Handle, pid: int) -> bool:
        """Whether a process belongs to the instance, as far as that is seen without anything that could block."""

    def main_pid(self, handle: Handle) -> int | None:
        """The pid of the engine itself, for status; None while not known."""

    def enforcement(self, handle: Handle) -> tuple[str, ...]:
        """Sentences: which limits the kernel enforces for it, and which it does not, and why."""

    async def gather_log(self, handle: Handle, log: Path) -> None:
        """See that `log` has what the instance wrote up to now. Nothing to do where it writes there itself; else what
        came since the last call is appended. Raises `TimeoutError`, and `OSError` where the disk refuses."""

    def remarks(self, handle: Handle) -> tuple[str, ...]:
        """Sentences: what somebody else did to it behind the agent's back (paused, renamed, another restart policy), as
        last seen; () if nothing."""

    async def forget(self, handle: Handle | None, directory: Path) -> None:
        """Remove what the runtime keeps for an ended instance (cgroup, directory); logs stay."""

    async def find_all(self, node: str) -> dict[Identity, tuple[int, ...]]:
        """Every live instance that carries this node's identity, recorded or not: the sweep's input."""

    async def kill_stray(self, identity: Identity, pids: tuple[int, ...]) -> None:
        """End a stray found by `find_all`: TERM to nobody, KILL at once, each pid's identity checked again first."""


class LaunchError(Exception):
    """The operating system or a container engine refused to create the process; the message says why, for people, and
    `hint` what to do next where the code alone does not."""

    def __init__(self, message: str, code: DiagnosisCode = DiagnosisCode.LAUNCH_FAILED, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
