"""What TensorRT-LLM itself says of device memory at the start. Source: `_torch/pyexecutor/_util.py` (`KvCacheCreator`,
which prints both lines in each rank's log after its trial run).
"""

from __future__ import annotations

import re

from agent.engines.ranks import other_weights
from agent.planning.ledger import CACHE, WEIGHTS, MeasuredTerm
from agent.planning.memory.base import GIB
from agent.planning.plan import Plan

#: "[01/16/2026-06:20:15] [TRT-LLM] [RANK 0] [I] Peak memory ..."; a single rank has no mark.
_LINE = re.compile(r"^\[[\d/:-]+\] \[TRT-LLM\] (?:\[RANK (\d+)\] )?\[I\] (.*)$", re.MULTILINE)
_WEIGHTS = re.compile(
    r"Memory used after loading model weights \(inside torch\) in memory usage profiling: ([\d.]+) GiB"
)
_CACHE = re.compile(r"available KV cache memory when calculating max tokens: ([\d.]+) GiB")


def parse(log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
    """Weights and cache of each device; nothing unless every device tells of both. The last trial run counts."""
    count = plan.placement.tensor * plan.placement.pipeline
    found: dict[tuple[int, str], float] = {}
    for rank, text in _LINE.findall(log):
        for pattern, term in ((_WEIGHTS, WEIGHTS), (_CACHE, CACHE)):
            if match := pattern.search(text):
                found[int(rank or 0), term] = float(match[1])
    if any((device, term) not in found for device in range(count) for term in (WEIGHTS, CACHE)):
        return ()
    for device in range(count):
        found[device, WEIGHTS] -= other_weights(plan, device) / GIB
    return tuple(
        MeasuredTerm(str(device), term, round(size * GIB)) for (device, term), size in found.items() if device < count
    )
