"""The catalog of models: that its facts hold together, that its counts meet what engines report, and how it is read."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.errors import InvalidArgument
from agent.models import catalog
from agent.models.catalog import Catalog, Entry, load, shipped
from agent.models.levels import LEVELS
from agent.models.profile import Basis, ModelProfile

_ROOT = Path(__file__).parents[2]
_EDITED = _ROOT / "configs" / "catalog" / "models.yaml"
_FACTS = _ROOT.parent / "shared" / "memory" / "models.json"
FACTS: dict[str, dict[str, Any]] = json.loads(_FACTS.read_text()) if _FACTS.is_file() else {}
#: Published totals that are no parameter counts: with the scales of FP8 blocks, or a vendor's round number.
OTHER_TOTALS = {
    "deepseek-ai/DeepSeek-R1",
    "deepseek-ai/DeepSeek-V3",
    "deepseek-ai/DeepSeek-V4-Flash",
    "deepseek-ai/DeepSeek-V4-Pro",
}
IDS = [entry.id for entry in shipped().entries]


def entry(name: str, known: Catalog | None = None) -> Entry:
    found = (known or shipped()).lookup(name)
    assert found is not None, name
    return found


@functools.cache  # counting takes tens of milliseconds, and profiles are frozen
def profile(name: str, variant: str, known: Catalog | None = None) -> ModelProfile:
    known = known or shipped()
    found = known.variant(entry(name, known), variant)
    assert found is not None, variant
    return known.profile(entry(name, known), found)


def test_what_ships_is_what_people_edit() -> None:
    shipped_text = Path(catalog.__file__).with_name("catalog.json").read_text(encoding="utf-8")

    assert shipped_text == catalog.derived(_EDITED), "run: python -m agent.models.catalog"


def test_it_has_many_current_models_of_many_families_and_tasks() -> None:
    entries = shipped().entries

    assert len(entries) >= 60
    assert len({each.id.lower() for each in entries}) == len(entries)
    assert len({each.family for each in entries}) >= 30
    assert {each.task for each in entries} == {"chat", "embedding", "rerank"}
    formats = {variant.format for each in entries for variant in shipped().variants(each)}
    assert formats == {"safetensors", "pytorch", "gguf", "mlx"}


@pytest.mark.parametrize("name", IDS)
def test_an_entry_yields_a_profile_that_agrees_with_it(name: str) -> None:
    found = entry(name)

    first = shipped().profile(found, shipped().variants(found)[0])

    assert first.parameters == found.parameters
    assert first.context_length == found.context
    assert (first.name, first.task, first.licence) == (found.name, found.task, found.licence)
    assert first.tensor_bytes == first.file_bytes > found.parameters // 2
    assert sum(layer.attention.kv_heads > 0 for layer in first.layer_details) > 0 or found.task != "chat"
    assert first.basis == Basis.CONFIG or found.variants[0].bound


@pytest.mark.skipif(not FACTS, reason="the table of published models is not beside the repository")
def test_parameters_are_within_one_per_cent_of_published_totals() -> None:
    compared = 0
    for name, facts in FACTS.items():
        found = shipped().lookup(name)
        if found is None or found.id != name or facts["params_total"] is None or name in OTHER_TOTALS:
            continue
        compared += 1
        assert abs(found.parameters / facts["params_total"] - 1) < 0.01, name
    assert compared > 25


#: What llama.cpp printed for files of these levels (`print_info: file size`): GiB, bits a weight.
REPORTED = [
    ("Qwen/Qwen3-30B-A3B", "Q4_K_M", 17.28, 4.86),  # ggml-org/llama.cpp issue 14235
    ("google/gemma-3-4b-it", "Q4_K_M", 2.31, 5.12),  # ggml-org/llama.cpp pull 22790
    ("google/gemma-4-26B-A4B-it", "lmstudio-community/gemma-4-26B-A4B-it-GGUF:Q4_K_M", 15.63, 5.32),
    # scrya-com/rotorquant issue 9
]


@pytest.mark.parametrize(("name", "level", "gib", "bits"), REPORTED)
def test_a_gguf_levels_bytes_are_those_that_llama_cpp_reports(name: str, level: str, gib: float, bits: float) -> None:
    found = profile(name, level)

    assert found.basis == Basis.CONFIG
    assert round(found.tensor_bytes / 1024**3, 2) == gib
    assert round(8 * found.tensor_bytes / found.parameters, 2) == bits


def test_rows_that_no_block_divides_fall_back_as_llama_cpp_reports() -> None:
    """ollama/ollama issue 9031 has a Q4_K_M of this shape: 132 tensors Q5_0, 13 Q8_0, 12 Q4_K and 12 Q6_K."""
    stored = {each.dtype: each.bytes for each in profile("qwen2.5:0.5b", "Q4_K_M").stored}
    hidden, inner, keys = 896, 4864, 128

    down = hidden * inner // 256
    assert stored["Q6_K"] == 12 * down * 210
    assert stored["Q4_K"] == 12 * down * 144
    assert stored["Q8_0"] == (151936 * hidden + 12 * hidden * keys) // 32 * 34
    usual = 24 * (2 * hidden * inner + 2 * hidden * hidden + hidden * keys) + 12 * hidden * keys
    assert stored["Q5_0"] == usual // 32 * 22


def test_gpt_oss_keeps_its_experts_in_four_bits_and_the_rest_in_eight() -> None:
    """AlexsJones/llmfit pull 1059: the released files have 12.1 and 63.4 GB."""
    assert round(profile("gpt-oss:20b", "MXFP4").tensor_bytes / 1e9, 1) == 12.1
    assert round(profile("gpt-oss:120b", "MXFP4").tensor_bytes / 1e9, 1) == 63.4


@pytest.mark.parametrize(
    "name", ["qwen3:8b", "llama3.3:70b", "mixtral:8x7b", "phi-4", "deepseek-v3.1", "qwen3.6:27b", "gemma4:e2b"]
)
def test_more_bits_are_more_bytes(name: str) -> None:
    """Also where a level had to be bounded."""
    known = shipped()
    base = entry(name)
    order = ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "BF16")
    assert set(order) < LEVELS

    sizes = [
        known.profile(base, catalog.Published(base.id, "someone/files", "gguf", level, "community")).tensor_bytes
        for level in order
    ]

    # A bounded IQ4_XS may be above a bounded Q4_K_S: both are from above.
    compared = [size for level, size in zip(order, sizes, strict=True) if level != "IQ4_XS"]
    assert compared == sorted(compared)
    assert len(set(compared)) == len(compared)


def test_architectures_that_llama_cpp_lays_out_otherwise_are_said_to_be_bounded() -> None:
    base = entry("qwen3.6:27b")
    found = shipped().profile(base, catalog.Published(base.id, "someone/files", "gguf", "Q5_K_M", "community"))

    assert found.basis == Basis.BOUND
    assert any("not known in full" in note for note in found.notes)
    # A log of this model and level: 17761.91 MiB on the device, and the embedding, 833.59 MiB, on the host.
    assert 1.0 <= found.tensor_bytes / (18595.5 * 1024**2) < 1.1


@pytest.mark.parametrize("name", [each.id for each in shipped().entries if any(one.sizes for one in each.variants)])
def test_counted_levels_are_the_sizes_that_sources_round_or_give_way_to_them(name: str) -> None:
    found = entry(name)
    for each in found.variants:
        for level, gib in each.sizes.items():
            counted = profile(name, f"{each.repo}:{level}")
            assert counted.basis == Basis.BOUND or abs(counted.tensor_bytes / 1024**3 / gib - 1) < 0.01, level
            assert gib * 0.99 - 0.06 < counted.tensor_bytes / 1024**3 < gib * 1.01 + 0.06, level
            assert sum(group.bytes for group in counted.groups) == pytest.approx(counted.tensor_bytes, rel=1e-6)
            in_layers = sum(layer.bytes for layer in counted.layer_details)
            assert in_layers < counted.tensor_bytes


def test_most_sizes_of_plain_architectures_confirm_the_count() -> None:
    confirmed = [
        (found.id, level)
        for found in shipped().entries
        for each in found.variants
        for level in each.sizes
        if profile(found.id, f"{each.repo}:{level}").basis == Basis.CONFIG
    ]

    assert len(confirmed) >= 25
    assert len({name for name, _ in confirmed}) >= 5


def test_variants_of_a_quantization_store_what_its_method_stores() -> None:
    base = profile("qwen3-8b", "bf16")

    assert base.tensor_bytes == 2 * base.parameters
    assert 0.5 < profile("qwen3-8b", "fp8-block").tensor_bytes / base.tensor_bytes < 0.6
    awq = profile("qwen3-8b", "awq")
    assert 0.3 < awq.tensor_bytes / base.tensor_bytes < 0.4
    assert awq.parameters == base.parameters
    assert awq.quantization == "awq"
    assert profile("qwen3-8b", "mlx-4bit").format == "mlx"
    assert profile("deepseek-v3.1", "nvfp4").quantization == "nvfp4"


def test_exceptions_that_nobody_published_make_an_upper_bound() -> None:
    found = profile("qwen3.6:27b", "Qwen/Qwen3.6-27B-FP8")

    assert found.basis == Basis.BOUND
    assert any("16 bit is not known" in note for note in found.notes)
    assert found.parameters < found.tensor_bytes < 2 * found.parameters


def test_a_model_is_found_by_all_names_that_people_type() -> None:
    for name in ("Qwen/Qwen3-8B", "qwen3-8b", "QWEN3-8B", "qwen3:8b", " qwen3:8b ", "Qwen/Qwen3-8B-AWQ"):
        assert entry(name).id == "Qwen/Qwen3-8B", name
    assert shipped().lookup("qwen3:9000b") is None
    assert shipped().nearest("qwen3-8bb") == "qwen3-8b"
    assert shipped().nearest("xyzzy") is None


def test_a_model_of_its_own_is_not_taken_for_anothers_variant() -> None:
    """Qwen/Qwen3-235B-A22B-Instruct-2507 and -235B-A22B are two entries; each is found by its own id."""
    for name in IDS:
        assert entry(name).id == name


def test_variants_are_named_by_repository_quantization_or_level() -> None:
    known, found = shipped(), entry("qwen3-8b")

    level = known.variant(found, "q4_k_m")
    assert level is not None
    assert (level.format, level.quantization) == ("gguf", "Q4_K_M")
    assert level.file == "" or "Q4_K_M" in level.file
    assert known.variant(found, f"{level.repo}:Q6_K").quantization == "Q6_K"
    assert known.variant(found, "qwen/qwen3-8b-fp8").quantization == "fp8-block"
    assert known.variant(found, "Q4_0") is None


def test_who_published_a_variant_is_told_by_its_owner() -> None:
    trust = {each.repo.partition("/")[0]: each.trust for each in shipped().variants(entry("qwen3.6:27b"))}

    assert trust["Qwen"] == "maker"
    assert trust["nvidia"] == "vendor"
    assert trust["unsloth"] == "community"


def test_a_repository_that_no_entry_names_is_trusted_as_its_owner_is() -> None:
    trust = {owner: shipped().trust(f"{owner}/New-1B") for owner in ("Qwen", "nvidia", "somebody")}

    assert trust == {"Qwen": "maker", "nvidia": "vendor", "somebody": "community"}


def test_the_daemon_does_not_load_it() -> None:
    check = "import sys, agent.daemon; sys.exit('agent.models.catalog' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", check], check=False, cwd=_ROOT).returncode == 0


# The operator's file

OWN = """
quantizations:
  house: {quantization_config: {quant_method: awq, bits: 4, group_size: 64, zero_point: false}}
models:
  - id: Qwen/Qwen3-8B
    aliases: ['house-8b']
    variants: [{repo: intern/qwen3-8b-house, quantization: house}]
  - id: intern/ours
    family: ours
    licence: proprietary
    task: completion
    context: 2048
    parameters: 86336
    config:
      {model_type: llama, architectures: [LlamaForCausalLM], hidden_size: 64, intermediate_size: 128,
       num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 96,
       max_position_embeddings: 2048}
    variants:
      - {repo: intern/ours, quantization: bf16}
      - {repo: intern/ours-GGUF, format: gguf, levels: [Q8_0], bytes: 99999}
    sources: [made here]
"""


def own(tmp_path: Path, text: str) -> Catalog:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return load(path)


def test_an_operators_file_changes_entries_and_adds_others(tmp_path: Path) -> None:
    known = own(tmp_path, OWN)

    assert len(known.entries) == len(shipped().entries) + 1
    changed = entry("house-8b", known)
    assert changed.id == "Qwen/Qwen3-8B"
    assert changed.config == entry("qwen3-8b").config  # what the file does not give stays
    assert [each.repo for each in changed.variants] == ["intern/qwen3-8b-house"]  # what it gives replaces the whole
    assert known.lookup("qwen3:8b") is None
    assert profile("house-8b", "house", known).quantization_config.group_size == 64
    added = profile("ours", "bf16", known)
    assert added.parameters == entry("ours", known).parameters
    assert shipped().lookup("ours") is None


def test_bytes_that_are_known_win_over_counted_ones(tmp_path: Path) -> None:
    found = profile("ours", "Q8_0", own(tmp_path, OWN))

    assert found.file_bytes == 99999
    assert found.tensor_bytes != 99999


def test_without_an_operators_file_it_is_what_ships(tmp_path: Path) -> None:
    assert load() is shipped()
    assert load(tmp_path / "nothing.yaml") is shipped()


WRONG = [
    ("models: [{id: Qwen/Qwen3-8B, context: 0}]", "models[Qwen/Qwen3-8B].context", "at least 1"),
    ("models: [{id: Qwen/Qwen3-8B, contxt: 7}]", "models[Qwen/Qwen3-8B].contxt", "did you mean 'context'?"),
    ("models: [{id: a/b}]", "models[a/b].family", "is required"),
    ("models: [{id: Qwen/Qwen3-8B, aliases: [Qwen3]}]", "models[Qwen/Qwen3-8B].aliases[0]", "lower-case"),
    ("models: [{id: Qwen/Qwen3-8B, aliases: ['qwen3:4b']}]", "models[Qwen/Qwen3-8B]", "'qwen3:4b' names"),
    ("models: [{id: 'no slash', context: 1}]", "models[no slash].id", "owner/name"),
    ("models: [7]", "models[None]", "mapping"),
    ("models: 7", "models", "must be a list"),
    ("quantizations: 7", "quantizations", "mapping"),
    ("vendors: x", "vendors", "must be a list"),
    ("model: []", "model", "did you mean 'models'?"),
    (
        "models: [{id: Qwen/Qwen3-8B, variants: [{repo: a/b, quantization: awqq}]}]",
        "models[Qwen/Qwen3-8B].variants[0].quantization",
        "did you mean 'awq'?",
    ),
    (
        "models: [{id: Qwen/Qwen3-8B, variants: [{repo: a/b, format: gguf, levels: [Q4_K_X]}]}]",
        "models[Qwen/Qwen3-8B].variants[0].levels[0]",
        "did you mean 'Q4_K_S'?",
    ),
    (
        "models: [{id: Qwen/Qwen3-8B, variants: [{repo: a/b, format: gguf, levels: [Q8_0], sizes: {Q6_K: 6.1}}]}]",
        "models[Qwen/Qwen3-8B].variants[0].sizes",
        "names Q6_K",
    ),
    (
        "models: [{id: Qwen/Qwen3-8B, variants: [{repo: a/b, format: gguf}]}]",
        "models[Qwen/Qwen3-8B].variants[0].levels",
        "must be given",
    ),
    (
        "models: [{id: Qwen/Qwen3-8B, variants: [{repo: a/b}]}]",
        "models[Qwen/Qwen3-8B].variants[0].quantization",
        "must be given",
    ),
    (
        "models: [{id: Qwen/Qwen3-8B, variants: [{repo: a/b, format: gguf, levels: [Q8_0, Q6_K], bytes: 9}]}]",
        "models[Qwen/Qwen3-8B].variants[0].bytes",
        "several levels",
    ),
]


@pytest.mark.parametrize(("text", "field", "rule"), WRONG, ids=[f"{field}: {rule}" for _, field, rule in WRONG])
def test_a_wrong_file_is_refused_with_the_models_id_and_the_rule(
    tmp_path: Path, text: str, field: str, rule: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        own(tmp_path, text)

    told = {violation.field: violation.rule for violation in refused.value.violations}
    assert field in told, told
    assert rule in told[field]
    assert "models.yaml" in refused.value.message


@pytest.mark.parametrize(
    ("text", "rule"),
    [("models: [", "line 1"), ("models: []\n---\nmodels: []", "one YAML document"), ("- 1", "must be a mapping")],
)
def test_a_file_that_is_no_yaml_of_ours_is_refused(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(InvalidArgument, match=rule):
        own(tmp_path, text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_bytes(b"\xff\xfe")

    with pytest.raises(InvalidArgument, match="must be UTF-8 text"):
        load(tmp_path / "models.yaml")
