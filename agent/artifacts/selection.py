"""Which files of a repository make up one variant: its weights, and what an engine needs beside them. No others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from agent.artifacts.errors import missing, refused
from agent.frozen import frozen
from agent.models.huggingface import weight_files
from agent.models.reader import FileReader, Reader
from agent.models.remote import gguf_parts
from agent.status import DiagnosisCode

INDEX = "model.safetensors.index.json"
#: Configuration, tokenizers and templates; sentence-transformers keep some of their modules in folders.
_COMPANION = re.compile(
    r"[^/]+\.(json|txt|model|jinja|tiktoken|spm|vocab|bpe)|additional_chat_templates/[^/]+\.jinja"
    r"|\d_[A-Za-z]+/(config\.json|model\.safetensors)"
)
_PICKLE = re.compile(r"[^/]+\.(bin|pt|pth|ckpt)")
#: Of a training run, not of a model.
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|rng_state).*")


#: Names of levels that files of safetensors have as well.
_ALSO_OF_OTHERS = frozenset({"BF16", "F16", "F32", "MXFP4"})


@frozen
class Choice:
    """A variant's files. `opened` is what an engine opens: one of them, or "" for their directory."""

    companions: tuple[str, ...]
    weights: tuple[str, ...]
    opened: str = ""


def choose(names: Sequence[str], variant: str, subject: str, *, pickle: bool) -> Choice:
    """The files of a variant by their names. Where there is an index, its shards are chosen by `shards`. Raises
    `ArtifactError`."""
    if parts := gguf_parts(names, variant, exactly=True):
        return Choice((), parts, parts[0])
    companions = tuple(name for name in names if _COMPANION.fullmatch(name))
    if "config.json" in names and INDEX in names:
        return Choice(companions, ())
    weights = weight_files(_Listed(names, {}), subject) if "config.json" in names else ()
    level = variant.upper() not in _ALSO_OF_OTHERS or not weights
    if (not weights or (variant and level)) and (parts := gguf_parts(names, variant, exactly=False)):
        return Choice((), parts, parts[0])
    if weights:
        return Choice(companions, weights)
    if "config.json" in names and not any(name.endswith(".gguf") for name in names):
        return Choice(companions, _others(names, subject, pickle=pickle))
    if levels := sorted(name for name in names if name.endswith(".gguf")):
        raise missing(f"{subject}: the repository has no such variant", f"its files are {', '.join(levels[:12])}")
    raise missing(f"{subject} is no model in a format that is served: it has neither config.json nor a GGUF file")


def shards(names: Sequence[str], index: Path, subject: str) -> tuple[str, ...]:
    """The files that an index names. Raises `ProfileError`."""
    return weight_files(_Listed(names, {INDEX: index}), subject)


def _others(names: Sequence[str], subject: str, *, pickle: bool) -> tuple[str, ...]:
    """Weights that are neither safetensors nor GGUF."""
    if "model.bin" in names and any(name.startswith(("vocabulary.", "shared_vocabulary.")) for name in names):
        return ("model.bin",)  # CTranslate2's own format
    found = tuple(name for name in names if _PICKLE.fullmatch(name) and not _NO_WEIGHTS.fullmatch(name))
    if not found:
        raise missing(f"{subject} has no weights: neither safetensors nor GGUF files")
    if not pickle:
        message = f"{subject} has its weights as pickle files only ({found[0]}): who loads one runs the code in it"
        hint = "look for a variant in safetensors; policy.pickle: true allows such files on this node"
        raise refused(DiagnosisCode.POLICY_DENIED, message, hint)
    return found


class _Listed(Mapping[str, Reader]):
    """Names of a repository's files, some of which are here."""

    def __init__(self, names: Sequence[str], here: Mapping[str, Path]) -> None:
        self._names, self._here = dict.fromkeys(names), here

    def __getitem__(self, name: str) -> Reader:
        return FileReader(self._here[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names
