"""What deployments have to do with artifacts: which of them an engine runs with, and which are named.

Whoever has a plan wants the files of that plan. Whoever has none (not planned yet, refused, failed) wants all that is
here of the repository that its spec names. A stopped deployment wants what it wants: it shall start without fetching.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from agent.artifacts import cache
from agent.artifacts.holdings import Holding
from agent.frozen import frozen
from agent.planning.plan import Variant
from agent.references import HubReference
from agent.supervision.actor import Actor
from agent.supervision.registry import Registry
from agent.supervision.service import ArtifactState, ArtifactStatus


@frozen
class Want:
    """One deployment's. `variant` is its plan's; without one only the reference is known."""

    deployment: str
    source: str
    live: bool  # its engine runs with it
    variant: Variant | None = None


@frozen
class Interest:
    """Who has to do with one holding."""

    used: tuple[str, ...] = ()
    desired: tuple[str, ...] = ()
    variant: Variant | None = None  # as a plan describes it


def of(registry: Registry) -> tuple[Want, ...]:
    """All of them, now."""
    return tuple(want for actor in registry for want in _of_actor(actor))


def _of_actor(actor: Actor) -> Iterator[Want]:
    instance, plan = actor.instance, actor.plan
    if plan is not None:
        yield Want(actor.name, plan.variant.source, False, plan.variant)
    if plan is None or plan.generation != actor.record.generation:
        yield Want(actor.name, actor.spec.model, False)
    if instance is None:
        return
    same = plan is not None and plan.generation == instance.generation
    ran = plan.variant if same and plan is not None else _variant(instance.plan_json)
    if ran is not None and instance.ended_at is None:
        yield Want(actor.name, ran.source, True, ran)
    if ran is not None and plan is None:  # it would probably get the same again
        yield Want(actor.name, ran.source, False, ran)


def _variant(plan_json: str) -> Variant | None:
    try:
        data: dict[str, Any] = json.loads(plan_json)["variant"]
        return Variant(**data)
    except (ValueError, KeyError, TypeError):
        return None


def interests(root: Path, found: Sequence[Holding], wanted: Iterable[Want]) -> dict[str, Interest]:
    """Of each holding, by its key."""
    used: dict[str, dict[str, None]] = {}
    desired: dict[str, dict[str, None]] = {}
    variants: dict[str, Variant] = {}
    for want in wanted:
        for holding in _meant(root, found, want):
            (used if want.live else desired).setdefault(holding.key, {})[want.deployment] = None
            if want.variant is not None and holding.kept is not None:
                variants.setdefault(holding.key, want.variant)
    return {
        holding.key: Interest(
            tuple(used.get(holding.key, ())), tuple(desired.get(holding.key, ())), variants.get(holding.key)
        )
        for holding in found
    }


def _meant(root: Path, found: Sequence[Holding], want: Want) -> list[Holding]:
    path = want.variant.path if want.variant else ""
    if exact := [holding for holding in found if holding.kept is not None and str(holding.kept.path) == path]:
        return exact
    there = place(folder_of(root, want.source)) or place(_below(root, path))
    return [
        holding
        for holding in found
        if place(holding.folder.path) == there or (holding.kept is not None and holding.kept.source == want.source)
    ]


def place(path: Path | None) -> str:
    """A repository's folder by name; "" for none. Names of repositories differ in case, and mean the same."""
    return f"{path.parent.name}/{path.name}".lower() if path else ""


def folder_of(root: Path, reference: str) -> Path | None:
    """Where files of a reference lie, or would; None for those of sources that do not use the cache."""
    scheme, _, rest = reference.partition(":")
    if scheme == "hf":
        wanted = HubReference.parse(rest)
        return cache.repository(root, wanted.repo).path if wanted else None
    if scheme in {"http", "https"}:
        return cache.of_url(root, reference.partition("#")[0]).path
    if scheme in {"file", "package", "gateway"}:
        return _below(root, rest) if scheme == "file" else None
    from agent.artifacts.sources import REMOTE  # noqa: PLC0415 - what the daemon's start does not need

    return REMOTE[scheme].folder(rest, root).path if scheme in REMOTE else None


def _below(root: Path, path: str) -> Path | None:
    """The repository's folder of a path inside of the cache."""
    if not Path(path).is_relative_to(root):
        return None
    kind, name, *_ = (*Path(path).relative_to(root).parts, "", "")
    return root / kind / name if name else None


def external(root: Path, wanted: Iterable[Want]) -> Iterator[ArtifactStatus]:
    """What deployments use from elsewhere than the cache, by path."""
    variants: dict[str, Variant] = {}
    used: dict[str, dict[str, None]] = {}
    desired: dict[str, dict[str, None]] = {}
    for want in wanted:
        variant = want.variant
        if variant is not None and Path(variant.path).is_absolute() and not Path(variant.path).is_relative_to(root):
            variants[variant.path] = variant
            (used if want.live else desired).setdefault(variant.path, {})[want.deployment] = None
    for path, variant in sorted(variants.items()):
        yield ArtifactStatus(
            id=hashlib.sha256(path.encode()).hexdigest()[:12], source=variant.source, path=path,
            state=ArtifactState.EXTERNAL, size=variant.bytes, format=variant.format, digest=variant.digest,
            quantization=variant.quantization, architecture=variant.architecture,
            used_by=tuple(used.get(path, ())), desired_by=tuple(desired.get(path, ())),
        )  # fmt: skip


def reference(holding: Holding) -> str:
    """What a holding is called: the same whether it was asked for by a branch or by the commit that this was."""
    kept, path = holding.kept, holding.folder.path
    if path.parent.name == "hub":
        repo = kept.repo if kept else path.name.removeprefix("models--").replace("--", "/", 1)
        return f"hf:{repo}" + (f":{kept.variant}" if kept and kept.variant else "")
    if kept:
        return kept.repo
    scheme = "https:" if path.parent.name == "urls" else f"{path.parent.name}:"
    return f"{scheme}{'//' if scheme in {'https:', 's3:', 'gs:'} else ''}{path.name.rpartition('--')[0]}/..."
