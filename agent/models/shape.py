"""What a configuration in Hugging Face's layout says of a model, whatever its weights are; and the profile that follows
from it alone, its parameters counted by the architecture's rules.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from agent.models.alike import Alike, alike
from agent.models.config import Config
from agent.models.families import family_of
from agent.models.families.base import Family, Kind, Unknown
from agent.models.families.towers import largest, tower_of
from agent.models.groups import Sums, active, group_of, keeps_cache
from agent.models.profile import Attention, AttentionKind, Basis, Group, ModelProfile, Quantization, Rope
from agent.models.quantization import DTYPES, parse
from agent.models.safetensors import BITS
from agent.models.schemes import Piece, Rules

#: Keys of config.json that only say how the weights are stored.
_STORAGE = frozenset({"quantization_config", "compression_config", "quantization"})


class Shape:
    """A model by its config.json."""

    def __init__(self, config: Config, hf_quant: Config | None = None) -> None:
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
        self.quantization, self.rules = self._parse(config, hf_quant)
        self.tied = self._tied()
        self.attentions = self.family.attentions
        self.tower = self._tower()

    def stored_as(self, storage: Mapping[str, object]) -> Shape:
        """The same model, of whose config.json these keys are others. What is counted once is not counted again."""
        config = Config({**self.config.data, **storage}, self.config.path)
        if not storage.keys() <= _STORAGE:
            return Shape(config)
        _ = self.weights, self.tower_weights  # once counted, they are copied with the rest
        other = copy.copy(self)
        other.config = config
        other.quantization, other.rules = self._parse(config, None)
        return other

    def _parse(self, config: Config, hf_quant: Config | None) -> tuple[Quantization | None, Rules]:
        inner = "quantization_config" in self.text and "quantization_config" not in config
        return parse(self.text if inner else config, hf_quant, self.dtype)

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

    @cached_property
    def weights(self) -> tuple[Alike, ...]:
        """Those of the text model, where its rules are known."""
        return alike(self.family.weights(tied=self.tied), self.attentions) if self.known else ()

    @cached_property
    def tower_weights(self) -> tuple[tuple[Alike, ...], int]:
        """The tower's weights, or an upper bound of their parameters where its rules are not known."""
        if self.tower is None:
            return (), 0
        rules = tower_of(self.model_type, self.tower.text("model_type"))
        if rules is None:
            return (), largest(self.tower, self.family.hidden)
        return alike(rules(self.tower, self.config, self.family.hidden)), 0

    def counted(self, label: str) -> ModelProfile:
        """The profile without weights to look at. Raises `ProfileError`."""
        sums, notes = Sums(self.attentions), list[str]()
        basis, rules = Basis.CONFIG, self.rules
        if not rules.exact:
            basis, rules = Basis.BOUND, Rules()
            method = self.quantization.method if self.quantization else ""
            notes.append(
                f"how {method} stores the weights is not known in full: bytes are those of the unquantized model"
            )
        if not self.known:
            basis = Basis.BOUND
            kind = self.text.text("model_type") or "no model_type"
            notes.append(f"the architecture ({kind}) is not known: parameters and bytes are upper bounds")
            count = Unknown(self.text).at_most()
            sums.add("unknown", self.dtype, count, count * BITS[self.dtype] // 8)
        _count(sums, self.weights, rules, self.dtype)
        weights, bound = self.tower_weights
        _count(sums, weights, rules, self.dtype)
        if bound:
            basis = Basis.BOUND
            notes.append("the image tower's architecture is not known: its parameters are an upper bound")
            sums.add("vision_tower.unknown", self.dtype, bound, bound * BITS[self.dtype] // 8)
        return self.profile(sums, label, basis, notes)

    def profile(self, sums: Sums, label: str, basis: Basis, notes: Iterable[str]) -> ModelProfile:
        """What the configuration says, with parameters and bytes as they were summed up."""
        family, groups = self.family, sums.groups()
        by_group = {tensors.group: tensors for tensors in groups}
        experts = family.experts()
        share = experts.active / experts.count if experts else 1.0
        caches = [at for at in self.attentions if keeps_cache(at)]
        longest = max(caches, key=lambda at: at.kv_elements, default=Attention(AttentionKind.NONE))
        embedding, head = by_group.get(Group.EMBEDDING), by_group.get(Group.LM_HEAD)
        architecture = self.architectures[0] if self.architectures else self.model_type
        return ModelProfile(
            path=label,
            format="config",
            architecture=architecture,
            name=Path(self.config.text("_name_or_path") or label).name,
            quantization=self._level(),
            file_bytes=0,
            tensor_bytes=sum(tensors.bytes for tensors in groups),
            parameters=sum(tensors.parameters for tensors in groups),
            layers=family.layers,
            embedding_length=family.hidden,
            feed_forward_length=family.inner,
            heads=family.heads,
            kv_heads=tuple(at.kv_heads if keeps_cache(at) else 0 for at in self.attentions),
            key_length=longest.latent + longest.rope_length if longest.latent else longest.key_length,
            value_length=0 if longest.latent else longest.value_length,
            context_length=self._context(),
            vocabulary=family.vocabulary,
            sliding_window=max((at.window for at in self.attentions), default=0),
            experts=experts.count if experts else 0,
            embedding_bytes=embedding.bytes if embedding else 0,
            output_bytes=head.bytes if head else 0,
            basis=basis,
            model_type=self.model_type,
            active_parameters=active(groups, share),
            dtype=self.dtype_name,
            groups=groups,
            stored=sums.stored(),
            layer_details=sums.layers(),
            quantization_config=self._untouched(by_group),
            tied=self.tied,
            moe=experts,
            rope=_rope(self.text),
            mtp_layers=family.mtp_layers() if Group.MTP in by_group else 0,
            modalities=_modalities(self.config),
            task=task_of(self.config, architecture),
            remote_code="auto_map" in self.config or "auto_map" in self.text,
            notes=tuple(notes),
        )

    def _untouched(self, groups: Iterable[Group]) -> Quantization | None:
        """With the groups of the text model in which no matrix is converted."""
        if self.quantization is None:
            return None
        touched = {
            group_of(same.weight.name, len(self.attentions))
            for same in self.weights
            if any(scheme is not None for scheme, _ in self.rules.stored(same))
        }
        if not touched:
            return self.quantization
        return replace(self.quantization, untouched=tuple(group.value for group in groups if group not in touched))

    def _level(self) -> str:
        """What the shipped form is called where a spec asks for one."""
        found = self.quantization
        if found is None:
            return {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "half": "f16"}[self.dtype_name]
        if found.method in {"awq", "gptq"} and found.bits == 4:
            return found.method
        name = {"awq": "awq", "gptq": "gptq", "mlx": "mlx", "bitsandbytes": "bnb"}.get(found.method)
        return f"{name}-{found.scheme}" if name else found.scheme

    def _context(self) -> int:
        c = self.text
        lengths = [c.whole(key, most="tokens") for key in _CONTEXT if key in c]
        length = min(lengths, default=0)
        if "model_max_length" in c:  # Cohere's
            length = c.whole("model_max_length", most="tokens")
        rope = _rope(c)
        if rope is not None and "gemma3" not in self.model_type and rope.kind not in {"su", "longrope", "llama3"}:
            if rope.kind == "yarn" and rope.original_context:
                length = rope.original_context
            length = int(length * max(1.0, rope.factor)) if rope.factor < 1e6 else length
        if not length and self.model_type.startswith("gemma3"):
            return 131072  # the class's default, on which the published configurations lean
        positions_from = self.model_type in {"roberta", "xlm-roberta", "camembert"}
        return length - 2 if positions_from and length > 2 else length  # the first two rows stand for padding


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


def _count(sums: Sums, weights: Iterable[Alike], rules: Rules, dtype: str) -> None:
    for same in weights:
        weight, elements = same.weight, math.prod(same.weight.shape)
        for scheme, layers in rules.stored(same):
            if scheme is None:
                kind = "F32" if weight.kind == Kind.FLOAT else dtype
                pieces: tuple[Piece, ...] = (Piece(kind, elements),)
            else:
                pieces = scheme.pieces(*weight.shape)
            for piece in pieces:
                parameters = 0 if piece.scale else elements * weight.count
                size = piece.bytes * weight.count
                sums.add(weight.name, piece.dtype, parameters, size, scale=piece.scale, layers=layers)


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


#: Kinds of models by the ends of their architectures' names; the first that fits wins.
_TASKS = (
    (re.compile(r"For(Token|Image|Audio)Classification$"), "classification"),
    (re.compile(r"(For(CausalLM|ConditionalGeneration|VisionText2Text)|LMHeadModel\w*)$"), "completion"),
    (re.compile(r"(ForMaskedLM|Model)$"), "embedding"),
)


def task_of(config: Config, architecture: str) -> str:
    """What the architecture's name says that it is for: chat is a completion with a template."""
    if architecture.endswith("ForSequenceClassification"):
        labels = config.data.get("id2label")
        single = len(labels) == 1 if isinstance(labels, Mapping) else config.data.get("num_labels") == 1
        return "rerank" if single else "classification"
    return next((task for pattern, task in _TASKS if pattern.search(architecture)), "other")
