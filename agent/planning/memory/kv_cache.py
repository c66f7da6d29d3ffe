"""The cache of keys, values and states: pages of blocks, groups of layers, and how many requests a pool holds.

Sources: vLLM's `v1/kv_cache_interface.py`, `v1/core/kv_cache_planning.py` (`kv_cache_utils.py` in older versions),
`platforms/interface.py` (`_align_hybrid_block_size`), `model_executor/layers/mamba/mamba_utils.py`; SGLang's
`mem_cache/memory_pool.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from agent.models.profile import Attention, AttentionKind, ModelProfile
from agent.planning.memory.base import divided, vector_bytes
from agent.planning.memory.layers import layers_of

#: Bytes a token of the layouts that FlashMLA's sparse kernels read: the latent in FP8 with its scales, the rotary part
#: in 16 bit (DeepSeek-V3.2); 448 values in FP8, 64 in 16 bit, 8 bytes of scales (DeepSeek-V4).
SPARSE_MLA_BYTES, SPARSE_V4_BYTES = 656, 584


@dataclass(frozen=True, slots=True)
class Page:
    """What one layer keeps, the smallest piece: `block` tokens in `size` bytes. `window` 0: of all tokens.
    `state`: of a whole sequence instead; `block` does not matter then.
    """

    size: int
    block: int
    window: int = 0
    state: bool = False

    @property
    def kind(self) -> tuple[bool, int]:
        return self.state, self.window


@dataclass(frozen=True, slots=True)
class Layout:
    """How a pool is divided."""

    block_bytes: int  # of one block of all layers of a group: what the pool is counted in
    blocks_a_request: int  # of the longest length
    block: int  # tokens
    groups: int  # of layers; each takes blocks of its own

    @property
    def needed(self) -> int:
        """Bytes that one request of the longest length takes."""
        return self.block_bytes * self.blocks_a_request


def token_bytes(at: Attention, kind: str, ranks: int = 1) -> int:
    """Bytes of cache that one token takes in one layer on one of `ranks` ranks. KV heads beyond their number are
    replicated; MLA's latent is on every rank.
    """
    if at.shares_with >= 0:
        return 0
    if at.latent:
        if kind == "fp8_ds_mla":
            return SPARSE_MLA_BYTES
        return vector_bytes(kind, at.latent + at.rope_length)
    heads = divided(at.kv_heads, ranks)
    return heads * (vector_bytes(kind, at.key_length) + (vector_bytes(kind, at.value_length) if at.value_length else 0))


def index_bytes(at: Attention) -> int:
    """Bytes a token of a sparse attention's indexer: FP8 values with a scale (`deepseek_v32/indexer`)."""
    return at.index_length + 4 * divided(at.index_length, 128) if at.index_length else 0


def state_bytes(at: Attention, ranks: int, conv: int = 2, state: int = 4) -> int:
    """Bytes of one sequence's recurrent state in one layer. `conv`, `state`: bytes of an element."""
    return divided(at.conv_elements * conv + at.state_elements * state, ranks)


def bytes_per_token(profile: ModelProfile, kind: str, ranks: int = 1, layers: range | None = None) -> int:
    """Of all layers, as if none had a window: what one more token of a long sequence costs at most."""
    return sum(
        count * (token_bytes(at, kind, ranks) + index_bytes(at)) for at, count in attentions(profile, layers).items()
    )


def attentions(profile: ModelProfile, layers: range | None = None) -> Mapping[Attention, int]:
    """The different layers, and how many there are of each."""
    return layers_of(profile).attentions(layers)


def is_recurrent(at: Attention) -> bool:
    return bool(at.conv_elements or at.state_elements)


def has_cache(at: Attention) -> bool:
    return at.shares_with < 0 and bool(at.kv_heads or at.latent) and at.kind not in {
        AttentionKind.CROSS, AttentionKind.LINEAR, AttentionKind.MAMBA, AttentionKind.NONE,
    }  # fmt: skip


def layout(pages: Sequence[tuple[Page, int]], longest: int, batch: int, *, hybrid: bool, states: int = 1) -> Layout:
    """vLLM's: layers that keep the same are a group; all groups' pages are made equally large, and groups are split
    until each has as many layers as the smallest one. `batch`: tokens that may be under way beyond a window.
    `hybrid` False: windows are ignored, as older versions and some connectors do. `states`: kept for a sequence.
    """
    if not hybrid:
        pages = [(Page(page.size, page.block, 0, page.state), count) for page, count in pages]
    kinds: dict[tuple[bool, int], list[tuple[Page, int]]] = {}
    for page, count in pages:
        kinds.setdefault(page.kind, []).append((page, count))
    if not kinds:
        return Layout(0, 0, 16, 0)
    if len(kinds) == 1:  # one group, whatever the sizes of its layers' pages
        (only,) = kinds.values()
        page = only[0][0]
        size = sum(page.size * count for page, count in only)
        return Layout(size, _blocks(page, page.block, longest, batch, states), page.block, 1)
    largest = max(page.size for page, _ in pages)
    counts = {kind: sum(count for _, count in found) for kind, found in kinds.items()}
    least, most = min(counts.values()), max(counts.values())
    members = most if most < 1.5 * least else least
    needed = groups = 0
    smallest = min(page.block for page, _ in pages if not page.state)
    for kind, found in kinds.items():
        number = -(-counts[kind] // members)
        page = found[0][0]
        scale = largest // page.size if not page.state and largest % page.size == 0 else 1
        needed += number * _blocks(page, page.block * scale, longest, batch, states)
        groups += number
    return Layout(largest * members, needed, smallest, groups)


def compressed_layout(profile: ModelProfile, longest: int, batch: int) -> Layout:
    """DeepSeek-V4's in vLLM: a window's entries, compressed entries behind it, an indexer's keys, and what the
    compressors have not finished yet, in 32 bit. A block has the pages of one layer of each ratio side by side, for as
    many layers as the largest group has (`models/deepseek_v4/attention.py`, `compressor.py`).
    """
    found = attentions(profile)
    ratios: Counter[int] = Counter()
    for at, count in found.items():
        ratios[at.compression] += count
    short = next((at for at in found if at.index_length), None)
    head = max(at.key_length for at in found)
    window = max(at.window for at in found)
    block = 256
    tuple_bytes = sum(block // ratio * SPARSE_V4_BYTES for ratio in ratios if ratio)
    tuple_bytes += block // short.compression * index_bytes(short) if short is not None else 0
    layers = sum(ratios.values())
    sizes = [count for ratio, count in ratios.items() if ratio]
    members = _members((layers, *sizes))
    pages = -(-longest // block) + -(-layers // members) * (-(-min(window - 1 + batch, longest) // 64) + 1)
    for ratio in (ratio for ratio in ratios if ratio):
        overlap = 2 if ratio == min(ratio for ratio in ratios if ratio) else 1
        width = 2 * 4 * overlap * head  # a sum and a score in 32 bit
        inside = max(1, 64 * SPARSE_V4_BYTES // width)
        inside = 1 << (inside.bit_length() - 1)
        pages += -(-min(overlap * ratio - 1 + batch, longest) // inside) + 1
    return Layout(tuple_bytes * members, pages, block, 3 + len(sizes))


@lru_cache(maxsize=64)
def _members(sizes: tuple[int, ...]) -> int:
    """Layers of a group, where all layers and those of each ratio are divided with the fewest left over."""
    return min(range(max(sizes[1:]), sizes[0] + 1), key=lambda size: (sum(-count % size for count in sizes), -size))


def _blocks(page: Page, block: int, longest: int, batch: int, states: int) -> int:
    if page.state:
        return states
    if page.window:
        return -(-min(page.window - 1 + batch, longest) // block) + 1
    return -(-longest // block)


def aligned(per_token: int, state: int, block: int) -> tuple[int, int]:
    """Tokens a block, and bytes of a state's page, where attention and recurrent layers share one pool: the block
    grows until an attention's page holds a state, whose page is then padded to it. `per_token`: bytes of the widest
    attention layer.
    """
    if not per_token or not state:
        return block, state
    block = max(block, block * -(-state // (block * per_token)))
    return block, per_token * block
