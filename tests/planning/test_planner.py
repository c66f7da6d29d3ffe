"""Planning, as properties over random hosts, models, policies and specs, and by the sentences that people read."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines import ENGINES
from agent.engines.base import Located
from agent.hardware.inventory import Inventory, Memory
from agent.models.profile import ModelProfile
from agent.planning.amounts import free_memory
from agent.planning.plan import GIB, Plan
from agent.planning.planner import plan
from agent.planning.request import Option, PlanRequest, Refusal
from agent.settings import Policy
from agent.spec import parse_spec
from agent.status import DiagnosisCode

PROFILE = ModelProfile(
    path="/m/m.gguf",
    format="gguf",
    architecture="llama",
    name="m",
    quantization="Q4_K_M",
    file_bytes=4 * GIB,
    tensor_bytes=4 * GIB,
    parameters=8_000_000_000,
    layers=32,
    embedding_length=4096,
    feed_forward_length=14336,
    heads=32,
    kv_heads=(8,) * 32,
    key_length=128,
    value_length=128,
    context_length=131072,
    vocabulary=128256,
)
INVENTORY = Inventory(
    hostname="h",
    os="o",
    kernel="k",
    machine="x86_64",
    cpu_model="c",
    physical_cores=8,
    logical_cores=16,
    cpu_quota=None,
    cpu_flags=("avx2",),
    memory=Memory(64 * GIB, 60 * GIB),
)
LLAMA_CPP = {"llama.cpp": ENGINES["llama.cpp"]}
LOCATED = {"llama.cpp": Located(("/usr/bin/llama-server",), "b10434", "path")}


def spec(**fields: Any) -> dict[str, Any]:
    return {"name": "d", "model": "file:/m/m.gguf"} | fields


def ask(
    *,
    profile: ModelProfile = PROFILE,
    memory: Memory = INVENTORY.memory,
    policy: dict[str, Any] | None = None,
    reserved: int = 0,
    located: dict[str, Located] = LOCATED,
    **fields: Any,
) -> PlanRequest:
    return PlanRequest(
        spec=parse_spec(spec(**fields)),
        generation=3,
        options=(Option(profile, "file:/m/m.gguf", "sha256:x"),),
        inventory=replace(INVENTORY, memory=memory),
        policy=Policy.model_validate(policy or {}),
        engines=LLAMA_CPP,
        located=located,
        reserved_bytes=reserved,
    )


def made(request: PlanRequest) -> Plan:
    answer = plan(request)
    assert isinstance(answer, Plan), answer
    return answer


def refused(request: PlanRequest) -> Refusal:
    answer = plan(request)
    assert isinstance(answer, Refusal), answer
    return answer


limits = st.fixed_dictionaries(
    {},
    optional={
        "max_num_seqs": st.integers(1, 64),
        "max_model_len": st.integers(16, 131072),
        "kv_cache_dtype": st.sampled_from(["f16", "q8_0", "f32"]),
        "memory_bytes": st.integers(GIB, 64 * GIB),
        "cpus": st.floats(0.5, 16),
    },
)
workloads = st.fixed_dictionaries(
    {}, optional={"concurrency": st.integers(1, 100), "context_tokens": st.integers(1, 500_000)}
)
bounds = st.builds(
    lambda default, extra: {"default": default, "max": default + extra}, st.integers(16, 9000), st.integers(0, 9000)
) | st.builds(lambda most: {"max": most}, st.integers(16, 9000))
policies = st.fixed_dictionaries(
    {},
    optional={
        "limits": st.fixed_dictionaries({}, optional={"max_num_seqs": bounds, "max_model_len": bounds}),
        "host_memory_reserve_bytes": st.integers(0, 8 * GIB),
    },
)
memories = st.builds(
    lambda total, part: Memory(total, int(total * part)), st.integers(GIB // 2, 128 * GIB), st.floats(0, 1)
)
profiles = st.builds(
    lambda layers, context, vocabulary, weights: replace(
        PROFILE,
        layers=layers,
        kv_heads=(8,) * layers,
        context_length=context,
        vocabulary=vocabulary,
        tensor_bytes=weights,
        file_bytes=weights,
    ),
    st.integers(1, 90),
    st.integers(256, 200_000),
    st.integers(300, 260_000),
    st.integers(1, 40 * GIB),
)
requests = st.builds(
    lambda profile, memory, policy, reserved, limits, workload: ask(
        profile=profile, memory=memory, policy=policy, reserved=reserved, limits=limits, workload=workload
    ),
    profiles,
    memories,
    policies,
    st.integers(0, 16 * GIB),
    limits,
    workloads,
)


@given(requests)
def test_a_plan_never_needs_more_than_is_free(request: PlanRequest) -> None:
    answer = plan(request)
    if isinstance(answer, Plan):
        assert answer.host_bytes <= free_memory(request).bytes
        assert answer.host_bytes >= request.profile.tensor_bytes


@given(requests)
def test_a_plan_never_exceeds_policy_model_or_spec(request: PlanRequest) -> None:
    answer = plan(request)
    if isinstance(answer, Plan):
        asked, policy, chosen = request.spec.limits, request.policy.limits, answer.limits
        assert policy.max_num_seqs.max is None or chosen.max_num_seqs <= policy.max_num_seqs.max
        assert policy.max_model_len.max is None or chosen.max_model_len <= policy.max_model_len.max
        assert chosen.max_model_len <= request.profile.context_length
        assert asked.memory_bytes is None or answer.host_bytes <= asked.memory_bytes
        assert chosen.threads <= INVENTORY.physical_cores


@given(requests)
def test_what_the_user_asked_for_is_never_changed(request: PlanRequest) -> None:
    answer = plan(request)
    if isinstance(answer, Plan):
        for name in ("max_num_seqs", "max_model_len", "kv_cache_dtype"):
            asked = getattr(request.spec.limits, name)
            assert asked is None or getattr(answer.limits, name) == asked


@given(requests, st.integers(0, 64 * GIB))
def test_more_memory_never_makes_a_fitting_plan_unfit(request: PlanRequest, more: int) -> None:
    before = plan(request)
    memory = request.inventory.memory
    larger = replace(request.inventory, memory=Memory(memory.total + more, memory.available + more))
    after = plan(replace(request, inventory=larger))
    if isinstance(before, Plan):
        assert isinstance(after, Plan)
        assert after.limits.max_num_seqs >= before.limits.max_num_seqs


@given(requests)
def test_equal_requests_get_equal_answers_that_survive_json(request: PlanRequest) -> None:
    answer = plan(request)

    assert plan(request) == answer
    if isinstance(answer, Plan):
        assert Plan.from_json(answer.to_json()) == answer


@given(requests)
def test_every_value_has_its_reason_and_every_refusal_its_sentence(request: PlanRequest) -> None:
    answer = plan(request)
    if isinstance(answer, Refusal):
        assert answer.diagnosis.message
        assert answer.diagnosis.hint
        assert answer.diagnosis.fatal
        return
    reasons = {reason.field: reason for reason in answer.reasons}
    chosen = {f"limits.{name}": getattr(answer.limits, name) for name in answer.limits.__slots__}
    for field, value in chosen.items():
        assert reasons[field].value == ("none" if value is None else str(value))
        assert reasons[field].sentence
    assert {"engine", "binary", "runtime", "variant", "devices", "model_name", "budgets.host"} <= reasons.keys()
    assert reasons["budgets.host"].value == str(answer.host_bytes)


@given(requests)
def test_the_command_gives_every_slot_the_planned_context(request: PlanRequest) -> None:
    answer = plan(request)
    if isinstance(answer, Plan):
        argv = ENGINES[answer.engine].command(answer, "127.0.0.1", 8100).argv
        flags = {flag: value for flag, value in pairwise(argv) if flag.startswith("--")}
        assert int(flags["--ctx-size"]) == answer.limits.max_model_len * int(flags["--parallel"])
        assert flags["--cache-type-k"] == answer.limits.kv_cache_dtype
        assert flags["--model"] == answer.variant.path


def test_without_wishes_the_engines_defaults_are_taken() -> None:
    answer = made(ask())

    assert (answer.limits.max_num_seqs, answer.limits.max_model_len, answer.limits.kv_cache_dtype) == (4, 4096, "f16")
    assert answer.limits.threads == 8
    assert (answer.model_name, answer.generation, answer.variant.digest) == ("d", 3, "sha256:x")


def test_the_kv_cache_of_a_known_model_is_exact() -> None:
    """Llama 3 8B keeps 128 KiB a token in f16."""
    answer = made(ask(limits={"max_num_seqs": 2, "max_model_len": 8192}))

    terms = {term.name: term.bytes for term in answer.budgets[0].terms}
    assert terms["KV cache"] == 2 * 8192 * 128 * 1024


def test_a_cell_count_is_padded_as_the_engine_pads_it() -> None:
    padded, whole = (made(ask(limits={"max_num_seqs": 3, "max_model_len": n})) for n in (1000, 1024))

    assert padded.budgets[0].terms[1].bytes == whole.budgets[0].terms[1].bytes


def test_defaults_shrink_to_fit_and_say_so() -> None:
    answer = made(ask(memory=Memory(16 * GIB, 6 * GIB + GIB // 2)))

    assert answer.limits.max_num_seqs == 4
    assert 1024 <= answer.limits.max_model_len < 4096
    (reason,) = (reason for reason in answer.reasons if reason.field == "limits.max_model_len")
    assert reason.code == "computed"
    assert reason.sentence.startswith("reduced from 4096 to fit: 5.50 GiB is free of 16.0 GiB")


def test_a_users_values_are_refused_with_the_numbers_and_what_would_fit() -> None:
    memory = Memory(8 * GIB, 7 * GIB)
    answer = refused(ask(memory=memory, reserved=GIB // 2, limits={"max_num_seqs": 8, "max_model_len": 8192}))

    assert answer.diagnosis.code == DiagnosisCode.DOES_NOT_FIT
    assert "(weights 4.00, KV cache 8.00, compute " in answer.diagnosis.message
    assert (
        "free of 8.00 GiB (1.00 GiB reserved for the host, 0.50 GiB for other deployments)" in answer.diagnosis.message
    )
    assert answer.diagnosis.hint.startswith("what would fit: max_model_len ")
    length = int(answer.diagnosis.hint.split("max_model_len ")[1].split()[0])
    made(ask(memory=memory, reserved=GIB // 2, limits={"max_num_seqs": 8, "max_model_len": length}))


def test_a_model_larger_than_the_host_is_refused_whatever_the_limits() -> None:
    answer = refused(ask(memory=Memory(4 * GIB, 4 * GIB)))

    assert answer.diagnosis.code == DiagnosisCode.DOES_NOT_FIT
    assert "smaller model" in answer.diagnosis.hint


@pytest.mark.parametrize(
    ("free", "fields"),
    [(60, {}), (60, {"max_num_seqs": 8, "max_model_len": 8192}), (5.5, {})],  # the last: for less than the defaults
)
def test_a_bound_of_memory_that_is_too_small_is_told_with_one_that_is_enough(
    free: float, fields: dict[str, Any]
) -> None:
    memory = Memory(64 * GIB, int(free * GIB))
    answer = refused(ask(memory=memory, limits={"memory_bytes": "300MiB", **fields}))

    assert "limits.memory_bytes allows 0.29 GiB" in answer.diagnosis.message
    told = re.fullmatch(r"limits.memory_bytes (\d+MiB)", answer.diagnosis.hint)
    assert told is not None
    made(ask(memory=memory, limits={"memory_bytes": told[1], **fields}))


def test_a_bound_of_memory_is_not_to_be_raised_where_there_is_no_more() -> None:
    answer = refused(ask(memory=Memory(64 * GIB, 2 * GIB), limits={"memory_bytes": "300MiB"}))

    assert answer.diagnosis.hint.startswith("no limits make it fit within limits.memory_bytes: use a smaller model")


def test_memory_that_is_promised_to_others_is_not_given_twice() -> None:
    """Their mapped weights look available, and are not."""
    crowded = replace(ask(memory=Memory(16 * GIB, 15 * GIB), reserved=12 * GIB), resident_bytes=12 * GIB)

    assert free_memory(crowded).bytes == 3 * GIB


def test_what_others_already_use_is_not_subtracted_twice() -> None:
    request = replace(ask(memory=Memory(16 * GIB, 9 * GIB), reserved=6 * GIB), resident_bytes=6 * GIB)

    assert free_memory(request).bytes == 8 * GIB


def test_a_running_instance_gives_its_memory_to_its_own_replacement() -> None:
    request = ask(memory=Memory(16 * GIB, 3 * GIB))
    assert isinstance(plan(request), Refusal)

    assert isinstance(plan(replace(request, released_bytes=12 * GIB)), Plan)


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"limits": {"max_model_len": 200_000}}, DiagnosisCode.MODEL_UNSUPPORTED, "trained for 131072"),
        ({"quantization": "Q8_0"}, DiagnosisCode.MODEL_UNSUPPORTED, "asks for Q8_0"),
        ({"devices": ["GPU-1"]}, DiagnosisCode.DOES_NOT_FIT, "no device GPU-1"),
        ({"engine": "vllm"}, DiagnosisCode.POLICY_DENIED, "vllm"),
        ({"task": "embedding"}, DiagnosisCode.MODEL_UNSUPPORTED, "not made for embedding"),
        ({"limits": {"kv_cache_dtype": "fp8"}}, DiagnosisCode.MODEL_UNSUPPORTED, "no KV cache type fp8"),
        ({"policy": {"engines": []}}, DiagnosisCode.POLICY_DENIED, "does not allow the engine"),
        ({"located": {}}, DiagnosisCode.BINARY_MISSING, "no executable of llama.cpp"),
        ({"profile": replace(PROFILE, format="onnx")}, DiagnosisCode.MODEL_UNSUPPORTED, "does not read onnx"),
        (
            {"policy": {"limits": {"max_num_seqs": {"max": 2}}}, "limits": {"max_num_seqs": 3}},
            DiagnosisCode.POLICY_DENIED,
            "allows at most 2",
        ),
        (
            {"policy": {"limits": {"kv_cache_dtypes": ["q8_0"]}}, "limits": {"kv_cache_dtype": "f16"}},
            DiagnosisCode.POLICY_DENIED,
            "allows q8_0",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_with_its_code(
    fields: dict[str, Any], code: DiagnosisCode, words: str
) -> None:
    answer = refused(ask(**fields))

    assert answer.diagnosis.code == code
    assert words in answer.diagnosis.message


def test_more_than_the_trained_context_is_planned_when_rope_is_extended() -> None:
    answer = made(
        ask(
            limits={"max_model_len": 200_000, "max_num_seqs": 1},
            extra_args=["--rope-scaling", "yarn", "--yarn-orig-ctx", "131072"],
        )
    )

    assert answer.limits.max_model_len == 200_000


def test_an_embedding_model_computes_an_input_in_one_batch() -> None:
    answer = made(ask(profile=replace(PROFILE, pooling="last"), task="embedding", limits={"max_model_len": 8192}))

    assert answer.limits.max_num_batched_tokens == 8192


def test_hints_shape_the_defaults_within_policy_and_model() -> None:
    hints = {"concurrency": 9, "context_tokens": 500_000}
    answer = made(
        ask(
            memory=Memory(2048 * GIB, 2048 * GIB),
            workload=hints,
            policy={"limits": {"max_num_seqs": {"max": 6}}},
        )
    )

    assert (answer.limits.max_num_seqs, answer.limits.max_model_len) == (6, 131072)
    codes = {reason.field: reason.code for reason in answer.reasons}
    assert codes["limits.max_num_seqs"] == "from-policy"
    assert codes["limits.max_model_len"] == "model"
