"""What somebody sees who serves a model for the first time, with the README alone: how it ends, and what to do next."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from huggingface_hub import snapshot_download

from agent.ctl.exits import Exit
from tests.gguf_factory import make_gguf
from tests.harness import Daemon, complete, daemon
from tests.hf_factory import make_hf
from tests.hub.server import Hub

ROOT = Path(__file__).parents[2]
TOO_MUCH = 2**49


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    level = {"tiny-Q8_0.gguf": make_gguf(tmp_path / "m.gguf", hidden=256, quantization="Q8_0").read_bytes()}
    config = (make_hf(tmp_path / "plain") / "config.json").read_bytes()
    with Hub() as running:
        running.repo("org/gated-GGUF", level, gated="manual")
        running.repo("org/pickled", {"config.json": config, "pytorch_model.bin": b"pickle"})
        running.repo("org/tiny-GGUF", level)
        running.repo("org/large-GGUF", level)
        yield running


@pytest.fixture
def node(tmp_path: Path, hub: Hub) -> Iterator[Daemon]:
    del hub
    (tmp_path / "node").mkdir()
    yield from daemon(tmp_path / "node", tmp_path / "m.gguf")


def serve(node: Daemon, model: str, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "AGENTD_SOCKET": str(node.control), "PYTHONPATH": str(ROOT), "HOME": "/"}
    command = [sys.executable, "-m", "agent.ctl", "serve", model, "--timeout", "50s", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_a_model_comes_through_a_mirror_and_what_cannot_be_had_says_what_to_do(node: Daemon, hub: Hub) -> None:
    node.start(environ={"HF_ENDPOINT": hub.endpoint})
    with ThreadPoolExecutor() as pool:
        names = ("org/gated-GGUF", "org/nothing", "org/pickled", "nothing", "org/tiny-GGUF")
        gated, absent, pickled, unknown, served = pool.map(lambda name: serve(node, name), names)

    assert gated.returncode == Exit.DEPLOYMENT_FAILED
    assert "model_gated: tiny-Q8_0.gguf of hf:org/gated-GGUF: its publisher gives it only to" in gated.stderr
    assert "hint: ask for access on the model's page, then name that account's token: fetch.token_file" in gated.stderr
    assert "then `agentctl restart gated`" in gated.stderr

    assert absent.returncode == Exit.DEPLOYMENT_FAILED
    assert "model_missing: hf:org/nothing does not exist, or may not be seen" in absent.stderr
    assert "hint: is the name right? a private repository needs a token" in absent.stderr

    assert pickled.returncode == Exit.DEPLOYMENT_FAILED
    assert "policy_denied: hf:org/pickled: its weights are pickle files only" in pickled.stderr
    assert "hint: look for a form of it in safetensors or GGUF; policy.pickle: true allows" in pickled.stderr

    assert unknown.returncode == Exit.NOT_FOUND
    assert "hint: `agentctl fit --all` lists what the catalog has" in unknown.stderr

    assert (served.returncode, served.stdout.partition(" is ready at ")[0]) == (Exit.OK, "tiny"), served.stderr
    assert complete(node.get("tiny").endpoint)

    hub.repos["org/gated-GGUF"].gated = ""  # access was granted: the same command is enough
    again = serve(node, "org/gated-GGUF")
    assert (again.returncode, "failed before: it is tried again" in again.stderr) == (Exit.OK, True), again.stderr


def test_a_mended_spec_is_not_told_the_failure_of_the_one_before(node: Daemon) -> None:
    node.start()
    missing = serve(node, "/nothing.gguf", "--name", "m")
    mended = serve(node, str(node.model), "--name", "m", "--set", "limits.max_model_len=256")
    assert (missing.returncode, mended.returncode) == (Exit.DEPLOYMENT_FAILED, Exit.OK), mended.stderr
    assert "deployment m replaced" in mended.stderr
    assert complete(node.get().endpoint)


def test_what_does_not_fit_the_disk_is_refused_with_the_numbers(node: Daemon, hub: Hub) -> None:
    config = yaml.safe_load(node.config.read_text())
    node.config.write_text(yaml.safe_dump(config | {"fetch": {"disk_reserve_bytes": TOO_MUCH}}))
    node.start(environ={"HF_ENDPOINT": hub.endpoint})

    large = serve(node, "org/large-GGUF", "--set", "restart.policy=never")

    assert large.returncode == Exit.DEPLOYMENT_FAILED
    assert "disk_full: hf:org/large-GGUF@" in large.stderr
    assert f"GiB are free, {TOO_MUCH >> 30}.00 GiB must stay free" in large.stderr
    lacking = re.search(r"hint: free (\d+)\.\d\d GiB on that disk, or move directories.cache to a larger", large.stderr)
    assert lacking is not None, large.stderr
    assert 0 < int(lacking[1]) < TOO_MUCH >> 30  # all that must stay free, less what is free


def test_offline_what_the_hubs_own_tool_brought_is_served_and_the_rest_says_how_to_bring_it(
    node: Daemon, hub: Hub
) -> None:
    snapshot_download("org/tiny-GGUF", cache_dir=node.root / "cache/hub", endpoint=hub.endpoint)
    asked = len(hub.requests)
    node.start(environ={"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.endpoint})

    served, absent = serve(node, "org/tiny-GGUF"), serve(node, "org/nothing")

    assert (served.returncode, complete(node.get("tiny").endpoint) is None) == (Exit.OK, False), served.stderr
    assert absent.returncode == Exit.DEPLOYMENT_FAILED
    assert "the hub may not be asked: offline" in absent.stderr
    assert "copy it from the cache of a machine that has it, or name its files as file:/..." in absent.stderr
    assert len(hub.requests) == asked
