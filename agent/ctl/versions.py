"""Whether agentctl and the daemon fit together: the same major and minor version does, by our versioning rule."""

from __future__ import annotations

from typing import Any, Final

import click
import grpc

from agent import __version__
from agent.ctl.app import App
from agent.errors import AgentError, FailedPrecondition

HINT: Final = "restart agentd after an upgrade; engines go on meanwhile"


def difference(daemon: str, client: str = __version__) -> str:
    """A sentence when the daemon is of another version, else nothing."""
    mine, its = _series(client), _series(daemon)
    if mine == its:
        return ""
    word = "older" if its < mine else "newer"
    return f"the daemon ({daemon}) is {word} than this agentctl ({client})"


def warn_if_different(daemon: str) -> None:
    if said := difference(daemon):
        click.echo(f"{click.style('warning: ', fg='yellow')}{said}; {HINT}", err=True)


def explained(error: FailedPrecondition, app: App) -> FailedPrecondition:
    """An error that stems from another version of the daemon says so; every other one stays as it is."""
    cause: Any = error.__cause__
    if not isinstance(cause, grpc.Call) or cause.code() is not grpc.StatusCode.UNIMPLEMENTED:
        return error
    try:
        said = difference(app.client.get_node().version) if app.client else ""
    except AgentError:
        said = ""  # so old that it has no GetNode either, or gone in this moment
    return FailedPrecondition(
        said or "the daemon is older than this agentctl, and does not know this request", hint=HINT
    )


def _series(version: str) -> tuple[int, ...]:
    """Major and minor; empty for what is not a version, which is older than every one."""
    parts = version.split(".")[:2]
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()
