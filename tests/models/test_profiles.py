"""Model profiles, read from real files by the real subprocess."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.models import inspect, profiles
from agent.models.profiles import ProfileError, Profiles
from agent.status import DiagnosisCode
from tests.gguf_factory import make_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


async def refusal(path: Path) -> tuple[DiagnosisCode, str]:
    with pytest.raises(ProfileError) as caught:
        await Profiles().profile(path)
    return caught.value.diagnosis.code, caught.value.diagnosis.message


async def test_the_shapes_are_those_that_the_model_was_made_with(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", hidden=128, layers=3, vocab=600, heads=8, kv_heads=2, context=4096)

    profile = await Profiles().profile(path)

    assert profile.architecture == "llama"
    assert (profile.layers, profile.embedding_length, profile.feed_forward_length) == (3, 128, 256)
    assert (profile.heads, profile.kv_heads, profile.key_length, profile.value_length) == (8, (2, 2, 2), 16, 16)
    assert (profile.context_length, profile.vocabulary, profile.quantization) == (4096, 600, "F16")
    assert profile.output_bytes == profile.embedding_bytes == 600 * 128 * 2
    assert profile.file_bytes == path.stat().st_size
    assert profile.has_chat_template


async def test_a_tied_output_and_quantized_tensors_are_counted_by_their_blocks(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", quantization="Q8_0", tied=True, vocab=512, hidden=64)

    profile = await Profiles().profile(path)

    assert profile.quantization == "Q8_0"
    assert profile.output_bytes == 0
    assert profile.embedding_bytes == 512 * 64 // 32 * 34


async def test_all_parts_of_a_split_model_are_summed_and_a_missing_one_is_named(model: Path, tmp_path: Path) -> None:
    whole = await Profiles().profile(model)
    first = make_gguf(tmp_path / "split.gguf", tensors_per_part=5)

    profile = await Profiles().profile(first)

    assert profile.tensor_bytes == whole.tensor_bytes
    assert profile.file_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())

    next(tmp_path.glob("*-00003-of-*")).unlink()
    code, message = await refusal(first)
    assert code == DiagnosisCode.MODEL_MISSING
    assert "-00003-of-" in message


async def test_a_later_part_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    make_gguf(tmp_path / "split.gguf", tensors_per_part=5)

    code, message = await refusal(next(tmp_path.glob("*-00002-of-*")))

    assert code == DiagnosisCode.MODEL_UNSUPPORTED
    assert "-00001-of-" in message


async def test_an_answer_is_remembered_until_the_file_changes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model.read_bytes())
    known = Profiles()
    first = await known.profile(path)
    monkeypatch.setattr(profiles.sys, "executable", "/nonexistent")

    assert await known.profile(path) is first

    make_gguf(path, layers=3)
    with pytest.raises(ProfileError, match="cannot be started: No such file or directory"):
        await known.profile(path)


def truncated(path: Path, model: Path) -> None:
    path.write_bytes(model.read_bytes()[:-1000])


def header_cut_off(path: Path, model: Path) -> None:
    path.write_bytes(model.read_bytes()[:3000])


def only_magic(path: Path, _: Path) -> None:
    path.write_bytes(b"GGUF\x03\x00\x00\x00")


def absurd_count(path: Path, model: Path) -> None:
    content = bytearray(model.read_bytes())
    content[8:16] = (1 << 60).to_bytes(8, "little")
    path.write_bytes(content)


def version_99(path: Path, model: Path) -> None:
    content = bytearray(model.read_bytes())
    content[4] = 99
    path.write_bytes(content)


def empty(path: Path, _: Path) -> None:
    path.touch()


def garbage(path: Path, _: Path) -> None:
    path.write_bytes(bytes(range(256)) * 100)


def directory(path: Path, _: Path) -> None:
    path.mkdir()


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def loop(path: Path, _: Path) -> None:
    path.symlink_to(path)


def missing(path: Path, _: Path) -> None:
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (truncated, DiagnosisCode.MODEL_CORRUPT, "truncated"),
        (header_cut_off, DiagnosisCode.MODEL_CORRUPT, "truncated"),
        (only_magic, DiagnosisCode.MODEL_CORRUPT, "truncated"),
        (absurd_count, DiagnosisCode.MODEL_CORRUPT, "m.gguf"),
        (empty, DiagnosisCode.MODEL_CORRUPT, "empty"),
        (garbage, DiagnosisCode.MODEL_CORRUPT, "not a GGUF file"),
        (version_99, DiagnosisCode.MODEL_UNSUPPORTED, "version 99"),
        (directory, DiagnosisCode.MODEL_MISSING, "has no config.json"),
        (fifo, DiagnosisCode.MODEL_MISSING, "pipe"),
        (unix_socket, DiagnosisCode.MODEL_MISSING, "cannot be opened"),
        (loop, DiagnosisCode.MODEL_MISSING, "loop of symbolic links"),
        (missing, DiagnosisCode.MODEL_MISSING, "No such file"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_what_is_no_model_is_refused_with_its_own_diagnosis(
    make: object, code: DiagnosisCode, words: str, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    make(path, model)  # type: ignore[operator]

    found, message = await refusal(path)

    assert found == code
    assert words in message
    assert str(path) in message


async def test_an_inspection_that_does_not_end_is_given_up(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(profiles.sys, "executable", str(hanging))
    monkeypatch.setattr(profiles, "DEADLINE", 0.3)

    code, message = await refusal(model)

    assert code == DiagnosisCode.LAUNCH_FAILED
    assert "0.3 s" in message


async def test_an_inspection_that_is_killed_means_a_file_that_cannot_be_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -9 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(profiles.sys, "executable", str(dying))

    code, _ = await refusal(model)

    assert code == DiagnosisCode.MODEL_CORRUPT


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_header_gives_a_profile_or_a_refusal_and_nothing_else(
    data: st.DataObject, model: Path, tmp_path: Path
) -> None:
    """In process, for speed: bytes of the header are overwritten, and the file may be cut off."""
    content = bytearray(model.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.integers(8, 9000))
        content[offset : offset + 8] = data.draw(st.binary(min_size=8, max_size=8))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] or b"G")

    answer = inspect.main(path)

    assert answer.get("format") == "gguf" or answer["code"] in {"model_corrupt", "model_unsupported", "model_missing"}
