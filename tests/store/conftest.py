import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.store.records import Change, Loaded
from agent.store.sqlite import Store
from tests.small_disk import small_disk


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def fill(state: Path) -> Callable[..., None]:
    """Write changes, one transaction each, and close the store."""

    def write(*changes: Change) -> None:
        store, _ = Store.open(state)

        async def run() -> None:
            for change in changes:
                await store.write(change)
            await store.close()

        asyncio.run(run())

    return write


@pytest.fixture
def reopen(state: Path) -> Callable[[], Loaded]:
    """Open the store, prove that it still takes writes, and close it again: what was loaded."""

    def load() -> Loaded:
        store, loaded = Store.open(state)

        async def run() -> None:
            try:
                await store.check()
                await store.events("", before_seq=0, limit=1000)
            finally:
                await store.close()

        asyncio.run(run())
        return loaded

    return load


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB of its own, to be filled or remounted read-only."""
    with small_disk(tmp_path / "disk", "1m") as mount:
        yield mount
