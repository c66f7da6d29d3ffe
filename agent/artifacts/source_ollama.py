"""ollama:[owner/]model[:tag]: a GGUF model of Ollama's registry, or of one like it."""

from __future__ import annotations

from dataclasses import replace

from agent.artifacts.base import SourcePolicy
from agent.artifacts.job import Job
from agent.artifacts.source_remote import RemoteSource, allow, basis

ENDPOINT = "https://registry.ollama.ai"


def _repo(rest: str) -> str:
    name = rest.partition(":")[0]
    return name if "/" in name else f"library/{name}"


def _job(rest: str, policy: SourcePolicy) -> Job:
    repo, tag = _repo(rest), rest.partition(":")[2]
    allow(repo.partition("/")[0], policy)
    endpoint = (policy.fetching.ollama_endpoint or ENDPOINT).rstrip("/")
    return replace(basis(f"ollama:{rest}", "ollama", policy), repo=repo, revision=tag or "latest", endpoint=endpoint)


SOURCE = RemoteSource("ollama", _repo, _job)
