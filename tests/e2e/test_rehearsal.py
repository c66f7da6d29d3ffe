"""What a first deployment would wait for is done before it comes: seen from outside, by what the agent imports, and by
how often it asks the engine about itself."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Daemon, daemon, wait_true

IMPORTED = re.compile(r"import time:.*\|\s+(agent\.[\w.]+)$", re.MULTILINE)
#: Every command line of the engine, a line each.
NOTED = '#!/bin/sh\necho "$1" >> {asked}\nexec {engine} "$@"\n'


@pytest.fixture
def host(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    yield from daemon(tmp_path, tiny_model)


def imported(host: Daemon) -> list[str]:
    return IMPORTED.findall(host.log.read_text())


def test_the_first_deployment_finds_everything_imported_and_every_engine_asked(host: Daemon, tmp_path: Path) -> None:
    asked, engine = tmp_path / "asked", tmp_path / "engine"
    own = engine.rename(tmp_path / "engine.own")
    engine.write_text(NOTED.format(asked=asked, engine=own))
    engine.chmod(0o755)
    host.start(environ={"PYTHONPROFILEIMPORTTIME": "1"})

    wait_true(lambda: asked.exists() and "--version" in asked.read_text(), what="the engine is asked")
    before = at_rest(host)
    questions = asked.read_text().splitlines()
    assert {"agent.planning.ranking", "agent.supervision.actor"} <= set(before)
    assert sorted(set(questions)) == sorted(questions), "asked twice"
    assert host.events() == [], "a rehearsal is no deployment"
    host.apply()
    host.wait()
    assert imported(host)[len(before) :] == [], "imported only for the deployment"
    assert set(asked.read_text().splitlines()[len(questions) :]) <= {"--help", "--model"}, "asked again"


def at_rest(host: Daemon) -> list[str]:
    """What was imported when nothing more is."""
    before: list[str] = []
    while before != (before := imported(host)):
        time.sleep(1)
    return before
