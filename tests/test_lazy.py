"""Modules that are imported when something of them is first asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(program: str) -> str:
    """What it prints, in a process where nothing is imported yet."""
    return subprocess.run(
        [sys.executable, "-c", f"from agent.lazy import defer\nimport sys\n{program}"],
        check=True, text=True, capture_output=True,
    ).stdout  # fmt: skip


def test_a_deferred_module_is_not_imported_by_those_that_import_it() -> None:
    assert run("defer('wave')\nimport wave\nimport wave as again\nprint('open' in vars(wave))") == "False\n"


@pytest.mark.parametrize(
    "use",
    [
        "import asyncio\nasyncio.run",
        "from asyncio import run",
        "import asyncio.subprocess\nasyncio.subprocess.PIPE\nasyncio.run",
        "from asyncio import subprocess",
        "import asyncio as early, asyncio.events\nearly.run\nasyncio.get_running_loop",
    ],
)
def test_its_first_use_imports_it_however_it_is_used(use: str) -> None:
    program = (
        f"defer('asyncio')\n{use}\nimport asyncio\nprint(asyncio.run.__module__, type(sys.modules['asyncio']).__name__)"
    )
    assert run(program) == "asyncio.runners module\n"


def test_a_module_that_is_there_stays() -> None:
    assert run("import json\ndefer('json')\nprint(sys.modules['json'] is json)") == "True\n"


def test_a_module_that_does_not_exist_is_missed_when_it_is_used() -> None:
    program = (
        "defer('no_such')\nimport no_such\ntry:\n    no_such.thing\nexcept ImportError as error:\n    print(error)"
    )
    assert run(program) == "No module named 'no_such'\n"


def test_what_is_known_of_it_is_no_use() -> None:
    program = "defer('platform', system=lambda: 'known')\nimport platform\nprint(platform.system())"
    assert run(f"{program}\nprint('re' in vars(platform))") == "known\nFalse\n"
    assert run(f"{program}\nplatform.uname\nimport platform\nprint(platform.system())").endswith("Linux\n")
