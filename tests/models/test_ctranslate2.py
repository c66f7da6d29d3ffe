"""Profiles of converted models: every shape from model.bin, and clear errors for what is damaged."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from agent.models.ctranslate2 import is_converted, read_converted
from agent.models.errors import ProfileError
from agent.models.inspect import main
from agent.models.profile import AttentionKind, Group
from agent.status import DiagnosisCode
from tests.ct2_factory import make_ct2
from tests.hf_factory import make_hf


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_ct2(tmp_path / "m")


def test_shapes_come_from_the_variables(model: Path) -> None:
    profile = read_converted(model)

    assert (profile.format, profile.layers, profile.vocabulary) == ("ctranslate2", 2, 259)
    assert (profile.embedding_length, profile.feed_forward_length) == (64, 128)
    assert (profile.heads, profile.kv_heads, profile.key_length) == (4, (2, 2), 16)
    assert {layer.attention.kind for layer in profile.layer_details} == {AttentionKind.GQA}
    assert profile.parameters == 2 * 259 * 64 + 2 * (128 * 64 + 64 * 64 + 3 * 128 * 64) + 5 * 64
    assert profile.group(Group.MLP).parameters == 2 * 3 * 128 * 64
    assert profile.tensor_bytes < profile.file_bytes
    assert not profile.tied


@pytest.mark.parametrize(
    ("dtype", "quantization"), [("int8", "int8_float16"), ("float16", "float16"), ("float32", "float32")]
)
def test_the_quantization_is_called_as_the_converter_calls_it(dtype: str, quantization: str, tmp_path: Path) -> None:
    assert read_converted(make_ct2(tmp_path / dtype, dtype=dtype)).quantization == quantization


def test_the_context_is_the_tokenizers_or_assumed_and_said_so(model: Path) -> None:
    assert read_converted(model).context_length == 2048
    assert "not known" in read_converted(model).notes[0]

    (model / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 4096}))

    assert (read_converted(model).context_length, read_converted(model).notes) == (4096, ())


@pytest.mark.parametrize("content", ["[" * 200_000, "\\xff", "[]", "{", '{"model_max_length": "1e30"}'])
def test_a_damaged_configuration_of_the_tokenizer_is_no_hint(model: Path, content: str) -> None:
    (model / "tokenizer_config.json").write_text(content)

    assert read_converted(model).context_length == 2048


def test_directories_are_told_apart(model: Path, tmp_path: Path) -> None:
    hugging_face = make_hf(tmp_path / "hf")

    assert (is_converted(model), is_converted(hugging_face)) == (True, False)
    assert (main(model)["format"], main(hugging_face)["format"]) == ("ctranslate2", "safetensors")


def diagnosis(model: Path) -> tuple[DiagnosisCode, str]:
    with pytest.raises(ProfileError) as caught:
        read_converted(model)
    return caught.value.diagnosis.code, caught.value.diagnosis.message


@pytest.mark.parametrize("length", [0, 3, 10, 40, 200, 60_000])
def test_a_file_that_is_cut_off_is_corrupt(length: int, model: Path) -> None:
    os.truncate(model / "model.bin", length)

    assert diagnosis(model)[0] is DiagnosisCode.MODEL_CORRUPT


def test_what_is_no_decoder_is_unsupported(model: Path) -> None:
    content = (model / "model.bin").read_bytes().replace(b"TransformerDecoderSpec", b"TransformerEncoderSpec", 1)
    (model / "model.bin").write_bytes(content)

    code, message = diagnosis(model)

    assert (code, "TransformerEncoderSpec" in message) == (DiagnosisCode.MODEL_UNSUPPORTED, True)


def test_a_newer_format_is_unsupported(model: Path) -> None:
    content = (model / "model.bin").read_bytes()
    (model / "model.bin").write_bytes(struct.pack("<I", 7) + content[4:])

    assert diagnosis(model)[0] is DiagnosisCode.MODEL_UNSUPPORTED


def test_absurd_counts_end_at_once(model: Path) -> None:
    head = struct.pack("<I", 6) + struct.pack("<H", 23) + b"TransformerDecoderSpec\0"
    (model / "model.bin").write_bytes(head + struct.pack("<II", 8, 0xFFFFFFFF))

    assert diagnosis(model)[0] is DiagnosisCode.MODEL_CORRUPT


def test_a_model_without_layers_is_corrupt(model: Path) -> None:
    head = struct.pack("<I", 6) + struct.pack("<H", 23) + b"TransformerDecoderSpec\0"
    (model / "model.bin").write_bytes(head + struct.pack("<II", 8, 0))

    assert "lacks an embedding" in diagnosis(model)[1]
