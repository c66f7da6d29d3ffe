"""What all tests share: a tiny real model, and a real daemon on it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gguf_factory import make_gguf
from tests.harness import Daemon, daemon

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
