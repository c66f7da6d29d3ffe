"""Finding executables and asking for their version."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from agent.engines import executables
from agent.engines.base import Located
from agent.engines.llama_cpp import LlamaCpp

VERSION = re.compile(r"version:\s*(.+)")


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_configured_binary_wins_and_its_version_is_asked(tmp_path: Path) -> None:
    binary = script(tmp_path / "server", "echo 'version: 123 (abc)' >&2")

    located = LlamaCpp().locate([str(binary), "--fast"])

    assert located is not None
    assert located.argv == (str(binary), "--fast")
    assert (located.version, located.origin) == ("123 (abc)", "config")


def test_a_configured_binary_that_is_not_there_is_not_replaced_by_another(tmp_path: Path) -> None:
    assert LlamaCpp().locate([str(tmp_path / "none")]) is None


def test_the_path_comes_before_the_embedded_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = script(tmp_path / "llama-server", "echo version: 7")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    located = LlamaCpp().locate(None)

    assert located is not None
    assert (located.argv, located.origin) == ((str(binary),), "path")


def test_without_a_binary_the_embedded_launcher_runs_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    located = LlamaCpp().locate(None)

    assert located is not None
    assert located.origin == "embedded"
    assert located.argv[-1].endswith("embedded/llama_server.py")


def test_the_version_is_asked_once_until_the_file_changes(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    binary = script(tmp_path / "server", f"echo x >> {calls}; echo version: 1")
    for _ in range(3):
        assert executables.version((str(binary),), VERSION) == "1"
    assert calls.read_text() == "x\n"

    script(binary, f"echo x >> {calls}; echo version: 2 # other")

    assert executables.version((str(binary),), VERSION) == "2"


def test_a_binary_that_hangs_or_fails_has_an_unknown_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executables, "DEADLINE", 0.2)
    hanging = script(tmp_path / "hanging", "sleep 60 & sleep 60")  # a child that holds the pipe open
    failing = script(tmp_path / "failing", "exit 3")

    assert executables.version((str(hanging),), VERSION) == "unknown"
    assert executables.version((str(failing),), VERSION) == "unknown"
    assert executables.version((str(tmp_path / "none"),), VERSION) == "unknown"


def test_devices_are_listed_once_and_never_hidden_by_the_agents_own_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executables, "DEVICE_FILES", ())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    calls = tmp_path / "calls"
    body = f'echo "$1" >> {calls}; echo "${{CUDA_VISIBLE_DEVICES-all}} of them"'
    binary = script(tmp_path / "server", body)

    answers = {executables.devices((str(binary),), "--list-devices", bool) for _ in range(3)}

    assert answers == {"all of them\n"}
    assert calls.read_text() == "--list-devices\n"


def test_a_node_with_device_files_is_asked_again_while_no_device_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver may have been sick when it was asked."""
    monkeypatch.setattr(executables, "DEVICE_FILES", ("null",))
    monkeypatch.setattr(executables, "RECHECK", 0.0)
    state = tmp_path / "state"
    binary = script(tmp_path / "server", f"cat {state} 2>/dev/null")
    assert executables.devices((str(binary),), "--list-devices", bool) == ""

    state.write_text("well")

    assert executables.devices((str(binary),), "--list-devices", bool) == "well"
    state.write_text("not asked any more")
    assert executables.devices((str(binary),), "--list-devices", bool) == "well"


def _lister(folder: Path, seconds: float, names: int = 20) -> Located:
    script = folder / "engine"
    options = "".join(f"  --option-{number} VALUE   what --it does.\n" for number in range(names))
    script.write_text(f"#!/bin/sh\necho asked >> {folder}/log\nsleep {seconds}\ncat <<'END'\n{options}END\n")
    script.chmod(0o755)
    return Located((str(script),), "1", "config", lists=("serve", "--help"))


def test_an_executable_is_asked_once_for_its_options(tmp_path: Path) -> None:
    located = _lister(tmp_path, 0)

    assert executables.options(located) is None
    assert executables.learn(located, 20) == executables.learn(located, 20) == executables.options(located)
    found = executables.options(located)
    assert found is not None
    assert {"--option-0", "--option-19", "--it"} <= found
    assert (tmp_path / "log").read_text() == "asked\n"
    assert executables.options(replace(located, version="2")) is None  # the engine behind it may be another


def test_those_that_ask_at_the_same_time_ask_once(tmp_path: Path) -> None:
    located, together = _lister(tmp_path, 0), Barrier(8)

    def learn(_: int) -> frozenset[str] | None:
        together.wait(20)
        return executables.learn(located, 20)

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(learn, range(8)))) == 1
    assert (tmp_path / "log").read_text() == "asked\n"


def test_an_answer_that_takes_long_is_not_waited_for_and_is_there_later(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    located = _lister(tmp_path, 0)
    script = tmp_path / "engine"
    script.write_text(script.read_text().replace("sleep 0", f"while [ ! -e {gate} ]; do sleep 0.05; done"))

    assert executables.learn(located, 0.01) is None
    assert executables.learn(located, 0.01) is None
    gate.touch()
    assert executables.learn(located, 20)
    assert (tmp_path / "log").read_text() == "asked\n"


def test_an_error_is_no_list_of_options(tmp_path: Path) -> None:
    assert executables.learn(_lister(tmp_path, 0, names=3), 20) is None
