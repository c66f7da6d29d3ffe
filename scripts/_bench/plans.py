"""How fast plans are made: typical ones by the second, the first one of a new process, and the slowest of hard cases.

All for hardware that is described and with profiles at hand, so nothing but planning is measured. A plan waits for
nothing, so its time is the processor's: what else the machine does counts little.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent.engines import ENGINES
from agent.hardware.simulated import parse
from agent.models.catalog import shipped
from agent.planning.planner import assumed, plan
from agent.planning.request import DeviceState, Option, PlanRequest
from agent.settings import Policy
from agent.spec import parse_spec
from scripts._bench.figures import Figure, Sample, Target
from scripts._bench.place import ROOT, Place

PART = "plans"
ROUNDS, QUICK_ROUNDS = 9, 3
#: Seconds of plans in a round.
ROUND = 0.5
COLD_SECONDS = 60.0

QWEN_8B, LLAMA_70B, R1 = "Qwen/Qwen3-8B", "meta-llama/Llama-3.3-70B-Instruct", "deepseek-ai/DeepSeek-R1"
#: One or a few variants on one to eight devices: model, quantizations, hardware, more of the spec.
_Case = tuple[str, tuple[str, ...], str | Mapping[str, Any], Mapping[str, Any]]
#: Sixteen devices of which others use more or less, so that no two sets of them are alike.
UNEVEN = {"devices": [{"model": "h100-sxm", "memory_used": (7 * number % 50) << 30} for number in range(16)]}
TYPICAL: tuple[_Case, ...] = (
    (QWEN_8B, ("Q4_K_M",), "rtx3060", {}),
    (QWEN_8B, ("Q4_K_M",), "rtx4090", {"devices": "cpu"}),
    (QWEN_8B, ("awq",), "rtx4090", {"engine": "vllm"}),
    (QWEN_8B, ("fp8-block",), "h100-sxm", {"workload": {"concurrency": 32, "context_tokens": 8192}}),
    (QWEN_8B, ("bf16", "fp8-block", "awq"), "l40s:2", {}),
    (LLAMA_70B, ("fp8-static",), "h100-sxm:8", {}),
    (LLAMA_70B, ("awq",), "rtx3090:2", {}),
    (LLAMA_70B, ("awq",), "a6000", {"limits": {"max_model_len": 8192}}),
)
#: Much that does not fit, all variants that are published, many devices, some of them in use.
HARD: tuple[_Case, ...] = (
    (R1, (), "h100-sxm:8", {}),
    (R1, ("Q4_K_M",), "rtx3090:16", {}),
    (R1, ("Q8_0",), "h100-sxm:16", {}),
    (R1, (), "rtx3090:16", {}),
    ("meta-llama/Llama-3.1-405B-Instruct", (), "rtx4090:2", {}),
    ("Qwen/Qwen3-Coder-480B-A35B-Instruct", (), "h100-sxm:8", {}),
    (LLAMA_70B, (), "rtx4090:8", {"workload": {"concurrency": 64, "context_tokens": 32768}}),
    ("moonshotai/Kimi-K2.5", (), UNEVEN, {}),
)


def measure(_place: Place, *, quick: bool) -> list[Figure]:
    rounds = QUICK_ROUNDS if quick else ROUNDS
    typical, hard = [_request(case) for case in TYPICAL], [_request(case) for case in HARD]
    for request in (*typical, *hard):
        plan(request)
    rates = [_rate(typical) for _ in range(rounds)]
    slowest = [max(map(_taken, hard)) for _ in range(rounds)]
    cold = [_cold() for _ in range(rounds)]
    thousand, fifty = Target("1,000 plans a second", 1.0), Target("at most 50 ms", 50.0)
    first, imports = (Sample.of(values) for values in zip(*cold, strict=True))
    return [
        Figure(PART, f"{len(typical)} typical questions", "plans/s", Sample.of(rates)),
        Figure(PART, "one of them", "ms", Sample.of(1000 / rate for rate in rates), target=thousand),
        Figure(PART, "the first of a process, adapters imported before", "ms", first, target=fifty),
        Figure(PART, f"importing {len(ENGINES)} adapters", "ms", imports),
        Figure(PART, f"the slowest of {len(hard)} hard questions", "ms", Sample.of(slowest), target=fifty),
    ]


def _request(case: _Case) -> PlanRequest:
    model, quantizations, hardware, fields = case
    catalog, machine = shipped(), parse(hardware)
    entry = catalog.lookup(model)
    if entry is None:
        raise KeyError(model)
    options = tuple(
        Option(catalog.profile(entry, each), f"hf:{each.repo}", trust=each.trust)
        for each in catalog.variants(entry)
        if not quantizations or each.quantization in quantizations
    )
    return PlanRequest(
        spec=parse_spec({"name": "bench", "model": "file:/m/m.gguf", **fields}),
        generation=1,
        options=options,
        inventory=machine.inventory,
        policy=Policy(),
        engines=ENGINES,
        located=assumed(ENGINES),
        devices={id: DeviceState(used=used) for id, used in machine.used.items()},
    )


def _rate(requests: Sequence[PlanRequest]) -> float:
    """Plans a second of processor time, each question as often as the others."""
    made, started = 0, time.process_time()
    while (passed := time.process_time() - started) < ROUND:
        for request in requests:
            plan(request)
        made += len(requests)
    return made / passed


def _taken(request: PlanRequest) -> float:
    return _milliseconds(lambda: plan(request))


def _milliseconds(act: Callable[[], object]) -> float:
    started = time.process_time()
    act()
    return (time.process_time() - started) * 1000


def _cold() -> tuple[float, float]:
    """The first plan of a new process, and what importing the adapters took before it; milliseconds."""
    argv = [sys.executable, "-m", "scripts._bench.plans"]
    done = subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=COLD_SECONDS)
    first, imports = map(float, done.stdout.split())
    return first, imports


def main() -> None:
    """In a new process: prints the two numbers."""
    imports = _milliseconds(lambda: [ENGINES[name] for name in ENGINES])
    request = _request(TYPICAL[4])
    print(_taken(request), imports)


if __name__ == "__main__":
    main()
