"""What the node holds: pulled from a hub, in use, pinned, refused, removed to make room; on the real daemon."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agent.api.client import Client
from agent.artifacts import cache, holdings
from agent.ctl.exits import Exit
from agent.errors import Conflict, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from agent.v1 import agent_pb2 as pb
from tests.cache_factory import keep
from tests.harness import Daemon, daemon, wait_true
from tests.hub.server import Fault, Hub
from tests.small_disk import small_disk

ROOT = Path(__file__).parents[2]
MIB = 1024**2
DAY = 86_400.0
TINY, A, B, C = (f"hf:a/{name}-GGUF:Q4_K_M" for name in ("tiny", "one", "two", "three"))
SIZES = {A: 4 * MIB, B: 5 * MIB, C: 6 * MIB}
ODD = 12_345  # bytes of others


@pytest.fixture(scope="module")
def hub(tiny_model: Path) -> Iterator[Hub]:
    with Hub() as one:
        head = tiny_model.read_bytes()
        one.repo("a/tiny-GGUF", {"tiny-Q4_K_M.gguf": head, "tiny-Q8_0.gguf": head + b"\0" * 32})
        for reference, size in SIZES.items():
            name = reference.split("/")[1].partition("-")[0]
            one.repo(f"a/{name}-GGUF", {f"{name}-Q4_K_M.gguf": head + os.urandom(size - len(head))})
        yield one


@pytest.fixture(autouse=True)
def healthy(hub: Hub) -> Iterator[None]:
    yield
    hub.heal()


def settings(hub: Hub, **more: Any) -> dict[str, Any]:
    return {"fetch": {"endpoint": hub.endpoint, "disk_reserve_bytes": 0, "connections": 1}, **more}


@pytest.fixture
def host(tmp_path: Path, tiny_model: Path, hub: Hub) -> Iterator[Daemon]:
    yield from daemon(tmp_path, tiny_model, **settings(hub))


@pytest.fixture
def small(tmp_path: Path, tiny_model: Path, hub: Hub) -> Iterator[Daemon]:
    """A cache on a file system of 16 MiB, of which 90 and 60 percent are the marks."""
    with small_disk(tmp_path / "cache", "16m"):
        marks = {"disk_high": 0.9, "disk_low": 0.6}
        yield from daemon(tmp_path, tiny_model, **settings(hub, artifacts=marks))


def agentctl(node: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "AGENTD_SOCKET": str(node.control), "PYTHONPATH": str(ROOT), "HOME": "/"}
    command = [sys.executable, "-m", "agent.ctl", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=50, check=False)


def pull(client: Client, reference: str) -> pb.Artifact:
    *_, last = client.pull_artifact(reference)
    return last.artifact


def held(client: Client) -> dict[str, pb.Artifact]:
    return {one.source: one for one in client.list_artifacts()}


def plant(node: Daemon, reference: str, *, days: float = 0.0) -> None:
    """As if it had been pulled, and used so long ago."""
    repo, _, variant = reference.removeprefix("hf:").partition(":")
    root, name = node.root / "cache", repo.partition("/")[2].partition("-")[0]
    kept = keep(root, repo, "c" * 40, variant, {f"{name}-{variant}.gguf": os.urandom(SIZES.get(reference, ODD))})
    at = time.time() - days * DAY
    os.utime(cache.repository(root, repo).record(kept.commit, variant), (at, at))


def went(node: Daemon, *references: str) -> None:
    """These went, in this order, by the events."""

    def told() -> list[str]:
        return [event.message.partition(" ")[0] for event in node.events() if event.reason == "ArtifactRemoved"]

    wait_true(lambda: len(told()) >= len(references), what="told")  # an event is written after what it tells of
    assert told() == list(references)


def whole(node: Daemon) -> bool:
    """No link leads nowhere, and each file that is visible has all of its content."""
    paths = list((node.root / "cache").glob("hub/*/snapshots/*/*"))
    return all(path.stat().st_size in {*SIZES.values(), node.model.stat().st_size} for path in paths)


def test_what_runs_or_is_desired_is_not_removed_and_what_is_left_over_is(host: Daemon) -> None:
    host.start()
    host.apply(model=TINY)
    host.apply("own")
    host.wait()
    host.wait("own")
    with host.client() as client:
        own, one = held(client)[f"file:{host.model}"], held(client)[TINY]
        assert (own.state, own.path) == (pb.ARTIFACT_STATE_EXTERNAL, str(host.model))
        assert list(own.used_by) == list(own.desired_by) == ["deployments/own"]
        for change in (client.pin_artifact, client.delete_artifact):
            with pytest.raises(FailedPrecondition, match="outside of the cache"):
                change(own.name)
        client.delete_deployment("own")
        plant(host, TINY)  # another commit of the same, which nobody wants
        removed_now = client.collect_artifacts(everything=True).removed
        assert [(gone.artifact.source, gone.artifact.revision) for gone in removed_now] == [(TINY, "c" * 40)]
        assert held(client)[TINY].name == one.name
        assert (one.state, list(one.used_by), list(one.desired_by)) == (
            pb.ARTIFACT_STATE_COMPLETE, ["deployments/m"], ["deployments/m"]
        )  # fmt: skip
        assert (one.size_bytes, one.format, one.architecture) == (host.model.stat().st_size, "gguf", "llama")
        assert one.verify_time.seconds <= one.use_time.seconds + 1 <= time.time() + 2
        with pytest.raises(FailedPrecondition, match="deployment m runs with it"):
            client.delete_artifact(TINY)
        client.stop_deployment("m")
        host.wait(phase="stopped")
        with pytest.raises(FailedPrecondition, match="deployment m wants it"):
            client.delete_artifact(one.name)
        assert not client.collect_artifacts(everything=True).removed
        host.kill()
        host.start()  # a stopped deployment is asked for by its spec alone, if its plan is not known any more
        with pytest.raises(FailedPrecondition, match="deployment m wants it"):
            client.delete_artifact(TINY)
        client.delete_deployment("m")
        wait_true(lambda: not client.list_deployments(), what="deleted")
        first = client.delete_artifact(TINY, request_id="r1")
        assert (first.source, first.freed_bytes) == (TINY, one.size_bytes)
        again = client.delete_artifact(TINY, request_id="r1")
        assert (again.source, again.freed_bytes) == (TINY, 0)
        with pytest.raises(NotFound):
            client.delete_artifact(TINY, request_id="r2")
        with pytest.raises(Conflict):
            client.delete_artifact(A, request_id="r1")
    assert host.model.exists()
    went(host, TINY, TINY)
    assert not list((host.root / "cache").glob("hub/*/blobs/*"))


def test_a_pull_brings_what_a_deployment_would_get(host: Daemon) -> None:
    host.start()
    done = agentctl(host, "artifacts", "pull", "a/tiny-GGUF")
    assert (done.returncode, done.stdout.partition(":")[0]) == (Exit.OK, "hf"), done.stderr
    shown = json.loads(agentctl(host, "artifacts", "-o", "json").stdout)
    assert [(one["source"], one["state"]) for one in shown["artifacts"]] == [(TINY, "ARTIFACT_STATE_COMPLETE")]
    assert shown["disk"]["total_bytes"] > shown["disk"]["free_bytes"] > 0
    with host.client() as client:
        with pytest.raises(NotFound, match="hf:a/nothing"):
            pull(client, "hf:a/nothing:Q4_K_M")
        for wrong in ("ftp:/x", "hf:nothing", ""):
            with pytest.raises(InvalidArgument) as caught:
                pull(client, wrong)
            assert [one.field for one in caught.value.violations] == ["reference"]


def test_an_interrupted_pull_is_shown_resumed_and_aged_out_where_nobody_goes_on(host: Daemon, hub: Hub) -> None:
    host.start()
    hub.fail(Fault("/cdn/a/one-GGUF/*", stall_at=2 * MIB))
    with host.client() as client:
        stream = client.pull_artifact(A)
        for message in stream:
            if message.progress.done_bytes >= MIB:
                break
        with pytest.raises(FailedPrecondition, match="a pull of its repository is under way"):
            client.delete_artifact("hf:a/one-GGUF")
        stream.close()  # type: ignore[attr-defined]
        wait_true(lambda: not held(client)["hf:a/one-GGUF"].kept_for, what="stopped")
        part = held(client)["hf:a/one-GGUF"]
        assert part.state == pb.ARTIFACT_STATE_PARTIAL
        assert MIB <= part.disk_bytes < part.size_bytes == SIZES[A]
        hub.heal()
        before = hub.sent
        assert pull(client, A).state == pb.ARTIFACT_STATE_COMPLETE
        assert hub.sent - before < SIZES[A] - MIB // 2
        assert list(held(client)) == [A]
        plant(host, B)
        (blob,) = (host.root / "cache").glob("hub/models--a--two-GGUF/blobs/*")
        blob.rename(blob.with_name(f"{blob.name}.incomplete"))  # what another pull left
        blob.with_name(f"{blob.name}.incomplete.parts").touch()
        shutil.rmtree(host.root / "cache/hub/models--a--two-GGUF/snapshots")
        shutil.rmtree(host.root / "cache/fetched/hub/models--a--two-GGUF")
        assert not client.collect_artifacts(dry_run=True).removed  # it is new
    long_ago = time.time() - 8 * DAY
    for path in (host.root / "cache").glob("hub/models--a--two-GGUF/blobs/*"):
        os.utime(path, (long_ago, long_ago))
    host.stop()
    host.start()
    with host.client() as client:
        wait_true(lambda: list(held(client)) == [A], what="aged out")
    went(host, "hf:a/two-GGUF")


def test_the_disk_is_kept_between_its_marks_and_a_dry_run_tells_what_goes(small: Daemon) -> None:
    node = small
    node.start()
    with node.client() as client:
        plant(node, A, days=2)
        plant(node, B, days=9)
        assert not client.collect_artifacts(dry_run=True).removed  # 9 of 16 MiB: below the low mark
        plant(node, C)  # 15 of 16 MiB
        would = client.collect_artifacts(dry_run=True)
        assert [one.artifact.source for one in would.removed] == [B, A]
        assert would.disk.high == 0.9
        client.pin_artifact(A)
        would = client.collect_artifacts(dry_run=True)
        assert [(one.artifact.source, one.freed_bytes) for one in would.removed] == [(B, SIZES[B])]
        assert "what was used within 1 h stays" in would.message
    node.stop()
    node.start()  # the look at the start finds the disk above its high mark
    with node.client() as client:
        wait_true(lambda: B not in held(client), what="collected")
        assert set(held(client)) == {A, C}
        assert held(client)[A].pinned
        with pytest.raises(FailedPrecondition, match="pinned"):
            client.delete_artifact(A)
    went(node, B)
    assert any("the disk is 9" in event.message for event in node.events())
    assert whole(node)


def test_a_pull_that_lacks_room_gets_it_from_what_nobody_wants(small: Daemon) -> None:
    node = small
    node.start()
    with node.client() as client:
        plant(node, B, days=1)
        plant(node, C, days=2)
        (node.root / "cache" / "other").write_bytes(b"x" * 4 * MIB)  # 15 of 16 MiB
        assert pull(client, A).state == pb.ARTIFACT_STATE_COMPLETE
        assert set(held(client)) == {A, B}
        went(node, C)
        # What is there is too new or in use by now: the pull is refused, and nothing goes in vain.
        client.pin_artifact(B)
        (node.root / "cache" / "more").write_bytes(b"x" * 2 * MIB)
        with pytest.raises(FailedPrecondition, match=r"disk_full: .* needs 6\.00 MiB"):
            pull(client, C)
        assert set(held(client)) >= {A, B}
    went(node, C)


def test_a_full_disk_with_nothing_to_remove_is_a_condition(tmp_path: Path, tiny_model: Path, hub: Hub) -> None:
    marks = {"disk_high": 1e-6, "disk_low": 1e-7}
    for node in daemon(tmp_path, tiny_model, **settings(hub, artifacts=marks)):
        plant(node, A, days=3)
        plant(node, B, days=2)
        plant(node, C, days=30)
        shutil.rmtree(node.root / "cache/fetched/hub/models--a--three-GGUF")  # as other tools leave it
        (pinned,) = [one for one in holdings.scan(node.root / "cache") if one.kept and one.kept.repo in A]
        holdings.pin(pinned, pinned=True)
        node.start()
        with node.client() as client:

            def full() -> list[str]:
                found = client.get_node().conditions
                return [one.message for one in found if (one.type, one.status) == ("DiskHasRoom", pb.TERNARY_FALSE)]

            (message,) = wait_true(full, what="told")
            assert "nothing more can be removed" in message
            assert {"4.0 MiB pinned", "6.0 MiB another tool put it there"} == set(
                message.partition("kept: ")[2].split(", ")
            )
            assert not client.collect_artifacts(everything=True).removed
            found = held(client)
            assert (set(found), found["hf:a/three-GGUF"].state) == ({A, "hf:a/three-GGUF"}, pb.ARTIFACT_STATE_FOREIGN)
            assert client.delete_artifact("hf:a/three-GGUF").freed_bytes == SIZES[C]
        went(node, B, "hf:a/three-GGUF")


def disk(client: Client) -> pb.Condition:
    """What is said of the cache's disk, once the look at the start is done."""
    found: list[pb.Condition] = wait_true(
        lambda: [one for one in client.get_node().conditions if one.type == "DiskHasRoom"], what="told"
    )
    return found[0]


def test_what_cannot_be_removed_is_told_and_holds_up_nothing_else(host: Daemon) -> None:
    long_ago = time.time() - 30 * DAY
    for reference in (A, B):
        plant(host, reference)
        folder = cache.repository(host.root / "cache", reference.removeprefix("hf:").partition(":")[0])
        (blob,) = folder.blobs.iterdir()
        part = blob.rename(blob.with_name(f"{blob.name}.incomplete"))  # of a pull that nobody goes on with
        part.with_name(f"{part.name}.parts").touch()
        os.utime(part, (long_ago, long_ago))
        shutil.rmtree(folder.path / "snapshots")
        shutil.rmtree(folder.records)
    locks = host.root / "cache/hub/.locks/models--a--one-GGUF"
    locks.parent.mkdir()
    locks.write_text("no directory")
    host.start()
    with host.client() as client:
        told = disk(client)
        assert (told.status, told.reason) == (pb.TERNARY_UNSPECIFIED, "RemovalFailed")
        assert "hf:a/one-GGUF stays: " in told.message
        assert str(locks) in told.message
        assert set(held(client)) == {"hf:a/one-GGUF"}
        with pytest.raises(Unavailable, match="hf:a/one-GGUF stays: "):
            client.collect_artifacts(everything=True)
        with pytest.raises(Unavailable, match="cannot be changed: File exists"):
            client.delete_artifact("hf:a/one-GGUF")
        plant(host, C)
        collected = client.collect_artifacts(everything=True)
        assert [one.artifact.source for one in collected.removed] == [C]
        assert "hf:a/one-GGUF stays: " in collected.message
        # What was begun to be removed and could not be finished waits in the same way.
        plant(host, A)
        with pytest.raises(Unavailable):
            client.delete_artifact(A)
        with pytest.raises(Unavailable, match="what was begun to be removed stays: "):
            client.collect_artifacts()
        assert A not in held(client)
    went(host, "hf:a/two-GGUF", C)
    assert [event.reason for event in host.events()].count("RemovalFailed") == 1
    host.stop()
    host.start()
    with host.client() as client:
        assert disk(client).reason == "RemovalFailed"
    host.stop()
    locks.unlink()
    host.start()
    with host.client() as client:
        assert disk(client).reason == "BelowHighWatermark"
        assert not held(client)
    assert not list((host.root / "cache").glob("hub/*/blobs/*"))


def test_what_is_pinned_while_others_go_stays(host: Daemon) -> None:
    references = [f"hf:a/{number:02}-GGUF:Q4_K_M" for number in range(80)]
    last = references[-1]
    for number, reference in enumerate(references):
        plant(host, reference, days=90 - number)  # they go in this order
    host.start()
    with host.client() as client, host.client(timeout=30) as other, ThreadPoolExecutor(1) as beside:
        collection = beside.submit(other.collect_artifacts, everything=True)
        first = cache.repository(host.root / "cache", "a/00-GGUF").records
        wait_true(lambda: not first.exists(), what="begun")
        try:
            pinned = client.pin_artifact(last).pinned
        except NotFound:  # the others went faster than that
            pinned = False
        removed = [one.artifact.source for one in collection.result().removed]
        assert removed == (references[:-1] if pinned else references)
        assert set(held(client)) == ({last} if pinned else set())


def test_what_somebody_removes_is_not_removed_by_another_beside_him(host: Daemon) -> None:
    repo, contents = "a/many-GGUF", {f"{number}.safetensors": b"%d" % number for number in range(150)}
    host.start()
    with host.client() as client, host.client() as other, ThreadPoolExecutor(1) as beside:
        for _ in range(8):
            kept = keep(host.root / "cache", repo, "c" * 40, "", contents)
            moved = host.root / "cache/removing/fetched/hub/models--a--many-GGUF"
            deleted = beside.submit(other.delete_artifact, f"hf:{repo}")
            while not moved.exists() and not deleted.done():
                time.sleep(0.001)
            assert not client.collect_artifacts().removed
            assert deleted.result().freed_bytes == kept.bytes
        assert not held(client)


def test_a_kill_in_the_middle_of_a_collection_leaves_nothing_half_visible(host: Daemon) -> None:
    host.start(environ={"AGENTD_FAILPOINTS": "removing-contents=kill@2"})
    with host.client() as client:
        for reference in (A, B, C):
            plant(host, reference)
        client.pin_artifact(C)
        with pytest.raises(Unavailable):
            client.collect_artifacts(everything=True)
        assert host.process is not None
        host.process.wait(40)
        assert whole(host)
        host.start()
        assert not {A, B} & set(held(client))  # contents without a record are there until the look at the start
        wait_true(lambda: list(held(client)) == [C], what="finished")
        assert len(list((host.root / "cache").glob("hub/*/blobs/*"))) == 1
        assert whole(host)
