"""What systemd is told: readiness when the API answers and adoption is done, the watchdog from work done, the end."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import PHASE, Daemon, daemon, wait_true
from tests.small_disk import small_disk


class Listener:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def wait_for(self, word: str, timeout: float = 20.0) -> str:
        """The first message that holds `word`."""
        deadline = time.monotonic() + timeout
        while True:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            message = self._socket.recv(4096).decode()
            if word in message:
                return message

    def silent_for(self, seconds: float) -> bool:
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(4096)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> None:
        self._socket.setblocking(False)
        try:
            while self._socket.recv(4096):
                pass
        except BlockingIOError:
            return


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with contextlib.closing(Listener(tmp_path / "notify")) as open_listener:
        yield open_listener


def test_ready_means_that_the_api_answers_and_adoption_is_done(node: Daemon, listener: Listener) -> None:
    node.start().apply()
    pid = node.wait().instance.pid
    node.kill()
    node.start(environ={"NOTIFY_SOCKET": str(listener.path)}, wait=False)
    message = listener.wait_for("READY=1")
    assert "STATUS=1 of 1 deployments ready" in message
    with node.client() as client:
        adopted = client.get_deployment("m")
    assert (PHASE[adopted.phase], adopted.instance.pid) == ("ready", pid)
    node.stop()
    assert "engines keep serving" in listener.wait_for("STOPPING=1")


def test_the_watchdog_is_fed_by_work_and_not_while_the_daemon_hangs(node: Daemon, listener: Listener) -> None:
    node.start(
        "--set", "daemon.sample_seconds=1",
        environ={"NOTIFY_SOCKET": str(listener.path), "WATCHDOG_USEC": "1500000"},
    )  # fmt: skip
    listener.wait_for("WATCHDOG=1")
    listener.wait_for("WATCHDOG=1")
    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)
    listener.drain()
    assert listener.silent_for(1.5)
    node.process.send_signal(signal.SIGCONT)
    listener.wait_for("WATCHDOG=1")


#: A log is rotated from 64 KiB on, and looked at twice a second; three turns without work are too many.
QUICK = {"logs": {"max_bytes": 65536, "files": 3}, "daemon": {"sample_seconds": 0.5}}


@pytest.fixture
def quick(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    yield from daemon(tmp_path, tiny_model, **QUICK)


@pytest.fixture
def small_logs(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    """Logs on a file system of 512 KiB."""
    with small_disk(tmp_path / "logs", "512k"):
        yield from daemon(tmp_path, tiny_model, **QUICK)


def two_logs(node: Daemon, listener: Listener) -> tuple[Path, Path]:
    """Of two engines that never get ready, in the order in which they are looked at."""
    node.start(environ={"NOTIFY_SOCKET": str(listener.path), "WATCHDOG_USEC": "1500000"})
    for name in ("m", "n"):
        node.apply(name, environment={"MODE": "never"})
    paths = [node.root / f"logs/{name}/1.log" for name in ("m", "n")]
    wait_true(lambda: all(path.exists() for path in paths), what="started")
    return paths[0], paths[1]


def fed_on(listener: Listener) -> None:
    """For longer than it would be, had the work loop stopped by now."""
    listener.drain()
    for _ in range(6):
        listener.wait_for("WATCHDOG=1")


def test_a_log_that_cannot_be_rotated_holds_up_neither_the_others_nor_the_watchdog(
    quick: Daemon, listener: Listener
) -> None:
    first, second = two_logs(quick, listener)
    first.with_name("1.log.rotating").mkdir()
    for path in (first, second):
        with path.open("a") as log:
            log.write("a line\n" * 10_000)
    wait_true(second.with_name("1.log.1").exists, what="rotated")
    fed_on(listener)
    wait_true(lambda: quick.get("n").instance.memory_bytes, what="sampled")
    assert first.stat().st_size == 70_000
    assert quick.log.read_text().count("log not rotated") == 1  # not at every turn


def test_a_log_that_filled_its_disk_gives_the_room_back(small_logs: Daemon, listener: Listener) -> None:
    first, second = two_logs(small_logs, listener)
    with first.open("ab", buffering=0) as log, contextlib.suppress(OSError):
        while log.write(b"a line\n" * 512):
            pass
    wait_true(lambda: first.stat().st_size == 0, what="cut")
    second.write_text("there is room\n" * 10_000)
    wait_true(lambda: second.stat().st_size == 0, what="rotated")
    assert len(second.with_name("1.log.1").read_text().splitlines()) == 10_000
    assert b"a line\na line\n" in first.with_name("1.log.1").read_bytes()
    fed_on(listener)
