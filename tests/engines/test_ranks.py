"""What adapters of engines with ranks share, and their shares in plans that the planner makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.engines import get, ranks
from agent.engines.base import Spread
from agent.hardware.inventory import Memory
from agent.planning.ledger import CACHE, CONTEXT, Experience, Fixed, MeasuredTerm, Measurement
from agent.planning.memory.base import GIB, Card, Verdict
from agent.planning.plan import Placement, Plan
from agent.planning.planner import assumed, plan
from agent.planning.request import DeviceState, Option, PlanRequest
from agent.settings import Policy
from agent.spec import parse_spec
from tests.engines.rank_plans import LIMITS, profile, value
from tests.planning.test_devices import gpu
from tests.planning.test_planner import INVENTORY

#: By engine: the flag of its share.
SHARES = {
    "sglang": "--mem-fraction-static",
    "tensorrt-llm": "--kv_cache_free_gpu_memory_fraction",
    "tgi": "--cuda-memory-fraction",
}
MODEL = profile("Qwen/Qwen3-8B", "bf16")


def planned(name: str, used: int, count: int = 1) -> Plan:
    """By the planner, on devices of 80 GiB of which strangers hold `used` bytes."""
    engines = {name: get(name)}
    devices = tuple(gpu(index, 80, compute_capability="9.0") for index in range(count))
    found = plan(
        PlanRequest(
            spec=parse_spec({"name": "d", "model": "hf:Qwen/Qwen3-8B", "engine": name}),
            generation=1,
            options=(Option(MODEL, "hf:Qwen/Qwen3-8B"),),
            inventory=replace(INVENTORY, memory=Memory(512 * GIB, 500 * GIB), devices=devices, links=()),
            policy=Policy.model_validate({}),
            engines=engines,
            located=assumed(engines),
            devices={device.id: DeviceState(used=used) for device in devices},
        )
    )
    assert isinstance(found, Plan)
    return found


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("used", [0, 35 * GIB])
def test_a_command_gives_the_engine_the_cache_that_its_plan_promised(name: str, used: int) -> None:
    """The engine's own arithmetic, on the flag and on the terms of the plan, comes to the plan's cache."""
    made = planned(name, used)
    share = float(value(get(name).command(made, "127.0.0.1", 1).argv, SHARES[name]))

    budget = made.budgets[1]
    assert budget.claimed is not None
    assert budget.free is not None
    term = {term.name: term.bytes for term in budget.terms}
    weights = sum(size for name, size in term.items() if name.startswith("weights"))
    total = budget.claimed / (made.limits.gpu_memory_utilization or 0)
    free, others = min(budget.free, total), total - min(budget.free, total)
    beside = sum(term.values()) - term[CACHE]
    cache = {
        "sglang": (free - term[CONTEXT] - term.get("outside of PyTorch", 0)) * share - weights,
        "tensorrt-llm": (free - beside) * share,
        "tgi": 0.9 * share * total - others - beside + term.get("CUDA graphs", 0),
    }[name]
    # A step of the share, and what is rounded on the way from the planner's total to the budget.
    assert cache == pytest.approx(term[CACHE], rel=1e-3)
    assert sum(term.values()) <= budget.claimed + total / ranks.STEPS


@pytest.mark.parametrize("name", [*SHARES, "nim"])
def test_every_adapter_says_that_it_works_by_ranks(name: str) -> None:
    engine = get(name)

    assert engine.name == name
    assert engine.capabilities.spread == Spread.RANKS
    assert not engine.capabilities.offload
    assert set(engine.defaults.reasons) >= {"max_num_seqs", "max_model_len", "kv_cache_dtype", "gpu_memory_utilization"}
    assert engine.defaults.kv_cache_dtype in engine.capabilities.kv_cache_dtypes


@pytest.mark.parametrize("name", [*SHARES, "nim"])
def test_every_cache_type_can_be_estimated(name: str) -> None:
    engine = get(name)
    for dtype in engine.capabilities.kv_cache_dtypes:
        limits = replace(LIMITS, kv_cache_dtype=dtype)
        found = engine.estimate(MODEL, limits, "chat", Placement("cuda"), Card(80 * GIB))  # type: ignore[attr-defined]

        assert found.verdict == Verdict.FITS, dtype


@pytest.mark.parametrize(
    ("folder", "distribution", "version"),
    [
        ("tensorrt_llm-1.3.0rc29.dist-info", "tensorrt_llm", "1.3.0rc29"),
        ("tensorrt-llm-1.2.1.dist-info", "tensorrt_llm", "1.2.1"),
        ("SGLang-0.5.23.dist-info", "sglang", "0.5.23"),
        ("sglang_router-0.3.2.dist-info", "sglang", ""),
        ("torch-2.14.1+cu130.dist-info", "torch", "2.14.1+cu130"),
    ],
)
def test_versions_come_from_the_packages_metadata(tmp_path: Path, folder: str, distribution: str, version: str) -> None:
    (tmp_path / "lib/python3.12/dist-packages" / folder).mkdir(parents=True)

    assert ranks.package_version(str(tmp_path / "bin/x"), distribution) == version


def test_a_link_into_an_environment_is_followed(tmp_path: Path) -> None:
    (tmp_path / "venv/lib/python3.11/site-packages/sglang-0.5.23.dist-info").mkdir(parents=True)
    (tmp_path / "venv/bin").mkdir()
    (tmp_path / "venv/bin/sglang").touch()
    link = tmp_path / "usr/bin/sglang"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "venv/bin/sglang")

    assert ranks.package_version(str(link), "sglang") == "0.5.23"


@pytest.mark.parametrize(
    ("build", "accelerator"),
    [("2.14.1+rocm7.2", "rocm"), ("2.14.1+xpu", "sycl"), ("2.14.1+cpu", "cpu"), ("2.14.1", "cuda")],
)
def test_pytorchs_build_says_what_an_engine_can_use(tmp_path: Path, build: str, accelerator: str) -> None:
    (tmp_path / f"lib/python3.11/site-packages/torch-{build}.dist-info").mkdir(parents=True)

    assert ranks.accelerators(str(tmp_path / "bin/x"), frozenset({"cuda"})) == {accelerator}


def test_a_measured_rest_of_a_device_does_not_count_twice_what_other_terms_name() -> None:
    found = get("sglang").estimate(MODEL, LIMITS, "chat", Placement("cuda"), Card(80 * GIB))  # type: ignore[attr-defined]
    fixed = Fixed("sha256:1", 1, "a", "bf16", "sglang", "1", "chat", (), "cpu")
    before = {term.name: term.bytes for term in found.terms}
    others = before["activations and graphs"] + before["outside of PyTorch"]

    def applied(rest: int) -> int:
        row = Measurement(
            "i",
            "n",
            "h",
            False,
            1.0,
            "m",
            fixed.key(LIMITS, Placement("cuda"), ["G80"]),
            (MeasuredTerm("0", CONTEXT, rest),),
        )
        _, device = Experience((row,), fixed).applied(((), found.terms), LIMITS, Placement("cuda"), ["G80"])
        return next(term.bytes for term in device if term.name == CONTEXT)

    assert applied(others) == before[CONTEXT]
    assert applied(others + before[CONTEXT] + GIB) == before[CONTEXT] + GIB
