"""What the store promises to its callers while the disk is well."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import failpoints
from agent.errors import NotFound, StoreError
from agent.status import Desired
from agent.store.records import (
    DropDeployment,
    DropInstance,
    PutDeployment,
    PutEvent,
    PutInstance,
    PutMeta,
    PutRequest,
)
from agent.store.sqlite import Store
from agent.store.writer import Job
from tests.store.builders import deployment, event, instance, request


@contextmanager
def held(store: Store) -> Iterator[None]:
    """The store's thread is busy, as with a disk that hangs: what is asked for meanwhile waits."""
    began, end = threading.Event(), threading.Event()

    def work(_: object) -> None:
        began.set()
        end.wait(10)

    store._writer.submit(Job(work))
    began.wait(10)
    yield
    end.set()


@pytest.fixture
async def store(state: Path) -> AsyncIterator[Store]:
    opened, _ = Store.open(state)
    yield opened
    await opened.close()


async def test_what_was_written_is_loaded_as_it_was(state: Path) -> None:
    store, empty = Store.open(state)
    await store.write(
        PutDeployment(deployment()),
        PutInstance(instance()),
        PutInstance(instance("a-2", attempt=2)),
        PutRequest(request(at=7)),
        PutEvent(event()),
    )
    await store.write(PutDeployment(replace(deployment(), desired=Desired.STOP)), DropInstance("a-1"))
    await store.close()

    store, loaded = Store.open(state)
    assert loaded.deployments == (replace(deployment(), desired=Desired.STOP),)
    assert loaded.instances == (instance("a-2", attempt=2),)
    assert loaded.last_event_seq == store.last_seq == 1
    assert loaded.node_uid == empty.node_uid
    assert (loaded.quarantined, loaded.recreated, empty.recreated) == ((), False, False)
    assert await store.request("r") == request(at=7)
    assert await store.request("other") is None
    await store.close()


async def test_the_state_can_be_read_by_its_owner_only(store: Store, state: Path) -> None:
    assert state.stat().st_mode & 0o777 == 0o700
    await store.write(PutMeta("a", "b"))
    seen = set()
    for file in state.iterdir():
        with suppress(FileNotFoundError):  # a backup may be under way
            assert file.stat().st_mode & 0o077 == 0, file
            seen.add(file.name)
    assert {"agent.db", "agent.db-wal", "node.uid", "lock"} <= seen


async def test_dropping_a_deployment_drops_its_instances_and_keeps_its_history(store: Store, state: Path) -> None:
    await store.write(PutDeployment(deployment()), PutInstance(instance()), PutEvent(event()))
    await store.write(PutDeployment(deployment("b")), PutInstance(instance("b-1", deployment="b")))
    await store.write(DropDeployment("a"))
    assert len(await store.events("a", before_seq=0, limit=10)) == 1
    await store.close()
    store, loaded = Store.open(state)
    assert [record.name for record in loaded.deployments] == ["b"]
    assert [record.id for record in loaded.instances] == ["b-1"]
    await store.close()


async def test_events_are_paged_backwards_and_followed_forwards(store: Store) -> None:
    written = [await store.write(PutEvent(event(name))) for name in ("a", "b", "a", "a")]
    first, other, second, third = (one for (one,) in written)
    assert [found.seq for found in (first, other, second, third)] == [1, 2, 3, 4]
    assert await store.events("a", before_seq=0, limit=2) == (second, third)
    assert await store.events("a", before_seq=second.seq, limit=2) == (first,)
    assert await store.events("", before_seq=0, limit=10) == (first, other, second, third)
    assert await store.events_after(1, "a", 1) == (second,)
    assert await store.events_after(1, "", 10) == (other, second, third)


async def test_the_number_of_an_event_is_never_given_again(state: Path) -> None:
    store, _ = Store.open(state)
    await store.write(*(PutEvent(event()) for _ in range(1200)))  # more than one chunk of `prune`
    await store.prune(events=3, request_age_seconds=0)
    assert (store.oldest_seq, store.last_seq) == (1198, 1200)
    await store.prune(events=0, request_age_seconds=0)
    assert (store.oldest_seq, store.last_seq) == (1200, 1200)
    await store.close()
    store, loaded = Store.open(state)
    assert loaded.last_event_seq == 1200
    (written,) = await store.write(PutEvent(event()))
    assert written.seq == 1201
    await store.close()


async def test_prune_forgets_only_the_old_requests(store: Store) -> None:
    await store.write(PutRequest(request("old", at=1)), PutRequest(request("new", at=2**40)))
    await store.prune(events=10, request_age_seconds=60)
    assert await store.request("old") is None
    assert await store.request("new") == request("new", at=2**40)


async def test_a_plan_is_stored_once_for_all_its_instances_and_as_long_as_there_is_one(store: Store) -> None:
    async def plans() -> list[str]:
        rows = await store._do(Job(lambda connection: connection.execute("SELECT plan_json FROM plan").fetchall()))
        return sorted(plan for (plan,) in rows)

    other = replace(instance("b"), plan_json='{"other": 1}')
    await store.write(PutInstance(instance("a-1")), PutInstance(instance("a-2")), PutInstance(other))
    await store.write(PutInstance(replace(instance("a-1"), ended_at=1.0)))
    assert await plans() == sorted([instance().plan_json, other.plan_json])
    await store.write(DropInstance("a-1"), DropInstance("b"))
    await store.prune(events=10, request_age_seconds=60)
    assert await plans() == [instance().plan_json]


async def test_a_write_that_fails_does_not_fail_those_that_share_its_commit(store: Store) -> None:
    bad = replace(deployment("bad"), spec_json="[]")
    with held(store):
        writes = [
            asyncio.create_task(store.write(PutEvent(event(name)), PutDeployment(record)))
            for name, record in (("a", deployment("a")), ("bad", bad), ("b", deployment("b")))
        ]
        await asyncio.sleep(0)  # lets each of them queue its job
    first, failed, last = await asyncio.gather(*writes, return_exceptions=True)
    assert isinstance(failed, ValueError)
    assert "deployment.spec_json is not a JSON object" in str(failed)
    assert not isinstance(first, BaseException)
    assert not isinstance(last, BaseException)
    assert await store.events("", before_seq=0, limit=9) == (*first, *last)  # nothing of the failed one


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(groups=st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4), min_size=1, max_size=20))
def test_concurrent_writes_are_all_there_once_in_order_and_whole(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[str]]
) -> None:
    async def run() -> None:
        store, _ = Store.open(tmp_path_factory.mktemp("state"))
        written = await asyncio.gather(
            *(
                store.write(*(PutEvent(event(name, f"write {number}")) for name in names))
                for number, names in enumerate(groups)
            )
        )
        expected = sorted((one for events in written for one in events), key=lambda one: one.seq)
        assert [one.seq for one in expected] == list(range(1, len(expected) + 1))
        assert await store.events("", before_seq=0, limit=1000) == tuple(expected)
        for number, events in enumerate(written):  # a transaction's events stand together, in its order
            assert [one.deployment for one in events] == groups[number]
            assert events[-1].seq - events[0].seq == len(events) - 1
        await store.close()

    asyncio.run(run())


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(message=st.text(st.characters(codec=None)), number=st.integers(-(2**63), 2**63 - 1))
async def test_any_text_and_number_is_stored(store: Store, message: str, number: int) -> None:
    """Surrogates, as in file names that are no UTF-8, come back escaped; all else as it was."""
    record = replace(instance(), log_path=message, port=number)
    (written,) = await store.write(PutEvent(event(message=message)), PutInstance(record))
    (found,) = await store.events("", before_seq=0, limit=1)
    assert found.seq == written.seq
    assert found.message == message.encode("utf-8", "backslashreplace").decode()


async def test_a_write_that_has_not_begun_at_its_deadline_is_not_done_later(state: Path) -> None:
    store, _ = Store.open(state, deadline=1)
    with held(store), pytest.raises(StoreError, match=r"did not answer within 1 s; nothing was written"):
        await store.write(PutEvent(event()))
    assert await store.events("", before_seq=0, limit=1) == ()
    await store.close()


async def test_a_write_that_is_under_way_at_its_deadline_says_that_its_outcome_is_unknown(state: Path) -> None:
    store, _ = Store.open(state, deadline=1)
    hold = threading.Event()
    with pytest.raises(StoreError, match="the outcome is unknown"):
        await store._do(Job(lambda _: hold.wait(10), change=True))
    hold.set()
    await store.check()
    await store.close()


async def test_close_finishes_what_was_asked_before_and_refuses_what_comes_after(state: Path) -> None:
    store, _ = Store.open(state)
    writes = [asyncio.create_task(store.write(PutEvent(event()))) for _ in range(200)]
    await asyncio.sleep(0)
    await store.close()
    assert {one.seq for (one,) in await asyncio.gather(*writes)} == set(range(1, 201))
    with pytest.raises(StoreError, match="closed"):
        await store.write(PutEvent(event()))
    await store.close()


async def test_a_caller_can_set_a_record_aside(state: Path) -> None:
    store, _ = Store.open(state)
    await store.write(PutDeployment(deployment()), PutInstance(instance()))
    set_aside = await store.quarantine("deployment", "a", "model: unknown scheme")
    assert (set_aside.what, set_aside.problem) == ("deployment a", "model: unknown scheme")
    with pytest.raises(NotFound):
        await store.quarantine("instance", "other", "it is missing")
    await store.close()
    store, loaded = Store.open(state)
    assert (loaded.deployments, loaded.instances, loaded.quarantined) == ((), (instance(),), ())
    await store.close()


async def test_an_armed_fail_point_refuses_the_write(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "_POINTS", failpoints._parse("store-write=error"))
        with pytest.raises(StoreError, match="store-write"):
            await store.write(PutEvent(event()))
        assert not store.writable
    await store.check()
    assert store.writable
    assert await store.events("", before_seq=0, limit=1) == ()
