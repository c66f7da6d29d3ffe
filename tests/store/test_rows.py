"""Rows prove themselves: what is read is what was written, or it is said to be damaged."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.store.records import InstanceRecord
from agent.store.rows import INSTANCES, Damaged
from tests.store.builders import instance

#: Text as people and JSON have it: no lone surrogates.
TEXT = st.text(st.characters(codec="utf-8"))
TIME = st.none() | st.floats(allow_nan=False, allow_infinity=False)

RECORDS = st.builds(
    InstanceRecord,
    id=TEXT,
    deployment=TEXT,
    generation=st.integers(-(2**63), 2**63 - 1),
    attempt=st.integers(0, 2**31),
    runtime=TEXT,
    plan_json=st.just("{}"),
    port=st.integers(0, 65535),
    directory=TEXT,
    log_path=TEXT,
    created_at=st.floats(allow_nan=False),
    handle_json=st.sampled_from(["", "{}", "[1]"]),
    started_at=TIME,
    ready_at=TIME,
    ended_at=TIME,
)


@given(RECORDS)
def test_a_record_comes_back_as_it_was(record: InstanceRecord) -> None:
    assert INSTANCES.decode(INSTANCES.encode(record)) == record


@given(RECORDS, st.integers(1, len(fields(InstanceRecord))), st.none() | st.integers() | st.floats() | TEXT)
def test_a_row_with_another_value_is_damaged(record: InstanceRecord, column: int, value: float | str | None) -> None:
    row = list(INSTANCES.encode(record))
    row[column] = f"{row[column]}!" if str(row[column]) == str(value) else value
    with pytest.raises(Damaged):
        INSTANCES.decode(row)


@pytest.mark.parametrize(("column", "text"), [("plan_json", ""), ("handle_json", "{"), ("probes_json", "no")])
def test_a_record_that_could_not_be_read_back_is_not_written(column: str, text: str) -> None:
    values = {field.name: getattr(instance(), field.name) for field in fields(InstanceRecord)}
    with pytest.raises(ValueError, match=f"instance.{column} is not"):
        INSTANCES.encode(InstanceRecord(**{**values, column: text}))
