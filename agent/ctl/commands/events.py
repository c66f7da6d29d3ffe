"""`events`: the history of the node and its deployments."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from agent.api.client import Client
from agent.ctl import options, rows
from agent.ctl.app import App
from agent.ctl.names import suggesting
from agent.ctl.output import Format, emit
from agent.ctl.values import plain, short
from agent.ctl.watching import follow as follow_changes
from agent.v1 import agent_pb2 as pb


@options.with_help
@click.command()
@click.argument("name", metavar="[NAME]", default="", shell_complete=options.complete_names)
@options.option("-f", "--follow", is_flag=True, help="Go on with new events, until Ctrl-C.")
@options.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many of the newest.")
@options.output()
@options.connects()
@click.pass_obj
def events(app: App, *, name: str, follow: bool, limit: int, form: Format) -> None:
    """Show what happened, oldest first. Events of deleted deployments stay.

    With --follow, JSON is one object on each line.

    Examples:
      agentctl events
      agentctl events chat -f
      agentctl events -f -o json | jq -r .message
    """
    client = app.reader()
    if follow:
        for event in _endless(client, name, limit):
            _print(event, form)
        return
    found = client.list_events(name, limit=limit)
    if not found and name:
        with suggesting(client, name):
            client.get_deployment(name)  # tells "no events" from "no such deployment"
    rows.show("events", found, rows.events(app.now()), form)


def _endless(client: Client, name: str, limit: int) -> Iterator[pb.Event]:
    """The newest events, then new ones. Listed only once the watch has begun: none falls between the two."""
    last = 0
    for change in follow_changes(client, name, events_only=True):
        fresh = [change.event] if change.HasField("event") else []
        if change.HasField("synced"):
            fresh = client.list_events(name, limit=limit)
        for event in fresh:
            if event.seq > last:
                yield event
                last = event.seq


def _print(event: pb.Event, form: Format) -> None:
    if form is Format.JSON:
        click.echo(json.dumps(plain(event), ensure_ascii=False))
    elif form is Format.YAML:
        click.echo("---")
        emit(plain(event), form)
    else:
        severity = rows.coloured(rows.severity(event))
        click.echo(
            f"{event.time.ToJsonString()} {severity} {short(event.deployment) or '-'} {event.reason}: {event.message}"
        )
