"""What vLLM itself says of device memory at the start. Sources (versions 0.32 and 0.33): `v1/worker/gpu_worker.py`
(`determine_available_memory`, `compile_or_warm_up_model`), `v1/worker/gpu_model_runner.py` (`load_model`).

Sizes are GiB with two decimals. Each rank writes lines of its own, marked with its place; of some only the first rank's
are written, and then all ranks of a stage hold the same. On a CPU nothing is said of weights.
"""

from __future__ import annotations

import re

from agent.engines.ranks import other_weights
from agent.planning.ledger import CACHE, WEIGHTS, MeasuredTerm
from agent.planning.memory.base import GIB
from agent.planning.plan import Placement, Plan

#: As `agent.planning.memory.vllm` names its terms.
ACTIVATION, GRAPHS, OUTSIDE = "activation peak", "CUDA graphs", "outside of PyTorch"
_CONSUMED = "weights and outside"
#: "(Worker_DP0_PP0_TP1 pid=77) INFO 11-21 10:00:00 [gpu_worker.py:760] ..."; one rank alone: "(EngineCore pid=77) ...".
_LINE = re.compile(r"^\((?:Worker|EngineCore)((?:_[A-Z]+\d+)*) pid=\d+\) (.*)$", re.MULTILINE)
_RANK = re.compile(r"_(DP|PP|TP)(\d+)")
_SIZE = r"(-?\d+(?:\.\d+)?)"
_TERMS = (
    (re.compile(rf"Model loading took {_SIZE} GiB"), WEIGHTS),
    (re.compile(rf"Available KV cache memory: {_SIZE} GiB"), CACHE),
    (re.compile(rf"Actual usage is {_SIZE} GiB for consumed memory"), _CONSUMED),
    (re.compile(rf"{_SIZE} GiB for peak activation"), ACTIVATION),
    # What was estimated is what the pool lacks; what the graphs took really may be more or less.
    (re.compile(rf"CUDA graph pool memory: .* {_SIZE} GiB \(estimated\)"), GRAPHS),
)


def parse(log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
    """Weights, cache, activations and graphs of each device; nothing unless weights and cache of every one are told."""
    placement = plan.placement
    devices = range(placement.tensor * placement.pipeline * placement.data)
    if placement.accelerator == "cpu":
        return ()
    found = _sizes(log, placement)
    for device in devices:
        first = device - device % placement.tensor
        for _, term in _TERMS:
            if (first, term) in found:
                found.setdefault((device, term), found[first, term])
    if any((device, term) not in found for device in devices for term in (WEIGHTS, CACHE)):
        return ()
    for device in devices:
        consumed = found.pop((device, _CONSUMED), None)
        if consumed is not None:
            found[device, OUTSIDE] = max(0.0, consumed - found[device, WEIGHTS])
        found[device, WEIGHTS] -= other_weights(plan, device) / GIB
    return tuple(
        MeasuredTerm(str(device), term, round(size * GIB))
        for (device, term), size in sorted(found.items())
        if device in devices
    )


def _sizes(log: str, placement: Placement) -> dict[tuple[int, str], float]:
    """GiB by device and term, as they were told last."""
    found: dict[tuple[int, str], float] = {}
    for marks, text in _LINE.findall(log):
        for pattern, term in _TERMS:
            if match := pattern.search(text):
                found[_device(marks, placement), term] = float(match[1])
    return found


def _device(marks: str, placement: Placement) -> int:
    """The place of a rank's device: replicas follow each other, in each the stages, in each the ranks of a layer."""
    at = {name: int(number) for name, number in _RANK.findall(marks)}
    return (at.get("DP", 0) * placement.pipeline + at.get("PP", 0)) * placement.tensor + at.get("TP", 0)
