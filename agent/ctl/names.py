"""Names that do not exist, and the ones that were probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

from agent.api.client import Client
from agent.ctl.values import short
from agent.errors import AgentError, NotFound


@contextmanager
def suggesting(client: Client, name: str) -> Iterator[None]:
    """A NotFound from inside leaves with the nearest names of deployments as its hint."""
    try:
        yield
    except NotFound as error:
        error.hint = _hint(client, name) or error.hint
        raise


def _hint(client: Client, name: str) -> str:
    try:
        known = [short(deployment.name) for deployment in client.list_deployments()]
    except AgentError:
        return ""  # the NotFound is the news; that the list cannot be had is not
    if name in known:
        return ""  # it is something of this deployment that is not there
    if near := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {near[0]}?"
    return "there are: " + ", ".join(sorted(known)[:10]) if known else "there are no deployments"
