"""https://host/path/model.gguf[#sha256=HEX]: one GGUF file of a web server. http: the same, unencrypted."""

from __future__ import annotations

from dataclasses import replace

from agent.artifacts.base import ArtifactError, Fetched, SourcePolicy
from agent.artifacts.job import Job
from agent.artifacts.pulls import Show
from agent.artifacts.source_remote import basis, kept
from agent.frozen import frozen


@frozen
class UrlSource:
    """One of the two schemes."""

    scheme: str

    async def resolve(self, rest: str, policy: SourcePolicy) -> Fetched:
        """The file, where it is whole in the cache. Raises `ArtifactError`."""
        return await kept(self._job(rest, policy), use=False)

    async def fetch(self, rest: str, policy: SourcePolicy, show: Show) -> Fetched:
        """The file; where it is not here, it is fetched. Raises `ArtifactError`."""
        job = self._job(rest, policy)
        try:
            return await kept(job, use=True)
        except ArtifactError:
            pulled = await policy.pulls.fetch(job, show)
        return Fetched(pulled.path, pulled.digest, pulled.bytes, job.source)

    def _job(self, rest: str, policy: SourcePolicy) -> Job:
        reference = f"{self.scheme}:{rest}"
        url, _, digest = reference.partition("#sha256=")
        return replace(basis(reference, "url", policy), url=url, sha256=digest)
