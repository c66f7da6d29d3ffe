"""A real LiteLLM for the tests here: `scripts/test-litellm` names its `litellm` in LITELLM_PROXY."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def proxy() -> str:
    """The console script of the environment that scripts/test-litellm made."""
    found = os.environ.get("LITELLM_PROXY", "")
    if not found:
        pytest.skip("LITELLM_PROXY does not name a litellm; run scripts/test-litellm")
    return found
