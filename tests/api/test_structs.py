from __future__ import annotations

import datetime as dt
import math

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.api.structs import struct_from_dict, struct_from_json, struct_to_dict
from agent.errors import InvalidArgument

EXACT = st.integers(-(2**53), 2**53)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)  # an integral one comes back as an int, which is equal
LEAVES = st.none() | st.booleans() | EXACT | FLOATS | st.text()
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@settings(max_examples=30)
@given(st.dictionaries(st.text(), JSON))
def test_what_json_can_say_comes_back_equal(data):
    back = struct_to_dict(Struct.FromString(struct_from_dict(data).SerializeToString()))
    assert back == data


def test_integral_numbers_are_ints_and_others_stay_floats():
    struct = struct_from_dict({"port": 8100, "share": 0.5, "flag": True})
    kinds = {key: type(value) for key, value in struct_to_dict(struct).items()}
    assert kinds == {"port": int, "share": float, "flag": bool}


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"a": {"b": [1, 2**53 + 1]}}, "a.b[1]"),
        ({"a": math.inf}, "a"),
        ({"a": {"b": math.nan}}, "a.b"),
        ({"a": [dt.date(2026, 1, 1)]}, "a[0]"),
        ({"a": {1: "x"}}, "a"),
        ({"a": {"b": "\ud800"}}, "a.b"),
    ],
)
def test_what_a_struct_cannot_hold_is_refused_with_its_path(data, path):
    with pytest.raises(InvalidArgument) as caught:
        struct_from_dict(data)
    assert [violation.field for violation in caught.value.violations] == [path]


def test_a_number_that_is_not_finite_and_a_value_without_a_kind_are_refused_with_their_path():
    infinite, empty = Struct(), Struct()
    infinite.fields["a"].list_value.values.add().number_value = math.inf
    empty.fields["b"].SetInParent()
    for struct, path in ((infinite, "a[0]"), (empty, "b")):
        with pytest.raises(InvalidArgument) as caught:
            struct_to_dict(struct)
        assert [violation.field for violation in caught.value.violations] == [path]


def test_empty_lists_and_maps_survive():
    data = {"list": [], "map": {}, "null": None}
    assert struct_to_dict(struct_from_dict(data)) == data


def test_no_json_is_an_empty_struct():
    assert struct_to_dict(struct_from_json("")) == {}
