"""What a hub knows of models that the catalog does not: options for plans, from the headers of their files.

An answer is kept beside the weights for as long as some of them are on this node: then nobody is asked again, and a
branch that goes on changes nothing. What is asked, and in which order, is said in docs/reference/models.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from agent.artifacts import source_hf, source_remote, sources
from agent.artifacts.base import ArtifactError, SourcePolicy
from agent.frozen import frozen
from agent.models.errors import ProfileError
from agent.models.profile import ModelProfile
from agent.models.profiles import Profiles
from agent.models.repository import Bounds, Quantized, Question, Repository, Variant
from agent.planning.plan import Rejected
from agent.planning.request import Option
from agent.references import HubReference
from agent.settings import ModelVariants
from agent.status import Diagnosis, DiagnosisCode

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from agent.models.catalog import Catalog

#: Together less than the 30 s that a call of the API may take (`agent.api.calls`).
NAMED = Bounds(seconds=13.0)
LISTED = Bounds(seconds=4.0, bytes=32 * 1024**2)
READ = Bounds(seconds=8.0, bytes=64 * 1024**2, levels=4)
_TOKEN_SECONDS = 2.0
#: Quantized forms that are read, and of these in one format; at once, because each reader is a process.
_MOST_READ, _MOST_ALIKE, _AT_ONCE = 6, 2, 2
#: Answers that are kept, and bytes of one: a profile has a line for each layer.
_MOST_ANSWERS, _MOST_ANSWER = 64, 32 * 1024**2
#: Tags of formats that can be served, the more special first; and of such that cannot.
_FORMATS = ("gguf", "mlx", "awq", "gptq", "nvfp4", "mxfp4", "fp8", "compressed-tensors", "bitsandbytes", "safetensors")
_UNSERVED = frozenset({"onnx", "openvino", "exl2", "exl3", "coreml", "tflite", "executorch"})
_TIERS: Mapping[ModelVariants, int] = MappingProxyType({"named": -1, "maker": 0, "known": 1, "any": 2})

_PICKLE = "its weights are pickle files only: who loads one runs the code in it"
_NO_PICKLE = "look for a form of it in safetensors or GGUF; policy.pickle: true allows such files on this node"


@frozen
class Meaning:
    """What a reference can mean."""

    options: tuple[Option, ...]
    left_out: tuple[Rejected, ...] = ()  # variants that are no options, each with the reason


class HubModels:
    """The hub of one node, as its policy allows to ask it. Raises `ProfileError` and `ArtifactError`."""

    def __init__(self, profiles: Profiles, policy: SourcePolicy, variants: ModelVariants) -> None:
        self._profiles, self._policy, self._variants = profiles, policy, variants
        self._free = asyncio.Semaphore(_AT_ONCE)

    @property
    def offline(self) -> bool:
        return source_remote.offline(self._policy)

    async def here(self, wanted: HubReference) -> Meaning | None:
        """What is known without asking anybody: files of exactly this reference, or an answer that some are of."""
        try:
            files = await sources.resolve(f"hf:{wanted}", self._policy)
        except ArtifactError as error:
            if error.diagnosis.code is DiagnosisCode.POLICY_DENIED:
                raise
        else:
            return Meaning((Option(await self._profiles.profile(files.path), f"hf:{wanted}", files.digest),))
        answer = await asyncio.to_thread(_recall, self._answer(wanted))
        if answer is not None and any([await self._is_here(option) for option in answer.options]):
            return answer
        return None

    async def in_place(self, wanted: HubReference) -> Meaning | None:
        """What the hub's own tools put into the cache; fetching verifies it."""
        found = await asyncio.to_thread(_placed, wanted, self._policy)
        if found is None:
            return None
        path, source = found
        return Meaning((Option(await self._profiles.profile(path), source),))

    async def ask(self, wanted: HubReference, catalog: Catalog) -> Meaning:
        """What the hub says, and what it has of others for a model that is named as such."""
        token = await self._token()
        question = Question(
            source_hf.endpoint(self._policy), wanted.repo, wanted.revision or "main", wanted.variant, NAMED
        )
        found = await self._profiles.remote(question, token)
        options, left_out = _options(found, _trust(found, catalog))
        trained = next((each.profile for each in found.variants if _as_trained(each)), None)
        if trained is not None and not wanted.variant and wanted.revision in {"", "main"} and self._variants != "named":
            more, others = await self._quantized(replace(question, repo=found.repo), token, trained, catalog)
            options, left_out = [*options, *more], [*left_out, *others]
        pickles = [] if self._policy.pickle else [each for each in options if each.profile.format == "pytorch"]
        options = [each for each in options if each not in pickles]
        left_out += [Rejected(each.source, "policy", _PICKLE) for each in pickles]
        if not options and pickles:
            raise ProfileError(Diagnosis(DiagnosisCode.POLICY_DENIED, f"hf:{wanted}: {_PICKLE}", hint=_NO_PICKLE))
        if not options:
            raise ProfileError(Diagnosis(DiagnosisCode.MODEL_UNSUPPORTED, left_out[0].sentence))
        meaning = Meaning(tuple(options), tuple(left_out))
        await asyncio.to_thread(_remember, self._answer(wanted), meaning)
        return meaning

    async def _token(self) -> str:
        try:
            async with asyncio.timeout(_TOKEN_SECONDS):
                return await asyncio.to_thread(self._policy.token)
        except TimeoutError:
            message = f"fetch.token_file could not be read within {_TOKEN_SECONDS:g} s"
            raise ProfileError(Diagnosis(DiagnosisCode.SECRET_MISSING, message)) from None

    async def _quantized(
        self, question: Question, token: str, trained: ModelProfile, catalog: Catalog
    ) -> tuple[list[Option], list[Rejected]]:
        try:
            related = await self._profiles.quantized(replace(question, bounds=LISTED), token)
        except ProfileError as error:
            sentence = f"quantized forms were not looked for: {error.diagnosis.message}"
            return [], [Rejected(f"hf:{question.repo}", "not-listed", sentence)]
        chosen, left_out = self._chosen(related.repositories, question.repo, catalog)
        if not related.complete:
            left_out.append(Rejected(f"hf:{question.repo}", "not-listed", "the hub lists more quantized forms of it"))
        until = asyncio.get_running_loop().time() + READ.seconds
        asked = [replace(question, repo=each.repo, bounds=READ) for each in chosen]
        options = []
        for answer in await asyncio.gather(*(self._read(one, token, until) for one in asked)):
            if isinstance(answer, Rejected):
                left_out.append(answer)
            elif other := next(filter(None, (_otherwise(each.profile, trained) for each in answer.variants)), ""):
                left_out.append(Rejected(f"hf:{answer.repo}", "another-model", other))
            else:
                found, others = _options(answer, _trust_of(answer.repo, question.repo, catalog))
                options += found
                left_out += others
        return options, left_out

    async def _read(self, question: Question, token: str, until: float) -> Repository | Rejected:
        name = f"hf:{question.repo}"
        try:
            async with asyncio.timeout_at(until), self._free:
                return await self._profiles.remote(question, token)
        except TimeoutError:
            return Rejected(name, "not-read", f"it could not be read within {READ.seconds:g} s")
        except ProfileError as error:
            return Rejected(name, "not-read", error.diagnosis.message)

    def _chosen(
        self, listed: Sequence[Quantized], base: str, catalog: Catalog
    ) -> tuple[list[Quantized], list[Rejected]]:
        """The few that are worth their time: by who published them, then by downloads."""
        publishers = {one.repo.partition("/")[0] for entry in catalog.entries for one in entry.variants}

        def tier(each: Quantized) -> int:
            trust = _trust_of(each.repo, base, catalog)
            return {"maker": 0, "vendor": 1}.get(trust, 1 if each.repo.partition("/")[0] in publishers else 2)

        chosen: list[Quantized] = []
        left: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        formats: defaultdict[str, int] = defaultdict(int)
        for each in sorted(listed, key=lambda each: (tier(each), -each.downloads, each.repo)):
            kind = next((tag for tag in _FORMATS if tag in each.tags), "")
            if problem := self._problem(each, kind, tier(each)):
                left[problem].append(each.repo)
            elif len(chosen) == _MOST_READ or formats[kind] == _MOST_ALIKE:
                left["not-read", "was not read: others come first"].append(each.repo)
            else:
                formats[kind] += 1
                chosen.append(each)
        return chosen, [Rejected(_several(repos), *problem) for problem, repos in left.items()]

    def _problem(self, each: Quantized, kind: str, tier: int) -> tuple[str, str] | None:
        """Code and sentence."""
        owner, allowed = each.repo.partition("/")[0], self._policy.organisations
        if allowed is not None and owner.lower() not in allowed:
            return "policy", "policy.model_organisations does not allow its publisher"
        if tier > _TIERS[self._variants]:
            return "policy", f"policy.model_variants is {self._variants}: its publisher is none of those"
        if not kind or not _UNSERVED.isdisjoint(each.tags):
            return "format", "no engine that the agent knows reads its format"
        return None

    async def _is_here(self, option: Option) -> bool:
        try:
            await sources.resolve(option.source, self._policy)
        except ArtifactError:
            return False
        return True

    def _answer(self, wanted: HubReference) -> Path:
        allowed = sorted(self._policy.organisations or ())
        asked = json.dumps([source_hf.endpoint(self._policy), self._variants, allowed, str(wanted)])
        return self._policy.cache / "answers" / f"{hashlib.sha256(asked.encode()).hexdigest()[:24]}.json"


# What is in a repository


def _options(found: Repository, trust: str) -> tuple[list[Option], list[Rejected]]:
    """One for each variant, whose source names exactly its files."""
    label, options = f"hf:{found.repo}", dict[str, Option]()
    left_out = [Rejected(label, "not-read", sentence) for sentence in found.left_out]
    for each in found.variants:
        source = f"{label}@{found.commit}" + (f":{each.quantization}" if each.file else "")
        if HubReference.parse(source.removeprefix("hf:")) is None:
            left_out.append(Rejected(label, "not-named", f"no reference can name {each.file}"))
        elif source in options:
            left_out.append(Rejected(label, "not-named", f"{each.file} is another file that {source} could name"))
        else:
            path = f"{found.repo}/{each.file}" if each.file else found.repo
            options[source] = Option(replace(each.profile, path=path), source, trust=trust)
    return list(options.values()), left_out


def _as_trained(variant: Variant) -> bool:
    return not variant.file and variant.profile.quantization_config is None


def _trust(found: Repository, catalog: Catalog) -> str:
    return _trust_of(found.repo, found.base_model or found.repo, catalog)


def _trust_of(repo: str, base: str, catalog: Catalog) -> str:
    """Who stands behind a form of `base`: its maker, somebody who is known for others, or somebody else."""
    if repo.partition("/")[0] == base.partition("/")[0]:
        return "maker"
    return "community" if catalog.trust(repo) == "community" else "vendor"


def _otherwise(profile: ModelProfile, trained: ModelProfile) -> str:
    """Why this is no form of the model; "" where it may be."""
    shape, expected = ((each.layers, each.embedding_length) for each in (profile, trained))
    if 0 in (*shape, *expected) or shape == expected:
        return ""
    return "it is another model: {} layers of width {}, not {} of {}".format(*shape, *expected)


def _several(repos: Sequence[str]) -> str:
    names = ", ".join(f"hf:{repo}" for repo in repos[:3])
    return names + (f" and {len(repos) - 3} more" if len(repos) > 3 else "")


# What is on the disk


def _placed(wanted: HubReference, policy: SourcePolicy) -> tuple[Path, str] | None:
    """What an engine would open, and the reference of exactly that."""
    from agent.artifacts import selection  # noqa: PLC0415 - parsers that the daemon seldom needs
    from agent.artifacts.cache import repository  # noqa: PLC0415

    folder = repository(policy.cache, wanted.repo)
    commit = folder.commit(wanted.revision or "main")
    snapshot = folder.snapshot(commit)
    try:
        chosen = selection.choose(folder.names(commit), wanted.variant, f"hf:{wanted}", pickle=policy.pickle)
    except (ArtifactError, ProfileError):
        return None
    source = f"hf:{wanted.repo}@{commit}" + (f":{wanted.variant}" if wanted.variant else "")
    return snapshot / chosen.opened, source


@cache
def _form() -> TypeAdapter[Meaning]:
    """Made when it is first used, not when the daemon starts."""
    from pydantic import TypeAdapter  # noqa: PLC0415

    form = TypeAdapter(Meaning)
    form.rebuild(_types_namespace={"ModelProfile": ModelProfile})  # a name that `request` has for type checkers only
    return form


def _recall(path: Path) -> Meaning | None:
    try:
        with path.open("rb") as file:
            return _form().validate_json(file.read(_MOST_ANSWER))
    except (OSError, ValueError):
        return None


def _remember(path: Path, meaning: Meaning) -> None:
    """As far as the disk allows: it can be asked for again."""
    from agent.artifacts.cache import replace as write  # noqa: PLC0415

    with contextlib.suppress(OSError):
        write(path, json.dumps(asdict(meaning)).encode())
        for old in _oldest(path.parent):
            old.unlink(missing_ok=True)


def _oldest(folder: Path) -> Iterator[Path]:
    """Beyond those that are kept."""
    known = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    yield from known[_MOST_ANSWERS:]
