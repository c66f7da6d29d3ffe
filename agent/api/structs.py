"""Between JSON data and google.protobuf.Struct, whose numbers are doubles: what a double cannot say is refused."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value

from agent.errors import FieldViolation, InvalidArgument

_EXACT = 2**53  # beyond it a double cannot tell an integer from its neighbour


@lru_cache(maxsize=256)  # spec and plan of 100 deployments (the default maximum), and the node's own
def struct_from_json(text: str) -> Struct:
    """The Struct of a stored JSON object. Shared by all callers: never change it."""
    import json  # noqa: PLC0415 - what is stored is the daemon's; commands do without

    return struct_from_dict(json.loads(text)) if text else Struct()


def struct_from_dict(data: dict[str, Any]) -> Struct:
    """Raises InvalidArgument, with the field's path, for what JSON or a double cannot hold."""
    struct = Struct()
    for key, item in data.items():
        _fill(struct.fields[_key(key, "")], item, key)
    return struct


def struct_to_dict(struct: Struct) -> dict[str, Any]:
    """Plain data, where integral numbers are ints. Raises InvalidArgument, with the field's path, for NaN,
    infinity and values without a kind."""
    return {key: _plain(value, key) for key, value in struct.fields.items()}


def _fill(value: Value, data: object, path: str) -> None:
    match data:
        case None:
            value.null_value = NULL_VALUE
        case bool():
            value.bool_value = data
        case int() | float():
            value.number_value = _number(data, path)
        case str():
            value.string_value = _text(data, path)
        case dict():
            value.struct_value.SetInParent()
            for key, item in data.items():
                _fill(value.struct_value.fields[_key(key, path)], item, f"{path}.{key}")
        case list() | tuple():
            value.list_value.SetInParent()
            for index, item in enumerate(data):
                _fill(value.list_value.values.add(), item, f"{path}[{index}]")
        case _:
            raise _invalid(path, f"must be text, a number, true, false, a list or a map, not {type(data).__name__}")


def _key(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise _invalid(path, f"the key {key!r} must be text: put it in quotes")
    return _text(key, path)


def _text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _invalid(path, "must be valid Unicode text, without lone surrogates") from None
    return text


def _number(number: float, path: str) -> float:
    if isinstance(number, int) and abs(number) > _EXACT:
        raise _invalid(path, "must be an integer between -2^53 and 2^53")
    if not math.isfinite(number):
        raise _invalid(path, "must be a finite number")
    return number


def _plain(value: Value, path: str) -> Any:
    match value.WhichOneof("kind"):
        case "null_value":
            return None
        case "bool_value":
            return value.bool_value
        case "number_value":
            return _integral(value.number_value, path)
        case "string_value":
            return value.string_value
        case "struct_value":
            return {key: _plain(item, f"{path}.{key}") for key, item in value.struct_value.fields.items()}
        case "list_value":
            return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value.list_value.values)]
        case _:
            raise _invalid(path, "has no value")


def _integral(number: float, path: str) -> float | int:
    if not math.isfinite(number):
        raise _invalid(path, "must be a finite number")
    return int(number) if number.is_integer() and abs(number) <= _EXACT else number


def _invalid(path: str, rule: str) -> InvalidArgument:
    return InvalidArgument(f"{path or 'the document'}: {rule}", violations=(FieldViolation(path, rule),))
