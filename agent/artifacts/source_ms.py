"""ms:owner/name[@revision][:variant]: weights on ModelScope."""

from __future__ import annotations

from dataclasses import replace

from agent.artifacts.base import SourcePolicy
from agent.artifacts.job import Job
from agent.artifacts.source_remote import RemoteSource, allow, basis, secret
from agent.references import HubReference

ENDPOINT = "https://modelscope.cn"


def _parsed(rest: str) -> HubReference:
    wanted = HubReference.parse(rest)
    assert wanted is not None  # it was checked
    return wanted


def _job(rest: str, policy: SourcePolicy) -> Job:
    wanted = _parsed(rest)
    allow(wanted.repo.partition("/")[0], policy)
    config = policy.fetching
    return replace(
        basis(f"ms:{rest}", "ms", policy), repo=wanted.repo, revision=wanted.revision or "master",
        variant=wanted.variant, endpoint=(config.ms_endpoint or ENDPOINT).rstrip("/"),
        token=secret(config.ms_token_file, "fetch.ms_token_file"),
    )  # fmt: skip


SOURCE = RemoteSource("ms", lambda rest: _parsed(rest).repo, _job)
