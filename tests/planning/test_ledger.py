"""How measurements stand in for formulas: which count, for which terms, and what can never become smaller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines import ENGINES
from agent.engines.base import Located
from agent.planning.ledger import (
    HOST,
    MARGIN,
    ROUNDING,
    Experience,
    Fixed,
    Key,
    MeasuredTerm,
    Measurement,
    compared,
    key_from_json,
    key_of,
    key_to_json,
    newest,
    terms_from_json,
    terms_to_json,
)
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.planning.planner import plan
from agent.planning.request import PlanRequest
from tests.planning import machines
from tests.planning.test_planner import INVENTORY, PROFILE, ask

MIB = 1024**2
DAY = 1_795_219_200.0  # 2026-11-21
LIMITS = Limits(max_num_seqs=4, max_model_len=2048, kv_cache_dtype="f16", max_num_batched_tokens=2048, threads=8)
PLACEMENT = Placement("cuda", (33,))
FIXED = Fixed("sha256:x", 4 << 30, "llama", "Q4_K_M", "llama.cpp", "b1", "chat", (), "c")
GPU = ["NVIDIA H200"]

HOST_TERMS = (
    MemoryTerm("weights", 300 * MIB, "the input"),
    MemoryTerm("compute", 16 * MIB, "inputs"),
    MemoryTerm("process", 48 * MIB, "measured", 8 * MIB),
    MemoryTerm("accelerator's libraries", 256 * MIB, "estimate", 128 * MIB),
)
DEVICE_TERMS = (
    MemoryTerm("weights", 4000 * MIB, "layers", 320 * MIB),
    MemoryTerm("KV cache", 1000 * MIB, "cells"),
    MemoryTerm("compute", 300 * MIB, "graph", 150 * MIB),
    MemoryTerm("context", 512 * MIB, "public logs", 256 * MIB),
)


def start(number: int = 0, *, limits: Limits = LIMITS, **fields: Any) -> Measurement:
    terms = fields.pop("terms", TERMS)
    return replace(
        Measurement(f"m-{number}", "n1", "here", False, DAY + number, "file:/m", key(limits), terms), **fields
    )


def key(limits: Limits = LIMITS, placement: Placement = PLACEMENT) -> Key:
    return FIXED.key(limits, placement, GPU)


TERMS = (
    MeasuredTerm("host", "weights", 300 * MIB),
    MeasuredTerm("0", "weights", 4200 * MIB),
    MeasuredTerm("0", "KV cache", 1000 * MIB),
    MeasuredTerm("0", "compute", 220 * MIB),
    MeasuredTerm("0", "context", 460 * MIB, "driver"),
)


def on_device(*rows: Measurement, limits: Limits = LIMITS) -> dict[str, MemoryTerm]:
    pools = Experience(rows, FIXED).applied((HOST_TERMS, DEVICE_TERMS), limits, PLACEMENT, GPU)
    return {term.name: term for term in pools[1]}


def on_host(*rows: Measurement) -> dict[str, MemoryTerm]:
    pools = Experience(rows, FIXED).applied((HOST_TERMS, DEVICE_TERMS), LIMITS, PLACEMENT, GPU)
    return {term.name: term for term in pools[0]}


def formula() -> dict[str, MemoryTerm]:
    return {term.name: term for term in DEVICE_TERMS}


def test_with_nothing_measured_the_formulas_stand() -> None:
    assert on_device() == formula()


def test_an_exact_match_replaces_the_terms_says_so_and_is_surer() -> None:
    found = on_device(start(0), start(1), start(2))

    assert found["weights"].source == "measured on this node 2026-11-21, 3 starts"
    assert found["weights"].bytes == 4200 * MIB + ROUNDING
    assert found["weights"].uncertainty == MARGIN
    assert found["weights"].formula == 4000 * MIB
    assert found["compute"].bytes == 220 * MIB + ROUNDING
    assert found["compute"].uncertainty == MARGIN


def test_the_largest_of_several_starts_counts_and_their_spread_is_uncertain() -> None:
    more = tuple(replace(term, bytes=term.bytes + 30 * MIB) for term in TERMS)
    found = on_device(start(0), start(1, terms=more))

    assert found["compute"].bytes == 250 * MIB + ROUNDING
    assert found["compute"].uncertainty == 30 * MIB + MARGIN


def test_a_measurement_that_is_the_formula_but_for_rounding_leaves_its_bytes() -> None:
    terms = (MeasuredTerm("0", "KV cache", 1000 * MIB - 3000),)

    found = on_device(start(terms=terms))["KV cache"]
    assert (found.bytes, found.uncertainty, found.formula) == (1000 * MIB, 0, 1000 * MIB)
    assert found.source.startswith("measured")


def test_other_limits_take_over_only_what_does_not_depend_on_them() -> None:
    found = on_device(start(), limits=replace(LIMITS, max_model_len=1024))

    assert found["weights"].bytes == 4200 * MIB + ROUNDING
    assert found["context"].bytes == 460 * MIB
    assert found["KV cache"] == formula()["KV cache"]
    assert found["compute"] == formula()["compute"]


def test_larger_limits_never_get_less_than_smaller_ones_were_seen_to_take() -> None:
    terms = (MeasuredTerm("0", "compute", 700 * MIB),)

    found = on_device(start(terms=terms), limits=replace(LIMITS, max_model_len=4096))["compute"]
    assert found.bytes == 700 * MIB + ROUNDING
    assert found.uncertainty == 150 * MIB


def test_the_cache_never_becomes_smaller_than_its_formula() -> None:
    terms = (MeasuredTerm("0", "KV cache", 400 * MIB),)

    assert on_device(start(terms=terms))["KV cache"] == formula()["KV cache"]


def test_a_cache_that_is_larger_than_its_formula_is_believed() -> None:
    terms = (MeasuredTerm("0", "KV cache", 1400 * MIB),)

    assert on_device(start(terms=terms))["KV cache"].bytes == 1400 * MIB + ROUNDING


def test_the_context_keeps_the_formulas_allowance_for_what_requests_allocate() -> None:
    found = on_device(start())["context"]

    assert (found.bytes, found.uncertainty) == (460 * MIB, 256 * MIB)


def test_the_hosts_rest_can_only_raise_what_the_formula_says() -> None:
    """48 + 256 MiB by the formula."""
    less, more = ((*TERMS, MeasuredTerm("host", "process", size * MIB, "kernel")) for size in (90, 400))

    assert on_host(start(terms=less))["process"] == HOST_TERMS[2]
    assert on_host(start(terms=more))["process"].bytes == (48 + 96) * MIB


@pytest.mark.parametrize(
    "other",
    [
        {"engine_version": "b2"}, {"engine": "other"}, {"task": "embedding"}, {"accelerator": "vulkan"},
        {"device_models": ("NVIDIA H100",)}, {"layers": (32,)}, {"kv_cache_dtype": "q8_0"},
        {"extra_args": ("--no-repack",)}, {"digest": "sha256:y"},
        {"digest": "", "file_bytes": 1}, {"digest": "", "quantization": "Q8_0"}, {"digest": "", "architecture": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_what_was_measured_of_something_else_does_not_count(other: dict[str, Any]) -> None:
    assert on_device(start(key=replace(key(), **other))) == formula()


def test_a_file_without_a_digest_is_known_by_its_size_and_kind() -> None:
    assert on_device(start(key=replace(key(), digest="")))["weights"].formula is not None


def test_imported_measurements_count_only_where_there_is_no_own_one_and_say_where_they_are_from() -> None:
    theirs = start(9, imported=True, host="other", terms=(MeasuredTerm("0", "weights", 9000 * MIB),))

    alone = on_device(theirs)["weights"]
    assert alone.bytes == 9000 * MIB + ROUNDING
    assert alone.source == "measured on other, imported 2026-11-21, 1 start"
    assert on_device(theirs, start())["weights"].bytes == 4200 * MIB + ROUNDING


def test_an_own_measurement_with_other_limits_is_before_an_imported_one_with_these() -> None:
    theirs = start(9, imported=True, terms=(MeasuredTerm("0", "context", 2000 * MIB, "driver"),))
    own = start(limits=replace(LIMITS, max_model_len=512))

    assert on_device(theirs, own)["context"].bytes == 460 * MIB


# What one start says ---------------------------------------------------------------------------------------------


def test_what_the_log_does_not_name_is_the_rest_of_what_driver_and_kernel_saw() -> None:
    reported = TERMS[:4]
    held = {HOST: 500 * MIB, "0": 6000 * MIB}

    found = {(t.pool, t.name): t for t in compared({HOST: HOST_TERMS, "0": DEVICE_TERMS}, reported, held)}
    assert found["0", "context"] == MeasuredTerm("0", "context", (6000 - 5420) * MIB, "driver", 512 * MIB)
    assert found["host", "process"] == MeasuredTerm("host", "process", 200 * MIB, "kernel", (16 + 48 + 256) * MIB)
    assert found["0", "total"].bytes == 6000 * MIB
    assert found["0", "weights"].formula == 4000 * MIB


def test_a_driver_that_does_not_tell_leaves_the_engines_own_report() -> None:
    found = compared({HOST: HOST_TERMS, "0": DEVICE_TERMS}, TERMS[:4], {HOST: None, "0": None})

    assert {term.source for term in found} == {"log"}


def test_the_formula_of_a_term_that_was_measured_before_is_remembered() -> None:
    planned = tuple(on_device(start()).values())

    found = compared({"0": planned}, TERMS[1:4], {})
    assert [term.formula for term in found] == [4000 * MIB, 1000 * MIB, 300 * MIB]


def test_the_newest_of_each_kind_are_kept_and_own_ones_before_imported_ones() -> None:
    own = [start(n) for n in range(7)]
    theirs = [start(n, imported=True) for n in range(10, 17)]

    assert [row.id for row in newest([*own, *theirs], each=3, total=5)] == ["m-4", "m-5", "m-6", "m-15", "m-16"]


def test_keys_and_terms_are_read_back_as_they_were_written() -> None:
    assert key_from_json(key_to_json(key())) == key()
    assert terms_from_json(terms_to_json(TERMS)) == TERMS


# In a plan -------------------------------------------------------------------------------------------------------


def planned(request: PlanRequest) -> Plan:
    answer = plan(request)
    assert isinstance(answer, Plan)
    return answer


def learned(request: PlanRequest, factor: float = 1.1) -> Measurement:
    """A start of this plan that took more than the formulas say."""
    made = planned(request)
    terms = tuple(
        MeasuredTerm(HOST, term.name, int(term.bytes * factor))
        for term in made.budgets[0].terms
        if term.name in {"weights", "KV cache", "compute"}
    )
    return Measurement("m", "n1", "here", False, DAY, "file:/m", key_of(made, INVENTORY.cpu_model, ()), terms)


def test_the_next_plan_uses_the_measurement_and_says_so() -> None:
    request = ask()
    before = planned(request)

    after = planned(replace(request, measurements=(learned(request),)))
    (reason,) = [reason for reason in after.reasons if reason.code == "measured"]
    assert (reason.field, reason.value) == ("budgets.host.terms", "weights, KV cache, compute")
    assert "measured on this node 2026-11-21, 1 start: weights 4505.6 MiB (the formula: 4096.0)" in reason.sentence
    assert after.host_bytes > before.host_bytes
    assert Plan.from_json(after.to_json()) == after


def test_the_same_request_gives_the_same_plan_whatever_else_was_measured() -> None:
    request = ask()
    strange = replace(learned(request), key=replace(key(), engine="other"))

    assert planned(replace(request, measurements=(strange,))) == planned(request)


def test_a_described_engine_without_a_version_has_no_experience() -> None:
    request = ask()
    row = learned(request)

    unknown = replace(request, located={"llama.cpp": Located(("x",), "", "assumed")}, measurements=(row,))
    assert all(term.formula is None for term in planned(unknown).budgets[0].terms)


@given(
    factor=st.floats(0.1, 4.0),
    memory=st.integers(5, 64),
    length=st.sampled_from([None, 512, 4096, 16384]),
    imported=st.booleans(),
)
def test_with_any_experience_a_plan_stays_within_what_is_free_and_the_cache_as_large_as_promised(
    factor: float, memory: int, length: int | None, imported: bool
) -> None:
    limits = {} if length is None else {"limits": {"max_model_len": length}}
    request = ask(memory=replace(INVENTORY.memory, total=memory << 30, available=memory << 30), **limits)
    bare = plan(request)
    if not isinstance(bare, Plan):
        return
    row = replace(learned(request, factor), imported=imported)

    answer = plan(replace(request, measurements=(row,)))
    if isinstance(answer, Plan):
        assert answer.host_bytes <= memory << 30
        (cache,) = [term for term in answer.budgets[0].terms if term.name == "KV cache"]
        cells = -(-answer.limits.max_model_len // 256) * 256 * answer.limits.max_num_seqs
        assert cache.bytes >= cells * sum(PROFILE.kv_heads) * 256 * 2
    else:
        assert factor > 1


def test_every_engine_reports_or_says_that_it_does_not() -> None:
    made = planned(ask())

    assert all(engine.parse_memory("", made) == () for engine in ENGINES.values())


def test_whole_experts_are_another_layout_than_slices() -> None:
    options = machines.published("Qwen/Qwen3-235B-A22B", "fp8-block")
    answer = machines.made(machines.ask(options, "l40s:8", engine="vllm"))
    sliced = replace(answer, placement=replace(answer.placement, experts=False))

    assert answer.placement.experts
    assert key_of(answer, "cpu", ["l40s"] * 8).layout != key_of(sliced, "cpu", ["l40s"] * 8).layout
