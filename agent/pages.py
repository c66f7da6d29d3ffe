"""The pages that are made from the models: the references of spec and configuration, and the commented example."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from agent.config import defaults
from agent.quantities import KIB
from agent.settings import NodeConfig
from agent.spec import DeploymentSpec
from agent.strict import Strict, dotted, model_in, sections, validate

JsonSchema = dict[str, Any]

_NOTE = "<!-- Written by `python -m agent.schemas` from the models; change the descriptions there. -->\n\n"

_KINDS = """
* A **duration** is a number of seconds, or has a unit: `250ms`, `90s`, `5m`, `1h`, `2d`. At most 30 days.
* A **size** is a number of bytes, or has a unit: `512MiB`, `6GiB` (1024-based), `6GB` (1000-based).
* A number with a colon ("120: ...") is the default, and what follows is its reason.
""".strip()

_SPEC_INTRODUCTION = f"""# The spec of a deployment

One YAML document (or JSON object) describes one deployment; `agentctl apply -f FILE` takes several documents in a
file. Only `name` and `model` are required. Unknown keys are errors, and no value is converted silently: a number in
quotes is not a number. YAML's aliases and tags are not accepted.

A changed spec stops the engine and starts another one. One that serves is not stopped for a spec that cannot be served
here (no such model, no room, not allowed): the change is refused, and it serves on. Weights that are not on the node
are fetched after the stop; `agentctl artifacts pull` brings them before.

{_KINDS}

`configs/schema/deployment.schema.json` tells editors the same; the first line
`# yaml-language-server: $schema=...` of a YAML file names it.
"""

_CONFIG_INTRODUCTION = f"""# The configuration of a node

Sources, in their order; later ones win field by field, and a list replaces the whole list before it:

1. built-in defaults
2. `agentd.yaml` in the configuration directory, or the file given with `--config`
3. `agentd.d/*.yaml` in the configuration directory, in the order of their names
4. environment variables: `AGENTD_` and the field's path in capitals, `__` between its parts, the value in YAML:
   `AGENTD_POLICY__PORTS__LAST=8299`. Engines have no variables of their own:
   `AGENTD_ENGINES='{{llama.cpp: {{binary: [/opt/llama-server]}}}}'`. `AGENTD_SOCKET` and `AGENTD_FAILPOINTS` are no
   configuration.
5. the command line: `--set policy.ports.last=8299`

The configuration directory is `/etc/llm-node-agent` for the system's agent and `$XDG_CONFIG_HOME/llm-node-agent`
(`~/.config/llm-node-agent`) for a user's. `agentctl config show --origin` shows each value and where it came from;
`agentctl config check` reads the sources without a daemon. Unknown keys and unknown `AGENTD_` variables are errors.

{_KINDS}

| | system | user |
| --- | --- | --- |
| `directories.state` | `/var/lib/llm-node-agent` | `$XDG_STATE_HOME/llm-node-agent` (`~/.local/state/...`) |
| `directories.runtime` | `/run/llm-node-agent` | `$XDG_RUNTIME_DIR/llm-node-agent`, or `run` in the state directory |
| `directories.cache` | `/var/cache/llm-node-agent` | `$XDG_CACHE_HOME/llm-node-agent` (`~/.cache/...`) |
| `directories.logs` | `/var/log/llm-node-agent` | `logs` in the state directory |
| `api.control.path` | `control.sock` in the runtime directory | the same |
| `api.control.mode` | `0600` | `0600` |
| `api.readonly.path` | `readonly.sock` in the runtime directory | the same |
| `api.readonly.mode` | `0666` | `0600` |
| `catalog.models` | `/etc/llm-node-agent/catalog/models.yaml` | `catalog/models.yaml` in the configuration directory |

`configs/agentd.example.yaml` shows every field with its default; `configs/schema/agentd.schema.json` is for editors.
"""


def spec_page(schema: JsonSchema) -> str:
    """docs/reference/spec.md."""
    return _page(DeploymentSpec, schema, _SPEC_INTRODUCTION)


def config_page(schema: JsonSchema) -> str:
    """docs/reference/config.md."""
    return _page(NodeConfig, schema, _CONFIG_INTRODUCTION)


def _page(model: type[Strict], schema: JsonSchema, introduction: str) -> str:
    tables = [_table(path, section, schema) for path, section in sections(model)]
    for name, field in model.model_fields.items():
        inner = model_in(field.annotation)
        if inner is not None and inner is not field.annotation:
            tables.append(_table((name, "NAME"), inner, schema))
    return introduction.replace("\n\n", f"\n\n{_NOTE}", 1) + "".join(tables)


def _table(path: tuple[str, ...], model: type[Strict], schema: JsonSchema) -> str:
    part = schema["$defs"][model.__name__] if path else schema
    rows = "".join(_row(name, field.description, part, schema) for name, field in model.model_fields.items())
    head = "| key | value | default | meaning |\n| --- | --- | --- | --- |\n"
    return f"\n## {dotted(path) or 'Fields'}\n\n{model.__doc__}\n\n{head}{rows}"


def _row(name: str, meaning: str | None, section: JsonSchema, schema: JsonSchema) -> str:
    entry = section["properties"][name]
    value = _kind(entry, schema["$defs"])
    default = "required" if name in section.get("required", ()) else _default(entry)
    return f"| `{name}` | {value} | {default} | {meaning} |\n".replace("|  |", "| |")


def _kind(schema: JsonSchema, definitions: JsonSchema) -> str:
    """What may be written, in words."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].rpartition("/")[2]]
        return _kind(target, definitions) if "enum" in target else "section"
    if "title" in schema:
        return str(schema["title"])
    for choices in (schema.get("anyOf"), schema.get("oneOf")):
        if choices:
            return " or ".join(_kind(choice, definitions) for choice in choices if choice.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{word}`" for word in schema.get("enum", [schema.get("const")]))
    return _plain_kind(schema, definitions)


def _plain_kind(schema: JsonSchema, definitions: JsonSchema) -> str:
    match schema["type"]:
        case "array":
            return f"list of {_plural(_kind(schema['items'], definitions))}"
        case "object":
            return f"mapping of names to {_plural(_kind(schema['additionalProperties'], definitions))}"
        case "integer" | "number" as kind:
            return ("whole number" if kind == "integer" else "number") + _bounds(schema)
        case "boolean":
            return "`true`, `false`"
        case kind:
            return str(kind)


def _plural(kind: str) -> str:
    return kind if kind.startswith("`") else f"{kind}s"


def _bounds(schema: JsonSchema) -> str:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    word = "from" if "minimum" in schema else "above"
    return f" {word} {low:,} to {schema['maximum']:,}" if low is not None else ""


def _default(entry: JsonSchema) -> str:
    value = entry.get("default")
    if value is None or value in ("", []):
        return ""
    return f"`{_readable(value, entry.get('title', ''))}`"


def _readable(value: Any, kind: str) -> str:
    """A value as one would write it, in YAML."""
    if kind == "size" and value:
        power = next(power for power in (4, 3, 2, 1, 0) if value % KIB**power == 0)
        return f"{value // KIB**power}{('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize).removesuffix("\n").removesuffix("\n...")


# The example

#: Their defaults depend on the scope or the host.
_HOST_DEPENDENT = frozenset({"node_name", "scope", "directories", "api", "catalog"})

_EXAMPLE_HEADING = """# yaml-language-server: $schema=schema/agentd.schema.json
#
# The configuration of a node, with every field at its default. Written by `python -m agent.schemas`.
#
# Put it at /etc/llm-node-agent/agentd.yaml (a user's agent: ~/.config/llm-node-agent/agentd.yaml), and keep only what
# you change. What is commented out depends on the host and on the scope; it shows the system's agent.
# Reference: docs/reference/config.md. What is in force, and from where: agentctl config show --origin
"""


def example() -> str:
    """agentd.yaml with every field, its default and its meaning."""
    config = validate(NodeConfig, {**defaults("system", {}, {}), "node_name": "node-1"}, "config")
    lines = []
    for name in NodeConfig.model_fields:
        mark = "#" if name in _HOST_DEPENDENT else ""
        lines += ["", *(mark + line for line in _example_lines(config, name, ""))]
    return _EXAMPLE_HEADING + "\n".join(lines) + "\n"


def _example_lines(model: Strict, name: str, indent: str) -> Iterator[str]:
    value, field = getattr(model, name), type(model).model_fields[name]
    inner = isinstance(value, Strict)
    yield from textwrap.wrap(
        field.description or "", 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )
    if inner:
        yield f"{indent}{name}:"
        for key in type(value).model_fields:
            yield from _example_lines(value, key, indent + "  ")
    else:
        plain = model.model_dump(mode="json")[name]
        yield f"{indent}{name}: {_readable(plain, 'size' if name.endswith('_bytes') else '')}"
