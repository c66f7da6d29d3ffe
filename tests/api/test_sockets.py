from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import grpc
import pytest

from agent.api import reach, sockets
from agent.api.server import ApiServer
from agent.errors import FailedPrecondition, InvalidArgument
from agent.v1 import agent_pb2 as pb
from tests.api.conftest import Api, Socket
from tests.api.fake_node import FakeNode

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


async def test_each_socket_has_its_own_mode_whatever_the_umask(node: FakeNode, tmp_path: Path):
    before = os.umask(0)
    try:
        control, readonly = Socket(tmp_path / "c", mode=0o640), Socket(tmp_path / "r", mode=0o666)
        server = await ApiServer.serve(control, readonly, node)
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert (_mode(control.path), _mode(readonly.path)) == (0o640, 0o666)
    await server.stop(grace_seconds=0)


async def test_nobody_else_may_open_the_socket_before_its_owner_is_set(tmp_path: Path):
    """Looks at the file at the very moment after it was made."""
    seen = []

    class Watched:
        def __init__(self) -> None:
            self.server = grpc.aio.server()

        def add_insecure_port(self, address: str) -> int:
            port = self.server.add_insecure_port(address)
            seen.append(_mode(tmp_path / "s"))
            return port

    before = os.umask(0)
    try:
        watched = Watched()
        bound = sockets.bind(watched, Socket(tmp_path / "s", mode=0o666), "api.control")
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert _mode(tmp_path / "s") == 0o666
    bound.remove()


@root_only
async def test_owner_and_group_may_be_given_by_number_and_by_name(node: FakeNode, tmp_path: Path):
    control = Socket(tmp_path / "c", owner="12345", group="23456", mode=0o660)
    readonly = Socket(tmp_path / "r", owner="root", group="root")
    server = await ApiServer.serve(control, readonly, node)
    info = control.path.lstat()
    assert (info.st_uid, info.st_gid, _mode(control.path)) == (12345, 23456, 0o660)
    assert (readonly.path.lstat().st_uid, readonly.path.lstat().st_gid) == (0, 0)
    await server.stop(grace_seconds=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may give files away")
async def test_giving_the_socket_away_without_the_right_to_is_refused_and_leaves_nothing(node, tmp_path):
    with pytest.raises(FailedPrecondition, match="cannot give"):
        await ApiServer.serve(Socket(tmp_path / "c", owner="root"), Socket(tmp_path / "r"), node)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["owner", "group"])
async def test_an_unknown_owner_or_group_is_refused_with_its_field(node: FakeNode, tmp_path: Path, what: str):
    with pytest.raises(InvalidArgument) as caught:
        await ApiServer.serve(Socket(tmp_path / "c"), Socket(tmp_path / "r", **{what: "no-such-name"}), node)
    assert [violation.field for violation in caught.value.violations] == [f"api.readonly.{what}"]
    assert not list(tmp_path.iterdir()), "the control socket was made already and must go again"


async def test_a_path_longer_than_the_kernel_takes_is_refused_with_its_field(node: FakeNode, tmp_path: Path):
    path = tmp_path / ("x" * 100)
    with pytest.raises(InvalidArgument, match="107") as caught:
        await ApiServer.serve(Socket(path), Socket(tmp_path / "r"), node)
    assert [violation.field for violation in caught.value.violations] == ["api.control.path"]


async def test_a_socket_that_a_killed_agent_left_is_replaced(node: FakeNode, control: Socket, readonly: Socket):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(control.path))
    server = await ApiServer.serve(control, readonly, node)
    assert reach.listens(control.path)
    await server.stop(grace_seconds=0)


async def test_a_socket_that_somebody_listens_at_is_left_alone(api: Api, control: Socket, tmp_path: Path):
    with pytest.raises(FailedPrecondition, match="another process listens"):
        await ApiServer.serve(control, Socket(tmp_path / "other"), FakeNode())
    assert (await api.call("NodeService/GetNode", pb.GetNodeRequest())).host == "testhost"


def test_a_listener_that_hangs_with_a_full_backlog_still_counts_as_one(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        waiting.connect(str(tmp_path / "s"))
        assert reach.listens(tmp_path / "s")


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
async def test_anything_else_in_the_place_of_the_socket_is_an_error_and_stays(node, control, readonly, kind):
    match kind:
        case "file":
            control.path.write_text("precious")
        case "directory":
            control.path.mkdir()
        case _:
            control.path.symlink_to("/nonexistent")
    with pytest.raises(FailedPrecondition, match="is no socket"):
        await ApiServer.serve(control, readonly, node)
    assert os.path.lexists(control.path)


async def test_a_missing_directory_is_an_error_that_says_so(node: FakeNode, tmp_path: Path):
    with pytest.raises(FailedPrecondition, match="the directory must exist"):
        await ApiServer.serve(Socket(tmp_path / "no" / "c"), Socket(tmp_path / "r"), node)


async def test_the_sockets_are_gone_after_a_stop_but_not_those_of_a_successor(
    node: FakeNode, control: Socket, readonly: Socket
):
    server = await ApiServer.serve(control, readonly, node)
    control.path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(readonly.path.with_name("new")))
    bound = sockets.BoundSocket(readonly.path.with_name("new"), inode=-1)
    bound.remove()
    assert bound.path.exists()
    await server.stop(grace_seconds=0)
    assert not readonly.path.exists()
