"""What of the catalog fits, best first, as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agent.ctl.output import Column, size
from agent.ctl.plans import verdict
from agent.ctl.values import short
from agent.v1 import agent_pb2 as pb

_REFUSED: Final = frozenset({pb.FIT_VERDICT_DOES_NOT_FIT, pb.FIT_VERDICT_NOT_SERVED})
_UNITS: Final = ((10**12, "T"), (10**9, "B"), (10**6, "M"))


def fits(found: pb.FitCatalogResponse) -> bool:
    return found.verdict not in _REFUSED


def best_first(found: Iterable[pb.FitCatalogResponse]) -> list[pb.FitCatalogResponse]:
    """Whole on devices, then partly, then on the CPU; of these the larger model, then the one with more bits a weight.

    What does not fit comes last, the nearest to it first.
    """
    return sorted(found, key=_rank)


def _rank(one: pb.FitCatalogResponse) -> tuple[int, int, int, float, str]:
    parameters = one.model.parameter_count
    missing = one.missing_bytes if one.HasField("missing_bytes") else 0
    return one.verdict, missing, -parameters, -one.size_bytes / max(1, parameters), one.model.name


def _requests(one: pb.FitCatalogResponse) -> str:
    """Of the longest length at the same time."""
    if one.HasField("requests"):
        return f"{one.requests:.1f}"
    return str(one.max_num_seqs or "")


def count(number: int) -> str:
    """`8.2B`, `135M`: parameters as people say them."""
    for unit, letter in _UNITS:
        if round(number / unit, 2) >= 1:  # 999 885 952 is a billion to people
            value = number / unit
            return f"{value:.1f}{letter}" if value < 100 else f"{value:.0f}{letter}"
    return str(number)


COLUMNS: Final[tuple[Column[pb.FitCatalogResponse], ...]] = (
    Column("MODEL", lambda one: short(one.model.name)),
    Column("PARAMETERS", lambda one: count(one.model.parameter_count), right=True),
    Column("TASK", lambda one: one.model.task, wide=True),
    Column("VARIANT", lambda one: f"{one.format} {one.quantization}".strip()),
    Column("ENGINE", lambda one: one.engine),
    Column("DEVICES", lambda one: (str(len(one.devices) or "cpu")) if one.engine else "", right=True),
    Column("CONTEXT", lambda one: str(one.max_model_len or ""), right=True),
    Column("REQUESTS", _requests, right=True),
    Column("MEMORY", lambda one: size(one.device_bytes or one.host_bytes) if one.engine else "", right=True),
    Column("VERDICT", verdict),
    Column("OF HOST", lambda one: size(one.host_bytes) if one.engine else "", wide=True, right=True),
    Column("TOKENS", lambda one: str(one.cache_tokens) if one.HasField("cache_tokens") else "", wide=True, right=True),
    Column("LICENCE", lambda one: one.model.licence, wide=True),
    Column("REFERENCE", lambda one: one.reference, wide=True),
    Column("WHY", lambda one: one.refusal.message, wide=True),
)
