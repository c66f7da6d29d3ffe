"""What sources have in common whose files a process fetches into the cache.

What was fetched once is used as it is: a tag or an object that goes on does not change what a deployment serves.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.artifacts import cache, secret_files
from agent.artifacts.base import ArtifactError, Fetched, SourcePolicy
from agent.artifacts.cache import Folder
from agent.artifacts.errors import missing, refused
from agent.artifacts.job import Job
from agent.artifacts.pulls import Show
from agent.frozen import frozen
from agent.references import MODEL_SCHEMES
from agent.status import DiagnosisCode


@frozen
class RemoteSource:
    """One scheme. `repo` is what the source calls a model, of the rest of a reference to it; `job` says what is to be
    fetched, and raises `ArtifactError` for what the policy does not allow."""

    scheme: str
    repo: Callable[[str], str]
    job: Callable[[str, SourcePolicy], Job]

    def folder(self, rest: str, root: Path) -> Folder:
        """Where its files lie in the cache, or would."""
        return cache.of_kind(root, self.scheme, self.repo(rest))

    async def resolve(self, rest: str, policy: SourcePolicy) -> Fetched:
        """The files, where they are whole in the cache. Raises `ArtifactError`."""
        return await kept(await asyncio.to_thread(self._job, rest, policy), use=False)

    async def fetch(self, rest: str, policy: SourcePolicy, show: Show) -> Fetched:
        """The files; where they are not here, they are fetched. Raises `ArtifactError`."""
        job = await asyncio.to_thread(self._job, rest, policy)
        try:
            return await kept(job, use=True)
        except ArtifactError:
            pulled = await policy.pulls.fetch(job, show)
        return Fetched(pulled.path, pulled.digest, pulled.bytes, job.source)

    async def look(self, rest: str, policy: SourcePolicy) -> dict[str, Any] | None:
        """The model's profile as data, from headers at its source; None where the files are here. Raises
        `ArtifactError`."""
        job = await asyncio.to_thread(self._job, rest, policy)
        try:
            await kept(job, use=False)
        except ArtifactError:
            return await policy.pulls.look(job)
        return None

    def _job(self, rest: str, policy: SourcePolicy) -> Job:
        """Reads a token. Raises `ArtifactError`."""
        try:
            return self.job(MODEL_SCHEMES[self.scheme](rest), policy)
        except ValueError as error:
            raise missing(f"{self.scheme}:{rest} {error}") from None


async def kept(job: Job, *, use: bool) -> Fetched:
    """What is whole in the cache. `use`: it was wanted now, and goes later than others. Raises `ArtifactError`."""

    def look() -> Fetched | None:
        folder = job.folder
        found = folder.kept(job.sha256 or folder.commit(job.revision), job.variant)
        if found is not None and use:
            cache.touch(folder, found)
        return Fetched(found.path, found.digest, found.bytes, job.source) if found else None

    fetched = await asyncio.to_thread(look)
    if fetched is None:
        raise missing(f"{job.source} is not on this node yet")
    return fetched


def offline(policy: SourcePolicy) -> bool:
    """Whether nothing may be fetched."""
    if policy.fetching.offline is not None:
        return policy.fetching.offline
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def basis(source: str, kind: str, policy: SourcePolicy) -> Job:
    """What the node's policy says of every pull."""
    config = policy.fetching
    return Job(
        source=source, cache=str(policy.cache), kind=kind, offline=offline(policy), pickle=policy.pickle,
        connections=config.connections, bytes_per_second=config.bytes_per_second,
        stall_seconds=config.stall_seconds, reserve_bytes=config.disk_reserve_bytes,
    )  # fmt: skip


def allow(owner: str, policy: SourcePolicy) -> None:
    """Raises `ArtifactError` for owners of models whom the policy does not name."""
    if policy.organisations is not None and owner.lower() not in policy.organisations:
        message = f"the node policy does not allow models of {owner}"
        hint = f"policy.model_organisations allows: {', '.join(sorted(policy.organisations)) or 'none'}"
        raise refused(DiagnosisCode.POLICY_DENIED, message, hint)


def secret(path: Path | None, field: str) -> str:
    """A token, from the operator's file; "" without one. Not for the event loop. Raises `ArtifactError`."""
    if path is None:
        return ""
    try:
        return secret_files.read(path).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "it is not UTF-8 text"
        hint = "create it, readable by the agent's user, or change the setting"
        raise refused(DiagnosisCode.SECRET_MISSING, f"{field}: {path}: {problem}", hint) from None
