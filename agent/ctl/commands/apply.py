"""`apply`: deployments out of files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from agent.api.client import Client
from agent.ctl import options
from agent.ctl.app import App
from agent.ctl.changes import Applied, apply_one, wait_until_ready
from agent.ctl.output import Format, emit
from agent.ctl.progress import reporting
from agent.ctl.specs import Document, read_all
from agent.ctl.values import plain
from agent.errors import AgentError


@options.with_help
@click.command()
@options.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    required=True,
    metavar="FILE",
    shell_complete=options.complete_files,
    help="A YAML file; - is standard input.",
)
@options.option("--dry-run", is_flag=True, help="Let the daemon check everything, and change nothing.")
@options.waiting
@options.output(wide=False)
@options.connects(waits=True)
@click.pass_obj
def apply(app: App, *, files: tuple[str, ...], dry_run: bool, wait: bool, timeout: float, form: Format) -> None:
    """Create or replace deployments from YAML files.

    A file may hold several documents. Each is checked before the first is applied. What only the change itself shows,
    such as a node that has its maximum of deployments, ends it there: those before it are applied, which is told.

    Examples:
      agentctl apply -f chat.yaml --wait
      agentctl apply -f chat.yaml -f embed.yaml --dry-run
      generate-specs | agentctl apply -f -
    """
    documents = read_all(files)
    client = app.writer()
    applied: list[Applied] = []
    checked = []
    for document in documents:
        with _placed(document, documents, applied):
            checked.append(Applied(client.apply_deployment(document.spec, validate_only=True)))
    try:
        for document, check in zip(documents, checked, strict=True):
            with _placed(document, documents, applied):
                applied.append(check if dry_run else apply_one(client, document.spec))
            if form.for_people:
                click.echo(f"deployment {applied[-1].name} {applied[-1].outcome}" + (" (dry run)" if dry_run else ""))
        if wait and not dry_run:
            _wait(client, applied, timeout, quiet=not form.for_people)
    finally:
        if applied and not form.for_people:  # also where it failed half way
            emit({"dry_run": dry_run, "results": [plain(one.answer) for one in applied]}, form)


@contextmanager
def _placed(document: Document, documents: Sequence[Document], applied: Sequence[Applied]) -> Iterator[None]:
    """An error from inside says of which of several documents it is, and what was applied before."""
    try:
        yield
    except AgentError as error:
        if len(documents) > 1:
            before = ", ".join(one.name for one in applied)
            done = f"applied before it: {before}" if before else "nothing was applied"
            error.message = f"{document.place}: {error.message}; {done}"
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
