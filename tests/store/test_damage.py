"""Damaged state: the daemon starts, with everything that can be saved, and says what was wrong."""

import asyncio
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import FailedPrecondition
from agent.store import files, wal
from agent.store.records import Change, Loaded, PutDeployment, PutEvent, PutInstance, PutMeasurement
from agent.store.rows import DEPLOYMENTS, META, Meta, checksum
from agent.store.sqlite import Store
from tests.store.builders import deployment, event, instance, measurement

NAMES = tuple("abcdefgh")
SEED = 11


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state as a killed daemon leaves it: a backup of all deployments, then newer generations in the WAL."""
    state = tmp_path_factory.mktemp("crashed") / "state"
    copy = state.with_name("copy")

    async def run() -> None:
        store, _ = Store.open(state)
        for name in NAMES:
            await store.write(
                PutDeployment(deployment(name)), PutInstance(instance(name, deployment=name)), PutEvent(event(name))
            )
        await store.close()
        files.back_up(state)
        store, _ = Store.open(state)
        for name in NAMES:
            await store.write(PutDeployment(deployment(name, 2)), PutEvent(event(name)))
        shutil.copytree(state, copy, ignore=shutil.ignore_patterns("*.new*", "lock"))
        await store.close()

    asyncio.run(run())
    return copy


@pytest.fixture
def damaged(crashed: Path, state: Path) -> Path:
    return Path(shutil.copytree(crashed, state))


def execute(state: Path, statement: str, *parameters: object) -> None:
    with closing(sqlite3.connect(state / "agent.db", isolation_level=None)) as connection:
        connection.execute(statement, parameters)


def leave_backup(state: Path, there: bool) -> None:
    """One of what is stored by now, or none."""
    if there:
        files.back_up(state)
    else:
        (state / files.BACKUP).unlink(missing_ok=True)


def assert_nothing_was_lost(loaded: Loaded, crashed: Path) -> None:
    """Every deployment and instance is there, in a version that was written, under the same node identity."""
    assert loaded.node_uid == (crashed / "node.uid").read_text().strip()
    assert sorted(record.name for record in loaded.deployments) == list(NAMES)
    assert all(record in (deployment(record.name, 1), deployment(record.name, 2)) for record in loaded.deployments)
    assert {record.id for record in loaded.instances} == set(NAMES)
    assert loaded.last_event_seq >= len(NAMES)


def is_newest(loaded: Loaded) -> bool:
    return all(record.generation == 2 for record in loaded.deployments) and loaded.last_event_seq >= 2 * len(NAMES)


@pytest.mark.parametrize("part", ["agent.db", "agent.db-wal"])
def test_a_flipped_bit_anywhere_loses_no_deployment_and_is_reported(
    crashed: Path, state: Path, reopen: Callable[[], Loaded], part: str
) -> None:
    whole = (crashed / part).read_bytes()
    places = random.Random(SEED)
    header = [places.randrange(100) for _ in range(10)]
    last_commit = len(whole) - 20 * (wal.PAGE + 24)  # a torn last commit is no damage: it was not acknowledged
    for place in header + [places.randrange(last_commit if part.endswith("wal") else len(whole)) for _ in range(25)]:
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(crashed, state)
        content = bytearray(whole)
        content[place] ^= 1 << places.randrange(8)
        (state / part).write_bytes(content)
        loaded = reopen()
        assert_nothing_was_lost(loaded, crashed)
        assert is_newest(loaded) or loaded.quarantined, f"seed {SEED}: unreported loss after a flip at {place}"
        assert bool(loaded.quarantined) >= loaded.recreated
        assert reopen().quarantined == (), f"seed {SEED}: the flip at {place} is found again"


@pytest.mark.parametrize("part", ["agent.db", "agent.db-wal"])
def test_a_truncated_file_loses_no_deployment(
    crashed: Path, state: Path, reopen: Callable[[], Loaded], part: str
) -> None:
    whole = (crashed / part).read_bytes()
    for length in (0, 1, 15, 100, 511, 512, 4095, 4096, *range(5000, len(whole), len(whole) // 12)):
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(crashed, state)
        (state / part).write_bytes(whole[:length])
        loaded = reopen()
        assert_nothing_was_lost(loaded, crashed)
        if part == "agent.db":
            assert loaded.recreated


@pytest.mark.parametrize("garbage", [b"", b"\0" * 8192, b"not a database\n" * 500], ids=["empty", "zeros", "text"])
@pytest.mark.parametrize("part", ["agent.db", "agent.db-shm"])
def test_garbage_in_place_of_a_file_loses_nothing_that_others_hold(
    crashed: Path, damaged: Path, reopen: Callable[[], Loaded], part: str, garbage: bytes
) -> None:
    (damaged / part).write_bytes(garbage)
    loaded = reopen()
    assert_nothing_was_lost(loaded, crashed)
    assert loaded.recreated == (part == "agent.db")
    assert is_newest(loaded)  # from the WAL


def test_garbage_in_place_of_the_wal_is_reported_and_gives_the_last_checkpoint(
    crashed: Path, damaged: Path, reopen: Callable[[], Loaded]
) -> None:
    (damaged / "agent.db-wal").write_bytes(b"garbage " * 1000)
    loaded = reopen()
    assert_nothing_was_lost(loaded, crashed)
    assert loaded.recreated
    assert "header of its WAL" in loaded.quarantined[0].problem


def test_a_damaged_frame_before_acknowledged_commits_is_found_and_all_of_them_are_saved(
    crashed: Path, damaged: Path, reopen: Callable[[], Loaded]
) -> None:
    """SQLite itself would drop these commits without a word."""
    log = bytearray((damaged / "agent.db-wal").read_bytes())
    log[32 + 16] ^= 1  # the checksum of the first frame: its page is as it was written
    (damaged / "agent.db-wal").write_bytes(log)
    loaded = reopen()
    assert "8 commits in its WAL follow a damaged frame" in loaded.quarantined[0].problem
    assert_nothing_was_lost(loaded, crashed)
    assert is_newest(loaded)


def test_the_damaged_files_are_kept_where_the_report_says(damaged: Path, reopen: Callable[[], Loaded]) -> None:
    (damaged / "agent.db").write_bytes(b"garbage")
    (report,) = reopen().quarantined
    assert (report.what, report.problem) == ("database", "file is not a database")
    aside = Path(report.where)
    assert aside.parent == damaged / "quarantine"
    assert (aside / "agent.db").read_bytes() == b"garbage"
    assert (aside / "agent.db-wal").exists()
    assert (aside / "agent.db.backup").exists()


def test_only_the_newest_damaged_databases_are_kept(damaged: Path, reopen: Callable[[], Loaded]) -> None:
    kept = []
    for _ in range(7):
        (damaged / "agent.db").write_bytes(b"garbage")
        kept.append(reopen().quarantined[0].where)
    assert len(list((damaged / "quarantine").iterdir())) == 5


def test_a_lost_database_comes_back_from_the_backup_under_the_same_node_identity(
    crashed: Path, damaged: Path, reopen: Callable[[], Loaded]
) -> None:
    (damaged / "agent.db").unlink()
    (damaged / "agent.db-wal").unlink()
    loaded = reopen()
    assert_nothing_was_lost(loaded, crashed)
    assert loaded.recreated
    (damaged / "agent.db").unlink()
    (damaged / files.BACKUP).unlink()
    assert reopen().node_uid == loaded.node_uid


def test_numbers_of_lost_events_are_not_given_again(damaged: Path) -> None:
    (damaged / "agent.db").unlink()
    (damaged / "agent.db-wal").unlink()  # with it, 8 events that the backup does not know
    store, loaded = Store.open(damaged)

    async def run() -> None:
        (written,) = await store.write(PutEvent(event()))
        assert written.seq == loaded.last_event_seq + 1 > 16
        await store.close()

    asyncio.run(run())


def test_a_directory_in_place_of_the_database_is_set_aside(
    crashed: Path, damaged: Path, reopen: Callable[[], Loaded]
) -> None:
    (damaged / "agent.db").unlink()
    (damaged / "agent.db").mkdir()
    assert_nothing_was_lost(reopen(), crashed)


BAD_ROWS = {
    "a value that is not the one that was written": (
        "UPDATE deployment SET generation = 9 WHERE name = 'c'",
        "checksum",
    ),
    "a specification that is no JSON": ("spec_json", "{", "deployment.spec_json is not JSON"),
    "a specification that is no object": ("spec_json", "[]", "deployment.spec_json is not a JSON object"),
    "a state that is no object": ("supervision_json", '"x"', "deployment.supervision_json is not a JSON object"),
    "a desire that is unknown": ("desired", "fly", "'fly' is not a valid Desired"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
@pytest.mark.parametrize("backup", [True, False], ids=["with a backup", "without a backup"])
def test_a_bad_row_is_set_aside_and_comes_back_from_the_backup(
    damaged: Path, reopen: Callable[[], Loaded], case: str, backup: bool
) -> None:
    if not backup:
        (damaged / files.BACKUP).unlink()
    *change, problem = BAD_ROWS[case]
    if len(change) == 1:
        execute(damaged, change[0])
    else:
        values = list(DEPLOYMENTS.encode(deployment("c", 2))[1:])
        values[DEPLOYMENTS.columns.index(change[0])] = change[1]
        execute(damaged, DEPLOYMENTS.put, checksum(values), *values)
    loaded = reopen()
    assert not loaded.recreated
    (report,) = loaded.quarantined
    assert report.what == "deployment c"
    assert problem in report.problem
    there = {record.name: record.generation for record in loaded.deployments}
    assert there.pop("c", None) == (1 if backup else None)
    assert there == dict.fromkeys(set(NAMES) - {"c"}, 2)
    assert reopen().quarantined == ()
    with closing(sqlite3.connect(damaged / "agent.db")) as connection:
        ((row_json,),) = connection.execute("SELECT row_json FROM quarantine WHERE what = 'deployment'").fetchall()
    assert "c" in json.loads(row_json)


@pytest.mark.parametrize("backup", [True, False], ids=["with a backup", "without a backup"])
def test_a_bad_measurement_is_set_aside_and_comes_back_from_the_backup(
    state: Path, fill: Callable[..., None], reopen: Callable[[], Loaded], backup: bool
) -> None:
    fill(PutMeasurement(measurement("n-a-1")), PutMeasurement(measurement("n-a-2")))
    leave_backup(state, backup)
    execute(state, "UPDATE ledger SET terms_json = '[]' WHERE id = 'n-a-1'")
    loaded = reopen()
    (report,) = loaded.quarantined
    assert report.what == "ledger n-a-1"
    assert "checksum" in report.problem
    assert not loaded.recreated
    assert {row.id for row in loaded.measurements} == ({"n-a-1", "n-a-2"} if backup else {"n-a-2"})
    assert reopen().quarantined == ()


@pytest.mark.parametrize("backup", [True, False], ids=["with a backup", "without a backup"])
def test_a_bad_plan_comes_back_from_the_backup_or_takes_only_its_instances_along(
    state: Path, fill: Callable[..., None], reopen: Callable[[], Loaded], backup: bool
) -> None:
    other = replace(instance("b"), plan_json="{}")
    fill(PutInstance(instance("a-1")), PutInstance(instance("a-2")), PutInstance(other))
    leave_backup(state, backup)
    execute(state, "UPDATE plan SET plan_json = '[]' WHERE plan_json != '{}'")
    loaded = reopen()
    assert set(loaded.instances) == ({instance("a-1"), instance("a-2"), other} if backup else {other})
    reports = [f"{report.what.partition(' ')[0]}: {report.problem}" for report in loaded.quarantined]
    checksum = "plan: its checksum does not match"
    lost = ["instance: its plan is lost"] * 2
    assert reports == ([f"{checksum}; its version in the last backup is used"] if backup else [checksum, *lost])
    assert reopen().quarantined == ()


def test_the_ledger_is_salvaged_with_everything_else(
    state: Path, fill: Callable[..., None], reopen: Callable[[], Loaded]
) -> None:
    fill(PutMeasurement(measurement("n-a-1")), PutMeasurement(measurement("n-a-2")))
    (state / files.BACKUP).unlink(missing_ok=True)
    execute(state, "UPDATE ledger SET model = 'forged' WHERE id = 'n-a-1'")
    execute(state, "PRAGMA user_version = 77")  # has it rebuilt, row by row
    loaded = reopen()
    assert loaded.recreated
    assert loaded.measurements == (measurement("n-a-2"),)
    assert [item.what for item in loaded.quarantined] == ["database", "ledger n-a-1"]


def test_text_that_is_no_utf8_is_a_bad_row(damaged: Path, reopen: Callable[[], Loaded]) -> None:
    execute(damaged, "UPDATE instance SET log_path = CAST(x'ff00' AS TEXT) WHERE id = 'a'")
    (report,) = reopen().quarantined
    assert report.what == "instance a"


def test_a_damaged_event_is_shown_as_damaged_and_hides_no_other(damaged: Path) -> None:
    execute(damaged, "UPDATE event SET message = 'forged' WHERE seq = 3")
    store, _ = Store.open(damaged)

    async def run() -> None:
        found = await store.events("", before_seq=0, limit=100)
        assert [one.seq for one in found] == list(range(1, 17))
        assert [one.reason for one in found if one.seq == 3] == ["EventDamaged"]
        await store.close()

    asyncio.run(run())


def test_a_damaged_schema_version_is_not_taken_for_a_newer_release(
    crashed: Path, damaged: Path, reopen: Callable[[], Loaded]
) -> None:
    execute(damaged, "PRAGMA user_version = 257")
    loaded = reopen()
    assert_nothing_was_lost(loaded, crashed)
    assert is_newest(loaded)


def test_a_store_of_a_newer_release_is_refused_and_left_as_it_is(damaged: Path) -> None:
    execute(damaged, "PRAGMA user_version = 99")
    execute(damaged, META.put, *META.encode(Meta("schema_version", "99")))
    before = (damaged / "agent.db").read_bytes()
    with pytest.raises(FailedPrecondition, match="schema version is 99, this release knows versions up to"):
        Store.open(damaged)
    assert (damaged / "agent.db").read_bytes() == before
    assert not (damaged / "quarantine").exists()


def test_a_table_full_of_bad_rows_is_reported_in_bounds(
    state: Path, fill: Callable[[Change], None], reopen: Callable[[], Loaded]
) -> None:
    fill(*(PutEvent(event(message=str(number))) for number in range(50)))
    (state / files.BACKUP).unlink()
    execute(state, "UPDATE event SET message = 'forged'")
    execute(state, "PRAGMA user_version = 77")  # has it rebuilt, row by row
    loaded = reopen()
    assert loaded.recreated
    assert len(loaded.quarantined) == 22
    assert loaded.quarantined[-1].what == "30 more rows"
