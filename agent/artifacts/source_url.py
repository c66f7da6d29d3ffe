"""https://host/path/model.gguf[#sha256=HEX]: one GGUF file of a web server. http: the same, unencrypted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from agent.artifacts import cache
from agent.artifacts.base import ArtifactError, Fetched, SourcePolicy
from agent.artifacts.errors import missing
from agent.artifacts.job import Job
from agent.artifacts.pulls import Show
from agent.artifacts.source_hf import offline


@dataclass(frozen=True, slots=True)
class UrlSource:
    """One of the two schemes."""

    scheme: str

    async def resolve(self, rest: str, policy: SourcePolicy) -> Fetched:
        """The file, where it is whole in the cache. Raises `ArtifactError`."""
        return await self._kept(rest, policy, use=False)

    async def fetch(self, rest: str, policy: SourcePolicy, show: Show) -> Fetched:
        """The file; where it is not here, it is fetched. Raises `ArtifactError`."""
        try:
            return await self._kept(rest, policy, use=True)
        except ArtifactError:
            pulled = await policy.pulls.fetch(self._job(rest, policy), show)
        return Fetched(pulled.path, pulled.digest, pulled.bytes, f"{self.scheme}:{rest}")

    async def _kept(self, rest: str, policy: SourcePolicy, *, use: bool) -> Fetched:
        url, _, digest = f"{self.scheme}:{rest}".partition("#sha256=")

        def look() -> Fetched | None:
            folder = cache.of_url(policy.cache, url)
            kept = folder.kept(digest or folder.commit("main"), "")
            if kept is not None and use:
                cache.touch(folder, kept)
            return Fetched(kept.path, kept.digest, kept.bytes, f"{self.scheme}:{rest}") if kept else None

        found = await asyncio.to_thread(look)
        if found is None:
            raise missing(f"{self.scheme}:{rest} is not on this node yet")
        return found

    def _job(self, rest: str, policy: SourcePolicy) -> Job:
        config, (url, _, digest) = policy.fetching, f"{self.scheme}:{rest}".partition("#sha256=")
        return Job(
            source=f"{self.scheme}:{rest}", cache=str(policy.cache), kind="url", url=url, sha256=digest,
            offline=offline(policy), connections=config.connections, bytes_per_second=config.bytes_per_second,
            stall_seconds=config.stall_seconds, reserve_bytes=config.disk_reserve_bytes,
        )  # fmt: skip
