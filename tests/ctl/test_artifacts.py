"""`artifacts`: what is here as people see it, pulls with their rate, and what refuses to go."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from agent.ctl import artifacts as shown
from agent.ctl.artifacts import Rate
from agent.ctl.exits import Exit
from agent.supervision.service import ArtifactState, Pulling
from agent.v1 import agent_pb2 as pb
from tests.api.fake_node import make_artifact
from tests.ctl.conftest import Invoke, Served
from tests.ctl.deployments import NOW

GOLDEN = Path(__file__).parent / "golden"
MIB, GIB = 1024**2, 1024**3
DAY = 86_400.0


@pytest.fixture
def held(served: Served) -> None:
    """One of each kind."""
    served.node.artifact_list = [
        make_artifact(used_at=NOW - 30, verified_at=NOW - 9 * DAY, pinned=True),
        make_artifact(
            "0b1c2d3e4f50", source="hf:unsloth/Qwen3-8B-GGUF:Q4_K_M", variant="Q4_K_M", format="gguf", files=1,
            quantization="Q4_K_M", size=5 * GIB, disk=5 * GIB, frees=5 * GIB, used_by=(), desired_by=("chat", "embed"),
            used_at=NOW - 3 * DAY, kept_for="deployments chat, embed want it",
        ),
        make_artifact(
            "111111111111", source="hf:a/part", state=ArtifactState.PARTIAL, revision="", size=4 * GIB, disk=GIB,
            frees=GIB, used_by=(), used_at=NOW - 8 * DAY, verified_at=None, format="", quantization="", kept_for="",
        ),
        make_artifact("222222222222", source="hf:a/old", state=ArtifactState.CHANGED, used_by=(), kept_for="",
                      used_at=NOW - 90 * DAY),
        make_artifact(
            "333333333333", source="file:/models/own.gguf", path="/models/own.gguf", state=ArtifactState.EXTERNAL,
            files=0, disk=0, frees=0, used_at=None, verified_at=None, revision="",
        ),
    ]  # fmt: skip


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize(("name", "words"), [("artifacts.table", []), ("artifacts.wide", ["ls", "-o", "wide"])])
def test_artifacts_are_shown_as_they_were(ctl: Invoke, name: str, words: list[str]) -> None:
    done = ctl("artifacts", *words)
    assert done.exit_code == Exit.OK
    assert done.stdout == (GOLDEN / name).read_text()
    assert done.stderr == (
        "/var/cache/llm-node-agent: 92% of the disk is in use, 40.0 GiB are free; room is made above 90%, down to 80%\n"
    )


@pytest.mark.usefixtures("held")
def test_programs_get_all_of_it(ctl: Invoke) -> None:
    found = json.loads(ctl("artifacts", "-o", "json").stdout)
    assert found == yaml.safe_load(ctl("artifacts", "-o", "yaml").stdout)
    assert [one["state"] for one in found["artifacts"]][2:] == [
        "ARTIFACT_STATE_PARTIAL", "ARTIFACT_STATE_CHANGED", "ARTIFACT_STATE_EXTERNAL",
    ]  # fmt: skip
    assert found["artifacts"][0]["id"] == "a1b2c3d4e5f6"
    assert found["disk"]["free_bytes"] == 40 * GIB


def test_a_pull_tells_steps_and_where_the_files_are(ctl: Invoke, served: Served) -> None:
    done = ctl("artifacts", "pull", "hf:a/b:Q4")
    assert done.exit_code == Exit.OK
    told = [line.partition(",")[0] for line in done.stderr.splitlines()]
    assert told == [f"hf:a/b:Q4: fetching {percent}% of 80.0 MiB" for percent in (0, 50, 100)]
    assert done.stdout.startswith("hf:a/b:Q4 is here: 1.4 GiB in 10 files, /var/cache/")
    answer = json.loads(ctl("artifacts", "pull", "qwen3-8b", "-o", "json").stdout)
    assert answer["artifact"]["source"] == "hf:Qwen/Qwen3-8B"


def test_an_interrupted_pull_says_that_it_can_go_on(served: Served, environment: dict[str, str]) -> None:
    served.do(served.node.gate.clear)
    command = [sys.executable, "-m", "agent.ctl", "--socket", str(served.control.path), "artifacts", "pull", "hf:a/b"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "100%" in line:
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == Exit.INTERRUPTED
    assert "interrupted at 100% of 80.0 MiB: what came is kept, and the same command goes on" in said
    served.wait(served.node.pull_ended.wait())


def test_a_daemon_that_goes_during_a_pull_is_told_with_the_way_on(ctl: Invoke, served: Served) -> None:
    served.do(served.node.gate.clear)
    asked, stopping = served.node.pull, []

    async def pull(reference: str) -> AsyncIterator[Pulling]:
        async for message in asked(reference):
            yield message
            if message.progress is not None and message.progress.done == message.progress.total:
                stopping.append(asyncio.create_task(served.server.stop(0)))

    served.node.pull = pull  # type: ignore[method-assign]
    done = ctl("artifacts", "pull", "hf:a/b")
    assert done.exit_code == Exit.UNREACHABLE
    assert "what came is kept, and the same command goes on" in done.stderr


def test_pins_are_set_and_lifted_by_reference_id_or_bare_name(ctl: Invoke, served: Served) -> None:
    assert ctl("artifacts", "pin", "Qwen/Qwen3-0.6B", "0b1c2d3e4f50").stdout.splitlines() == [
        "hf:Qwen/Qwen3-0.6B is pinned", "hf:a/old is pinned",
    ]  # fmt: skip
    assert all(one.pinned for one in served.node.artifact_list)
    changed = json.loads(ctl("artifacts", "unpin", "hf:a/old", "-o", "json").stdout)
    assert [one["pinned"] for one in changed["artifacts"]] == [False]


def test_what_is_in_use_is_not_removed_and_the_reason_is_said(ctl: Invoke, served: Served) -> None:
    done = ctl("artifacts", "rm", "hf:Qwen/Qwen3-0.6B")
    assert (done.exit_code, done.stdout) == (Exit.PRECONDITION, "")
    assert done.stderr == (
        "error: hf:Qwen/Qwen3-0.6B stays: deployment chat runs with it\nhint: delete the deployment\n"
    )
    assert ctl("artifacts", "rm", "hf:a/old").stdout == "hf:a/old is removed: 1.4 GiB freed\n"
    assert [one.source for one in served.node.artifact_list] == ["hf:Qwen/Qwen3-0.6B"]


def test_an_artifact_that_is_named_in_two_ways_is_removed_once(ctl: Invoke, served: Served) -> None:
    done = ctl("artifacts", "rm", "hf:a/old", "0b1c2d3e4f50", "a/old")
    assert (done.exit_code, done.stdout, done.stderr) == (Exit.OK, "hf:a/old is removed: 1.4 GiB freed\n", "")


def test_one_mistyped_name_of_several_removes_nothing(ctl: Invoke, served: Served) -> None:
    done = ctl("artifacts", "rm", "hf:a/old", "hf:a/odl")
    assert (done.exit_code, done.stdout) == (Exit.NOT_FOUND, "")
    assert len(served.node.artifact_list) == 2


def test_a_dry_run_shows_what_a_collection_removes(ctl: Invoke, served: Served) -> None:
    would = ctl("artifacts", "gc", "--dry-run")
    assert len(served.node.artifact_list) == 2
    did = ctl("artifacts", "gc")
    assert would.stdout.replace("would be freed", "freed") == did.stdout
    assert [cell.strip() for cell in did.stdout.splitlines()[1].split("   ")] == [
        "hf:a/old", "0b1c2d3e4f50", "1.4 GiB", "the disk is 92% full; last used 3 d ago",
    ]  # fmt: skip
    assert [one.source for one in served.node.artifact_list] == ["hf:Qwen/Qwen3-0.6B"]
    nothing = ctl("artifacts", "gc", "--all")
    assert (nothing.stdout, nothing.stderr[:11]) == ("", "0 B freed; ")


def test_names_are_completed_with_what_the_cache_holds(served: Served, environment: dict[str, str]) -> None:
    served.node.artifact_list.append(replace(make_artifact("e"), source="file:/own", disk=0))
    asked = environment | {
        "AGENTD_SOCKET": str(served.control.path), "_AGENTCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "agentctl artifacts rm ", "COMP_CWORD": "3",
    }  # fmt: skip
    script = "from agent.ctl.main import main; import sys; sys.argv[0] = 'agentctl'; main()"
    done = subprocess.run([sys.executable, "-c", script], env=asked, capture_output=True, text=True, check=False)
    assert [line.partition(",")[2] for line in done.stdout.splitlines()] == ["hf:a/old", "hf:Qwen/Qwen3-0.6B"]


def test_a_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert (rate.per_second(), rate.left(100)) == (0.0, None)
    for second in range(21):
        rate.see(100.0 + second, min(second, 10) * MIB + second * MIB)
    assert rate.per_second() == pytest.approx(MIB, rel=0.15)
    assert rate.left(40 * MIB) == pytest.approx(10, rel=0.15)
    rate.see(122.0, 0)  # begun anew
    assert rate.left(40 * MIB) is None


def test_what_is_told_of_a_pull_has_its_size_rate_and_time() -> None:
    rate = Rate()
    rate.see(0.0, 0)
    rate.see(2.0, 50 * MIB)
    message = pb.PullArtifactResponse(progress=pb.Progress(step="fetching", done_bytes=50 * MIB, total_bytes=200 * MIB))
    assert shown.told(message, rate) == "fetching 25% of 200.0 MiB, 25.0 MiB/s, 6s left"
    assert shown.told(pb.PullArtifactResponse(), Rate()) == "asking the source"
