"""The profile of a model in Hugging Face's layout: config.json, and the headers of its safetensors files where there
are any. Where there are none, the parameters are counted by the architecture's rules.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from agent.models.config import Config, load_json
from agent.models.errors import ProfileError, corrupt, missing, unsupported
from agent.models.families import family_of
from agent.models.families.base import Family, Kind, Unknown, Weight
from agent.models.families.towers import largest, tower_of
from agent.models.groups import Sums, active, group_of, keeps_cache
from agent.models.profile import Attention, AttentionKind, Basis, Group, ModelProfile, Quantization, Rope
from agent.models.quantization import DTYPES, Piece, Rules, parse
from agent.models.reader import FileReader, Reader
from agent.models.safetensors import BITS, Tensor, read_header

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
    shape = _Shape(config, hf_quant)
    weights = weight_files(files, label)
    if weights:
        profile = _measured(shape, files, weights, label)
    else:
        profile = _counted(shape, label)
        others = sum(files[name].size() for name in files if _format(name) in {"pytorch", "tensorflow", "flax"})
        if others:
            profile = replace(profile, format="pytorch", file_bytes=others)
    return _described(profile, files, config)


def from_config(data: Mapping[str, object], label: str = "config.json") -> ModelProfile:
    """The profile that config.json's content alone gives: parameters and bytes by the architecture's rules."""
    config = Config(data, label)
    profile = _counted(_Shape(config, None), label)
    return replace(profile, task=_task(config, profile.architecture, {}, has_template=False))


def _no_config(files: Mapping[str, Reader], label: str) -> ProfileError:
    if "adapter_config.json" in files:
        return unsupported(f"{label} holds a LoRA adapter, not a model", hint="name the model that it adapts")
    if "model_index.json" in files:
        return unsupported(f"{label} holds a diffusion pipeline, not a language model")
    gguf = [name for name in files if name.endswith(".gguf")]
    if gguf:
        return unsupported(f"{label} is a directory of GGUF files", hint=f"name one of them, such as {gguf[0]}")
    return missing(f"{label} has no config.json", hint="fetch the model's small files as well as its weights")


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


class _Shape:
    """What the configuration says, whatever the weights are."""

    def __init__(self, config: Config, hf_quant: Config | None) -> None:
        self.config = config
        self.architectures = config.texts("architectures")
        self.text = _text_part(config)
        self.model_type = config.text("model_type")
        rules = family_of(self.text.text("model_type", default=self.model_type))
        self.family: Family = (rules or Unknown)(self.text)
        self.known = rules is not None and self.family.covers()
        named = config.text("dtype", "torch_dtype") or self.text.text("dtype", "torch_dtype")
        self.dtype_name = named.removeprefix("torch.") if named.removeprefix("torch.") in DTYPES else "bfloat16"
        self.dtype = DTYPES[self.dtype_name]
        source = self.text if "quantization_config" in self.text and "quantization_config" not in config else config
        self.quantization, self.rules = parse(source, hf_quant, self.dtype)
        self.tied = self._tied()
        self.attentions = self.family.attentions
        self.tower = self._tower()

    def _tied(self) -> bool:
        default = self.family.tied
        return self.config.flag("tie_word_embeddings", default=self.text.flag("tie_word_embeddings", default=default))

    def _tower(self) -> Config | None:
        """The image tower's configuration; an empty one where the model has a tower and says nothing of it."""
        for key in ("vision_config", "vision_tower_config", "visual", "vision_model_config"):
            if isinstance(self.config.data.get(key), Mapping):
                return self.config.section(key)
        if self.model_type == "llama4":
            return Config({}, f"{self.config.path}: vision_config")
        return None

    def tower_weights(self) -> tuple[tuple[Weight, ...], int]:
        """The tower's weights, or an upper bound of their parameters where its rules are not known."""
        if self.tower is None:
            return (), 0
        rules = tower_of(self.model_type, self.tower.text("model_type"))
        if rules is None:
            return (), largest(self.tower, self.family.hidden)
        return tuple(rules(self.tower, self.config, self.family.hidden)), 0


def _text_part(config: Config) -> Config:
    """The text model's configuration, with what only the outer one says."""
    for key in ("text_config", "llm_config", "language_config", "thinker_config"):
        if isinstance(config.data.get(key), Mapping):
            inner = config.section(key)
            if key == "thinker_config":
                return _text_part(inner)
            outer = {"model_type": config.text("model_type"), "architectures": config.data.get("architectures")}
            data = {name: value for name, value in outer.items() if value} | dict(inner.data)
            return Config(data, inner.path)
    return config


def _counted(shape: _Shape, label: str) -> ModelProfile:
    """Parameters and bytes without weights to look at."""
    family, sums, notes = shape.family, Sums(shape.attentions), list[str]()
    basis, rules = Basis.CONFIG, shape.rules
    if not rules.exact:
        basis, rules = Basis.BOUND, Rules()
        method = shape.quantization.method if shape.quantization else ""
        notes.append(f"how {method} stores the weights is not known in full: bytes are those of the unquantized model")
    if not shape.known:
        basis = Basis.BOUND
        kind = shape.text.text("model_type") or "no model_type"
        notes.append(f"the architecture ({kind}) is not known: parameters and bytes are upper bounds")
        count = Unknown(shape.text).at_most()
        sums.add("unknown", shape.dtype, count, count * BITS[shape.dtype] // 8)
    else:
        _count(sums, family.weights(tied=shape.tied), rules, shape.dtype)
    weights, bound = shape.tower_weights()
    _count(sums, weights, rules, shape.dtype)
    if bound:
        basis = Basis.BOUND
        notes.append("the image tower's architecture is not known: its parameters are an upper bound")
        sums.add("vision_tower.unknown", shape.dtype, bound, bound * BITS[shape.dtype] // 8)
    return _profile(shape, sums, label, basis, notes)


def _count(sums: Sums, weights: Iterable[Weight], rules: Rules, dtype: str) -> None:
    for weight in weights:
        elements = 1
        for size in weight.shape:
            elements *= size
        module = weight.name.removesuffix(".weight")
        scheme = rules.scheme(module, weight.kind) if len(weight.shape) == 2 else None
        if scheme is None:
            kind = "F32" if weight.kind == Kind.FLOAT else dtype
            pieces: tuple[Piece, ...] = (Piece(kind, elements),)
        else:
            pieces = scheme.pieces(*weight.shape)
        for piece in pieces:
            parameters = 0 if piece.scale else elements * weight.count
            sums.add(weight.name, piece.dtype, parameters, piece.bytes * weight.count, scale=piece.scale)


def _measured(shape: _Shape, files: Mapping[str, Reader], names: tuple[str, ...], label: str) -> ModelProfile:
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
    return replace(_profile(shape, sums, label, Basis.TENSORS, notes), format=form, file_bytes=size)


def _check_index(files: Mapping[str, Reader], seen: set[str]) -> None:
    if _INDEX in files:
        promised = Config(load_json(files[_INDEX], _INDEX), _INDEX).section("weight_map")
        if lost := sorted(promised.data.keys() - seen):
            raise promised.odd(f"it names {lost[0][:120]!r}, which none of its files has")


def _check_width(tensor: Tensor, shape: _Shape) -> None:
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


def _profile(shape: _Shape, sums: Sums, label: str, basis: Basis, notes: list[str]) -> ModelProfile:
    family, groups = shape.family, sums.groups()
    by_group = {tensors.group: tensors for tensors in groups}
    experts = family.experts()
    share = experts.active / experts.count if experts else 1.0
    caches = [at for at in shape.attentions if keeps_cache(at)]
    longest = max(caches, key=lambda at: at.kv_elements, default=Attention(AttentionKind.NONE))
    embedding, head = by_group.get(Group.EMBEDDING), by_group.get(Group.LM_HEAD)
    return ModelProfile(
        path=label,
        format="config",
        architecture=shape.architectures[0] if shape.architectures else shape.model_type,
        name=Path(shape.config.text("_name_or_path") or label).name,
        quantization=_level(shape),
        file_bytes=0,
        tensor_bytes=sum(tensors.bytes for tensors in groups),
        parameters=sum(tensors.parameters for tensors in groups),
        layers=family.layers,
        embedding_length=family.hidden,
        feed_forward_length=family.inner,
        heads=family.heads,
        kv_heads=tuple(at.kv_heads if keeps_cache(at) else 0 for at in shape.attentions),
        key_length=longest.latent + longest.rope_length if longest.latent else longest.key_length,
        value_length=0 if longest.latent else longest.value_length,
        context_length=_context(shape),
        vocabulary=family.vocabulary,
        sliding_window=max((at.window for at in shape.attentions), default=0),
        experts=experts.count if experts else 0,
        embedding_bytes=embedding.bytes if embedding else 0,
        output_bytes=head.bytes if head else 0,
        basis=basis,
        model_type=shape.model_type,
        active_parameters=active(groups, share),
        dtype=shape.dtype_name,
        groups=groups,
        stored=sums.stored(),
        layer_details=sums.layers(),
        quantization_config=_untouched(shape.quantization, shape, groups_of=by_group),
        tied=shape.tied,
        moe=experts,
        rope=_rope(shape.text),
        mtp_layers=family.mtp_layers() if Group.MTP in by_group else 0,
        modalities=_modalities(shape.config),
        remote_code="auto_map" in shape.config or "auto_map" in shape.text,
        notes=tuple(notes),
    )


def _untouched(
    quantization: Quantization | None, shape: _Shape, *, groups_of: Mapping[Group, object]
) -> Quantization | None:
    """The groups of the text model in which no matrix is converted."""
    if quantization is None:
        return None
    touched = {
        group_of(weight.name, len(shape.attentions))
        for weight in (shape.family.weights(tied=shape.tied) if shape.known else ())
        if len(weight.shape) == 2 and shape.rules.scheme(weight.name.removesuffix(".weight"), weight.kind) is not None
    }
    if not touched:
        return quantization
    left = tuple(group.value for group in groups_of if group not in touched)
    return replace(quantization, untouched=left)


#: What the shipped form is called where a spec asks for one.
_LEVELS = {"awq": "awq", "gptq": "gptq", "mlx": "mlx", "bitsandbytes": "bnb"}


def _level(shape: _Shape) -> str:
    found = shape.quantization
    if found is None:
        return {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "half": "f16"}[shape.dtype_name]
    if found.method in {"awq", "gptq"} and found.bits == 4:
        return found.method
    name = _LEVELS.get(found.method)
    return f"{name}-{found.scheme}" if name else found.scheme


def _rope(c: Config) -> Rope | None:
    """Old configurations have rope_theta and rope_scaling, new ones rope_parameters, some of those by kind of layer."""
    section = c.section("rope_parameters")
    if not section.data:
        section = c.section("rope_scaling")
    nested = [value for value in section.data.values() if isinstance(value, Mapping)]
    if nested:
        key = "full_attention" if "full_attention" in section.data else next(iter(section.data))
        section = section.section(key)
    theta = section.real("rope_theta", c.real("rope_theta", c.real("rotary_emb_base")))
    kind = section.text("rope_type", "type", default="default")
    if not theta and not section.data:
        return None
    original = section.whole("original_max_position_embeddings", default=0, least=0, most="tokens") or c.whole(
        "original_max_position_embeddings", default=0, least=0, most="tokens"
    )
    return Rope(kind, theta or 10000.0, section.real("factor", 1.0), original)


#: Whichever is smallest counts, as in vLLM's `_get_and_verify_max_len`.
_CONTEXT = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "max_seq_length",
    "seq_len", "max_target_positions",
)  # fmt: skip


def _context(shape: _Shape) -> int:
    c = shape.text
    lengths = [c.whole(key, most="tokens") for key in _CONTEXT if key in c]
    length = min(lengths, default=0)
    if "model_max_length" in c:  # Cohere's
        length = c.whole("model_max_length", most="tokens")
    rope = _rope(c)
    if rope is not None and "gemma3" not in shape.model_type and rope.kind not in {"su", "longrope", "llama3"}:
        if rope.kind == "yarn" and rope.original_context:
            length = rope.original_context
        length = int(length * max(1.0, rope.factor)) if rope.factor < 1e6 else length
    if not length and shape.model_type.startswith("gemma3"):
        return 131072  # the class's default, on which the published configurations lean
    positions_from = shape.model_type in {"roberta", "xlm-roberta", "camembert"}
    return length - 2 if positions_from and length > 2 else length  # the first two rows stand for padding


def _modalities(config: Config) -> tuple[str, ...]:
    found = ["text"]
    inner = config.data.get("thinker_config")
    data: Mapping[str, object] = inner if isinstance(inner, Mapping) else config.data
    if (
        any(
            data.get(key)
            for key in ("vision_config", "vision_tower_config", "visual", "img_processor", "mm_vision_tower")
        )
        or config.text("model_type") == "llama4"
    ):
        found.append("image")
    if any(key in data for key in ("video_token_id", "video_token_index")):
        found.append("video")
    if any(data.get(key) for key in ("audio_config", "audio_processor", "sound_config")):
        found.append("audio")
    return tuple(found)


def _described(profile: ModelProfile, files: Mapping[str, Reader], config: Config) -> ModelProfile:
    """With what the small files say: templates, task, licence, context of embedding models."""
    template = _has_template(files)
    card = _card(files)
    formats = sorted({kind for name in files if (kind := _format(name))})
    pooling = _pooling(files)
    task = _task(config, profile.architecture, files, has_template=template)
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


#: Kinds of models by the ends of their architectures' names; the first that fits wins.
_TASKS = (
    (re.compile(r"For(Token|Image|Audio)Classification$"), "classification"),
    (re.compile(r"(For(CausalLM|ConditionalGeneration|VisionText2Text)|LMHeadModel\w*)$"), "completion"),
    (re.compile(r"(ForMaskedLM|Model)$"), "embedding"),
)


def _task(config: Config, architecture: str, files: Mapping[str, Reader], *, has_template: bool) -> str:
    if "modules.json" in files or "1_Pooling/config.json" in files:
        return "embedding"
    if architecture.endswith("ForSequenceClassification"):
        labels = config.data.get("id2label")
        single = len(labels) == 1 if isinstance(labels, Mapping) else config.data.get("num_labels") == 1
        return "rerank" if single else "classification"
    found = next((task for pattern, task in _TASKS if pattern.search(architecture)), "other")
    return "chat" if found == "completion" and has_template else found
