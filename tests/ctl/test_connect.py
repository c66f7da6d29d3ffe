"""Which daemon is asked, and what is said of one that cannot be."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from agent.ctl import connect
from agent.ctl.exits import Exit
from agent.errors import Unavailable
from agent.v1 import agent_pb2 as pb
from tests.ctl.conftest import Invoke, Run, Served
from tests.ctl.deployments import READY


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Path]:
    """A socket with somebody behind it who never answers."""
    path = tmp_path / "hung.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield path


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    """A socket that a killed daemon left behind."""
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return path


def user(tmp_path: Path, **sockets: Path) -> dict[str, str]:
    """The environment of a user whose runtime directory has these sockets, as links to the ones given."""
    directory = tmp_path / "xdg" / "llm-node-agent"
    directory.mkdir(parents=True)
    for name, target in sockets.items():
        (directory / f"{name}.sock").symlink_to(target)
    return {"XDG_RUNTIME_DIR": str(directory.parent), "HOME": str(tmp_path)}


def test_a_given_socket_wins_over_the_variable(listening: Path) -> None:
    assert connect.find(str(listening), {"AGENTD_SOCKET": "/nowhere"}, change=True) == listening


def test_the_variable_wins_over_the_users_daemon(tmp_path: Path, listening: Path, stale: Path) -> None:
    environ = user(tmp_path, control=listening) | {"AGENTD_SOCKET": str(stale)}
    assert connect.find(None, environ, change=False) == stale


def test_the_users_daemon_is_found_without_any_option(tmp_path: Path, listening: Path) -> None:
    environ = user(tmp_path, control=listening)
    assert connect.find(None, environ, change=True).resolve() == listening


@pytest.mark.skipif(Path("/run/llm-node-agent").exists(), reason="the system's daemon is installed here")
def test_readers_and_only_they_fall_back_to_the_read_only_socket(tmp_path: Path, listening: Path, stale: Path) -> None:
    environ = user(tmp_path, control=stale, readonly=listening)
    assert connect.find(None, environ, change=False).name == "readonly.sock"
    assert connect.find(None, environ, change=True).name == "control.sock"


def test_where_several_are_there_and_nobody_listens_each_is_named(tmp_path: Path, stale: Path) -> None:
    environ = user(tmp_path, control=stale, readonly=stale)
    with pytest.raises(Unavailable, match=r"control\.sock: nobody listens there(.|\n)*readonly\.sock: nobody"):
        connect.find(None, environ, change=False)


@pytest.mark.parametrize("words", [("status",), ("wait", "chat")])
def test_a_socket_that_a_killed_daemon_left_is_told_by_the_first_call(
    invoke: Invoke, stale: Path, words: tuple[str, ...]
) -> None:
    done = invoke("--socket", stale, *words)
    assert done.exit_code == Exit.UNREACHABLE
    assert f"nobody listens at {stale}" in done.stderr
    assert "hint: start it with `agentd`" in done.stderr


@pytest.mark.skipif(Path("/run/llm-node-agent").exists(), reason="the system's daemon is installed here")
def test_an_absent_daemon_is_told_with_all_the_places_that_were_looked_at(agentctl: Run) -> None:
    done = agentctl("status")
    assert done.returncode == Exit.UNREACHABLE
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "error: no agentd is running"
    assert done.stderr.count("there is no such socket") == 4
    assert "hint: start the daemon with `agentd`" in done.stderr


def test_a_path_that_is_too_long_for_a_socket_is_said_to_be(invoke: Invoke) -> None:
    done = invoke("--socket", "/" + "x" * 200, "status")
    assert done.exit_code == Exit.UNREACHABLE
    assert "af_unix path too long" in done.stderr


def test_a_daemon_that_never_answers_is_told_apart_within_the_timeout(agentctl: Run, listening: Path) -> None:
    done = agentctl("status", "--socket", str(listening), "--timeout", "300ms")
    assert done.returncode == Exit.UNREACHABLE
    assert "gave no answer within 0.3 s" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stopped_daemon_process_is_told_within_the_timeout(agentctl: Run, tmp_path: Path) -> None:
    script = (
        "import asyncio, pathlib, sys; from agent.api.server import ApiServer\n"
        "from tests.api.conftest import Socket; from tests.api.fake_node import FakeNode\n"
        "async def main():\n"
        "    root = pathlib.Path(sys.argv[1])\n"
        "    server = await ApiServer.serve(Socket(root / 'c.sock'), Socket(root / 'r.sock'), FakeNode())\n"
        "    print('serving', flush=True); await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "serving\n"
            daemon.send_signal(signal.SIGSTOP)
            for words in (["status"], ["wait", "chat"]):
                done = agentctl("--socket", str(tmp_path / "c.sock"), "--timeout", "300ms", *words)
                assert (done.returncode, done.stdout) == (Exit.UNREACHABLE, "")
                assert "gave no answer within 0.3 s" in done.stderr
        finally:
            daemon.kill()


@pytest.mark.parametrize(("words", "may"), [(["stop", "chat"], "change"), (["status"], "look at")])
def test_a_socket_that_may_not_be_opened_is_a_matter_of_permission(
    invoke: Invoke, served: Served, words: list[str], may: str
) -> None:
    served.control.path.chmod(0)
    with nobody():
        done = invoke("--socket", served.control.path, *words)
    assert done.exit_code == Exit.PERMISSION
    assert f"you may not {may} this node" in done.stderr
    assert "control.sock: permission denied" in done.stderr
    assert "hint: run it as the socket's owner or with sudo" in done.stderr


def test_the_read_only_socket_refuses_a_change(invoke: Invoke, served: Served) -> None:
    served.put(READY)
    done = invoke("--socket", served.readonly.path, "stop", "chat")
    assert done.exit_code == Exit.PERMISSION
    assert "hint: ask the control socket" in done.stderr


@pytest.mark.parametrize(("version", "told"), [("0.0.9", "the daemon (0.0.9) is older than"), (None, "is older than")])
def test_a_daemon_that_does_not_know_a_request_is_an_older_one(
    invoke: Invoke, tmp_path: Path, version: str | None, told: str
) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    if version:
        node = grpc.unary_unary_rpc_method_handler(
            lambda _request, _context: pb.Node(version=version), response_serializer=pb.Node.SerializeToString
        )
        handler = grpc.method_handlers_generic_handler("agent.v1.NodeService", {"GetNode": node})
        server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{tmp_path}/old.sock")
    server.start()
    done = invoke("--socket", f"{tmp_path}/old.sock", "get")
    server.stop(0).wait()
    assert done.exit_code == Exit.PRECONDITION
    assert told in done.stderr
    assert "hint: restart agentd after an upgrade" in done.stderr


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to open everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
