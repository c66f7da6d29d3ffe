"""Names of deployments, devices, models and artifacts for the shell: quick, silent, and never in the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import agent
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


def hardware_models() -> list[str]:
    """Ids of the GPUs that plans know. Out of their table itself: what else reads it is the daemon's."""
    import json  # noqa: PLC0415  (no command needs it for its start)

    table = Path(agent.__file__).parent / "hardware/catalog.json"
    return [row["id"] for row in json.loads(table.read_text(encoding="utf-8"))["models"]]


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
