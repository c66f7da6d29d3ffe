"""A real CTranslate2 for the tests here: `scripts/test-ctranslate2` names its Python in CTRANSLATE2_PYTHON."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.ct2_factory import make_ct2


@pytest.fixture(scope="session")
def python() -> str:
    """The Python of the environment that scripts/test-ctranslate2 made."""
    found = os.environ.get("CTRANSLATE2_PYTHON", "")
    if not found:
        pytest.skip("CTRANSLATE2_PYTHON does not name a Python with ctranslate2; run scripts/test-ctranslate2")
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ct2(tmp_path_factory.mktemp("ct2") / "tiny")
