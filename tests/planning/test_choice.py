"""The choice in single cases: limits that go together, devices, ranks, measurements, refusals and what would help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agent.engines import ENGINES
from agent.engines.base import Located
from agent.hardware.inventory import Link, Memory
from agent.models.profile import Basis
from agent.planning.ledger import Fixed, MeasuredTerm, Measurement
from agent.planning.plan import GIB, Plan
from agent.planning.planner import plan
from agent.planning.request import DeviceState, PlanRequest
from agent.status import DiagnosisCode
from tests.planning.machines import AWQ, FP8, LLAMA_405B, ask, counted, made, published, refused, sentence

QWEN_8B = "Qwen/Qwen3-8B"
AWQ_8B = published(QWEN_8B, "awq")
AWQ_70B = published("meta-llama/Llama-3.3-70B-Instruct", "awq")

SMALL_SHARE = {"limits": {"max_model_len": 40960, "gpu_memory_utilization": 0.52}}


def in_use(gib: float, **others: float) -> DeviceState:
    sizes = {name: int(size * GIB) for name, size in others.items()}
    return DeviceState(used=int(gib * GIB), **sizes)


# Limits that go together


def test_the_share_is_what_strangers_leave_and_the_context_follows() -> None:
    free, crowded = (
        made(ask(AWQ_8B, "rtx4090", states={"GPU-sim-0": state}, engine="vllm"))
        for state in (DeviceState(), in_use(14))
    )

    assert free.limits.gpu_memory_utilization == 0.92
    assert (free.limits.max_model_len, free.limits.max_num_seqs) == (40960, 200)
    assert crowded.limits.gpu_memory_utilization is not None
    assert 0.35 < crowded.limits.gpu_memory_utilization < 10 / 24
    assert 8192 <= crowded.limits.max_model_len < 40960
    assert crowded.limits.max_num_seqs < free.limits.max_num_seqs
    assert "14.0 GiB used by others" in sentence(crowded, "limits.gpu_memory_utilization")
    assert sentence(crowded, "limits.max_model_len").startswith("reduced from 40960 to fit: ")


def test_many_requests_of_no_stated_length_get_devices_that_hold_usual_ones() -> None:
    few, many = (
        made(ask(AWQ_70B, "a100-80-sxm:8", workload=workload, engine="vllm"))
        for workload in ({"concurrency": 2}, {"concurrency": 100})
    )
    assert few.capacity is not None
    assert many.capacity is not None
    assert len(few.devices) == 1
    assert len(many.devices) > 1
    assert many.capacity.kv_tokens >= 100 * 2048
    assert many.limits.max_num_seqs == 100


def test_a_workload_that_says_what_it_needs_leaves_the_rest_to_others() -> None:
    workload = {"concurrency": 4, "context_tokens": 8192}
    first = made(ask(AWQ_8B, "h100-sxm", workload=workload))
    assert first.capacity is not None
    assert first.limits.gpu_memory_utilization is not None
    assert first.limits.gpu_memory_utilization < 0.2
    assert 4 <= first.capacity.requests < 5
    assert "what the workload needs; the rest is left to others" in sentence(first, "limits.gpu_memory_utilization")

    taken = first.device_bytes["GPU-sim-0"]
    state = DeviceState(used=taken, reserved=taken, resident=taken)
    second = made(ask(AWQ_8B, "h100-sxm", states={"GPU-sim-0": state}, workload=workload))
    assert second.devices == ("GPU-sim-0",)
    assert second.limits.gpu_memory_utilization == first.limits.gpu_memory_utilization


def test_a_users_values_are_kept_and_their_cost_is_said_in_bytes() -> None:
    limits = {
        "gpu_memory_utilization": 0.5, "max_model_len": 16384, "max_num_seqs": 64, "kv_cache_dtype": "fp8",
    }  # fmt: skip
    answer = made(ask(AWQ_8B, "l40s", limits=limits))

    assert {name: getattr(answer.limits, name) for name in limits} == limits
    assert sentence(answer, "limits.max_model_len") == (
        "the spec says so; one request of that length takes 1.12 GiB of cache on each device"
    )
    assert "a token takes 72 KiB of cache" in sentence(answer, "limits.kv_cache_dtype")
    assert "GiB of each device, of which the cache has" in sentence(answer, "limits.gpu_memory_utilization")


def test_policy_bounds_the_share_of_all_deployments_together() -> None:
    half = {"limits": {"gpu_memory_utilization": {"max": 0.5}}}
    state = DeviceState(used=20 * GIB, reserved=20 * GIB, resident=20 * GIB)
    answer = made(ask(AWQ_8B, "a100-80-sxm", policy=half, states={"GPU-sim-0": state}))

    assert answer.device_bytes["GPU-sim-0"] + 20 * GIB <= 40 * GIB


def test_a_budget_names_what_is_taken_on_top_of_the_share() -> None:
    answer = made(ask(AWQ_8B, "rtx4090", engine="vllm"))
    (_, budget) = answer.budgets
    terms = {term.name: term.bytes for term in budget.terms}

    assert budget.claimed == budget.bytes
    assert {"weights", "KV cache", "activation peak", "context"} <= terms.keys()
    assert budget.bytes > (answer.limits.gpu_memory_utilization or 0) * 0.98 * 24 * GIB
    assert answer.capacity is not None
    assert answer.capacity.kv_bytes == terms["KV cache"]


def test_sequences_that_could_only_wait_are_not_promised() -> None:
    answer = made(ask(AWQ_70B, "a6000"))
    assert answer.capacity is not None

    assert answer.limits.max_num_seqs * 512 <= answer.capacity.kv_tokens


# Devices and ranks


def test_the_fewest_devices_are_taken_and_those_of_one_island() -> None:
    machine = {"devices": [{"model": "a100-40-pcie", "count": 4}], "topology": {"nvlink": [[1, 3]]}}
    answer = made(ask(published("Qwen/Qwen3-32B", "bf16"), machine))

    assert answer.devices == ("GPU-sim-1", "GPU-sim-3")
    assert answer.placement.tensor == 2
    assert "of one island" in sentence(answer, "devices")


def test_devices_below_one_pcie_switch_are_joined_better_than_others() -> None:
    request = ask(published("Qwen/Qwen3-32B", "bf16"), "a100-40-pcie:4")
    near = {frozenset(("GPU-sim-2", "GPU-sim-3")): "pix"}
    links = tuple(
        Link(link.a, link.b, near.get(frozenset((link.a, link.b)), "phb")) for link in request.inventory.links
    )

    assert made(replace(request, inventory=replace(request.inventory, links=links))).devices == (
        "GPU-sim-2",
        "GPU-sim-3",
    )


def test_islands_become_stages() -> None:
    """Ranks of a layer talk much: not over the slow links between islands."""
    machine = {
        "devices": [{"model": "a100-40-sxm", "count": 8}],
        "topology": {"nvlink": [[0, 1, 2, 3], [4, 5, 6, 7]]},
    }
    answer = made(ask([counted(LLAMA_405B | AWQ)], machine, engine="vllm"))

    assert (answer.placement.tensor, answer.placement.pipeline) == (4, 2)
    assert "each stage has some of the layers" in sentence(answer, "placement")


def test_heads_that_do_not_divide_make_stages() -> None:
    """phi-4 has 10 KV heads: 4 ranks cannot share them."""
    answer = made(ask(published("microsoft/phi-4", "bf16"), "rtx3060:4", limits={"max_model_len": 16384}))

    assert (answer.placement.tensor, answer.placement.pipeline) == (2, 2)
    assert "10 KV heads neither divide by 4 nor do they divide it" in sentence(answer, "placement")


@pytest.mark.parametrize("hardware", ["a6000", "rtx3090:2"])
def test_more_requests_than_the_cache_holds_at_once_wait_and_refuse_nothing(hardware: str) -> None:
    """200 at a time, of a length that nobody says: there is room for some of them, which is enough to start."""
    answer = made(ask(AWQ_8B, hardware, workload={"concurrency": 200}))

    assert answer.limits.max_num_seqs == 200
    assert answer.capacity is not None
    assert answer.capacity.assured


def test_of_devices_with_uneven_memory_the_least_that_is_enough_is_taken() -> None:
    """A search by halves finds what looking at each would."""
    used = [20, 3, 17, 9, 14, 6, 19, 12]
    limits = {"max_model_len": 8192, "max_num_seqs": 8}
    answers = [
        plan(ask(AWQ_8B, "rtx4090", engine="vllm", limits=limits, states={"GPU-sim-0": in_use(size)})) for size in used
    ]
    enough = [size for size, one in zip(used, answers, strict=True) if isinstance(one, Plan)]
    states = {f"GPU-sim-{number}": in_use(size) for number, size in enumerate(used)}
    answer = made(ask(AWQ_8B, "rtx4090:8", engine="vllm", limits=limits, states=states))

    assert min(used) < max(enough) < max(used)
    assert answer.devices == (f"GPU-sim-{used.index(max(enough))}",)


@pytest.mark.parametrize(
    ("engine", "tensor", "experts"), [("vllm", 8, True), ("tensorrt-llm", 8, True), ("tgi", 4, False)]
)
def test_blocks_of_a_quantization_stay_whole_on_a_rank(engine: str, tensor: int, experts: bool) -> None:
    """Experts 1536 wide in blocks of 128: 8 ranks would cut blocks, unless each has whole experts."""
    options = published("Qwen/Qwen3-235B-A22B", "fp8-block")
    workload = {"concurrency": 64, "context_tokens": 32768}
    answer = made(ask(options, "h100-sxm:8", workload=workload, engine=engine))

    assert (answer.placement.tensor, answer.placement.experts) == (tensor, experts)


def test_replicas_serve_what_ranks_cannot_divide() -> None:
    """9 heads divide by no number of cards here, and one card does not hold all requests."""
    options = published("HuggingFaceTB/SmolLM2-135M-Instruct", "bf16")
    workload = {"concurrency": 100, "context_tokens": 8192}
    answer = made(ask(options, "rtx4080:2", workload=workload, engine="vllm"))

    assert (answer.placement.tensor, answer.placement.pipeline, answer.placement.data) == (1, 1, 2)
    assert answer.capacity is not None
    assert answer.capacity.requests >= 100


def test_devices_of_two_kinds_are_not_mixed() -> None:
    machine = {"devices": [{"model": "rtx3090"}, {"model": "rtx4090"}]}
    answer = refused(ask(AWQ_70B, machine, engine="vllm"))

    assert answer.diagnosis.code == DiagnosisCode.DOES_NOT_FIT


def test_slices_stand_alone_and_quarantined_devices_are_left_out() -> None:
    machine = {"devices": [{"model": "h100-sxm", "mig": [{"profile": "3g.40gb", "count": 2}]}]}
    gone = {"MIG-sim-0-0": DeviceState(unavailable="quarantined: XID 79")}

    assert made(ask(AWQ_8B, machine, states=gone)).devices == ("MIG-sim-0-1",)
    assert refused(ask(published("Qwen/Qwen3-32B", "bf16"), machine, engine="vllm")).diagnosis.hint


def test_named_devices_are_all_used_in_their_order() -> None:
    answer = made(ask(AWQ_70B, "h100-sxm:4", devices=["2", "1"]))

    assert answer.devices == ("GPU-sim-2", "GPU-sim-1")
    assert answer.placement.tensor == 2


def test_cpus_near_the_devices_are_named() -> None:
    answer = made(ask(AWQ_8B, "h100-sxm:8", devices=["7"]))

    assert sentence(answer, "numa_node").startswith("near the devices: CPUs 32-63,96-127 and 512.0 GiB of memory")


def test_vllm_on_a_cpu_gets_a_cache_of_the_size_that_the_plan_says() -> None:
    request = ask(published("Qwen/Qwen3-0.6B", "bf16"), "rtx4090", devices="cpu", engine="vllm")
    answer = made(request)
    assert answer.capacity is not None

    argv = ENGINES["vllm"].command(answer, "127.0.0.1", 8100).argv
    assert argv[argv.index("--kv-cache-memory-bytes") + 1] == str(answer.capacity.kv_bytes)
    assert answer.limits.gpu_memory_utilization is None
    assert [budget.pool for budget in answer.budgets] == ["host"]


def test_memory_that_a_device_shares_with_the_host_is_counted_once_for_both() -> None:
    answer = made(ask(AWQ_8B, "gb10", engine="vllm"))

    assert answer.budgets[1].unified
    assert answer.host_bytes > answer.device_bytes["GPU-sim-0"]


# Hard rules


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda p: replace(p, quantization="mlx-w4a16", quantization_config=None), "quantization", "does not run"),
        (lambda p: replace(p, format="onnx"), "format", "does not read onnx"),
        (lambda p: replace(p, basis=Basis.BOUND, remote_code=True), "remote-code", "--trust-remote-code"),
    ],
)
def test_weights_that_an_engine_cannot_load_are_no_candidates(
    change: Callable[..., Any], code: str, words: str
) -> None:
    (option,) = AWQ_8B
    answer = refused(ask([replace(option, profile=change(option.profile))], "l40s", engine="vllm"))

    assert [rejected.code for rejected in answer.rejected] == [code]
    assert words in answer.diagnosis.message


def test_remote_code_runs_where_the_spec_asks_for_it_and_the_policy_names_the_model() -> None:
    (option,) = AWQ_8B
    unknown = replace(option, profile=replace(option.profile, basis=Basis.BOUND, remote_code=True))

    asked = {"engine": "vllm", "extra_args": ["--trust-remote-code"]}
    for named in ("qwen/qwen3-8b-awq", "Qwen/Qwen3-8B-AWQ", unknown.source):
        answer = made(ask([unknown], "l40s", policy={"trust_remote_code": [named]}, **asked))
        assert answer.extra_args == ("--trust-remote-code",)
    for named in ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-AWQ@abc123", "file:/m/m"):
        refusal = refused(ask([unknown], "l40s", policy={"trust_remote_code": [named]}, **asked))
        assert "policy.trust_remote_code does not name" in refusal.diagnosis.message


def test_arguments_choose_the_engine_that_they_suit() -> None:
    answer = made(ask(QWEN_8B, "l40s", extra_args=["--enable-torch-compile"]))

    assert answer.engine == "sglang"
    assert {"arguments"} == {
        rejected.code for rejected in answer.rejected if rejected.candidate.startswith("vllm with fp8")
    }


def test_an_engine_that_is_not_here_is_no_candidate_and_is_not_even_imported() -> None:
    only = {"llama.cpp": Located(("/usr/bin/llama-server",), "b1", "path", frozenset({"cpu", "cuda"}))}
    answer = made(ask(QWEN_8B, "l40s", located=only))

    assert answer.engine == "llama.cpp"
    missing = {rejected.candidate: rejected.code for rejected in answer.rejected}
    assert missing["vllm"] == "not-found"


# Measurements


def test_measured_terms_of_an_engine_of_ranks_replace_formulas_and_the_cache_gets_the_difference() -> None:
    request = ask(AWQ_8B, "l40s", engine="vllm")
    before = made(request)
    (option,) = request.options
    profile = option.profile
    fixed = Fixed("", profile.file_bytes, profile.architecture, profile.quantization, "vllm", "", "chat", (), "x86_64")
    formula = next(term.bytes for term in before.budgets[1].terms if term.name == "weights")
    row = Measurement(
        "i", "n", "h", imported=False, at=0.0, model="m",
        key=fixed.key(before.limits, before.placement, ["NVIDIA L40S"]),
        terms=(MeasuredTerm("0", "weights", formula - GIB),),
    )  # fmt: skip
    after = made(replace(request, measurements=(row,)))

    (weights,) = (term for term in after.budgets[1].terms if term.name == "weights")
    assert weights.source.startswith("measured on this node")
    assert weights.formula == formula
    assert before.capacity is not None
    assert after.capacity is not None
    assert 0.9 * GIB < after.capacity.kv_bytes - before.capacity.kv_bytes < 1.1 * GIB


# Refusals


@pytest.mark.parametrize("used", [7.5, 8.5])
def test_a_place_that_smaller_limits_would_bring_within_the_uncertainty_is_not_hopeless(used: float) -> None:
    """The weights of an unknown architecture are a bound, give or take a tenth: less is missing than that."""
    novel = LLAMA_405B | {
        "model_type": "novel", "architectures": ["NovelForCausalLM"], "num_hidden_layers": 64, "hidden_size": 5120,
        "num_attention_heads": 40, "intermediate_size": 14336,
    }  # fmt: skip

    answer = made(
        ask([counted(novel)], {"devices": [{"model": "h100-sxm", "memory_used": int(used * GIB)}]}, engine="tgi")
    )

    assert answer.capacity is not None
    assert not answer.capacity.assured
    assert "give or take" in answer.capacity.doubt


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm", "tgi"])
def test_weights_beyond_the_share_that_is_asked_for_are_refused_by_every_engine(engine: str) -> None:
    share = {"gpu_memory_utilization": 0.3}  # 13.3 GiB, for weights of 15.3

    answer = refused(ask(published(QWEN_8B, "bf16"), "l40s", engine=engine, limits=share))

    assert answer.diagnosis.message.startswith("does not fit by ")
    assert "gpu_memory_utilization " in answer.diagnosis.hint


def test_a_limit_that_could_not_be_is_told_before_what_does_not_fit() -> None:
    policy = {"limits": {"max_model_len": {"max": 2048}}}

    answer = refused(
        ask(published(QWEN_8B, "bf16"), "rtx3060", engine="vllm", policy=policy, limits={"max_model_len": 4096})
    )

    assert answer.diagnosis.message == "limits.max_model_len is 4096; the node policy allows at most 2048"


def test_what_does_not_fit_is_said_by_how_much_and_with_how_many_devices_it_would() -> None:
    answer = refused(ask(AWQ_70B, "rtx4090", engine="vllm"))

    assert answer.diagnosis.message.startswith("does not fit by 13.")
    assert "on nvidia device 0 (NVIDIA GeForce RTX 4090) 24.0 GiB is free of 24.0 GiB" in answer.diagnosis.message
    assert "2 devices like nvidia device 0 (NVIDIA GeForce RTX 4090): vllm with awq" in answer.diagnosis.hint


@pytest.mark.parametrize(
    ("options", "hardware", "fields", "words"),
    [
        ("Qwen/Qwen3-32B", "rtx4090", {"limits": {"max_model_len": 40960}, "engine": "vllm"}, "max_model_len "),
        ("Qwen/Qwen3-32B", "rtx4090", {"quantization": "bf16", "engine": "vllm"}, "quantization awq"),
        (QWEN_8B, "rtx4090", {"limits": {"gpu_memory_utilization": 0.2}, "engine": "vllm"}, "gpu_memory_utilization "),
        ("Qwen/Qwen3-32B", "rtx4090:2", {"devices": ["0"], "quantization": "fp8", "engine": "vllm"}, "devices auto"),
        (
            QWEN_8B,
            "a100-40-pcie",
            {
                "quantization": "bf16",
                "engine": "vllm",
                "limits": {"max_model_len": 40960, "gpu_memory_utilization": 0.52},
            },
            "kv_cache_dtype fp8",
        ),
        (
            QWEN_8B,
            {"devices": [{"model": "rtx4090", "memory_used": "19GiB"}]},
            {"quantization": "awq", "engine": "vllm"},
            "without the 19.0 GiB that others than the agent use on GPU-sim-0",
        ),
        (QWEN_8B, "rtx4090", {"limits": {"memory_bytes": "100MiB"}, "engine": "vllm"}, "limits.memory_bytes "),
        ("Qwen/Qwen3-Embedding-4B", "l40s", {"task": "embedding", "engine": "sglang"}, "devices [GPU-sim-0]"),
    ],
)
def test_a_refusal_says_what_would_make_it_fit_and_it_does(
    options: str, hardware: Any, fields: dict[str, Any], words: str
) -> None:
    answer = refused(ask(options, hardware, **fields))

    assert words in answer.diagnosis.hint
    if words == "max_model_len ":
        length = int(answer.diagnosis.hint.split("max_model_len ")[1].split(";")[0])
        made(ask(options, hardware, **(fields | {"limits": {"max_model_len": length}})))


def test_a_users_share_beyond_what_is_free_is_refused_with_the_numbers() -> None:
    request = ask(
        AWQ_8B, "rtx4090", engine="vllm", limits={"gpu_memory_utilization": 0.9}, states={"GPU-sim-0": in_use(10)}
    )
    answer = refused(request)

    assert "14.0 GiB is free of 24.0 GiB" in answer.diagnosis.message
    assert "gpu_memory_utilization 0.5" in answer.diagnosis.hint


def test_every_variant_that_was_tried_is_in_the_refusal() -> None:
    answer = refused(ask("meta-llama/Llama-3.1-405B-Instruct", "rtx4090"))
    told = {rejected.candidate for rejected in answer.rejected if rejected.code == "does-not-fit"}

    assert {"vllm with awq (hf:hugging-quants/Meta-Llama-3.1-405B-Instruct-AWQ-INT4)"} <= told
    assert answer.diagnosis.hint


def test_a_host_without_room_for_the_processes_is_said() -> None:
    request = ask([counted(LLAMA_405B | FP8)], "h100-sxm:8")
    small = replace(request, inventory=replace(request.inventory, memory=Memory(8 * GIB, 8 * GIB)))

    answer = refused(small)
    assert "GiB of host memory for its processes; 7.00 GiB is free of 8.00 GiB" in answer.diagnosis.message


def test_what_is_only_perhaps_enough_is_taken_when_nothing_else_is_and_says_so() -> None:
    """Between the least and the most that the terms may be, a longest request fits or does not."""

    def asked(length: int) -> PlanRequest:
        return ask(AWQ_70B, "a6000", engine="vllm", limits={"max_model_len": length, "max_num_seqs": 4})

    lengths = range(12_000, 26_000, 250)
    answers = [answer for length in lengths if isinstance(answer := plan(asked(length)), Plan)]
    held = [answer.capacity for answer in answers if answer.capacity is not None]
    doubtful = [each for each in held if not each.assured]

    assert held[0].assured
    assert doubtful
    assert all("give or take" in each.doubt for each in doubtful)
    assert [each.assured for each in held] == sorted((each.assured for each in held), reverse=True)


def test_what_takes_memory_of_the_cache_makes_its_size_doubtful() -> None:
    policy = {"extra_args": ["*"]}
    plain = made(ask(AWQ_8B, "l40s", engine="vllm"))
    lora = made(ask(AWQ_8B, "l40s", engine="vllm", policy=policy, extra_args=["--enable-lora", "--max-loras", "2"]))
    assert plain.capacity is not None
    assert plain.capacity.assured
    assert lora.capacity is not None
    assert not lora.capacity.assured
    assert "extra_args ask for what takes memory of the cache" in lora.capacity.doubt
