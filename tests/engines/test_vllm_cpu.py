"""vLLM on a CPU: the pool of the estimate, and the plan that carries it to the command."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.engines.base import Located
from agent.engines.vllm import VLLM
from agent.hardware import host
from agent.models.huggingface import from_config
from agent.models.profile import ModelProfile
from agent.planning.memory import vllm_cpu
from agent.planning.memory.base import GIB, Card, Request, Verdict
from agent.planning.plan import Limits, Placement, Plan
from agent.planning.planner import Refusal, plan
from agent.planning.request import Option, PlanRequest
from agent.settings import Policy
from agent.spec import parse_spec
from agent.status import DiagnosisCode

ENGINE = VLLM()
HOST = Card(256 * GIB, 200 * GIB, vendor="cpu")
ON_CPU = Placement("cpu")
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 1024,
    "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 4,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16", "hidden_act": "silu", "rms_norm_eps": 1e-6,
}  # fmt: skip
#: 2 x layers x KV heads x head length x bytes.
TOKEN = 2 * 4 * 4 * 64 * 2


@pytest.fixture
def profile() -> ModelProfile:
    return replace(from_config(LLAMA), format="safetensors", path="/models/llama")


def limits(length: int = 4096, seqs: int = 8, share: float | None = None) -> Limits:
    return Limits(seqs, length, "auto", 2048, 2, share)


def test_the_pool_is_whole_blocks_for_all_sequences(profile: ModelProfile) -> None:
    found = ENGINE.estimate(profile, limits(4000, 8), "chat", ON_CPU, HOST)

    blocks = 8 * 32  # of 128 tokens: 4000 tokens fill 32 of them
    assert found.pool is not None
    assert found.pool.bytes == blocks * 128 * TOKEN
    assert (found.tokens, found.concurrency, found.verdict) == (8 * 4000, 8.0, Verdict.FITS)


def test_many_sequences_share_a_pool_of_bounded_size(profile: ModelProfile) -> None:
    found = ENGINE.estimate(profile, limits(8192, 256), "chat", ON_CPU, HOST)

    assert found.pool is not None
    assert vllm_cpu.POOL - 128 * TOKEN < found.pool.bytes <= vllm_cpu.POOL


def test_a_share_of_the_host_that_somebody_asks_for_is_given(profile: ModelProfile) -> None:
    found = ENGINE.estimate(profile, limits(8192, 256, share=0.5), "chat", ON_CPU, HOST)

    assert found.pool is not None
    total = found.pool.bytes + sum(term.bytes for term in found.terms)
    assert 128 * GIB - 128 * TOKEN < total <= 128 * GIB


@pytest.mark.parametrize("free", [0, 1, 2, 3, 4, 6, 9])
def test_what_is_estimated_with_the_processes_never_exceeds_what_is_free(profile: ModelProfile, free: int) -> None:
    found = ENGINE.estimate(profile, limits(8192, 64), "chat", ON_CPU, replace(HOST, free=free * GIB))
    terms = (*found.terms, *ENGINE.host_terms(profile, ON_CPU))
    assert found.pool is not None
    whole = found.pool.bytes + sum(term.bytes + term.uncertainty for term in terms)

    assert found.verdict is Verdict.TOO_LARGE or whole <= free * GIB
    assert found.shortfall > 0 or found.verdict is Verdict.FITS


def test_latent_attention_is_computed_in_blocks_of_16_and_whole_prompts(profile: ModelProfile) -> None:
    latent = {
        **LLAMA, "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "kv_lora_rank": 512,
        "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": None, "n_shared_experts": None, "moe_intermediate_size": 128,
        "num_experts_per_tok": None, "first_k_dense_replace": 4,
    }  # fmt: skip
    asked = vllm_cpu.defaults(from_config(latent), Request("vllm", HOST, max_model_len=6000))

    assert (asked.block, asked.max_num_batched_tokens, asked.prefix_caching) == (16, 6000, False)
    plain = vllm_cpu.defaults(profile, Request("vllm", HOST, max_model_len=6000))
    assert (plain.block, plain.max_num_batched_tokens, plain.prefix_caching) == (128, 2048, True)


def planned(
    profile: ModelProfile, accelerators: frozenset[str] = frozenset({"cpu"}), **fields: object
) -> Plan | Refusal:
    inventory = host.inventory()
    return plan(
        PlanRequest(
            spec=parse_spec({"name": "d", "model": "file:/models/llama", "engine": "vllm"} | fields),
            generation=1,
            options=(Option(profile, "file:/models/llama"),),
            inventory=replace(
                inventory, memory=replace(inventory.memory, total=16 * GIB, available=12 * GIB), devices=()
            ),
            policy=Policy(),
            engines={"vllm": ENGINE},
            located={"vllm": Located(("/usr/bin/vllm",), "0.32.0+cpu", "path", accelerators)},
        )
    )


def test_the_plans_pool_reaches_the_command(profile: ModelProfile) -> None:
    made = planned(profile, limits={"max_model_len": 4096, "max_num_seqs": 3})

    assert isinstance(made, Plan), made
    assert made.capacity is not None
    assert (made.capacity.kv_bytes, made.capacity.kv_tokens) == (3 * 4096 * TOKEN, 3 * 4096)
    argv = ENGINE.command(made, "127.0.0.1", 1).argv
    assert argv[argv.index("--kv-cache-memory-bytes") + 1] == str(made.capacity.kv_bytes)
    assert (made.devices, made.placement.accelerator) == ((), "cpu")
    assert {"weights", "activation peak", "process", "KV cache"} <= {term.name for term in made.budgets[0].terms}


def test_a_default_context_becomes_shorter_until_it_fits_and_one_that_is_asked_for_does_not(
    profile: ModelProfile,
) -> None:
    wide = replace(from_config({**LLAMA, "num_hidden_layers": 32, "num_key_value_heads": 16,
                                "max_position_embeddings": 32768}), format="safetensors")  # fmt: skip
    memory = {"memory_bytes": 6 * GIB}

    made, refused = planned(wide, limits=memory), planned(wide, limits=memory | {"max_model_len": 32768})

    assert isinstance(made, Plan), made
    assert 1024 <= made.limits.max_model_len < 32768
    assert "reduced from 32768 to fit" in next(r for r in made.reasons if r.field == "limits.max_model_len").sentence
    assert made.host_bytes <= 6 * GIB
    assert isinstance(refused, Refusal)
    assert refused.diagnosis.code is DiagnosisCode.DOES_NOT_FIT
    assert "one request of 32768 tokens" in refused.diagnosis.message


def test_a_build_for_devices_does_not_run_on_the_cpu(profile: ModelProfile) -> None:
    refused = planned(profile, frozenset({"cuda"}), devices="cpu")

    assert isinstance(refused, Refusal)
    assert "not for the CPU" in refused.diagnosis.message
