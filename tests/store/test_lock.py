"""One daemon per state directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import FailedPrecondition, StoreError
from agent.store.lock import StateLock
from agent.store.sqlite import Store

OWNER = """
import sys, subprocess, pathlib
from agent.store.lock import StateLock
lock = StateLock.acquire(pathlib.Path(sys.argv[1]))
engine = subprocess.Popen(["sleep", "30"], close_fds=False)
print(engine.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(state: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_second_daemon_is_refused_and_told_who_owns_the_directory(owner: subprocess.Popen[str], state: Path) -> None:
    with owner:
        assert owner.stdout
        engine = int(owner.stdout.readline())
        try:
            with pytest.raises(FailedPrecondition) as refused:
                Store.open(state)
            assert f"pid {owner.pid}" in refused.value.message
            assert str(state) in refused.value.message
        finally:
            owner.kill()
            os.kill(engine, 9)


def test_the_lock_dies_with_its_owner_though_an_engine_of_it_lives(owner: subprocess.Popen[str], state: Path) -> None:
    with owner:
        assert owner.stdout
        engine = int(owner.stdout.readline())
        try:
            owner.kill()
            owner.wait()
            StateLock.acquire(state).release()
            os.kill(engine, 0)  # it does live
        finally:
            os.kill(engine, 9)


def test_a_pid_that_was_reused_is_not_accused(state: Path) -> None:
    lock = StateLock.acquire(state)
    (state / "lock").write_text(f"{os.getpid()} 1\n")  # this process did not start then
    with pytest.raises(FailedPrecondition, match="by another process"):
        StateLock.acquire(state)
    lock.release()


async def test_the_store_holds_the_lock_from_open_to_close(state: Path) -> None:
    store, _ = Store.open(state)
    with pytest.raises(FailedPrecondition, match=f"pid {os.getpid()}"):
        Store.open(state)
    await store.close()
    store, _ = Store.open(state)
    await store.close()


def test_a_file_in_place_of_the_directory_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StoreError, match=str(tmp_path / "state")):
        Store.open(tmp_path / "state")
