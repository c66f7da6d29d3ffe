"""A real vLLM for the tests here: `scripts/test-vllm` names its executable in REAL_VLLM."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hf_factory import make_hf


@pytest.fixture(scope="session")
def vllm() -> str:
    """The console script of the environment that scripts/test-vllm made."""
    found = os.environ.get("REAL_VLLM", "")
    if not found:
        pytest.skip("REAL_VLLM does not name a vllm; run scripts/test-vllm")
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 64 elements: the kernels for CPUs have no smaller ones."""
    return make_hf(tmp_path_factory.mktemp("hf") / "tiny", hidden=256)
