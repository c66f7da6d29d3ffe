"""The program as a shell sees it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from agent.ctl.exits import Exit
from agent.status import Phase
from tests.ctl.conftest import Run, Served
from tests.ctl.deployments import LOADING, READY
from tests.ctl.machines import MACHINE


@pytest.fixture
def socket(served: Served) -> list[str]:
    served.put(READY)
    return ["--socket", str(served.control.path)]


def start(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "agent.ctl", *words]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_status_works_with_the_variable_alone(agentctl: Run, served: Served) -> None:
    served.put(READY)
    done = agentctl("status", environ={"AGENTD_SOCKET": str(served.readonly.path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert "chat   READY" in done.stdout


def test_output_into_a_pipe_has_no_colours(agentctl: Run, socket: list[str]) -> None:
    done = agentctl("status", *socket)
    assert "\x1b" not in done.stdout


def on_a_terminal(environment: dict[str, str], *words: str) -> tuple[int, str]:
    """Exit code and output of a program whose stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "agent.ctl", *words]
    with subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # EIO: the other side was closed
            while part := os.read(ours, 4096):
                text += part
    os.close(ours)
    return process.returncode, text.decode()


def test_a_terminal_gets_colours_unless_they_are_unwanted(environment: dict[str, str], socket: list[str]) -> None:
    assert "\x1b[32mREADY\x1b[0m" in on_a_terminal(environment, "status", *socket)[1]
    assert "\x1b" not in on_a_terminal(environment | {"NO_COLOR": "1"}, "status", *socket)[1]
    assert "\x1b" in on_a_terminal(environment, "status", "--nonsense")[1]
    assert "\x1b" not in on_a_terminal(environment | {"NO_COLOR": "1"}, "status", "--nonsense")[1]


def test_a_wait_on_a_terminal_moves_one_line(environment: dict[str, str], served: Served) -> None:
    served.put(LOADING)
    served.go_through(LOADING, replace(LOADING, phase=Phase.READY))
    words = ["wait", "embed", "--socket", str(served.control.path)]
    code, text = on_a_terminal(environment | {"TERM": "xterm", "COLUMNS": "120"}, *words)
    assert code == Exit.OK
    assert text.rstrip().endswith("deployment embed is ready")
    assert "embed READY" in text.replace("\x1b[0m", "")


def test_an_error_is_json_on_stderr_where_json_was_asked_for(agentctl: Run, socket: list[str]) -> None:
    done = agentctl("get", "caht", "-o", "json", *socket)
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, done.stdout) == (Exit.NOT_FOUND, "")
    assert (error["code"], error["hint"]) == ("not_found", "did you mean chat?")


def test_a_traceback_is_shown_only_on_demand(agentctl: Run) -> None:
    assert "Traceback" not in agentctl("status", "--socket", "/nonexistent").stderr
    done = agentctl("status", "--socket", "/nonexistent", environ={"AGENTCTL_DEBUG": "1"})
    assert "Traceback" in done.stderr


def test_a_reader_that_went_away_is_no_news(environment: dict[str, str], socket: list[str], served: Served) -> None:
    served.node.log_lines = [b"x" * 1023 + b"\n"] * 1000  # more than a pipe holds
    command = f"{sys.executable} -m agent.ctl logs chat {' '.join(socket)} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=environment, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr, len(done.stdout)) == (Exit.BROKEN_PIPE, "", 1024)


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["wait", "chat", "--for", "stopped"], "chat READY: the engine answers\n"),
        (["status", "--watch"], "node "),
        (["node", "-w"], "node "),
        (["devices", "-w"], "no devices"),
        (["logs", "chat", "-f"], "one\n"),
        (["events", "-f"], "2023-11-14T22:13:20.250Z INFO chat Started: Started happened\n"),
    ],
)
def test_ctrl_c_ends_silently_with_130(
    environment: dict[str, str], socket: list[str], served: Served, words: list[str], first: str
) -> None:
    served.do(lambda: served.node.happen("Started", "chat"))
    with start(environment, *words, *socket) as process:
        assert process.stdout
        assert process.stderr
        source = process.stderr if words[0] == "wait" else process.stdout
        assert source.readline().startswith(first)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == Exit.INTERRUPTED
        assert process.stderr.read().strip() == ""


def test_ctrl_c_in_a_serve_says_that_the_deployment_goes_on(environment: dict[str, str], served: Served) -> None:
    served.node.applied_phase = Phase.LOADING
    words = ["serve", "/m/chat.gguf", "--socket", str(served.control.path)]
    with start(environment, *words) as process:
        assert process.stderr
        assert process.stderr.readline() == "deployment chat created\n"
        process.stderr.readline()  # by now it waits
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == Exit.INTERRUPTED
        ways = "`agentctl wait chat` waits again, `agentctl delete chat` ends it"
        assert process.stderr.read().strip() == f"interrupted; chat goes on: {ways}"


def test_devices_that_are_watched_are_printed_again_when_they_change(
    environment: dict[str, str], socket: list[str], served: Served
) -> None:
    served.be(MACHINE)
    with start(environment, "devices", "0", "-w", "-o", "json", *socket) as process:
        assert process.stdout
        seen = iter(process.stdout)
        assert next(line for line in seen if '"condition"' in line).split()[1] == '"DEVICE_CONDITION_HEALTHY",'
        served.wait(served.node.quarantine(MACHINE.devices[0].id, "a fan is loud"))
        assert next(line for line in seen if '"condition"' in line).split()[1] == '"DEVICE_CONDITION_QUARANTINED",'
        process.send_signal(signal.SIGINT)


def test_events_are_followed_as_one_json_object_a_line(
    environment: dict[str, str], socket: list[str], served: Served
) -> None:
    served.do(lambda: served.node.happen("First"))
    with start(environment, "events", "-f", "-o", "json", *socket) as process:
        assert process.stdout
        seen = [json.loads(process.stdout.readline())["reason"]]
        served.do(lambda: served.node.happen("Second"))
        seen.append(json.loads(process.stdout.readline())["reason"])
        process.send_signal(signal.SIGINT)
    assert seen == ["First", "Second"]


@pytest.mark.parametrize(
    "command", [["status"], ["serve", "/m/m.gguf", "--name", "m", "--no-wait", "--set", "limits.pids=2"]]
)
def test_what_is_slow_to_load_and_not_used_is_not_loaded(
    environment: dict[str, str], served: Served, command: list[str]
) -> None:
    """Together it would double the time until `agentctl status` prints."""
    slow = {"rich", "yaml", "pydantic", "asyncio.base_events", "grpc.aio._channel", "google.protobuf.text_format"}
    slow |= {"ast", "json", "google.rpc.status_pb2", "locale", "_socket"}
    program = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print(sorted({slow!r} & set(sys.modules)), file=sys.stderr))\n"
        "from agent.ctl.main import cli\n"
        f"sys.argv = ['agentctl', *{command!r}, '--socket', {str(served.control.path)!r}]\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]"), done.stderr
