"""The hub of the tests speaks the real protocol: the real client works with it, and meets its faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub.repos import File
from tests.hub.server import Fault, Hub

WEIGHTS = os.urandom(2 * 1024 * 1024)
FILES = {"config.json": b'{"model_type": "llama"}', "sub/notes.txt": b"x", "model.safetensors": WEIGHTS}
BEFORE = """
import json, sys
import huggingface_hub as hub
from huggingface_hub.errors import HfHubHTTPError
api, folder = hub.HfApi(), sys.argv[1]
def tried(call, *args, **rest):
    try:
        call(*args, **rest)
    except HfHubHTTPError as error:
        return type(error).__name__
"""


def client(hub: Hub, folder: Path, script: str, token: str = "") -> Any:
    """What the script's last line, an expression, gives."""
    *body, last = script.strip().splitlines()
    code = "\n".join([BEFORE, *body, f"print(json.dumps({last}))"])
    variables = {
        "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder), "PATH": os.defpath, "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", **({"HF_TOKEN": token} if token else {}),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_real_client_lists_a_repository_and_fetches_it_through_the_cdn(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repo("org/tiny", FILES, card={"base_model": "org/base"})
    first = repo.refs["main"]
    repo.commit({"config.json": b"{}"})

    info, heads, names, meta, path = client(
        hub,
        tmp_path,
        f"""
info = api.model_info("org/tiny", revision="{first}", files_metadata=True)
heads = [branch.target_commit for branch in api.list_repo_refs("org/tiny").branches]
names = [entry.path for entry in api.list_repo_tree("org/tiny", recursive=True)]
meta = hub.get_hf_file_metadata(hub.hf_hub_url("org/tiny", "model.safetensors", revision="{first}"))
path = hub.snapshot_download("org/tiny", revision="{first}")
[[info.sha, info.gated, [[f.rfilename, f.size, bool(f.lfs)] for f in info.siblings]], heads, names, vars(meta), path]
""".replace("vars(meta)", "[meta.commit_hash, meta.etag, meta.size]"),
    )

    assert info == [first, False, [[name, len(FILES[name]), name == "model.safetensors"] for name in sorted(FILES)]]
    assert heads == [repo.refs["main"]] != [first]
    assert names == ["config.json", "model.safetensors", "sub", "sub/notes.txt"]
    assert meta == [first, File(WEIGHTS).sha256, len(WEIGHTS)]
    assert {name: (Path(path) / name).read_bytes() for name in FILES} == FILES
    assert [request.origin for request in hub.asked("/cdn/*")] == ["cdn"]


def test_the_real_client_tells_refusals_apart(hub: Hub, tmp_path: Path) -> None:
    hub.tokens |= {"hf_good", "hf_other"}
    hub.repo("org/open", FILES)
    hub.repo("org/gated", FILES, gated="manual", granted={"hf_good"})
    hub.repo("org/private", FILES, private=True, granted={"hf_good"})
    hub.renamed["org/old"] = "org/open"
    script = """
[tried(api.model_info, "org/none"), tried(api.model_info, "org/private"), tried(api.model_info, "org/gated"),
 tried(hub.hf_hub_download, "org/gated", "config.json"), tried(api.model_info, "org/open", revision="nowhere"),
 tried(hub.hf_hub_download, "org/open", "none.json"), tried(hub.hf_hub_download, "org/old", "config.json")]
"""

    def asked(token: str) -> list[str | None]:
        found: list[str | None] = client(hub, tmp_path / (token or "nobody"), script.replace("\n", " "), token)
        return found

    absent = "RepositoryNotFoundError"
    rest = ["RevisionNotFoundError", "RemoteEntryNotFoundError", None]
    assert asked("") == [absent, absent, None, "GatedRepoError", *rest]
    assert asked("hf_other") == [absent, absent, None, "GatedRepoError", *rest]
    assert asked("hf_good") == [absent, None, None, None, *rest]


def test_the_real_client_lists_the_quantized_forms_of_a_model(hub: Hub, tmp_path: Path) -> None:
    card = {"base_model": "org/base", "base_model_relation": "quantized"}
    for number, name in enumerate(("org/base-AWQ", "other/base-GGUF", "third/base-MLX")):
        hub.repo(name, FILES, card=card, downloads=number, tags=("4-bit",))
    hub.repo("org/base", FILES, downloads=9)
    hub.repo("org/tuned", FILES, card=card | {"base_model_relation": "finetune"}, downloads=9)
    hub.repo("org/hidden", FILES, card=card, private=True, downloads=9)

    found, all_of_them = client(
        hub,
        tmp_path,
        """
asked = {"filter": "base_model:quantized:org/base", "sort": "downloads", "expand": ["downloads", "tags"]}
shown = [[each.id, each.downloads, each.tags, each.siblings] for each in api.list_models(**asked, limit=2)]
[shown, [each.id for each in api.list_models(filter=["safetensors", "base_model:quantized:org/base"])]]
""",
    )

    tags = ["safetensors", "4-bit", "base_model:org/base", "base_model:quantized:org/base"]
    assert found == [["third/base-MLX", 2, tags, None], ["other/base-GGUF", 1, tags, None]]
    assert sorted(all_of_them) == ["org/base-AWQ", "other/base-GGUF", "third/base-MLX"]


def test_the_real_client_goes_on_after_a_connection_that_was_closed_and_gives_up_after_a_reset_one(
    hub: Hub, tmp_path: Path
) -> None:
    hub.repo("org/tiny", FILES)
    script = """
def fetched():
    try:
        return open(hub.hf_hub_download("org/tiny", "model.safetensors"), "rb").read().hex()[:64]
    except Exception as error:
        return type(error).__name__
fetched()
"""
    hub.fail(Fault("/cdn/*", times=1, cut_at=1024 * 1024))
    assert client(hub, tmp_path / "cut", script) == WEIGHTS.hex()[:64]
    assert len(hub.asked("/cdn/*")) == 2

    hub.fail(Fault("/cdn/*", times=1, reset_at=1024 * 1024))
    assert client(hub, tmp_path / "reset", script) == "ReadError"
    assert client(hub, tmp_path / "reset", script) == WEIGHTS.hex()[:64]


@pytest.mark.parametrize("announced", [True, False], ids=["wrong digest", "flipped bit"])
def test_what_is_served_can_differ_from_the_digest_that_is_announced(announced: bool, hub: Hub, tmp_path: Path) -> None:
    """The client takes both: whoever downloads with it must look for himself."""
    digest = "a" * 64 if announced else ""
    hub.repo("org/tiny", {"model.safetensors": File(WEIGHTS, digest=digest)})
    if not announced:
        hub.fail(Fault("/cdn/*", flip_at=1_500_000))

    path = client(hub, tmp_path, 'hub.hf_hub_download("org/tiny", "model.safetensors")')

    found = Path(path).read_bytes()
    assert len(found) == len(WEIGHTS)
    assert File(found).sha256 != Path(path).resolve().name == (digest or File(WEIGHTS).sha256)
