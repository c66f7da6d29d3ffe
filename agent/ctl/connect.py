"""Finding the daemon's socket, and saying what is wrong where none can be used.

Order: --socket, AGENTD_SOCKET, this user's control socket, the system's, then (for commands that only read)
the two read-only ones. A plain connect() tells absent, refused and forbidden apart, which gRPC reports all alike; where
there is only one to choose, the first call is left to find that out, which spares each command the import of `socket`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from agent.api import reach
from agent.ctl.failures import Permission
from agent.errors import AgentError, Unavailable
from agent.paths import default_paths


def find(given: str | None, environ: Mapping[str, str], *, change: bool) -> Path:
    """The only socket that is there, else the first that accepts a connection.

    Raises `Permission` where one is there but may not be opened, `Unavailable` where none is or nobody listens on any.
    """
    explicit = given or environ.get("AGENTD_SOCKET")
    candidates = [Path(explicit)] if explicit else _default_sockets(environ, change=change)
    there = [path for path in candidates if os.access(path, os.W_OK, effective_ids=True)]
    if len(there) == 1:
        return there[0]
    problems: dict[Path, OSError] = {}
    for path in candidates:
        problem = _problem(path)
        if problem is None:
            return path
        problems[path] = problem
    raise _unusable(problems, change=change, explicit=bool(explicit))


def _default_sockets(environ: Mapping[str, str], *, change: bool) -> list[Path]:
    scopes = [default_paths("user", environ), default_paths("system", environ)]
    control = [paths.control_socket for paths in scopes]
    return control if change else control + [paths.readonly_socket for paths in scopes]


def _problem(path: Path) -> OSError | None:
    """Why the socket cannot be used. A daemon that hangs listens, too; its first call finds that out."""
    try:
        return None if reach.listens(path) else ConnectionRefusedError()
    except OSError as error:
        return error


def _unusable(problems: Mapping[Path, OSError], *, change: bool, explicit: bool) -> AgentError:
    told = "\n".join(f"{path}: {_sentence(error)}" for path, error in problems.items())
    forbidden = any(isinstance(error, PermissionError) for error in problems.values())
    if forbidden:
        may = "change" if change else "look at"
        return Permission(
            f"you may not {may} this node\n{told}",
            hint="run it as the socket's owner or with sudo, or join the socket's group",
        )
    hint = "start the daemon with `agentd`, or `systemctl start agentd`"
    return Unavailable(
        f"no agentd is running\n{told}", hint=hint if explicit else f"{hint}; or name its socket with --socket"
    )


def _sentence(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such socket"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there (agentd has stopped, or is still starting)"
    return (error.strerror or str(error)).lower()  # "AF_UNIX path too long" has no errno
