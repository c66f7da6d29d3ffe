"""What the node holds of models: who wants it, what may go, and making room when the disk fills.

Contents are the cache's (`agent.artifacts`); which of them an engine runs with or a deployment names is known here, and
what goes first is `garbage`'s to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import structlog

from agent.artifacts import cache, holdings, removal
from agent.artifacts.holdings import Holding
from agent.artifacts.job import Job
from agent.errors import Conflict, FailedPrecondition, FieldViolation, InvalidArgument, NotFound, Unavailable
from agent.frozen import frozen
from agent.settings import NodeConfig
from agent.status import Event
from agent.store.records import PutRequest, RequestRecord
from agent.store.sqlite import Store
from agent.supervision import clock, garbage, wants
from agent.supervision.conditions import Conditions
from agent.supervision.garbage import Candidate, Disk, Marks, Removal
from agent.supervision.service import (
    ArtifactList,
    ArtifactState,
    ArtifactStatus,
    CacheDisk,
    Collected,
    Collection,
    Deleted,
)
from agent.supervision.wants import Want

log = structlog.get_logger(__name__)

#: Seconds to look through the cache: thousands of files on a slow disk take some.
SCAN_DEADLINE = 30.0
#: Seconds to remove one artifact: some file systems take a second for each 10 GiB.
REMOVE_DEADLINE = 300.0

_T = TypeVar("_T")


@frozen
class Outside:
    """What is asked of the rest of the node."""

    announce: Callable[[Event], None]
    wants: Callable[[], Sequence[Want]]  # of all deployments, now
    pulls: Callable[[], Sequence[Job]]  # under way
    store: Store
    images: Callable[[], Awaitable[Sequence[ArtifactStatus]]]  # of the container engine


@frozen
class _Seen:
    """The cache at one moment."""

    holdings: tuple[Holding, ...]
    disk: Disk


class Artifacts:
    """One node's. Use from one event loop."""

    def __init__(self, config: NodeConfig, conditions: Conditions, outside: Outside) -> None:
        self._root = config.directories.cache
        settings = config.artifacts
        self._marks = Marks(
            settings.disk_high, settings.disk_low, settings.min_age_seconds, settings.partial_age_seconds
        )
        self._conditions, self._outside = conditions, outside
        self._removing = asyncio.Lock()
        self._going: frozenset[str] = frozenset()  # the places where something is being removed
        self._hung: asyncio.Future[Any] | None = None  # a look at the disk that did not come back

    # Reading ------------------------------------------------------------------------------------------------------

    async def all(self) -> ArtifactList:
        """What the cache holds, last used first, what deployments use from elsewhere, and images of engines."""
        try:
            seen, images = await asyncio.gather(self._look(), self._outside.images())
        except OSError as error:
            raise Unavailable(f"{self._root} cannot be read: {_said(error)}") from error
        return ArtifactList((*self._statuses(seen.holdings), *images), self._disk(seen.disk))

    async def find(self, name: str) -> ArtifactStatus:
        """By its id or reference. Raises `NotFound`, and `InvalidArgument` where several have that reference."""
        return _one((await self.all()).artifacts, name)

    def _statuses(self, found: Sequence[Holding]) -> Iterator[ArtifactStatus]:
        wanted = self._outside.wants()
        interests = wants.interests(self._root, found, wanted)
        candidates = self._candidates(found)
        frees, reasons = garbage.frees_alone(candidates), {one.key: one.kept_for for one in candidates}
        for holding in found:
            interest = interests[holding.key]
            status = replace(
                _status(holding), frees=frees[holding.key], kept_for=reasons[holding.key], used_by=interest.used,
                desired_by=interest.desired,
            )  # fmt: skip
            if (variant := interest.variant) is not None:
                status = replace(
                    status, format=variant.format, quantization=variant.quantization, architecture=variant.architecture
                )
            yield status
        yield from wants.external(self._root, wanted)

    def _disk(self, disk: Disk) -> CacheDisk:
        return CacheDisk(str(self._root), disk.total, disk.free, self._marks.high, self._marks.low)

    # Changing -----------------------------------------------------------------------------------------------------

    async def pin(self, name: str, *, pinned: bool) -> ArtifactStatus:
        """Durable when this returns."""
        status = await self.find(name)
        _, holding = await self._holding(status)
        if holding.kept is None:
            raise FailedPrecondition(f"{status.source} is not whole", hint="pull it first, then pin it")
        if status.pinned is not pinned:
            async with self._removing:  # else it could be found unpinned, and go while the pin is written
                await self._current(holding)
                await self._changed(lambda: holdings.pin(holding, pinned=pinned))
            who = "is pinned: it is not removed to make room" if pinned else "is not pinned any more"
            reason = "ArtifactPinned" if pinned else "ArtifactUnpinned"
            self._outside.announce(Event(reason, f"{status.source} {who}", at=clock.wall()))
        return await self.find(status.id)

    async def delete(self, name: str, *, request_id: str) -> Deleted:
        """Raises `FailedPrecondition` for what is in use, desired or pinned."""
        repeated = await self._repeated(request_id, name)
        try:
            status = await self.find(name)
        except NotFound:
            if repeated:
                return Deleted("", name, 0)
            raise
        seen, holding = await self._holding(status)
        freed = await self._remove(seen, holding, "an operator asked for it", must=True)
        if not freed and status.frees:
            raise FailedPrecondition(f"{status.source} is being fetched by another process", hint="try again later")
        return Deleted(status.id, status.source, freed or 0)

    async def _repeated(self, request_id: str, name: str) -> bool:
        """Whether the request came before; from now on it did. Raises `Conflict` for an id of another request."""
        if not request_id:
            return False
        store, digest = self._outside.store, hashlib.sha256(f"delete artifact {name}".encode()).hexdigest()
        earlier = await store.request(request_id)
        if earlier is not None and earlier.digest != digest:
            raise Conflict(f"request id {request_id!r} was used for another request", hint="use a new one")
        if earlier is None:
            record = RequestRecord(request_id, "delete artifact", digest, name, 0, clock.wall())
            await store.write(PutRequest(record))
        return earlier is not None

    async def collect(self, *, dry_run: bool, everything: bool) -> Collection:
        """Make room down to the low watermark; with `everything` remove all that nobody wants, however new."""
        failed: list[str] = []
        if not dry_run:
            await self._finish(failed)
        try:
            seen = await self._look()
        except OSError as error:
            raise Unavailable(f"{self._root} cannot be read: {_said(error)}") from error
        excess = seen.disk.excess(self._marks.low)
        candidates, now = self._candidates(seen.holdings), clock.wall()
        why = f"the disk is {seen.disk.used:.0%} full"
        if everything:
            going = garbage.everything(candidates, now)
        else:
            going = garbage.to_free(candidates, excess, why, self._marks, now) if excess else []
            named = {one.key for one in going}
            going += [one for one in garbage.abandoned(candidates, self._marks, now) if one.key not in named]
        if not dry_run:
            going = await self._carry_out(seen, going, failed)
        if failed and not going:
            raise Unavailable(_together(failed))
        statuses = {status.id: status for status in self._statuses(seen.holdings)}
        removed = tuple(Collected(statuses[_id(one.key)], one.frees, one.reason) for one in going)
        freed = sum(one.freed for one in removed)
        told = self._told(candidates, excess, freed, everything=everything)
        message = f"{told}; {_together(failed)}" if failed else told
        return Collection(removed, self._disk(seen.disk), message)

    async def make_room(self, lacking: int) -> bool:
        """Free so many bytes for a pull. Whether some became free."""
        try:
            seen = await self._look()
            why = f"a pull lacks {garbage.size(lacking)} of the disk"
            going = garbage.to_free(self._candidates(seen.holdings), lacking, why, self._marks, clock.wall())
            # Where all of it would not be enough, it stays: the pull is refused anyway.
            if sum(one.frees for one in going) < lacking:
                return False
            return any(one.frees for one in await self._carry_out(seen, going, []))
        except OSError as error:
            log.warning("no room made", error=str(error))
            return False

    async def settled(self, reference: str) -> None:
        """Until nothing that lies beside these files is being removed. Those that a deployment's plan names by now are
        not removed by what comes later."""
        if wants.place(wants.folder_of(self._root, reference)) in self._going:
            async with self._removing:
                pass

    async def tend(self) -> None:
        """Once a period: note what is in use, finish what was begun, and make room; what cannot be removed is told, and
        holds up nothing else. Raises `OSError` where the cache cannot be looked at."""
        failed: list[str] = []
        await self._finish(failed)
        seen = await self._look()
        interests = wants.interests(self._root, seen.holdings, self._outside.wants())
        live = [holding for holding in seen.holdings if interests[holding.key].used]
        await self._in_thread(lambda: _touch(live), SCAN_DEADLINE)
        candidates, now = self._candidates(seen.holdings), clock.wall()
        await self._carry_out(seen, list(garbage.abandoned(candidates, self._marks, now)), failed)
        if seen.disk.excess(self._marks.high):
            why = f"the disk is {seen.disk.used:.0%} full, above {self._marks.high:.0%}"
            going = garbage.to_free(candidates, seen.disk.excess(self._marks.low), why, self._marks, now)
            await self._carry_out(seen, going, failed)
            with contextlib.suppress(OSError):  # above all where a removal hangs: then what was seen before is told
                seen = await self._look()
        self._tell_disk(seen, failed)

    def _tell_disk(self, seen: _Seen, failed: Sequence[str]) -> None:
        full = f"{self._root}: {seen.disk.used:.0%} of the disk is in use, {garbage.size(seen.disk.free)} are free"
        above = bool(seen.disk.excess(self._marks.high))
        if failed:
            # Below the mark it has room, and cannot be given more when that is needed.
            message = f"{full}; {_together(failed)}"
            self._conditions.set("DiskHasRoom", False if above else None, "RemovalFailed", message)
            return
        if not above:
            self._conditions.set("DiskHasRoom", True, "BelowHighWatermark", full)
            return
        message = f"{full}, and nothing more can be removed"
        kept = [f"{garbage.size(count)} {reason}" for reason, count in self._kept(seen.holdings).items()]
        if kept:
            message += f"; kept: {', '.join(kept)}"
        self._conditions.set("DiskHasRoom", False, "NothingToRemove", message)

    def _kept(self, found: Sequence[Holding]) -> dict[str, int]:
        """Bytes that stay, by why."""
        sums: dict[str, int] = {}
        for one in self._candidates(found):
            why = "in use or desired" if "deployment" in one.kept_for else one.kept_for or "used lately"
            why = why.removeprefix("it is ")
            sums[why] = sums.get(why, 0) + sum(one.contents.values())
        return sums

    def _told(self, candidates: Sequence[Candidate], excess: int, freed: int, *, everything: bool) -> str:
        stays = sum(bool(one.kept_for) for one in candidates)
        wanted = f"in use, desired or pinned: {stays} of {len(candidates)} artifacts"
        if everything:
            return wanted
        if not excess:
            return f"less than {self._marks.low:.0%} of the disk is in use: nothing has to go"
        if freed >= excess:
            return f"{garbage.size(excess)} had to go to come below {self._marks.low:.0%} of the disk"
        lacking = garbage.size(excess - freed)
        lately = f"what was used within {garbage.age(self._marks.min_age)} stays"
        return f"{lacking} too few to come below {self._marks.low:.0%} of the disk: {wanted}, and {lately}"

    # Looking and removing -----------------------------------------------------------------------------------------

    def _candidates(self, found: Sequence[Holding], *, ordered: bool = False) -> list[Candidate]:
        interests = wants.interests(self._root, found, self._outside.wants())
        pulled = {job.folder.path for job in self._outside.pulls()}
        return [
            Candidate(
                holding.key, {str(path): count for path, count in holding.contents.items()}, holding.touched_at,
                whole=holding.kept is not None,
                kept_for=_kept_for(holding, interests[holding.key], pulled, ordered=ordered),
            )
            for holding in found
        ]  # fmt: skip

    async def _finish(self, failed: list[str]) -> None:
        """Carry out what was begun, but where a pull is under way. What fails is added to `failed`."""
        try:
            async with self._removing:
                begun = await self._changed(lambda: removal.begun(self._root))
                # As in `_remove`, nothing is awaited between this look and what follows from it.
                paths = begun - {job.folder.path for job in self._outside.pulls()}
                self._going = frozenset(map(wants.place, paths))
                try:
                    await self._changed(lambda: removal.finish(self._root, paths))
                finally:
                    self._going = frozenset()
        except Unavailable as error:
            failed.append(f"what was begun to be removed stays: {error}")
            log.warning("removal not finished", error=str(error))

    async def _carry_out(self, seen: _Seen, going: Sequence[Removal], failed: list[str]) -> list[Removal]:
        """Remove in order, and tell each; returns what went, with what that really freed. What fails is added to
        `failed`, and the next is tried."""
        by_key = {holding.key: holding for holding in seen.holdings}
        gone = []
        for one in going:
            holding = by_key[one.key]
            try:
                freed = await self._remove(seen, holding, one.reason)
            except NotFound:  # somebody else was faster
                continue
            except Unavailable as error:
                failed.append(f"{wants.reference(holding)} stays: {error}")
                log.warning("not removed", artifact=wants.reference(holding), error=str(error))
                continue
            if freed is not None:
                gone.append(replace(one, frees=freed))
        return gone

    async def _remove(self, seen: _Seen, holding: Holding, reason: str, *, must: bool = False) -> int | None:
        """Bytes that are free now; None for what somebody wants by now, or an error where it `must` go. Raises
        `NotFound` for what went meanwhile, and `Unavailable`."""
        async with self._removing:
            now = await self._current(holding)
            # Nothing is awaited between this look and the removal: who wants it later waits in `settled`.
            found = self._candidates([now if one is holding else one for one in seen.holdings], ordered=must)
            candidate = next(one for one in found if one.key == holding.key)
            if candidate.kept_for:
                if must:
                    raise FailedPrecondition(
                        f"{wants.reference(holding)} stays: {candidate.kept_for}", hint=_way(candidate)
                    )
                return None
            self._going = frozenset({wants.place(holding.folder.path)})
            try:
                freed = await self._changed(lambda: removal.remove(self._root, holding))
            finally:
                self._going = frozenset()
        if freed or holding.kept is not None:
            message = f"{wants.reference(holding)} removed, {garbage.size(freed)} freed: {reason}"
            self._outside.announce(Event("ArtifactRemoved", message, at=clock.wall()))
        return freed

    async def _holding(self, status: ArtifactStatus) -> tuple[_Seen, Holding]:
        """Raises `FailedPrecondition` for what is outside of the cache, and `NotFound` for what went meanwhile."""
        if status.format == "image":
            raise FailedPrecondition(
                f"{status.source} is an image, and the container engine's", hint="docker rmi (or podman rmi) removes it"
            )
        if status.state is ArtifactState.EXTERNAL:
            raise FailedPrecondition(f"{status.source} lies outside of the cache", hint="it is its owner's to manage")
        seen = await self._look()
        for holding in seen.holdings:
            if _id(holding.key) == status.id:
                return seen, holding
        raise NotFound(f"{status.source} is not here any more")

    async def _current(self, holding: Holding) -> Holding:
        """As it is now, for whoever has `_removing`. Raises `NotFound` for what went meanwhile, and `Unavailable`."""
        now = await self._changed(lambda: holdings.current(holding))
        if now is None:
            raise NotFound(f"{wants.reference(holding)} is not here any more")
        return now

    async def _look(self) -> _Seen:
        return await self._in_thread(lambda: _Seen(holdings.scan(self._root), _disk_of(self._root)), SCAN_DEADLINE)

    async def _changed(self, change: Callable[[], _T]) -> _T:
        try:
            return await self._in_thread(change, REMOVE_DEADLINE)
        except OSError as error:
            raise Unavailable(f"{self._root} cannot be changed: {_said(error)}") from error

    async def _in_thread(self, work: Callable[[], _T], deadline: float) -> _T:
        """As `runtimes.threads`; but a dead disk gets one thread, not one for each time that it is asked."""
        if self._hung is not None and not self._hung.done():
            raise TimeoutError(0, "an earlier look at the disk has not come back")
        future = asyncio.get_running_loop().run_in_executor(None, work)
        try:
            async with asyncio.timeout(deadline):
                return await asyncio.shield(future)
        except TimeoutError:
            self._hung = future
            raise TimeoutError(0, f"no answer within {deadline:g} s") from None


def _disk_of(root: Path) -> Disk:
    root.mkdir(parents=True, exist_ok=True)
    status = os.statvfs(root)
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    free = status.f_bavail * status.f_frsize  # what is reserved for root is not for engines
    return Disk(used + free, free)


def _touch(live: Sequence[Holding]) -> None:
    for holding in live:
        if holding.kept is not None:
            cache.touch(holding.folder, holding.kept)


def _id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _status(holding: Holding) -> ArtifactStatus:
    kept = holding.kept
    status = ArtifactStatus(
        id=_id(holding.key), source=wants.reference(holding), path=str(holding.folder.path),
        state=ArtifactState.FOREIGN if holding.foreign else ArtifactState.PARTIAL, size=holding.expected,
        files=len(holding.contents), disk=holding.bytes, used_at=holding.touched_at or None,
    )  # fmt: skip
    if kept is None:
        return status
    return replace(
        status, path=str(kept.path), state=ArtifactState.COMPLETE if holding.whole else ArtifactState.CHANGED,
        revision=kept.commit, variant=kept.variant, files=len(kept.files), digest=kept.digest, pinned=holding.pinned,
        quantization=kept.variant, verified_at=kept.verified_at or None,
        format="gguf" if kept.path.suffix == ".gguf" else "safetensors",
    )  # fmt: skip


def _kept_for(holding: Holding, interest: wants.Interest, pulled: set[Path], *, ordered: bool) -> str:
    if interest.used:
        return f"{_deployments(interest.used)} {'runs' if len(interest.used) == 1 else 'run'} with it"
    if interest.desired:
        return f"{_deployments(interest.desired)} {'wants' if len(interest.desired) == 1 else 'want'} it"
    if holding.pinned:
        return "it is pinned"
    if holding.folder.path in pulled:
        return "a pull of its repository is under way"
    if holding.folder.path.is_symlink():
        return "it lies behind a symbolic link"
    return "another tool put it there" if holding.foreign and not ordered else ""


def _deployments(names: Sequence[str]) -> str:
    return f"deployment{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _way(candidate: Candidate) -> str:
    """What to do about a refusal."""
    if "deployment" in candidate.kept_for:
        return "delete the deployment, or give it another model: a stopped one keeps its weights"
    if "pinned" in candidate.kept_for:
        return "agentctl artifacts unpin lets it go"
    return "try again when that is over" if "pull" in candidate.kept_for else "remove it by hand"


def _one(found: Sequence[ArtifactStatus], name: str) -> ArtifactStatus:
    same = [one for one in found if one.id == name or one.source in (name, f"hf:{name}")]
    if len(same) == 1:
        return same[0]
    if not same:
        raise NotFound(f"this node holds no artifact {name}", hint="agentctl artifacts ls shows what it holds")
    each = ", ".join(f"{one.id} ({one.revision[:12] or one.state})" for one in same)
    violation = FieldViolation("name", f"must be one of their ids: {each}")
    raise InvalidArgument(f"{name} is the reference of {len(same)} artifacts", violations=(violation,))


def _together(failed: Sequence[str]) -> str:
    """One of many is enough to look for the cause."""
    return failed[0] + (f" (and {len(failed) - 1} more)" if len(failed) > 1 else "")


def _said(error: OSError) -> str:
    why = error.strerror or str(error)
    return f"{why} ({error.filename})" if error.filename else why
