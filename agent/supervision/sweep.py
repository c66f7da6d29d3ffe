"""The sweep: what carries our identity and is in no record is stopped (or, on request, only reported).

Every safety is written down here: it never runs before adoption is done; a stray must be seen in two sweeps
that are `sweep_min_age_seconds` apart; its identity is checked again right before the kill; and a node that lost
records only reports, because then it is the record that is missing, not the owner.

What is left of an instance that a record says has ended (a container, where an agent died before it could remove it) is
no stray: it goes at once.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from agent.runtimes.base import Identity
from agent.status import Event, Severity
from agent.supervision import clock
from agent.supervision.conditions import Conditions
from agent.supervision.services import Services

log = structlog.get_logger(__name__)

#: Seconds to the next look after one that a container engine did not answer: what it hides may hold devices.
BLIND_RETRY = 30.0


class Sweep:
    """Remembers strays from one sweep to the next."""

    def __init__(self, services: Services, conditions: Conditions, *, report_only: bool) -> None:
        tuning = services.config.daemon
        self._runtime = services.runtime
        self._node_uid = services.node_uid
        self._instances = services.instances
        self._min_age = tuning.sweep_min_age_seconds
        self._report_only = report_only or tuning.sweep_dry_run
        self._conditions = conditions
        self._first_seen: dict[str, float] = {}
        self._refused: dict[str, str] = {}  # by instance: why it could not be ended in this sweep

    async def run(
        self, recorded: Callable[[], Iterable[str]], ended: Callable[[], Iterable[str]],
        announce: Callable[[Event], None],
    ) -> float | None:  # fmt: skip
        """One sweep. `recorded` names the present instances in records, `ended` those before; asked *after* the look,
        so that one that was launched meanwhile is known. Returns in how many seconds there is reason for another; None:
        whenever its turn comes.
        """
        self._refused.clear()
        folders = await asyncio.to_thread(_names, self._instances)
        found = await self._runtime.find_all(self._node_uid)
        known, over = set(recorded()), set(ended())
        remains = {identity for identity, pids in found.items() if not pids and identity.instance in over - known}
        for identity in remains:
            if await self._end(identity, ()):
                log.info("remains removed", instance=identity.instance)
        strays = {i: pids for i, pids in found.items() if i.instance not in known and i not in remains}
        self._first_seen = {i.instance: self._first_seen.get(i.instance, clock.now()) for i in strays}
        old = {i: pids for i, pids in strays.items() if clock.now() - self._first_seen[i.instance] >= self._min_age}
        for identity, pids in old.items():
            await self._deal(identity, pids, announce)
        self._show(strays)
        due = [self._min_age - (clock.now() - self._first_seen[i.instance]) for i in strays.keys() - old.keys()]
        if self._runtime.blind:  # then an instance that is not seen may have one of the folders
            return min([BLIND_RETRY, *due])
        dead = folders - known - {identity.instance for identity in found}
        await asyncio.to_thread(_remove, [self._instances / name for name in dead])
        return min(due, default=None)

    async def _deal(self, identity: Identity, pids: tuple[int, ...], announce: Callable[[Event], None]) -> None:
        what = f"instance {identity.instance} (pids {', '.join(map(str, pids))}) is in no record of this node"
        if self._report_only:
            log.warning("stray left alone", instance=identity.instance, pids=pids)
            return
        if await self._end(identity, pids):
            log.warning("stray killed", instance=identity.instance, pids=pids)
            announce(Event("StrayKilled", f"{what}: killed", Severity.WARNING, identity.deployment, identity.instance,
                           at=clock.wall()))  # fmt: skip

    async def _end(self, identity: Identity, pids: tuple[int, ...]) -> bool:
        """Whether that could be done: one that a container engine cannot remove, or that hangs, hides no other one."""
        try:
            await self._runtime.kill_stray(identity, pids)
        except OSError as error:
            self._refused[identity.instance] = str(error)
            log.warning("not ended", instance=identity.instance, pids=pids, error=str(error))
            return False
        return True

    def _show(self, strays: dict[Identity, tuple[int, ...]]) -> None:
        if not strays:
            self._conditions.set("StraysAbsent", True, "NoStrays", "no process of ours is without a record")
            return
        names = ", ".join(f"{i.instance} (pids {', '.join(map(str, pids))})" for i, pids in strays.items())
        fate = "left alone" if self._report_only else f"killed after {self._min_age:.0f} s"
        tried = {i.instance for i in strays} & self._refused.keys()
        why = "".join(f"; {name} could not be: {self._refused[name]}" for name in sorted(tried))
        self._conditions.set("StraysAbsent", False, "StraysFound", f"without a record: {names}; {fate}{why}")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _remove(folders: list[Path]) -> None:
    """Directories of instances that ended while no agent was there to forget them."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
