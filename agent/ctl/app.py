"""What one invocation of agentctl knows: how to reach the daemon, and what time it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.api.client import TIMEOUT_SECONDS, Client
from agent.ctl import connect


@dataclass(slots=True)
class App:
    """Carried by click's context from the root to every command; options fill it in while they are parsed."""

    socket: str | None = None
    timeout: float = TIMEOUT_SECONDS
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    now: Callable[[], float] = time.time
    client: Client | None = None  # the one that is open

    def reader(self) -> Client:
        """A client for commands that only read; it may use the read-only socket."""
        return self._client(change=False)

    def writer(self) -> Client:
        """A client for commands that change something."""
        return self._client(change=True)

    def _client(self, *, change: bool) -> Client:
        if self.client is None:  # one command is of one kind, whatever it asks
            path = connect.find(self.socket, self.environ, change=change)
            self.client = Client(path, timeout=self.timeout)
        return self.client

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
