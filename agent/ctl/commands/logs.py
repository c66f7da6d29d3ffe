"""`logs`: what an engine wrote, as it wrote it."""

from __future__ import annotations

import sys

import click

from agent.ctl import options
from agent.ctl.app import App
from agent.ctl.names import suggesting


@options.with_help
@click.command()
@options.name
@options.option("-f", "--follow", is_flag=True, help="Go on with new lines, over restarts, until Ctrl-C.")
@options.option("--previous", is_flag=True, help="Of the instance before the present one.")
@options.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines. Default: all.")
@options.option(
    "--instance", metavar="ID", default="", help="Of one instance; `agentctl get instances NAME` lists them."
)
@options.connects()
@click.pass_obj
def logs(app: App, *, name: str, follow: bool, previous: bool, tail: int | None, instance: str) -> None:
    """Print the log of a deployment's engine.

    Examples:
      agentctl logs chat --tail 100
      agentctl logs chat -f
      agentctl logs chat --previous
    """
    if previous and instance:
        raise click.UsageError("--previous and --instance exclude each other")
    client, writer = app.reader(), ""
    lines = 0 if tail is None else tail or -1  # in the API 0 is all of it, and -1 none
    with suggesting(client, name):
        for chunk in client.stream_logs(name, instance=instance, previous=previous, tail_lines=lines, follow=follow):
            if writer and chunk.instance != writer:
                click.echo(f"--- instance {chunk.instance} ---", err=True)
            writer = chunk.instance
            sys.stdout.buffer.write(chunk.data)
            sys.stdout.buffer.flush()
