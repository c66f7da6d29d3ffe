"""Tiny GGUF models with random weights, for tests that need a real file and a real engine but no real answers.

A default model is about 0.4 MB and loads in a few milliseconds. Random weights emit arbitrary bytes, so an
engine may refuse to show its own completion as text: send `"grammar": "root ::= [a-z ]+"` where the text is
read, or use a real model where its meaning matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
_CONTROL = ["<s>", "</s>", "<pad>"]


def make_gguf(
    path: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    vocab: int = 512,
    heads: int = 4,
    kv_heads: int = 2,
    feed_forward: int | None = None,
    context: int = 2048,
    tied: bool = False,
    quantization: str = "F16",
    architecture: str = "llama",
    chat_template: str = CHAT_TEMPLATE,
    pooling: str = "",
    tensors_per_part: int = 0,
    seed: int = 0,
) -> Path:
    """Write a llama-shaped model to `path` and return the file that an engine opens.

    `quantization` is a GGML type name (F32, F16, Q8_0, Q4_0, Q4_K ...) for all matrices. `architecture` is only
    the label: an unknown one makes a file that no engine serves. `pooling` (mean, cls, last, rank) makes an embedding
    or rerank model of it. With `tensors_per_part` the model is split and
    the returned path is that of part 00001.
    """
    if vocab < len(_CONTROL) + 256:
        raise ValueError(f"vocab must be at least {len(_CONTROL) + 256} (control tokens and one token a byte)")
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_per_part)
    _describe(writer, hidden, layers, heads, kv_heads, feed_forward or 2 * hidden, context, vocab, quantization)
    if pooling:
        writer.add_pooling_type(gguf.PoolingType[pooling.upper()])
    _add_tokenizer(writer, vocab, chat_template)
    kind = gguf.GGMLQuantizationType[quantization]
    random = np.random.default_rng(seed)
    for name, shape in _tensors(hidden, layers, vocab, heads, kv_heads, feed_forward or 2 * hidden, tied):
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, dtype=np.float32))
        else:
            writer.add_tensor(name, _matrix(random, shape, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not tensors_per_part:
        return path
    return next(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def _describe(
    writer: gguf.GGUFWriter,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    feed_forward: int,
    context: int,
    vocab: int,
    quantization: str,
) -> None:
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(vocab)
    file_type = {"F32": "ALL_F32", "Q4_K": "MOSTLY_Q4_K_M"}.get(quantization, f"MOSTLY_{quantization}")
    writer.add_file_type(gguf.LlamaFileType[file_type])


def _add_tokenizer(writer: gguf.GGUFWriter, vocab: int, chat_template: str) -> None:
    """A byte-level BPE vocabulary: control tokens, one token a byte, one merge, then fillers."""
    alphabet = _byte_alphabet()
    tokens = [*_CONTROL, *alphabet, "th"][:vocab]
    tokens += [f"<filler{index}>" for index in range(len(tokens), vocab)]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if index < len(_CONTROL) else normal for index in range(vocab)])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    if chat_template:
        writer.add_chat_template(chat_template)


def _byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for bytes in byte-level BPE vocabularies."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    shifted = iter(range(256, 512))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


def _tensors(
    hidden: int, layers: int, vocab: int, heads: int, kv_heads: int, feed_forward: int, tied: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    head = hidden // heads
    yield "token_embd.weight", (vocab, hidden)
    yield "output_norm.weight", (hidden,)
    if not tied:
        yield "output.weight", (vocab, hidden)
    for layer in range(layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (hidden,)
        yield f"{block}.attn_q.weight", (hidden, hidden)
        yield f"{block}.attn_k.weight", (kv_heads * head, hidden)
        yield f"{block}.attn_v.weight", (kv_heads * head, hidden)
        yield f"{block}.attn_output.weight", (hidden, hidden)
        yield f"{block}.ffn_norm.weight", (hidden,)
        yield f"{block}.ffn_gate.weight", (feed_forward, hidden)
        yield f"{block}.ffn_up.weight", (feed_forward, hidden)
        yield f"{block}.ffn_down.weight", (hidden, feed_forward)


def _matrix(random: np.random.Generator, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Random weights in the type's own layout; zeros for the types that the gguf library cannot write."""
    try:
        return gguf.quants.quantize(random.standard_normal(shape, dtype=np.float32) * np.float32(0.02), kind)
    except NotImplementedError:
        return np.zeros(gguf.quant_shape_to_byte_shape(shape, kind), dtype=np.uint8)
