"""Random valid messages of any type, built from their descriptors."""

from __future__ import annotations

from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

_DEPTH = 3  # Struct contains itself


_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-(2**31), 2**31 - 1),  # proto3 enums are open
}
# What a real name, token or key looks like, beside plain noise, so that requests get past the first check.
_text = st.sampled_from(["chat", "deployments/chat", "deployments/chat/instances/i-1", "name", "e1", "1"]) | st.text()


def messages(descriptor: Descriptor, depth: int = _DEPTH) -> st.SearchStrategy[Message]:
    """Any message of the type; at depth 0 without messages inside."""
    return _build(descriptor, depth)


@st.composite
def _build(draw: st.DrawFn, descriptor: Descriptor, depth: int) -> Message:
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if draw(st.booleans()) and (depth or field.message_type is None):
            _fill(draw, message, field, depth)
    return message


def _fill(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    if field.message_type and field.message_type.GetOptions().map_entry:
        value_type = field.message_type.fields_by_name["value"].message_type
        for key in draw(st.lists(_text, max_size=3)):
            getattr(message, field.name)[key].CopyFrom(draw(_build(value_type, depth - 1)))
    elif field.is_repeated:
        for _ in range(draw(st.integers(0, 3))):
            getattr(message, field.name).add().CopyFrom(draw(_build(field.message_type, depth - 1)))
    elif field.message_type:
        getattr(message, field.name).CopyFrom(draw(_build(field.message_type, depth - 1)))
    else:
        setattr(message, field.name, draw(_scalar(field)))


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_STRING:
        return _text
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary()
    return _SCALARS[field.cpp_type]
