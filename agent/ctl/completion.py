"""Names of deployments, devices, models and artifacts for the shell: quick, silent, and never in the way."""

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


def artifact_references(app: App) -> list[str]:
    """References, which are never cut, of what the cache holds."""
    return _whole(app, lambda client: [one.source for one in client.list_artifacts() if one.disk_bytes])


def model_names(app: App) -> list[str]:
    """The catalog's short names and aliases, in lower case, as people type them."""
    return _asked(
        app,
        lambda client: [name for model in client.list_models() for name in (short(model.name).lower(), *model.aliases)],
    )


def _asked(app: App, names: Callable[[Client], list[str]]) -> list[str]:
    """Ids known to the daemon, out of names."""
    return [short(name) for name in _whole(app, names)]


def _whole(app: App, texts: Callable[[Client], list[str]]) -> list[str]:
    """What the daemon knows; nothing where it cannot be asked, because a prompt is no place for an error."""
    app.timeout = DEADLINE_SECONDS
    try:
        with app.reader() as client:
            return texts(client)
    except AgentError:
        return []
