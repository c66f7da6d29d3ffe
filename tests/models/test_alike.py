"""Weights are counted by kind instead of one by one: that must not change a number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.models import catalog
from agent.models.alike import Alike
from agent.models.catalog import shipped
from agent.models.config import Config
from agent.models.groups import layer_of
from agent.models.levels import as_gguf
from agent.models.schemes import Names
from agent.models.shape import Shape
from agent.strict import validate

COUNTED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "counted.json").read_text())
KNOWN = [case["config"] for case in COUNTED if Shape(Config(case["config"], "config.json")).known]
W4 = {"num_bits": 4, "type": "int", "group_size": 32, "strategy": "group"}
STORED: dict[str, dict[str, Any]] = {
    "as trained": {},
    "awq but the first layer": {"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["layers.0", "lm_head"]},
    "fp8 by wildcard": {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["*.layers.1.*", "*mlp*"]},
    "w4a16 by expression": {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "ignore": [r"re:.*layers\.[13]\..*", "re:.*norm.*"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": W4}},
    },
}  # fmt: skip


def one_by_one(config: dict[str, Any]) -> Shape:
    """The same model, of whose weights each is its own kind."""
    shape = Shape(Config(config, "config.json"))
    weights = enumerate(shape.family.weights(tied=shape.tied))
    shape.__dict__["weights"] = tuple(Alike(weight, (layer_of(weight.name),), (number,)) for number, weight in weights)
    return shape


@pytest.mark.parametrize("stored", STORED)
def test_counting_by_kind_gives_what_counting_one_by_one_gives(stored: str) -> None:
    for known in KNOWN:
        config = {**known, **({"quantization_config": STORED[stored]} if STORED[stored] else {})}

        together = Shape(Config(config, "config.json"))

        assert together.counted("m") == one_by_one(config).counted("m"), known["model_type"]


@pytest.mark.parametrize("level", ["Q2_K", "Q3_K_M", "Q4_K_M", "MXFP4"])
def test_levels_of_gguf_are_counted_alike_too(level: str) -> None:
    for known in KNOWN:
        together, apart = Shape(Config(known, "config.json")), one_by_one(known)
        base = together.counted("m")

        assert as_gguf(base, together, level, "m") == as_gguf(base, apart, level, "m"), known["model_type"]


def test_a_variant_counted_from_its_models_shape_is_that_of_its_own_configuration() -> None:
    for known in KNOWN[::2]:
        shape = Shape(Config(known, "config.json"))
        for stored in STORED.values():
            storage = {"quantization_config": stored} if stored else {}
            whole = Shape(Config({**known, **storage}, "config.json"))
            assert shape.stored_as(storage).counted("m") == whole.counted("m"), known["model_type"]
        other = {"torch_dtype": "float32", "dtype": "float32"}
        whole = Shape(Config({**known, **other}, "config.json"))
        assert shape.stored_as(other).counted("m") == whole.counted("m"), known["model_type"]


WORDS = st.sampled_from(["model", "layers", "0", "1", "12", "mlp", "gate", "*", "?", "w1", "lm_head", "[01]", "Linear"])
PATTERNS = st.lists(st.lists(WORDS, min_size=1, max_size=4).map(".".join), max_size=3)
EXPRESSIONS = st.lists(
    st.sampled_from([".*", r"\.", "layers", "mlp", r"\d+", "1", ".", "(gate|up)", "^", "$", "[0-9]", "model", "_proj"]),
    max_size=6,
).map(lambda parts: "re:" + "".join(parts))


@given(PATTERNS, st.lists(EXPRESSIONS, max_size=2), st.sampled_from(["mlp.gate_proj", "self_attn.q", "gate"]))
def test_names_that_are_blind_to_layers_take_all_layers_for_the_same(
    patterns: list[str], expressions: list[str], last: str
) -> None:
    names = Names([*patterns, *expressions])

    answers = {f"model.layers.{layer}.{last}" in names for layer in (0, 1, 7, 12, 100)}

    assert names.by_layer or len(answers) == 1


def test_what_ships_is_taken_for_what_validating_it_gives() -> None:
    text = Path(catalog.__file__).with_name("catalog.json").read_bytes()

    assert shipped()._file == validate(catalog._File, json.loads(text), "catalog.json")
