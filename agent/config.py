"""Makes the configuration in force out of its sources, and remembers where each value came from.

Later sources win, field by field; lists are replaced as a whole:

1. built-in defaults (`agent.settings`; for directories and sockets `agent.paths`)
2. `<config directory>/agentd.yaml`, or the file given with `--config`
3. `<config directory>/agentd.d/*.yaml`, in the order of their names
4. environment variables: `AGENTD_POLICY__PORTS__LAST=8299`, values in YAML
5. the command line: `--set policy.ports.last=8299`, values in YAML
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.documents import exists, load_file, load_value, readable
from agent.errors import FieldViolation
from agent.frozen import frozen
from agent.paths import Paths, default_paths
from agent.settings import (
    Api,
    CatalogConfig,
    DaemonTuning,
    Directories,
    EngineConfig,
    LogPolicy,
    NodeConfig,
    Policy,
    PolicyLimits,
    PortRange,
    Scope,
    Socket,
)
from agent.strict import dotted, invalid, model_in, nearest, sections, validate

__all__ = [
    "Api",
    "DaemonTuning",
    "Directories",
    "EngineConfig",
    "LoadedConfig",
    "LogPolicy",
    "NodeConfig",
    "Paths",
    "Policy",
    "PolicyLimits",
    "PortRange",
    "Scope",
    "Socket",
    "default_paths",
    "defaults",
    "load_config",
]

BUILT_IN = "built-in default"
PREFIX = "AGENTD_"
#: Variables that are not configuration: test hooks (`agent.failpoints`), and the socket that agentctl uses.
RESERVED = frozenset({"AGENTD_FAILPOINTS", "AGENTD_SOCKET"})

Tree = dict[Any, Any]


@frozen
class LoadedConfig:
    """The configuration in force; `origins` has each of its values by dotted field."""

    config: NodeConfig
    origins: dict[str, str]


def load_config(
    scope: Scope, *, config_file: Path | None = None, overrides: Sequence[str] = (), environ: Mapping[str, str]
) -> LoadedConfig:
    """Read all sources. Raises `InvalidArgument` that names the source, the field and the rule."""
    layers = [
        *_files(default_paths(scope, environ).config, config_file),
        *_variables(environ),
        *map(_override, overrides),
    ]
    written, _ = _merge(layers)
    tree, origins = _merge([(BUILT_IN, defaults(scope, environ, written)), *layers])
    if tree["scope"] != scope:
        rule = f"is {scope!r} by the way in which agentd was started, and cannot be set{_blame(origins, 'scope')}"
        raise invalid(FieldViolation("scope", rule))
    config = validate(NodeConfig, tree, "config", origin=lambda field: _blame(origins, field))
    leaves = _leaves(config.model_dump(mode="json"))
    return LoadedConfig(config, {field: origins.get(field, BUILT_IN) for field in leaves})


# Sources


def defaults(scope: Scope, environ: Mapping[str, str], written: Tree) -> Tree:
    """What depends on the scope and the host. Directories that are `written` move the defaults of those inside."""
    directories = written.get("directories")
    given = directories.items() if isinstance(directories, dict) else ()
    absolute = {key: Path(value) for key, value in given if isinstance(value, str) and value.startswith("/")}
    paths = default_paths(scope, environ, absolute)
    host = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).strip("._-")
    return {
        "node_name": host or "localhost",
        "scope": scope,
        "directories": {name: str(getattr(paths, name)) for name in Directories.model_fields},
        "api": {
            "control": {"path": str(paths.control_socket), "mode": "0600"},
            "readonly": {"path": str(paths.readonly_socket), "mode": "0666" if scope == "system" else "0600"},
        },
        "catalog": {name: str(paths.config / "catalog" / f"{name}.yaml") for name in CatalogConfig.model_fields},
    }


def _files(directory: Path, config_file: Path | None) -> Iterator[tuple[str, Tree]]:
    main = config_file or directory / "agentd.yaml"
    if config_file is not None or exists(main):
        yield str(main), load_file(main)
    drop_ins = directory / "agentd.d"
    if exists(drop_ins):
        with readable(drop_ins):
            paths = sorted(drop_ins.iterdir())  # not glob, which finds nothing where it may not look
        # A name that begins with a dot is an editor's backup or lock.
        for path in (path for path in paths if path.suffix == ".yaml" and not path.name.startswith(".")):
            yield str(path), load_file(path)


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[str, Tree]]:
    names = sorted(name for name in environ if name.startswith(PREFIX) and name not in RESERVED)
    known = {
        PREFIX + "__".join((*path, name)).upper(): (*path, name)
        for path, model in sections(NodeConfig)
        for name in model.model_fields
    }
    wrong = [FieldViolation(name, _unknown_variable(name, known)) for name in names if name not in known]
    if wrong:
        raise invalid(*wrong, more=len(wrong) - 1)
    for name in names:
        yield f"environment variable {name}", _nested(known[name], load_value(environ[name], name))


def _unknown_variable(name: str, known: Iterable[str]) -> str:
    near = nearest(name.removeprefix(PREFIX), (other.removeprefix(PREFIX) for other in known))
    return "is no setting; " + (
        f"did you mean {PREFIX}{near}?"
        if near
        else f"{PREFIX} goes before a field's path, as in AGENTD_POLICY__PORTS__FIRST"
    )


def _override(text: str) -> tuple[str, Tree]:
    field, equals, value = text.partition("=")
    path = _split(field)
    if not equals or not all(path):
        raise invalid(FieldViolation("--set", "must be FIELD=VALUE, such as policy.ports.last=8299"))
    return f"--set {dotted(path)}", _nested(path, load_value(value, f"--set {dotted(path)}"))


def _split(field: str) -> tuple[str, ...]:
    """`engines.llama.cpp.binary` -> (engines, llama.cpp, binary): names of engines contain dots."""
    head, *rest = field.split(".")
    info = NodeConfig.model_fields.get(head)
    inner = model_in(info.annotation) if info and head == "engines" else None
    if inner is None or not rest:
        return head, *rest
    keys = [rest.pop()] if rest[-1] in inner.model_fields and len(rest) > 1 else []
    return head, ".".join(rest), *keys


def _nested(path: Sequence[str], value: object) -> Tree:
    for key in reversed(path):
        value = {key: value}
    return value if isinstance(value, dict) else {}


# Merging


def _merge(layers: Iterable[tuple[str, Tree]]) -> tuple[Tree, dict[str, str]]:
    tree: Tree = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        _merge_into(tree, layer, origin, origins, ())
    return tree, origins


def _merge_into(tree: Tree, layer: Tree, origin: str, origins: dict[str, str], path: tuple[str, ...]) -> None:
    for key, value in layer.items():
        here = (*path, str(key))
        if not isinstance(value, dict) or (not value and key not in tree):
            tree[key] = value
            origins[dotted(here)] = origin
            continue
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):  # else a mistake in an earlier source would vanish
            rule = f"must be a mapping of keys to values, as in {origin}{_blame(origins, dotted(here))}"
            raise invalid(FieldViolation(dotted(here), rule))
        _merge_into(below, value, origin, origins, here)


def _leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield dotted((*path, key))


def _blame(origins: Mapping[str, str], field: str) -> str:
    """Where the field was written, or what is nearest to it: a rule between two fields may name the other one."""
    while field:
        inside = (f"{field}.", f"{field}[")
        found = [origin for path, origin in origins.items() if path == field or path.startswith(inside)]
        if found := [origin for origin in found if origin != BUILT_IN] or found:
            return f" (set by {', '.join(dict.fromkeys(found))})"
        field = field[: max(field.rfind("."), field.rfind("["), 0)]
    return ""
