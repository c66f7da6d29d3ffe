"""hf:owner/name[@revision][:variant]: weights on the Hugging Face hub or a mirror of it.

What was fetched once is used as it is: a branch that goes on does not change what a deployment serves.
"""

from __future__ import annotations

import asyncio
import os

from agent.artifacts import cache
from agent.artifacts.base import ArtifactError, Fetched, SourcePolicy
from agent.artifacts.errors import missing, refused
from agent.artifacts.job import Job
from agent.artifacts.pulls import Show
from agent.references import HubReference
from agent.status import DiagnosisCode

ENDPOINT = "https://huggingface.co"


async def resolve(rest: str, policy: SourcePolicy) -> Fetched:
    """The files, where they are whole in the cache. Raises `ArtifactError`."""
    return await _kept(_allowed(rest, policy), rest, policy, use=False)


async def fetch(rest: str, policy: SourcePolicy, show: Show) -> Fetched:
    """The files; what is not here comes from the hub. Raises `ArtifactError`."""
    wanted = _allowed(rest, policy)
    try:
        return await _kept(wanted, rest, policy, use=True)
    except ArtifactError:
        token = await asyncio.to_thread(policy.token)
        pulled = await policy.pulls.fetch(_job(wanted, rest, policy, token), show)
    return Fetched(pulled.path, pulled.digest, pulled.bytes, f"hf:{rest}")


def endpoint(policy: SourcePolicy) -> str:
    """Of the hub that is asked, without a slash at its end."""
    return (policy.fetching.endpoint or os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def offline(policy: SourcePolicy) -> bool:
    """Whether nothing may be fetched."""
    if policy.fetching.offline is not None:
        return policy.fetching.offline
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _allowed(rest: str, policy: SourcePolicy) -> HubReference:
    wanted = HubReference.parse(rest)
    if wanted is None:
        raise missing(f"hf:{rest} does not name a repository", "write hf:owner/name, hf:owner/name:variant")
    owner = wanted.repo.partition("/")[0]
    if policy.organisations is not None and owner.lower() not in policy.organisations:
        message = f"the node policy does not allow models of {owner}"
        hint = f"policy.model_organisations allows: {', '.join(sorted(policy.organisations)) or 'none'}"
        raise refused(DiagnosisCode.POLICY_DENIED, message, hint)
    return wanted


async def _kept(wanted: HubReference, rest: str, policy: SourcePolicy, *, use: bool) -> Fetched:
    def look() -> Fetched | None:
        folder = cache.repository(policy.cache, wanted.repo)
        kept = folder.kept(folder.commit(wanted.revision or "main"), wanted.variant)
        if kept is not None and use:
            cache.touch(folder, kept)
        return Fetched(kept.path, kept.digest, kept.bytes, f"hf:{rest}") if kept else None

    found = await asyncio.to_thread(look)
    if found is None:
        raise missing(f"hf:{rest} is not on this node yet")
    return found


def _job(wanted: HubReference, rest: str, policy: SourcePolicy, token: str) -> Job:
    config = policy.fetching
    return Job(
        source=f"hf:{rest}", cache=str(policy.cache), repo=wanted.repo, revision=wanted.revision or "main",
        variant=wanted.variant, endpoint=endpoint(policy), token=token, offline=offline(policy),
        pickle=policy.pickle, connections=config.connections, bytes_per_second=config.bytes_per_second,
        stall_seconds=config.stall_seconds, reserve_bytes=config.disk_reserve_bytes,
    )  # fmt: skip
