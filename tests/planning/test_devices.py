"""Planning with devices: properties over random machines, and the choices and sentences that people read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines import ENGINES
from agent.engines.base import EngineDevice, Located
from agent.hardware.inventory import Device, Link, Memory
from agent.models.profile import ModelProfile
from agent.planning.amounts import free_memory
from agent.planning.plan import GIB, Plan
from agent.planning.planner import assumed, plan
from agent.planning.request import DeviceState, Option, PlanRequest, Refusal
from agent.settings import Policy
from agent.spec import parse_spec
from agent.status import DiagnosisCode
from tests.planning.test_planner import INVENTORY, LLAMA_CPP, PROFILE, made, refused

MODEL = replace(PROFILE, embedding_bytes=GIB // 4, output_bytes=GIB // 4)
EVERYTHING = assumed(LLAMA_CPP)
PLENTY = Memory(512 * GIB, 500 * GIB)


def gpu(index: int, gib: int, **fields: Any) -> Device:
    id = f"GPU-{index}{index}{index}{index}"
    plain = Device(id=id, index=index, vendor="nvidia", name=f"NVIDIA G{gib}", memory_bytes=gib * GIB)
    return replace(plain, **fields)


def ask(
    *devices: Device,
    states: dict[str, DeviceState] | None = None,
    links: Sequence[Link] = (),
    profile: ModelProfile = MODEL,
    memory: Memory = PLENTY,
    located: dict[str, Located] = EVERYTHING,
    policy: dict[str, Any] | None = None,
    asked: Any = "auto",
    **fields: Any,
) -> PlanRequest:
    return PlanRequest(
        spec=parse_spec({"name": "d", "model": "file:/m/m.gguf", "devices": asked} | fields),
        generation=1,
        options=(Option(profile, "file:/m/m.gguf"),),
        inventory=replace(INVENTORY, memory=memory, devices=devices, links=tuple(links)),
        policy=Policy.model_validate(policy or {}),
        engines=LLAMA_CPP,
        located=located,
        devices=states or {},
    )


def built_for(*accelerators: str, lists: tuple[EngineDevice, ...] = ()) -> dict[str, Located]:
    return {"llama.cpp": Located(("/opt/llama-server",), "1", "config", frozenset({"cpu", *accelerators}), lists)}


def sized(gib: int) -> ModelProfile:
    return replace(MODEL, tensor_bytes=gib * GIB, file_bytes=gib * GIB)


def sentence(answer: Plan, field: str) -> str:
    return next(reason.sentence for reason in answer.reasons if reason.field == field)


# Properties over random machines

states = st.builds(
    lambda used, reserved, part, released, unavailable: DeviceState(
        unavailable=unavailable,
        used=used,
        reserved=reserved,
        resident=int(min(used, reserved) * part),
        released=min(released, used - int(min(used, reserved) * part)),
    ),
    st.integers(0, 40 * GIB),
    st.integers(0, 40 * GIB),
    st.floats(0, 1),
    st.integers(0, 20 * GIB),
    st.sampled_from(["", "", "", "quarantined: XID 79", "held by d-3"]),
)
kinds = st.sampled_from(
    [
        {},
        {},
        {"vendor": "amd", "name": "AMD MI", "id": "amd-1"},
        {"parent": "GPU-0", "slice_profile": "1g.10gb"},
        {"memory_kind": "unified"},
    ]
)


@st.composite
def machines(draw: st.DrawFn) -> tuple[tuple[Device, ...], dict[str, DeviceState], tuple[Link, ...]]:
    devices = []
    for index in range(draw(st.integers(0, 5))):
        kind = draw(kinds)
        devices.append(gpu(index, draw(st.integers(2, 96)), **(kind | {"id": f"{kind.get('id', 'GPU-')}{index}"})))
    known = {device.id: draw(states) for device in devices if draw(st.booleans())}
    links = tuple(Link(a.id, b.id, draw(st.sampled_from(["nvlink", "sys"])), 4) for a, b in pairwise(devices))
    return tuple(devices), known, links


requests = st.builds(
    lambda machine, profile, memory, policy, limits, located, asked: ask(
        *machine[0],
        states=machine[1],
        links=machine[2],
        profile=profile,
        memory=memory,
        policy=policy,
        limits=limits,
        located=located,
        asked=asked,
    ),
    machines(),
    st.builds(
        lambda layers, weights, tied: replace(
            sized(weights),
            layers=layers,
            kv_heads=(8,) * layers,
            embedding_bytes=weights * GIB // 20,
            output_bytes=0 if tied else weights * GIB // 20,
        ),
        st.integers(1, 90),
        st.integers(1, 200),
        st.booleans(),
    ),
    st.builds(lambda total, part: Memory(total, int(total * part)), st.integers(GIB, 300 * GIB), st.floats(0, 1)),
    st.fixed_dictionaries(
        {},
        optional={
            "limits": st.fixed_dictionaries(
                {}, optional={"gpu_memory_utilization": st.builds(lambda x: {"max": x}, st.floats(0.05, 1))}
            )
        },
    ),
    st.fixed_dictionaries({}, optional={"max_num_seqs": st.integers(1, 64), "max_model_len": st.integers(16, 131072)}),
    st.sampled_from([EVERYTHING, built_for("cuda"), built_for()]),
    st.sampled_from(["auto", "auto", "cpu", ["0"], ["0", "1"]]),
)


def strangers(state: DeviceState) -> int:
    return max(0, state.used - state.resident - state.released)


@given(requests)
def test_no_budget_exceeds_what_others_and_policy_leave_free_on_any_pool(request: PlanRequest) -> None:
    answer = plan(request)
    if isinstance(answer, Refusal):
        return
    assert answer.host_bytes <= free_memory(request).bytes
    totals = {device.id: device.memory_bytes for device in request.inventory.devices}
    most = request.policy.limits.gpu_memory_utilization.max or 1
    for id, budget in answer.device_bytes.items():
        state = request.devices.get(id, DeviceState())
        assert budget <= totals[id] - strangers(state) - state.reserved
        assert budget <= totals[id] * (answer.limits.gpu_memory_utilization or 0)
        assert budget + state.reserved <= totals[id] * most


@given(requests)
def test_devices_budgets_layers_and_visibility_are_of_one_mind(request: PlanRequest) -> None:
    answer = plan(request)
    if isinstance(answer, Refusal):
        return
    layers = answer.placement.layers
    assert tuple(answer.device_bytes) == answer.devices
    assert len(layers) == len(answer.devices)
    assert all(count >= 1 for count in layers)
    assert sum(layers) <= request.profile.layers + 1
    assert (answer.limits.gpu_memory_utilization is None) == (not answer.devices)
    argv = ENGINES["llama.cpp"].command(answer, "127.0.0.1", 8100).argv
    flags = {flag: value for flag, value in pairwise(argv) if flag.startswith("--")}
    if answer.devices:
        assert int(flags["--n-gpu-layers"]) == sum(layers)
        assert len(flags["--device"].split(",")) == len(answer.devices)
    else:
        assert flags["--device"] == "none"
        assert answer.placement.accelerator == "cpu"
    assert answer.placement.environment["CUDA_VISIBLE_DEVICES"] == ",".join(
        id for id in answer.devices if not id.startswith("amd")
    )


@given(requests)
def test_a_device_that_is_unavailable_or_out_of_reach_is_never_chosen(request: PlanRequest) -> None:
    answer = plan(request)
    if isinstance(answer, Refusal):
        return
    assert not any(request.devices.get(id, DeviceState()).unavailable for id in answer.devices)
    assert answer.placement.accelerator in request.located["llama.cpp"].accelerators
    if request.spec.devices == "cpu":
        assert not answer.devices
    chosen = [device for device in request.inventory.devices if device.id in answer.devices]
    assert len({device.vendor for device in chosen}) <= 1
    assert len(chosen) == 1 or not any(device.parent for device in chosen)


@given(requests)
def test_equal_requests_get_equal_answers_that_survive_the_store(request: PlanRequest) -> None:
    answer = plan(request)

    assert plan(request) == answer
    if isinstance(answer, Plan):
        assert Plan.from_json(answer.to_json()) == answer


@given(requests, st.integers(0, 64))
def test_a_larger_machine_never_refuses_what_a_smaller_one_runs(request: PlanRequest, more: int) -> None:
    devices = tuple(replace(d, memory_bytes=d.memory_bytes + more * GIB) for d in request.inventory.devices)
    memory = request.inventory.memory
    larger = Memory(memory.total + 2 * more * GIB, memory.available + 2 * more * GIB)
    if isinstance(plan(request), Plan):
        assert isinstance(
            plan(replace(request, inventory=replace(request.inventory, devices=devices, memory=larger))), Plan
        )


@given(machines(), st.lists(st.integers(1, 60), min_size=2, max_size=6))
def test_plans_one_after_another_never_promise_more_than_there_is(
    machine: tuple[tuple[Device, ...], dict[str, DeviceState], tuple[Link, ...]], sizes: list[int]
) -> None:
    """Each plan's budgets are the reservations of the next, whether they are in use by then or not."""
    devices, now, links = machine
    used = {device.id: strangers(now.get(device.id, DeviceState())) for device in devices}
    promised = {device.id: now.get(device.id, DeviceState()).reserved for device in devices}
    before, host = dict(promised), 0
    for turn, size in enumerate(sizes):
        resident = {id: promised[id] if turn % 2 else 0 for id in promised}
        current = {
            id: DeviceState(now.get(id, DeviceState()).unavailable, used[id] + resident[id], promised[id], resident[id])
            for id in promised
        }
        request = ask(*devices, states=current, links=links, profile=sized(size), memory=Memory(64 * GIB, 60 * GIB))
        answer = plan(replace(request, reserved_bytes=host, resident_bytes=0))
        if isinstance(answer, Plan):
            host += answer.host_bytes
            promised = {id: promised[id] + answer.device_bytes.get(id, 0) for id in promised}
    for device in devices:
        given = promised[device.id] - before[device.id]
        assert given == 0 or promised[device.id] + used[device.id] <= device.memory_bytes
    assert host <= 63 * GIB


# What is chosen


def test_auto_takes_the_device_with_the_least_free_memory_that_holds_all_of_it() -> None:
    answer = made(ask(gpu(0, 80), gpu(1, 16), gpu(2, 4)))

    assert answer.devices == ("GPU-1111",)
    assert answer.placement.layers == (33,)
    assert sentence(answer, "devices") == (
        "nvidia device 1 (NVIDIA G16) has the least free memory of the devices that hold all of it"
    )
    assert sentence(answer, "layers") == "all 33, the output counting as one"
    assert {rejected.candidate: rejected.code for rejected in answer.rejected} == {
        "GPU-0000": "best-fit",
        "GPU-2222": "too-small",
    }


def test_memory_of_strangers_and_of_other_deployments_is_not_free() -> None:
    busy = DeviceState(used=12 * GIB, reserved=2 * GIB, resident=2 * GIB)
    answer = made(ask(gpu(0, 16), gpu(1, 80), states={"GPU-0000": busy}))

    assert answer.devices == ("GPU-1111",)
    (small,) = (rejected for rejected in answer.rejected if rejected.candidate == "GPU-0000")
    assert small.sentence.startswith("on nvidia device 0 (NVIDIA G16) needs 6.")
    assert small.sentence.endswith(
        "4.00 GiB is free of 16.0 GiB (0.9 of it may be used, 2.00 GiB for other deployments, 10.0 GiB used by others)"
    )


def test_an_instances_own_memory_is_free_for_its_replacement() -> None:
    mine = DeviceState(used=14 * GIB, released=13 * GIB)

    assert made(ask(gpu(0, 16), states={"GPU-0000": mine})).devices == ("GPU-0000",)


def test_the_fewest_devices_are_taken_and_those_of_one_island_first() -> None:
    devices = [gpu(index, 80) for index in range(6)]
    links = [Link("GPU-3333", "GPU-5555", "nvlink", 18), Link("GPU-0000", "GPU-1111", "pix")]

    answer = made(ask(*devices, links=links, profile=sized(100)))

    assert answer.devices == ("GPU-3333", "GPU-5555")
    assert answer.placement.layers == (17, 16)
    assert sentence(answer, "devices") == (
        "no smaller number of devices holds all of it; nvidia device 3 (NVIDIA G80), nvidia device 5 (NVIDIA G80) "
        "are the tightest fit of one island"
    )
    assert sentence(answer, "layers") == "all 33, the output counting as one, in equal parts"


def test_unequal_devices_are_filled_in_turn() -> None:
    answer = made(ask(gpu(0, 48), gpu(1, 16), profile=sized(46), limits={"max_model_len": 1024}))

    first, second = answer.placement.layers
    assert first > second
    assert first + second == 33
    assert sentence(answer, "layers").endswith("each device filled in turn")


def test_what_no_device_holds_is_split_with_the_cpu_and_said() -> None:
    answer = made(ask(gpu(0, 24), profile=sized(40)))

    (layers,) = answer.placement.layers
    assert 10 <= layers < 33
    assert sentence(answer, "layers") == f"{layers} of 33: as many as fit; the CPU computes the others, and more slowly"
    assert answer.host_bytes > 15 * GIB
    more = replace(answer.placement, layers=(layers + 1,))
    terms = ENGINES["llama.cpp"].memory_terms(sized(40), answer.limits, "chat", more)[1]
    assert sum(term.bytes + term.uncertainty for term in terms) > 24 * GIB * 0.9


def test_a_few_layers_on_a_device_gain_nothing_that_auto_would_take_it_for() -> None:
    answer = made(ask(gpu(0, 8), profile=sized(80)))

    assert answer.devices == ()
    assert sentence(answer, "devices") == "no device of this node can take it; what was rejected says why"


def test_a_device_is_not_taken_for_fewer_sequences_than_the_cpu_serves() -> None:
    """Here the device would hold all layers for one sequence, and is given some layers for all four."""
    tight = DeviceState(used=10 * GIB)
    answer = made(ask(gpu(0, 16), states={"GPU-0000": tight}, limits={"max_model_len": 8192}))

    assert answer.limits.max_num_seqs == 4
    assert 8 <= sum(answer.placement.layers) < 33


def test_a_default_context_shrinks_before_layers_go_to_the_cpu() -> None:
    answer = made(ask(gpu(0, 7)))

    assert answer.placement.layers == (33,)
    assert 1024 <= answer.limits.max_model_len < 4096
    assert sentence(answer, "limits.max_model_len").startswith(
        "reduced from 4096 to fit: on nvidia device 0 (NVIDIA G7) 6.30 GiB is free of 7.00 GiB"
    )


def test_the_cpu_is_taken_when_the_spec_says_so() -> None:
    answer = made(ask(gpu(0, 80), asked="cpu"))

    assert answer.devices == ()
    assert answer.placement.environment == {"CUDA_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": ""}
    assert [budget.pool for budget in answer.budgets] == ["host"]


@pytest.mark.parametrize("name", ["GPU-1111", "GPU-11", "1"])
def test_a_device_is_named_by_id_by_the_beginning_of_one_or_by_index(name: str) -> None:
    answer = made(ask(gpu(0, 80), gpu(1, 80), asked=[name]))

    assert answer.devices == ("GPU-1111",)
    assert sentence(answer, "devices") == "the spec names nvidia device 1 (NVIDIA G80)"


def test_named_devices_are_used_in_their_order_and_all_of_them() -> None:
    answer = made(ask(gpu(0, 80), gpu(1, 80), gpu(2, 80), asked=["2", "0"]))

    assert answer.devices == ("GPU-2222", "GPU-0000")
    assert answer.placement.environment["CUDA_VISIBLE_DEVICES"] == "GPU-2222,GPU-0000"


SLICE = gpu(0, 10, id="MIG-1", parent="GPU-0000", slice_profile="1g.10gb")


def test_slices_are_never_taken_together() -> None:
    """A process sees only one slice, whatever is made visible to it."""
    answer = made(ask(SLICE, replace(SLICE, id="MIG-2", index=1), profile=sized(12)))

    assert len(answer.devices) == 1


@pytest.mark.parametrize(
    ("devices", "asked", "code", "words"),
    [
        ([gpu(0, 80)], ["7"], DiagnosisCode.DOES_NOT_FIT, "no device 7"),
        ([], ["0"], DiagnosisCode.DOES_NOT_FIT, "no device 0"),
        ([gpu(0, 80), gpu(1, 80)], ["GPU-"], DiagnosisCode.DOES_NOT_FIT, "means several devices: GPU-0000, GPU-1111"),
        ([gpu(0, 80)], ["0", "GPU-0"], DiagnosisCode.DOES_NOT_FIT, "names a device twice"),
        ([SLICE], ["GPU-0000"], DiagnosisCode.DOES_NOT_FIT, "it is divided into MIG-1"),
        ([SLICE, replace(SLICE, id="MIG-2", index=1)], ["0", "1"], DiagnosisCode.DOES_NOT_FIT, "only one slice"),
        (
            [gpu(0, 80), gpu(1, 80, vendor="amd", id="amd-1")],
            ["0", "1"],
            DiagnosisCode.DOES_NOT_FIT,
            "several accelerators (cuda, rocm)",
        ),
    ],
)
def test_devices_that_cannot_be_had_as_they_are_named_are_refused(
    devices: list[Device], asked: list[str], code: DiagnosisCode, words: str
) -> None:
    answer = refused(ask(*devices, asked=asked))

    assert answer.diagnosis.code == code
    assert words in answer.diagnosis.message
    assert answer.diagnosis.hint


def test_an_unavailable_device_is_refused_with_its_reason_and_a_retry_may_help() -> None:
    answer = refused(
        ask(gpu(0, 80), gpu(1, 80), states={"GPU-0000": DeviceState(unavailable="held by d-3")}, asked=["0"])
    )

    assert answer.diagnosis.code == DiagnosisCode.DEVICE_FAILED
    assert not answer.diagnosis.fatal
    assert answer.diagnosis.message == "nvidia device 0 (NVIDIA G80) is unavailable: held by d-3"
    assert answer.diagnosis.hint == (
        "devices of this node: GPU-0000 (nvidia device 0 (NVIDIA G80)), unavailable: held by d-3; "
        "GPU-1111 (nvidia device 1 (NVIDIA G80))"
    )


def test_named_devices_that_hold_nothing_are_refused_with_the_numbers_and_what_would_do() -> None:
    answer = refused(ask(gpu(0, 4), gpu(1, 80), asked=["0"], memory=Memory(4 * GIB, 4 * GIB), profile=sized(30)))

    assert answer.diagnosis.code == DiagnosisCode.DOES_NOT_FIT
    assert answer.diagnosis.message.startswith("on nvidia device 0 (NVIDIA G4) needs 32.")
    assert answer.diagnosis.message.endswith("3.60 GiB is free of 4.00 GiB (0.9 of it may be used)")
    assert "it fits on nvidia device 1 (NVIDIA G80)" in answer.diagnosis.hint


def test_limits_that_do_not_fit_a_device_are_refused_with_some_that_do() -> None:
    limits = {"max_num_seqs": 16, "max_model_len": 16384}
    little = Memory(3 * GIB, 3 * GIB)
    answer = refused(ask(gpu(0, 16), asked=["0"], limits=limits, memory=little))

    assert answer.diagnosis.hint.startswith("what would fit: max_model_len ")
    length = int(answer.diagnosis.hint.split("max_model_len ")[1].split()[0])
    made(ask(gpu(0, 16), asked=["0"], limits=limits | {"max_model_len": length}, memory=little))


def test_nothing_fits_anywhere_and_both_are_said() -> None:
    answer = refused(ask(gpu(0, 8), memory=Memory(8 * GIB, 8 * GIB), profile=sized(100)))

    assert answer.diagnosis.message.startswith("needs 102.")
    assert "; on nvidia device 0 (NVIDIA G8) needs 102." in answer.diagnosis.message
    assert [rejected.code for rejected in answer.rejected] == ["too-small"]


# How much of a device


@pytest.mark.parametrize(
    ("limits", "policy", "part", "code"),
    [
        ({}, {}, 0.9, "engine-default"),
        ({}, {"max": 0.5}, 0.5, "from-policy"),
        ({}, {"default": 0.4, "max": 0.8}, 0.4, "from-policy"),
        ({"gpu_memory_utilization": 0.7}, {"default": 0.4}, 0.7, "from-spec"),
    ],
)
def test_the_part_of_a_device_comes_from_spec_policy_or_engine(
    limits: dict[str, Any], policy: dict[str, Any], part: float, code: str
) -> None:
    answer = made(ask(gpu(0, 80), limits=limits, policy={"limits": {"gpu_memory_utilization": policy}}))

    (reason,) = (reason for reason in answer.reasons if reason.field == "limits.gpu_memory_utilization")
    assert (answer.limits.gpu_memory_utilization, reason.value, reason.code) == (part, str(part), code)


def test_what_the_policy_leaves_to_all_deployments_bounds_their_sum() -> None:
    others = {"GPU-0000": DeviceState(used=10 * GIB, reserved=10 * GIB, resident=10 * GIB)}
    half = {"limits": {"gpu_memory_utilization": {"max": 0.5}}}

    assert made(ask(gpu(0, 40), states=others)).devices
    answer = made(ask(gpu(0, 24), states=others, policy=half))

    assert not answer.devices
    assert "the node policy leaves 0.5 of it to all deployments" in answer.rejected[0].sentence


def test_memory_that_a_device_shares_with_the_host_counts_for_both() -> None:
    spark = gpu(0, 110, memory_kind="unified")
    answer = made(ask(spark, memory=Memory(16 * GIB, 12 * GIB)))

    assert answer.devices == ("GPU-0000",)
    assert answer.host_bytes > answer.device_bytes["GPU-0000"] > 6 * GIB
    crowded = replace(ask(spark, memory=Memory(16 * GIB, 12 * GIB), asked=["0"]), reserved_bytes=10 * GIB)
    assert refused(crowded).diagnosis.code == DiagnosisCode.DOES_NOT_FIT


# What an executable can use


@pytest.mark.parametrize(
    ("vendor", "accelerators", "chosen"),
    [
        ("nvidia", ("cuda",), "cuda"),
        ("amd", ("rocm",), "rocm"),
        ("intel", ("sycl",), "sycl"),
        ("apple", ("metal",), "metal"),
        ("nvidia", ("rocm", "sycl", "metal"), "cpu"),
        ("nvidia", (), "cpu"),
        ("amd", ("cuda", "rocm", "vulkan"), "rocm"),
    ],
)
def test_a_build_reaches_the_devices_of_its_vendor(vendor: str, accelerators: tuple[str, ...], chosen: str) -> None:
    answer = made(ask(gpu(0, 80, vendor=vendor), located=built_for(*accelerators)))

    assert answer.placement.accelerator == chosen
    if chosen == "cpu":
        (rejected,) = answer.rejected
        assert rejected.code == "accelerator"
        assert (
            "/opt/llama-server cannot use nvidia device 0 (NVIDIA G80): it needs a build for cuda" in rejected.sentence
        )


def test_a_named_device_that_the_build_cannot_use_is_refused() -> None:
    answer = refused(ask(gpu(0, 80), asked=["0"], located=built_for()))

    assert answer.diagnosis.code == DiagnosisCode.BINARY_MISSING
    assert "devices: cpu" in answer.diagnosis.hint


def vulkan(*names: str) -> dict[str, Located]:
    return built_for(
        "vulkan", lists=tuple(EngineDevice("vulkan", f"Vulkan{index}", name) for index, name in enumerate(names))
    )


def test_vulkan_reaches_a_device_that_it_lists_by_its_name() -> None:
    located = vulkan("llvmpipe (LLVM 15)", "AMD Radeon RX 7900 XTX (RADV NAVI31)")
    answer = made(ask(gpu(0, 24, vendor="amd", name="AMD Radeon RX 7900 XTX"), located=located))

    assert answer.placement.accelerator == "vulkan"
    assert answer.placement.names == ("Vulkan1",)


@pytest.mark.parametrize(
    ("names", "count"), [(("NVIDIA G24", "NVIDIA G24"), 2), (("NVIDIA G24", "NVIDIA G24"), 1), (("Other",), 1)]
)
def test_vulkan_does_not_guess_which_of_equal_devices_is_meant(names: tuple[str, ...], count: int) -> None:
    devices = [gpu(index, 24) for index in range(count)]

    assert not made(ask(*devices, located=vulkan(*names))).devices


@pytest.mark.parametrize(
    ("device", "visible"),
    [
        (gpu(0, 80), {"CUDA_VISIBLE_DEVICES": "GPU-0000", "ROCR_VISIBLE_DEVICES": ""}),
        (SLICE, {"CUDA_VISIBLE_DEVICES": "MIG-1", "ROCR_VISIBLE_DEVICES": ""}),
        (gpu(3, 80, vendor="amd", id="amd-9"), {"CUDA_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": "3"}),
        (
            gpu(2, 80, vendor="intel", id="intel-9"),
            {"CUDA_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": "", "ZE_AFFINITY_MASK": "2"},
        ),
    ],
)
def test_the_engine_sees_the_plans_devices_and_no_others(device: Device, visible: dict[str, str]) -> None:
    answer = made(ask(device))

    assert answer.devices == (device.id,)
    assert answer.placement.environment == visible
    assert ENGINES["llama.cpp"].command(answer, "h", 1).environment == visible


# Hardware that is not here, and plans of the past


def test_a_plan_for_a_machine_that_is_not_here_assumes_the_engine_and_says_so() -> None:
    request = ask(gpu(0, 80), located=assumed(LLAMA_CPP))
    answer = made(replace(request, inventory=replace(request.inventory, simulated="h100-sxm:1")))

    assert answer.binary == ("llama-server",)
    assert sentence(answer, "binary") == "assumed: no executable was looked for"
    assert "assumed: no executable was looked for" in sentence(answer, "engine")
    assert answer.devices


def test_a_plan_that_was_stored_before_there_were_devices_is_read() -> None:
    data = json.loads(made(ask()).to_json())
    del data["placement"]
    for budget in data["budgets"]:
        del budget["unified"]

    answer = Plan.from_json(json.dumps(data))

    assert answer.devices == ()
    assert answer.placement.layers == ()
    assert ENGINES["llama.cpp"].command(answer, "h", 1).argv
    assert answer.host_bytes == made(ask()).host_bytes
