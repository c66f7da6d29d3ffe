"""Tiny converted models for CTranslate2 with random weights: `model.bin` as its own `model_spec.py` writes it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tests.hf_factory import SPECIAL, make_hf

TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
HEADS, KV_HEADS = 4, 2


def make_ct2(folder: Path, *, hidden: int = 64, inner: int = 128, layers: int = 2, dtype: str = "int8") -> Path:
    """Write a llama-like decoder to `folder` and return it. `dtype`: int8 (with 16-bit norms), float16 or float32."""
    make_hf(folder)
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        (folder / name).unlink()
    tokens = list(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    (folder / "vocabulary.json").write_text(json.dumps(tokens))
    special = dict(zip(("bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    (folder / "config.json").write_text(json.dumps({**special, "layer_norm_epsilon": None}))
    with (folder / "model.bin").open("wb") as file:
        _write(file, _variables(len(tokens), hidden, inner, layers, dtype))
    return folder


def _variables(vocabulary: int, hidden: int, inner: int, layers: int, dtype: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    rest = "float32" if dtype == "float32" else "float16"
    width = hidden // HEADS * (HEADS + 2 * KV_HEADS)
    matrices = {"decoder/embeddings": (vocabulary, hidden), "decoder/projection": (vocabulary, hidden)}
    norms = ["decoder/layer_norm"]
    found: dict[str, np.ndarray] = {}
    for index in range(layers):
        layer = f"decoder/layer_{index}"
        matrices |= {
            f"{layer}/self_attention/linear_0": (width, hidden), f"{layer}/self_attention/linear_1": (hidden, hidden),
            f"{layer}/ffn/linear_0": (inner, hidden), f"{layer}/ffn/linear_0_noact": (inner, hidden),
            f"{layer}/ffn/linear_1": (hidden, inner),
        }  # fmt: skip
        norms += [f"{layer}/self_attention/layer_norm", f"{layer}/ffn/layer_norm"]
        found |= {
            f"{layer}/self_attention/num_heads_kv": np.array(KV_HEADS, np.int32),
            f"{layer}/self_attention/rotary_base": np.array(10000.0, np.float32),
            f"{layer}/self_attention/rotary_dim": np.array(0, np.int32),
            f"{layer}/self_attention/rotary_interleave": np.array(0, np.int8),
        }
    for name, shape in matrices.items():
        weight = random.standard_normal(shape).astype(np.float32) * 0.1
        if dtype == "int8":
            scale = 127 / np.abs(weight).max(axis=1)
            found[f"{name}/weight"] = np.rint(weight * scale[:, None]).astype(np.int8)
            found[f"{name}/weight_scale"] = scale.astype(np.float32)
        else:
            found[f"{name}/weight"] = weight.astype(dtype)
    found |= {f"{name}/gamma": np.ones(hidden, rest) for name in norms}
    flags = {"activation": 2, "alibi": 0, "alibi_use_positive_positions": 0, "pre_norm": 1, "scale_alibi": 0,
             "scale_embeddings": 0, "start_from_zero_embedding": 0}  # fmt: skip
    found |= {f"decoder/{name}": np.array(value, np.int8) for name, value in flags.items()}
    short = {"num_heads": HEADS, "alignment_heads": 1, "alignment_layer": -1}
    return found | {f"decoder/{name}": np.array(value, np.int16) for name, value in short.items()}


def _write(file: BinaryIO, variables: dict[str, np.ndarray]) -> None:
    file.write(struct.pack("<I", 6))
    _text(file, "TransformerDecoderSpec")
    file.write(struct.pack("<II", 8, len(variables)))
    for name, value in variables.items():
        _text(file, name)
        file.write(struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape))
        data = value.tobytes()
        file.write(struct.pack("<BI", TYPES.index(str(value.dtype)), len(data)) + data)
    file.write(struct.pack("<I", 0))  # aliases


def _text(file: BinaryIO, text: str) -> None:
    data = text.encode() + b"\0"
    file.write(struct.pack("<H", len(data)) + data)
