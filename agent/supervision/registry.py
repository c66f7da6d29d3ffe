"""The actors by name, and the cached picture of their statuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from agent.errors import NotFound
from agent.status import DeploymentStatus

if TYPE_CHECKING:
    from agent.supervision.actor import Actor


class Registry:
    """`revision` increases whenever any status may differ from what was last shown."""

    def __init__(self) -> None:
        self._actors: dict[str, Actor] = {}
        self._statuses: dict[str, DeploymentStatus] = {}
        self._stale: set[str] = set()
        self.revision = 1

    def add(self, actor: Actor) -> None:
        self._actors[actor.name] = actor
        self.touch(actor.name)

    def remove(self, actor: Actor) -> None:
        if self._actors.get(actor.name) is actor:
            del self._actors[actor.name]
            self._statuses.pop(actor.name, None)
            self.touch("")

    def touch(self, name: str) -> None:
        """The status of `name` ("": of the node itself) changed."""
        self._stale.add(name)
        self.revision += 1

    def find(self, name: str) -> Actor | None:
        return self._actors.get(name)

    def get(self, name: str) -> Actor:
        """Raises `NotFound`, naming what there is."""
        actor = self._actors.get(name)
        if actor is None:
            known = ", ".join(sorted(self._actors)) or "none"
            raise NotFound(f"no deployment {name!r}", hint=f"Deployments of this node: {known}.")
        return actor

    def statuses(self) -> dict[str, DeploymentStatus]:
        """All statuses by name, in the order of names; only what changed is computed again."""
        for name in self._stale:
            if name in self._actors:
                self._statuses[name] = self._actors[name].status()
        self._stale.clear()
        return {name: self._statuses[name] for name in sorted(self._statuses)}

    def __iter__(self) -> Iterator[Actor]:
        return iter(list(self._actors.values()))

    def __len__(self) -> int:
        return len(self._actors)
