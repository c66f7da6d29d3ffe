"""The words of the memory model: what an engine is asked to do, what it will use, and whether that fits.

Sizes are bytes, lengths are tokens. Pure data and arithmetic: nothing here measures anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter, le

from agent.models.profile import ModelProfile
from agent.planning.plan import MemoryTerm

KIB, MIB, GIB = 1024, 1024**2, 1024**3


class Verdict(StrEnum):
    FITS = "fits"
    CONDITIONAL = "fits-if"  # as asked it does not, or may not; the condition says what to change
    TOO_LARGE = "does-not-fit"
    UNSURE = "unsure"  # within the uncertainty of the terms, or a term cannot be known


@dataclass(frozen=True, slots=True)
class Card:
    """One device, as the engine will see it at its start."""

    total: int
    free: int | None = None  # None: not known; nobody else's memory is assumed on it
    name: str = ""  # as the driver says it
    capability: tuple[int, int] = (0, 0)  # NVIDIA's compute capability; (0, 0): not known
    vendor: str = "nvidia"
    unified: bool = False  # shares its memory with the host


#: What may be asked of each number; 0 stands for the engine's default.
_BOUNDS = {
    "tensor": (1, 4096), "pipeline": (1, 1024), "data": (1, 4096), "max_model_len": (0, 1 << 40),
    "max_num_seqs": (0, 1 << 24), "max_num_batched_tokens": (0, 1 << 30), "block": (0, 1 << 20), "ubatch": (0, 1 << 30),
    "lora_slots": (0, 4096), "lora_rank": (1, 4096), "speculative": (0, 1024),
}  # fmt: skip
_numbers = attrgetter(*_BOUNDS)
_LEAST, _MOST = zip(*_BOUNDS.values(), strict=True)


@dataclass(frozen=True, slots=True)
class Request:
    """What an engine is asked to do. Zero and None stand for the engine's own default."""

    engine: str
    card: Card
    version: tuple[int, ...] = ()  # () is the newest that is known here
    tensor: int = 1  # ranks that share each layer
    pipeline: int = 1  # stages
    data: int = 1  # replicas; with `data_attention` they share the experts
    expert: bool = False  # whole experts on ranks instead of slices of all
    data_attention: bool = False  # attention is replicated over `data`, not split over `tensor` (SGLang)
    utilization: float | None = None  # share of the device's memory that the engine may plan with
    max_model_len: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    block: int = 0  # tokens a block of the cache
    kv_dtype: str = "auto"
    eager: bool = False  # no CUDA graphs
    quantization: str = ""  # applied while loading a 16-bit model: "fp8", "bitsandbytes"
    draft: ModelProfile | None = None
    speculative: int = 0  # tokens proposed a step
    predictor: bool = False  # the model's own MTP layers are the draft
    lora_slots: int = 0
    lora_rank: int = 16
    text_only: bool = False  # towers are not loaded
    profile_media: bool = True  # the start-up's trial run has the largest media inputs in it
    prefix_caching: bool = True
    state_dtype: str = ""  # of recurrent states; "": the engine's default
    legacy: bool = False  # vLLM's first generation (V0)
    overlaid: bool = False  # vLLM's second model runner (VLLM_USE_V2_MODEL_RUNNER)
    ubatch: int = 0  # llama.cpp: tokens of one physical batch
    flash: bool = True  # llama.cpp: flash attention

    def __post_init__(self) -> None:
        """Raises `ValueError` for what no engine could be asked."""
        values = _numbers(self)
        if not (all(map(le, _LEAST, values)) and all(map(le, values, _MOST))):
            for value, (name, (least, most)) in zip(values, _BOUNDS.items(), strict=True):
                if not least <= value <= most:
                    raise ValueError(f"{name} must be {least} to {most}, not {value}")
        if self.utilization is not None and not 0 < self.utilization <= 1:
            raise ValueError(f"utilization must be above 0 and at most 1, not {self.utilization}")
        if not 0 < self.card.total <= 1 << 50:
            raise ValueError(f"card.total must be 1 to {1 << 50}, not {self.card.total}")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one device will hold, worst of those of a deployment, and what comes of it."""

    terms: tuple[MemoryTerm, ...]  # without the cache pool
    pool: MemoryTerm | None  # None: it cannot be known, because the device's memory is not
    tokens: int = 0  # of the pool, as the engine would print it
    concurrency: float = 0.0  # requests of the longest length that the pool holds at once
    bytes_per_token: float = 0.0  # of the pool, as the engine counts tokens
    needed: int = 0  # bytes of cache that one request of the longest length takes
    beyond: MemoryTerm | None = None  # taken after the pool is sized, on top of the budget
    verdict: Verdict = Verdict.UNSURE
    shortfall: int = 0  # bytes that are missing
    reason: str = ""
    remedy: str = ""  # what would make it fit
    assumed: tuple[str, ...] = ()  # what was not stated, as sentences

    def term(self, name: str) -> MemoryTerm | None:
        return next((term for term in self.terms if term.name == name), None)


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def divided(size: int, parts: int) -> int:
    """The larger part: whatever does not divide evenly is rounded up."""
    return -(-size // max(1, parts))


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def spread(terms: Sequence[MemoryTerm]) -> int:
    """How far the sum of the terms may be off. They are independent: the root of the sum of squares."""
    return int(sum([term.uncertainty**2 for term in terms]) ** 0.5)


@dataclass(frozen=True, slots=True)
class Dtype:
    """How a cache stores one vector of a head."""

    bits: int
    group: int = 0  # values that share a scale; 0: none
    scale: int = 0  # bytes of a scale


#: Cache types by the names that engines use; vLLM's `kv_cache_dtype`, SGLang's and llama.cpp's.
CACHE_TYPES = {
    "auto": Dtype(16), "float16": Dtype(16), "bfloat16": Dtype(16), "f16": Dtype(16), "bf16": Dtype(16),
    "float32": Dtype(32), "f32": Dtype(32), "fp8": Dtype(8), "fp8_e4m3": Dtype(8), "fp8_e5m2": Dtype(8),
    "fp8_inc": Dtype(8), "int8": Dtype(8), "nvfp4": Dtype(4, 16, 1), "fp4_e2m1": Dtype(4, 16, 1),
    "int8_per_token_head": Dtype(8, -1, 4), "fp8_per_token_head": Dtype(8, -1, 4),
    "int4_per_token_head": Dtype(4, -1, 4), "q8_0": Dtype(8, 32, 2), "q5_1": Dtype(5, 32, 4), "q5_0": Dtype(5, 32, 2),
    "q4_1": Dtype(4, 32, 4), "q4_0": Dtype(4, 32, 2), "iq4_nl": Dtype(4, 32, 2), "int4": Dtype(4, 32, 2),
}  # fmt: skip


def vector_bytes(kind: str, length: int) -> int:
    """Bytes of one vector of `length` values in the cache. Raises `KeyError` for a type that is not known."""
    dtype = CACHE_TYPES[kind]
    values = -(-length * dtype.bits // 8)
    if dtype.group < 0:
        return values + dtype.scale
    return values + (-(-length // dtype.group) * dtype.scale if dtype.group else 0)
