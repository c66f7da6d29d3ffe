"""s3://bucket/path/model.gguf[#sha256=HEX], s3://bucket/directory: objects of S3, or of a server that speaks it."""

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
        basis(f"s3:{rest}", "s3", policy), repo=_repo(rest), sha256=digest,
        endpoint=config.s3_endpoint or "", region=config.s3_region or "",
        credentials=str(config.s3_credentials_file or ""),
    )  # fmt: skip


SOURCE = RemoteSource("s3", _repo, _job)
