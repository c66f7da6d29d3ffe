"""`version`: of this command and of the daemon."""

from __future__ import annotations

import click

from agent import __version__
from agent.ctl import options
from agent.ctl.app import App
from agent.ctl.output import Format, emit, fields
from agent.ctl.versions import warn_if_different
from agent.errors import Unavailable


@options.with_help
@click.command()
@options.output(wide=False)
@options.connects()
@click.pass_obj
def version(app: App, *, form: Format) -> None:
    """Show the versions of agentctl and of the daemon. That no daemon runs is no error here.

    Example:
      agentctl version
    """
    try:
        daemon, problem = app.reader().get_node().version, ""
    except Unavailable as error:
        daemon, problem = "", error.message.splitlines()[0]
    if form.for_people:
        click.echo(fields((("agentctl", __version__), ("agentd", daemon or f"not known: {problem}"))))
    else:
        emit({"agentctl": __version__, "agentd": daemon or None}, form)
    if daemon:
        warn_if_different(daemon)
