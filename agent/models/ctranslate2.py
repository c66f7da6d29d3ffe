"""Profiles of models that were converted for CTranslate2: `model.bin` names each variable with its shape and type.

The format is that of CTranslate2's `python/ctranslate2/specs/model_spec.py` (`_serialize`), the names those of
`transformer_spec.py`. Only decoders are read: what generates text from text.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agent.models.config import load_json
from agent.models.errors import ProfileError, corrupt, unsupported
from agent.models.profile import Attention, AttentionKind, Basis, Group, Layer, ModelProfile, Quantization, Tensors
from agent.models.reader import FileReader

MODEL, VOCABULARIES = "model.bin", ("vocabulary.json", "vocabulary.txt", "shared_vocabulary.json")
DECODER = "TransformerDecoderSpec"
#: `DataType` in include/ctranslate2/types.h: its name, and bytes of an element.
_TYPES = (("float32", 4), ("int8", 1), ("int16", 2), ("int32", 4), ("float16", 2), ("bfloat16", 2))
_VERSION = 6
#: Bounds far beyond real models: a damaged file must not make this loop, or swell.
_MOST_VARIABLES, _MOST_DIMENSIONS, _SCALAR = 1_000_000, 8, 8
#: A converted model does not say for how many tokens it was trained.
_CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class _Variable:
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    value: int  # of a whole number without dimensions

    @property
    def parameters(self) -> int:
        # AWQ packs eight weights of 4 bits into 32.
        each = 8 if self.dtype == "int32" and self.shape else 1
        count = each
        for length in self.shape:
            count *= length
        return count


def is_converted(folder: Path) -> bool:
    return (folder / MODEL).is_file() and any((folder / name).is_file() for name in VOCABULARIES)


def read_converted(folder: Path) -> ModelProfile:
    """Raises `ProfileError` for what is damaged or no decoder, `OSError` for what cannot be read."""
    path = folder / MODEL
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            spec, variables = _read(file, size)
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise corrupt(f"{path} is no model of CTranslate2, or it ends too early ({error})") from error
    if spec != DECODER:
        raise unsupported(f"{path} is a {spec}: only models that generate text are served", "use a decoder-only model")
    return _profile(folder, size, variables)


def _read(file: BinaryIO, size: int) -> tuple[str, Mapping[str, _Variable]]:
    """The name of the specification, and all variables; their values are skipped, but for single whole numbers."""
    (version,) = struct.unpack("<I", file.read(4))
    if not 1 <= version <= _VERSION:
        raise unsupported(f"{file.name} has version {version} of CTranslate2's format; known are 1 to {_VERSION}")
    spec = _text(file)
    _, count = struct.unpack("<II", file.read(8))
    if count > _MOST_VARIABLES:
        raise corrupt(f"{file.name} claims to hold {count} variables")
    found: dict[str, _Variable] = {}
    for _ in range(count):
        name, (rank,) = _text(file), struct.unpack("<B", file.read(1))
        if rank > _MOST_DIMENSIONS:
            raise corrupt(f"{file.name}: {name} claims to have {rank} dimensions")
        shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
        dtype, (length,) = _TYPES[file.read(1)[0]][0], struct.unpack("<I", file.read(4))
        if file.tell() + length > size:
            raise corrupt(f"{file.name} ends before its variable {name} does")
        value = 0
        if not shape and length <= _SCALAR and "float" not in dtype:
            value = int.from_bytes(file.read(length), "little", signed=True)
        else:
            file.seek(length, 1)
        found[name] = _Variable(shape, dtype, length, value)
    return spec, found


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    return file.read(length)[:-1].decode()


def _profile(folder: Path, size: int, variables: Mapping[str, _Variable]) -> ModelProfile:
    embedding = variables.get("decoder/embeddings/weight")
    layers = sum(1 for name in variables if re.fullmatch(r"decoder/layer_\d+/self_attention/linear_0/weight", name))
    inner = variables.get("decoder/layer_0/ffn/linear_0/weight")
    fused = variables.get("decoder/layer_0/self_attention/linear_0/weight")
    heads = _whole(variables, "decoder/num_heads")
    if embedding is None or len(embedding.shape) != 2 or fused is None or not layers or heads < 1:
        raise corrupt(f"{folder / MODEL} lacks an embedding, layers or the number of heads")
    kv_heads = _whole(variables, "decoder/layer_0/self_attention/num_heads_kv") or heads
    wide = fused.shape[0] * (8 if fused.dtype == "int32" else 1) if len(fused.shape) == 2 else 0
    length = _whole(variables, "decoder/layer_0/self_attention/head_dim") or wide // (heads + 2 * kv_heads)
    kind = AttentionKind.MHA if kv_heads == heads else AttentionKind.MQA if kv_heads == 1 else AttentionKind.GQA
    at = Attention(kind, heads, kv_heads, length, length)
    groups = _groups(variables)
    parameters, total = (sum(getattr(group, what) for group in groups) for what in ("parameters", "bytes"))
    each = sum(v.bytes for name, v in variables.items() if name.startswith("decoder/layer_0/"))
    level = _level(variables, fused)
    context, notes = _context(folder, variables)
    bits = {"int8": 8, "int16": 16, "int32": 4}.get(fused.dtype, 0)
    return ModelProfile(
        path=str(folder), format="ctranslate2", architecture=DECODER, name=folder.name, quantization=level,
        file_bytes=size, tensor_bytes=total, parameters=parameters, active_parameters=parameters, layers=layers,
        embedding_length=embedding.shape[1], feed_forward_length=inner.shape[0] if inner and inner.shape else 0,
        heads=heads, kv_heads=(kv_heads,) * layers, key_length=length, value_length=length, context_length=context,
        vocabulary=embedding.shape[0], embedding_bytes=embedding.bytes, basis=Basis.TENSORS,
        dtype=next((v.dtype for v in variables.values() if v.dtype.endswith("16") and "float" in v.dtype), "float32"),
        groups=groups, layer_details=(Layer(at, each),) * layers,
        quantization_config=Quantization("ctranslate2", level, bits) if bits else None,
        tied="decoder/projection/weight" not in variables, task="completion", formats=("ctranslate2",), notes=notes,
    )  # fmt: skip


def _whole(variables: Mapping[str, _Variable], name: str) -> int:
    found = variables.get(name)
    return found.value if found is not None else 0


def _groups(variables: Mapping[str, _Variable]) -> tuple[Tensors, ...]:
    sums: dict[Group, list[int]] = {}
    for name, variable in variables.items():
        group = _group(name)
        scale = name.endswith("_scale") or "weight_zero" in name
        totals = sums.setdefault(group, [0, 0, 0])
        totals[0] += 0 if scale or not variable.shape else variable.parameters
        totals[1] += variable.bytes
        totals[2] += variable.bytes if scale else 0
    return tuple(Tensors(group, *totals) for group, totals in sums.items())


def _group(name: str) -> Group:
    if "norm" in name:
        return Group.NORM
    if "/ffn/" in name:
        return Group.MLP
    if "attention" in name:
        return Group.ATTENTION
    return Group.LM_HEAD if "/projection/" in name else Group.EMBEDDING if "embeddings" in name else Group.OTHER


def _level(variables: Mapping[str, _Variable], weight: _Variable) -> str:
    """As `ct2-transformers-converter --quantization` takes it."""
    others = {variable.dtype for name, variable in variables.items() if name.endswith(("/gamma", "/bias"))}
    rest = next((name for name in ("float16", "bfloat16", "float32") if name in others), "float32")
    if weight.dtype == "int32":
        return "int4_awq"
    return f"int8_{rest}" if weight.dtype == "int8" else weight.dtype


def _context(folder: Path, variables: Mapping[str, _Variable]) -> tuple[int, tuple[str, ...]]:
    positions = variables.get("decoder/position_encodings/encodings")
    if positions is not None and positions.shape:
        return positions.shape[0], ()
    with suppress(ProfileError):  # another program's file, and only a hint
        tokenizer = folder / "tokenizer_config.json"
        stated = load_json(FileReader(tokenizer), str(tokenizer)).get("model_max_length")
        if isinstance(stated, int) and 16 <= stated <= 1 << 24:
            return stated, ()
    return _CONTEXT, (f"its trained context is not known; {_CONTEXT} tokens are assumed",)
