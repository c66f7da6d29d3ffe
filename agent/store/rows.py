"""How records become rows and come back: types, JSON columns and a checksum are proved in both directions.

The columns of a table are `sum` and then the fields of its record, in order. What cannot be read back as it was
written is `Damaged`, and that is decided row by row.
"""

# ruff: noqa: S608 - the names in our SQL are constants of this package

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from agent.frozen import frozen
from agent.status import Event
from agent.store.records import DeploymentRecord, InstanceRecord, MeasurementRecord, RequestRecord

R = TypeVar("R")

Row = Sequence[str | int | float | bytes | None]


class Damaged(ValueError):
    """A row, or the whole database, is not what was written; the message says in which way."""


@frozen
class Meta:
    """One fact about the store itself, or about the node."""

    key: str
    value: str


@frozen
class PlanRow:
    """A plan, once for all instances that were made by it. `digest` is the sha256 of its text."""

    digest: str
    plan_json: str


@frozen
class SetAside:
    """A damaged row, kept for people: `row_json` is the list of its columns."""

    what: str
    key: str
    row_json: str
    problem: str
    at: float


def checksum(values: Row) -> int:
    """CRC-32 of a row's values: finds every flip of up to 32 bits in a row and costs microseconds."""
    return zlib.crc32("\x1f".join(map(str, values)).encode())


class Table(Generic[R]):
    """The codec between one dataclass and one table of the same columns.

    `key` is the primary key. The columns in `objects` must hold a JSON object, those in `documents` any JSON
    document or nothing.
    """

    def __init__(
        self, name: str, record: type[R], key: str, *, objects: Sequence[str] = (), documents: Sequence[str] = ()
    ) -> None:
        hints = get_type_hints(record)
        self.name = name
        self.key = key
        self.columns = tuple(column.name for column in fields(record))  # type: ignore[arg-type]
        self._record = record
        self._values = attrgetter(*self.columns)
        self._converters = tuple(_Converter(hints[column]) for column in self.columns)
        self._checks = tuple((column, _object) for column in objects) + tuple(
            (column, _document) for column in documents
        )
        self.names = ", ".join(("sum", *self.columns))
        into = f"INTO {name} ({self.names}) VALUES ({', '.join('?' * (len(self.columns) + 1))})"
        self.put = f"INSERT OR REPLACE {into}"
        self.keep = f"INSERT OR IGNORE {into}"
        self.select = f"SELECT {self.names} FROM {name}"

    def encode(self, record: R) -> tuple[str | int | float | None, ...]:
        """The parameters for `put`. Raises `ValueError` for a record that could not be read back."""
        self._check(record)
        values = tuple(map(_Converter.encode, self._converters, self._values(record)))
        return (checksum(values), *values)

    def decode(self, row: Row) -> R:
        """The record of a row that `select` returned. Raises `Damaged`."""
        values = row[1:]
        if checksum(values) != row[0]:
            raise Damaged("its checksum does not match")
        try:
            decoded = (converter.decode(value) for converter, value in zip(self._converters, values, strict=True))
            record = self._record(*decoded)
            self._check(record)
        except (ValueError, TypeError, RecursionError) as error:
            raise Damaged(str(error)) from error
        return record

    def _check(self, record: R) -> None:
        for column, check in self._checks:
            problem = check(getattr(record, column))
            if problem:
                raise ValueError(f"{self.name}.{column} {problem}")


class _Converter:
    """One column: str, int, float, a string enum, or one of them or None."""

    def __init__(self, hint: Any) -> None:
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        self._optional = bool(kinds)
        self._kind: type = kinds[0] if kinds else hint
        self._enum: Callable[[str], StrEnum] | None = self._kind if issubclass(self._kind, StrEnum) else None
        self._text = self._kind is str

    def encode(self, value: Any) -> str | int | float | None:
        if self._text and type(value) is str and value.isascii():
            return value  # nearly all
        if value is None and self._optional:
            return None
        if self._kind is float:
            return float(value)
        if self._kind is int:
            return int(value)
        text = str(value)
        # A file name or a log line may carry bytes that are no UTF-8; they must not make a write fail.
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()

    def decode(self, value: Any) -> Any:
        if value is None and self._optional:
            return None
        if self._enum is not None:
            return self._enum(value)
        if type(value) is not self._kind:
            raise Damaged(f"{value!r} is not of type {self._kind.__name__}")
        return value


#: Texts that were found to be JSON: most are written again with each change of their row, and reading the plan, the
#: verdicts and what was granted again with each takes a quarter of a millisecond of a crash.
CHECKED = 64


@lru_cache(maxsize=CHECKED)
def _object(text: str) -> str:
    try:
        return "" if isinstance(json.loads(text), dict) else "is not a JSON object"
    except ValueError as error:
        return f"is not JSON: {error}"


@lru_cache(maxsize=CHECKED)
def _document(text: str) -> str:
    try:
        if text:
            json.loads(text)
    except ValueError as error:
        return f"is not JSON: {error}"
    return ""


META = Table("meta", Meta, "key")
DEPLOYMENTS = Table("deployment", DeploymentRecord, "name", objects=("spec_json", "supervision_json"))
INSTANCES = Table(
    "instance",
    InstanceRecord,
    "id",
    objects=("plan_json",),
    documents=("handle_json", "exit_json", "diagnosis_json", "probes_json", "granted_json"),
)
PLANS = Table("plan", PlanRow, "digest", objects=("plan_json",))
EVENTS = Table("event", Event, "seq")
REQUESTS = Table("request", RequestRecord, "request_id")
MEASUREMENTS = Table("ledger", MeasurementRecord, "id", objects=("key_json",), documents=("terms_json",))
QUARANTINE = Table("quarantine", SetAside, "at")


@lru_cache(maxsize=CHECKED)
def plan_row(plan_json: str) -> tuple[str | int | float | None, ...]:
    """The parameters for `PLANS.keep`."""
    digest = hashlib.sha256(plan_json.encode("utf-8", "backslashreplace")).hexdigest()
    return PLANS.encode(PlanRow(digest, plan_json))


def referring(record: InstanceRecord) -> InstanceRecord:
    """The record with a reference in place of its plan, which `plan_row` writes."""
    return replace(record, plan_json=reference(str(plan_row(record.plan_json)[1])))


def reference(digest: str) -> str:
    """What stands for a plan in the row of an instance; SQLite makes the same of a digest by `REFERENCE`."""
    return f'{{"sha256": "{digest}"}}'


REFERENCE = """'{"sha256": "' || digest || '"}'"""


def resolved(record: InstanceRecord, plans: Mapping[str, str]) -> InstanceRecord:
    """The inverse of `referring`, by the plans of each reference. Raises `Damaged` where the plan is not there."""
    if not record.plan_json.startswith('{"sha256"'):
        return record  # written before there was a table of plans
    if record.plan_json not in plans:
        raise Damaged("its plan is lost")
    return replace(record, plan_json=plans[record.plan_json])
