"""An exported ledger as a person hands it in: checked field by field, because it comes from another node.

The same words as the API's `Measurement`, so that what `agentctl ledger export` writes is what `import` reads.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from agent.errors import FieldViolation
from agent.planning.ledger import HOST, Key, MeasuredTerm, Measurement
from agent.quantities import Matches, NonEmptyLine
from agent.strict import Strict, broken, invalid, validate

#: Measurements of one import: twice what a node keeps.
MAX_MEASUREMENTS = 1000
#: No host and no device has as much memory (1 PiB); a limit above it is no limit (bytes, tokens).
MOST = 2**50
#: The first second of 2020 (Unix seconds): there was no agent before.
OLDEST = 1_577_836_800.0
#: Clocks of two nodes may differ by this much (seconds).
SKEW = 86_400.0


def _time(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise broken("must be an RFC 3339 time, such as '2026-11-21T09:30:00Z'")
    return text


_Line = Annotated[str, Matches(r"[^\x00-\x1f\x7f]{0,512}", "must be one line of at most 512 characters", "line")]
_Id = Annotated[str, Matches(r"[A-Za-z0-9._-]{1,128}", "must be 1 to 128 letters, digits, '.', '_' or '-'", "id")]
_Name = Annotated[
    str, Matches(r"measurements/[A-Za-z0-9._-]{1,128}", "must be measurements/ and an id", "resource name")
]
_Pool = Annotated[str, Matches(r"host|0|[1-9][0-9]{0,2}", "must be 'host' or the number of a device", "pool")]
_Size = Annotated[int, Field(ge=0, le=MOST)]
_Layers = Annotated[int, Field(ge=0, le=10_000)]
_Ranks = Annotated[int, Field(ge=1, le=4096)]
_Limit = Annotated[int, Field(ge=1, le=MOST)]
_Lines = Annotated[tuple[_Line, ...], Field(strict=False, max_length=64)]


class Term(Strict):
    """One term."""

    pool: _Pool
    term: NonEmptyLine
    measured_bytes: _Size
    formula_bytes: _Size | None = None
    source: Literal["log", "driver", "kernel"]


class Row(Strict):
    """One start."""

    name: _Name
    id: _Id | None = None  # the end of `name`, as `-o json` adds it
    node: _Id
    host: _Line = ""
    imported: bool = False  # as the node that exported it saw it
    measure_time: Annotated[str, AfterValidator(_time)]
    model: _Line = ""
    digest: _Line = ""
    file_bytes: _Size
    architecture: NonEmptyLine
    quantization: NonEmptyLine
    engine: NonEmptyLine
    engine_version: _Line = ""
    task: NonEmptyLine
    accelerator: NonEmptyLine
    device_models: Annotated[tuple[_Line, ...], Field(strict=False, min_length=1, max_length=64)]
    layers: Annotated[tuple[_Layers, ...], Field(strict=False, max_length=64)] = ()
    ranks: Annotated[tuple[_Ranks, ...], Field(strict=False, max_length=3)] = ()
    kv_cache_dtype: NonEmptyLine
    max_num_seqs: _Limit
    max_model_len: _Limit
    max_num_batched_tokens: _Limit
    extra_args: _Lines = ()
    terms: Annotated[tuple[Term, ...], Field(strict=False, min_length=1, max_length=256)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen = set()
        devices = 0 if self.accelerator == "cpu" else len(self.device_models)
        for place, term in enumerate(self.terms):
            if term.pool != HOST and int(term.pool) >= devices:
                rule = f"must be 'host' or the number of a device, of which `device_models` has {devices}"
                raise broken(rule, _at(place, "pool"))
            if (term.pool, term.term) in seen:
                raise broken(f"{term.term!r} is given twice for {term.pool}", _at(place, "term"))
            seen.add((term.pool, term.term))
        return self

    def measurement(self, own: str) -> Measurement:
        """`own`: the uid of this node, whose measurements come back as its own."""
        key = Key(
            digest=self.digest, file_bytes=self.file_bytes, architecture=self.architecture,
            quantization=self.quantization, engine=self.engine, engine_version=self.engine_version, task=self.task,
            accelerator=self.accelerator, device_models=self.device_models, layers=self.layers, ranks=self.ranks,
            kv_cache_dtype=self.kv_cache_dtype, extra_args=self.extra_args, max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len, max_num_batched_tokens=self.max_num_batched_tokens,
        )  # fmt: skip
        return Measurement(
            id=self.name.removeprefix("measurements/"), node=self.node, host=self.host, imported=self.node != own,
            at=datetime.fromisoformat(self.measure_time).timestamp(), model=self.model, key=key,
            terms=tuple(
                MeasuredTerm(term.pool, term.term, term.measured_bytes, term.source, term.formula_bytes)
                for term in self.terms
            ),
        )  # fmt: skip


class File(Strict):
    """The whole."""

    measurements: Annotated[tuple[Row, ...], Field(strict=False, max_length=MAX_MEASUREMENTS)]


def parse(data: object, own: str, now: float) -> tuple[Measurement, ...]:
    """What an exported ledger says. `now` is in Unix seconds. Raises `InvalidArgument` with the path of each field."""
    rows = [row.measurement(own) for row in validate(File, data, "the ledger").measurements]
    seen: set[str] = set()
    for place, row in enumerate(rows):
        if row.id in seen:
            raise invalid(FieldViolation(f"measurements[{place}].name", "is there twice"))
        if not OLDEST <= row.at <= now + SKEW:
            rule = "must not be in the future, nor before 2020"
            raise invalid(FieldViolation(f"measurements[{place}].measure_time", rule))
        seen.add(row.id)
    return tuple(rows)


def _at(place: int, field: str) -> str:
    return f"terms[{place}].{field}"
