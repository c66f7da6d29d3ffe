"""What a model is, read from its own files: shapes, parameters, formats, bytes. Frozen data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """The shapes that planning needs. Widths are element counts, sizes are bytes."""

    path: str
    format: str  # "gguf"
    architecture: str
    name: str
    quantization: str
    file_bytes: int  # of all parts
    tensor_bytes: int  # sum of the tensors' bytes: what is resident once loaded
    parameters: int
    layers: int
    embedding_length: int
    feed_forward_length: int
    heads: int
    kv_heads: tuple[int, ...]  # per layer; 0 for a layer without KV cache
    key_length: int
    value_length: int
    context_length: int  # trained context, tokens
    vocabulary: int
    sliding_window: int = 0
    experts: int = 0
    embedding_bytes: int = 0  # token_embd, part of tensor_bytes
    output_bytes: int = 0  # output head; 0 when tied to the embedding
    has_chat_template: bool = False
    pooling: str = ""  # embedding models
