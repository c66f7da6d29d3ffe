"""What all tests share: a tiny real model, and a real daemon on it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.gguf_factory import make_gguf
from tests.harness import Daemon, daemon

# How long an example takes is the machine's business. In CI (which sets this) all runs try the same examples, and tell
# of the commit, not of its luck; elsewhere each run tries others.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("untimed")

# A shell starts what it puts in the background with SIGINT ignored; what tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of 0.4 MB: a real engine loads it in milliseconds."""
    return make_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def node(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    """A node that is not started yet: `node.start()`."""
    yield from daemon(tmp_path, tiny_model)
