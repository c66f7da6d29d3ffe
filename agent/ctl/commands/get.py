"""`get`: resources as tables, or whole for programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import click

from agent.ctl import artifacts, devices, options, rows
from agent.ctl.app import App
from agent.ctl.commands.status import node_fields, node_trouble
from agent.ctl.names import suggesting
from agent.ctl.output import Format, emit, fields
from agent.ctl.values import plain

EVENTS: Final = 50  # of `get events`: two screens; `agentctl events --limit` shows more


@options.with_help
@click.command()
@click.argument("what", metavar="[NAME | KIND [NAME]]", nargs=-1, shell_complete=options.complete_kinds_and_names)
@options.output()
@options.connects()
@click.pass_obj
def get(app: App, *, what: tuple[str, ...], form: Format) -> None:
    """Show deployments, instances, events, artifacts, devices or the node.

    KIND is deployments (the default), instances, events, artifacts, devices or node. A deployment that is called
    like a kind is reached with `get deployments NAME`.

    Examples:
      agentctl get
      agentctl get chat -o yaml
      agentctl get instances chat -o wide
      agentctl get node -o json
    """
    kind, *names = what if what and what[0] in _KINDS else ("deployments", *what)
    if len(names) > 1:
        raise click.UsageError(f"at most one NAME, not {len(names)}: {' '.join(names)}")
    _KINDS[kind](app, names[0] if names else "", form)


def _deployments(app: App, name: str, form: Format) -> None:
    client = app.reader()
    if not name:
        rows.show("deployments", client.list_deployments(), rows.deployments(app.now()), form)
        return
    with suggesting(client, name):
        deployment = client.get_deployment(name)
    if form.for_people:
        rows.show("deployments", [deployment], rows.deployments(app.now()), form)
    else:
        emit(plain(deployment), form)


def _instances(app: App, name: str, form: Format) -> None:
    client = app.reader()
    with suggesting(client, name):
        owners = [name] if name else [deployment.name for deployment in client.list_deployments()]
        found = [instance for owner in owners for instance in client.list_instances(owner)]
    rows.show("instances", found, rows.instances(app.now()), form)


def _events(app: App, name: str, form: Format) -> None:
    client = app.reader()
    with suggesting(client, name):
        found = client.list_events(name, limit=EVENTS)
    rows.show("events", found, rows.events(app.now()), form)


def _artifacts(app: App, name: str, form: Format) -> None:
    found = [artifact for artifact in app.reader().list_artifacts() if name in {"", artifact.source}]
    rows.show("artifacts", found, artifacts.columns(app.now()), form)


def _devices(app: App, name: str, form: Format) -> None:
    found = app.reader().list_devices()
    if name:
        found = [devices.find(found, name)]
    if name and not form.for_people:
        emit(plain(found[0]), form)
    else:
        rows.show("devices", found, devices.columns(found, app.now(), wide=form is Format.WIDE), form)


def _node(app: App, name: str, form: Format) -> None:
    if name:
        raise click.UsageError("there is one node, and it takes no NAME")
    node = app.reader().get_node()
    if form.for_people:
        click.echo("\n".join([fields(node_fields(node, app.now())), *node_trouble(node, app.now())]))
    else:
        emit(plain(node), form)


_KINDS: Final[dict[str, Callable[[App, str, Format], None]]] = {
    "deployments": _deployments,
    "instances": _instances,
    "events": _events,
    "artifacts": _artifacts,
    "devices": _devices,
    "node": _node,
}
