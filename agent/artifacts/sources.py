"""Where models come from: one module a scheme, all behind `resolve` and `fetch`.

A source resolves the rest of a reference to a local file and verifies it as far as its kind can. Whether a node
allows a scheme or a directory is its policy, given as data.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agent.artifacts import (
    source_file,
    source_gs,
    source_hf,
    source_ms,
    source_oci,
    source_ollama,
    source_package,
    source_s3,
    source_url,
)
from agent.artifacts.base import ArtifactError, Fetched, SourcePolicy
from agent.frozen import frozen
from agent.status import Diagnosis, DiagnosisCode, Progress

__all__ = ["SOURCES", "ArtifactError", "Fetched", "SourcePolicy", "fetch", "look", "resolve"]

ShowProgress = Callable[[Progress], None]


@frozen
class Source:
    """One scheme. `resolve` is quick and says where the file is, or will be; `fetch` brings and verifies it."""

    resolve: Callable[[str, SourcePolicy], Awaitable[Fetched]]
    fetch: Callable[[str, SourcePolicy, ShowProgress], Awaitable[Fetched]]


_HTTPS, _HTTP = source_url.UrlSource("https"), source_url.UrlSource("http")
#: Those that have a folder of the cache for each of their models.
REMOTE = {
    source.scheme: source
    for source in (source_s3.SOURCE, source_gs.SOURCE, source_oci.SOURCE, source_ollama.SOURCE, source_ms.SOURCE)
}

#: Scheme -> source.
SOURCES: Mapping[str, Source] = {
    "file": Source(source_file.resolve, source_file.fetch),
    "package": Source(source_package.resolve, source_package.fetch),
    "hf": Source(source_hf.resolve, source_hf.fetch),
    "https": Source(_HTTPS.resolve, _HTTPS.fetch),
    "http": Source(_HTTP.resolve, _HTTP.fetch),
    **{scheme: Source(remote.resolve, remote.fetch) for scheme, remote in REMOTE.items()},
}


async def resolve(reference: str, policy: SourcePolicy) -> Fetched:
    """Where the model's file is on this node, not yet verified: enough to plan with. Raises `ArtifactError`."""
    source, rest = _source(reference, policy)
    return await source.resolve(rest, policy)


async def look(reference: str, policy: SourcePolicy) -> dict[str, Any] | None:
    """The profile of a model that is not here yet, as data; None of sources that are not looked at, and of what is
    here. Raises `ArtifactError`."""
    _, rest = _source(reference, policy)
    remote = REMOTE.get(reference.partition(":")[0])
    return await remote.look(rest, policy) if remote else None


async def fetch(reference: str, policy: SourcePolicy, progress: ShowProgress) -> Fetched:
    """The model's file on this node, verified; `progress` is called in the event loop. Raises `ArtifactError`."""
    source, rest = _source(reference, policy)
    return await source.fetch(rest, policy, progress)


def _source(reference: str, policy: SourcePolicy) -> tuple[Source, str]:
    scheme, _, rest = reference.partition(":")
    if scheme not in SOURCES:
        hint = f"known sources: {', '.join(SOURCES)}"
        message = f"the model source {scheme!r} is not known"
        raise ArtifactError(Diagnosis(DiagnosisCode.MODEL_MISSING, message, reference, hint))
    if scheme not in policy.schemes:
        message = f"the node policy does not allow the model source {scheme!r}"
        hint = f"policy.model_sources allows: {', '.join(sorted(policy.schemes)) or 'none'}"
        raise ArtifactError(Diagnosis(DiagnosisCode.POLICY_DENIED, message, reference, hint))
    return SOURCES[scheme], rest
