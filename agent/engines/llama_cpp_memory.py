"""How llama.cpp's memory behaves, on host and devices: exact where its allocators are, measured where they are not.

The formulas, and how they compare with real runs: docs/decisions/0003-llama-cpp-memory.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from types import MappingProxyType

from agent.models.profile import ModelProfile
from agent.planning.memory.layers import remembered
from agent.planning.memory.llama_cpp import cells_before
from agent.planning.plan import Limits, MemoryTerm, Placement

#: Bytes per element of the cache types: ggml's block sizes (q8_0: 32 values in 34 bytes, and so on).
CACHE_BYTES: Mapping[str, float] = MappingProxyType(
    {
        "f32": 4.0,
        "f16": 2.0,
        "bf16": 2.0,
        "q8_0": 34 / 32,
        "q5_1": 24 / 32,
        "q5_0": 22 / 32,
        "q4_1": 20 / 32,
        "q4_0": 18 / 32,
        "iq4_nl": 18 / 32,
    }
)
#: Tokens computed at once while generating: llama-server's own default. More costs memory and gains little on a CPU.
PHYSICAL_BATCH = 512
#: Cells of a slot are allocated in multiples of this many tokens (`GGML_PAD(n_ctx, 256)` in llama-context.cpp).
CELL_PADDING = 256
#: Architectures whose graph was measured; for others the compute buffer is the same formula with a wide margin.
_MEASURED = frozenset({"llama"})
_MIB = 1024**2
#: Limits of one model whose sizes are kept: those of a search that is under way.
_KEPT = 16
#: `GGML_SCHED_MAX_COPIES` of the builds that are published.
PIPELINE_DEPTH = 4
#: How much the layers of one file may differ from their average: Q4_K_M keeps part of every third in Q6_K.
_LAYERS_DIFFER = 0.08
#: Device memory outside llama.cpp's own buffers (driver context, kernels, library workspaces): what its exit report
#: calls unaccounted, in public logs on devices without other users.
_CONTEXTS: Mapping[str, MemoryTerm] = MappingProxyType(
    {
        "cuda": MemoryTerm("context", 512 * _MIB, "451 to 753 MiB in public logs", uncertainty=256 * _MIB),
        "rocm": MemoryTerm("context", 320 * _MIB, "253 to 318 MiB in public logs", uncertainty=160 * _MIB),
    }
)
_OTHER_CONTEXT = MemoryTerm("context", 320 * _MIB, "as ROCm's; not measured", uncertainty=320 * _MIB)
#: Code and libraries 24 MiB, heap and HTTP threads 18 MiB, measured; the rest is for requests in flight.
_PROCESS = MemoryTerm("process", 48 * _MIB, "measured", uncertainty=8 * _MIB)
_RUNTIME = MemoryTerm("accelerator's libraries", 256 * _MIB, "estimate, not measured", uncertainty=128 * _MIB)


def physical_batch(limits: Limits, task: str) -> int:
    """Tokens computed at once (`--ubatch-size`). A whole input must fit where the answer is one vector: the server
    refuses longer ones.
    """
    if task in {"embedding", "rerank"}:
        return limits.max_model_len
    return min(PHYSICAL_BATCH, limits.max_num_batched_tokens)


def memory_terms(
    profile: ModelProfile, limits: Limits, task: str, placement: Placement
) -> tuple[tuple[MemoryTerm, ...], ...]:
    """Of the host, then of each device.

    Layers are numbered from 0; the output comes after the last one and is `profile.layers`. The last ones lie on
    devices, in the order of these (`get_layer_buft_list` in llama-model.cpp); the input is always the CPU's.
    """
    sizes = _sizes(profile, limits, task)
    first = profile.layers + 1 - sum(placement.layers)
    terms, start = [_host(sizes, placement, first)], first
    for count in placement.layers:
        terms.append(_device(sizes, placement, range(start, start + count)))
        start += count
    return tuple(terms)


def _sizes(profile: ModelProfile, limits: Limits, task: str) -> _Sizes:
    known: dict[tuple[Limits, str], _Sizes] = remembered(profile, ("llama.cpp",), dict)
    found = known.get((limits, task))
    if found is None:
        if len(known) >= _KEPT:
            known.clear()
        found = known[limits, task] = _Sizes(profile, limits, task)
    return found


class _Sizes:
    """What does not depend on where layers lie: a plan asks for hundreds of placements with the same limits."""

    def __init__(self, profile: ModelProfile, limits: Limits, task: str) -> None:
        self.profile, self.limits, self.task = profile, limits, task
        self.layer = _layer_bytes(profile)
        self._cells = _slot_cells(limits) * limits.max_num_seqs
        self._cache = _cache_before(profile, limits, task)
        self._compute: dict[tuple[str, int], tuple[MemoryTerm, ...]] = {}
        self.devices: dict[tuple[range, int, str], tuple[MemoryTerm, ...]] = {}

    def cache(self, layers: range) -> MemoryTerm:
        most = len(self._cache) - 1
        size = self._cache[min(layers.stop, most)] - self._cache[min(layers.start, most)]
        fewer = ", fewer with a window" if self.profile.layer_details else ""
        return MemoryTerm("KV cache", size, f"{self._cells} cells in {len(layers)} layers{fewer}")

    def computing(self) -> tuple[MemoryTerm, ...]:
        """On a host that has layers."""
        return self._made("host", 0, lambda: _compute(self.profile, self.limits, self.task))

    def inputs(self, copies: int) -> tuple[MemoryTerm, ...]:
        """On a host that has none."""
        return self._made("inputs", copies, lambda: (_inputs(self.profile, self.limits, self.task, copies),))

    def device(self, copies: int, *, has_output: bool) -> tuple[MemoryTerm, ...]:
        def make() -> tuple[MemoryTerm, ...]:
            return (_device_compute(self.profile, self.limits, self.task, copies, has_output=has_output),)

        return self._made("output" if has_output else "device", copies, make)

    def _made(self, where: str, copies: int, make: Callable[[], tuple[MemoryTerm, ...]]) -> tuple[MemoryTerm, ...]:
        found = self._compute.get((where, copies))
        if found is None:
            found = self._compute[where, copies] = make()
        return found


def _host(sizes: _Sizes, placement: Placement, layers: int) -> tuple[MemoryTerm, ...]:
    """Host memory of one instance that computes its first `layers` layers on the CPU."""
    profile = sizes.profile
    if placement.layers:
        held = profile.embedding_bytes + sizes.layer * layers
        weights = MemoryTerm("weights", held, f"the input, and {layers} layers" if layers else "the input")
    else:
        weights = MemoryTerm("weights", profile.tensor_bytes, "sum of the tensors' bytes in the file")
    runtime = () if placement.accelerator == "cpu" else (_RUNTIME,)
    return (
        weights,
        sizes.cache(range(min(layers, profile.layers))),
        *(sizes.computing() if layers else sizes.inputs(_copies(profile, placement))),
        # Tokens, merges and their hash maps, sampler candidates: 0.4 to 0.95 KiB a token were measured.
        MemoryTerm("vocabulary", profile.vocabulary * 1024, "1 KiB a token, measured"),
        _PROCESS,
        *runtime,
    )


def _device(sizes: _Sizes, placement: Placement, layers: range) -> tuple[MemoryTerm, ...]:
    """Memory of a device that holds these layers."""
    copies = _copies(sizes.profile, placement)
    key = (layers, copies, placement.accelerator)
    found = sizes.devices.get(key)
    if found is None:
        found = sizes.devices[key] = _held(sizes, placement.accelerator, layers, copies)
    return found


def _held(sizes: _Sizes, accelerator: str, layers: range, copies: int) -> tuple[MemoryTerm, ...]:
    profile = sizes.profile
    has_output = layers.stop > profile.layers
    count = max(0, min(layers.stop, profile.layers) - layers.start)
    weights = sizes.layer * count
    # Layers of one file have different quantizations (Q4_K_M: some in Q6_K), and only their sum is known.
    spread = 0 if count in {0, profile.layers} else int(weights * _LAYERS_DIFFER)
    source = f"{count} of {profile.layers} layers"
    if has_output:
        # A tied output is a second copy: the input's stays on the host.
        weights += profile.output_bytes or profile.embedding_bytes
        source += " and the output"
    return (
        MemoryTerm("weights", weights, source, uncertainty=spread),
        sizes.cache(range(layers.start, layers.start + count)),
        *sizes.device(copies, has_output=has_output),
        _CONTEXTS.get(accelerator, _OTHER_CONTEXT),
    )


def _layer_bytes(profile: ModelProfile) -> int:
    """One repeating layer, on average. Never less than its part: rounded up."""
    repeating = profile.tensor_bytes - profile.embedding_bytes - profile.output_bytes
    return -(-repeating // profile.layers) if profile.layers else 0


def _slot_cells(limits: Limits) -> int:
    return -(-limits.max_model_len // CELL_PADDING) * CELL_PADDING


def _cache_before(profile: ModelProfile, limits: Limits, task: str) -> list[int]:
    """Bytes in the layers before each. Exact: layers with a window have fewer cells, and latent attention keeps one row
    a token; with the states of recurrent layers, which are logged as another buffer.
    """
    if profile.layer_details:
        batch = physical_batch(limits, task)
        cells, states = cells_before(profile, limits.max_model_len, limits.max_num_seqs, batch, limits.kv_cache_dtype)
        return [cell + state for cell, state in zip(cells, states, strict=True)]
    each = (profile.key_length + profile.value_length) * CACHE_BYTES[limits.kv_cache_dtype]
    vector = _slot_cells(limits) * limits.max_num_seqs * each
    return [int(heads * vector) for heads in accumulate(profile.kv_heads, initial=0)]


def _compute(profile: ModelProfile, limits: Limits, task: str) -> tuple[MemoryTerm, ...]:
    """The graph's scratch buffer with the output buffer; and the threads' work buffer, which no log line tells of.

    Per token of the physical batch, in 4-byte floats: five vectors of the embedding's width live at the widest point
    of a layer, with three of the feed-forward's width; at the graph's end the feed-forward ones are gone and each
    output token has a row of logits instead. The attention mask is one 2-byte value a token and cell of its slot.
    """
    batch, outputs = physical_batch(limits, task), _outputs(limits, task)
    widest = max(3 * profile.feed_forward_length * batch, profile.vocabulary * outputs)
    graph = 4 * (5 * profile.embedding_length * batch + widest) + 2 * _slot_cells(limits) * batch
    output = 4 * profile.vocabulary * limits.max_num_seqs
    work = 2 * max(profile.feed_forward_length, profile.embedding_length) * batch
    return (
        _with_margin(profile, graph + output, f"graph for {batch} tokens, {outputs} outputs"),
        _with_margin(profile, work, "2 bytes x the widest row x the batch, at most", name="threads"),
    )


def _device_compute(profile: ModelProfile, limits: Limits, task: str, copies: int, *, has_output: bool) -> MemoryTerm:
    """The graph's scratch buffer on a device: as on the CPU, but three vectors of the embedding's width, and with
    several devices a copy of the inputs for each batch in the pipeline. The flash attention of CUDA and ROCm turns a
    quantized cache into 16-bit values, a layer at a time.
    """
    batch, outputs = physical_batch(limits, task), _outputs(limits, task)
    mask, row = 2 * _slot_cells(limits) * batch, 4 * profile.embedding_length * batch
    widest = max(3 * profile.feed_forward_length * batch, profile.vocabulary * outputs if has_output else 0)
    graph = 3 * row + 4 * widest + copies * mask + (copies * row if copies > 1 else 0)
    unpacked = 0
    if limits.kv_cache_dtype != "f16":
        cells = _slot_cells(limits) * limits.max_num_seqs
        unpacked = 2 * cells * max(profile.kv_heads, default=0) * (profile.key_length + profile.value_length)
    return _with_margin(profile, graph + unpacked, f"graph for {batch} tokens, {outputs} outputs")


def _inputs(profile: ModelProfile, limits: Limits, task: str, copies: int) -> MemoryTerm:
    """What stays on the host when all layers are on devices: the inputs, a copy for each batch in the pipeline, and
    the logits that are read back."""
    batch = physical_batch(limits, task)
    mask, row = 2 * _slot_cells(limits) * batch, 4 * profile.embedding_length * batch
    total = (1 + copies) * row + copies * mask + 4 * profile.vocabulary * limits.max_num_seqs
    return _with_margin(profile, total, f"inputs of {batch} tokens, and what is read back")


def _outputs(limits: Limits, task: str) -> int:
    return physical_batch(limits, task) if task in {"embedding", "rerank"} else limits.max_num_seqs


def _copies(profile: ModelProfile, placement: Placement) -> int:
    """Batches under way at the same time: a pipeline is made when several devices hold all layers."""
    whole = sum(placement.layers) > profile.layers
    return PIPELINE_DEPTH if whole and len(placement.layers) > 1 else 1


def _with_margin(profile: ModelProfile, total: int, source: str, name: str = "compute") -> MemoryTerm:
    margin = 0 if profile.architecture in _MEASURED else total // 2
    return MemoryTerm(name, total, source, uncertainty=margin)
