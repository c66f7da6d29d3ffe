"""What is read out of llama.cpp's own logs. `report-*.log` were recorded with build 11549 (the embedded wheel, CPU) and
the adapter's flags; `TWO_GPUS` are the lines of a public log (containers/ramalama#1354, two RTX 3090)."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.engines.llama_cpp_report import parse
from agent.planning.ledger import MeasuredTerm

DATA = Path(__file__).parent / "data"
MIB = 1024**2

TWO_GPUS = """\
load_tensors: offloaded 81/81 layers to GPU
load_tensors:   CPU_Mapped model buffer size =   563.62 MiB
load_tensors:        CUDA0 model buffer size = 20038.81 MiB
load_tensors:        CUDA1 model buffer size = 19940.67 MiB
llama_context: constructing llama_context
llama_context:  CUDA_Host  output buffer size =     0.49 MiB
llama_kv_cache:      CUDA0 KV buffer size =   328.00 MiB
llama_kv_cache:      CUDA1 KV buffer size =   312.00 MiB
sched_reserve:      CUDA0 compute buffer size =   400.01 MiB
sched_reserve:      CUDA1 compute buffer size =   400.02 MiB
sched_reserve:  CUDA_Host compute buffer size =    32.02 MiB
"""


def sizes(log: str, *devices: str) -> dict[tuple[str, str], float]:
    return {(term.pool, term.name): round(term.bytes / MIB, 2) for term in parse(log, devices)}


def recorded(name: str) -> str:
    return (DATA / f"report-{name}.log").read_text()


@pytest.mark.parametrize(
    ("name", "weights", "cache", "compute"),
    [("smollm2", 92.10, 360.0, 18.64 + 0.75), ("embedding", 2.75, 1.0, 5.02 + 0.01)],
)
def test_the_terms_of_a_real_log_are_read(name: str, weights: float, cache: float, compute: float) -> None:
    assert sizes(recorded(name)) == {
        ("host", "weights"): weights,
        ("host", "KV cache"): cache,
        ("host", "compute"): round(compute, 2),
    }


def test_weights_that_are_kept_twice_count_once() -> None:
    """9.02 MiB of tensors: 7.75 mapped, 7.88 in a layout of the CPU's kernels."""
    found = sizes(recorded("repacked"))

    assert found["host", "weights"] == pytest.approx(9.02, abs=0.01)
    assert found["host", "weights"] + found["host", "repacked weights"] == pytest.approx(7.75 + 7.88, abs=0.01)


def test_each_device_has_its_terms_and_pinned_memory_is_the_hosts() -> None:
    assert sizes(TWO_GPUS, "CUDA0", "CUDA1") == {
        ("host", "weights"): 563.62,
        ("host", "compute"): 32.51,
        ("0", "weights"): 20038.81,
        ("1", "weights"): 19940.67,
        ("0", "KV cache"): 328.0,
        ("1", "KV cache"): 312.0,
        ("0", "compute"): 400.01,
        ("1", "compute"): 400.02,
    }


def test_devices_are_told_apart_where_one_name_begins_with_the_other() -> None:
    log = TWO_GPUS.replace("CUDA1", "CUDA10")

    assert sizes(log, "CUDA10", "CUDA0")["0", "weights"] == 19940.67


def test_caches_of_two_kinds_add_up() -> None:
    log = TWO_GPUS + "llama_memory_recurrent:      CUDA0 RS buffer size =    10.00 MiB\n"

    assert sizes(log, "CUDA0", "CUDA1")["0", "KV cache"] == 338.0


def test_a_compute_buffer_that_is_reserved_again_replaces_the_first_and_another_contexts_adds_to_it() -> None:
    again = TWO_GPUS + "sched_reserve:      CUDA0 compute buffer size =   500.00 MiB\n"
    draft = again + (
        "llama_context: constructing llama_context\nsched_reserve:      CUDA0 compute buffer size =    64.00 MiB\n"
    )

    assert sizes(again, "CUDA0", "CUDA1")["0", "compute"] == 500.0
    assert sizes(draft, "CUDA0", "CUDA1")["0", "compute"] == 564.0


@pytest.mark.parametrize(
    ("log", "devices"),
    [
        pytest.param(recorded("none"), (), id="verbosity 3 tells no sizes"),
        pytest.param("", (), id="nothing"),
        pytest.param(recorded("smollm2"), ("CUDA0",), id="it fell back to the CPU"),
        pytest.param(TWO_GPUS, ("CUDA0",), id="a device that the plan does not name"),
        pytest.param(TWO_GPUS, (), id="devices where the plan has none"),
        pytest.param("load_tensors: Weird7 model buffer size = 1.00 MiB\n", (), id="a kind of memory not known here"),
        pytest.param("CPU model buffer size = nan MiB", (), id="no number"),
    ],
)
def test_a_log_that_does_not_say_what_its_plan_does_is_no_report(log: str, devices: tuple[str, ...]) -> None:
    assert parse(log, devices) == ()


def test_a_term_is_a_whole_number_of_bytes() -> None:
    assert MeasuredTerm("host", "weights", round(92.10 * MIB)) in parse(recorded("smollm2"), ())
