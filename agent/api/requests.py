"""What every request is checked for before the node sees it: sizes, tokens, request ids. All raise InvalidArgument."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from google.protobuf.struct_pb2 import Struct

from agent.api.bounds import MAX_PAGE_SIZE
from agent.api.structs import struct_to_dict
from agent.errors import FieldViolation, InvalidArgument
from agent.frozen import frozen

T = TypeVar("T")

DEFAULT_PAGE_SIZE = 100
MAX_REQUEST_ID = 64  # characters; a UUID has 36
MAX_TOKEN = 512  # characters; ours have some 100
MAX_REASON = 256  # characters; it stands in a line of a table
MAX_MODEL_NAME = 300  # characters; owner, name, revision and quantization at their longest
MAX_SEQ = 2**63 - 1  # the largest integer of the store


@frozen
class Listing(Generic[T]):
    """How one collection is paged: in the order of `key`, whose parts have the types `kinds`.

    A page token holds the key of the last item sent, so that items which come or go between two pages neither
    repeat nor hide others, and the name of the collection, so that no other list accepts it.
    """

    collection: str
    key: Callable[[T], tuple[Any, ...]]
    kinds: tuple[type, ...]

    def page(self, items: Iterable[T], size: int, token: str) -> tuple[list[T], str]:
        """The page that follows `token` ("": the first), and the token of the next one ("": there is none)."""
        size, after = page_size(size), decode_token(token, self.collection, self.kinds)
        rest = sorted((item for item in items if after is None or self.key(item) > after), key=self.key)
        page = rest[:size]
        return page, encode_token(self.collection, self.key(page[-1])) if len(rest) > size else ""


def page_size(requested: int) -> int:
    if requested < 0:
        raise invalid("page_size", f"must be 0 (default {DEFAULT_PAGE_SIZE}) or a positive number")
    return min(requested or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def encode_token(collection: str, cursor: tuple[Any, ...]) -> str:
    return base64.urlsafe_b64encode(json.dumps([collection, *cursor]).encode()).decode()


def decode_token(token: str, collection: str, kinds: tuple[type, ...]) -> tuple[Any, ...] | None:
    """The cursor that `encode_token` put into a token; None for none."""
    if not token:
        return None
    refusal = invalid("page_token", "must be the next_page_token of the same list, or empty")
    if len(token) > MAX_TOKEN:
        raise refusal
    try:
        given, *cursor = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError):
        raise refusal from None
    if given != collection or tuple(map(type, cursor)) != kinds:
        raise refusal
    return tuple(cursor)


def before_seq(token: str) -> int:
    """The sequence number that a page of events ends before; 0: no bound."""
    (seq,) = decode_token(token, "events", (int,)) or (0,)
    if not 0 <= seq <= MAX_SEQ:
        raise invalid("page_token", "must be the next_page_token of the same list, or empty")
    return int(seq)


def request_id(value: str) -> str:
    if len(value) > MAX_REQUEST_ID:
        raise invalid("request_id", f"must have at most {MAX_REQUEST_ID} characters")
    return value


def resume_token(value: str) -> str:
    """Only its length: the rest of it is the node's."""
    if len(value) > MAX_TOKEN:
        raise invalid("resume_token", "must be the resume_token of a watched message, or empty")
    return value


def tail_lines(value: int) -> int:
    if value < -1:
        raise invalid("tail_lines", "must be -1 (only new lines), 0 (from the beginning) or a number of lines")
    return value


def spec(value: Struct) -> dict[str, Any]:
    """The spec as plain data; what it must say is the node's to check."""
    if not value.fields:
        raise invalid("spec", "must be given, with name and model at least")
    return struct_to_dict(value)


def hardware(value: Struct) -> dict[str, Any]:
    """A description of hardware as plain data; what it must say is the node's to check."""
    if not value.fields:
        raise invalid("hardware", "must be given: {short: h100-sxm:8}, or a description with devices")
    return struct_to_dict(value)


def model_name(value: str) -> str:
    """What a person calls a model; whether there is one is the node's to say."""
    text = value.strip()
    if not text or len(text) > MAX_MODEL_NAME or not text.isprintable():
        raise invalid("text", f"must be a model's name: one line of 1 to {MAX_MODEL_NAME} characters")
    return text


def reference(value: str) -> str:
    """A model's reference; what it must say is the node's to check."""
    text = value.strip()
    if not text:
        raise invalid("reference", "must be given, as a spec's `model` takes it: hf:owner/name:variant")
    return text


def ledger(value: Struct) -> dict[str, Any]:
    """An exported ledger as plain data; what it must say is the node's to check."""
    if not value.fields:
        raise invalid("ledger", "must be given: {measurements: [...]}, as `agentctl ledger export` writes it")
    return struct_to_dict(value)


def reason(value: str) -> str:
    """Why a person does something, for those who find it done."""
    text = value.strip()
    if not text or len(text) > MAX_REASON or not text.isprintable():
        raise invalid("reason", f"must be one line of 1 to {MAX_REASON} characters")
    return text


def invalid(field: str, rule: str) -> InvalidArgument:
    return InvalidArgument(f"{field} {rule}", violations=(FieldViolation(field, rule),))
