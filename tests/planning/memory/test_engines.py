"""What holds for every engine, and what each does differently."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.planning.memory import ENGINES, estimate, llama_cpp, mlx
from agent.planning.memory.base import GIB, MIB, Card, Request, Verdict
from tests.planning.memory import models

PROFILES = {name: models.profile(config) for name, config in models.ALL.items()}
CARD = Card(int(79.18 * GIB), None, "NVIDIA H100 80GB HBM3", (9, 0))
REQUESTS = st.builds(
    Request,
    st.sampled_from(sorted(ENGINES)),
    st.integers(4, 192).map(lambda size: Card(size * GIB, capability=(9, 0))),
    version=st.sampled_from([(), (0, 8, 5), (0, 11, 0), (0, 21, 0), (0, 28, 0)]),
    tensor=st.sampled_from([1, 2, 3, 4, 8, 16]),
    pipeline=st.integers(1, 4),
    data=st.sampled_from([1, 2, 8]),
    expert=st.booleans(),
    utilization=st.sampled_from([None, 0.3, 0.9, 1.0]),
    max_model_len=st.sampled_from([0, 1, 2048, 131072, 1 << 24]),
    max_num_seqs=st.sampled_from([0, 1, 256, 4096]),
    max_num_batched_tokens=st.sampled_from([0, 512, 8192]),
    kv_dtype=st.sampled_from(["auto", "fp8"]),
    eager=st.booleans(),
    predictor=st.booleans(),
    legacy=st.booleans(),
    lora_slots=st.sampled_from([0, 4]),
)


@given(REQUESTS, st.sampled_from(sorted(PROFILES)))
def test_every_request_gets_terms_and_a_reason(request, name):
    found = estimate(PROFILES[name], request)
    assert all(term.bytes >= 0 and term.uncertainty >= 0 and term.source for term in found.terms)
    assert any(term.name.startswith("weights") for term in found.terms)
    assert found.reason
    assert found.needed >= 0
    assert (found.shortfall == 0) == (found.verdict == Verdict.FITS)
    assert (found.remedy == "") == (found.verdict == Verdict.FITS)


@given(REQUESTS, st.sampled_from(sorted(PROFILES)))
def test_the_same_request_gives_the_same_estimate(request, name):
    assert estimate(PROFILES[name], request) == estimate(PROFILES[name], request)


@given(REQUESTS, st.sampled_from(sorted(PROFILES)), st.integers(1, 64))
def test_with_limits_given_more_memory_never_makes_a_fitting_model_unfit(request, name, more):
    limits = {"max_model_len": 4096, "max_num_seqs": 16, "max_num_batched_tokens": 2048, "utilization": 0.9}
    request = replace(request, **limits)
    larger = replace(request, card=replace(request.card, total=request.card.total + more * GIB))
    if estimate(PROFILES[name], request).verdict == Verdict.FITS:
        assert estimate(PROFILES[name], larger).verdict == Verdict.FITS


@given(REQUESTS, st.sampled_from(sorted(PROFILES)))
def test_what_fits_is_within_what_is_free(request, name):
    found = estimate(PROFILES[name], request)
    if found.verdict == Verdict.FITS:
        assert sum(term.bytes for term in found.terms) + found.needed <= request.card.total


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_every_engine_serves_an_8b_model_on_an_80_gb_device(engine):
    found = estimate(PROFILES["llama"], Request(engine, CARD, max_model_len=8192, max_num_seqs=8))
    assert found.verdict == Verdict.FITS
    assert found.concurrency >= 1


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_no_engine_serves_a_671b_model_on_an_80_gb_device(engine):
    found = estimate(PROFILES["latent"], Request(engine, CARD, max_model_len=8192, max_num_seqs=8))
    assert found.verdict == Verdict.TOO_LARGE
    assert "weights alone" in found.reason or "nothing is left" in found.reason


def test_sglang_keeps_its_share_of_what_was_free_before_loading():
    """A run with --mem-fraction-static 0.93 on four H100s; its pool was 16.46 GiB."""
    fp8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    qwen = models.QWEN3_06B | {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 94,
        "hidden_size": 4096, "num_attention_heads": 64, "num_key_value_heads": 4, "intermediate_size": 12288,
        "moe_intermediate_size": 1536, "num_experts": 128, "num_experts_per_tok": 8, "tie_word_embeddings": False,
    } | fp8  # fmt: skip
    found = estimate(models.profile(qwen), Request("sglang", CARD, tensor=4, utilization=0.93, max_model_len=32768))
    assert found.pool.bytes / GIB == pytest.approx(16.46, rel=0.06)
    assert found.bytes_per_token == 48128


def test_sglang_with_attention_in_replicas_holds_it_on_every_rank():
    split = estimate(PROFILES["latent"], Request("sglang", CARD, tensor=8))
    replicated = estimate(PROFILES["latent"], Request("sglang", CARD, tensor=8, data=8, data_attention=True))
    assert replicated.term("weights").bytes > split.term("weights").bytes + 5 * GIB


def test_llama_cpp_allocates_every_cell_at_the_start():
    """As printed for a 27B hybrid: 16 layers of 2 x 1024 values, 200,192 cells in q8_0, took 6647 MiB."""
    request = llama_cpp.defaults(Request("llama.cpp", CARD, max_model_len=200192), PROFILES["llama"])
    cache, states = llama_cpp.cache_bytes(
        PROFILES["llama"], request.max_model_len, request.max_num_seqs, request.ubatch, "q8_0"
    )
    assert cache / MIB == pytest.approx(2 * 6647)  # 32 layers
    assert states == 0


def test_llama_cpps_windows_keep_a_window_and_a_batch():
    request = llama_cpp.defaults(Request("llama.cpp", CARD, max_model_len=131072), PROFILES["mxfp4"])
    cache, _ = llama_cpp.cache_bytes(
        PROFILES["mxfp4"], request.max_model_len, request.max_num_seqs, request.ubatch, "f16"
    )
    assert cache == 18 * (131072 + 768) * 2048


def test_llama_cpps_compute_buffer_has_logits_for_a_whole_batch():
    """A Qwen2 14B on ROCm printed 306.23 MiB at 2048 cells."""
    qwen = models.QWEN25_7B | {"num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40,
                               "num_key_value_heads": 8, "intermediate_size": 13824}  # fmt: skip
    found = estimate(models.profile(qwen), Request("llama.cpp", CARD, max_model_len=2048))
    assert found.term("compute").bytes / MIB == pytest.approx(306.23, rel=0.1)


def test_without_flash_attention_scores_of_all_heads_are_kept():
    fused, plain = (
        estimate(PROFILES["llama"], Request("llama.cpp", CARD, max_model_len=32768, flash=asked)).term("compute").bytes
        for asked in (True, False)
    )
    assert plain > 4 * fused


def test_ollama_leaves_a_reserve_on_each_device():
    ollama, plain = (
        estimate(PROFILES["llama"], Request(engine, Card(24 * GIB, 24 * GIB), max_model_len=4096))
        for engine in ("ollama", "llama.cpp")
    )
    assert plain.pool.bytes - ollama.pool.bytes == 457 * MIB


@pytest.mark.parametrize(("total", "wired"), [(24, 16), (36, 24), (64, 48), (128, 96)])
def test_mlx_may_wire_a_part_of_unified_memory(total, wired):
    assert mlx.working_set(total * GIB) == wired * GIB


def test_ctranslate2_converts_while_loading():
    stored, eight = (
        estimate(PROFILES["llama"], Request("ctranslate2", CARD, max_model_len=2048, quantization=asked))
        for asked in ("", "int8_float16")
    )
    assert eight.term("weights").bytes == pytest.approx(stored.term("weights").bytes / 2, rel=0.01)
