"""A hub on loopback, and what is fetched from it: in this process where that is the subject, else in its own."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.artifacts.base import SourcePolicy
from agent.artifacts.cache import Kept
from agent.artifacts.fetcher import Fetcher, diagnosed
from agent.artifacts.job import Job
from agent.references import HubReference
from agent.settings import FetchConfig
from agent.status import Diagnosis
from tests.artifacts.registries import Puller
from tests.docker.parts import Registry
from tests.hub.server import Hub
from tests.relay import Relay


@pytest.fixture(scope="module")
def one_hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture
def hub(one_hub: Hub) -> Hub:
    """As new: to start and end one takes a tenth of a second."""
    one_hub.heal()
    for known in (one_hub.tokens, one_hub.repos, one_hub.renamed, one_hub.requests):
        known.clear()
    return one_hub


class Pulling:
    """Runs jobs against a hub, into one cache."""

    def __init__(self, hub: Hub, cache: Path) -> None:
        self.hub, self.cache = hub, cache
        self.said: list[dict[str, Any]] = []

    def job(self, reference: str, **fields: Any) -> Job:
        wanted = HubReference.parse(reference)
        assert wanted is not None
        return Job(**{
            "source": f"hf:{reference}", "cache": str(self.cache), "repo": wanted.repo,
            "revision": wanted.revision or "main", "variant": wanted.variant, "endpoint": self.hub.endpoint,
            "stall_seconds": 3.0, **fields,
        })  # fmt: skip

    def fetch(self, reference: str, **fields: Any) -> Kept:
        return Fetcher(self.job(reference, **fields), self.said.append).run()

    def refused(self, reference: str, **fields: Any) -> Diagnosis:
        job = self.job(reference, **fields)
        with pytest.raises(Exception) as caught:
            Fetcher(job, self.said.append).run()
        return diagnosed(caught.value, job)

    def url(self, url: str, **fields: Any) -> Job:
        return dataclasses.replace(self.job("none/none"), source=url, kind="url", url=url, repo="", **fields)

    def policy(self, **fields: Any) -> SourcePolicy:
        """For `sources.fetch`, which starts processes."""
        settings = {"endpoint": self.hub.endpoint, "stall_seconds": 5.0, "disk_reserve_bytes": 0}
        config = FetchConfig(**settings | fields.pop("fetching", {}))
        return SourcePolicy(frozenset({"hf", "http"}), None, self.cache, fetching=config, **fields)


@pytest.fixture
def pulling(hub: Hub, tmp_path: Path) -> Pulling:
    return Pulling(hub, tmp_path / "cache")


@pytest.fixture(scope="module")
def registry_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """What leads to a container registry."""
    if shutil.which("docker-registry") is None:
        pytest.skip("no docker-registry is installed (scripts/test-docker installs one)")
    server = Registry(tmp_path_factory.mktemp("registry"))
    server.start()
    try:
        with Relay(server.port) as relay:
            yield relay
    finally:
        server.kill()


@pytest.fixture
def puller(registry_line: Relay, tmp_path: Path) -> Puller:
    registry_line.heal()
    return Puller(registry_line, tmp_path)
