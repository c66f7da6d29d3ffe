"""CTranslate2 below the real agent: a converted directory is served, and replaced when its engine dies."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import PHASE, Daemon, daemon, gone, wait_true

pytestmark = [pytest.mark.ctranslate2, pytest.mark.timeout(120)]


@pytest.fixture
def node(tmp_path: Path, model: Path, python: str) -> Iterator[Daemon]:
    for node in daemon(tmp_path, model, engines={"ctranslate2": {"binary": [python]}}):
        node.start()
        yield node


def test_a_converted_directory_is_served_and_its_engine_replaced(node: Daemon) -> None:
    node.apply(engine="ctranslate2", task="completion", limits={"max_num_seqs": 2, "max_model_len": 256, "threads": 2})
    deployment = node.wait(timeout=60)
    (old,) = [process for process in node.engines() if "--served-name" in process.cmdline() and process.name() != "sh"]

    body = json.dumps({"model": "m", "prompt": "hello", "max_tokens": 3}).encode()
    request = urllib.request.Request(deployment.endpoint + "/v1/completions", body)
    with urllib.request.urlopen(request, timeout=20) as reply:
        assert json.load(reply)["choices"][0]["finish_reason"] == "length"
    assert (deployment.granted.max_num_seqs, deployment.granted.max_model_len) == (2, 256)

    old.kill()
    wait_true(lambda: gone(old.pid))
    node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.instance.pid not in {0, old.pid}, timeout=60)
