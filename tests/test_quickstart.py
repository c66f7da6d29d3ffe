"""The quickstart leaves nothing behind, whenever it is interrupted; `.ci/run` runs it to its end in a clean clone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "_quickstart.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(sys.executable).with_name("agentd").exists(), reason="agentd is not installed: run scripts/setup"
    ),
]


@pytest.fixture
def place() -> Iterator[Path]:
    """Where all of a quickstart's files go. Not tmp_path: sockets' paths are limited to 107 characters."""
    with tempfile.TemporaryDirectory(prefix="q-") as name:
        yield Path(name)


def processes_that_name(place: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(place) in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                found.append(f"{entry.name} {(entry / 'cmdline').read_text()}")
        except OSError:
            continue  # it has ended
    return found


def cgroups_of(uids: list[str]) -> list[str]:
    names = {f"llm-node-agent-{uid[:8]}" for uid in uids}
    return [parent for parent, folders, _ in os.walk("/sys/fs/cgroup") if names & set(folders)]


@pytest.mark.parametrize("step", ["starting agentd", "agentctl apply", "agentctl wait", "asking it"])
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM], ids=lambda sig: sig.name)
def test_an_interrupted_quickstart_stops_everything_it_started(place, step, sig):
    """Ctrl-C reaches the whole process group, as a terminal sends it; SIGTERM only the script."""
    script = subprocess.Popen(
        [sys.executable, SCRIPT, "--once"],
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert script.stdout is not None
    with script.stdout as output:
        told = next(line for line in output if step in line)
        uids = [file.read_text() for file in place.glob("quickstart-*/STATE_HOME/llm-node-agent/node.uid")]
        (os.killpg if sig is signal.SIGINT else os.kill)(script.pid, sig)
        told += output.read()

    assert script.wait(timeout=30) == 128 + sig, told
    assert "left behind" not in told
    assert processes_that_name(place) == []
    assert (cgroups_of(uids), len(uids)) == ([], 0 if step == "starting agentd" else 1)
    assert list(place.iterdir()) == []
