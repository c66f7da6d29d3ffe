"""What systemd is told: readiness when the API answers and adoption is done, the watchdog from work done, the end."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import PHASE, Daemon


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
