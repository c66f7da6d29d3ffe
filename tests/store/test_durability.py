"""Acknowledged means durable, at whatever instant the daemon or the machine dies."""

import asyncio
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import StoreError
from agent.store import files, salvage
from agent.store.records import Loaded, PutDeployment, PutEvent
from agent.store.sqlite import Store
from tests.store.builders import deployment, event

#: Writes for ever, from four writers at once, and says of each write when it is durable.
CHILD = """
import asyncio, os, pathlib, sys
from agent.store.records import PutDeployment, PutEvent
from agent.store.sqlite import Store
from tests.store.builders import deployment, event

async def write(store, writer):
    generation = 0
    while True:
        generation += 1
        name = f"{writer}-{generation % 5}"
        (written,) = await store.write(PutDeployment(deployment(name, generation)), PutEvent(event(name)))
        os.write(1, f"{name} {generation} {written.seq}\\n".encode())  # one call: no half line is ever seen

async def main():
    store, _ = Store.open(pathlib.Path(sys.argv[1]))
    await asyncio.gather(*(write(store, writer) for writer in "abcd"))

asyncio.run(main())
"""


@pytest.mark.chaos
def test_no_acknowledged_write_is_lost_by_kill_9(state: Path) -> None:
    seed = 7
    moments = random.Random(seed)
    for _ in range(8):
        acknowledged = _run_and_kill(state, after=moments.randrange(1, 120))
        store, loaded = Store.open(state)
        asyncio.run(store.close())
        assert (loaded.quarantined, loaded.recreated) == ((), False), f"seed {seed}"
        there = {record.name: record.generation for record in loaded.deployments}
        for name, (generation, seq) in acknowledged.items():
            assert there[name] >= generation, f"seed {seed}"
            assert loaded.last_event_seq >= seq, f"seed {seed}"
        shutil.rmtree(state)


def _run_and_kill(state: Path, after: int) -> dict[str, tuple[int, int]]:
    """The newest acknowledged generation and event of each deployment; killed after that many acknowledgements."""
    acknowledged = {}
    with subprocess.Popen([sys.executable, "-c", CHILD, str(state)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        for count, line in enumerate(child.stdout, start=1):
            name, generation, seq = line.split()
            acknowledged[name] = (int(generation), int(seq))
            if count == after:
                child.kill()
    return acknowledged


def test_a_wal_that_lost_its_tail_gives_whole_transactions_up_to_there(state: Path, tmp_path: Path) -> None:
    """Power loss: writes that were not acknowledged yet may be torn anywhere; those before them are there."""

    async def write() -> None:
        store, _ = Store.open(state)
        for generation in range(1, 13):
            await store.write(PutDeployment(deployment("a", generation)), PutEvent(event()))
            ends.append((state / "agent.db-wal").stat().st_size)
        shutil.copytree(state, tmp_path / "crashed")
        await store.close()

    ends: list[int] = []
    asyncio.run(write())
    log = (tmp_path / "crashed" / "agent.db-wal").read_bytes()
    assert ends[-1] == len(log)
    for cut in range(ends[0], len(log), 9973):
        shutil.rmtree(state)
        shutil.copytree(tmp_path / "crashed", state)
        (state / "agent.db-wal").write_bytes(log[:cut])
        store, loaded = Store.open(state)
        asyncio.run(store.close())
        durable = sum(end <= cut for end in ends)
        assert [record.generation for record in loaded.deployments] == [durable]
        assert loaded.last_event_seq == durable  # both of a transaction, or none
        assert (loaded.quarantined, loaded.recreated) == ((), False)


def test_a_crash_while_the_database_is_first_made_leaves_nothing_to_salvage(state: Path) -> None:
    state.mkdir()
    salvage.build(state, deadline=5)  # ... and the daemon dies before `finish`
    (state / "agent.db.building").write_text("half of a next attempt")
    store, loaded = Store.open(state)
    asyncio.run(store.close())
    assert (loaded.quarantined, loaded.recreated) == ((), False)


@pytest.mark.parametrize("died", ["before the old file was moved", "after the old file was moved"])
def test_a_crash_while_a_salvaged_database_is_put_into_place_loses_nothing(
    state: Path, fill: Callable[..., None], reopen: Callable[[], Loaded], died: str
) -> None:
    fill(PutDeployment(deployment("a")), PutDeployment(deployment("b")))
    (state / files.BACKUP).unlink()
    salvage.build(state, deadline=5)
    if died.startswith("after"):
        (state / "agent.db").rename(state / "moved")
    loaded = reopen()
    assert {record.name for record in loaded.deployments} == {"a", "b"}
    assert loaded.recreated
    assert not [file for file in state.iterdir() if file.name.startswith(("agent.db.building", "agent.db.ready"))]


async def test_a_database_that_was_removed_under_the_daemon_acknowledges_nothing(state: Path) -> None:
    store, _ = Store.open(state)
    await store.check()
    for part in files.PARTS:
        (state / part).unlink(missing_ok=True)
    with pytest.raises(StoreError, match="was removed or replaced"):
        await store.check()
    await store.close()
