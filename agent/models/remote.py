"""What a repository on a hub holds: the profiles of its variants, from the headers of its files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agent.models.errors import ProfileError, corrupt, missing, unsupported
from agent.models.hub import Hub, unavailable
from agent.models.huggingface import read_model, weight_files
from agent.models.profile import ModelProfile
from agent.models.reader import Reader
from agent.models.remote_files import RemoteFiles
from agent.models.repository import Quantized, Question, Related, Repository, Variant
from agent.status import DiagnosisCode

_MOST_FILES = 10_000
#: Quantized forms that are listed: of most models there are fewer.
_MOST_LISTED = 200
#: What is worth its time where no level is named, best first; then the others from large to small.
_PREFERRED = ("Q4_K_M", "Q5_K_M", "Q8_0", "Q6_K", "MXFP4", "MXFP4_MOE", "Q3_K_M", "IQ4_XS", "BF16", "F16", "Q4_K_S")
_LEVEL = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:T?I?Q\d+(?:_[0-9A-Z]+)*|BF16|F16|F32|MXFP4(?:_MOE)?))(?=[-._/]|$)", re.IGNORECASE
)
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf", re.IGNORECASE)
#: What a hub says of one file, and means all of them.
_OF_ALL = frozenset({DiagnosisCode.SOURCE_UNAVAILABLE, DiagnosisCode.MODEL_GATED})

_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)

#: Reads the headers of one GGUF model: its label, its parts and the bytes of all of them.
ReadGguf = Callable[[str, Sequence[Reader], int], ModelProfile]


class _HubFile:
    """One file of a hub."""

    def __init__(self, hub: Hub, place: tuple[str, str], name: str, size: int | None) -> None:
        self._hub, self._place, self._name, self._size = hub, place, name, size
        self._etag = ""

    @property
    def size(self) -> int | None:
        return self._size

    def fetch(self, offset: int, length: int) -> bytes:
        if self._size is not None:
            length = min(length, self._size - offset)
        if length <= 0:
            return b""
        answer = self._hub.read(*self._place, self._name, offset, length)
        total = self._total(answer.status, answer.headers, offset)
        if self._size not in {None, total}:
            raise corrupt(f"{self._name}: the hub lists it with {self._size} bytes, and serves {total}")
        etag = answer.headers.get("etag", "")
        if self._etag and etag != self._etag:
            raise unavailable(f"{self._name} of hf:{self._place[0]} changed while it was read", hint="try again")
        self._size, self._etag = total, etag
        if len(answer.body) != min(length, total - offset):
            raise unavailable(f"{self._name} of hf:{self._place[0]}: another range came back than was asked for")
        return answer.body

    def _total(self, status: int, headers: Mapping[str, str], offset: int) -> int:
        """Bytes of the whole file, as the answer says."""
        where = f"{self._name} of hf:{self._place[0]}"
        if status == 200:
            if offset:
                raise unavailable(f"{where}: the hub does not serve ranges of files")
            said = re.fullmatch(r"(\d{1,18})", headers.get("content-length", ""))
        else:
            said = re.fullmatch(rf"bytes {offset}-\d+/(\d{{1,18}})", headers.get("content-range", ""))
        if said is None and self._size is not None and status == 200:
            return self._size
        if said is None:
            raise unavailable(f"{where}: the answer does not say how long the file is")
        return int(said[1])


def read_repository(hub: Hub, question: Question, read_gguf: ReadGguf) -> Repository:
    """All variants of a repository, or the one that was asked for. Raises `ProfileError`."""
    listing = _Listing(hub.info(question.repo, question.revision), question)
    place = (question.repo, listing.commit)
    files = RemoteFiles({name: _HubFile(hub, place, name, size) for name, size in listing.sizes.items()})
    label, levels = f"hf:{question.repo}", _levels(files)
    found, left_out, names = list[Variant](), list[str](), [level.name for level in levels]
    if ("config.json" in files and any(_is_weight(name) for name in files)) or not levels:
        profile = _safetensors(files, label)
        names.insert(0, profile.quantization)
        if _means(question.variant, profile.quantization):
            found.append(Variant(profile, profile.quantization, profile.file_bytes))
    for level in _chosen(levels, question.variant):
        full = len(found) >= question.bounds.levels or (found and hub.half_way())
        if full and not question.variant:
            left_out.append(f"{level.file} was not read: others come first")
            continue
        try:
            found.append(_gguf(files, level, label, read_gguf))
        except ProfileError as error:  # one bad file does not spoil the others
            if question.variant or error.diagnosis.code in _OF_ALL:
                raise
            left_out.append(error.diagnosis.message)
    if left_out and not found:
        raise corrupt(left_out[0])
    if not found:
        raise missing(f"{label} has no variant {question.variant}", hint=f"it has {', '.join(dict.fromkeys(names))}")
    described = tuple(replace(each, profile=listing.described(each.profile)) for each in found)
    return Repository(listing.repo, listing.commit, listing.gated, listing.base_model, described, tuple(left_out))


def read_quantized(hub: Hub, question: Question) -> Related:
    """The repositories that say that they quantize the one that is asked for. Raises `ProfileError`."""
    listed = hub.quantized(question.repo, _MOST_LISTED)
    found = tuple(_quantized(entry, question.repo) for entry in listed[:_MOST_LISTED])
    return Related(tuple(each for each in found if each.repo != question.repo), len(listed) < _MOST_LISTED)


def _quantized(entry: object, base: str) -> Quantized:
    said = entry if isinstance(entry, dict) else {}
    repo, downloads, tags = said.get("id"), said.get("downloads", 0), said.get("tags", [])
    if not isinstance(repo, str) or not _REPO.fullmatch(repo) or not _is_size(downloads) or not isinstance(tags, list):
        raise unavailable(f"the hub lists a quantized form of hf:{base} as {str(entry)[:80]!r}")
    return Quantized(repo, downloads, tuple(tag for tag in tags[:200] if isinstance(tag, str) and len(tag) <= 100))


class _Listing:
    """What the hub's API says of a model, checked."""

    def __init__(self, data: dict[str, Any], question: Question) -> None:
        self._label = f"hf:{question.repo}"
        repo, commit = data.get("id", question.repo), data.get("sha")
        self.repo = repo if isinstance(repo, str) and _REPO.fullmatch(repo) else question.repo
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
            raise unavailable(f"the hub does not say at which commit {self._label} is: sha is {str(commit)[:60]!r}")
        self.commit = commit
        self.gated = bool(data.get("gated"))  # false, auto or manual
        card = data.get("cardData")
        self._card: dict[str, Any] = card if isinstance(card, dict) else {}
        base = self._card.get("base_model")
        base = base[0] if isinstance(base, list) and base else base
        self.base_model = base[:200] if isinstance(base, str) else ""
        self.sizes = dict(self._files(data.get("siblings")))

    def _files(self, siblings: object) -> Iterator[tuple[str, int | None]]:
        if not isinstance(siblings, list):
            raise unavailable(f"the hub does not list the files of {self._label}: siblings is no list")
        if len(siblings) > _MOST_FILES:
            raise unsupported(f"{self._label} has {len(siblings)} files; a model has less than {_MOST_FILES}")
        for entry in siblings:
            name, size = (entry.get("rfilename"), entry.get("size")) if isinstance(entry, dict) else (None, None)
            if not isinstance(name, str) or (size is not None and not _is_size(size)):
                raise unavailable(f"the hub lists a file of {self._label} as {str(entry)[:80]!r}")
            if _is_plain(name):
                yield name, size

    def described(self, profile: ModelProfile) -> ModelProfile:
        """With what only the hub knows, and for GGUF what only the model card says."""
        licence = self._card.get("license_name") or self._card.get("license")
        return replace(
            profile,
            name=profile.name if profile.format == "gguf" and profile.name else self.repo.partition("/")[2],
            licence=profile.licence or (licence[:120] if isinstance(licence, str) else ""),
            gated=profile.gated or self.gated,
        )


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60


def _is_plain(name: str) -> bool:
    """Whether a file of this name can be asked for: others are not seen."""
    return name.isprintable() and len(name) <= 500 and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def _is_weight(name: str) -> bool:
    """Of a model that config.json describes: repositories of GGUF files often have a copy of it."""
    return name.endswith((".safetensors", ".bin", ".pt", ".pth"))


def _safetensors(files: RemoteFiles, label: str) -> ModelProfile:
    if "config.json" in files:
        files.fetch_ahead(weight_files(files, label))
    return read_model(files, label)


@dataclass(frozen=True, slots=True)
class _Level:
    """One GGUF model of a repository."""

    name: str  # as its file calls it
    files: tuple[str, ...]  # all parts, in order

    @property
    def file(self) -> str:
        return self.files[0]


def _levels(files: Iterable[str]) -> tuple[_Level, ...]:
    """The models among the GGUF files: no towers, no importance matrices."""
    parts: dict[str, list[str]] = {}
    for name in sorted(files):
        short = name.rpartition("/")[2].lower()
        if short.endswith(".gguf") and "mmproj" not in short and "imatrix" not in short:
            match = _PART.fullmatch(name)
            parts.setdefault(match["stem"] if match else name, []).append(name)
    return tuple(_Level(_level_of(names[0]), tuple(names)) for names in parts.values())


def _level_of(name: str) -> str:
    found = _LEVEL.findall(name.rpartition("/")[2]) or _LEVEL.findall(name)
    return found[-1].upper() if found else name.rpartition("/")[2].removesuffix(".gguf")


def _means(wanted: str, name: str) -> bool:
    return wanted.lower() in {"", name.lower()}


def _chosen(levels: Sequence[_Level], wanted: str) -> list[_Level]:
    ranks = {name: rank for rank, name in enumerate(_PREFERRED)}
    found = [level for level in levels if _means(wanted, level.name)]
    return sorted(found, key=lambda level: ranks.get(level.name, len(ranks)))


def gguf_parts(names: Iterable[str], wanted: str, *, exactly: bool) -> tuple[str, ...]:
    """The files of the GGUF model that a level means, in order; of the best one where none is named. () for none, and
    for one with missing parts. `exactly`: only of a level that is named, and in its own letters."""
    levels = [level for level in _levels(names) if not exactly or level.name == wanted != ""]
    for level in _chosen(levels, wanted):
        match = _PART.fullmatch(level.file)
        if match is None or (int(match["number"]), int(match["total"])) == (1, len(level.files)):
            return level.files
    return ()


def _gguf(files: RemoteFiles, level: _Level, label: str, read_gguf: ReadGguf) -> Variant:
    match = _PART.fullmatch(level.file)
    if match and (int(match["number"]) != 1 or int(match["total"]) != len(level.files)):
        raise missing(f"{label}: {level.file} is one of {int(match['total'])} parts, and {len(level.files)} are there")
    readers = [files[name] for name in level.files]
    size = sum(reader.size() for reader in readers)
    try:
        profile = read_gguf(f"{label}/{level.file}", readers, size)
    finally:
        for name in level.files:
            files.forget(name)
    return Variant(profile, level.name, size, level.file)
