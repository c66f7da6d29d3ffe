"""From what a case asks to a request of the memory model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.hardware import catalog
from agent.planning.memory.base import GIB, MIB, Card, Request
from scripts._bench.memory.cases import Asked

#: Names of GPUs in the cases that the catalog's do not contain, by what they do contain.
_SHORT = (
    ("b300", "b300"), ("b200", "b200"), ("h200", "h200-sxm"), ("h100 nvl", "h100-nvl"), ("h100", "h100-sxm"),
    ("a100-sxm4-40", "a100-40-sxm"), ("a100 40", "a100-40-sxm"), ("a100-pcie-40", "a100-40-pcie"),
    ("a100", "a100-80-sxm"), ("l40s", "l40s"), ("l4", "l4"), ("a10g", "a10g"), ("a10", "a10"), ("t4", "t4"),
    ("mi300x", "mi300x"), ("mi325", "mi325x"), ("mi355", "mi355x"), ("rtx 6000 ada", "rtx6000ada"),
    ("pro 6000", "rtxpro6000"), ("3090", "rtx3090"), ("4090", "rtx4090"), ("5090", "rtx5090"), ("5080", "rtx5080"),
    ("a6000", "a6000"), ("gb10", "gb10"), ("4080", "rtx4080"), ("3060", "rtx3060"),
)  # fmt: skip
#: What CUDA shows of a device is a little less than its memory.
_SHOWN = 0.9845


@dataclass(frozen=True, slots=True)
class Question:
    request: Request
    stated: frozenset[str]  # which of memory, utilization, length, ranks the case states


def question(asked: Asked) -> Question:
    stated = set()
    card, known = _card(asked)
    if known:
        stated.add("memory")
    if asked.gpu_memory_gib is not None:
        stated.add("exact memory")
    if asked.gpu_memory_utilization is not None:
        stated.add("utilization")
    if asked.max_model_len or asked.n_ctx:
        stated.add("length")
    tensor, pipeline, data = asked.tensor_parallel, asked.pipeline_parallel or 1, asked.data_parallel or 1
    flags = asked.flags.lower()
    if tensor is None and asked.n_gpus is not None:
        replicas = data if asked.engine == "vllm" else 1  # SGLang counts them among the ranks of a layer
        tensor = max(1, int(asked.n_gpus) // max(1, int(pipeline * replicas)))
    if tensor is not None:
        stated.add("ranks")
    attention = "dp-attention" in flags or "dp_attention" in flags
    request = Request(
        engine={"ik_llama.cpp": "llama.cpp"}.get(asked.engine, asked.engine),
        card=card,
        version=_version(asked),
        tensor=int(tensor or 1),
        pipeline=int(pipeline),
        data=int(data),
        expert="expert-parallel" in flags or "deepep" in flags,
        data_attention=attention,
        utilization=_fraction(asked, flags),
        max_model_len=int(asked.max_model_len or asked.n_ctx or 0),
        max_num_seqs=int(asked.max_num_seqs or 0),
        max_num_batched_tokens=int(asked.max_num_batched_tokens or asked.n_batch or 0),
        block=int(asked.block_size or 0),
        kv_dtype=_cache_type(asked),
        eager=bool(asked.enforce_eager),
        speculative=1 if "eagle" in f"{flags} {asked.model.lower()}" else 0,
        predictor="mtp" in flags,
        text_only="language-model-only" in flags,
        profile_media=not re.search(r"(?<!without --)skip-mm-profiling", flags),
        prefix_caching="no-enable-prefix-caching" not in flags,
        state_dtype="float16" if "ssm-cache-dtype float16" in flags else "",
        legacy=_legacy(asked),
        overlaid="v2_model_runner=1" in flags,
        ubatch=int(asked.n_ubatch or 0),
        flash=asked.flash_attn is not False,
    )
    return Question(request, frozenset(stated))


def _fraction(asked: Asked, flags: str) -> float | None:
    if asked.gpu_memory_utilization is not None:
        return float(asked.gpu_memory_utilization)
    match = re.search(r"mem-fraction-static[ =](0?\.\d+)", flags)
    return float(match[1]) if match else None


def _card(asked: Asked) -> tuple[Card, bool]:
    gpu = asked.gpu.lower()
    found = next((catalog.find(id) for word, id in _SHORT if re.search(rf"(?<![a-z0-9]){word}(?![0-9])", gpu)), None)
    major, _, minor = (found.compute_capability if found else "").partition(".")
    capability = (int(major), int(minor or 0)) if major else (0, 0)
    vendor = "amd" if "rocm" in gpu or "amd" in gpu or (found and found.vendor == "amd") else "nvidia"
    unified = "unified" in gpu or bool(found and found.memory_kind == "unified")
    total = 0
    if asked.gpu_memory_gib is not None:
        total = int(asked.gpu_memory_gib * GIB)
    elif match := re.search(r"(\d+)\s*mib", gpu):
        total = int(int(match[1]) * MIB * _SHOWN)
    elif found is not None:
        total = int(found.memory_bytes * (1 if unified else _SHOWN))
    elif match := re.search(r"(\d+)\s*gi?b", gpu):
        total = int(int(match[1]) * GIB * _SHOWN)
    name = found.name if found is not None else asked.gpu
    return Card(total or 1, None, name, capability, vendor, unified), bool(total)


def _version(asked: Asked) -> tuple[int, ...]:
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", asked.engine_version)
    if asked.engine_version.startswith("0.1.dev"):  # built from a working tree: of the summer of 2026
        return (0, 29, 0)
    if match:
        return tuple(int(part or 0) for part in match.groups())
    return _guessed(asked) if asked.engine == "vllm" else ()


#: Versions that first ran a model, or had an argument; and the newest version at the time of writing.
_FIRST = (
    (r"deepseek-v4", (0, 24, 0)), (r"gemma-4", (0, 19, 0)), (r"qwen3\.[5-9]", (0, 17, 0)),
    (r"qwen3-next", (0, 10, 2)), (r"gpt-oss", (0, 10, 1)), (r"qwen3", (0, 8, 5)),
)  # fmt: skip
_FIRST_ARGUMENT = ((r"mamba-cache-mode", (0, 21, 0)), (r"v2_model_runner", (0, 27, 0)), (r"mm-profiling", (0, 21, 0)))


def _guessed(asked: Asked) -> tuple[int, ...]:
    """The likeliest version where none is stated. The default share of memory was 0.9 first, and is 0.92 now; who
    states 0.92 runs one whose default it is.
    """
    version = (0, 7, 0) if asked.vllm_generation == "V0" else (0, 11, 0)
    if asked.gpu_memory_utilization == 0.92:
        version = (0, 24, 0)
    for pattern, first in (*_FIRST, *_FIRST_ARGUMENT):
        if re.search(pattern, f"{asked.model} {asked.models_json_key} {asked.flags}".lower()):
            version = max(version, first)
    return version


def _legacy(asked: Asked) -> bool:
    return asked.vllm_generation == "V0" and not asked.engine_version.startswith("0.1.dev")


def _cache_type(asked: Asked) -> str:
    stated = (asked.kv_type or asked.kv_cache_dtype or "auto").lower()
    for word in ("fp8_ds_mla", "fp8_e5m2", "fp8", "q8_0", "q4_0", "q5_1", "q5_0", "q4_1", "bf16", "f16"):
        if word in stated:
            return word
    return "auto"
