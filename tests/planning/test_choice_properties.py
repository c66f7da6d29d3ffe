"""The choice as properties, over random machines, models of the catalog, policies and specs, with all engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engines import ENGINES
from agent.hardware.inventory import Memory
from agent.planning.amounts import free_memory
from agent.planning.limits import POOLING_TASKS
from agent.planning.plan import GIB, Plan
from agent.planning.planner import plan
from agent.planning.request import DeviceState, PlanRequest, Refusal
from tests.planning.machines import ask, profile_of, published

MODELS = (
    "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "meta-llama/Llama-3.3-70B-Instruct", "Qwen/Qwen3-30B-A3B",
    "google/gemma-3-27b-it", "Qwen/Qwen3.5-27B", "openai/gpt-oss-120b", "deepseek-ai/DeepSeek-R1",
    "Qwen/Qwen3-Embedding-0.6B",
)  # fmt: skip
OPTIONS = {model: published(model) for model in MODELS}
CARDS = ("rtx3060", "rtx4090", "a100-80-sxm", "l40s", "h100-sxm", "b200", "mi300x", "t4", "m3-max", "gb10")

machines = st.one_of(
    st.builds(
        lambda card, count, used: {"devices": [{"model": card, "count": count, "memory_used": used * GIB}]},
        st.sampled_from(CARDS[:-2]), st.sampled_from([1, 1, 2, 3, 4, 8]), st.integers(0, 8),
    ),
    st.builds(lambda card: {"devices": [{"model": card}]}, st.sampled_from(CARDS[-2:])),
    st.builds(
        lambda one, other: {"devices": [{"model": one, "count": 2}, {"model": other}]},
        st.sampled_from(CARDS[:2]), st.sampled_from(CARDS[2:6]),
    ),
    st.just({"devices": [{"model": "h100-sxm", "mig": [{"profile": "3g.40gb", "count": 2}]}]}),
)  # fmt: skip
states = st.builds(
    lambda used, reserved, part, gone: DeviceState(
        unavailable="quarantined: XID 79" if gone else "",
        used=used * GIB + int(reserved * part) * GIB,
        reserved=reserved * GIB,
        resident=int(reserved * part) * GIB,
    ),
    st.integers(0, 30), st.integers(0, 30), st.floats(0, 1), st.sampled_from([False, False, False, True]),
)  # fmt: skip
limits = st.fixed_dictionaries(
    {},
    optional={
        "max_num_seqs": st.integers(1, 300),
        "max_model_len": st.integers(16, 40960),
        "gpu_memory_utilization": st.sampled_from([0.2, 0.5, 0.8, 0.95]),
        "kv_cache_dtype": st.sampled_from(["fp8", "q8_0"]),
    },
)
workloads = st.fixed_dictionaries(
    {},
    optional={
        "concurrency": st.integers(1, 200),
        "context_tokens": st.integers(16, 100_000),
        "aim": st.sampled_from(["auto", "throughput", "latency", "structured-output", "development"]),
    },
)
bounds = st.builds(lambda most: {"max": most}, st.integers(16, 200_000))
policies = st.fixed_dictionaries(
    {},
    optional={
        "limits": st.fixed_dictionaries(
            {},
            optional={
                "max_num_seqs": bounds,
                "max_model_len": bounds,
                "gpu_memory_utilization": st.builds(lambda most: {"max": most}, st.floats(0.3, 1)),
            },
        ),
        "engines": st.lists(st.sampled_from(list(ENGINES)), min_size=1, unique=True),
    },
)


@st.composite
def requests(draw: st.DrawFn) -> PlanRequest:
    model = draw(st.sampled_from(MODELS))
    options = draw(st.lists(st.sampled_from(OPTIONS[model]), min_size=1, max_size=5, unique_by=id))
    fields = {"limits": draw(limits), "workload": draw(workloads)}
    if "Embedding" in model:
        fields["task"] = "embedding"
    devices = draw(st.sampled_from(["auto", "auto", "auto", "auto", "cpu", ["0"], ["0", "1"]]))
    machine = draw(machines)
    if devices == ["0", "1"] and machine["devices"][0].get("count", 1) < 2:
        devices = "auto"
    request = ask(options, machine, policy=draw(policies), devices=devices, **fields)
    known = {
        device.id: draw(states) for device in request.inventory.devices if draw(st.sampled_from([True, False, False]))
    }
    return replace(request, devices={**request.devices, **known})


@settings(max_examples=120)
@given(requests())
def test_budgets_stay_within_what_is_free_on_each_device_and_host(request: PlanRequest) -> None:
    answer = plan(request)
    if isinstance(answer, Refusal):
        return
    totals = {device.id: device.memory_bytes for device in request.inventory.devices}
    most = request.policy.limits.gpu_memory_utilization.max or 1
    assert answer.host_bytes <= free_memory(request).bytes
    for id, budget in answer.device_bytes.items():
        state = request.devices.get(id, DeviceState())
        strangers = max(0, state.used - state.resident - state.released)
        assert not state.unavailable
        assert 0 < budget <= totals[id] - strangers - state.reserved
        assert budget + state.reserved <= totals[id] * most
    for each in answer.budgets:
        assert all(term.bytes >= 0 for term in each.terms)


@settings(max_examples=80)
@given(requests(), st.integers(1, 60))
def test_more_memory_never_makes_a_fitting_model_unfit(request: PlanRequest, more: int) -> None:
    memory = request.inventory.memory
    devices = tuple(replace(d, memory_bytes=d.memory_bytes + more * GIB) for d in request.inventory.devices)
    larger = Memory(memory.total + 10 * more * GIB, memory.available + 10 * more * GIB)
    if isinstance(plan(request), Plan):
        after = plan(replace(request, inventory=replace(request.inventory, devices=devices, memory=larger)))
        assert isinstance(after, Plan), after


@settings(max_examples=120)
@given(requests())
def test_limits_stay_within_policy_and_model_and_keep_what_the_user_asked_for(request: PlanRequest) -> None:
    answer = plan(request)
    if isinstance(answer, Refusal):
        return
    policy, asked, chosen = request.policy.limits, request.spec.limits, answer.limits
    for name in ("max_num_seqs", "max_model_len", "gpu_memory_utilization"):
        value, most, wanted = getattr(chosen, name), getattr(policy, name).max, getattr(asked, name)
        assert value is None or most is None or value <= most
        assert wanted is None or value is None or value == wanted
    assert chosen.max_model_len <= profile_of(request, answer).context_length
    assert asked.kv_cache_dtype in {None, chosen.kv_cache_dtype}
    assert policy.gpu_memory_utilization.max is None or (chosen.gpu_memory_utilization or 0) <= 1
    if request.policy.engines is not None:
        assert answer.engine in request.policy.engines


@settings(max_examples=60)
@given(requests())
def test_equal_requests_get_equal_answers_that_survive_the_store(request: PlanRequest) -> None:
    answer = plan(request)

    assert plan(request) == answer
    if isinstance(answer, Plan):
        assert Plan.from_json(answer.to_json()) == answer


@settings(max_examples=120)
@given(requests())
def test_every_candidate_is_chosen_or_has_its_reason(request: PlanRequest) -> None:
    answer = plan(request)
    assert all(rejected.candidate and rejected.code and rejected.sentence for rejected in answer.rejected)
    if isinstance(answer, Refusal):
        assert answer.diagnosis.message
        return
    told = {rejected.candidate for rejected in answer.rejected}
    for name, engine in ENGINES.items():
        if name in told:  # for all variants at once
            continue
        for option in request.options:
            profile = option.profile
            chosen = (answer.engine, answer.variant.source, answer.variant.quantization)
            label = name if len(request.options) == 1 else f"{name} with {profile.quantization} ({option.source})"
            unread = profile.format not in engine.capabilities.formats and f"{name} with {profile.format}" in told
            assert unread or label in told or chosen == (name, option.source, profile.quantization)
    for device in request.inventory.devices:
        assert request.spec.devices != "auto" or device.id in {*answer.devices, *told} or not answer.devices


#: Of each limit, the flag and what is meant by its value.
FLAGS: Mapping[str, Mapping[str, Callable[[Plan], Any]]] = {
    "llama.cpp": {
        "--ctx-size": lambda p: p.limits.max_model_len * p.limits.max_num_seqs,
        "--parallel": lambda p: p.limits.max_num_seqs,
        "--cache-type-k": lambda p: p.limits.kv_cache_dtype,
        "--threads": lambda p: p.limits.threads,
    },
    "vllm": {
        "--max-model-len": lambda p: p.limits.max_model_len,
        "--max-num-seqs": lambda p: p.limits.max_num_seqs,
        "--max-num-batched-tokens": lambda p: p.limits.max_num_batched_tokens,
        "--kv-cache-dtype": lambda p: p.limits.kv_cache_dtype,
        "--tensor-parallel-size": lambda p: p.placement.tensor,
        "--pipeline-parallel-size": lambda p: p.placement.pipeline,
        "--data-parallel-size": lambda p: p.placement.data,
        "--gpu-memory-utilization": lambda p: p.limits.gpu_memory_utilization,
    },
    "sglang": {
        "--context-length": lambda p: p.limits.max_model_len,
        "--max-running-requests": lambda p: p.limits.max_num_seqs,
        "--chunked-prefill-size": lambda p: p.limits.max_num_batched_tokens,
        "--kv-cache-dtype": lambda p: p.limits.kv_cache_dtype,
        "--tp-size": lambda p: p.placement.tensor,
        "--pp-size": lambda p: p.placement.pipeline,
    },
    "tensorrt-llm": {
        "--max_seq_len": lambda p: p.limits.max_model_len,
        "--max_batch_size": lambda p: p.limits.max_num_seqs,
        "--max_num_tokens": lambda p: p.limits.max_num_batched_tokens,
        "--tp_size": lambda p: p.placement.tensor,
        "--pp_size": lambda p: p.placement.pipeline,
    },
    "tgi": {
        "--max-total-tokens": lambda p: p.limits.max_model_len,
        "--max-batch-size": lambda p: p.limits.max_num_seqs,
        "--num-shard": lambda p: p.placement.tensor,
    },
}


@settings(max_examples=120)
@given(requests(), st.sampled_from(["auto", *FLAGS]))
def test_the_flags_of_a_plan_say_what_the_plan_says(request: PlanRequest, engine: str) -> None:
    answer = plan(replace(request, spec=request.spec.model_copy(update={"engine": engine})))
    if isinstance(answer, Refusal) or answer.engine not in FLAGS:
        return
    adapter: Any = ENGINES[answer.engine]
    given = read(adapter.command(answer, "127.0.0.1", 8100).argv[len(answer.binary) :], adapter._options.values)
    for flag, meant in FLAGS[answer.engine].items():
        value = meant(answer)
        if value is None or (value == 1 and flag not in given):
            continue
        kind = type(value)
        assert kind(given[flag][0]) == value, flag


def read(argv: tuple[str, ...], known: Mapping[str, tuple[int, int]]) -> dict[str, list[str]]:
    """Flags with their values, as the engine's own table of options counts them. What is left over is positional."""
    found: dict[str, list[str]] = {}
    index = 0
    while index < len(argv):
        flag = argv[index]
        index += 1
        if not flag.startswith("--"):
            continue
        least, most = known[flag]
        values = list(argv[index : index + (least if least == most else 1)])
        found[flag] = values
        index += len(values)
    return found


@settings(max_examples=60)
@given(requests())
def test_ranks_divide_what_they_share_and_devices_are_alike(request: PlanRequest) -> None:
    answer = plan(request)
    if isinstance(answer, Refusal) or not answer.devices or answer.placement.layers:
        return
    placed, profile = answer.placement, profile_of(request, answer)
    chosen = [device for device in request.inventory.devices if device.id in answer.devices]
    assert placed.tensor * placed.pipeline * placed.data == len(answer.devices)
    assert profile.heads % placed.tensor == 0
    assert len({device.name for device in chosen}) == 1
    assert len(chosen) == 1 or not any(device.parent for device in chosen)
    assert answer.capacity is not None
    assert answer.capacity.kv_tokens >= 0
    if answer.capacity.assured and request.spec.task not in POOLING_TASKS:
        assert answer.capacity.requests >= 1


@settings(max_examples=40)
@given(machines, st.lists(st.sampled_from(MODELS[:4]), min_size=2, max_size=4), st.booleans())
def test_deployments_one_after_another_never_get_the_same_memory(machine: Any, models: list[str], ready: bool) -> None:
    """Each plan's budgets are the reservations of the next; `ready`: and in use by then."""
    promised: dict[str, int] = {}
    host = 0
    for model in models:
        request = ask(OPTIONS[model], machine, workload={"concurrency": 4, "context_tokens": 4096})
        now = {
            device.id: DeviceState(
                used=request.devices[device.id].used + (promised.get(device.id, 0) if ready else 0),
                reserved=promised.get(device.id, 0),
                resident=promised.get(device.id, 0) if ready else 0,
            )
            for device in request.inventory.devices
        }
        answer = plan(replace(request, devices=now, reserved_bytes=host))
        if isinstance(answer, Refusal):
            continue
        host += answer.host_bytes
        for id, size in answer.device_bytes.items():
            promised[id] = promised.get(id, 0) + size
    totals = {device.id: device.memory_bytes for device in request.inventory.devices}
    assert all(size + request.devices[id].used <= totals[id] for id, size in promised.items())
    assert host <= request.inventory.memory.total
