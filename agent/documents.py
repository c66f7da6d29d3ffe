"""YAML text becomes plain data: mappings, lists, strings, numbers, booleans and null, and nothing else.

Stricter than YAML, where YAML is known to surprise: a key given twice is an error; so are aliases (a few lines of
which can expand to gigabytes), tags, and nesting that no spec needs. Numbers are decimal, so `0660` stays text, and a
date stays text too. `no`, `off`, `on` and `yes` are booleans, as in other YAML files of an operator; the models refuse
them where text is asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.constructor import BaseConstructor, ConstructorError, SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode

from agent.errors import InvalidArgument

#: Characters. The longest sensible spec has a few thousand; parsing a full MiB takes ten seconds.
MAX_LENGTH = 1024**2
#: Specs and configuration nest five levels deep; the rest of the stack is Python's.
MAX_DEPTH = 20

_NULL = "tag:yaml.org,2002:null"  # of an empty document
_HINTS = {
    "'\\t'": "indent with spaces, not with tabs",
    "mapping values are not allowed here": "a value that contains ': ' belongs in quotes, and keys of one mapping are "
    "indented alike",
    "undefined alias": "a value that begins with '*' belongs in quotes",
    "found character '@'": "a value that begins with '@' belongs in quotes",
    "found character '`'": "a value that begins with '`' belongs in quotes",
    "found character '%'": "a value that begins with '%' belongs in quotes",
}


def load_documents(text: str, source: str) -> list[dict[Any, Any]]:
    """The documents in `text`, each a mapping; empty ones are left out. Raises `InvalidArgument` with the position.

    `source` (a file's name) begins the message.
    """
    documents = []
    with _yaml_errors(source):
        loader = _Loader(_bounded(text))
        try:
            while loader.check_node() and (node := loader.get_node()) is not None:
                if not isinstance(node, MappingNode) and node.tag != _NULL:
                    raise ConstructorError(None, None, "must be a mapping of keys to values", node.start_mark)
                if data := loader.construct_document(node):
                    documents.append(data)
        finally:
            loader.dispose()
    return documents


def load_file(path: Path) -> dict[Any, Any]:
    """The one document of a file; {} for an empty one. Raises `InvalidArgument` that names the file."""
    with readable(path):
        if path.exists() and not path.is_file():
            raise OSError(0, "is not a regular file")  # opening a pipe may wait for ever
        with path.open("rb") as file:
            text = file.read(4 * MAX_LENGTH).decode()  # a character has at most four bytes; more is refused below
    documents = load_documents(text, str(path))
    if len(documents) > 1:
        raise InvalidArgument(f"{path}: must be one YAML document (has {len(documents)})")
    return documents[0] if documents else {}


def exists(path: Path) -> bool:
    """Raises `InvalidArgument` where that cannot be seen."""
    with readable(path):
        return path.exists()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What a file or directory refuses becomes `InvalidArgument` that names it."""
    try:
        yield
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: must be UTF-8 text (byte {error.start + 1} is not)") from None


def compact(value: object) -> str:
    """One line of JSON, for files that are derived from such documents."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def load_value(text: str, source: str) -> Any:
    """One YAML value, as given in an environment variable or on a command line. Raises `InvalidArgument`."""
    with _yaml_errors(source):
        return yaml.load(_bounded(text), _Loader)  # noqa: S506 - a subclass of SafeLoader


def _bounded(text: str) -> str:
    if len(text) > MAX_LENGTH:
        raise yaml.YAMLError(f"is longer than {MAX_LENGTH} characters")
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without what is surprising or dangerous in text that people write."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's typing; filled below
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        f"tag:yaml.org,2002:{kind}": getattr(SafeConstructor, f"construct_yaml_{kind}")
        for kind in ("null", "bool", "int", "float", "str", "seq", "map")
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise ConstructorError(None, None, "aliases (*name) are not accepted; write the value out", mark)
        if self._depth == MAX_DEPTH:
            raise ConstructorError(None, None, f"nests more than {MAX_DEPTH} levels deep", mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:  # noqa: FBT002 - PyYAML's signature
        if node.tag not in self.yaml_constructors:
            raise ConstructorError(None, None, f"the tag {node.tag} is not accepted", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError):  # `!!int x`, `!!bool maybe`, a number of more than 4300 digits
            raise ConstructorError(None, None, "is not a value of its type", node.start_mark) from None

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT002
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "a key must be a plain word", key.start_mark)
            if (key.tag, key.value) in seen:
                from agent.strict import echo  # noqa: PLC0415 - pydantic, which agentctl starts without

                raise ConstructorError(None, None, f"the key {echo(key.value)} is given twice", key.start_mark)
            seen.add((key.tag, key.value))
        return BaseConstructor.construct_mapping(self, node, deep)  # not SafeConstructor's: it expands `<<`


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool",
    re.compile(r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$"),
    list("yYnNtTfFoO"),
)
_Loader.add_implicit_resolver(_NULL, re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?:[-+]?(?:0|[1-9][0-9]*)?\.[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?(?:0|[1-9][0-9]*)\.?(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


@contextmanager
def _yaml_errors(source: str) -> Iterator[None]:
    try:
        yield
    except yaml.YAMLError as error:
        raise InvalidArgument(f"{source}: {_explain(error)}") from None


def _explain(error: yaml.YAMLError) -> str:
    """Line, column and problem, without the lines around it: they may hold what should not be in a log."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1} is a control character (U+{int(error.character):04X}), not text"
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    mark, problem = error.problem_mark, str(error.problem)
    advice = next((hint for text, hint in _HINTS.items() if text in problem), "")
    position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return position + (f"{problem} ({advice})" if advice else problem)
