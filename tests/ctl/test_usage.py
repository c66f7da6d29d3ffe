"""Help, usage errors, completion, and the reference page."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import click
import pytest

from agent import __version__
from agent.ctl import reference
from agent.ctl.exits import Exit
from agent.ctl.main import COMMANDS, cli
from tests.ctl.conftest import Invoke, Run, Served
from tests.ctl.deployments import LOADING, READY


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        yield (*path, name)
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = list(commands(cli))


def test_there_are_the_commands_that_were_promised() -> None:
    assert {path[0] for path in ALL} == set(COMMANDS)
    assert ("config", "check") in ALL


@pytest.mark.parametrize("path", [(), *ALL], ids=" ".join)
def test_every_command_has_a_help_with_an_example(invoke: Invoke, path: tuple[str, ...]) -> None:
    done = invoke(*path, "--help")
    assert done.exit_code == Exit.OK
    example = "  " + " ".join(("agentctl", *path))
    assert any(line.startswith(("  Example:", "  Examples:")) for line in done.stdout.splitlines())
    assert example in done.stdout


@pytest.mark.parametrize(
    "words",
    ["--nonsense", "nonsense", "status extra", "get a b c", "get node x", "serve", "plan", "plan m -f f", "apply",
     "delete", "wait chat --for sunshine", "wait chat --timeout soon", "wait chat --timeout 0", "logs chat --tail -1",
     "logs chat --previous --instance i", "events --limit 0", "completion tcsh", "config schema x", "status -o xml",
     "plan -f f --name n", "serve m --set x"],
)  # fmt: skip
def test_wrong_usage_exits_2_with_a_hint(invoke: Invoke, words: str) -> None:
    done = invoke("--socket", "/nonexistent", *words.split())
    assert (done.exit_code, done.stdout) == (Exit.USAGE, "")
    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr


def test_a_mistyped_command_gets_the_nearest_one(invoke: Invoke) -> None:
    assert "Did you mean status?" in invoke("statsu").stderr
    assert "Did you mean doctor?" in invoke("doc").stderr


@pytest.mark.parametrize("word", ["bogus", "launch", "list", "bla", "d", ""])
def test_a_word_that_is_like_no_command_gets_none(invoke: Invoke, word: str) -> None:
    assert "mean" not in invoke(word).stderr


def test_a_model_without_a_name_is_refused_in_one_line(agentctl: Run, served: Served) -> None:
    done = agentctl("serve", "", environ={"AGENTD_SOCKET": str(served.control.path)})
    assert (done.returncode, done.stderr.count("one line of 1 to 300 characters")) == (Exit.USAGE, 1)
    assert done.stderr.startswith("error: MODEL must be a model's name")


def test_the_version_is_an_option_too(agentctl: Run) -> None:
    assert agentctl("--version").stdout == f"agentctl {__version__}\n"


def test_a_usage_error_is_json_where_json_was_asked_for(invoke: Invoke) -> None:
    assert invoke("status", "-o", "json", "--nonsense").stderr.startswith('{"error": {"code": "usage", "exit": 2')


def test_no_command_shows_the_help(invoke: Invoke) -> None:
    done = invoke()
    assert (done.exit_code, done.stderr.splitlines()[0]) == (Exit.USAGE, "Usage: agentctl [OPTIONS] COMMAND [ARGS]...")


@pytest.mark.parametrize("seconds", ["0.5", "90s", "5m", "1h", "250ms"])
def test_durations_have_units(invoke: Invoke, seconds: str) -> None:
    assert invoke("--socket", "/nonexistent", "wait", "chat", "--timeout", seconds).exit_code == Exit.UNREACHABLE


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(invoke: Invoke, shell: str) -> None:
    assert "_AGENTCTL_COMPLETE" in invoke("completion", shell).stdout


def test_the_completion_script_is_valid_bash(invoke: Invoke) -> None:
    script = invoke("completion", "bash").stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("agentctl desc", ["describe"]),
        ("agentctl stop c", ["chat"]),
        ("agentctl get ", None),
        ("agentctl get chat ", []),
        ("agentctl plan qw", ["qwen3-8b", "qwen3:8b"]),
        ("agentctl plan ./", ["./"]),
        ("agentctl plan qwen3 :", ["8b"]),  # as bash takes it apart
        ("agentctl plan qwen3 : 8", ["8b"]),
        ("agentctl plan qwen3:8", ["qwen3:8b"]),  # with a COMP_WORDBREAKS that has no colon
        ("agentctl wait chat --for = re", ["ready"]),
        ("agentctl apply -f conf", ["conf"]),
        ("agentctl plan -f conf", ["conf"]),
        ("agentctl config check conf", ["conf"]),
        ("agentctl ledger import conf", ["conf"]),
        ("agentctl plan m --hardware b20", ["b200"]),
        ("agentctl plan m --hardware ./b", ["./b"]),
        ("agentctl serve m --engine vl", ["vllm"]),
        ("agentctl serve m --runtime doc", ["docker"]),
    ],
)
def test_commands_kinds_names_and_models_are_completed(
    agentctl: Run, served: Served, words: str, completed: list[str] | None
) -> None:
    served.put(READY, LOADING)
    environ = {
        "_AGENTCTL_COMPLETE": "bash_complete",
        "AGENTD_SOCKET": str(served.control.path),
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = agentctl(environ=environ)
    found = [line.partition(",")[2] for line in done.stdout.splitlines()]
    assert done.stderr == ""
    if completed is None:
        assert {"deployments", "node", "chat", "embed"} <= set(found)
    elif completed:
        assert found == completed


def test_completion_without_a_daemon_is_silent(agentctl: Run) -> None:
    environ = {"_AGENTCTL_COMPLETE": "bash_complete", "COMP_WORDS": "agentctl stop ", "COMP_CWORD": "2"}
    done = agentctl(environ=environ | {"AGENTD_SOCKET": "/nonexistent"})
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_the_reference_page_is_what_the_commands_say() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run python -m agent.ctl.reference"
