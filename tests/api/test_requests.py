from __future__ import annotations

import base64
import json
from contextlib import suppress

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from agent.api import names, requests
from agent.api.requests import Listing
from agent.errors import InvalidArgument

NUMBERS: Listing[int] = Listing("numbers", lambda number: (number,), (int,))


def _token(*content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


def test_page_by_page_gives_each_item_once_in_order():
    seen, token = [], ""
    while True:
        page, token = NUMBERS.page([5, 3, 1, 4, 2], 2, token)
        seen.append(page)
        if not token:
            break
    assert seen == [[1, 2], [3, 4], [5]]


def test_items_that_come_and_go_between_pages_neither_repeat_nor_hide_others():
    page, token = NUMBERS.page([1, 2, 3, 4], 2, "")
    assert page == [1, 2]
    page, token = NUMBERS.page([0, 3, 4], 2, token)
    assert (page, token) == ([3, 4], "")


@pytest.mark.parametrize(("asked", "given_"), [(0, 100), (1, 1), (1000, 1000), (2**31 - 1, 1000)])
def test_page_sizes_have_a_default_and_a_maximum(asked, given_):
    assert requests.page_size(asked) == given_


@pytest.mark.parametrize(
    "token",
    ["x", "!", "a" * 600, "W10=", _token("others", 1), _token("numbers", "1"), _token("numbers", True),
     _token("numbers"), _token("numbers", 1, 2), _token(), _token("numbers", 1)[:-2], "ü"],
)  # fmt: skip
def test_a_token_of_anything_else_is_refused(token):
    with pytest.raises(InvalidArgument) as caught:
        NUMBERS.page([], 1, token)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_no_token_raises_anything_but_invalid_argument(token):
    with suppress(InvalidArgument):
        NUMBERS.page([1], 1, token)
    with suppress(InvalidArgument):
        assert 0 <= requests.before_seq(token) < 2**63


@pytest.mark.parametrize("seq", [-1, 2**63])
def test_a_sequence_number_that_the_store_cannot_hold_is_refused(seq):
    with pytest.raises(InvalidArgument):
        requests.before_seq(_token("events", seq))


@pytest.mark.parametrize(
    ("check", "bad", "field"),
    [
        (requests.page_size, -1, "page_size"),
        (requests.request_id, "x" * 65, "request_id"),
        (requests.resume_token, "x" * 513, "resume_token"),
        (requests.tail_lines, -2, "tail_lines"),
        (requests.reason, "", "reason"),
        (requests.reason, " \n ", "reason"),
        (requests.reason, "two\nlines", "reason"),
        (requests.reason, "x" * 257, "reason"),
        (requests.hardware, Struct(), "hardware"),
    ],
)
def test_values_out_of_range_are_refused_with_their_field(check, bad, field):
    with pytest.raises(InvalidArgument) as caught:
        check(bad)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize("text", ["chat", "deployments/chat", "a", "a" * 63, "deployments/0-0"])
def test_a_deployment_is_named_by_its_resource_name_or_its_id(text):
    assert names.parse_deployment(text, "name") == text.removeprefix("deployments/")


@pytest.mark.parametrize(
    "text",
    ["", "deployments/", "Chat", "-a", "a-", "a" * 64, "a/b", "x/chat", "chat\n", "deployments/a/instances/i", "é"],
)
def test_other_names_of_deployments_are_refused(text):
    with pytest.raises(InvalidArgument) as caught:
        names.parse_deployment(text, "name")
    assert [violation.field for violation in caught.value.violations] == ["name"]


@pytest.mark.parametrize("text", ["GPU-1a2b", "devices/GPU-1a2b", "MIG-9f-0", "devices/amd-0000:c1:00.0", "x" * 128])
def test_a_device_is_named_by_its_resource_name_or_its_id(text):
    assert names.parse_device(text, "name") == text.removeprefix("devices/")


@pytest.mark.parametrize("text", ["", "devices/", "a/b", "devices/a/b", "GPU 1", "x" * 129, "GPU-1\n", "é"])
def test_other_names_of_devices_are_refused(text):
    with pytest.raises(InvalidArgument) as caught:
        names.parse_device(text, "name")
    assert [violation.field for violation in caught.value.violations] == ["name"]


def test_an_instance_is_named_in_full_or_by_its_id_where_the_deployment_is_known():
    name = names.instance_name("chat", "i-1")
    assert names.parse_instance(name, "name") == ("chat", "i-1")
    assert names.parse_optional_instance(name, "chat", "instance") == "i-1"
    assert names.parse_optional_instance("i-1", "chat", "instance") == "i-1"
    assert names.parse_optional_instance("", "chat", "instance") == ""
    for bad in (names.instance_name("other", "i-1"), "a/b", "i 1", "x" * 129):
        with pytest.raises(InvalidArgument):
            names.parse_optional_instance(bad, "chat", "instance")
