"""gs://bucket/path/model.gguf[#sha256=HEX], gs://bucket/directory: objects of Google Cloud Storage."""

from __future__ import annotations

from dataclasses import replace

from agent.artifacts.base import SourcePolicy
from agent.artifacts.job import Job
from agent.artifacts.source_remote import RemoteSource, basis


def _repo(rest: str) -> str:
    return rest.partition("#")[0].removeprefix("//")


def _job(rest: str, policy: SourcePolicy) -> Job:
    config, digest = policy.fetching, rest.partition("#sha256=")[2]
    return replace(
        basis(f"gs:{rest}", "gs", policy), repo=_repo(rest), sha256=digest,
        endpoint=config.gs_endpoint or "", credentials=str(config.gs_credentials_file or ""),
    )  # fmt: skip


SOURCE = RemoteSource("gs", _repo, _job)
