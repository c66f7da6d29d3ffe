"""Names of deployments and devices for the shell: quick, silent, and never in the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.api.client import Client
from agent.ctl.app import App
from agent.ctl.values import short
from agent.errors import AgentError

#: Seconds. A shell that hangs at TAB is worse than one that completes nothing.
DEADLINE_SECONDS: Final = 1.0


def deployment_names(app: App) -> list[str]:
    return _asked(app, lambda client: [deployment.name for deployment in client.list_deployments()])


def device_ids(app: App) -> list[str]:
    return _asked(app, lambda client: [device.name for device in client.list_devices()])


def _asked(app: App, names: Callable[[Client], list[str]]) -> list[str]:
    """The ids known to the daemon; none where it cannot be asked, because a prompt is no place for an error."""
    app.timeout = DEADLINE_SECONDS
    try:
        with app.reader() as client:
            return [short(name) for name in names(client)]
    except AgentError:
        return []
