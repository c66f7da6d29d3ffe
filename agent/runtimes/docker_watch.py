"""Who learns first that something happened to a container: the engine's event stream, with a list behind it.

The stream says it at once; the list, every few seconds, heals what the stream missed, and is the one place that judges
whether the engine answers at all. Both run in threads of their own, which end with the process: a container engine that
hangs holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from operator import methodcaller
from typing import Any

import structlog

from agent.runtimes.docker_config import NODE
from agent.runtimes.docker_engine import Engine, Refused, Silent

#: Seconds between two lists, while the engine answers and while it does not.
LIST_SECONDS, RETRY_SECONDS = 5.0, 1.0
#: Seconds before a broken stream is opened again: the first time, and at most.
REOPEN_SECONDS, REOPEN_MOST_SECONDS = 0.1, 2.0

_log = structlog.get_logger(__name__)

Tell = Callable[[bool | None, str, str], None]


class Watch:
    """What goes on among the containers of one node. All but its two threads is the event loop's."""

    def __init__(self, engine: Engine, node: str, tell: Tell) -> None:
        self._engine, self._tell = engine, tell
        self._labels = [f"{NODE}={node}"]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop, self._look = threading.Event(), threading.Event()
        self._since = ""
        self._stream: Any = None
        self._waiting: dict[str, set[asyncio.Event]] = {}  # by container id
        self._calls: set[asyncio.Timeout] = set()
        self._looks: dict[str, tuple[Any, Any]] = {}  # by container id: its state and names as last listed
        self.codes: dict[str, int] = {}  # by container id: what the engine said when it ended
        self.silent: Silent | None = None  # why it did not answer, while it does not
        self._warned: dict[str, str] = {}  # of what was warned, and what was wrong then
        self._unwanted: dict[str, None] = {}  # containers that could not be removed, in the order of the next attempts

    def start(self) -> None:
        """From within the loop; more than once is once."""
        if self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._since = f"{time.time():.9f}"
        for work, name in ((self._follow, "docker-events"), (self._list, "docker-list")):
            threading.Thread(target=work, name=name, daemon=True).start()

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for the end of a container."""
        return bool(self._waiting)

    @contextlib.contextmanager
    def changes(self, id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever something may have happened to a container."""
        event = asyncio.Event()
        self._waiting.setdefault(id, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[id].discard(event)
            if not self._waiting[id]:
                del self._waiting[id]

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """What is done within ends with `Silent` once the engine is known not to answer, whatever its own deadline."""
        self.start()
        if self.silent is not None:
            raise Silent(str(self.silent))
        try:
            async with asyncio.timeout(None) as limit:
                self._calls.add(limit)
                try:
                    yield
                finally:
                    self._calls.discard(limit)
        except TimeoutError as error:
            self._look.set()  # judge the engine now
            raise error if isinstance(error, Silent) else Silent(str(self.silent)) from error

    def remove_later(self, id: str) -> None:
        """A container that could not be removed: as soon as the engine answers again."""
        self._unwanted[id] = None

    def forget(self, id: str) -> None:
        self.codes.pop(id, None)
        self._looks.pop(id, None)

    def close(self) -> None:
        self._stop.set()
        self._look.set()
        if self._stream is not None:
            self._stream.close()

    def _post(self, work: Callable[..., None], *arguments: Any) -> None:
        if self._loop is not None and not self._stop.is_set():
            with contextlib.suppress(RuntimeError):  # the loop is closed: the agent ends
                self._loop.call_soon_threadsafe(work, *arguments)

    def _wake(self, id: str) -> None:
        for event in self._waiting.get(id, ()):
            event.set()

    def _warn(self, about: str, what: str, error: Exception) -> None:
        """Once, until that is over or something else is wrong. `about` a container, or what is done."""
        if self._warned.get(about) != str(error) and not self._stop.is_set():
            self._warned[about] = str(error)
            trace = None if isinstance(error, Refused) else error
            _log.warning(what, socket=self._engine.socket, about=about, error=str(error), exc_info=trace)

    # the stream's thread

    def _follow(self) -> None:
        pause = REOPEN_SECONDS
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._engine.follow(self._events)
            except (Silent, Refused):
                pass  # the list's thread judges
            except Exception as error:  # noqa: BLE001 - nobody would miss this thread, and no exit be seen at once
                self._warn("events", "the container engine's events cannot be read", error)
            pause = REOPEN_SECONDS if time.monotonic() - began > pause else min(2 * pause, REOPEN_MOST_SECONDS)
            self._stop.wait(pause)

    def _events(self, api: Any) -> None:
        """Until the stream breaks. `since` brings what came while there was none."""
        self._stream = api.events(
            since=self._since, filters={"type": ["container"], "label": self._labels}, decode=True
        )
        for event in self._stream:
            if at := int(event.get("timeNano") or 0):
                self._since = f"{at // 10**9}.{at % 10**9:09d}"
            actor = event.get("Actor") or {}
            self._post(self._happened, str(actor.get("ID", "")), event.get("Action"), actor.get("Attributes") or {})

    def _happened(self, id: str, action: str | None, attributes: Mapping[str, str]) -> None:
        if id in self._waiting and action == "die":
            with contextlib.suppress(KeyError, ValueError):
                self.codes[id] = int(attributes["exitCode"])
        self._wake(id)

    # the list's thread

    def _list(self) -> None:
        while not self._stop.is_set():
            self._look.clear()
            silent = None
            try:
                self._engine.greet()
                self._post(self._listed, self._engine.ask(self._containers))
                self._remove_unwanted()
                self._warned.pop("list", None)
            except Silent as error:
                silent = error
            except Refused as refusal:
                self._warn("list", "container engine refuses to list containers", refusal)
            except Exception as error:  # noqa: BLE001 - without this thread the last judgement would hold for ever
                self._warn("list", "containers cannot be listed", error)
                silent = Silent(f"its containers cannot be listed: {error!r}")
            self._post(self._judge, silent)
            self._look.wait(LIST_SECONDS if silent is None else RETRY_SECONDS)

    def _containers(self, api: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = api.containers(all=True, filters={"label": self._labels})
        return found

    def _remove_unwanted(self) -> None:
        for id in tuple(self._unwanted):
            try:
                self._engine.ask(methodcaller("remove_container", id, v=True, force=True))
            except Silent:  # all of it, or only what it asks for this one: a shim, a sick device's driver
                self._unwanted[id] = self._unwanted.pop(id)  # the others first, next time
                self._engine.greet()
                break
            except Refused as refusal:
                if not refusal.missing:
                    self._warn(id, "container not removed", refusal)
                    continue
            del self._unwanted[id]
            self._warned.pop(id, None)

    def _listed(self, found: list[dict[str, Any]]) -> None:
        looks = {str(each["Id"]): (each.get("State"), each.get("Names")) for each in found}
        for id in tuple(self._waiting):
            if id not in looks or looks[id] != self._looks.get(id, looks[id]):
                self._wake(id)
        self._looks = looks

    def _judge(self, silent: Silent | None) -> None:
        before, self.silent = self.silent, silent
        if silent is None:
            self._tell(True, "Answering", f"the container engine at {self._engine.socket} answers")
        else:
            message = (
                f"the container engine at {self._engine.socket} does not answer: {silent}; what runs goes on, nothing "
                "is started or stopped through it, and what is not known to have ended stays reserved"
            )
            self._tell(False, "NotAnswering", message)
            for call in self._calls:
                call.reschedule(asyncio.get_running_loop().time())
        if before is not None and silent is None:
            for id in tuple(self._waiting):
                self._wake(id)
