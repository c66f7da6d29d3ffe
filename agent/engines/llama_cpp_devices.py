"""llama.cpp's devices: what an executable lists, and how a plan's placement is said in its flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from agent.engines.base import EngineDevice
from agent.planning.plan import Plan

LIST_DEVICES = "--list-devices"

#: The names that ggml gives to its backends' devices, before their number (`GGML_CUDA_NAME` and so on).
PREFIXES: Mapping[str, str] = MappingProxyType(
    {"cuda": "CUDA", "rocm": "ROCm", "sycl": "SYCL", "metal": "MTL", "vulkan": "Vulkan"}
)
_ACCELERATORS = {prefix: accelerator for accelerator, prefix in PREFIXES.items()} | {"Metal": "metal"}
#: "  CUDA0: NVIDIA H200 (143167 MiB, 142604 MiB free)"; the name may hold parentheses itself.
_LINE = re.compile(r"^\s+((CUDA|ROCm|SYCL|MTL|Metal|Vulkan)\d*): (.+) \(\d+ MiB, \d+ MiB free\)\s*$", re.MULTILINE)


def listed(text: str) -> tuple[EngineDevice, ...]:
    """The devices in the output of `--list-devices`; those of backends that are not known here are left out."""
    return tuple(
        EngineDevice(_ACCELERATORS[kind], name, description) for name, kind, description in _LINE.findall(text)
    )


def names_of(plan: Plan) -> tuple[str, ...]:
    """The engine's own names of the plan's devices, in their order."""
    prefix = PREFIXES[plan.placement.accelerator] if plan.devices else ""
    return plan.placement.names or tuple(f"{prefix}{index}" for index in range(len(plan.devices)))


def flags(plan: Plan) -> tuple[str, ...]:
    """Which devices, how many layers on them, and how many on each."""
    placement = plan.placement
    if not plan.devices:
        return ("--device", "none")
    names = names_of(plan)
    split = ("--split-mode", "layer", "--tensor-split", ",".join(map(str, placement.layers))) if len(names) > 1 else ()
    return ("--device", ",".join(names), "--n-gpu-layers", str(sum(placement.layers)), *split)
