"""file:/directory: a model of several files, all of which a node must allow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.artifacts import source_file
from agent.artifacts.base import ArtifactError, SourcePolicy
from agent.artifacts.sources import fetch, resolve
from agent.status import DiagnosisCode


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "m"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    (folder / "1_Pooling" / "config.json").write_bytes(b"{}")
    (folder / ".git").mkdir()
    (folder / ".git" / "objects").write_bytes(bytes(5000))
    return folder


def policy(tmp_path: Path, *allowed: Path) -> SourcePolicy:
    return SourcePolicy(frozenset({"file"}), allowed or None, tmp_path / "cache")


async def test_a_directory_is_taken_where_it_is_with_the_bytes_of_its_files(model: Path, tmp_path: Path) -> None:
    found = await fetch(f"file:{model}", policy(tmp_path, tmp_path / "models"), lambda _: None)

    assert (found.path, found.bytes, found.digest, found.source) == (model, 1004, "", f"file:{model}")


async def test_a_file_of_it_that_lies_outside_of_what_is_allowed_denies_all_of_it(model: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_bytes(b"x")
    (model / "tokenizer.json").symlink_to(outside)

    with pytest.raises(ArtifactError) as caught:
        await resolve(f"file:{model}", policy(tmp_path, tmp_path / "models"))

    assert caught.value.diagnosis.code is DiagnosisCode.POLICY_DENIED


async def test_an_empty_directory_outside_of_what_is_allowed_is_denied(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "models").mkdir()

    with pytest.raises(ArtifactError) as caught:
        await resolve(f"file:{tmp_path / 'other'}", policy(tmp_path, tmp_path / "models"))

    assert caught.value.diagnosis.code is DiagnosisCode.POLICY_DENIED


async def test_a_pipe_in_it_is_no_part_of_a_model(model: Path, tmp_path: Path) -> None:
    os.mkfifo(model / "weights.safetensors")

    with pytest.raises(ArtifactError) as caught:
        await resolve(f"file:{model}", policy(tmp_path))

    assert "not a regular file" in str(caught.value)


async def test_a_directory_of_very_many_files_is_no_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_file, "MOST_FILES", 2)

    with pytest.raises(ArtifactError, match="no model's directory"):
        await resolve(f"file:{model}", policy(tmp_path))


@pytest.mark.parametrize("folder", ["/", "/proc", ""])
async def test_a_directory_that_is_no_models_is_not_judged_by_what_lies_below_it(tmp_path: Path, folder: str) -> None:
    (tmp_path / "elsewhere").symlink_to(tmp_path / "nowhere")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "config.json").write_bytes(b"{}")
    path = folder or str(tmp_path)

    with pytest.raises(ArtifactError) as caught:
        await resolve(f"file:{path}", policy(tmp_path))

    assert caught.value.diagnosis.code is DiagnosisCode.MODEL_MISSING
    assert str(caught.value) == f"{path} has no config.json"
    assert "GGUF file" in caught.value.diagnosis.hint


async def test_what_else_of_models_a_directory_has_is_left_to_its_reader(tmp_path: Path) -> None:
    (tmp_path / "m-Q4_K_M.gguf").write_bytes(b"GGUF")
    (tmp_path / "lost+found").symlink_to(tmp_path / "nowhere")

    assert (await resolve(f"file:{tmp_path}", policy(tmp_path))).path == tmp_path
