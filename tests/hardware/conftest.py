from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own, and with a path short enough for sockets."""
    folder = Path(mkdtemp(prefix="hw-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
