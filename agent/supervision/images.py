"""The engine images that the node's container engine has, and which deployments use them.

Asked over the engine's socket, with a deadline and bounds: no SDK in the daemon, no thread that hangs with the engine.
Images are the engine's own: the agent lists them, and removes none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from agent.artifacts.image_engine import ask
from agent.frozen import frozen
from agent.planning.plan import Image
from agent.supervision.actor import Actor
from agent.supervision.registry import Registry
from agent.supervision.service import ArtifactState, ArtifactStatus

#: Seconds for the list of images.
_DEADLINE = 4.0


@frozen
class Want:
    """One deployment's, of an image that was pulled for it."""

    deployment: str
    image: Image
    live: bool  # its engine runs in it


def wanted(registry: Registry) -> tuple[Want, ...]:
    return tuple(want for actor in registry for want in _of_actor(actor))


def _of_actor(actor: Actor) -> Iterator[Want]:
    plan, instance = actor.plan, actor.instance
    if plan is not None and plan.image is not None:
        yield Want(actor.name, plan.image, live=False)
    if instance is not None and instance.ended_at is None:
        try:
            yield Want(actor.name, Image(**json.loads(instance.plan_json)["image"]), live=True)
        except (ValueError, KeyError, TypeError):
            return  # a process, or a record that cannot be read


async def held(socket: str, repositories: Collection[str], wants: Iterable[Want]) -> list[ArtifactStatus]:
    """Those of these repositories, and those that are wanted; of an engine that does not answer only these."""
    wants = tuple(wants)
    try:
        found = [_Found.of(image) for image in json.loads(await ask(socket, "/images/json", _DEADLINE))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return list(_unknown(socket, str(error) or type(error).__name__, wants))
    return list(_statuses(found, repositories, wants))


@frozen
class _Found:
    id: str
    names: tuple[str, ...]  # repository:tag
    digests: Mapping[str, str]  # by repository
    size: int

    @staticmethod
    def of(data: Mapping[str, Any]) -> _Found:
        names = tuple(_whole(str(name)) for name in data.get("RepoTags") or () if "<none>" not in str(name))
        pairs = [_whole(str(name)).partition("@") for name in data.get("RepoDigests") or ()]
        return _Found(str(data["Id"]), names, {name: digest for name, _, digest in pairs}, int(data.get("Size") or 0))

    @property
    def repositories(self) -> set[str]:
        return {name.rpartition(":")[0] for name in self.names} | set(self.digests)


def _whole(name: str) -> str:
    """With its registry, which Docker leaves out of names of its own."""
    first, slash, _ = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def _statuses(
    found: Iterable[_Found], repositories: Collection[str], wants: Collection[Want]
) -> Iterator[ArtifactStatus]:
    for image in found:
        users = [want for want in wants if want.image.id == image.id]
        if users or not image.repositories.isdisjoint(repositories):
            source = users[0].image.name if users else next(iter((*image.names, *image.repositories)), image.id)
            digest = image.digests.get(source.rpartition(":")[0]) or next(iter(image.digests.values()), "")
            yield replace(_status(source, image.id, users), size=image.size, digest=digest)


def _unknown(socket: str, problem: str, wants: Iterable[Want]) -> Iterator[ArtifactStatus]:
    reason = f"the container engine at {socket} cannot be asked: {problem}"
    by_id: dict[str, list[Want]] = {}
    for want in wants:
        by_id.setdefault(want.image.id or want.image.name, []).append(want)
    for users in by_id.values():
        image = users[0].image
        known = _status(image.name, image.id, users)
        yield replace(known, state=ArtifactState.UNKNOWN, digest=image.digest, kept_for=reason)
    if not by_id:
        yield replace(_status("images", "", ()), state=ArtifactState.UNKNOWN, kept_for=reason)


def _status(source: str, image: str, users: Collection[Want]) -> ArtifactStatus:
    def names(*, live: bool) -> tuple[str, ...]:
        return tuple(dict.fromkeys(want.deployment for want in users if want.live is live))

    key = hashlib.sha256((image or source).encode()).hexdigest()[:12]
    return ArtifactStatus(
        id=key, source=source, path=image, state=ArtifactState.EXTERNAL, size=0, format="image",
        used_by=names(live=True), desired_by=names(live=False),
    )  # fmt: skip
