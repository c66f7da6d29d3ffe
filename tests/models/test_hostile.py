"""Files that are made to hurt: an error with the field or the count, or a bound that is said to be one, and soon."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.models import inspect
from agent.models.errors import ProfileError
from agent.models.huggingface import from_config, read_folder
from agent.models.profile import Basis
from agent.models.profiles import Profiles
from agent.models.remote import _Listing
from agent.models.repository import Question
from agent.status import DiagnosisCode
from tests.gguf_factory import make_gguf
from tests.models.safetensors_factory import write_safetensors

LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320, "max_position_embeddings": 4096,
}  # fmt: skip
MANY = 300_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer_types": ["full_attention"] * MANY}, "layer_types must have at most 262144 entries, not 300000"),
        ({"model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
          "mlp_only_layers": [0] * MANY}, "mlp_only_layers must have at most"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M" * MANY}, "at most 4096 characters"),
        ({"quantization_config": {"quant_method": "awq", "modules_to_not_convert": ["a"] * MANY}},
         "modules_to_not_convert must have at most"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers must be 1 to 2048"),
        ({"num_hidden_layers": float("inf")}, "num_hidden_layers must be a whole number"),
        ({"num_attention_heads": 10**9}, "num_attention_heads must be 1 to 16384"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be 1 to"),
        ({"num_key_value_heads": 8}, "num_attention_heads 4 is no multiple of num_key_value_heads 8"),
        ({"head_dim": -1}, "head_dim must be 1 to"),
        ({"intermediate_size": 2**63}, "intermediate_size must be 0 to"),
        ({"rope_scaling": {"factor": 1e300}}, "factor must be a number"),
        ({"max_position_embeddings": -4096}, "max_position_embeddings must be 1 to"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_absurd_value_is_refused_with_its_field(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ProfileError) as caught:
        from_config({**LLAMA, **change})

    assert caught.value.diagnosis.code == DiagnosisCode.MODEL_CORRUPT
    assert words in caught.value.diagnosis.message
    assert len(caught.value.diagnosis.message) < 300


@pytest.mark.parametrize(
    "patterns",
    [
        [f"re:.*{number}.*a.*" for number in range(5_000)],
        [f"*{number}?*[ab]*" for number in range(5_000)],
        ["re:" + "(" * 100_000],
        ["re:" + "x*" * 250],
    ],
    ids=["expressions", "wildcards", "a long one", "a slow one"],
)
def test_patterns_that_would_take_for_ever_make_a_bound(patterns: list[str]) -> None:
    section = {"quant_method": "awq", "bits": 4, "modules_to_not_convert": patterns}

    profile = from_config({**LLAMA, "num_hidden_layers": 200, "quantization_config": section})

    assert profile.basis == Basis.BOUND


def test_the_most_layers_with_the_longest_lists_are_gone_through_once(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"] * 100_000
    section = {"quant_method": "awq", "bits": 4, "modules_to_not_convert": [f"layers.{n}.x" for n in range(200_000)]}

    profile = from_config(
        {
            **LLAMA,
            "num_hidden_layers": 2048,
            "layer_types": kinds,
            "sliding_window": 128,
            "quantization_config": section,
        }
    )

    assert sum(layer.attention.window == 128 for layer in profile.layer_details) == 1024


def test_an_index_of_ten_thousand_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    where = {f"model.layers.{n}.x.weight": f"model-{n:05}-of-10000.safetensors" for n in range(10_000)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))

    with pytest.raises(ProfileError, match="weight_map must name 1 to 4096 files, not 10000"):
        read_folder(tmp_path)


def test_an_empty_weight_file_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    write_safetensors(tmp_path / "model.safetensors", {}).write_bytes(b"")

    with pytest.raises(ProfileError, match=r"model\.safetensors is no safetensors file: it has 0 bytes"):
        read_folder(tmp_path)


# GGUF

COUNTS = struct.Struct("<QQ")


def tensors(content: bytearray) -> None:
    COUNTS.pack_into(content, 8, 1 << 60, COUNTS.unpack_from(content, 8)[1])


def keys(content: bytearray) -> None:
    COUNTS.pack_into(content, 8, COUNTS.unpack_from(content, 8)[0], 1 << 60)


def array(content: bytearray, name: bytes, count: int) -> None:
    """The array under this key claims so many elements. Behind the name: its type, its elements' type, the count."""
    struct.pack_into("<Q", content, content.index(name) + len(name) + 8, count)


def strings(content: bytearray) -> None:
    array(content, b"tokenizer.ggml.tokens", 1 << 40)


def numbers(content: bytearray) -> None:
    array(content, b"tokenizer.ggml.token_type", 1 << 40)


def a_string(content: bytearray) -> None:
    name = b"general.name"
    struct.pack_into("<Q", content, content.index(name) + len(name) + 4, 1 << 61)


def dimensions(content: bytearray) -> None:
    name = b"token_embd.weight"
    struct.pack_into("<I", content, content.rindex(name) + len(name), 1 << 30)


def shape(content: bytearray) -> None:
    name = b"token_embd.weight"
    struct.pack_into("<Q", content, content.rindex(name) + len(name) + 4, 1 << 62)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (tensors, "its header claims 1152921504606846976 tensors; a real one has less than"),
        (keys, "its header claims 1152921504606846976 keys; a real one has less than"),
        (strings, "an array claims 1099511627776 strings; a real one has less than"),
        (numbers, "the file ends inside of its header"),
        (a_string, "the file ends inside of its header"),
        (dimensions, "the file ends inside of its header"),
        (shape, "the file ends before its tensor token_embd.weight does"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_absurd_counts_of_a_gguf_are_refused_at_once(
    damage: Callable[[bytearray], None], words: str, tmp_path: Path
) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)

    answer = inspect.main(path)

    assert answer["code"] == "model_corrupt"
    assert words in str(answer["message"])
    assert str(path) in str(answer["message"])


async def test_zeros_behind_the_beginning_of_a_gguf_do_not_keep_the_parser_busy(tmp_path: Path) -> None:
    """As a download that reserved its space leaves them; in the real subprocess, with its limits."""
    path = make_gguf(tmp_path / "m.gguf")
    content = path.read_bytes()[:700]
    with path.open("wb") as file:
        file.write(content)
        file.truncate(50 * 1024**3)

    with pytest.raises(ProfileError) as caught:
        await Profiles().profile(path)

    assert caught.value.diagnosis.code == DiagnosisCode.MODEL_CORRUPT


# A hub's answers

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
COUNTED = from_config(LLAMA)
KEYS = ["id", "sha", "gated", "cardData", "siblings"]


@settings(max_examples=60)
@given(st.data())
def test_any_answer_of_a_hub_is_a_listing_or_a_refusal_and_nothing_else(data: st.DataObject) -> None:
    sibling = st.fixed_dictionaries({"rfilename": st.text(max_size=9) | JSON}, optional={"size": st.integers() | JSON})
    answer: dict[str, Any] = {
        "sha": "a" * 40, "siblings": data.draw(st.lists(sibling | JSON, max_size=3)), "cardData": {"license": "mit"},
    }  # fmt: skip
    for key in data.draw(st.lists(st.sampled_from(KEYS), max_size=2)):
        answer[key] = data.draw(JSON | st.dictionaries(st.sampled_from(["base_model", "license"]), JSON))

    try:
        listing = _Listing(answer, Question("https://hub", "org/name"))
    except ProfileError:
        return
    assert listing.repo.count("/") == 1
    assert all(".." not in name.split("/") and not name.startswith("/") for name in listing.sizes)
    listing.described(COUNTED)
