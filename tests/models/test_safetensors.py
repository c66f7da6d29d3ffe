"""Safetensors headers: what is read of them, and what of a damaged one is complained about."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.models.errors import ProfileError
from agent.models.reader import FileReader
from agent.models.safetensors import MAX_HEADER, read_header
from agent.status import DiagnosisCode
from tests.models.safetensors_factory import Bytes, header_of, write_safetensors

TWO = {"a.weight": ("BF16", (4, 8)), "b.weight": ("F32", (3,))}


def content(entries: object, data: int) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def refusal(given_bytes: bytes) -> str:
    with pytest.raises(ProfileError) as caught:
        read_header(Bytes(given_bytes), "model.safetensors")
    assert caught.value.diagnosis.code == DiagnosisCode.MODEL_CORRUPT
    assert "model.safetensors" in caught.value.diagnosis.message
    return caught.value.diagnosis.message


def test_names_types_shapes_and_bytes_are_those_of_the_header() -> None:
    entries, size = header_of(TWO, {"format": "pt"})

    header = read_header(Bytes(content(entries, size)), "m")

    assert [(tensor.name, tensor.dtype, tensor.shape, tensor.bytes) for tensor in header.tensors] == [
        ("a.weight", "BF16", (4, 8), 64),
        ("b.weight", "F32", (3,), 12),
    ]
    assert header.metadata == {"format": "pt"}


def test_types_of_less_than_a_byte_are_counted_in_bits() -> None:
    entries, size = header_of({"w": ("F4", (16, 32)), "v": ("F6_E2M3", (4, 4))})

    assert size == 256 + 12
    assert [tensor.bytes for tensor in read_header(Bytes(content(entries, size)), "m").tensors] == [256, 12]


def test_of_a_file_of_700_gb_only_the_header_is_read(tmp_path: Path) -> None:
    shapes = {f"layers.{index}.weight": ("BF16", (350_000, 10_000)) for index in range(100)}
    path = write_safetensors(tmp_path / "huge.safetensors", shapes)
    assert path.stat().st_size > 700 * 10**9

    header = read_header(FileReader(path), "huge")

    assert sum(tensor.bytes for tensor in header.tensors) == 700 * 10**9
    assert path.stat().st_blocks * 512 < 1024**2


def test_only_the_ranges_of_the_header_are_asked_for() -> None:
    entries, size = header_of(TWO)
    whole = content(entries, size)
    reader = Bytes(whole[: len(whole) - size], size=len(whole))

    read_header(reader, "m")

    assert reader.reads == [(0, 8), (8, len(whole) - size - 8)]


def changed(name: str, **fields: object) -> dict[str, object]:
    entries, _ = header_of(TWO)
    entry = entries[name]
    assert isinstance(entry, dict)
    return {**entries, name: {**entry, **fields}}


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (b"", "0 bytes"),
        (b"abc", "3 bytes"),
        ((MAX_HEADER + 1).to_bytes(8, "little") + b"{}", "the format allows"),
        ((2**63).to_bytes(8, "little") + b"{}", "the format allows"),
        ((100).to_bytes(8, "little") + b"{}", "truncated"),
        (b"\x02" + bytes(7) + b"[]", "not with an object"),
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "the format allows"),
        (b"\x05" + bytes(7) + b"{nope", "is not JSON"),
        (content({"__metadata__": {"a": 1}}, 0), "__metadata__"),
        (content({"a": 3}, 0), "is no object"),
        (content(changed("a.weight", dtype="BF17"), 76), "unknown dtype 'BF17'"),
        (content(changed("a.weight", dtype=7), 76), "unknown dtype"),
        (content(changed("a.weight", shape=[4, -8]), 76), "-8"),
        (content(changed("a.weight", shape=[4, True]), 76), "True"),
        (content(changed("a.weight", shape=[4, 8.0]), 76), "8.0"),
        (content(changed("a.weight", shape=[2**60, 2**60]), 76), "no size"),
        (content(changed("a.weight", shape="4x8"), 76), "shape must be a list"),
        (content(changed("a.weight", shape=[1] * 17), 76), "at most 16"),
        (content(changed("a.weight", shape=[4, 9]), 76), "do not take the 64 bytes"),
        (content(changed("a.weight", data_offsets=[64, 0]), 76), "data_offsets"),
        (content(changed("a.weight", data_offsets=[0]), 76), "data_offsets"),
        (content(changed("b.weight", data_offsets=[0, 12]), 76), "overlap at byte 12"),
        (content(changed("b.weight", data_offsets=[70, 82]), 82), "hole"),
        (content(header_of(TWO)[0], 75), "truncated"),
        (content(header_of(TWO)[0], 77), "1 bytes follow"),
    ],
    ids=lambda value: value[:24].replace(" ", "-") if isinstance(value, str) else "",
)
def test_what_breaks_the_format_is_refused_with_the_rule_that_it_breaks(damaged: bytes, words: str) -> None:
    assert words in refusal(damaged)


def test_deep_nesting_is_refused() -> None:
    assert "not JSON" in refusal((20_000 + 6).to_bytes(8, "little") + b'{"a":' + b"[" * 20_001)


def test_a_missing_file_or_one_that_is_none_is_said_to_be(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ProfileError) as caught:
            FileReader(path)
        assert caught.value.diagnosis.code == DiagnosisCode.MODEL_MISSING


@given(st.binary(max_size=400))
def test_random_bytes_give_a_header_or_a_refusal_and_nothing_else(data: bytes) -> None:
    reader = Bytes(data, size=2**50)
    with suppress(ProfileError):
        read_header(reader, "m")
    assert all(length <= MAX_HEADER for _, length in reader.reads)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
def test_a_header_with_anything_in_it_gives_a_header_or_a_refusal_and_nothing_else(data: st.DataObject) -> None:
    entries, size = header_of(TWO)
    for name in data.draw(st.lists(st.sampled_from(["a.weight", "b.weight", "c", "__metadata__"]), max_size=3)):
        entry = entries.get(name)
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", ""]))
        entries[name] = {**entry, key: data.draw(JSON)} if isinstance(entry, dict) and key else data.draw(JSON)
    whole = bytearray(content(entries, size))
    if data.draw(st.booleans()):
        offset = data.draw(st.integers(0, len(whole) - 1))
        whole[offset : offset + 4] = data.draw(st.binary(max_size=6))

    try:
        header = read_header(Bytes(bytes(whole)), "m")
    except ProfileError:
        return
    assert sum(tensor.bytes for tensor in header.tensors) <= len(whole)
