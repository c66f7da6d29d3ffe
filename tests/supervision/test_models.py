"""What names and references mean, by the catalog of a node."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from agent.artifacts.base import SourcePolicy
from agent.errors import InvalidArgument, NotFound
from agent.models.errors import ProfileError
from agent.models.profiles import Profiles
from agent.settings import FetchConfig
from agent.supervision.models import Models


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """With the shipped catalog, and no hub; the operator's file is not there yet."""
    policy = SourcePolicy(frozenset({"hf"}), None, tmp_path / "cache", fetching=FetchConfig(offline=True))
    return Models(tmp_path / "models.yaml", Profiles(), policy, "known")


async def test_a_models_own_name_means_all_of_its_variants_and_a_repository_its_own(models: Models) -> None:
    every = (await models.options("Qwen/Qwen3-8B")).options
    assert {option.profile.format for option in every} == {"safetensors", "gguf", "mlx"}
    assert len({option.source for option in every}) == len(every)
    (awq,) = (await models.options("qwen/qwen3-8b-awq")).options
    assert (awq.source, awq.profile.quantization, awq.trust) == ("hf:Qwen/Qwen3-8B-AWQ", "awq", "maker")
    levels = (await models.options("unsloth/Qwen3-8B-GGUF@main")).options
    assert {option.profile.format for option in levels} == {"gguf"}


async def test_each_source_means_exactly_its_own_option(models: Models) -> None:
    for option in (await models.options("Qwen/Qwen3-8B")).options:
        assert (await models.options(option.source.removeprefix("hf:"))).options == (option,)


async def test_a_file_of_a_repository_is_named_as_such(models: Models) -> None:
    (option,) = (await models.options("unsloth/Qwen3-8B-GGUF:q4_k_m")).options
    assert option.profile.path == "unsloth/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf"


async def test_profiles_are_counted_once(models: Models) -> None:
    first, second = await asyncio.gather(models.options("Qwen/Qwen3-8B"), models.options("Qwen/Qwen3-8B"))
    assert all(one is other for one, other in zip(first.options, second.options, strict=True))


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("qwen3:8b", "hf:Qwen/Qwen3-8B"),
        ("QWEN3-8B", "hf:Qwen/Qwen3-8B"),
        ("qwen/qwen3-8b-awq", "hf:Qwen/Qwen3-8B-AWQ"),
        ("qwen3:8b:AWQ", "hf:Qwen/Qwen3-8B-AWQ"),
        ("qwen3-8b:bf16", "hf:Qwen/Qwen3-8B:bf16"),
        ("qwen3-8b:q8_0", "hf:unsloth/Qwen3-8B-GGUF:Q8_0"),
    ],
)
async def test_a_name_has_a_canonical_reference(models: Models, text: str, reference: str) -> None:
    model, found = await models.resolve(text)
    assert (model.id, found) == ("Qwen/Qwen3-8B", reference)


@pytest.mark.parametrize(
    ("text", "hint"),
    [("qwen3-8b:q9", "it has bf16, fp8-block, awq"), ("qwen3-9b", "Qwen3-8B"), ("zzz", "`agentctl fit --all` lists")],
)
async def test_an_unknown_name_is_answered_with_what_is_known(models: Models, text: str, hint: str) -> None:
    with pytest.raises(NotFound) as caught:
        await models.resolve(text)
    assert hint in caught.value.hint


async def test_a_repository_beyond_the_catalog_is_refused_where_nobody_may_be_asked(models: Models) -> None:
    with pytest.raises(ProfileError, match="the catalog has no model nobody/nothing, and the hub may not be asked"):
        await models.options("nobody/nothing")


async def test_the_operators_file_is_read_again_when_it_changes(models: Models, tmp_path: Path) -> None:
    own = tmp_path / "models.yaml"
    own.write_text(json.dumps({"models": [{"id": "Qwen/Qwen3-8B", "aliases": ["the-usual"]}], "quantizations": {}}))
    assert (await models.resolve("the-usual"))[1] == "hf:Qwen/Qwen3-8B"
    own.write_text(json.dumps({"models": [{"id": "Qwen/Qwen3-8B", "context": "long"}], "quantizations": {}}))
    os.utime(own, (1, 1))
    with pytest.raises(InvalidArgument, match=r"models\.yaml: models\[Qwen/Qwen3-8B\]\.context"):
        await models.resolve("qwen3-8b")
    own.unlink()
    with pytest.raises(NotFound):
        await models.resolve("the-usual")


async def test_every_reference_of_the_catalog_can_be_planned(models: Models) -> None:
    known = await models.known()
    assert len(known) >= 60
    for model in (*known[::8], *(one for one in known if one.id == "openai/gpt-oss-120b")):  # two with one quantization
        for variant in model.variants:
            (option,) = (await models.options(variant.reference.removeprefix("hf:"))).options
            assert option.source == variant.reference
