"""What model references and names mean: entries of the catalog, and options for plans out of it or from a hub.

The catalog is read when it is first asked for, and again when the operator's own file has changed.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent.artifacts.base import SourcePolicy
from agent.errors import NotFound
from agent.models.errors import ProfileError
from agent.models.profiles import Profiles
from agent.planning.plan import Rejected
from agent.planning.request import Option
from agent.references import HubReference
from agent.settings import ModelVariants
from agent.status import Diagnosis, DiagnosisCode
from agent.supervision.hub import HubModels, Meaning
from agent.supervision.service import KnownModel, KnownVariant

if TYPE_CHECKING:
    from agent.models.catalog import Catalog, Entry, Published

#: Names that are suggested for one that is not known.
_SUGGESTED = 3


class Models:
    """The catalog of one node; `own` is the operator's file. Nothing here blocks the event loop."""

    def __init__(self, own: Path, profiles: Profiles, policy: SourcePolicy, variants: ModelVariants) -> None:
        self._own, self._policy = own, policy
        self._hub = HubModels(profiles, policy, variants)
        self._seen: tuple[int, int] | None = None
        self._catalog: Catalog | None = None
        self._options: dict[tuple[str, str, str], Option] = {}  # by entry, repository and quantization
        self._lock = asyncio.Lock()  # two plans of one model count it once

    async def catalog(self) -> Catalog:
        """Raises `InvalidArgument` that names the operator's file, the field and the rule."""
        async with self._lock:
            return await asyncio.to_thread(self._load)

    async def options(self, reference: str) -> Meaning:
        """What `owner/name[@revision][:quantization]` can mean. The hub is asked for what neither its files here nor
        the catalog say. Raises `ProfileError`, `ArtifactError`, and as `catalog`."""
        wanted = HubReference.parse(reference)
        assert wanted is not None  # a spec's reference was checked
        catalog = await self.catalog()
        if (here := await self._hub.here(wanted)) is not None:
            return here
        entry = catalog.lookup(wanted.repo)
        if entry is not None and wanted.revision in {"", "main"} and (published := _named(catalog, entry, wanted)):
            return await self.of(catalog, entry, published)
        return await self._beyond(catalog, wanted)

    async def of(self, catalog: Catalog, entry: Entry, published: Sequence[Published]) -> Meaning:
        """Raises `ProfileError` for an entry that contradicts itself, and where the policy allows none of it."""
        allowed = self._policy.organisations
        may = [one for one in published if allowed is None or one.repo.partition("/")[0].lower() in allowed]
        left_out = tuple(
            Rejected(reference_of(entry, one), "policy", "policy.model_organisations does not allow its publisher")
            for one in published
            if one not in may
        )
        if not may:
            message = f"the node policy allows no publisher of {entry.id}"
            raise ProfileError(Diagnosis(DiagnosisCode.POLICY_DENIED, message, hint="see policy.model_organisations"))
        async with self._lock:
            return Meaning(
                await asyncio.to_thread(lambda: tuple(self._option(catalog, entry, one) for one in may)), left_out
            )

    async def _beyond(self, catalog: Catalog, wanted: HubReference) -> Meaning:
        """What the hub says; without it, what its tools brought here before."""
        error = ProfileError(_unknown(catalog, wanted))
        if not self._hub.offline:
            try:
                return await self._hub.ask(wanted, catalog)
            except ProfileError as raised:
                error = raised
            if error.diagnosis.code is not DiagnosisCode.SOURCE_UNAVAILABLE:
                raise _with_names(error, catalog, wanted)
        if (found := await self._hub.in_place(wanted)) is not None:
            return found
        raise _with_names(error, catalog, wanted)

    async def known(self) -> tuple[KnownModel, ...]:
        """All entries, in the catalog's order."""
        catalog = await self.catalog()
        return tuple(described(catalog, entry) for entry in catalog.entries)

    async def resolve(self, text: str) -> tuple[KnownModel, str]:
        """The model that a name means, and its canonical reference. Behind a colon the name may have a quantization.

        Raises `NotFound` with the nearest names.
        """
        catalog = await self.catalog()
        entry, quantization = catalog.lookup(text), ""
        if entry is None:
            head, _, quantization = text.rpartition(":")
            entry = catalog.lookup(head) if head else None
        if entry is None:
            raise NotFound(f"the catalog has no model {text!r}", hint=_suggestion(catalog, text))
        if not quantization:
            exact = next((one.repo for one in entry.variants if one.repo.lower() == text.lower()), entry.id)
            return described(catalog, entry), f"hf:{exact}"
        published = catalog.variant(entry, quantization)
        if published is None:
            raise NotFound(f"{entry.id} has no variant {quantization!r}", hint=_variants(catalog.variants(entry)))
        return described(catalog, entry), reference_of(entry, published)

    def _load(self) -> Catalog:
        from agent.models import catalog  # noqa: PLC0415 - 100 ms that the daemon's start does not pay

        try:
            status = self._own.stat()
            seen = (status.st_mtime_ns, status.st_size)
        except OSError:
            seen = None
        if self._catalog is None or seen != self._seen:
            self._catalog = catalog.load(self._own if seen else None)
            self._seen = seen
            self._options.clear()
        return self._catalog

    def _option(self, catalog: Catalog, entry: Entry, published: Published) -> Option:
        key = (entry.id, published.repo, published.quantization)
        if key not in self._options:
            profile = catalog.profile(entry, published)
            if published.file:
                profile = replace(profile, path=f"{published.repo}/{published.file}")
            self._options[key] = Option(profile, reference_of(entry, published), trust=published.trust)
        return self._options[key]


def reference_of(entry: Entry, published: Published) -> str:
    """The reference of exactly this variant: a model's own name alone would mean all of them."""
    alone = published.format != "gguf" and published.repo != entry.id
    return f"hf:{published.repo}" if alone else f"hf:{published.repo}:{published.quantization}"


def described(catalog: Catalog, entry: Entry) -> KnownModel:
    """An entry as others see it."""
    return KnownModel(
        id=entry.id, aliases=entry.aliases, family=entry.family, licence=entry.licence, gated=entry.gated,
        task=entry.task, context_tokens=entry.context, parameters=entry.parameters,
        variants=tuple(
            KnownVariant(reference_of(entry, one), one.format, one.quantization, one.trust)
            for one in catalog.variants(entry)
        ),
    )  # fmt: skip


def _named(catalog: Catalog, entry: Entry, wanted: HubReference) -> Sequence[Published]:
    """All variants for the model's own name, one repository's for a variant's; of these the named quantization, where
    the model's own repository goes before others. Nothing for a quantization that the catalog does not have.
    """
    published = catalog.variants(entry)
    if wanted.repo.lower() != entry.id.lower():
        published = tuple(one for one in published if one.repo.lower() == wanted.repo.lower())
    if not wanted.variant:
        return published
    found = [one for one in published if one.quantization == wanted.variant]
    found = found or [one for one in published if one.quantization.lower() == wanted.variant.lower()]
    return [one for one in found if one.repo.lower() == wanted.repo.lower()] or found


def _variants(published: Sequence[Published]) -> str:
    return f"it has {_listed(published)}"


def _listed(published: Sequence[Published]) -> str:
    return ", ".join(dict.fromkeys(one.quantization for one in published))


def _unknown(catalog: Catalog, wanted: HubReference) -> Diagnosis:
    """Why a node that may not ask the hub does not know."""
    entry = catalog.lookup(wanted.repo)
    if entry is None:
        message = f"the catalog has no model {wanted.repo}"
    elif wanted.revision in {"", "main"}:
        message = f"the catalog knows no variant {wanted.variant} of {wanted.repo}"
    else:
        message = f"the catalog knows no revisions of {wanted.repo}"
    hint = (
        "copy it from the cache of a machine that has it, or name its files as file:/...; fetch.offline and "
        "HF_HUB_OFFLINE decide whether the hub is asked"
    )
    return Diagnosis(DiagnosisCode.MODEL_MISSING, f"{message}, and the hub may not be asked: offline", hint=hint)


def _with_names(error: ProfileError, catalog: Catalog, wanted: HubReference) -> ProfileError:
    """With what the catalog does have: the model that was probably meant, or its variants."""
    entry, known = catalog.lookup(wanted.repo), ""
    if entry is not None and wanted.variant:
        known = f"of {entry.id} the catalog has {_listed(catalog.variants(entry))};"
    elif entry is None and error.diagnosis.code is DiagnosisCode.MODEL_MISSING:
        known = _guess(catalog, wanted.repo)
    hint = " ".join(filter(None, (known, error.diagnosis.hint))).removesuffix(";")
    return ProfileError(replace(error.diagnosis, hint=hint))


def _guess(catalog: Catalog, text: str) -> str:
    """The names that were probably meant, one a model."""
    names = {
        name.lower(): entry.id if "/" in text else entry.name
        for entry in catalog.entries
        for name in (*entry.aliases, entry.name, entry.id, *(one.repo for one in entry.variants))
    }
    near = difflib.get_close_matches(text.strip().lower(), names, n=10 * _SUGGESTED, cutoff=0.5)
    meant = list(dict.fromkeys(names[one] for one in near))[:_SUGGESTED]
    return f"did you mean {' or '.join(meant)}?" if meant else ""


def _suggestion(catalog: Catalog, text: str) -> str:
    known = "`agentctl fit --all` lists what the catalog has; a file is named by its path"
    return " ".join(filter(None, (_guess(catalog, text), known)))
