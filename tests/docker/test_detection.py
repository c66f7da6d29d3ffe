"""What detection finds of real container engines."""

from __future__ import annotations

import pytest

from agent.hardware.containers import containers
from tests.docker.parts import Engine

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(120)]


def test_an_engine_is_found_with_its_name_and_version(runner: Engine) -> None:
    with runner.client() as api:
        version = api.version()["Version"]

    found = containers(environ={"PATH": "", "DOCKER_HOST": f"unix://{runner.socket}"})

    ours = next(one for one in found if one.socket == str(runner.socket))
    assert (ours.name, ours.version, ours.problem) == (runner.name, version, "")
