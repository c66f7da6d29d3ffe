from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from agent.api.client import Client
from agent.errors import FailedPrecondition, InvalidArgument, NotFound, ReadOnly, Unavailable
from agent.v1 import agent_pb2 as pb
from tests.api.conftest import Background
from tests.api.fake_node import make_deployment


def test_every_rpc_has_a_method(client: Client):
    names = {method.name for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods}
    snake = {"".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_") for name in names}
    assert {name for name in snake if not callable(getattr(client, name, None))} == set()


def test_the_life_of_a_deployment_by_its_bare_id(client: Client):
    applied = client.apply_deployment({"name": "chat", "port": 8100}, request_id="r-1")
    assert applied.outcome == pb.ApplyDeploymentResponse.OUTCOME_CREATED
    assert client.get_deployment("chat") == client.get_deployment("deployments/chat")
    assert client.stop_deployment("chat").phase == pb.PHASE_STOPPED
    assert client.start_deployment("chat").phase == pb.PHASE_READY
    assert client.restart_deployment("chat", etag="").phase == pb.PHASE_STARTING
    assert client.delete_deployment("chat").phase == pb.PHASE_DELETED
    with pytest.raises(NotFound) as caught:
        client.get_deployment("chat")
    assert caught.value.hint == "agentctl get deployments lists them"


def test_what_can_be_looked_at(background: Background, client: Client):
    background.do(lambda: background.node.put(make_deployment("chat"), instances=2))
    assert client.get_status().deployments[0].name == "deployments/chat"
    assert client.get_node().host == "testhost"
    assert client.get_config().origins[0].field == "node_name"
    assert client.plan_deployment({"name": "x"}).refusal.code == "does_not_fit"
    newest, oldest = client.list_instances("chat")
    assert client.get_instance(newest.name) == newest
    assert oldest.attempt == 1
    assert len(client.list_artifacts()) == 2
    assert len(client.list_measurements()) == 2
    assert client.import_measurements({"measurements": []}).added_count == 1
    assert [chunk.data for chunk in client.stream_logs("chat", tail_lines=1)] == [b"three\n"]


def test_devices_are_looked_at_and_changed_by_their_bare_ids(client: Client):
    first, second = client.list_devices()
    assert client.get_device("GPU-0a2b3c4d") == client.get_device(first.name) == first
    quarantined = client.quarantine_device("GPU-1a2b3c4d", "loud")
    assert (quarantined.name, quarantined.condition) == (second.name, pb.DEVICE_CONDITION_QUARANTINED)
    assert client.release_device(second.name).condition == pb.DEVICE_CONDITION_HEALTHY
    assert [finding.check for finding in client.run_doctor().findings] == ["open-files"]


def test_hardware_is_described_for_plans_and_nodes(background: Background, client: Client):
    assert "h100" in client.simulate_node({"short": "h100-sxm:8"}).inventory["simulated"]
    client.plan_deployment({"name": "x"}, hardware={"short": "h100-sxm:8"})
    assert background.node.planned_for == {"short": "h100-sxm:8"}
    client.plan_deployment({"name": "x"})
    assert background.node.planned_for is None


def test_lists_are_read_to_their_end_over_all_pages(background: Background, client: Client):
    names = [f"d{n:03}" for n in range(205)]
    background.do(lambda: [background.node.put(make_deployment(name)) for name in names])
    assert [deployment.name for deployment in client.list_deployments()] == [f"deployments/{name}" for name in names]


def test_events_are_the_newest_ones_oldest_first(background: Background, client: Client):
    background.do(lambda: [background.node.happen(f"E{n}") for n in range(1205)])
    assert [event.seq for event in client.list_events(limit=3)] == [1203, 1204, 1205]
    assert [event.seq for event in client.list_events(limit=1100)] == list(range(106, 1206))
    assert len(client.list_events(limit=5000)) == 1205


def test_a_watch_goes_on_until_it_is_closed(background: Background, client: Client):
    with closing(client.watch()) as changes:
        assert next(changes).HasField("synced")
        background.do(lambda: background.node.happen("Something"))
        assert next(changes).event.reason == "Something"
    background.wait(background.node.watch_ended.wait())


def test_a_watch_ends_after_its_own_timeout(client: Client):
    with pytest.raises(Unavailable, match=r"within 0\.1 s"):
        list(client.watch(timeout=0.1))


def test_a_watch_says_when_the_agent_stops(background: Background, client: Client):
    changes = client.watch()
    assert next(changes).HasField("synced")
    background.wait(background.server.stop(grace_seconds=30))
    with pytest.raises(Unavailable, match="the agent is stopping"):
        next(changes)


def test_a_change_on_the_read_only_socket_says_where_to_go(background: Background):
    with Client(background.readonly.path) as looker:
        assert looker.get_node().host == "testhost"
        with pytest.raises(ReadOnly) as caught:
            looker.stop_deployment("chat")
    assert str(background.control.path) in caught.value.hint


def test_a_request_that_is_too_large_is_not_even_sent(client: Client):
    with pytest.raises(InvalidArgument, match="at most 4194304"):
        client.apply_deployment({"name": "x" * 5_000_000})


def test_a_spec_that_cannot_be_sent_is_refused_with_its_path(client: Client):
    with pytest.raises(InvalidArgument) as caught:
        client.apply_deployment({"limits": {"memory_bytes": 2**60}})
    assert caught.value.violations[0].field == "limits.memory_bytes"


@pytest.fixture(params=["get_node", "watch"])
def ask(request):
    """A unary call and a stream: both must tell why there is no answer."""

    def ask(path: Path, timeout: float = 10) -> None:
        with Client(path, timeout=timeout) as client:
            client.get_node() if request.param == "get_node" else next(client.watch())

    return ask


def test_no_socket_is_said_to_be_missing(tmp_path: Path, ask):
    with pytest.raises(Unavailable, match="there is no socket") as caught:
        ask(tmp_path / "none")
    assert "agentd" in caught.value.hint


def test_a_socket_that_nobody_listens_at_is_told_apart(tmp_path: Path, ask):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left"))
    with pytest.raises(Unavailable, match="nobody listens"):
        ask(tmp_path / "left")


def test_a_path_that_is_no_socket_is_told_apart(tmp_path: Path, ask):
    with pytest.raises(Unavailable, match="nobody listens"):
        ask(tmp_path)


def test_a_path_that_is_too_long_is_refused(tmp_path: Path, ask):
    with pytest.raises(InvalidArgument, match="107"):
        ask(tmp_path / ("x" * 120))


def test_a_listener_that_never_answers_is_told_apart(tmp_path: Path, ask):
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute"))
        mute.listen()
        with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
            ask(tmp_path / "mute", timeout=0.3)


def test_a_listener_that_is_no_agent_is_told_apart(tmp_path: Path, ask):
    with socket.socket(socket.AF_UNIX) as other, futures.ThreadPoolExecutor() as pool:
        other.bind(str(tmp_path / "other"))
        other.listen()

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = other.accept()
                except OSError:
                    return
                connection.close()

        pool.submit(hang_up)
        with pytest.raises(Unavailable, match=r"stopped answering|no answer within"):
            ask(tmp_path / "other", timeout=2)
        other.shutdown(socket.SHUT_RDWR)


def test_an_agent_of_another_version_is_told_apart(tmp_path: Path, ask):
    """It speaks gRPC, and knows none of our methods."""
    with futures.ThreadPoolExecutor() as pool:
        server = grpc.server(pool)
        server.add_insecure_port(f"unix:{tmp_path / 's'}")
        server.start()
        with pytest.raises(FailedPrecondition, match="does not know this request") as caught:
            ask(tmp_path / "s")
        server.stop(0).wait()
    assert "same version" in caught.value.hint


SERVE = """
import asyncio, sys, pathlib
from agent.api.server import ApiServer
from tests.api.conftest import Socket
from tests.api.fake_node import FakeNode
async def main():
    directory = pathlib.Path(sys.argv[1])
    server = await ApiServer.serve(Socket(directory / "c"), Socket(directory / "r"), FakeNode())
    print("ready", flush=True)
    await asyncio.Event().wait()
    del server  # kept until here: gRPC stops a server that nobody refers to
asyncio.run(main())
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path.cwd()
    ) as running:
        assert running.stdout
        assert running.stdout.readline() == b"ready\n"
        yield running
        running.kill()


def test_an_agent_that_hangs_is_told_apart_within_the_timeout(process: subprocess.Popen, tmp_path: Path, ask):
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(Unavailable, match=r"no answer within 0\.5 s"):
        ask(tmp_path / "c", timeout=0.5)


@pytest.mark.slow
def test_a_watch_notices_an_agent_that_hangs_later(process: subprocess.Popen, tmp_path: Path):
    with Client(tmp_path / "c") as client:
        changes = client.watch()
        assert next(changes).HasField("synced")
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(Unavailable, match="stopped answering"):
            next(changes)


def test_an_agent_that_is_killed_is_told_at_once(process: subprocess.Popen, tmp_path: Path):
    with Client(tmp_path / "c") as client:
        changes = client.watch()
        assert next(changes).HasField("synced")
        process.kill()
        process.wait()
        with pytest.raises(Unavailable, match="nobody listens"):
            next(changes)
