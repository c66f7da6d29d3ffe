"""Tiny models in Hugging Face's form with random weights: for engines that read such directories, and no real answers.

About 0.5 MB. The tokenizer has a token for each byte, so whatever the weights say is text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.safetensors_factory import header_of

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
SPECIAL = ("<s>", "</s>", "<pad>")
HEADS, KV_HEADS = 4, 2


def make_hf(folder: Path, *, hidden: int = 64, inner: int = 128, layers: int = 2, seed: int = 0, **config: Any) -> Path:
    """Write a llama to `folder` and return it. `config` replaces what config.json says."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = len(SPECIAL) + 256
    described = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "torch_dtype": "bfloat16",
        "tie_word_embeddings": False, "hidden_act": "silu", "rope_theta": 10000.0,
    } | config  # fmt: skip
    (folder / "config.json").write_text(json.dumps(described))
    _write_weights(folder / "model.safetensors", _shapes(vocabulary, hidden, inner, layers), seed)
    _write_tokenizer(folder)
    return folder


def _shapes(vocabulary: int, hidden: int, inner: int, layers: int) -> dict[str, tuple[int, ...]]:
    width = hidden // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }  # fmt: skip
    for index in range(layers):
        layer = {
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (width, hidden), "self_attn.v_proj": (width, hidden),
            "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }  # fmt: skip
        found |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return found


def _write_weights(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    random = np.random.default_rng(seed)
    entries, _ = header_of({name: ("BF16", shape) for name, shape in shapes.items()}, {"format": "pt"})
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            values = np.ones(shape) if "norm" in name else random.standard_normal(shape) * 0.1
            file.write((values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes())


def _write_tokenizer(folder: Path) -> None:
    """Byte-level BPE without merges: each byte is the token of the character that stands for it."""
    tokens = {token: number for number, token in enumerate((*SPECIAL, *_letters()))}
    special = [
        {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for number, token in enumerate(SPECIAL)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": tokens, "merges": []},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _letters() -> list[str]:
    """The characters that byte-level tokenizers write for the bytes 0 to 255: themselves where they can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in seen else chr(next(others)) for byte in range(256)]
