"""Messages of the API as plain data, for `-o json` and `-o yaml`.

The proto JSON mapping with the field names of the .proto files (snake_case), and three departures that make it
pleasant in scripts: 64-bit integers are numbers (all of ours are far below 2^53), fields without presence are
always there, and a resource has an `id`: the last segment of its `name` ("deployments/chat" -> "chat").
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from agent.api.structs import struct_to_dict


def plain(message: Message) -> dict[str, Any]:
    """The whole message; fields with presence that are not set are left out."""
    data: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        data[field.name] = _values(field, value) if field.is_repeated else _value(field, value)
        if field.name == "name" and "/" in value:
            data["id"] = short(value)
    return data


def short(name: str) -> str:
    """The id of a resource: what people type, and what tables show."""
    return name.rpartition("/")[2]


def ordered(value: Any) -> Any:
    """Data out of a Struct, whose maps come in another order each time; sorted, so that two outputs compare."""
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value)}
    return [ordered(item) for item in value] if isinstance(value, list) else value


_WELL_KNOWN: Final[dict[str, Callable[[Any], Any]]] = {
    Timestamp.DESCRIPTOR.full_name: lambda moment: moment.ToJsonString(),
    Struct.DESCRIPTOR.full_name: lambda struct: ordered(struct_to_dict(struct)),
}


def _values(field: Any, values: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:  # ours hold plain values
        return {key: values[key] for key in sorted(values)}
    return [_value(field, item) for item in values]


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        convert: Callable[[Any], Any] = _WELL_KNOWN.get(field.message_type.full_name, plain)
        return convert(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value  # a number, where a newer daemon has more names
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode()
    return value
