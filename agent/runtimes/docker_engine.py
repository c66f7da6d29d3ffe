"""A container engine's API (dockerd's, or podman's compatible one) through the Docker SDK: in threads, with deadlines.

The SDK is imported by the first call, and its threads are its own: a container engine that hangs holds up nobody else.
What the engine said (`Refused`) and that it said nothing (`Silent`) are two errors, for only the first one proves
anything.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from agent import podman
from agent.frozen import frozen

_T = TypeVar("_T")

#: Calls at the same time; the engine itself serves containers one after the other.
THREADS = 8
#: Seconds for a greeting, for a question, and for what makes the engine work: a start mounts layers, sets up devices.
GREET_SECONDS, ASK_SECONDS, ACT_SECONDS = 2.0, 4.0, 30.0


class Silent(TimeoutError):
    """The engine did not answer: nothing is known, neither of its containers nor of what was asked of it."""


class Refused(OSError):
    """The engine answered that it will not, with this HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def missing(self) -> bool:
        return self.status == 404


@frozen
class Facts:
    """What an engine says of itself when it is greeted, and, where NVIDIA devices are wanted, what it can do."""

    podman: str = ""  # its version; "": it is Docker
    runtimes: frozenset[str] = frozenset()
    takes_cdi: bool = False  # requests for devices by their CDI names


class Engine:
    """One engine behind its socket. Every call raises `Silent` or `Refused`, and nothing else of its own."""

    def __init__(self, socket: str) -> None:
        """Opens nothing, imports nothing."""
        self.socket = socket
        self._local = threading.local()  # a client for each thread: they keep connections, and are not safe to share
        self._clients: list[Any] = []
        self._pool: ThreadPoolExecutor | None = None
        self._api_version = ""  # of the last greeting
        self._podman = ""  # its version
        self.broken = 0  # how many connections: behind the next one may be an engine that was started anew

    async def run(self, work: Callable[[], _T], deadline: float) -> _T:
        """`work`, which asks by `ask`, in a thread. What was not begun within `deadline` seconds never is."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        try:
            async with asyncio.timeout(deadline + 1.0):  # after the thread's own, which has more to tell
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except Silent:
            raise
        except TimeoutError:
            raise Silent(f"it does not answer within {deadline:g} s") from None

    async def call(self, work: Callable[[Any], _T], deadline: float = ASK_SECONDS) -> _T:
        """`work` with the SDK's client, in a thread."""
        return await self.run(lambda: self.ask(work, deadline), deadline)

    def follow(self, work: Callable[[Any], None]) -> None:
        """`work`, which reads a stream until it ends, from within a thread."""
        try:
            self.ask(work, None)
        finally:
            self.broken += 1

    def ask(self, work: Callable[[Any], _T], deadline: float | None = ASK_SECONDS) -> _T:
        """As `call`, from within a thread. `deadline` is for each part of an answer; None: for a stream."""
        try:
            Path(self.socket).stat()
        except OSError as error:
            raise Silent(self._broken(error)) from error
        import docker.errors  # noqa: PLC0415 - a quarter of a second and 15 MiB, which most nodes save
        import requests  # noqa: PLC0415 - comes with it
        import urllib3  # noqa: PLC0415 - the same

        try:
            return work(self._client(deadline))
        except (Silent, Refused):
            raise
        except docker.errors.APIError as error:
            status = error.response.status_code if error.response is not None else 0
            raise Refused(str(error.explanation or error).strip(), status) from error
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            docker.errors.DockerException,
            OSError,
        ) as error:
            self._drop()
            raise Silent(self._broken(error)) from error

    def greet(self) -> None:
        """Raises `Silent` or `Refused` unless the engine answers. For threads."""
        self.ask(lambda api: api.ping(), GREET_SECONDS)

    def facts(self, *, devices: bool) -> Facts:
        """For threads. Asks only for `devices`, and not podman, whose version tells as much and comes at once."""
        self.ask(str)  # which greets
        if self._podman:
            return Facts(podman=self._podman, takes_cdi=podman.takes_cdi(self._podman))
        info = self.ask(lambda api: api.info()) if devices else {}
        return Facts(runtimes=frozenset(info.get("Runtimes") or ()), takes_cdi=bool(info.get("CDISpecDirs")))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        for client in self._clients:
            client.close()

    def _client(self, deadline: float | None) -> Any:
        client = getattr(self._local, "client", None)
        if client is None:
            import docker  # noqa: PLC0415 - see `ask`
            from docker.constants import DEFAULT_DOCKER_API_VERSION  # noqa: PLC0415 - see `ask`

            agreed = self._api_version
            version = agreed or DEFAULT_DOCKER_API_VERSION
            client = docker.APIClient(base_url=f"unix://{self.socket}", version=version, timeout=ASK_SECONDS)
            if not agreed:
                client = self._greeted(client)
            self._local.client = client
            self._clients.append(client)
        client.timeout = deadline
        return client

    def _greeted(self, client: Any) -> Any:
        """Agree on a version of the API. (The SDK asks for /version, for which podman takes seconds.)"""
        try:
            answer = client.get(f"{client.base_url}/_ping", timeout=GREET_SECONDS)
            answer.raise_for_status()
        except Exception:
            client.close()
            raise
        self._podman = str(answer.headers.get("Libpod-API-Version", ""))
        self._api_version = min(
            answer.headers.get("Api-Version", client.api_version), client.api_version, key=_version_numbers
        )
        client._version = self._api_version  # noqa: SLF001 - else the greeting needs a client of its own
        return client

    def _drop(self) -> None:
        """After a failure a connection may be in the middle of an answer, and the engine another version."""
        client = getattr(self._local, "client", None)
        if client is not None:
            self._local.client = None
            self._api_version = ""
            self.broken += 1
            self._clients.remove(client)
            client.close()

    def _broken(self, error: Exception) -> str:
        text = str(error)
        for sign, meaning in _SIGNS.items():
            if sign in text:
                return meaning.format(socket=self.socket)
        return f"the connection to {self.socket} broke: {text[:200]}"


_SIGNS: Mapping[str, str] = {
    "No such file": "there is no socket {socket}",
    "Connection refused": "nothing listens on {socket}",
    "Permission denied": "no permission to open {socket}: add the agent's user to the group that owns it",
    "imed out": "it does not answer in time",
}


def _version_numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text.partition("-")[0])))  # podman: "5.8.3-dev"
