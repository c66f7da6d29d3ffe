"""Disks that refuse: what can be read is served, what cannot be written is said, and it heals without a restart."""

import asyncio
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from agent.errors import FailedPrecondition, StoreError
from agent.store.records import PutDeployment, PutEvent, PutInstance
from agent.store.sqlite import Store
from tests.store.builders import deployment, event, instance


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", disk], check=True)


def fill_up(disk: Path) -> Path:
    """Leave not a byte, in a file that is not ours."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


async def backed_up(state: Path) -> None:
    """Past the backup at the start: one that meets the full disk gives back, a moment later, what it took of it."""
    async with asyncio.timeout(30):
        while not (state / "agent.db.backup").exists():
            await asyncio.sleep(0.01)


async def crash(state: Path, disk: Path) -> None:
    """A state as a killed daemon leaves it: with a WAL, and no index of it."""
    store, _ = Store.open(state)
    await store.write(PutDeployment(deployment()), PutInstance(instance()), PutEvent(event()))
    shutil.copytree(state, disk / "state", ignore=shutil.ignore_patterns("*-shm", "lock", "*.backup*"))
    await store.close()


@pytest.mark.parametrize("locked_before", [True, False])
async def test_a_read_only_disk_is_read_and_refuses_writes_until_it_is_writable(
    state: Path, disk: Path, locked_before: bool
) -> None:
    await crash(state, disk)
    if locked_before:
        (disk / "state" / "lock").touch()
    remount(disk, "ro")
    store, loaded = Store.open(disk / "state")
    assert (loaded.deployments, loaded.instances) == ((deployment(),), (instance(),))
    assert (loaded.quarantined, loaded.recreated) == ((), False)
    assert loaded.node_uid == (state / "node.uid").read_text().strip()
    assert not store.writable
    assert "Read-only file system; remount" in store.problem
    assert len(await store.events("a", before_seq=0, limit=9)) == 1
    with pytest.raises(FailedPrecondition):  # the lock holds there too
        Store.open(disk / "state")
    with pytest.raises(StoreError, match="Read-only"):
        await store.write(PutEvent(event()))
    aside = await store.quarantine("deployment", "a", "no such model")
    assert "left in place" in aside.where

    remount(disk, "rw")
    (written,) = await store.write(PutEvent(event()))
    assert (written.seq, store.writable, store.problem) == (2, True, "")
    await store.close()
    store, loaded = Store.open(disk / "state")
    assert loaded.last_event_seq == 2
    await store.close()


async def test_a_read_only_disk_with_nothing_to_read_is_refused_with_its_path_and_a_remedy(disk: Path) -> None:
    (disk / "state").mkdir()
    remount(disk, "ro")
    for state in (disk / "state", disk / "not-there"):
        with pytest.raises(StoreError, match=str(state)) as refused:
            Store.open(state)
        assert refused.value.hint


async def test_a_damaged_database_on_a_read_only_disk_gives_what_can_be_read(state: Path, disk: Path) -> None:
    await crash(state, disk)
    shutil.copy(state / "agent.db", disk / "state" / "agent.db.backup")
    (disk / "state" / "agent.db").write_bytes(b"garbage" * 1000)
    remount(disk, "ro")
    store, loaded = Store.open(disk / "state")
    assert (loaded.deployments, loaded.recreated, store.writable) == ((deployment(),), True, False)
    await store.close()


async def test_a_disk_that_fills_up_refuses_writes_keeps_what_was_acknowledged_and_heals(disk: Path) -> None:
    store, _ = Store.open(disk / "state")
    await store.write(PutEvent(event()))
    await backed_up(disk / "state")
    filler = fill_up(disk)
    acknowledged = 1
    with pytest.raises(StoreError, match="disk is full") as refused:
        while True:
            await store.write(PutEvent(event(message="x" * 10_000)))
            acknowledged += 1
    assert refused.value.hint == "free disk space there"
    assert not store.writable
    with pytest.raises(StoreError):
        await store.check()
    assert len(await store.events("", before_seq=0, limit=1000)) == acknowledged
    filler.unlink()
    await store.check()
    assert store.writable
    last = store.last_seq
    await store.close()
    store, loaded = Store.open(disk / "state")
    assert loaded.last_event_seq == last
    assert len(await store.events("", before_seq=0, limit=1000)) == acknowledged
    await store.close()


async def test_a_small_write_succeeds_on_a_full_disk_beside_a_large_one_that_fails(disk: Path) -> None:
    store, _ = Store.open(disk / "state")
    await store.write(PutEvent(event()))
    large = [store.write(PutEvent(event(message="x" * 2_000_000)))]
    small = [store.write(PutEvent(event("b"))) for _ in range(3)]
    failed, *written = await asyncio.gather(*large, *small, return_exceptions=True)
    assert isinstance(failed, StoreError)
    found = await store.events("b", before_seq=0, limit=9)
    assert [(one,) for one in found] == written
    await store.close()


async def test_a_full_disk_at_the_start_is_read_and_heals(state: Path, disk: Path) -> None:
    await crash(state, disk)
    filler = fill_up(disk)
    store, loaded = Store.open(disk / "state")
    assert (loaded.deployments, loaded.recreated, store.writable) == ((deployment(),), False, False)
    assert "No space left on device; free disk space" in store.problem
    filler.unlink()
    await store.check()
    assert store.writable
    await store.close()


async def test_a_full_disk_with_nothing_to_read_is_refused(disk: Path) -> None:
    fill_up(disk)
    with pytest.raises(StoreError, match="No space left on device") as refused:
        Store.open(disk / "state")
    assert "free disk space" in refused.value.hint


async def test_another_program_that_locks_the_database_is_waited_for_and_then_named(state: Path) -> None:
    store, _ = Store.open(state, deadline=1)
    with closing(sqlite3.connect(state / "agent.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program has locked the database"):
            await store.check()
        other.execute("ROLLBACK")
    await store.check()
    await store.close()
