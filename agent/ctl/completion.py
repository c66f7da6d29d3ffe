"""Names of deployments for the shell: quick, silent, and never in the way."""

from __future__ import annotations

from typing import Final

from agent.ctl.app import App
from agent.ctl.values import short
from agent.errors import AgentError

#: Seconds. A shell that hangs at TAB is worse than one that completes nothing.
DEADLINE_SECONDS: Final = 1.0


def deployment_names(app: App) -> list[str]:
    """The names known to the daemon; none where it cannot be asked, because a prompt is no place for an error."""
    app.timeout = DEADLINE_SECONDS
    try:
        with app.reader() as client:
            return [short(deployment.name) for deployment in client.list_deployments()]
    except AgentError:
        return []
