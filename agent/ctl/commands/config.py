"""`config`: what is in force and where it came from, whether a file is right, and the schemas for editors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final, Literal

import click

from agent.api.structs import struct_from_dict, struct_to_dict
from agent.ctl import options
from agent.ctl.app import App
from agent.ctl.output import Column, Format, emit, table
from agent.ctl.specs import read, read_all
from agent.ctl.values import ordered
from agent.errors import InvalidArgument
from agent.v1 import agent_pb2 as pb

Scope = Literal["user", "system"]

scope_option = options.option(
    "--scope",
    type=click.Choice(["user", "system"]),
    default=lambda: "system" if os.geteuid() == 0 else "user",
    show_default="as agentd: system for root",
    help="Whose files: this user's agentd, or the system's.",
)

_ORIGINS: Final[tuple[Column[pb.ConfigOrigin], ...]] = (
    Column("FIELD", lambda value: value.field),
    Column("VALUE", lambda value: value.value),
    Column("ORIGIN", lambda value: value.origin),
)


@options.with_help
@click.group()
def config() -> None:
    """Show, check and describe the configuration.

    Example:
      agentctl config show --origin
    """


@options.with_help
@config.command()
@options.option("--origin", is_flag=True, help="Each value with the source that it came from.")
@options.option("--local", is_flag=True, help="As agentd would read it if it started now; asks no daemon.")
@scope_option
@options.output(wide=False)
@options.connects()
@click.pass_obj
def show(app: App, *, origin: bool, local: bool, scope: Scope, form: Format) -> None:
    """Show the configuration in force.

    It is the daemon's, or with --local what the files here say.

    Examples:
      agentctl config show --origin
      agentctl config show --local --scope system
    """
    found = _local(app, scope) if local else app.reader().get_config()
    values = ordered(struct_to_dict(found.config))
    if not form.for_people:
        origins = [{"field": one.field, "value": json.loads(one.value), "origin": one.origin} for one in found.origins]
        emit({"config": values, "origins": origins}, form)
    elif origin:
        click.echo(table(_ORIGINS, found.origins))
    else:
        emit(values, Format.YAML)  # as one would write it into the file


@options.with_help
@config.command()
@click.argument("file", metavar="[FILE]", required=False, shell_complete=options.complete_files)
@options.option("--kind", type=click.Choice(["spec", "agentd"]), help="What FILE is. Default: told by its keys.")
@scope_option
@click.pass_obj
def check(app: App, *, file: str | None, kind: str | None, scope: Scope) -> None:
    """Check specs or the node's configuration. Needs no daemon.

    Without FILE, all that agentd would read here is checked. The node's policy is not: `agentctl apply --dry-run`
    asks the daemon about that.

    Examples:
      agentctl config check
      agentctl config check chat.yaml
      agentctl config check /etc/llm-node-agent/agentd.yaml --scope system
    """
    from agent.config import load_config  # noqa: PLC0415  (pydantic: only what checks pays for it)

    if file is not None and (kind or _kind(file)) == "spec":
        names = _check_specs(file)
        click.echo(f"{file}: valid ({', '.join(names)})")
        return
    load_config(scope, config_file=Path(file) if file else None, environ=app.environ)
    click.echo(f"{file or f'configuration ({scope})'}: valid")


@options.with_help
@config.command()
@click.argument("kind", type=click.Choice(["spec", "agentd"]))
def schema(*, kind: str) -> None:
    """Print the JSON schema of a spec or of agentd.yaml, for editors.

    Example:
      agentctl config schema spec > spec.schema.json
    """
    from agent.schemas import config_schema, spec_schema  # noqa: PLC0415

    emit(spec_schema() if kind == "spec" else config_schema(), Format.JSON)


def _local(app: App, scope: Scope) -> pb.GetConfigResponse:
    from agent.config import load_config  # noqa: PLC0415

    loaded = load_config(scope, environ=app.environ)
    tree = loaded.config.model_dump(mode="json")
    origins = [
        pb.ConfigOrigin(field=field, value=json.dumps(_at(tree, field)), origin=origin)
        for field, origin in loaded.origins.items()
    ]
    return pb.GetConfigResponse(config=struct_from_dict(tree), origins=origins)


def _at(tree: dict[str, Any], field: str) -> Any:
    """The value at a dotted path; a key may have dots itself, as names of engines do."""
    if field in tree:
        return tree[field]
    key = next(key for key in tree if field.startswith(f"{key}."))
    return _at(tree[key], field.removeprefix(f"{key}."))


def _kind(file: str) -> str:
    """A spec has a model; no configuration of a node has one."""
    from agent.documents import load_documents  # noqa: PLC0415

    documents = load_documents(read(file), file)
    return "spec" if any("model" in document for document in documents) else "agentd"


def _check_specs(file: str) -> list[str]:
    from agent.spec import parse_spec  # noqa: PLC0415

    names = []
    for document in read_all([file]):
        try:
            names.append(parse_spec(document.spec).name)
        except InvalidArgument as error:
            error.message = f"{document.place}: {error.message}"
            raise
    return names
