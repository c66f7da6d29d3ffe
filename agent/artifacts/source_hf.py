"""hf:owner/name[@revision][:variant]: weights on the Hugging Face hub or a mirror of it.

What was fetched once is used as it is: a branch that goes on does not change what a deployment serves.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from agent.artifacts.base import ArtifactError, Fetched, SourcePolicy
from agent.artifacts.errors import missing
from agent.artifacts.job import Job
from agent.artifacts.pulls import Show
from agent.artifacts.source_remote import allow, basis, kept
from agent.references import HubReference

ENDPOINT = "https://huggingface.co"


async def resolve(rest: str, policy: SourcePolicy) -> Fetched:
    """The files, where they are whole in the cache. Raises `ArtifactError`."""
    return await kept(_job(rest, policy), use=False)


async def fetch(rest: str, policy: SourcePolicy, show: Show) -> Fetched:
    """The files; what is not here comes from the hub. Raises `ArtifactError`."""
    job = _job(rest, policy)
    try:
        return await kept(job, use=True)
    except ArtifactError:
        token = await asyncio.to_thread(policy.token)  # not asked for before: who has the files needs none
        pulled = await policy.pulls.fetch(replace(job, token=token), show)
    return Fetched(pulled.path, pulled.digest, pulled.bytes, job.source)


def endpoint(policy: SourcePolicy) -> str:
    """Of the hub that is asked, without a slash at its end."""
    return (policy.fetching.endpoint or os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def _job(rest: str, policy: SourcePolicy) -> Job:
    wanted = HubReference.parse(rest)
    if wanted is None:
        raise missing(f"hf:{rest} does not name a repository", "write hf:owner/name, hf:owner/name:variant")
    allow(wanted.repo.partition("/")[0], policy)
    return replace(
        basis(f"hf:{rest}", "hf", policy), repo=wanted.repo, revision=wanted.revision or "main",
        variant=wanted.variant, endpoint=endpoint(policy),
    )  # fmt: skip
