"""What SGLang itself says of device memory at the start. Sources (version 0.5.23): `model_executor/model_runner.py`
(`load_model`), `mem_cache/memory_pool.py` (`_finalize_allocation_log`), `model_runner_components/cuda_graph_setup.py`.

Sizes are GiB with two decimals, although the lines say GB. Each rank writes its own lines, marked with its place.
"""

from __future__ import annotations

import re

from agent.engines.ranks import other_weights
from agent.planning.ledger import CACHE, WEIGHTS, MeasuredTerm
from agent.planning.memory.base import GIB
from agent.planning.plan import Placement, Plan

GRAPHS, STATES = "CUDA graphs", "recurrent states"
#: "[2026-11-21 10:00:00 DP1 PP0 TP3 EP3] Load weight end. ..."
_LINE = re.compile(r"^\[[\d-]+ [\d:]+((?: [A-Z_]+\d+)*)\] (.*)$", re.MULTILINE)
_RANK = re.compile(r"\b(DP|PP|TP)(\d+)")
_WEIGHTS = re.compile(r"Load weight end\..* mem usage=([\d.]+) GB")
_CACHE = re.compile(r"KV Cache is allocated\..* K size: ([\d.]+) GB, V size: ([\d.]+) GB")
_LATENT = re.compile(r"KV Cache is allocated\..* KV size: ([\d.]+) GB")
_STATES = re.compile(r"Mamba Cache is allocated\..* conv_state size: ([\d.]+)GB, ssm_state size: ([\d.]+)GB")
_GRAPHS = re.compile(r"Capture .* graph end\..* mem usage=([\d.]+) GB")
_TERMS = ((_WEIGHTS, WEIGHTS), (_CACHE, CACHE), (_LATENT, CACHE), (_STATES, STATES), (_GRAPHS, GRAPHS))


def parse(log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
    """Weights, cache, states and graphs of each device; nothing unless every device tells of weights and cache."""
    placement = plan.placement
    count = placement.tensor * placement.pipeline * placement.data
    found: dict[tuple[int, str], float] = {}
    for marks, text in _LINE.findall(log):
        device = _device(marks, placement)
        for pattern, term in _TERMS:
            if match := pattern.search(text):
                place = (device, term)
                found[place] = found.get(place, 0.0) + sum(map(float, match.groups()))
    if any((device, term) not in found for device in range(count) for term in (WEIGHTS, CACHE)):
        return ()
    for device in range(count):
        found[device, WEIGHTS] -= other_weights(plan, device) / GIB
    return tuple(
        MeasuredTerm(str(device), term, round(size * GIB)) for (device, term), size in found.items() if device < count
    )


def _device(marks: str, placement: Placement) -> int:
    """The place of a rank's device: replicas follow each other, in each the stages, in each the ranks of a layer."""
    at = {name: int(number) for name, number in _RANK.findall(marks)}
    return (at.get("DP", 0) * placement.pipeline + at.get("PP", 0)) * placement.tensor + at.get("TP", 0)
