"""Measured memory: what engines were seen to use, by what they ran with, and how that replaces what formulas say. Pure.

A measurement counts for a plan only where everything that decides about memory is the same; where just the context,
the sequences or the batch differ, only for the terms that do not depend on them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from agent.planning.plan import Limits, MemoryTerm, Placement, Plan

#: The pool of host memory; a device's pool is its place in the placement's order, "0" first: ids differ between nodes.
HOST = "host"
#: Terms by the names that adapters give them. What a log does not name is the rest: of a device, of the host.
WEIGHTS, CACHE, COMPUTE, CONTEXT, PROCESS = "weights", "KV cache", "compute", "context", "process"
#: In the ledger only: everything an instance held of a pool; what it keeps twice of the weights (not budgeted).
TOTAL, REPACKED = "total", "repacked weights"
#: What does not depend on context, sequences and batch: it holds for a plan with other limits as well.
INDEPENDENT = frozenset({WEIGHTS, CONTEXT, PROCESS})
#: Sizes in logs have two decimals of a MiB, and a term may be the sum of a few of them (bytes).
ROUNDING = 16 * 1024
#: Another start may lay its buffers out differently, by no more than a page of a GPU (2 MiB) or of the host (bytes).
MARGIN = 2 * 1024**2


@dataclass(frozen=True, slots=True)
class MeasuredTerm:
    """One term of one start. `formula` is what the formula said for it, None where it has no such term."""

    pool: str  # "host", or a device's place in the placement's order: "0"
    name: str
    bytes: int
    source: str = "log"  # "log": the engine's own report; "driver": of the device; "kernel": of the host
    formula: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """Everything that decides how much memory an engine takes."""

    digest: str  # of the weights, where it is known; otherwise they are told apart by the next three
    file_bytes: int
    architecture: str
    quantization: str
    engine: str
    engine_version: str
    task: str
    accelerator: str
    device_models: tuple[str, ...]  # of each device; without devices that of the CPU
    layers: tuple[int, ...]  # on each device
    kv_cache_dtype: str
    extra_args: tuple[str, ...]
    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    ranks: tuple[int, ...] = ()  # of engines of ranks on several devices: tensor, pipeline, data; 1 for whole experts

    @property
    def layout(self) -> tuple[object, ...]:
        """Of one model and engine, where and how it lies: the same for all limits."""
        return self.layers, self.device_models, self.accelerator, self.kv_cache_dtype, self.ranks

    @property
    def scale(self) -> tuple[int, int, int]:
        """The limits that memory grows with."""
        return self.max_num_seqs, self.max_model_len, self.max_num_batched_tokens


@dataclass(frozen=True, slots=True)
class Measurement:
    """One start of an engine that did what its plan said."""

    id: str  # the instance's; unique over nodes
    node: str  # uid of the node that it was made on
    host: str  # that node's name, for people
    imported: bool  # made on another node
    at: float  # Unix seconds
    model: str  # the reference, as in the spec; for people
    key: Key
    terms: tuple[MeasuredTerm, ...]


@dataclass(frozen=True, slots=True)
class Fixed:
    """The part of a key that is known before a layout is: one for each plan that is being made."""

    digest: str
    file_bytes: int
    architecture: str
    quantization: str
    engine: str
    engine_version: str
    task: str
    extra_args: tuple[str, ...]
    cpu: str  # the model of the host's

    def of(self, key: Key) -> bool:
        """Whether the key is of this model and engine."""
        if (key.engine, key.engine_version, key.task, key.extra_args) != (
            self.engine, self.engine_version, self.task, self.extra_args
        ):  # fmt: skip
            return False
        if self.digest and key.digest:
            return self.digest == key.digest
        # Files of one size, architecture and quantization lay the same tensors out, whatever their values.
        return (key.file_bytes, key.architecture, key.quantization) == (
            self.file_bytes, self.architecture, self.quantization
        )  # fmt: skip

    def key(self, limits: Limits, placement: Placement, devices: Sequence[str]) -> Key:
        """`devices` are the models of the devices, in the placement's order."""
        return Key(
            digest=self.digest, file_bytes=self.file_bytes, architecture=self.architecture,
            quantization=self.quantization, engine=self.engine, engine_version=self.engine_version, task=self.task,
            accelerator=placement.accelerator, device_models=tuple(devices) or (self.cpu,),
            layers=placement.layers, kv_cache_dtype=limits.kv_cache_dtype, extra_args=self.extra_args,
            max_num_seqs=limits.max_num_seqs, max_model_len=limits.max_model_len,
            max_num_batched_tokens=limits.max_num_batched_tokens, ranks=_ranks(placement),
        )  # fmt: skip


def _ranks(placement: Placement) -> tuple[int, ...]:
    found = (placement.tensor, placement.pipeline, placement.data)
    return () if found == (1, 1, 1) else (*found, *([1] if placement.experts else []))


def key_of(plan: Plan, cpu: str, devices: Sequence[str]) -> Key:
    """The key under which a start of `plan` is remembered."""
    variant = plan.variant
    fixed = Fixed(
        variant.digest, variant.bytes, variant.architecture, variant.quantization, plan.engine, plan.engine_version,
        plan.task, plan.extra_args, cpu,
    )  # fmt: skip
    return fixed.key(plan.limits, plan.placement, devices)


class Experience:
    """The measurements that may count for one plan, and what they make of its terms."""

    def __init__(self, measurements: Iterable[Measurement], fixed: Fixed) -> None:
        self._fixed = fixed
        self._seen: dict[tuple[object, ...], _Seen] = {}
        for row in measurements:
            if fixed.of(row.key):
                self._seen.setdefault(row.key.layout, _Seen()).add(row)

    def __bool__(self) -> bool:
        return bool(self._seen)

    def applied(
        self,
        pools: Sequence[tuple[MemoryTerm, ...]],
        limits: Limits,
        placement: Placement,
        devices: Sequence[str],
    ) -> tuple[tuple[MemoryTerm, ...], ...]:
        """The formulas' terms, of the host and then of each device, with measurements in place of those they cover."""
        key = self._fixed.key(limits, placement, devices)
        seen = self._seen.get(key.layout)
        if seen is None:
            return tuple(pools)
        names = (HOST, *map(str, range(len(pools) - 1)))
        return tuple(
            tuple(_measured(term, pool, terms, seen, key.scale) for term in terms)
            for pool, terms in zip(names, pools, strict=True)
        )


def _measured(
    term: MemoryTerm, pool: str, terms: Sequence[MemoryTerm], seen: _Seen, scale: tuple[int, int, int]
) -> MemoryTerm:
    """`term` by the best measurements of it, or as it is. `terms` are all of its pool."""
    if (pool, term.name) == (HOST, PROCESS):
        return _raised(term, terms, seen)
    found = seen.found(pool, term.name, None if term.name in INDEPENDENT else scale)
    if found is None:
        return _at_least(term, seen.below(pool, term.name, scale))
    if term.name == CONTEXT:
        # What requests allocate later is not in it: the formula's allowance for that stays.
        size, others = found.most, _unnamed(terms)
        if others:  # it is the rest of the device, and formulas have other terms for parts of it
            size = max(term.bytes, size - others)
        return found.replacing(term, size, max(found.spread, term.uncertainty))
    if abs(found.most - term.bytes) <= ROUNDING and not term.uncertainty:
        return found.replacing(term, term.bytes, 0)
    if term.name == CACHE and found.most < term.bytes:
        return term  # the limits promise this many tokens: a smaller measurement is none of what they need
    return found.replacing(term, found.most + ROUNDING, found.spread + min(MARGIN, term.uncertainty))


def _unnamed(terms: Sequence[MemoryTerm]) -> int:
    """Terms of a device that no log tells, besides the context."""
    told = {CACHE, COMPUTE, CONTEXT}
    return sum(term.bytes for term in terms if term.name not in told and not term.name.startswith(WEIGHTS))


def _at_least(term: MemoryTerm, smaller: _Found | None) -> MemoryTerm:
    """More is never less: what smaller limits were seen to take is the least for larger ones."""
    if smaller is None or smaller.most <= term.bytes + ROUNDING:
        return term
    return smaller.replacing(term, smaller.most + ROUNDING, term.uncertainty)


def _raised(term: MemoryTerm, terms: Sequence[MemoryTerm], seen: _Seen) -> MemoryTerm:
    """The host's rest (code, libraries, heap) is seen right after the start, when it is smallest: it can only raise."""
    found = seen.found(HOST, PROCESS, None)
    if found is None:
        return term
    missing = found.most - sum(other.bytes for other in terms if other.name not in {WEIGHTS, CACHE, COMPUTE})
    return term if missing <= 0 else found.replacing(term, term.bytes + missing, max(term.uncertainty, found.spread))


class _Seen:
    """All starts of one layout, by term."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[str, str], list[tuple[tuple[int, int, int], int, Measurement]]] = {}
        #: Of all limits together: asked for again and again while limits are chosen.
        self._independent: dict[tuple[str, str], _Found | None] = {}

    def add(self, row: Measurement) -> None:
        for term in row.terms:
            self._sizes.setdefault((term.pool, term.name), []).append((row.key.scale, term.bytes, row))

    def found(self, pool: str, name: str, scale: tuple[int, int, int] | None) -> _Found | None:
        """What starts with these limits say of a term; with None those with any."""
        place = (pool, name)
        if scale is not None:
            return _Found.of([(size, row) for at, size, row in self._sizes.get(place, ()) if at == scale])
        if place not in self._independent:
            self._independent[place] = _Found.of([(size, row) for _, size, row in self._sizes.get(place, ())])
        return self._independent[place]

    def below(self, pool: str, name: str, scale: tuple[int, int, int]) -> _Found | None:
        """What starts with no larger limits say of a term."""
        seqs, length, batch = scale
        return _Found.of([
            (size, row) for at, size, row in self._sizes.get((pool, name), ())
            if at[0] <= seqs and at[1] <= length and at[2] <= batch
        ])  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Found:
    """What several starts say of one term, in bytes, and where that comes from."""

    most: int
    spread: int
    source: str

    @classmethod
    def of(cls, starts: Sequence[tuple[int, Measurement]]) -> _Found | None:
        """Of this node's own starts; of others' where there are none."""
        starts = [start for start in starts if not start[1].imported] or starts
        if not starts:
            return None
        sizes, rows = [size for size, _ in starts], [row for _, row in starts]
        day = datetime.fromtimestamp(max(row.at for row in rows), UTC).date()
        hosts = sorted({row.host or row.node for row in rows})
        more = f" and {len(hosts) - 1} more" if len(hosts) > 1 else ""
        where = f"on {hosts[0]}{more}, imported" if rows[0].imported else "on this node"
        count = f"{len(rows)} start{'s' * (len(rows) != 1)}"
        return cls(max(sizes), max(sizes) - min(sizes), f"measured {where} {day}, {count}")

    def replacing(self, term: MemoryTerm, size: int, uncertainty: int) -> MemoryTerm:
        return replace(term, bytes=size, uncertainty=uncertainty, source=self.source, formula=term.bytes)


def compared(
    budgets: Mapping[str, Sequence[MemoryTerm]],
    reported: Sequence[MeasuredTerm],
    held: Mapping[str, int | None],
) -> tuple[MeasuredTerm, ...]:
    """One start: what the engine `reported`, and what driver and kernel saw held (bytes by pool), each beside what the
    formula said of it. `budgets` are the plan's terms by pool."""
    found: list[MeasuredTerm] = []
    for pool, terms in budgets.items():
        formulas = {term.name: term.bytes if term.formula is None else term.formula for term in terms}
        told = [replace(term, formula=formulas.get(term.name)) for term in reported if term.pool == pool]
        found += told
        total = held.get(pool)
        if total is None or not told:
            continue
        source, rest = ("kernel", PROCESS) if pool == HOST else ("driver", CONTEXT)
        named = {term.name for term in told}
        other = sum(size for name, size in formulas.items() if name not in named)
        beyond = total - sum(term.bytes for term in told)
        if beyond > 0:
            found.append(MeasuredTerm(pool, rest, beyond, source, other))
        found.append(MeasuredTerm(pool, TOTAL, total, source, sum(formulas.values())))
    return tuple(found)


def newest(measurements: Iterable[Measurement], each: int, total: int) -> tuple[Measurement, ...]:
    """Those to keep: the newest `each` of a key, own and imported apart, and of all no more than `total`, own ones
    first. Oldest first."""
    kept: dict[tuple[Key, bool], int] = {}
    chosen: list[Measurement] = []
    for row in sorted(measurements, key=lambda row: (row.imported, -row.at, row.id)):
        place = (row.key, row.imported)
        kept[place] = kept.get(place, 0) + 1
        if kept[place] <= each and len(chosen) < total:
            chosen.append(row)
    return tuple(sorted(chosen, key=lambda row: (row.at, row.id)))


def key_to_json(key: Key) -> str:
    return json.dumps(asdict(key))


def key_from_json(text: str) -> Key:
    """Raises `ValueError`, `TypeError` or `KeyError` for anything that is not a key."""
    data: dict[str, Any] = json.loads(text)
    for name in ("device_models", "layers", "extra_args"):
        data[name] = tuple(data[name])
    data["ranks"] = tuple(data.get("ranks", ()))  # keys of agents that knew no engine of ranks have none
    return Key(**data)


def terms_to_json(terms: Sequence[MeasuredTerm]) -> str:
    return json.dumps([asdict(term) for term in terms])


def terms_from_json(text: str) -> tuple[MeasuredTerm, ...]:
    """Raises `ValueError` or `TypeError` for anything that is no terms."""
    return tuple(MeasuredTerm(**term) for term in json.loads(text))
