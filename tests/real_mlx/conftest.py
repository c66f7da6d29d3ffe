"""A real MLX LM for the tests here: `scripts/test-mlx` names its `mlx_lm.server` in MLX_LM_SERVER."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hf_factory import make_hf


@pytest.fixture(scope="session")
def server() -> str:
    """The console script of the environment that scripts/test-mlx made."""
    found = os.environ.get("MLX_LM_SERVER", "")
    if not found:
        pytest.skip("MLX_LM_SERVER does not name an mlx_lm.server; run scripts/test-mlx")
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf(tmp_path_factory.mktemp("hf") / "tiny")
