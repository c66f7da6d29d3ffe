"""The profile of a model in Hugging Face's layout: config.json, and the headers of its safetensors files where there
are any. Where there are none, the parameters are counted by the architecture's rules.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from agent.models.config import Config, load_json
from agent.models.errors import ProfileError, corrupt, missing, unsupported
from agent.models.families.base import Kind
from agent.models.groups import Sums, group_of
from agent.models.profile import Basis, Group, ModelProfile, Quantization
from agent.models.reader import FileReader, Reader
from agent.models.safetensors import BITS, Tensor, read_header
from agent.models.schemes import Rules
from agent.models.shape import Shape

_INDEX = "model.safetensors.index.json"
#: Bytes of a model card that are looked at: its front matter stands at the top.
_CARD = 64 * 1024
#: Shards of the largest models are below 500.
_MOST_FILES = 4096
_MOST_ENTRIES = 10_000

_SUFFIXES: Mapping[str, str] = {
    ".safetensors": "safetensors", ".gguf": "gguf", ".onnx": "onnx", ".bin": "pytorch", ".pt": "pytorch",
    ".pth": "pytorch", ".ckpt": "pytorch", ".h5": "tensorflow", ".msgpack": "flax",
}  # fmt: skip


class Folder(Mapping[str, Reader]):
    """A directory's regular files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with os.scandir(path) as entries:
                names = [entry.name for entry in itertools.islice(entries, _MOST_ENTRIES)]
        except OSError as error:
            raise missing(f"{path} cannot be read: {error.strerror}") from None
        names.append("1_Pooling/config.json")
        self._names = {name: None for name in sorted(names) if os.path.isfile(path / name)}  # noqa: PTH113 - never raises

    def __getitem__(self, name: str) -> Reader:
        if name not in self._names:
            raise KeyError(name)
        return FileReader(self.path / name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_folder(path: Path) -> ModelProfile:
    """The profile of the model in a directory. Raises `ProfileError`."""
    return read_model(Folder(path), str(path))


def read_model(files: Mapping[str, Reader], label: str) -> ModelProfile:
    """The profile of a model by its files' names. `label` names it in errors. Raises `ProfileError`."""
    if "config.json" not in files:
        raise _no_config(files, label)
    config = Config(load_json(files["config.json"], "config.json"), "config.json")
    hf_quant = None
    if "hf_quant_config.json" in files:
        hf_quant = Config(load_json(files["hf_quant_config.json"], "hf_quant_config.json"), "hf_quant_config.json")
    shape = Shape(config, hf_quant)
    weights = weight_files(files, label)
    if weights:
        profile = _measured(shape, files, weights, label)
    else:
        profile = shape.counted(label)
        others = sum(files[name].size() for name in files if _format(name) in {"pytorch", "tensorflow", "flax"})
        if not others:
            raise _no_weights(files, label)
        profile = replace(profile, format="pytorch", file_bytes=others)
    return _described(profile, files, config)


def from_config(data: Mapping[str, object], label: str = "config.json") -> ModelProfile:
    """The profile that config.json's content alone gives: parameters and bytes by the architecture's rules."""
    return Shape(Config(data, label)).counted(label)


def _no_config(files: Mapping[str, Reader], label: str) -> ProfileError:
    if "adapter_config.json" in files:
        return unsupported(f"{label} holds a LoRA adapter, not a model", hint="name the model that it adapts")
    if "model_index.json" in files:
        return unsupported(f"{label} holds a diffusion pipeline, not a language model")
    return _only_gguf(files, label) or missing(
        f"{label} has no config.json", hint="fetch the model's small files as well as its weights"
    )


def _no_weights(files: Mapping[str, Reader], label: str) -> ProfileError:
    """Beside a config.json."""
    others = {kind for name in files if (kind := _format(name))}
    hint = "fetch the model's weights, *.safetensors, as well as its small files"
    if others - {"gguf"}:
        return unsupported(f"{label} has no weights but those for {', '.join(sorted(others))}", hint=hint)
    return _only_gguf(files, label) or missing(f"{label} has a config.json, but no weights", hint=hint)


def _only_gguf(files: Mapping[str, Reader], label: str) -> ProfileError | None:
    gguf = [name for name in files if name.endswith(".gguf")]
    if not gguf:
        return None
    return unsupported(f"{label} is a directory of GGUF files", hint=f"name one of them, such as {gguf[0]}")


def _format(name: str) -> str:
    if name == "model.bin":
        return "ctranslate2"
    if name in {"training_args.bin", "optimizer.bin", "scheduler.bin"}:
        return ""
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), "")


def weight_files(files: Mapping[str, Reader], label: str) -> tuple[str, ...]:
    """The safetensors files that make the model up: those of the index, or all but copies in another layout."""
    if _INDEX in files:
        return _indexed(Config(load_json(files[_INDEX], _INDEX), _INDEX), files, label)
    names = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if "model.safetensors" in names:
        return ("model.safetensors",)
    proper = [name for name in names if not name.startswith(("consolidated", "adapter_"))]
    shards = tuple(sorted(proper or [name for name in names if name.startswith("consolidated")]))
    for name in shards:
        if (match := re.search(r"-(\d{5})-of-(\d{5})\.safetensors$", name)) and int(match[2]) != len(shards):
            raise missing(f"{label}: {name} says that there are {int(match[2])} files, and {len(shards)} are there")
    return shards


def _indexed(index: Config, files: Mapping[str, Reader], label: str) -> tuple[str, ...]:
    names = index.section("weight_map").data.values()
    if not all(isinstance(name, str) for name in names):
        raise index.wrong("weight_map", "must map each tensor to the name of a file")
    shards = tuple(sorted(set(names)))
    if not shards or len(shards) > _MOST_FILES:
        raise index.odd(f"weight_map must name 1 to {_MOST_FILES} files, not {len(shards)}")
    for name in shards:
        if not re.fullmatch(r"[\w.\-]{1,200}", name):
            raise index.odd(f"weight_map names {name[:60]!r}, which is no plain file name")
        if name not in files:
            raise missing(f"{label}: {name}, one of {len(shards)} files that {_INDEX} names, is missing")
    return shards


def _measured(shape: Shape, files: Mapping[str, Reader], names: tuple[str, ...], label: str) -> ModelProfile:
    """Parameters and bytes from the headers of the weights."""
    sums, seen, size, mlx = Sums(shape.attentions), set[str](), 0, False
    for name in names:
        reader = files[name]
        size += reader.size()
        header = read_header(reader, f"{label}/{name}")
        mlx = mlx or header.metadata.get("format") == "mlx"
        for tensor in header.tensors:
            if tensor.name in seen:
                raise corrupt(f"{label}: the tensor {tensor.name[:120]!r} is in more than one file")
            seen.add(tensor.name)
            _check_width(tensor, shape)
            scale = is_scale(tensor)
            parameters = 0 if scale else weights_in(tensor, shape.quantization, shape.rules)
            sums.add(tensor.name, tensor.dtype, parameters, tensor.bytes, scale=scale)
    _check_index(files, seen)
    notes = []
    if shape.tied and any(group_of(name, len(shape.attentions)) == Group.LM_HEAD for name in seen):
        sums.drop(Group.LM_HEAD)
        notes.append("the files hold an output head, which engines leave out: it is tied to the embedding")
    if not shape.known:
        notes.append(f"the architecture ({shape.model_type or 'no model_type'}) is not known: "
                     "bytes are exact, attention is what its configuration says in the usual words")  # fmt: skip
    form = "mlx" if mlx or (shape.quantization and shape.quantization.method == "mlx") else "safetensors"
    return replace(shape.profile(sums, label, Basis.TENSORS, notes), format=form, file_bytes=size)


def _check_index(files: Mapping[str, Reader], seen: set[str]) -> None:
    if _INDEX in files:
        promised = Config(load_json(files[_INDEX], _INDEX), _INDEX).section("weight_map")
        if lost := sorted(promised.data.keys() - seen):
            raise promised.odd(f"it names {lost[0][:120]!r}, which none of its files has")


def _check_width(tensor: Tensor, shape: Shape) -> None:
    """The embedding says whether configuration and weights belong together."""
    if not re.search(r"(^|\.)(embed_tokens|word_embeddings|wte)\.weight$", tensor.name) or len(tensor.shape) != 2:
        return
    if tensor.dtype not in {"BF16", "F16", "F32"} or not shape.known:
        return
    if tensor.shape[1] != shape.family.hidden and "word_embed_proj_dim" not in shape.text:
        raise corrupt(
            f"{shape.text.path}: hidden_size is {shape.family.hidden}, but {tensor.name} is {list(tensor.shape)}: "
            "configuration and weights are of different models"
        )


_SCALES = re.compile(
    r"(?:^|\.)(?:scales|qzeros|g_idx|biases|SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|"
    r"quant_state\.\w+|(?:weight|input|output|[qkv])_(?:\w+_)?(?:scale\w*|zero_point|shape|g_idx|absmax)|zero_point)$|"
    r"_proj_(?:scales|weight_scale\w*|input_scale\w*)$"
)


def is_scale(tensor: Tensor) -> bool:
    """Whether it belongs to a quantized matrix, and holds no weights itself."""
    if tensor.name.endswith(".scale"):  # DeepSeek-V4's; Gemma 4's routers have a weight of that name
        return tensor.dtype in {"F8_E8M0", "F32"} and not tensor.name.endswith("router.scale")
    return _SCALES.search(tensor.name) is not None


def weights_in(tensor: Tensor, quantization: Quantization | None, rules: Rules) -> int:
    """How many weights the tensor holds, however they are packed."""
    elements = 8 * tensor.bytes // BITS[tensor.dtype]
    if quantization is None or tensor.dtype not in {"U8", "I8", "I32", "U32"}:
        return elements
    module, _, last = tensor.name.rpartition(".")
    if last not in {"qweight", "weight", "weight_packed"} and not last.endswith("_blocks"):
        return elements
    scheme = rules.scheme(module, Kind.HEAD if "lm_head" in module else Kind.LINEAR)
    bits = scheme.bits if scheme is not None else quantization.bits
    return elements * BITS[tensor.dtype] // bits


def _described(profile: ModelProfile, files: Mapping[str, Reader], config: Config) -> ModelProfile:
    """With what the small files say: templates, task, licence, context of embedding models."""
    template = _has_template(files)
    card = _card(files)
    formats = sorted({kind for name in files if (kind := _format(name))})
    pooling = _pooling(files)
    task = "chat" if profile.task == "completion" and template else profile.task
    if "modules.json" in files or "1_Pooling/config.json" in files:
        task = "embedding"
    context = profile.context_length
    if "sentence_bert_config.json" in files and task == "embedding":
        name = "sentence_bert_config.json"
        limits = Config(load_json(files[name], name), name)
        context = limits.whole("max_seq_length", default=context, most="tokens")
    return replace(
        profile,
        has_chat_template=template,
        task=task,
        pooling=pooling or ("rank" if task == "rerank" else ""),
        context_length=context,
        licence=card.get("license_name") or card.get("license", "") or config.text("license"),
        gated=any(key.startswith("extra_gated") for key in card),
        formats=tuple(formats),
    )


def _has_template(files: Mapping[str, Reader]) -> bool:
    if "chat_template.jinja" in files or "chat_template.json" in files:
        return True
    if "tokenizer_config.json" not in files:
        return False
    return bool(load_json(files["tokenizer_config.json"], "tokenizer_config.json").get("chat_template"))


def _card(files: Mapping[str, Reader]) -> dict[str, str]:
    """Plain `key: value` lines of the model card's front matter."""
    if "README.md" not in files:
        return {}
    text = files["README.md"].read(0, _CARD).decode(errors="replace")
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    found = re.findall(r"^([a-z_]{1,60}):[ \t]*(.*)$", parts[1], re.MULTILINE)
    return {key: value.strip().strip("'\"")[:120] for key, value in found}


_POOLINGS = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last",
}  # fmt: skip


def _pooling(files: Mapping[str, Reader]) -> str:
    name = "1_Pooling/config.json"
    if name not in files:
        return ""
    data = load_json(files[name], name)
    return next((word for key, word in _POOLINGS.items() if data.get(key) is True), "")
