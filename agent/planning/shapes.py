"""How ranks may be laid over devices: what of a model divides, and in which order ways to divide it are tried. Pure.

Sources: vLLM's `config/model.py` (`verify_with_parallel_config`), `model_executor/layers/linear.py`,
`layers/vocab_parallel_embedding.py` and `layers/quantization/` (`fp8.py`, `awq_marlin.py`, `gptq_marlin.py`); SGLang's
files of the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.engines.base import Capabilities
from agent.models.profile import AttentionKind, ModelProfile
from agent.planning.memory.base import padded
from agent.planning.memory.weights import VOCABULARY_PADDING

#: Each stage waits for the one before it; more than this on one machine would mostly wait.
MOST_STAGES = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """`tensor` ranks share each layer, `pipeline` stages follow each other, `data` replicas stand side by side."""

    tensor: int
    pipeline: int = 1
    data: int = 1

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        parts = [f"{self.tensor} tensor-parallel"] if self.tensor > 1 else []
        parts += [f"{self.pipeline} pipeline stages"] if self.pipeline > 1 else []
        parts += [f"{self.data} replicas"] if self.data > 1 else []
        return " x ".join(parts) or "one device"


class Shapes:
    """The ways for one model and engine; what divides is found once for each number of ranks."""

    def __init__(self, profile: ModelProfile, capabilities: Capabilities) -> None:
        self._profile = profile
        self._capabilities = capabilities
        self._problems: dict[int, str] = {}

    def problem(self, tensor: int) -> str:
        """Why so many ranks cannot share a layer; "" where they can."""
        if tensor not in self._problems:
            self._problems[tensor] = "" if tensor == 1 else next(_problems(self._profile, tensor), "")
        return self._problems[tensor]

    def whole(self, count: int) -> Iterator[Shape]:
        """All devices share each layer."""
        if count <= self._capabilities.most_devices and not self.problem(count):
            yield Shape(count)

    def staged(self, tensor: int, stages: int) -> Iterator[Shape]:
        """`stages` stages, each of `tensor` devices that share its layers."""
        able = self._capabilities.pipeline and tensor * stages <= self._capabilities.most_devices
        if able and 1 < stages <= min(MOST_STAGES, self._profile.layers) and not self.problem(tensor):
            yield Shape(tensor, stages)

    def replicas(self, shape: Shape, data: int) -> Iterator[Shape]:
        if self._capabilities.data and 1 < data * shape.devices <= self._capabilities.most_devices:
            yield Shape(shape.tensor, shape.pipeline, data)


def _problems(profile: ModelProfile, ranks: int) -> Iterator[str]:
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
    for what, width in _widths(profile):
        if width % ranks:
            yield f"the {what} width {width} does not divide by {ranks}"
        elif (group := _group(profile)) and (width // ranks) % group:
            yield f"{width // ranks} of the {what} width on each rank is no multiple of the quantization's {group}"


def _attention_heads(profile: ModelProfile) -> set[tuple[int, int]]:
    """(query heads, KV heads) of the layers that attend; MLA's one latent is on every rank."""
    found = {
        (at.heads, 0 if at.latent else at.kv_heads)
        for at in (layer.attention for layer in profile.layer_details)
        if at.heads and at.kind not in {AttentionKind.LINEAR, AttentionKind.MAMBA, AttentionKind.NONE}
    }
    return found or {(profile.heads, max(profile.kv_heads, default=0))}


def _widths(profile: ModelProfile) -> Iterator[tuple[str, int]]:
    """What is split along its input: inner widths of feed-forwards."""
    if profile.feed_forward_length and (profile.moe is None or profile.moe.layers < profile.layers):
        yield "feed-forward", profile.feed_forward_length
    if profile.moe is not None and profile.moe.length:
        yield "experts'", profile.moe.length


def _group(profile: ModelProfile) -> int:
    """Weights that share a scale along the input: they cannot be on two ranks. NVFP4 and MXFP4 kernels pad instead."""
    stored = profile.quantization_config
    if stored is None or stored.scheme in {"nvfp4", "mxfp4"}:
        return 0
    return stored.block[1] or stored.group_size
