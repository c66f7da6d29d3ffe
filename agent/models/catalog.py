"""The catalog of models: what each is and where its weights are published, so that plans need no network.

People edit `configs/catalog/models.yaml`; `python -m agent.models.catalog` derives `catalog.json` from it, which ships
with the package and loads in milliseconds. Nothing is read before somebody asks. Rules: docs/reference/catalog.md.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from agent.documents import compact, exists, load_file
from agent.errors import FieldViolation, InvalidArgument
from agent.models.config import Config
from agent.models.levels import LEVELS, as_gguf, scaled
from agent.models.profile import Basis, ModelProfile
from agent.models.shape import Shape
from agent.quantities import GIB, Matches, NonEmptyLine
from agent.strict import Strict, broken, invalid, nearest, unknown, validate

_SHIPPED = Path(__file__).with_name("catalog.json")
_EDITED = Path("configs", "catalog", "models.yaml")

#: GiB to which sources round sizes; and how far a counted size may be off before it counts as another mixture.
_ROUNDED, _TOLERANCE = 0.1, 0.01
#: Models whose counts are kept: variants are asked for one model after the other.
_KEPT = 16
#: Who stands behind a repository: the model's maker, a maker of hardware or engines, or somebody else.
Trust = Literal["maker", "vendor", "community"]
Task = Literal["chat", "completion", "embedding", "rerank"]

Repo = Annotated[
    str,
    Matches(
        r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}",
        "must be owner/name, as on Hugging Face, such as Qwen/Qwen3-8B",
        "repository",
    ),
]
Alias = Annotated[
    str,
    Matches(r"[a-z0-9][a-z0-9.:_-]{0,95}", "must be lower-case letters, digits and . : _ -, such as qwen3:8b", "alias"),
]


def _level(value: str) -> str:
    if value not in LEVELS:
        raise broken(unknown("level", value, sorted(LEVELS)))
    return value


Level = Annotated[str, AfterValidator(_level)]
#: Keys of config.json, as they stand there.
Fragment = dict[str, JsonValue]


class Repository(Strict):
    """One repository with weights: a variant, or with GGUF one for each level."""

    repo: Repo
    format: Literal["safetensors", "gguf", "mlx", "pytorch"] = "safetensors"
    quantization: NonEmptyLine | None = None  # a key of `quantizations`, unless `config` is given
    config: Fragment | None = None  # what this repository's config.json says of quantization, instead of the table
    bound: bool = False  # more of the weights may be quantized than that: bytes are an upper bound
    levels: Annotated[tuple[Level, ...], Field(strict=False)] = ()
    file: NonEmptyLine | None = None  # of a GGUF level; {level} stands for its name
    sizes: dict[Level, Annotated[float, Field(gt=0)]] = {}  # noqa: RUF012 - pydantic copies it; GiB by level, to 0.1
    bytes: Annotated[int, Field(ge=1)] | None = None  # of all weight files, where it is known for certain

    @model_validator(mode="after")
    def _fits_its_format(self) -> Self:
        if self.format == "gguf" and (not self.levels or self.quantization or self.config):
            raise broken("of a GGUF repository must be given, and neither quantization nor config", "levels")
        if self.format != "gguf" and (self.levels or self.file or not self.quantization):
            raise broken("must be given, and neither levels nor file, unless format is gguf", "quantization")
        if extra := sorted(set(self.sizes) - set(self.levels)):
            raise broken(f"names {', '.join(extra)}, which levels does not", "sizes")
        if self.bytes is not None and len(self.levels) > 1:
            raise broken("cannot be given for several levels at once; write a line for each", "bytes")
        return self


class Entry(Strict):
    """One model."""

    id: Repo
    aliases: Annotated[tuple[Alias, ...], Field(strict=False)] = ()  # besides the id and its last part
    family: NonEmptyLine
    licence: NonEmptyLine
    gated: bool | None = None  # whether the hub asks for an agreement; None: not known
    task: Task
    pooling: Literal["mean", "cls", "last", "rank"] | None = None
    context: Annotated[int, Field(ge=1)]  # tokens
    parameters: Annotated[int, Field(ge=1)]  # each counted once, towers and MTP layers included
    config: Fragment  # of config.json, what shapes depend on; a pattern that repeats may be given for layer_types
    variants: Annotated[tuple[Repository, ...], Field(strict=False, min_length=1)]
    sources: Annotated[tuple[NonEmptyLine, ...], Field(strict=False, min_length=1)]

    @property
    def name(self) -> str:
        return self.id.partition("/")[2]


class _File(Strict):
    vendors: Annotated[tuple[NonEmptyLine, ...], Field(strict=False)] = ()
    quantizations: dict[str, Fragment]
    models: Annotated[tuple[Entry, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _quantizations_are_known(self) -> Self:
        for index, entry in enumerate(self.models):
            for place, each in enumerate(entry.variants):
                if each.quantization and each.config is None and each.quantization not in self.quantizations:
                    rule = unknown("quantization", each.quantization, tuple(self.quantizations))
                    raise broken(f"{rule}; or give config", f"models[{index}].variants[{place}].quantization")
        return self


@dataclass(frozen=True, slots=True)
class Published:
    """One variant of a model: files that an engine loads."""

    model: str  # the entry's id
    repo: str
    format: str  # safetensors, gguf, mlx, pytorch
    quantization: str  # bf16, fp8-block, awq ...; a level of GGUF
    trust: Trust
    file: str = ""  # GGUF; "": the repository has one file of the level, or several parts
    bytes: int | None = None
    most_bytes: int | None = None  # the upper end of a rounded size that a source gives


class _Model:
    """What all variants of a model share."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    @cached_property
    def trained(self) -> ModelProfile:
        return self.shape.counted(self.shape.config.path)


class Catalog:
    """Entries by the names that people type."""

    def __init__(self, file: _File) -> None:
        self._file = file
        self.entries = file.models
        self._names = MappingProxyType(dict(_names(file.models)))
        self._models: OrderedDict[str, _Model] = OrderedDict()  # by id: what its variants share is counted once

    def lookup(self, name: str) -> Entry | None:
        """The entry of an id, its last part, an alias, or a repository of one of its variants; case does not matter."""
        return self._names.get(name.strip().lower())

    def nearest(self, name: str) -> str | None:
        """The known name that was probably meant."""
        return nearest(name, self._names)

    def variants(self, entry: Entry) -> tuple[Published, ...]:
        """Its variants in the catalog's order: as trained first, then from more to fewer bits."""
        return tuple(self._published(entry))

    def variant(self, entry: Entry, name: str) -> Published | None:
        """By repository, quantization or level, or `repository:level`; the first that fits. Case matters only where two
        differ in nothing else (a GGUF's MXFP4, a checkpoint's mxfp4).
        """
        names = [
            (each, name)
            for each in self._published(entry)
            for name in (each.repo, each.quantization, f"{each.repo}:{each.quantization}")
        ]
        exact = (each for each, known in names if known == name)
        return next(exact, next((each for each, known in names if known.lower() == name.lower()), None))

    def profile(self, entry: Entry, variant: Published) -> ModelProfile:
        """What planning needs, counted from the configuration. Raises `ProfileError` where that contradicts itself."""
        found = self._gguf(entry, variant) if variant.format == "gguf" else self._stored(entry, variant)
        return replace(
            found,
            name=entry.name,
            task=entry.task,
            pooling=entry.pooling or "",
            has_chat_template=entry.task == "chat",
            licence=entry.licence,
            gated=bool(entry.gated),
            file_bytes=variant.bytes or found.file_bytes,
            formats=(variant.format,),
        )

    def _stored(self, entry: Entry, variant: Published) -> ModelProfile:
        source = next(each for each in entry.variants if each.repo == variant.repo)
        stored = source.config if source.config is not None else self._file.quantizations[variant.quantization]
        found = self._model(entry).shape.stored_as(stored).counted(variant.repo)
        found = replace(found, format=variant.format, file_bytes=found.tensor_bytes)
        if not source.bound:
            return found
        note = f"which weights {variant.repo} leaves in 16 bit is not known: bytes are an upper bound"
        return replace(found, basis=Basis.BOUND, notes=(*found.notes, note))

    def _gguf(self, entry: Entry, variant: Published) -> ModelProfile:
        model = self._model(entry)
        if not model.shape.known:
            return replace(model.trained, path=variant.repo, format="gguf", quantization=variant.quantization)
        found = as_gguf(model.trained, model.shape, variant.quantization, variant.repo)
        return found if variant.most_bytes is None else _as_published(found, variant.most_bytes)

    def _model(self, entry: Entry) -> _Model:
        found = self._models.get(entry.id)
        if found is None:
            found = self._models[entry.id] = _Model(Shape(Config(_expanded(entry.config), entry.id)))
            if len(self._models) > _KEPT:
                self._models.popitem(last=False)
        return found

    def _published(self, entry: Entry) -> Iterator[Published]:
        for each in entry.variants:
            trust = self._trust(entry, each.repo)
            for name in each.levels or (each.quantization or "",):
                file = (each.file or "").replace("{level}", name)
                most = round((each.sizes[name] + _ROUNDED / 2) * GIB) if name in each.sizes else None
                yield Published(entry.id, each.repo, each.format, name, trust, file, each.bytes, most)

    def trust(self, repo: str) -> Trust:
        """Who stands behind a repository that no entry names, by its owner."""
        owner = repo.partition("/")[0]
        if owner in self._file.vendors:  # those of them that make models ship others' more often
            return "vendor"
        return "maker" if any(owner == entry.id.partition("/")[0] for entry in self.entries) else "community"

    def _trust(self, entry: Entry, repo: str) -> Trust:
        owner = repo.partition("/")[0]
        if owner == entry.id.partition("/")[0]:
            return "maker"
        return "vendor" if owner in self._file.vendors else "community"


def _names(entries: tuple[Entry, ...]) -> Iterator[tuple[str, Entry]]:
    """Every name; an entry's own win over others' repositories. Raises `InvalidArgument` for one of two entries."""
    seen: dict[str, str] = {}
    for entry in entries:
        for each in entry.variants:
            yield each.repo.lower(), entry
    for index, entry in enumerate(entries):
        for name in (entry.id.lower(), entry.name.lower(), *entry.aliases):
            other = seen.setdefault(name, entry.id)
            if other != entry.id:
                raise invalid(FieldViolation(f"models[{index}]", f"{name!r} names {other} and {entry.id}"))
            yield name, entry


def _as_published(counted: ModelProfile, most: int) -> ModelProfile:
    """Counted bytes stand where a source's rounded size confirms them; elsewhere the maker mixed types otherwise."""
    off = counted.tensor_bytes / (most - _ROUNDED / 2 * GIB) - 1
    if counted.basis == Basis.CONFIG and abs(off) < _TOLERANCE:
        return counted
    return scaled(
        counted, most, "the file's own mixture of types is not known: its parts are in proportion to its size"
    )


def _expanded(config: Mapping[str, Any]) -> dict[str, Any]:
    """With `layer_types` written out for every layer."""
    found = {key: _expanded(value) if isinstance(value, dict) else value for key, value in config.items()}
    kinds, layers = found.get("layer_types"), found.get("num_hidden_layers")
    if isinstance(kinds, list) and kinds and isinstance(layers, int) and len(kinds) < layers:
        found["layer_types"] = (kinds * (layers // len(kinds) + 1))[:layers]
    return found


@cache
def shipped() -> Catalog:
    """The catalog that comes with the agent. It was validated when it was derived, which takes longest."""
    known = json.loads(_SHIPPED.read_bytes())
    models = tuple(_constructed(each) for each in known["models"])
    return Catalog(_File.model_construct(**{**known, "vendors": tuple(known["vendors"]), "models": models}))


def _constructed(entry: dict[str, Any]) -> Entry:
    variants = (
        Repository.model_construct(**{**each, "levels": tuple(each.get("levels", ()))}) for each in entry["variants"]
    )
    lists = {key: tuple(entry.get(key, ())) for key in ("aliases", "sources")}
    return Entry.model_construct(**{**entry, **lists, "variants": tuple(variants)})


def load(own: Path | None = None) -> Catalog:
    """The shipped catalog, changed by the operator's file where there is one. Raises `InvalidArgument` that names the
    file, the field and the rule.

    The file has the same form. Its `models` are joined by id: keys that it gives replace the shipped entry's, whole; an
    id that is not shipped makes a new entry. `quantizations` are joined by name, `vendors` are added.
    """
    if own is None or not exists(own):
        return shipped()
    tree = load_file(own)
    known = json.loads(_SHIPPED.read_bytes())
    models = {entry["id"]: entry for entry in known["models"]}
    for entry in _listed(tree, "models", own):
        key = entry.get("id") if isinstance(entry, dict) else None
        models[str(key)] = models.get(str(key), {}) | entry if isinstance(entry, dict) else entry
    tables = tree.get("quantizations") or {}
    joined = {
        **tree,
        "vendors": [*known["vendors"], *_listed(tree, "vendors", own)],
        "quantizations": known["quantizations"] | tables if isinstance(tables, dict) else tables,
        "models": list(models.values()),
    }
    names = list(models)
    try:
        return Catalog(validate(_File, joined, own.name))
    except InvalidArgument as error:
        raise _blamed(error, own, names) from None


def _listed(tree: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    found = tree.get(key) or []
    if not isinstance(found, list):
        raise InvalidArgument(f"{path}: {key}: must be a list", violations=(FieldViolation(key, "must be a list"),))
    return found


def _blamed(error: InvalidArgument, path: Path, names: list[str]) -> InvalidArgument:
    """Numbers in the joined list say nothing to a person: the model's id does."""

    def said(field: str) -> str:
        head, bracket, rest = field.partition("]")
        number = head.removeprefix("models[")
        return f"models[{names[int(number)]}]{rest}" if bracket and number.isdecimal() else field

    violations = tuple(FieldViolation(said(each.field), each.rule) for each in error.violations)
    return InvalidArgument(f"{path}: {violations[0].field}: {violations[0].rule}", violations=violations)


def derived(edited: Path) -> str:
    """The contents of catalog.json for the file that people edit: one line a model. Raises `InvalidArgument`."""
    tree = load_file(edited)
    Catalog(validate(_File, tree, edited.name))
    models = ",\n".join(compact(model) for model in tree["models"])
    return (
        f'{{"vendors": {compact(tree["vendors"])},\n"quantizations": {compact(tree["quantizations"])},\n'
        f'"models": [\n{models}\n]}}\n'
    )


def main() -> None:
    """Write catalog.json anew; run in the repository's root."""
    _SHIPPED.write_text(derived(_EDITED), encoding="utf-8")


if __name__ == "__main__":
    main()
