"""`delete`, `restart`, `stop`, `start`: what happens to a deployment that is there."""

from __future__ import annotations

from collections.abc import Callable

import click

from agent.api.client import Client
from agent.ctl import options
from agent.ctl.app import App
from agent.ctl.changes import request_id
from agent.ctl.names import suggesting
from agent.ctl.output import Format, emit
from agent.ctl.progress import reporting
from agent.ctl.values import plain, short
from agent.ctl.watching import Goal, wait_for
from agent.errors import NotFound
from agent.frozen import frozen
from agent.v1 import agent_pb2 as pb

Ask = Callable[[Client, str], pb.Deployment]


@frozen
class Change:
    """A change by its words, the goal of its wait, and whether the state before it can be taken for that goal."""

    ask: Ask
    accepted: str
    done: str
    goal: Goal
    replaces: bool = False


RESTART = Change(
    lambda client, name: client.restart_deployment(name, request_id=request_id()),
    "restarts", "has restarted", Goal.READY, replaces=True,
)  # fmt: skip
STOP = Change(
    lambda client, name: client.stop_deployment(name, request_id=request_id()), "stops", "is stopped", Goal.STOPPED
)
START = Change(
    lambda client, name: client.start_deployment(name, request_id=request_id()), "starts", "is ready", Goal.READY
)
DELETE = Change(
    lambda client, name: client.delete_deployment(name, request_id=request_id()),
    "is being deleted", "is deleted", Goal.DELETED,
)  # fmt: skip


@options.with_help
@click.command()
@options.names
@options.option("--ignore-missing", is_flag=True, help="A deployment that is not there is no error.")
@options.waiting
@options.output(wide=False)
@options.connects(waits=True)
@click.pass_obj
def delete(app: App, *, names: tuple[str, ...], ignore_missing: bool, wait: bool, timeout: float, form: Format) -> None:
    """Stop deployments and forget them. Their events stay.

    When one of several names does not exist, none is deleted.

    Examples:
      agentctl delete chat --wait
      agentctl delete chat embed --ignore-missing
    """
    _carry_out(app, DELETE, names, wait=timeout if wait else None, form=form, ignore_missing=ignore_missing)


@options.with_help
@click.command()
@options.names
@options.waiting
@options.output(wide=False)
@options.connects(waits=True)
@click.pass_obj
def restart(app: App, *, names: tuple[str, ...], wait: bool, timeout: float, form: Format) -> None:
    """Replace the running instance by a new one.

    Also the way out of FAILED, once its cause is mended.

    Example:
      agentctl restart chat --wait --timeout 5m
    """
    _carry_out(app, RESTART, names, wait=timeout if wait else None, form=form)


@options.with_help
@click.command()
@options.names
@options.waiting
@options.output(wide=False)
@options.connects(waits=True)
@click.pass_obj
def stop(app: App, *, names: tuple[str, ...], wait: bool, timeout: float, form: Format) -> None:
    """Stop deployments, and keep their specs.

    No process and no memory is left, until `agentctl start`.

    Example:
      agentctl stop chat --wait
    """
    _carry_out(app, STOP, names, wait=timeout if wait else None, form=form)


@options.with_help
@click.command()
@options.names
@options.waiting
@options.output(wide=False)
@options.connects(waits=True)
@click.pass_obj
def start(app: App, *, names: tuple[str, ...], wait: bool, timeout: float, form: Format) -> None:
    """Start deployments that were stopped.

    Example:
      agentctl start chat --wait
    """
    _carry_out(app, START, names, wait=timeout if wait else None, form=form)


def _carry_out(
    app: App, change: Change, names: tuple[str, ...], *, wait: float | None, form: Format, ignore_missing: bool = False
) -> None:
    """All names are looked up before the first is touched, so that a mistyped one changes nothing."""
    client = app.writer()
    known = _look_up(client, dict.fromkeys(names), ignore_missing=ignore_missing)
    changed = [change.ask(client, short(before.name)) for before in known]
    if form.for_people:
        for deployment in changed:
            click.echo(f"deployment {short(deployment.name)} {change.accepted}")
    if wait is not None:
        changed = _wait(client, change, known, wait, quiet=not form.for_people)
    if not form.for_people:
        emit({"deployments": [plain(deployment) for deployment in changed]}, form)


def _look_up(client: Client, names: dict[str, None], *, ignore_missing: bool) -> list[pb.Deployment]:
    found = []
    for name in names:
        try:
            with suggesting(client, name):
                found.append(client.get_deployment(name))
        except NotFound:
            if not ignore_missing:
                raise
    return found


def _wait(
    client: Client, change: Change, known: list[pb.Deployment], seconds: float, *, quiet: bool
) -> list[pb.Deployment]:
    reached: list[pb.Deployment] = []
    with reporting(quiet=quiet) as report:
        for before in known:
            name = short(before.name)
            baseline = before if change.replaces else None
            last = wait_for(client, name, change.goal, seconds=seconds, report=report, before=baseline)
            reached.append(last or before)
            if not quiet:
                click.echo(f"deployment {name} {change.done}")
    return reached
