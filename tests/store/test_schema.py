"""Databases of all releases are opened for ever; migrations do what they do once."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agent.store import opening, schema
from agent.store.records import Loaded, PutMeasurement
from agent.store.sqlite import Store
from tests.store.builders import deployment, event, instance, measurement, request

FIXTURES = Path(__file__).parents[1] / "data" / "state"


def test_every_schema_version_has_a_database_that_is_kept() -> None:
    assert sorted(int(path.name) for path in FIXTURES.iterdir()) == list(range(1, schema.SCHEMA_VERSION + 1))


@pytest.mark.parametrize("version", sorted(path.name for path in FIXTURES.iterdir()))
async def test_the_database_of_an_old_release_is_opened_with_all_that_is_in_it(version: str, state: Path) -> None:
    shutil.copytree(FIXTURES / version, state)
    store, loaded = Store.open(state)
    assert (loaded.quarantined, loaded.recreated) == ((), False)
    assert loaded.deployments == (deployment("a", 3),)
    assert loaded.instances == (instance("a-1"), instance("a-2", attempt=2))
    assert loaded.measurements == (() if version == "1" else (measurement(),))
    assert [(one.deployment, one.message) for one in await store.events("", before_seq=0, limit=9)] == [
        (event().deployment, event().message)
    ]
    assert await store.request("r") == request(at=7)
    await store.check()
    await store.close()
    with closing(sqlite3.connect(state / "agent.db")) as connection:
        assert schema.version_of(connection) == schema.SCHEMA_VERSION


async def test_a_migrated_database_takes_what_is_new_and_keeps_it(state: Path) -> None:
    shutil.copytree(FIXTURES / "1", state)
    store, _ = Store.open(state)
    await store.write(PutMeasurement(measurement()))
    await store.close()
    store, loaded = Store.open(state)
    await store.close()
    assert loaded.measurements == (measurement(),)
    assert loaded.deployments == (deployment("a", 3),)


def test_a_damaged_database_of_an_old_release_is_salvaged_into_todays_schema(
    state: Path, reopen: Callable[[], Loaded]
) -> None:
    shutil.copytree(FIXTURES / "1", state)
    with closing(sqlite3.connect(state / "agent.db", isolation_level=None)) as connection:
        connection.execute("UPDATE event SET message = 'forged'")
        connection.execute("PRAGMA user_version = 77")  # has it rebuilt, row by row
    loaded = reopen()
    assert loaded.recreated
    assert loaded.deployments == (deployment("a", 3),)
    assert loaded.measurements == ()
    assert reopen().quarantined == ()


def test_migrating_twice_changes_nothing() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        assert schema.version_of(connection) == 0
        schema.migrate(connection)
        before = list(connection.iterdump())
        schema.migrate(connection)
        assert list(connection.iterdump()) == before


def test_each_table_has_the_columns_of_its_record_in_order() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        schema.migrate(connection)
        assert set(schema.tables_of(connection)) == {table.name for table in opening.TABLES}
        for table in opening.TABLES:
            columns = [column[1] for column in connection.execute(f"PRAGMA table_info({table.name})")]
            assert columns == ["sum", *table.columns]


def test_a_migration_that_fails_leaves_the_version_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        schema.migrate(connection)
        next_version = schema.SCHEMA_VERSION + 1
        broken = (*schema.MIGRATIONS, ("CREATE TABLE extra (a) STRICT",))
        monkeypatch.setattr(schema, "MIGRATIONS", broken)
        monkeypatch.setattr(schema, "SCHEMA_VERSION", next_version)
        with pytest.raises(sqlite3.OperationalError):
            schema.migrate(connection, next_version)
        assert schema.version_of(connection) == next_version - 1
        assert not connection.in_transaction
