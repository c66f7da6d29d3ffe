"""Names, links and sizes that a source or a stranger in the cache chose to do harm with."""

from __future__ import annotations

import hashlib

import pytest
from huggingface_hub import snapshot_download

from agent.artifacts import cache
from agent.artifacts.base import ArtifactError
from agent.artifacts.fetcher import Fetcher
from agent.status import DiagnosisCode as Code
from tests.hub.server import Fault

GGUF = {"m-Q8_0.gguf": b"GGUF8"}


def test_a_repository_of_more_files_than_any_model_has_is_refused(pulling, hub):
    hub.repo("org/m", {**GGUF, **{f"{n}.json": b"{}" for n in range(cache.MOST_FILES)}})

    found = pulling.refused("org/m:Q8_0")

    assert found.code == Code.MODEL_MISSING
    assert "10001 files; a model has less than 10000" in found.message


@pytest.mark.parametrize("name", ["%2e%2e", "a%5cb.gguf", "%0ax.gguf", "%00.gguf", "", "x" * 300])
def test_a_url_whose_last_part_is_no_name_is_refused(pulling, hub, name):
    url = f"{hub.cdn}/cdn/org/m/{hub.repo('org/m', GGUF).refs['main']}/m-Q8_0.gguf"
    hub.fail(Fault("*", status=200, body=b"GGUF8"))

    with pytest.raises(ArtifactError, match="is no name for a file"):
        Fetcher(pulling.url(url.replace("m-Q8_0.gguf", name)), print).run()

    assert not [path for path in pulling.cache.rglob("*") if path.is_file() and path.name != "lock"]


def test_an_escaped_path_in_a_url_names_a_file_of_its_own_folder(pulling, hub):
    commit = hub.repo("org/m", {"../../x/m.gguf": b"GGUF8"}).refs["main"]

    kept = Fetcher(pulling.url(f"{hub.cdn}/cdn/org/m/{commit}/..%2f..%2fx%2fm.gguf"), print).run()

    assert (kept.path.name, kept.path.parents[3]) == ("m.gguf", pulling.cache / "urls")


def test_empty_weights_are_what_they_are(pulling, hub):
    hub.repo("org/m", {"config.json": b"{}", "model.safetensors": b"", "tokenizer.json": b""})

    kept = pulling.fetch("org/m")

    assert (kept.bytes, (kept.path / "model.safetensors").read_bytes()) == (2, b"")
    assert hashlib.sha256().hexdigest() in {file.blob for file in kept.files}


def test_a_name_that_is_a_file_and_a_folder_harms_nothing(pulling, hub):
    hub.repo(
        "org/m", {"config.json": b"{}", "1_Pooling": b"", "1_Pooling/config.json": b"{}", "model.safetensors": b""}
    )
    assert pulling.fetch("org/m").bytes == 4  # the file is none that an engine needs

    hub.repo("org/n", {"q/m-00001-of-00002.gguf": b"1", "q/m-00001-of-00002.gguf/m-00002-of-00002.gguf": b"2"})
    assert pulling.refused("org/n").code == Code.MODEL_MISSING


def test_a_link_out_of_the_blobs_is_no_file_of_a_snapshot(pulling, hub, tmp_path):
    hub.repo("org/m", {"config.json": b"{}", "model.safetensors": b"w"})
    snapshot = snapshot_download("org/m", cache_dir=pulling.cache / "hub", endpoint=hub.endpoint)
    victim = tmp_path / hashlib.sha256(b"secret").hexdigest()
    victim.write_bytes(b"secret")
    weights = cache.repository(pulling.cache, "org/m").snapshot(snapshot.rpartition("/")[2]) / "model.safetensors"
    weights.unlink()
    weights.symlink_to(victim)

    found = pulling.refused("org/m", offline=True)

    assert found.code == Code.MODEL_MISSING
    assert "not in the cache as the hub's tools write it" in found.message
    assert victim.read_bytes() == b"secret"


def test_what_lies_under_a_link_that_replaced_a_snapshots_file_is_not_written(pulling, hub, tmp_path):
    """Links are replaced, never followed."""
    hub.repo("org/m", GGUF)
    kept, victim = pulling.fetch("org/m:Q8_0"), tmp_path / "victim"
    victim.write_bytes(b"precious")
    kept.path.unlink()
    kept.path.symlink_to(victim)

    again = pulling.fetch("org/m:Q8_0")

    assert (again.path.read_bytes(), victim.read_bytes()) == (b"GGUF8", b"precious")
