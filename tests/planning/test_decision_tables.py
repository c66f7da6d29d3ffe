"""The tables by which practitioners choose an engine, a quantization and a card, met on machines that are described."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from agent.engines import ENGINES
from agent.engines.base import Hardware
from agent.engines.images import ImageRules, shipped
from agent.planning.ranking import QUANTIZATIONS, Generation
from agent.planning.request import Containers, DeviceState, Option
from agent.spec import Aim
from agent.status import DiagnosisCode
from tests.planning.machines import (
    AWQ,
    FP8,
    LLAMA_405B,
    LOCATED,
    MISTRAL_24B,
    ask,
    counted,
    made,
    published,
    refused,
    sentence,
)

QWEN_8B = "Qwen/Qwen3-8B"
QWEN_235B, QWEN_CODER = "Qwen/Qwen3-235B-A22B", "Qwen/Qwen3-Coder-480B-A35B-Instruct"
LLAMA_405 = "meta-llama/Llama-3.1-405B-Instruct"
LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.3-70B-Instruct"
QWEN_72B = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 8192, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064, "intermediate_size": 29568,
    "tie_word_embeddings": False, "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
}  # fmt: skip
SMALL_CARD = {"devices": [{"model": "rtx3060", "memory": "8GiB"}]}


@pytest.mark.parametrize(
    ("hardware", "workload", "engines"),
    [
        ("l40s", {"concurrency": 11}, {"vllm"}),
        ("rtx4080", {"concurrency": 32}, {"vllm"}),  # many users outweigh a small card
        ("l40s", {"aim": "throughput"}, {"vllm"}),
        ("l40s", {"aim": "long-context"}, {"vllm"}),
        ("h100-sxm", {"aim": "structured-output"}, {"sglang"}),
        ("h100-sxm", {"aim": "shared-prefixes"}, {"sglang"}),
        ("h100-sxm", {"aim": "latency"}, {"tensorrt-llm"}),
        ("rtx4090", {"aim": "development"}, {"ollama", "llama.cpp"}),
        ("h100-sxm", {"aim": "development"}, {"ollama", "llama.cpp"}),
        ("m3-max", {}, {"mlx-lm"}),
        ("m2", {"aim": "throughput"}, {"mlx-lm"}),
        ("h100-sxm", {}, {"vllm"}),
        ("rtx3060", {}, {"llama.cpp"}),
        ("mi300x", {}, {"vllm"}),
        ("v100-32", {}, {"llama.cpp"}),  # vLLM has no kernels for it
    ],
)
def test_the_engine_follows_hardware_and_aim(hardware: Any, workload: dict[str, Any], engines: set[str]) -> None:
    answer = made(ask(QWEN_8B, hardware, workload=workload))

    assert answer.engine in engines
    assert answer.devices


@pytest.mark.parametrize("workload", [{}, {"concurrency": 4}, {"aim": "throughput"}, {"aim": "structured-output"}])
def test_a_cpu_is_served_by_llama_cpp(workload: dict[str, Any]) -> None:
    answer = made(ask(QWEN_8B, "rtx4090", devices="cpu", workload=workload))

    assert (answer.engine, answer.variant.quantization) == ("llama.cpp", "Q4_K_M")


@pytest.mark.parametrize(
    ("hardware", "quantization"),
    [
        ("a100-80-sxm", "awq"),
        ("a6000", "awq"),
        ("l40s", "fp8"),
        ("h100-sxm", "fp8"),
        ("h200-sxm", "fp8"),
        ("b200", "nvfp4"),
        ("rtx5090", "nvfp4"),
        ("mi300x", "fp8"),
    ],
)
def test_weights_are_of_the_type_that_the_devices_compute(hardware: str, quantization: str) -> None:
    answer = made(ask(published(LLAMA_8B, formats=("safetensors",)), hardware, engine="vllm"))

    assert answer.variant.quantization == quantization


def test_ada_gets_awq_where_there_is_no_fp8() -> None:
    options = published(LLAMA_8B, "bf16", "awq", "gptq-int4", "w8a8")

    assert made(ask(options, "rtx4090", engine="vllm")).variant.quantization == "awq"


def test_gptq_is_taken_where_there_is_no_awq() -> None:
    options = published(LLAMA_8B, "bf16", "gptq-int4", "w8a8")

    assert made(ask(options, "a100-80-sxm", engine="vllm")).variant.quantization == "gptq"


def test_int8_does_not_run_on_blackwell_and_is_said_so() -> None:
    answer = refused(ask(published(LLAMA_8B, "w8a8"), "b200", engine="vllm"))

    assert "vllm does not run int8 weights on nvidia device 0 (NVIDIA B200)" in answer.diagnosis.message


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(("model", "quantization"), [(LLAMA_8B, "fp8"), ("openai/gpt-oss-20b", "mxfp4")])
def test_amd_devices_without_fp8_get_none_and_it_is_said_so(model: str, quantization: str, engine: str) -> None:
    known = published(model, formats=("safetensors",))
    options = [option for option in known if option.profile.quantization == quantization]
    message = refused(ask(options, "mi210", engine=engine)).diagnosis.message

    assert f"{engine} does not run {quantization} weights on amd device 0 (AMD Instinct MI210)" in message
    assert "of architecture gfx90a; it does on gfx94, gfx95" in message
    assert made(ask(options, "mi300x", engine=engine)).variant.quantization == quantization


@pytest.mark.parametrize(
    ("model", "hardware", "quantization"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", SMALL_CARD, "Q4_K_M"),
        ("mistralai/Mistral-7B-Instruct-v0.3", SMALL_CARD, "Q4_K_M"),
        ("Qwen/Qwen2.5-7B-Instruct", "rtx3060", "Q5_K_M"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "rtx3060", "Q5_K_M"),
        ("Qwen/Qwen2.5-14B-Instruct", "rtx3060", "Q4_K_M"),
        ("Qwen/Qwen2.5-14B-Instruct", "rtx4080", "Q4_K_M"),
        ("01-ai/Yi-1.5-34B-Chat", "rtx4090", "Q4_K_M"),
        ("Qwen/Qwen3-0.6B", "rtx3060", "Q8_0"),
    ],
)
def test_a_card_gets_the_level_of_gguf_that_leaves_room_for_context(
    model: str, hardware: Any, quantization: str
) -> None:
    answer = made(ask(published(model, formats=("gguf",)), hardware, engine="llama.cpp"))

    assert (answer.engine, answer.variant.quantization) == ("llama.cpp", quantization)
    assert sum(answer.placement.layers) > 0
    assert "all " in next(reason.sentence for reason in answer.reasons if reason.field == "layers")


def test_q4_0_is_not_taken_while_there_is_another_level() -> None:
    four, three = published(QWEN_8B, "IQ4_XS"), published(QWEN_8B, "Q3_K_M")
    plain = [_as(option, "Q4_0") for option in published(QWEN_8B, "Q4_K_M")]

    assert made(ask((*plain, *four), "rtx3060")).variant.quantization == "IQ4_XS"
    assert made(ask((*plain, *three), "rtx3060")).variant.quantization == "Q3_K_M"
    assert made(ask(plain, "rtx3060")).variant.quantization == "Q4_0"


def _as(option: Option, quantization: str) -> Option:
    return replace(option, profile=replace(option.profile, quantization=quantization))


def test_24b_awq_with_16k_of_context_fits_a_24_gib_card() -> None:
    answer = made(ask([counted(MISTRAL_24B | AWQ)], "rtx4090", limits={"max_model_len": 16384}))

    assert (answer.engine, answer.variant.quantization, len(answer.devices)) == ("vllm", "awq", 1)
    assert answer.capacity is not None
    assert answer.capacity.requests >= 1


@pytest.mark.parametrize(("hardware", "count"), [("a6000", 1), ("rtx3090:2", 2)])
def test_70b_awq_fits_one_card_of_48_gib_or_two_of_24(hardware: str, count: int) -> None:
    answer = made(ask(published(LLAMA_70B, "awq"), hardware))

    assert (answer.engine, len(answer.devices), answer.placement.tensor) == ("vllm", count, count)


def test_405b_in_fp8_takes_eight_cards_of_80_gib() -> None:
    answer = made(ask([counted(LLAMA_405B | FP8)], "h100-sxm:8"))

    assert (answer.engine, answer.variant.quantization) == ("vllm", "fp8")
    assert (len(answer.devices), answer.placement.tensor) == (8, 8)


def test_embeddings_leave_the_device_to_generation_unless_the_spec_names_it() -> None:
    model = "Qwen/Qwen3-Embedding-0.6B"

    assert made(ask(model, "l40s", task="embedding")).devices == ()
    answer = made(ask(model, "l40s", task="embedding", devices=["0"]))
    assert answer.devices == ("GPU-sim-0",)
    assert (answer.limits.gpu_memory_utilization or 1) < 0.5  # the rest is left to others


def test_embeddings_may_have_a_smaller_device_that_nobody_else_is_on() -> None:
    machine = {"devices": [{"model": "h100-sxm"}, {"model": "l4"}]}
    model = "Qwen/Qwen3-Embedding-0.6B"
    busy = {"GPU-sim-1": DeviceState(reserved=1 << 30)}

    assert made(ask(model, machine, task="embedding")).devices == ("GPU-sim-1",)
    assert made(ask(model, machine, task="embedding", states=busy)).devices == ()


def test_makers_come_before_vendors_and_those_before_the_community() -> None:
    (bf16,) = published(QWEN_8B, "bf16")
    options = [
        replace(bf16, source=f"hf:{trust}/x", trust=trust) for trust in ("community", "vendor", "maker", "vendor")
    ]
    answer = made(ask(options, "h100-sxm", engine="vllm"))

    assert answer.variant.source == "hf:maker/x"
    lower = [rejected for rejected in answer.rejected if rejected.code == "ranked-lower"]
    assert [rejected.sentence for rejected in lower] == [
        "ranked lower: a vendor's comes after the maker's",
        "ranked lower: a vendor's comes after the maker's",
        "ranked lower: the community's comes after the maker's",
    ]


def test_an_engine_that_is_preferred_and_does_not_fit_gives_way_with_its_numbers() -> None:
    answer = made(ask("01-ai/Yi-1.5-34B-Chat", "rtx4090"))

    assert (answer.engine, answer.variant.quantization) == ("llama.cpp", "Q4_K_M")
    (vllm,) = (each for each in answer.rejected if each.candidate.startswith("vllm with bf16"))
    assert vllm.code == "does-not-fit"
    assert vllm.sentence.startswith("does not fit by 40.")


def test_an_engine_for_other_hardware_is_taken_only_by_name() -> None:
    too_large = ask("zai-org/GLM-5", "l40s:2")  # of safetensors only, which MLX LM could compute on the CPU
    answer = refused(too_large)

    assert [each.sentence for each in answer.rejected if each.code == "hardware"] == [
        "mlx-lm is not for NVIDIA cards; `engine` in the spec can name it"
    ]
    assert "8 devices like" in answer.diagnosis.hint or "16 devices like" in answer.diagnosis.hint
    assert made(ask(published(QWEN_8B, "bf16"), "l40s", engine="mlx-lm")).engine == "mlx-lm"


def test_without_a_card_that_holds_it_layers_are_shared_with_the_cpu() -> None:
    answer = made(ask(published(LLAMA_70B, "Q4_K_M", "awq"), "rtx4090"))

    assert answer.engine == "llama.cpp"
    assert 0 < sum(answer.placement.layers) < 81


def test_a_machine_without_devices_is_a_cpu() -> None:
    request = ask(QWEN_8B, "rtx4090")
    answer = made(replace(request, inventory=replace(request.inventory, devices=())))

    assert (answer.engine, answer.variant.quantization, answer.devices) == ("llama.cpp", "Q4_K_M", ())


@pytest.mark.parametrize(
    ("engine", "image", "flags"),
    [
        ("vllm", "", ("--enable-expert-parallel",)),
        ("sglang", "", ("--ep-size", "8")),
        ("tensorrt-llm", "", ("--ep_size", "8")),
        ("nim", "nvcr.io/nim/qwen/qwen3-coder:1", ("--enable-expert-parallel",)),
    ],
)
def test_experts_whose_blocks_cannot_be_divided_are_whole_on_the_ranks(
    engine: str, image: str, flags: tuple[str, ...]
) -> None:
    """2560 wide in blocks of 128: eight slices would be 320 wide."""
    asked = ask(published(QWEN_CODER, "fp8-block"), "h100-sxm:8", engine=engine, image=image)
    answer = made(replace(asked, containers=Containers(shipped(), ImageRules(), "docker 28.2")))
    argv = ENGINES[engine].command(answer, "127.0.0.1", 8000).argv

    assert (answer.placement.tensor, answer.placement.pipeline, answer.placement.experts) == (8, 1, True)
    assert "whole experts, for 320 of the experts' width" in sentence(answer, "placement")
    assert any(argv[place : place + len(flags)] == flags for place in range(len(argv)))


def test_experts_that_can_be_divided_are_and_the_plan_says_why() -> None:
    answer = made(ask(published(QWEN_235B, "fp8-block"), "h100-sxm:8", engine="vllm"))
    argv = ENGINES["vllm"].command(answer, "127.0.0.1", 8000).argv

    assert (answer.placement.tensor, answer.placement.experts) == (4, False)
    assert "experts are sliced: whole ones would take as much" in sentence(answer, "placement")
    assert "--enable-expert-parallel" not in argv


def test_a_feed_forward_that_its_maker_padded_is_divided_and_one_that_is_not_padded_stays_whole() -> None:
    """29568 is 231 groups of 128; Qwen's own files have 29696, which are 232."""
    padded = made(ask(published("Qwen/Qwen2.5-72B-Instruct", "awq"), "rtx3090:2", engine="vllm"))
    bare = counted(QWEN_72B | AWQ)
    stages = made(ask([bare], "rtx3090:2", engine="vllm"))

    assert (padded.placement.tensor, padded.placement.pipeline) == (2, 1)
    assert (stages.placement.tensor, stages.placement.pipeline) == (1, 2)
    assert "no multiple of the quantization's 128" in sentence(stages, "placement")


def test_a_refusal_speaks_of_the_preferred_engine_with_the_variant_that_came_closest() -> None:
    answer = refused(ask(LLAMA_405, "rtx4090:2"))

    assert answer.diagnosis.message.startswith("vllm with awq (")


def test_a_refusal_speaks_of_another_engine_that_lacks_less_than_half() -> None:
    answer = refused(ask("deepseek-ai/DeepSeek-R1", "rtx4090"))

    assert answer.diagnosis.message.startswith("llama.cpp with Q2_K (")


def test_a_quantization_that_is_not_published_is_refused_with_those_that_are() -> None:
    answer = refused(ask(QWEN_8B, "rtx4090", quantization="q9"))

    assert answer.diagnosis.message == "no variant of the model is q9"
    assert "awq" in answer.diagnosis.hint
    assert "Q4_K_M" in answer.diagnosis.hint


def test_a_variant_that_the_engine_does_not_read_is_not_told_to_be_missing() -> None:
    answer = refused(ask(QWEN_8B, "rtx4090", engine="llama.cpp", quantization="awq"))

    assert answer.diagnosis.message.endswith("llama.cpp does not read safetensors files")
    assert "safetensors files are read by vllm" in answer.diagnosis.hint
    assert "gguf files" not in answer.diagnosis.hint


def test_an_engine_that_would_serve_but_for_the_policy_is_told_before_one_that_would_not() -> None:
    policy = {"engines": ["vllm"]}
    answer = refused(ask(published(QWEN_8B, "Q4_K_M"), "rtx4090", policy=policy))

    assert answer.diagnosis.code == DiagnosisCode.POLICY_DENIED
    assert answer.diagnosis.message == (
        "no engine can serve it: the node policy does not allow the engine llama.cpp, "
        "which can run here and reads gguf files"
    )
    assert "policy.engines" in answer.diagnosis.hint
    codes = {rejected.candidate: rejected.code for rejected in answer.rejected}
    assert (codes["vllm"], codes["llama.cpp"], codes["sglang"]) == ("format", "forbidden", "policy")


def test_an_engine_that_is_not_here_is_not_missed_because_of_the_policy() -> None:
    gguf, policy = published(QWEN_8B, "Q4_K_M"), {"engines": ["vllm"]}
    answer = refused(ask(gguf, "rtx4090", policy=policy, located={"vllm": LOCATED["vllm"]}))

    assert answer.diagnosis.message == "no engine can serve it: vllm does not read gguf files"


def test_a_device_that_does_not_exist_is_no_engines_fault() -> None:
    answer = refused(ask(QWEN_8B, "rtx4090", devices=["7"]))

    assert answer.diagnosis.message == "this node has no device 7"


def test_the_reference_has_the_tables_that_decide() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "planning.md").read_text()

    engines = [(name, suiting(name)) for name in (*get_args(Aim), *Hardware)]
    rows = [*engines[1:], *((k, v) for k, v in QUANTIZATIONS.items() if k != Generation.OTHER)]
    missing = [row for name, values in rows if (row := f"| {name} | {', '.join(values)} |") not in page]
    assert missing == []


def test_every_engine_has_a_place_on_hardware_that_it_runs_on() -> None:
    placed = {name for hardware in Hardware for name in suiting(hardware)}

    assert placed == set(ENGINES)


def test_no_two_engines_have_the_same_place() -> None:
    for name in (*get_args(Aim), *Hardware):
        places = [engine.capabilities.suits[name] for engine in ENGINES.values() if name in engine.capabilities.suits]
        assert len(places) == len(set(places)), name


def suiting(name: str) -> list[str]:
    """Engines that say so of a hardware or an aim, best first."""
    found = [engine for engine in ENGINES.values() if name in engine.capabilities.suits]
    return [engine.name for engine in sorted(found, key=lambda engine: engine.capabilities.suits[name])]
