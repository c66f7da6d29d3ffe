"""Cases of ../shared/memory/README.md, split in two before anything else looks at them: what was asked, by which we
predict, and what was measured, by which we judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

#: Arguments of llama.cpp's command line, which the cases keep beside its buffers.
_COMMAND_LINE = ("n_ctx", "n_batch", "n_ubatch", "flash_attn", "kv_type")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the operator asked of which engine, model and device. Nothing here was measured by the engine."""

    id: str = ""
    engine: str = ""
    vllm_generation: str = ""
    engine_version: str = ""
    model: str = ""
    models_json_key: str = ""
    architecture: str = ""
    quantization: str = ""
    quant_family: str = ""
    dtype: str = ""
    kv_cache_dtype: str = ""
    gpu: str = ""
    gpu_memory_gib: float | None = None
    n_gpus: int | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    data_parallel: int | None = None
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool | None = None
    block_size: int | None = None
    flags: str = ""
    n_ctx: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    flash_attn: bool | None = None
    kv_type: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    asked: Asked
    measured: Mapping[str, Any]


_NUMBERS = {
    "gpu_memory_gib", "n_gpus", "tensor_parallel", "pipeline_parallel", "data_parallel", "gpu_memory_utilization",
    "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "n_ctx", "n_batch", "n_ubatch",
}  # fmt: skip


def split(case: Mapping[str, Any]) -> Case:
    """The two halves. What is not an asked field is measured, whatever it is called; two asked ones also say what the
    measured ones count.
    """
    names = {field.name for field in fields(Asked)}
    nested = case.get("llama_cpp")
    arguments = nested if isinstance(nested, Mapping) else {}
    values: dict[str, Any] = {name: case.get(name) for name in names - set(_COMMAND_LINE)}
    values |= {name: arguments.get(name) for name in _COMMAND_LINE}
    asked = Asked(**{name: value for name, value in values.items() if _sound(name, value)})
    measured = {name: value for name, value in case.items() if name not in names or name in {"n_gpus", "block_size"}}
    return Case(asked, MappingProxyType(measured))


def _sound(name: str, value: object) -> bool:
    """Whether a value can be used; a null or nonsense counts as not stated."""
    if name in {"enforce_eager", "flash_attn"}:
        return isinstance(value, bool)
    if name in _NUMBERS:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e15
    return isinstance(value, str) and bool(value)
