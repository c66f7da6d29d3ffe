"""`status` and the other commands that look."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from agent import __version__
from agent.ctl.exits import Exit
from agent.supervision.service import Planned
from tests.ctl.conftest import Invoke, Served
from tests.ctl.deployments import BACKOFF, FAILED, INSTANCE, LOADING, NODE, PLAN, READY

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def busy(served: Served) -> Served:
    served.put(READY, FAILED, LOADING, BACKOFF)
    return served


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("form", ["table", "wide", "json", "yaml"])
def test_status_is_what_it_was(ctl: Invoke, form: str) -> None:
    done = ctl("status", "-o", form)
    expected = (GOLDEN / f"status.{form}").read_text().replace("@VERSION@", __version__)
    assert (done.exit_code, done.stderr, done.stdout) == (0, "", expected)


@pytest.mark.usefixtures("busy")
def test_json_and_yaml_of_status_are_the_same(ctl: Invoke) -> None:
    assert json.loads(ctl("status", "-o", "json").stdout) == yaml.safe_load(ctl("status", "-o", "yaml").stdout)


@pytest.mark.usefixtures("served")
def test_status_without_deployments_says_how_to_begin(ctl: Invoke) -> None:
    assert ctl("status").stdout.endswith("\nno deployments yet: agentctl serve MODEL starts one\n")


@pytest.mark.parametrize(("version", "word"), [("99.0.0", "newer"), ("0.0.1", "older"), ("dev", "older")])
def test_status_warns_of_a_daemon_of_another_version(ctl: Invoke, served: Served, version: str, word: str) -> None:
    served.node.node = lambda: replace(NODE, version=version)  # type: ignore[method-assign]
    done = ctl("status")
    assert done.exit_code == Exit.OK
    assert done.stderr.startswith(f"warning: the daemon ({version}) is {word} than this agentctl ({__version__})")


@pytest.mark.usefixtures("busy")
def test_get_lists_deployments_or_shows_one_whole(ctl: Invoke) -> None:
    assert [line.split()[0] for line in ctl("get").stdout.splitlines()] == ["NAME", "chat", "embed", "flaky", "large"]
    assert len(ctl("get", "chat").stdout.splitlines()) == 2
    assert json.loads(ctl("get", "deployments", "chat", "-o", "json").stdout)["id"] == "chat"


def test_get_shows_instances_events_artifacts_and_the_node(ctl: Invoke, served: Served) -> None:
    assert READY.previous
    served.put(READY)
    served.node._instances["chat"] = [INSTANCE, READY.previous]
    served.do(lambda: served.node.happen("Ready", "chat"))
    assert "exit" not in ctl("get", "instances", "chat").stdout
    assert "signal 11 (crashed)" in ctl("get", "instances").stdout
    assert "Ready happened" in ctl("get", "events", "chat").stdout
    assert "sha256:ab" in ctl("get", "artifacts", "-o", "wide").stdout
    assert json.loads(ctl("get", "node", "-o", "json").stdout)["memory_total_bytes"] == 32 << 30
    assert "! DiskSpace is bad for 60s: LowDisk: 2.0 GiB free" in ctl("get", "node").stdout


@pytest.mark.usefixtures("served")
def test_an_empty_list_is_said_on_stderr_so_that_a_pipe_stays_empty(ctl: Invoke) -> None:
    done = ctl("get")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "no deployments\n")
    assert json.loads(ctl("get", "-o", "json").stdout) == {"deployments": []}


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("command", ["get", "describe", "logs", "restart", "stop", "start", "delete", "wait", "events"])
def test_a_mistyped_name_gets_the_nearest_one(ctl: Invoke, command: str) -> None:
    done = ctl(command, "caht")
    assert (done.exit_code, done.stdout) == (Exit.NOT_FOUND, "")
    assert done.stderr.endswith("hint: did you mean chat?\n")


@pytest.mark.usefixtures("busy")
def test_a_name_like_no_other_gets_the_names_that_there_are(ctl: Invoke) -> None:
    assert "hint: there are: chat, embed, flaky, large" in ctl("get", "xyz").stderr


def test_describe_tells_everything(ctl: Invoke, busy: Served) -> None:
    busy.do(lambda: busy.node.happen("Ready", "chat"))
    text = ctl("describe", "chat").stdout
    for section in ("SPEC", "PLAN", "INSTANCE", "PROBES", "PREVIOUS INSTANCE", "EVENTS"):
        assert f"\n{section}\n" in text
    for fact in ("READY for 3m12s", "the node's default", "needs a GPU", "Segmentation fault",
                 "503 Service Unavailable", "Ready happened", "cpus: not enforced, no cpu controller"):  # fmt: skip
        assert fact in text


@pytest.mark.usefixtures("busy")
def test_describe_shows_the_diagnosis_with_its_evidence_and_hint(ctl: Invoke) -> None:
    text = ctl("describe", "large").stdout
    assert "code       does_not_fit (a retry cannot help)\n" in text
    assert "evidence   weights 22.0 GiB\n             KV cache 2.0 GiB\n" in text
    assert "generation   1 (running or last tried: none)" in text


def test_plan_with_explain_adds_the_terms_and_the_reasons(ctl: Invoke, served: Served) -> None:
    async def plan(spec: object, hardware: object) -> Planned:
        return Planned(PLAN, None, ("llama-server", "-m", "/models/a b.gguf"))

    served.node.plan = plan  # type: ignore[method-assign, assignment]
    short, long = ctl("plan", "/m.gguf").stdout, ctl("plan", "/m.gguf", "--explain").stdout
    assert "command      llama-server -m '/models/a b.gguf'" in short
    assert long.startswith(short)
    more = long.removeprefix(short)
    assert "total             4.0 GiB           -   ████████████████████████ 100%" in more
    assert "rejected:\n  no-device: needs a GPU, and this node has none\n      vllm\n" in more
    assert json.loads(ctl("plan", "/m.gguf", "-o", "json").stdout)["plan"]["engine"] == "llama.cpp"


@pytest.mark.usefixtures("served")
def test_a_plan_that_does_not_fit_fails_with_the_numbers(ctl: Invoke) -> None:
    done = ctl("plan", "/large.gguf")
    assert (done.exit_code, done.stdout) == (Exit.PRECONDITION, "")
    assert done.stderr == "error: large: does_not_fit: too large\nhint: a smaller one\n"


def test_logs_are_printed_as_they_were_written(ctl: Invoke, served: Served) -> None:
    served.put(READY)
    served.node.log_lines = [b"one\n", b"\xff\x00two\r\n"]
    assert ctl("logs", "chat").stdout_bytes == b"one\n\xff\x00two\r\n"
    assert ctl("logs", "chat", "--tail", "1").stdout_bytes == b"\xff\x00two\r\n"
    assert ctl("logs", "chat", "--tail", "0").stdout_bytes == b""


def test_events_are_listed_oldest_first(ctl: Invoke, served: Served) -> None:
    for reason in ("One", "Two", "Three"):
        served.do(lambda reason=reason: served.node.happen(reason))  # type: ignore[misc]
    listed = json.loads(ctl("events", "--limit", "2", "-o", "json").stdout)["events"]
    assert [event["reason"] for event in listed] == ["Two", "Three"]


def test_events_of_a_deleted_deployment_stay(ctl: Invoke, served: Served) -> None:
    served.do(lambda: served.node.happen("Deleted", "gone"))
    assert "Deleted happened" in ctl("events", "gone").stdout


def test_version_tells_both_and_warns_when_they_differ(ctl: Invoke, served: Served) -> None:
    assert ctl("version").stdout == f"agentctl   {__version__}\nagentd     {__version__}\n"
    served.node.node = lambda: replace(NODE, version="99.1.0")  # type: ignore[method-assign]
    assert json.loads(ctl("version", "-o", "json").stdout) == {"agentctl": __version__, "agentd": "99.1.0"}
    assert "is newer than this agentctl" in ctl("version").stderr


def test_version_needs_no_daemon(invoke: Invoke) -> None:
    done = invoke("--socket", "/nonexistent", "version")
    assert (done.exit_code, done.stdout) == (
        0,
        f"agentctl   {__version__}\nagentd     not known: no agentd is running\n",
    )
