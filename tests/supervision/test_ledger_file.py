"""Ledgers from elsewhere: what is taken, and what is refused with the path of the field."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api import mapping
from agent.ctl.values import plain
from agent.errors import InvalidArgument
from agent.supervision.ledger_file import MAX_MEASUREMENTS, parse
from tests.api.fake_node import NOW, make_measurement


def exported(number: int = 0) -> dict[str, Any]:
    return json.loads(json.dumps(plain(mapping.measurement(make_measurement(number)))))


def ledger(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"measurements": list(rows)}


def test_what_was_exported_is_read_as_it_was_and_as_anothers() -> None:
    (row,) = parse(ledger(exported()), "this-node", NOW)

    assert row == make_measurement(imported=True)


def test_what_this_node_measured_itself_comes_back_as_its_own() -> None:
    (row,) = parse(ledger(exported()), "node-1", NOW)

    assert row == make_measurement()


def test_how_ranks_lay_on_devices_goes_along() -> None:
    made = make_measurement()
    made = replace(made, key=replace(made.key, layers=(), ranks=(2, 1, 1)))
    data = json.loads(json.dumps(plain(mapping.measurement(made))))

    assert parse(ledger(data), "node-1", NOW) == (made,)


def test_an_empty_ledger_is_one() -> None:
    assert parse(ledger(), "n", NOW) == ()


def changed(path: str, value: Any) -> dict[str, Any]:
    """An exported row with one value (`terms.0.pool`) replaced; ... removes it."""
    row = exported()
    *parents, last = path.split(".")
    place: Any = row
    for part in parents:
        place = place[int(part) if part.isdecimal() else part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return row


@pytest.mark.parametrize(
    ("path", "value", "field", "rule"),
    [
        ("node", ..., "node", "is required"),
        ("engine", "", "engine", "must"),
        ("engine", "a\nb", "engine", "must"),
        ("name", "measurements/a b", "name", "must be measurements/ and an id"),
        ("name", "deployments/a", "name", "must be measurements/ and an id"),
        ("surprise", 1, "surprise", "unknown key"),
        ("file_bytes", -1, "file_bytes", "must be at least 0"),
        ("file_bytes", 2**60, "file_bytes", "must be at most"),
        ("file_bytes", "1", "file_bytes", "must be a whole number"),
        ("max_num_seqs", 0, "max_num_seqs", "must be at least 1"),
        ("device_models", [], "device_models", "must have at least 1"),
        ("layers", [1.5], "layers[0]", "must be a whole number"),
        ("ranks", [0], "ranks[0]", "must be at least 1"),
        (
            "terms.1.pool",
            "7",
            "terms[1].pool",
            "must be 'host' or the number of a device, of which `device_models` has",
        ),
        ("measure_time", "yesterday", "measure_time", "must be an RFC 3339 time"),
        ("measure_time", "2023-11-14T22:13:20", "measure_time", "must be an RFC 3339 time"),
        ("measure_time", "2123-11-14T22:13:20Z", "measure_time", "must not be in the future"),
        ("measure_time", "0001-01-01T00:00:00+10:00", "measure_time", "must not be in the future, nor before 2020"),
        ("extra_args", ["x" * 513], "extra_args[0]", "must be one line of at most 512 characters"),
        ("terms", [], "terms", "must have at least 1"),
        ("terms.0.measured_bytes", None, "terms[0].measured_bytes", "must be a whole number"),
        ("terms.0.measured_bytes", ..., "terms[0].measured_bytes", "is required"),
        ("terms.0.pool", "gpu", "terms[0].pool", "must be 'host' or the number of a device"),
        ("terms.0.source", "guess", "terms[0].source", "must be 'log', 'driver' or 'kernel'"),
        ("terms.3.term", "weights", "terms[3].term", "is given twice for host"),
    ],
)
def test_a_broken_rule_is_named_with_the_path_of_its_field(path: str, value: Any, field: str, rule: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse(ledger(exported(1), changed(path, value)), "n", NOW)

    (violation,) = refused.value.violations
    assert violation.field == f"measurements[1].{field}"
    assert rule in violation.rule


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({}, "measurements"),
        ([], "the ledger"),
        ("text", "the ledger"),
        ({"measurements": {}}, "measurements"),
        ({"measurements": [None]}, "measurements[0]"),
        ({"measurements": [exported()] * (MAX_MEASUREMENTS + 1)}, "measurements"),
    ],
    ids=["nothing", "list", "text", "mapping", "null", "too many"],
)
def test_what_is_no_ledger_is_refused(data: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse(data, "n", NOW)
    assert field in {violation.field for violation in refused.value.violations}


def test_one_measurement_twice_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"measurements\[1\].name: is there twice"):
        parse(ledger(exported(), exported()), "n", NOW)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(field=st.sampled_from(sorted(exported())), value=json_values)
def test_any_garbage_in_any_field_is_read_or_refused(field: str, value: Any) -> None:
    try:
        (row,) = parse(ledger(exported() | {field: value}), "n", NOW)
    except InvalidArgument as refused:
        fields = {violation.field.partition("[")[0] for violation in refused.violations}
        assert fields == {"measurements"}
    else:
        mapping.measurement(row)  # what was taken can be shown
