"""The first candidate that fits. Best: all of it on devices; then partly or wholly on the CPU; then what may not fit.

A candidate that is preferred and does not fit gives way to the next one, with its numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

from agent.engines.base import LayersEngine, RanksEngine, Spread
from agent.planning.candidates import Candidate
from agent.planning.fitting import Fitted, fit
from agent.planning.plan import Rejected
from agent.planning.ranking import Ranked, Ranking
from agent.planning.ranks import Ranks
from agent.planning.request import FAR, MisfitError, RefusedError
from agent.planning.supply import Supply
from agent.status import Diagnosis, DiagnosisCode

#: An engine that lacks so many times less than a preferred one is spoken of instead.
_MUCH_CLOSER = 2


class Selection:
    """Of one request's candidates. `broken`: those that break a rule, whatever fits."""

    def __init__(
        self, supply: Supply, ranking: Ranking, found: Sequence[Candidate], broken: Sequence[Rejected]
    ) -> None:
        self._broken = tuple(broken)
        self._supply, self._ranking = supply, ranking
        self._ranked = ranking.ranked(found)
        self._alone = len(found) == 1
        self._fitted: dict[tuple[int, bool], Fitted | RefusedError] = {}

    def chosen(self) -> tuple[Ranked, Fitted, tuple[Rejected, ...]]:
        """The candidate, how it fits, and why the others were not chosen. Raises `RefusedError`."""
        found = next(self._acceptable(), None)
        if found is None:
            raise self._refused()
        ranked, fitted = found
        return ranked, fitted, (*self._broken, *self._others(ranked))

    def _acceptable(self) -> Iterator[tuple[Ranked, Fitted]]:
        """Best first."""
        doubtful: list[tuple[Ranked, Fitted]] = []
        for whole in (True,) if self._supply.whole else (False,) if self._alone else (True, False):
            for ranked in self._ranked:
                if whole and ranked.lossy:
                    continue
                fitted = self._fit(ranked.candidate, whole=whole)
                if isinstance(fitted, RefusedError) or not self._is_rich_enough(ranked, fitted):
                    continue
                if whole and not fitted.whole:
                    continue
                if fitted.assured:
                    yield ranked, fitted
                else:
                    doubtful.append((ranked, fitted))
        yield from doubtful

    def _fit(self, candidate: Candidate, *, whole: bool) -> Fitted | RefusedError:
        """As it was found before, if it was: engines of ranks have only one way."""
        ranks = candidate.engine.capabilities.spread == Spread.RANKS
        key = (id(candidate), whole and not ranks)
        if key not in self._fitted:
            self._fitted[key] = self._tried(candidate, whole=whole)
        return self._fitted[key]

    def _tried(self, candidate: Candidate, *, whole: bool, alone: bool = False) -> Fitted | RefusedError:
        request, engine = candidate.request(self._supply.request), candidate.engine
        try:
            if engine.capabilities.spread == Spread.RANKS:
                ranks = cast("RanksEngine", engine)
                return Ranks(request, ranks, candidate.located, candidate.support, self._supply).fit()
            layers = cast("LayersEngine", engine)
            return fit(request, layers, candidate.located, self._supply, whole=whole, alone=alone or self._alone)
        except RefusedError as refused:
            return refused

    @staticmethod
    def _is_rich_enough(ranked: Ranked, fitted: Fitted) -> bool:
        if ranked.most is None:
            return True
        memory = sum(offer.device.memory_bytes for offer in fitted.layout.offers)
        return ranked.candidate.profile.tensor_bytes <= ranked.most * memory

    def _others(self, chosen: Ranked) -> Iterator[Rejected]:
        """Each candidate once, in their order."""
        seen = {id(chosen.candidate)}
        for ranked in self._ranked:
            candidate = ranked.candidate
            if id(candidate) in seen:
                continue
            seen.add(id(candidate))
            found = [
                self._fitted[key] for key in ((id(candidate), True), (id(candidate), False)) if key in self._fitted
            ]
            refused = next((each for each in found if isinstance(each, RefusedError)), None)
            if refused is not None:
                yield Rejected(candidate.name, "does-not-fit", refused.refusal.diagnosis.message)
            elif found:
                yield Rejected(candidate.name, "ranked-lower", "fits less well than what was chosen")
            else:
                yield Rejected(candidate.name, "ranked-lower", self._ranking.why_lower(ranked, chosen))

    def _refused(self) -> RefusedError:
        """That of the engine that is preferred, with the variant that came closest, unless another engine lacks less
        than half as much.
        """
        if self._supply.brief:
            return MisfitError(Diagnosis(DiagnosisCode.DOES_NOT_FIT, "does not fit"), 0)
        refusals = [
            (refused.missing if isinstance(refused, MisfitError) else FAR, place, ranked.candidate, refused)
            for place, ranked in enumerate(self._ranked)
            if isinstance(refused := self._fitted.get((id(ranked.candidate), False)), RefusedError)
        ]
        missing, closest, refused = _spokesman(refusals)
        in_full = refused if self._alone else self._tried(closest, whole=False, alone=True)
        refused = in_full if isinstance(in_full, RefusedError) else refused
        others = (Rejected(each.name, "does-not-fit", why.refusal.diagnosis.message) for *_, each, why in refusals)
        named = () if self._alone else dict.fromkeys(others)
        rejected = (*self._broken, *named, *refused.refusal.rejected)
        diagnosis = refused.refusal.diagnosis
        if not isinstance(refused, MisfitError):  # it is the question: a device that does not exist, or a limit
            return RefusedError(diagnosis, rejected)
        if not self._alone:
            diagnosis = replace(diagnosis, message=f"{closest.name}: {diagnosis.message}")
        return MisfitError(diagnosis, missing, rejected)


def _spokesman(refusals: Sequence[tuple[int, int, Candidate, RefusedError]]) -> tuple[int, Candidate, RefusedError]:
    """Of (missing bytes, place in the order, candidate, refusal): whose numbers are told."""
    nearest: dict[str, tuple[int, int, Candidate, RefusedError]] = {}
    for each in refusals:
        known = nearest.setdefault(each[2].engine.name, each)
        nearest[each[2].engine.name] = min(known, each, key=lambda one: one[:2])
    least = min(missing for missing, *_ in nearest.values())
    missing, _, candidate, refused = next(each for each in nearest.values() if each[0] <= _MUCH_CLOSER * least)
    return missing, candidate, refused
