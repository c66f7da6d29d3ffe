"""The runtimes of a node as one: each instance is dealt with by the one that runs it.

Native processes are always there. A container engine is talked to once an instance is to run by it; which ones were, a
file in the state directory tells, so that the next agent finds their containers and asks nobody else. One that is not
used, and says that it has no container of this node, is taken out of it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.runtimes.base import Adopted, Ended, Handle, Identity, LaunchError, LaunchRequest, Runtime, Usage
from agent.status import ExitStatus

if TYPE_CHECKING:
    from agent.runtimes.docker import DockerRuntime

#: In the state directory: the sockets of container engines that instances ran by, one a line, the last one at the end.
FILE = "container-engines"
_MANY = 16

Tell = Callable[[bool | None, str, str], None]


class Runtimes:
    """Satisfies `Runtime`, for handles of all. A container engine that does not answer, or refuses, is an `OSError`."""

    name = "all"

    def __init__(self, node_uid: str, process: Runtime, state: Path) -> None:
        self._node = node_uid
        self._process = process
        self._file = state / FILE
        self._sockets = _read(self._file)
        self._docker: dict[str, DockerRuntime] = {}  # by socket
        self._launched: set[str] = set()  # sockets by which this agent launched, perhaps right now
        self._found: dict[str, Runtime] = {}  # by instance, of the last `find_all`
        self._said: dict[str, tuple[bool | None, str, str]] = {}  # by socket: what was last told of it
        self.tell: Tell = lambda *_: None  # of container engines that matter, for the node's one condition
        self.blind = False  # some container engine did not answer at the last `find_all`

    @property
    def last_used(self) -> str:
        """The socket of the container engine by which the last instance ran; "" for none."""
        return self._sockets[-1] if self._sockets else ""

    def close(self) -> None:
        """End what was opened; instances go on."""
        for runtime in self._docker.values():
            runtime.close()

    def of(self, name: str, handle: Handle | None = None) -> Runtime:
        """The runtime of that name; of several container engines that of the handle, else the last one."""
        socket = str(handle.data.get("socket", "")) if handle is not None else ""
        socket = socket or self.last_used
        return self._process if name != "docker" or not socket else self._engine(socket)

    def _engine(self, socket: str) -> Runtime:
        from agent.runtimes.docker import DockerRuntime  # noqa: PLC0415 - most nodes run no container

        if socket not in self._docker:
            self._docker[socket] = DockerRuntime(self._node, socket, partial(self._told, socket))
        return self._docker[socket]

    def _told(self, socket: str, *said: Any) -> None:
        """Tell of the engine that was last used, unless another one that runs an instance does not answer."""
        self._said[socket] = said
        running = (each for each, runtime in self._docker.items() if runtime.awaited)
        counted = list(dict.fromkeys((self.last_used, *running)))
        if socket in counted:
            known = [self._said[each] for each in counted if each in self._said]
            self.tell(*next((each for each in known if each[0] is False), known[0]))

    async def warm(self, socket: str) -> None:
        """Talk to a container engine that will soon run an instance: the first call takes longest."""
        with contextlib.suppress(OSError):
            await self._engine(socket).find_all(self._node)

    def _by(self, handle: Handle) -> Runtime:
        return self.of(handle.runtime, handle)

    async def launch(self, request: LaunchRequest, record: Callable[[], Coroutine[Any, Any, None]]) -> Handle:
        container = request.container
        if container is None:
            return await self._process.launch(request, record)
        if not container.socket:
            raise LaunchError("this node has no container engine")
        self._remember(container.socket)
        handle = await self._engine(container.socket).launch(request, record)
        return replace(handle, data={**handle.data, "socket": container.socket})

    async def adopt(self, identity: Identity, handle: Handle | None, directory: Path) -> Adopted | Ended | None:
        """Of a native process where there is no handle; `of` finds others."""
        return await self._adopt(self._process if handle is None else self._by(handle), identity, handle, directory)

    async def adopt_by(
        self, name: str, identity: Identity, handle: Handle | None, directory: Path
    ) -> Adopted | Ended | None:
        """As `adopt`, of an instance that the runtime of that name was to run."""
        return await self._adopt(self.of(name, handle), identity, handle, directory)

    async def _adopt(
        self, runtime: Runtime, identity: Identity, handle: Handle | None, directory: Path
    ) -> Adopted | Ended | None:
        found = await runtime.adopt(identity, handle, directory)
        if isinstance(found, Adopted) and found.handle.runtime == "docker":
            socket = str(handle.data.get("socket", "")) if handle is not None else ""
            data = {**found.handle.data, "socket": socket or self.last_used}
            return Adopted(replace(found.handle, data=data))
        return found

    async def wait_exit(self, handle: Handle) -> ExitStatus:
        return await self._by(handle).wait_exit(handle)

    async def kill(self, handle: Handle, sig: signal.Signals) -> None:
        await self._by(handle).kill(handle, sig)

    async def survivors(self, handle: Handle) -> tuple[int, ...]:
        return await self._by(handle).survivors(handle)

    async def usage(self, handle: Handle) -> Usage | None:
        return await self._by(handle).usage(handle)

    async def footprint(self, handle: Handle) -> Mapping[str, tuple[int, int]]:
        return await self._by(handle).footprint(handle)

    def owns(self, handle: Handle, pid: int) -> bool:
        return self._by(handle).owns(handle, pid)

    def main_pid(self, handle: Handle) -> int | None:
        return self._by(handle).main_pid(handle)

    def enforcement(self, handle: Handle) -> tuple[str, ...]:
        return self._by(handle).enforcement(handle)

    async def gather_log(self, handle: Handle, log: Path) -> None:
        await self._by(handle).gather_log(handle, log)

    def remarks(self, handle: Handle) -> tuple[str, ...]:
        return self._by(handle).remarks(handle)

    async def forget(self, handle: Handle | None, directory: Path) -> None:
        """Of a native process where there is no handle; `of` finds others."""
        await (self._process if handle is None else self._by(handle)).forget(handle, directory)

    async def find_all(self, node: str) -> dict[Identity, tuple[int, ...]]:
        """Of all runtimes; `blind` says whether one did not answer, and so may have more."""
        found = await self._process.find_all(node)
        self._found, self.blind = dict.fromkeys((identity.instance for identity in found), self._process), False
        empty = set()
        for socket in self._sockets:
            runtime = self._engine(socket)
            try:
                theirs = await runtime.find_all(node)
            except OSError:
                self.blind = True
                continue
            self._found |= dict.fromkeys((identity.instance for identity in theirs), runtime)
            found |= theirs
            if not theirs:
                empty.add(socket)
        if unused := empty - self._launched - {self.last_used}:
            with contextlib.suppress(OSError):  # next time
                self._note([socket for socket in self._sockets if socket not in unused])
        return found

    async def kill_stray(self, identity: Identity, pids: tuple[int, ...]) -> None:
        runtime = self._found.get(identity.instance, self._process)
        await runtime.kill_stray(identity, pids)

    def _remember(self, socket: str) -> None:
        """Before the first container of an engine: whoever looks for it must know where."""
        self._launched.add(socket)
        if socket == self.last_used:
            return
        try:
            self._note([*(other for other in self._sockets if other != socket), socket][-_MANY:])
        except OSError as error:
            raise LaunchError(f"cannot note the container engine in {self._file}: {error.strerror}") from error

    def _note(self, sockets: list[str]) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text("".join(f"{each}\n" for each in sockets))
        fresh.replace(self._file)
        self._sockets = sockets


def _read(path: Path) -> list[str]:
    try:
        return path.read_text().split("\n")[:-1][-_MANY:]
    except (OSError, UnicodeDecodeError):
        return []
