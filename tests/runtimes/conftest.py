"""Real processes, real cgroups: what every test of the runtimes starts is ended and removed again."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.runtimes.contract")

from agent.runtimes.cgroups import Cgroups, Location, remove  # noqa: E402 - after the rewrite is registered


@pytest.fixture(scope="session")
def detected() -> Iterator[Cgroups]:
    """The cgroups that this machine lets us make, if any."""
    found = Cgroups.detect("auto", f"llm-node-agent-test-{os.getpid()}")
    yield found
    parents = {location.parent for location in (*found.locations.values(), found.tracking) if location is not None}
    remove(tuple(map(str, parents)))


@pytest.fixture(scope="session")
def limiting(detected: Cgroups) -> Cgroups:
    if detected.problems:
        pytest.skip(f"no writable cgroup for every controller here: {dict(detected.problems)}")
    return detected


@pytest.fixture(scope="session")
def unified() -> Iterator[Cgroups]:
    """A cgroup v2 for tracking only: it needs no controller, so that it is there on hybrid machines as well."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            parent = Path(line.split()[4], f"llm-node-agent-test-v2-{os.getpid()}")
            break
    else:
        pytest.skip("no cgroup2 file system is mounted")
    try:
        parent.mkdir()
    except OSError as error:
        pytest.skip(f"cgroup v2 is not writable: {error}")
    if not (parent / "cgroup.kill").exists():
        parent.rmdir()
        pytest.skip("this kernel has no cgroup.kill")
    yield Cgroups(problems=dict.fromkeys(("memory", "cpu", "pids"), "only for tracking"), tracking=Location(2, parent))
    remove((str(parent),))
