"""How ranks may be laid over devices: what of a model divides, and in which order ways to divide it are tried. Pure.

Sources: vLLM's `config/model.py` (`verify_with_parallel_config`), `model_executor/layers/linear.py`,
`layers/vocab_parallel_embedding.py` and `layers/quantization/` (`fp8.py`, `awq_marlin.py`, `gptq_marlin.py`); SGLang's
files of the same names; TensorRT-LLM's `mapping.py` and `_torch/modules/fused_moe/` (the number of experts divides).
Groups of quantized weights are never cut: vLLM refuses to load them (its issues 1816, 13640, 21695), so that Qwen pads
what it publishes (29568 to 29696 in its quantized 72B: QwenLM/Qwen3 issue 578).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.engines.base import Capabilities
from agent.models.profile import AttentionKind, ModelProfile
from agent.planning.memory.base import padded
from agent.planning.memory.layers import layers_of
from agent.planning.memory.weights import VOCABULARY_PADDING, Split
from agent.planning.plan import Placement

#: Each stage waits for the one before it; more than this on one machine would mostly wait.
MOST_STAGES = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """`tensor` ranks share each layer, `pipeline` stages follow each other, `data` replicas stand side by side. With
    `experts` each rank of a layer has whole experts of it, and a part of everything else.
    """

    tensor: int
    pipeline: int = 1
    data: int = 1
    experts: bool = False

    @classmethod
    def of(cls, placement: Placement) -> Shape:
        return cls(placement.tensor, placement.pipeline, placement.data, placement.experts)

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def split(self) -> Split:
        """Of the first stage."""
        return Split(self.tensor, self.tensor, self.tensor * self.data, 0, self.pipeline, self.experts)

    def __str__(self) -> str:
        whole = " with whole experts" if self.experts else ""
        parts = [f"{self.tensor} tensor-parallel{whole}"] if self.tensor > 1 else []
        parts += [f"{self.pipeline} pipeline stages"] if self.pipeline > 1 else []
        parts += [f"{self.data} replicas"] if self.data > 1 else []
        return " x ".join(parts) or "one device"


class Shapes:
    """The ways for one model and engine; what divides is found once for each number of ranks."""

    def __init__(self, profile: ModelProfile, capabilities: Capabilities) -> None:
        self._profile = profile
        self._capabilities = capabilities
        self._problems: dict[tuple[int, bool], str] = {}

    @property
    def offers_experts(self) -> bool:
        """Whether ranks could have whole experts: of the formats that this was read for, 16 bit and FP8 in blocks."""
        stored = self._profile.quantization_config
        readable = stored is None or (stored.method == "fp8" and bool(stored.block[1]))
        return self._capabilities.experts and self._profile.moe is not None and readable

    def problem(self, tensor: int, *, whole: bool = False) -> str:
        """Why so many ranks cannot share a layer, with `whole` experts on each; "" where they can."""
        key = (tensor, whole)
        if key not in self._problems:
            self._problems[key] = "" if tensor == 1 else next(_problems(self._profile, tensor, whole=whole), "")
        return self._problems[key]

    def whole(self, count: int) -> Iterator[Shape]:
        """All devices share each layer; where experts cannot be sliced so often, each device has some whole ones: what
        vLLM's maintainers advise then (issue 17327). Otherwise slices take no more memory, and no device waits for the
        one whose experts are asked most (`docs/serving/expert_parallel_deployment.md`, on its load balancer).
        """
        if count > self._capabilities.most_devices:
            return
        if not self.problem(count):
            yield Shape(count)
        elif self.offers_experts and not self.problem(count, whole=True):
            yield Shape(count, experts=True)

    def staged(self, tensor: int, stages: int) -> Iterator[Shape]:
        """`stages` stages, each of `tensor` devices that share its layers."""
        able = self._capabilities.pipeline and tensor * stages <= self._capabilities.most_devices
        if able and 1 < stages <= min(MOST_STAGES, self._profile.layers) and not self.problem(tensor):
            yield Shape(tensor, stages)

    def replicas(self, shape: Shape, data: int) -> Iterator[Shape]:
        if (
            self._capabilities.data
            and not shape.experts
            and 1 < data * shape.devices <= self._capabilities.most_devices
        ):
            yield Shape(shape.tensor, shape.pipeline, data)


def _problems(profile: ModelProfile, ranks: int, *, whole: bool = False) -> Iterator[str]:
    """`whole`: experts are not sliced."""
    heads = _attention_heads(profile)
    if any(query % ranks for query, _ in heads):
        query = next(query for query, _ in heads if query % ranks)
        yield f"{query} attention heads do not divide by {ranks}"
    if any(kv and kv % ranks and ranks % kv for _, kv in heads):
        kv = next(kv for _, kv in heads if kv and kv % ranks and ranks % kv)
        yield f"{kv} KV heads neither divide by {ranks} nor do they divide it"
    rows = padded(profile.vocabulary, VOCABULARY_PADDING)
    if rows % ranks:
        yield f"{rows} rows of the vocabulary do not divide by {ranks}"
    if whole and profile.moe is not None and profile.moe.count % ranks:
        yield f"{profile.moe.count} experts do not divide by {ranks}"
    for what, width in _widths(profile, whole=whole):
        if width % ranks:
            yield f"the {what} width {width} does not divide by {ranks}"
        elif (group := _group(profile)) and (width // ranks) % group:
            yield f"{width // ranks} of the {what} width on each rank is no multiple of the quantization's {group}"


def _attention_heads(profile: ModelProfile) -> set[tuple[int, int]]:
    """(query heads, KV heads) of the layers that attend; MLA's one latent is on every rank."""
    found = {
        (at.heads, 0 if at.latent else at.kv_heads)
        for at in layers_of(profile).different
        if at.heads and at.kind not in {AttentionKind.LINEAR, AttentionKind.MAMBA, AttentionKind.NONE}
    }
    return found or {(profile.heads, max(profile.kv_heads, default=0))}


def _widths(profile: ModelProfile, *, whole: bool) -> Iterator[tuple[str, int]]:
    """What is split along its input: inner widths of feed-forwards. Of whole experts, only the shared ones'."""
    if profile.feed_forward_length and (profile.moe is None or profile.moe.layers < profile.layers):
        yield "feed-forward", profile.feed_forward_length
    if profile.moe is None:
        return
    if whole and profile.moe.shared_length:
        yield "shared experts'", profile.moe.shared_length
    elif not whole and profile.moe.length:
        yield "experts'", profile.moe.length


def _group(profile: ModelProfile) -> int:
    """Weights that share a scale along the input: they cannot be on two ranks. NVFP4 and MXFP4 kernels pad instead."""
    stored = profile.quantization_config
    if stored is None or stored.scheme in {"nvfp4", "mxfp4"}:
        return 0
    return stored.block[1] or stored.group_size
