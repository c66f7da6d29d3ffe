"""Where models come from: files and packages, resolved and verified."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

from agent.artifacts import digests
from agent.artifacts.base import ArtifactError, SourcePolicy
from agent.artifacts.sources import fetch, resolve
from agent.status import DiagnosisCode, Progress


@pytest.fixture
def policy(tmp_path: Path) -> SourcePolicy:
    return SourcePolicy(frozenset({"file", "package", "hf"}), None, tmp_path / "cache")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution with a model of 9 MiB, whose import would end the test."""
    site = tmp_path / "site"
    folder = site / "demo_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')\n")
    (folder / "m.gguf").write_bytes(b"GGUF" + bytes(9 * 1024**2))
    (folder / "unrecorded.gguf").write_bytes(b"GGUF")
    digest = base64.urlsafe_b64encode(hashlib.sha256((folder / "m.gguf").read_bytes()).digest()).rstrip(b"=").decode()
    info = site / "demo_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: demo-model\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("demo_model\n")
    (info / "RECORD").write_text(f"demo_model/m.gguf,sha256={digest},{9 * 1024**2 + 4}\ndemo_model/__init__.py,,\n")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    return folder


async def refusal(reference: str, policy: SourcePolicy) -> tuple[DiagnosisCode, str]:
    with pytest.raises(ArtifactError) as caught:
        await fetch(reference, policy, lambda _: None)
    return caught.value.diagnosis.code, caught.value.diagnosis.message


async def test_a_file_is_taken_where_it_is(tmp_path: Path, policy: SourcePolicy) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"12345")

    fetched = await fetch(f"file:{path}", policy, lambda _: None)

    assert (fetched.path, fetched.bytes, fetched.digest, fetched.source) == (path, 5, "", f"file:{path}")


async def test_a_link_out_of_the_allowed_directories_is_denied(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "m.gguf").touch()
    (inside / "link.gguf").symlink_to(outside / "m.gguf")
    (inside / "own.gguf").touch()
    (inside / "alias.gguf").symlink_to("own.gguf")
    policy = SourcePolicy(frozenset({"file"}), (inside,), tmp_path)

    assert (await resolve(f"file:{inside}/alias.gguf", policy)).path == inside / "alias.gguf"
    for path in (inside / "link.gguf", outside / "m.gguf", inside / ".." / "out" / "m.gguf"):
        code, message = await refusal(f"file:{path}", policy)
        assert code == DiagnosisCode.POLICY_DENIED
        assert str(outside) in message


async def test_what_is_no_regular_file_is_missing(tmp_path: Path, policy: SourcePolicy) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("fifo", "loop", "none", "."):
        code, _ = await refusal(f"file:{tmp_path / name}", policy)
        assert code == DiagnosisCode.MODEL_MISSING


async def test_a_package_is_verified_against_its_record_without_an_import(package: Path, policy: SourcePolicy) -> None:
    seen: list[Progress] = []

    fetched = await fetch("package:demo_model/m.gguf", policy, seen.append)

    assert fetched.path == package / "m.gguf"
    assert fetched.digest == "sha256:" + hashlib.sha256((package / "m.gguf").read_bytes()).hexdigest()
    assert "demo_model" not in sys.modules
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1].done == seen[-1].total == fetched.bytes


async def test_a_digest_is_remembered_until_the_file_changes(
    package: Path, policy: SourcePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fetch("package:demo_model/m.gguf", policy, lambda _: None)
    seen: list[Progress] = []
    await fetch("package:demo_model/m.gguf", policy, seen.append)
    assert not seen

    os.utime(package / "m.gguf", ns=(1, 1))
    await fetch("package:demo_model/m.gguf", policy, seen.append)
    assert seen


async def test_who_brought_a_package_is_mostly_told_by_its_name(
    package: Path, policy: SourcePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> None:
        raise AssertionError("all that is installed was read")

    monkeypatch.setattr(importlib.metadata, "packages_distributions", asked)
    assert (await fetch("package:demo_model/m.gguf", policy, lambda _: None)).path == package / "m.gguf"


async def test_a_package_may_come_from_a_distribution_of_another_name(package: Path, policy: SourcePolicy) -> None:
    info = (package.parent / "demo_model-1.0.dist-info").rename(package.parent / "other_name-1.0.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-name\nVersion: 1.0\n")
    assert (await fetch("package:demo_model/m.gguf", policy, lambda _: None)).path == package / "m.gguf"


async def test_a_damaged_record_of_digests_only_costs_time(package: Path, policy: SourcePolicy) -> None:
    await fetch("package:demo_model/m.gguf", policy, lambda _: None)
    for record in (policy.cache / "digests").iterdir():
        record.write_text('{"file": 3')

    await fetch("package:demo_model/m.gguf", policy, lambda _: None)


async def test_a_cache_that_cannot_be_written_only_costs_time(package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    policy = SourcePolicy(frozenset({"package"}), None, tmp_path / "file")

    assert (await fetch("package:demo_model/m.gguf", policy, lambda _: None)).bytes


async def test_a_package_file_that_was_changed_is_corrupt(package: Path, policy: SourcePolicy) -> None:
    with (package / "m.gguf").open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"x")

    code, message = await refusal("package:demo_model/m.gguf", policy)

    assert code == DiagnosisCode.MODEL_CORRUPT
    assert str(package / "m.gguf") in message


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("package:no_such_package/m.gguf", DiagnosisCode.MODEL_MISSING, "not installed"),
        ("package:demo_model/none.gguf", DiagnosisCode.MODEL_MISSING, "holds no file"),
        ("package:demo_model/../../etc/passwd", DiagnosisCode.MODEL_MISSING, ""),
        ("package:demo_model/../secret.gguf", DiagnosisCode.MODEL_MISSING, "leads out"),
        ("package:demo_model/unrecorded.gguf", DiagnosisCode.MODEL_CORRUPT, "vouches"),
        ("package:demo_model/", DiagnosisCode.MODEL_MISSING, ""),
        ("package:", DiagnosisCode.MODEL_MISSING, ""),
        ("hub:org/model", DiagnosisCode.MODEL_MISSING, "'hub' is not known"),
        ("hf:model", DiagnosisCode.MODEL_MISSING, "does not name a repository"),
        ("file:relative.gguf", DiagnosisCode.MODEL_MISSING, "absolute"),
    ],
)
async def test_bad_references_say_what_is_wrong(
    reference: str, code: DiagnosisCode, words: str, package: Path, policy: SourcePolicy
) -> None:
    (package.parent / "secret.gguf").touch()

    found, message = await refusal(reference, policy)

    assert found == code
    assert words in message


async def test_a_scheme_outside_of_the_policy_is_denied(tmp_path: Path) -> None:
    code, _ = await refusal("file:/m.gguf", SourcePolicy(frozenset({"package"}), None, tmp_path))

    assert code == DiagnosisCode.POLICY_DENIED


async def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc" * 3_000_000)

    assert await digests.sha256(path, tmp_path, lambda _: None) == hashlib.sha256(b"abc" * 3_000_000).hexdigest()


async def test_a_digest_that_was_cancelled_halfway_is_not_remembered(tmp_path: Path) -> None:
    path, seen = tmp_path / "fifo", list[Progress]()
    os.mkfifo(path)
    hashing = asyncio.create_task(digests.sha256(path, tmp_path, seen.append))
    writer = await asyncio.to_thread(os.open, path, os.O_WRONLY)
    os.write(writer, b"first half")
    async with asyncio.timeout(30):
        while not seen:
            await asyncio.sleep(0.01)

    hashing.cancel()
    await asyncio.gather(hashing, return_exceptions=True)

    os.write(writer, b"second half")
    os.close(writer)
    await asyncio.get_running_loop().shutdown_default_executor()  # its thread has ended
    assert not list(tmp_path.glob("digests/*"))
