"""Questions about models of the catalog on machines that are described, for the tests of the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agent.engines import ENGINES
from agent.engines.base import Engine, Located
from agent.hardware.simulated import parse
from agent.models.catalog import shipped
from agent.models.huggingface import from_config
from agent.models.profile import ModelProfile
from agent.planning.plan import Plan
from agent.planning.planner import assumed, plan
from agent.planning.request import DeviceState, Option, PlanRequest, Refusal
from agent.settings import Policy
from agent.spec import parse_spec

LOCATED = assumed(ENGINES)
LLAMA_405B: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 126, "hidden_size": 16384,
    "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256, "intermediate_size": 53248,
    "tie_word_embeddings": False, "max_position_embeddings": 131072, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
}  # fmt: skip
MISTRAL_24B: dict[str, Any] = {
    "model_type": "mistral", "architectures": ["MistralForCausalLM"], "num_hidden_layers": 40, "hidden_size": 5120,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072,
    "intermediate_size": 32768, "tie_word_embeddings": False, "max_position_embeddings": 32768, "rope_theta": 1e8,
    "torch_dtype": "bfloat16",
}  # fmt: skip
AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}}
FP8 = {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}}


def published(model: str, *quantizations: str, formats: Sequence[str] = ()) -> tuple[Option, ...]:
    """The variants of a model in the catalog: all, or those with these quantizations and formats."""
    catalog = shipped()
    entry = catalog.lookup(model)
    assert entry is not None, model
    found = tuple(
        Option(catalog.profile(entry, each), f"hf:{each.repo}", trust=each.trust)
        for each in catalog.variants(entry)
        if (not quantizations or each.quantization in quantizations) and (not formats or each.format in formats)
    )
    assert found, (model, quantizations)
    return found


def counted(config: Mapping[str, Any], trust: str = "community") -> Option:
    """A model that the catalog does not have, counted from its configuration."""
    profile = from_config(dict(config))
    size = profile.tensor_bytes
    return Option(replace(profile, format="safetensors", file_bytes=size, task="chat"), "hf:somebody/it", trust=trust)


def ask(
    options: Sequence[Option] | str,
    hardware: str | Mapping[str, Any],
    *,
    states: Mapping[str, DeviceState] | None = None,
    policy: Mapping[str, Any] | None = None,
    engines: Mapping[str, Engine] = ENGINES,
    located: Mapping[str, Located] = LOCATED,
    **fields: Any,
) -> PlanRequest:
    machine = parse(hardware)
    used = {id: DeviceState(used=size) for id, size in machine.used.items()}
    return PlanRequest(
        spec=parse_spec({"name": "d", "model": "file:/m/m"} | fields),
        generation=1,
        options=published(options) if isinstance(options, str) else tuple(options),
        inventory=machine.inventory,
        policy=Policy.model_validate(dict(policy or {})),
        engines=engines,
        located=located,
        devices=used | dict(states or {}),
    )


def made(request: PlanRequest) -> Plan:
    answer = plan(request)
    assert isinstance(answer, Plan), answer
    return answer


def refused(request: PlanRequest) -> Refusal:
    answer = plan(request)
    assert isinstance(answer, Refusal), answer
    return answer


def profile_of(request: PlanRequest, answer: Plan) -> ModelProfile:
    """What the plan's variant is."""
    return next(
        option.profile
        for option in request.options
        if (option.source, option.profile.quantization) == (answer.variant.source, answer.variant.quantization)
    )


def sentence(answer: Plan, field: str) -> str:
    return next(reason.sentence for reason in answer.reasons if reason.field == field)
