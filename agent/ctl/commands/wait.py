"""`wait`: until a deployment is where a script needs it."""

from __future__ import annotations

import click

from agent.ctl import options
from agent.ctl.app import App
from agent.ctl.names import suggesting
from agent.ctl.output import Format, emit
from agent.ctl.progress import reporting
from agent.ctl.values import plain
from agent.ctl.watching import Goal, wait_for


@options.with_help
@click.command()
@options.name
@options.option(
    "--for",
    "goal",
    type=click.Choice(Goal, case_sensitive=False),
    default="ready",
    show_default=True,
    help="The state to wait for.",
)
@options.wait_timeout
@options.output(wide=False)
@options.connects(waits=True)
@click.pass_obj
def wait(app: App, *, name: str, goal: Goal, timeout: float, form: Format) -> None:
    """Wait until a deployment is ready, stopped, deleted or failed.

    Waiting for ready ends at once, with exit code 9 and the diagnosis, when the deployment fails, and with 5 when it
    is stopped.

    Example:
      agentctl wait chat --for ready --timeout 5m
    """
    client = app.reader()
    with reporting(quiet=not form.for_people) as report, suggesting(client, name):
        deployment = wait_for(client, name, goal, seconds=timeout, report=report)
    if form.for_people:
        click.echo(f"deployment {name} is {goal}")
    else:
        emit({"reached": str(goal), "deployment": plain(deployment) if deployment else None}, form)
