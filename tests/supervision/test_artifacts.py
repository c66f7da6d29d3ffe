"""Who waits for whom where artifacts go: on real files and a real store, at moments that a daemon gives to nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from agent.artifacts import cache, removal
from agent.artifacts.job import Job
from agent.config import load_config
from agent.status import Event
from agent.store.sqlite import Store
from agent.supervision.artifacts import Artifacts, Outside
from agent.supervision.conditions import Conditions
from agent.supervision.service import ArtifactStatus
from tests.cache_factory import keep

REPO, COMMIT = "a/b", "1" * 40


class Around:
    """The rest of a node that has no deployments. `jobs`, its pulls, are asked for where a removal begins."""

    def __init__(self, root: Path, store: Store) -> None:
        self.root = root
        self.jobs: Callable[[], Sequence[Job]] = tuple
        self.events: list[Event] = []
        overrides = [f"directories.cache={root}"]
        loaded = load_config("user", config_file=None, overrides=overrides, environ={"HOME": "/"})
        outside = Outside(self.events.append, tuple, self.pulls, store, self.images)
        self.artifacts = Artifacts(loaded.config, Conditions(self.events.append), outside)

    def pulls(self) -> Sequence[Job]:
        return self.jobs()

    async def images(self) -> Sequence[ArtifactStatus]:
        return ()


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Around]:
    store, _ = Store.open(tmp_path / "state")
    try:
        yield Around(tmp_path / "cache", store)
    finally:
        await store.close()


def leave(root: Path) -> Path:
    """What a process leaves that dies after the first step of a removal; returns the content."""
    kept = keep(
        root, REPO, COMMIT, "Q4", {"q4.gguf": b"4" * 100} | {f"{number}": b"%d" % number for number in range(300)}
    )
    record = cache.repository(root, REPO).record(COMMIT, "Q4")
    moved = root / "removing" / record.relative_to(root)
    moved.parent.mkdir(parents=True)
    record.rename(moved)
    return kept.path.resolve()


async def test_whoever_wants_the_files_waits_until_what_was_begun_is_finished(around: Around) -> None:
    leave(around.root)
    waiting: list[asyncio.Task[set[Path]]] = []

    async def wait() -> set[Path]:
        await around.artifacts.settled(f"hf:{REPO}:Q4")
        return removal.begun(around.root)

    def jobs() -> Sequence[Job]:
        if not waiting:
            waiting.append(asyncio.create_task(wait()))  # it comes to its turn as soon as the removal runs
        return ()

    around.jobs = jobs
    await around.artifacts.tend()
    assert await waiting[0] == set()


async def test_what_was_begun_waits_for_a_pull_of_the_same(around: Around) -> None:
    content = leave(around.root)
    around.jobs = lambda: (Job(f"hf:{REPO}:Q4", str(around.root), repo=REPO),)
    await around.artifacts.tend()
    assert content.exists()
    around.jobs = tuple
    await around.artifacts.tend()
    assert not content.exists()
    assert removal.begun(around.root) == set()
    assert not around.events
