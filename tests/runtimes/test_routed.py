"""What of the runtimes as one needs no container engine; the rest is shown in tests/docker with real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.runtimes.base import Container, Identity, LaunchError, LaunchRequest
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.routed import FILE, Runtimes
from tests.runtimes.contract import nothing


async def test_an_engine_that_the_disk_did_not_take_is_noted_before_the_next_launch(tmp_path: Path) -> None:
    socket = str(tmp_path / "none.sock")
    request = LaunchRequest(
        Identity("node", "chat", 7, 1, "chat-1"), ("/bin/true",), {}, tmp_path / "chat-1", tmp_path / "logs/1.log",
        container=Container("sha256:1", "127.0.0.1", 8000, socket=socket),
    )  # fmt: skip
    runtimes = Runtimes("node", ProcessRuntime("node"), tmp_path)
    try:
        full = tmp_path / f"{FILE}.new"
        full.mkdir()
        with pytest.raises(LaunchError, match="cannot note the container engine"):
            await runtimes.launch(request, nothing)
        full.rmdir()
        with pytest.raises(LaunchError, match="there is no socket"):
            await runtimes.launch(request, nothing)
    finally:
        runtimes.close()
    assert Runtimes("node", ProcessRuntime("node"), tmp_path).last_used == socket
