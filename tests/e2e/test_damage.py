"""What a host does to a node's state: reboots, bad sectors, full and read-only disks. What runs keeps running, what is
lost is said, and nobody has to help."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.errors import StoreError
from agent.runtimes import identity
from agent.runtimes.base import Identity
from agent.store.rows import checksum
from agent.v1 import agent_pb2 as pb
from tests.harness import PHASE, Daemon, complete, daemon, gone, wait_true
from tests.small_disk import small_disk

FAST_RESTART = {"initial_delay_seconds": 0.2, "max_delay_seconds": 0.4, "jitter": 0.0}


def database(node: Daemon) -> Path:
    return node.root / "state" / "agent.db"


def conditions(node: Daemon) -> dict[str, pb.Condition]:
    with node.client() as client:
        return {condition.type: condition for condition in client.get_node().conditions}


def bad(node: Daemon) -> dict[str, pb.Condition]:
    """What is not as it should be, by reason."""
    return {found.reason: found for found in conditions(node).values() if found.status == pb.TERNARY_FALSE}


def edit(node: Daemon, table: str, change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    """Change rows of a dead daemon's store so that the store itself finds nothing wrong with them."""
    with contextlib.closing(sqlite3.connect(database(node))) as connection, connection:
        connection.row_factory = sqlite3.Row
        for row in connection.execute(f"SELECT rowid, * FROM {table}").fetchall():
            old = {name: row[name] for name in row.keys() if name not in {"rowid", "sum"}}  # noqa: SIM118
            new = change(dict(old))
            values = (checksum(tuple(new.values())), *new.values(), row["rowid"])
            columns = ", ".join(f"{name} = ?" for name in ("sum", *new))
            connection.execute(f"UPDATE {table} SET {columns} WHERE rowid = ?", values)


def assert_served_by(node: Daemon, pid: int, name: str = "m") -> None:
    after = node.wait(name)
    assert (after.instance.pid, after.restarts) == (pid, 0)
    assert [process.pid for process in node.servers(name)] == [pid]
    assert complete(after.endpoint)["content"]


@pytest.fixture
def swept(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    """A node that looks for strays every second."""
    yield from daemon(tmp_path, tiny_model, daemon={"sweep_seconds": 1, "sweep_min_age_seconds": 0.5})


# Reboot -----------------------------------------------------------------------------------------------------------


def test_after_a_reboot_everything_starts_again_and_no_failure_is_counted(node: Daemon) -> None:
    node.start()
    for name in ("a", "b", "stopped"):
        node.apply(name)
    before = {name: node.wait(name) for name in ("a", "b", "stopped")}
    with node.client() as client:
        client.stop_deployment("stopped")
    node.wait("stopped", phase="stopped")
    node.kill()
    # The power fails: nobody writes down an exit status, so the shims go first.
    for process in sorted(node.engines(), key=lambda process: process.name() != "sh"):
        process.kill()
    wait_true(lambda: not node.engines())
    shutil.rmtree(node.root / "run")
    boot, other = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), "0" * 8 + "-0000-4000-8000-" + "0" * 12
    for table in ("deployment", "instance"):
        edit(node, table, lambda row: {k: v.replace(boot, other) if isinstance(v, str) else v for k, v in row.items()})
    for path in (node.root / "state" / "instances").rglob("*.json"):
        path.write_text(path.read_text().replace(boot, other))

    node.start()
    for name in ("a", "b"):
        after = node.wait(name)
        assert after.instance.attempt == before[name].instance.attempt + 1
        assert after.restarts == 0
        assert not after.previous.diagnosis.code
        assert "Rebooted" in node.reasons(name)
        assert complete(after.endpoint)["content"]
    assert PHASE[node.get("stopped").phase] == "stopped"
    assert len(node.engines()) == 4


# Damage to the database -------------------------------------------------------------------------------------------


def truncated(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(1, path.stat().st_size))


def flipped(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(20):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def header_flipped(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(100)] ^= 0xFF
    path.write_bytes(data)


def garbage(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(20_000))


def deleted(path: Path, chance: random.Random) -> None:
    path.unlink()


DAMAGES = (truncated, flipped, header_flipped, garbage, deleted)


@pytest.mark.parametrize("backup", [True, False], ids=["with-backup", "without-backup"])
def test_an_engine_outlives_every_damage_to_the_database(node: Daemon, backup: bool) -> None:
    """One engine serves through all of them: each start adopts it, and says what was lost."""
    chance = random.Random(0xDA17A6E)
    node.start().apply()
    first = node.wait()
    for damage in DAMAGES:
        node.kill()
        for path in database(node).parent.glob("agent.db*"):
            if path.name in {"agent.db", "agent.db-wal"} and path.stat().st_size:
                damage(path, chance)
            elif not backup:
                path.unlink()
        at = time.time()
        node.start()
        assert_served_by(node, first.instance.pid)
        # Flipped bits may lie in a page that nobody uses, and a log that was cut ends like one after a power loss.
        if "StateRecreated" in bad(node) or damage in {garbage, deleted}:
            wait_true(lambda at=at: _reported(node, since=at), what=f"damage is reported: {damage.__name__}")
            assert "StateRecreated" in bad(node), damage.__name__
    # And it is under supervision as before.
    changed = node.apply(drain_seconds=1)
    node.wait_until(lambda d: d.observed_generation == changed.generation and PHASE[d.phase] == "ready")
    assert len(node.servers()) == 1
    assert gone(first.instance.pid)


def _reported(node: Daemon, since: float) -> bool:
    return any(e.reason == "RecordQuarantined" and e.time.ToNanoseconds() / 1e9 >= since for e in node.events())


def test_an_engine_whose_own_record_is_garbage_too_is_reported_and_left_alone(swept: Daemon) -> None:
    node = swept.start()
    node.apply()
    first = node.wait()
    node.kill()
    for path in database(node).parent.glob("agent.db*"):
        path.unlink()
    (record,) = (node.root / "state" / "instances").glob("*/record.json")
    record.write_bytes(b'{"deployment": \xff')
    node.start()
    wait_true(lambda: "stray left alone" in node.log.read_text())
    assert str(first.instance.pid) in bad(node)["StraysFound"].message
    assert complete(first.endpoint)["content"]


def test_a_garbage_record_beside_a_whole_database_costs_nothing(node: Daemon) -> None:
    node.start().apply()
    first = node.wait()
    node.kill()
    for name in ("record.json", "launch.json"):
        (path,) = (node.root / "state" / "instances").glob(f"*/{name}")
        path.write_bytes(b"\0garbage\xff")
    node.start()
    assert_served_by(node, first.instance.pid)
    assert not bad(node)


# Damage to single rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["{broken", '{"nonsense": 1}'], ids=["no-json", "no-spec"])
def test_a_deployment_whose_spec_is_unreadable_is_set_aside_and_the_others_are_served(node: Daemon, spec: str) -> None:
    node.start()
    for name in ("bad", "good"):
        node.apply(name)
    good, _ = node.wait("good"), node.wait("bad")
    node.kill()
    (database(node).parent / "agent.db.backup").unlink(missing_ok=True)
    edit(node, "deployment", lambda row: row | {"spec_json": spec} if row["name"] == "bad" else row)
    node.start()
    assert_served_by(node, good.instance.pid, "good")
    with node.client() as client:
        assert [found.name for found in client.list_deployments()] == ["deployments/good"]
    (event,) = wait_true(lambda: [e for e in node.events() if e.reason == "RecordQuarantined"])
    assert "bad" in event.message
    assert event.severity == pb.SEVERITY_ERROR
    # Its engine was not forgotten, and the row is kept, for people.
    wait_true(lambda: "bad-1-" in bad(node).get("StraysFound", pb.Condition()).message)
    with contextlib.closing(sqlite3.connect(database(node))) as connection:
        assert connection.execute("SELECT key FROM quarantine").fetchall() == [("bad",)]


def test_a_row_with_a_flipped_bit_comes_back_from_the_backup(node: Daemon) -> None:
    node.start().apply()
    first = node.wait()
    node.stop()
    node.start()  # makes a backup
    wait_true((database(node).parent / "agent.db.backup").exists)
    node.kill()
    with contextlib.closing(sqlite3.connect(database(node))) as connection, connection:
        connection.execute("UPDATE deployment SET spec_json = replace(spec_json, 'm', 'n')")
    node.start()
    assert_served_by(node, first.instance.pid)
    assert any(event.reason == "RecordQuarantined" for event in node.events())


@pytest.mark.parametrize("state", ["{}", '{"boot": 3}'])
def test_an_unreadable_state_of_the_supervisor_is_derived_from_what_runs(node: Daemon, state: str) -> None:
    node.start().apply()
    first = node.wait()
    node.kill()
    edit(node, "deployment", lambda row: row | {"supervision_json": state})
    node.start()
    assert_served_by(node, first.instance.pid)


# Disks that refuse ------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    """A node whose state has a disk of its own, of 2 MiB."""
    with small_disk(tmp_path / "state", "2m"):
        yield from daemon(tmp_path, tiny_model)


def remount(node: Daemon, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", node.root / "state"], check=True)


def fill_up(node: Daemon) -> Path:
    filler = node.root / "state" / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def until_refused(change: Callable[[int], object]) -> StoreError:
    """Small writes still fit into what the database has allocated; in the end nothing does."""
    with pytest.raises(StoreError) as refused:
        for number in range(1000):
            change(number)
    return refused.value


def test_a_read_only_disk_is_served_refuses_changes_and_heals_without_a_restart(small: Daemon) -> None:
    node = small
    node.start().apply()
    first = node.wait()
    node.kill()
    remount(node, "ro")
    node.start()
    assert_served_by(node, first.instance.pid)
    assert "Read-only" in conditions(node)["StateHealthy"].message
    with node.client() as client:
        for change in (client.stop_deployment, client.restart_deployment, client.delete_deployment):
            with pytest.raises(StoreError, match="Read-only"):
                change("m")
        with pytest.raises(StoreError, match="Read-only"):
            client.apply_deployment(node.spec("other"))
        assert client.list_events("m")
        assert [found.etag for found in client.list_deployments()] == [first.etag]
    remount(node, "rw")
    node.apply(drain_seconds=1)
    changed = node.wait_until(lambda d: d.observed_generation == 2 and PHASE[d.phase] == "ready")
    assert gone(first.instance.pid)
    assert [process.pid for process in node.servers()] == [changed.instance.pid]
    wait_true(lambda: not bad(node), what="no bad condition is left")


def test_a_full_disk_refuses_changes_engines_serve_and_all_heals_without_a_restart(small: Daemon) -> None:
    node = small
    node.start().apply(restart=FAST_RESTART | {"max_failures": 3})
    first = node.wait()
    node.apply("idle", environment={"MODE": "never"})
    with node.client() as client:
        client.stop_deployment("idle")
    filler = fill_up(node)
    refusal = until_refused(lambda number: node.apply("idle", environment={"MODE": "never", "N": str(number)}))
    idle = node.get("idle")
    assert "disk is full" in refusal.message
    assert refusal.hint == "free disk space there"
    assert "disk is full" in conditions(node)["StateHealthy"].message
    with pytest.raises(StoreError, match="disk is full"):
        node.apply("other")
    assert_served_by(node, first.instance.pid)
    # A crash now waits for the disk, for longer than its budget of failures would last.
    os.kill(first.instance.pid, signal.SIGKILL)
    node.wait(phase="backoff")
    transitions = '"reason": "BackOff"'
    wait_true(lambda: node.log.read_text().count(transitions) > 4, what="it tries again and again")
    assert PHASE[node.get().phase] != "failed"
    assert node.engines() == []
    os.truncate(filler, filler.stat().st_size - 64 * 1024)
    idle = node.apply("idle", environment={"MODE": "never", "FITS": "once"})
    assert "disk is full" in conditions(node)["StateHealthy"].message  # one change that fits is no proof
    filler.unlink()
    after = node.wait()
    assert [process.pid for process in node.servers()] == [after.instance.pid]
    node.apply("other")
    wait_true(lambda: not bad(node), what="no bad condition is left")
    node.kill()
    node.start()
    assert node.get("idle").etag == idle.etag
    assert node.get("other").generation == 1


# Strays -----------------------------------------------------------------------------------------------------------


def stray(node_uid: str) -> subprocess.Popen[bytes]:
    who = Identity(node_uid, "ghost", 1, 1, "ghost-1-abcdef")
    return subprocess.Popen(["sleep", "1000"], env=os.environ | identity.variables(who))


def test_a_stray_is_reported_left_alone_in_a_dry_run_and_otherwise_killed(swept: Daemon) -> None:
    node = swept.start("--set", "daemon.sweep_dry_run=true")
    node.apply()
    first = node.wait()
    with stray((node.root / "state" / "node.uid").read_text().strip()) as ours, stray("0" * 32) as others:
        try:
            wait_true(lambda: "stray left alone" in node.log.read_text())
            assert f"ghost-1-abcdef (pids {ours.pid}); left alone" in bad(node)["StraysFound"].message
            assert ours.poll() is None
            node.stop()
            node.start()
            assert ours.wait(40) == -signal.SIGKILL
            wait_true(lambda: not bad(node))
            assert "StrayKilled" in node.reasons("ghost")
            # What is recorded, and what belongs to another node, is not touched.
            assert others.poll() is None
            assert_served_by(node, first.instance.pid)
        finally:
            ours.kill()
            others.kill()


def test_a_stray_goes_when_it_is_old_enough_and_not_a_whole_period_of_sweeps_later(node: Daemon) -> None:
    tuning = ("--set", "daemon.sweep_seconds=3600", "--set", "daemon.sweep_min_age_seconds=1")
    node.start().stop()
    with stray((node.root / "state" / "node.uid").read_text().strip()) as ours:
        try:
            node.start(*tuning)
            assert ours.wait(30) == -signal.SIGKILL
        finally:
            ours.kill()
