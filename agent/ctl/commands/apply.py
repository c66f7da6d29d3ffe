"""`apply`: deployments out of files, all of them or none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from agent.api.client import Client
from agent.ctl import options
from agent.ctl.app import App
from agent.ctl.changes import Applied, apply_one, wait_until_ready
from agent.ctl.output import Format, emit
from agent.ctl.progress import reporting
from agent.ctl.specs import read_all
from agent.ctl.values import plain
from agent.errors import AgentError


@options.with_help
@click.command()
@options.option(
    "-f", "--file", "files", multiple=True, required=True, metavar="FILE", help="A YAML file; - is standard input."
)
@options.option("--dry-run", is_flag=True, help="Let the daemon check everything, and change nothing.")
@options.waiting
@options.output(wide=False)
@options.connects(waits=True)
@click.pass_obj
def apply(app: App, *, files: tuple[str, ...], dry_run: bool, wait: bool, timeout: float, form: Format) -> None:
    """Create or replace deployments from YAML files.

    A file may hold several documents. All are checked before the first is applied.

    Examples:
      agentctl apply -f chat.yaml --wait
      agentctl apply -f chat.yaml -f embed.yaml --dry-run
      generate-specs | agentctl apply -f -
    """
    specs = read_all(files)
    client = app.writer()
    checked = [_check(client, spec, position, len(specs)) for position, spec in enumerate(specs, 1)]
    applied = checked if dry_run else [apply_one(client, spec) for spec in specs]
    if form.for_people:
        for one in applied:
            click.echo(f"deployment {one.name} {one.outcome}" + (" (dry run)" if dry_run else ""))
    if wait and not dry_run:
        _wait(client, applied, timeout, quiet=not form.for_people)
    if not form.for_people:
        emit({"dry_run": dry_run, "results": [plain(one.answer) for one in applied]}, form)


def _check(client: Client, spec: dict[str, Any], position: int, count: int) -> Applied:
    try:
        return Applied(client.apply_deployment(spec, validate_only=True))
    except AgentError as error:
        if count > 1:  # the field's path alone does not say in which document it is
            error.message = f"document {position} ({spec.get('name', 'no name')}): {error.message}; nothing was applied"
        raise


def _wait(client: Client, applied: Sequence[Applied], timeout: float, *, quiet: bool) -> None:
    """Waits for all, and puts the deployments as they are then into the answers."""
    deadline = time.monotonic() + timeout
    with reporting(quiet=quiet) as report:
        for one in applied:
            ready = wait_until_ready(client, one, seconds=deadline - time.monotonic(), report=report)
            one.answer.deployment.CopyFrom(ready)
            if not quiet:
                click.echo(f"deployment {one.name} is ready at {ready.endpoint}")
