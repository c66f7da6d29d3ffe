"""What a model is, read from its own files: shapes, parameters, formats, bytes. Frozen data.

Widths are element counts, sizes are bytes, lengths of context are tokens. docs/reference/models.md says where each
value comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Basis(StrEnum):
    """How parameters and bytes are known."""

    TENSORS = "tensors"  # read from the header of every weight file: exact
    CONFIG = "config"  # counted from the configuration by a known architecture's rules: exact for its 16-bit form
    BOUND = "bound"  # the architecture, or how its weights are stored, is not known: the numbers are upper bounds


class Group(StrEnum):
    """What a tensor is for. Groups differ in how engines shard, replicate, quantize and offload them."""

    EMBEDDING = "embedding"  # token and position embeddings
    LM_HEAD = "lm_head"  # absent when tied to the embedding
    ATTENTION = "attention"  # query and output projections: sharded by heads
    ATTENTION_KV = "attention_kv"  # key and value projections: sharded by KV heads, replicated beyond their number
    ATTENTION_LATENT = "attention_latent"  # MLA's down-projections, indexers: replicated on every rank
    LINEAR_ATTENTION = "linear_attention"  # Mamba, gated delta net and other recurrent mixers
    MLP = "mlp"  # dense feed-forward
    EXPERTS = "experts"  # routed experts: all of them are resident
    SHARED_EXPERTS = "shared_experts"
    ROUTER = "router"
    NORM = "norm"
    VISION = "vision"  # image and video towers
    AUDIO = "audio"
    PROJECTOR = "projector"  # between a tower and the text model
    MTP = "mtp"  # multi-token prediction layers with everything in them: a draft model inside of the model
    OTHER = "other"


class AttentionKind(StrEnum):
    MHA = "mha"
    GQA = "gqa"
    MQA = "mqa"
    MLA = "mla"  # one latent vector a token for all heads
    LINEAR = "linear"  # a state of fixed size: gated delta net, lightning attention, KDA
    MAMBA = "mamba"  # a state of fixed size: SSM; also short convolutions
    CROSS = "cross"  # attends to an image's or encoder's states, not to the text's cache
    NONE = "none"  # a layer that is only a feed-forward


@dataclass(frozen=True, slots=True)
class Attention:
    """How one layer mixes tokens, and what it keeps of them."""

    kind: AttentionKind
    heads: int = 0  # query heads
    kv_heads: int = 0  # 0: this layer keeps no keys and values of its own
    key_length: int = 0  # elements of one key head
    value_length: int = 0  # elements of one value head
    window: int = 0  # tokens kept by a sliding or chunked window; 0: all
    latent: int = 0  # MLA: elements a token of the compressed keys and values (kv_lora_rank)
    rope_length: int = 0  # MLA: elements a token of the shared rotary key
    index_length: int = 0  # sparse attention: elements a token of the indexer's key, kept beside the cache
    compression: int = 0  # tokens that share one entry of the cache beyond the window; 0: none
    shares_with: int = -1  # this layer reads the cache of that layer and keeps none
    conv_elements: int = 0  # state a sequence: the convolution's last inputs
    state_elements: int = 0  # state a sequence: the recurrent state
    parallel: bool = False  # the layer has keys and values *and* a state (Falcon-H1)

    @property
    def kv_elements(self) -> int:
        """Elements of cache that one token adds, in 16-bit-or-other cache elements, before any sharding or padding."""
        if self.shares_with >= 0:
            return 0
        return (
            self.kv_heads * (self.key_length + self.value_length) if not self.latent else self.latent + self.rope_length
        )


@dataclass(frozen=True, slots=True)
class Tensors:
    """A group's sum. `parameters` counts each weight once, however it is packed; scales, zero points and code books
    are no parameters, but bytes.
    """

    group: Group
    parameters: int
    bytes: int
    scale_bytes: int = 0  # part of `bytes`


_NONE_OF = {group: Tensors(group, 0, 0) for group in Group}


@dataclass(frozen=True, slots=True)
class Stored:
    """How many bytes the files hold in one type: F8_E4M3, BF16, I32 (packed), Q4_K ..."""

    dtype: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the text model, for pipeline stages and partial offload."""

    attention: Attention
    bytes: int
    expert_bytes: int = 0  # routed experts, part of `bytes`


@dataclass(frozen=True, slots=True)
class Experts:
    count: int  # routed, a sparse layer; all are resident
    active: int  # routed, a token
    length: int  # inner width of one
    shared: int = 0  # always active, a sparse layer
    shared_length: int = 0  # inner width of all shared ones together
    layers: int = 0  # sparse layers


@dataclass(frozen=True, slots=True)
class Rope:
    kind: str  # default, linear, dynamic, yarn, llama3, longrope ...
    theta: float
    factor: float = 1.0
    original_context: int = 0  # tokens; 0: not stated


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the weights ship. `bits` and `group_size` are those of most weights."""

    method: str  # awq, gptq, fp8, compressed-tensors, modelopt, mxfp4, bitsandbytes, mlx, gguf ...
    scheme: str  # fp8, fp8-block, int8, w4a16, nvfp4, mxfp4, nf4, mixed ...; for gguf its level
    bits: int  # of one weight, without scales
    group_size: int = 0  # weights along the input that share a scale; 0: a scale a tensor, channel or block
    block: tuple[int, int] = (0, 0)  # weights (output, input) that share a scale
    zero_point: bool = False
    activations: str = ""  # "": 16 bit; "static" or "dynamic" 8- or 4-bit ones
    activation_bits: int = 16
    kv_cache: str = ""  # a cache type that the checkpoint asks for (fp8)
    untouched: tuple[str, ...] = ()  # groups that stay as they were


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """The shapes that planning needs."""

    path: str
    format: str  # gguf, safetensors, mlx; pytorch where no header can be read; config where there are no weights
    architecture: str  # GGUF: general.architecture; otherwise the first of config.json's architectures
    name: str
    quantization: str  # GGUF: Q4_K_M ...; otherwise the scheme: bf16, fp8-block, awq-w4a16, nvfp4 ...
    file_bytes: int  # of all parts
    tensor_bytes: int  # sum of the groups' bytes: what is resident once all of it is loaded
    parameters: int
    layers: int  # of the text model; without MTP layers
    embedding_length: int
    feed_forward_length: int  # of dense layers; 0: every layer is sparse
    heads: int
    kv_heads: tuple[int, ...]  # per layer; 0 for a layer without KV cache; 1 where MLA keeps one latent
    key_length: int  # of the layer with the longest; MLA in safetensors: latent + rotary key
    value_length: int  # MLA in safetensors: 0, values are views of the latent
    context_length: int  # trained context with its rope scaling, tokens
    vocabulary: int
    sliding_window: int = 0  # of the windowed layers, tokens
    experts: int = 0
    embedding_bytes: int = 0  # part of tensor_bytes
    output_bytes: int = 0  # output head; 0 when tied to the embedding
    has_chat_template: bool = False
    pooling: str = ""  # embedding models: mean, cls, last, rank

    basis: Basis = Basis.TENSORS
    model_type: str = ""  # config.json's
    active_parameters: int = 0  # that one text token passes: without idle experts, towers and MTP
    dtype: str = ""  # of what is not quantized: bfloat16, float16, float32
    groups: tuple[Tensors, ...] = ()
    stored: tuple[Stored, ...] = ()
    layer_details: tuple[Layer, ...] = ()
    quantization_config: Quantization | None = None  # None: as trained, 16 or 32 bit
    tied: bool = False
    moe: Experts | None = None
    rope: Rope | None = None
    mtp_layers: int = 0
    modalities: tuple[str, ...] = ("text",)  # text, image, video, audio: what it takes in
    task: str = ""  # chat, completion, embedding, rerank, classification, other
    licence: str = ""  # as the model card names it
    gated: bool = False  # the model card asks for an agreement
    remote_code: bool = False  # it ships Python files of its own; whether they must run is the engine's to say
    formats: tuple[str, ...] = ()  # of all weight files that are there: safetensors, pytorch, gguf, onnx ...
    notes: tuple[str, ...] = ()  # what is not known or was bounded, as sentences

    def group(self, group: Group) -> Tensors:
        """The sum of a group; zeros where the model has none of it."""
        for tensors in self.groups:
            if tensors.group == group:
                return tensors
        return _NONE_OF[group]
