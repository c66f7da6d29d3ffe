"""The kinds of values that people write in specs and configuration: sizes, durations, file modes, paths, names.

Each is an annotation for a field of a `Strict` model. It parses, refuses with a rule that shows what is valid, and
describes itself in the JSON schema; the `title` there is the word that the reference pages use.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from agent.frozen import frozen
from agent.strict import broken

KIB, MIB, GIB = 1024, 1024**2, 1024**3

#: The longest duration, 30 days in seconds: a longer one is a mistaken unit, and its end would be no valid timestamp.
MAX_SECONDS = 30 * 24 * 3600.0
#: The largest size, 1 PiB: larger than any host, and still exact in a JSON number.
MAX_BYTES = 1024**5

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1} | {
    prefix + unit: base**power
    for unit, base, prefixes in (("iB", 1024, "KMGT"), ("B", 1000, "kMGT"))
    for power, prefix in enumerate(prefixes, 1)
}
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]+)", re.ASCII)


def _scaled(value: object, units: dict[str, Any], rule: str) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise broken(rule)
    return float(match[1]) * units[match[2]]


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 1.5GiB is a whole number of bytes


@frozen
class Seconds:
    """A duration; a float of seconds inside. The least one, 1 ms, keeps a period from becoming a busy loop."""

    minimum: float = 0.001

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        rule = "must be a duration: a number of seconds, or one with a unit such as 250ms, 90s, 5m, 1h or 2d"
        number = core_schema.float_schema(strict=True, allow_inf_nan=False, ge=self.minimum, le=MAX_SECONDS)
        return core_schema.no_info_before_validator_function(lambda value: _scaled(value, _SECONDS, rule), number)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return _number_or_text("duration", handler(schema), _SECONDS)


@frozen
class Bytes:
    """A size; an int of bytes inside."""

    minimum: int = 0

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        rule = "must be a size: a number of bytes, or one with a unit such as 512MiB, 6GiB (1024³) or 6GB (1000³)"
        number = core_schema.int_schema(strict=True, ge=self.minimum, le=MAX_BYTES)
        return core_schema.no_info_before_validator_function(lambda value: _whole(_scaled(value, _BYTES, rule)), number)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return _number_or_text("size", handler(schema), _BYTES)


def _number_or_text(title: str, number: JsonSchemaValue, units: dict[str, Any]) -> JsonSchemaValue:
    text = {"type": "string", "pattern": rf"^[0-9]{{1,15}}(\.[0-9]{{1,9}})? ?({'|'.join(units)})$"}
    return {"title": title, "anyOf": [number, text]}


@frozen
class Matches:
    """A string that matches `pattern` as a whole; `rule` says so in words, `title` in one or two."""

    pattern: str
    rule: str
    title: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str) -> str:
        if re.fullmatch(self.pattern, value, re.ASCII) is None:
            raise broken(self.rule)
        return value

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "title": self.title, "pattern": f"^(?:{self.pattern})$"}


def _check(is_valid: Callable[[str], bool], rule: str) -> AfterValidator:
    def check(value: str) -> str:
        if not is_valid(value):
            raise broken(rule)
        return value

    return AfterValidator(check)


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _parse_path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value).startswith("/"):
        raise broken("must be an absolute path: it begins with /, and ~ and variables are not expanded")
    path = Path("/" + str(value).lstrip("/"))
    if ".." in path.parts or not str(path).isprintable() or len(str(path).encode()) > 4095:  # PATH_MAX
        raise broken("must be an absolute path without '..' and control characters, of at most 4095 bytes")
    return path


def _parse_mode(value: object) -> int:
    if not isinstance(value, str) or re.fullmatch(r"0?[0-7]{3}", value, re.ASCII) is None:
        raise broken("must be a file mode of three octal digits in quotes, such as '0660'")
    return int(value, 8)


Port = Annotated[int, Field(ge=1024, le=65535)]
"""A TCP port that needs no privilege."""

Fraction = Annotated[float, Field(gt=0, le=1)]

FileMode = Annotated[
    int,
    BeforeValidator(_parse_mode),
    PlainSerializer(lambda mode: f"{mode:04o}", return_type=str, when_used="json"),
    WithJsonSchema({"title": "file mode", "type": "string", "pattern": "^0?[0-7]{3}$"}),
]
"""Permission bits; written and shown as an octal string, because YAML's numbers are decimal."""

AbsolutePath = Annotated[
    Path, BeforeValidator(_parse_path), WithJsonSchema({"title": "absolute path", "type": "string", "pattern": "^/"})
]


def _is_line(text: str) -> bool:
    return text.isprintable() and text == text.strip()


Line = Annotated[
    str, Field(max_length=256), _check(_is_line, "must be one line, without control characters and outer spaces")
]
"""Short text that is shown in tables."""

NonEmptyLine = Annotated[Line, Field(min_length=1)]

Argument = Annotated[
    # 30,000 characters of at most 4 bytes stay below Linux's 128 KiB for one argument or variable (MAX_ARG_STRLEN).
    str, Field(max_length=30_000), _check(lambda text: "\0" not in text, "must not contain NUL characters")
]  # fmt: skip
"""An element of argv or a value of the environment."""

Address = Annotated[
    str,
    _check(_is_address, "must be an IP address such as 127.0.0.1 or ::1"),
    WithJsonSchema({"title": "IP address", "type": "string"}),
]

Label = Annotated[
    str,
    Matches(
        r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?",
        "must have 1 to 63 characters out of a-z, 0-9 and '-', and begin and end with a letter or digit",
        "name",
    ),
]
"""An RFC 1123 label: valid in a host name, a path and a resource name."""

Word = Annotated[
    str,
    Matches(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        "must be one word of 1 to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit",
        "word",
    ),
]

VariableName = Annotated[
    str,
    Matches(
        r"[A-Za-z_][A-Za-z0-9_]{0,255}",
        "must be the name of an environment variable: letters, digits and '_', not beginning with a digit",
        "variable name",
    ),
]

EngineName = Annotated[
    str,
    Matches(
        r"[a-z0-9][a-z0-9._-]{0,63}",
        "must be an engine's name, in lower case, such as llama.cpp",
        "engine",
    ),
]

Endpoint = Annotated[
    str,
    Field(max_length=1000),
    Matches(
        r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?(?:/[A-Za-z0-9._~/-]*)?",
        "must be http:// or https://, a host and perhaps a port and a path, without user, query and fragment",
        "address of a server",
    ),
]

#: Host and perhaps port of a container registry, as image names begin with.
REGISTRY = r"[a-z0-9][a-z0-9.-]*(?::[0-9]{1,5})?"

RepositoryPrefix = Annotated[
    str,
    Matches(
        REGISTRY + r"(?:/[a-z0-9._-]+)*",
        "must be a registry and perhaps a path, such as docker.io/vllm or ghcr.io/ggml-org/llama.cpp",
        "repository",
    ),
]

HostName = Annotated[
    str,
    Matches(
        r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?",
        "must have 1 to 253 letters, digits, '.', '_' and '-', and begin and end with a letter or digit",
        "host name",
    ),
]
