"""Where the agent and its clients look when nobody says otherwise: by scope, after the XDG rules for a user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent.frozen import frozen

NAME = "llm-node-agent"


@frozen
class Paths:
    """Directories of one agent; `config` is where its configuration is read."""

    config: Path
    state: Path
    runtime: Path
    cache: Path
    logs: Path

    @property
    def control_socket(self) -> Path:
        return self.runtime / "control.sock"

    @property
    def readonly_socket(self) -> Path:
        return self.runtime / "readonly.sock"


def default_paths(scope: str, environ: Mapping[str, str], given: Mapping[str, Path] | None = None) -> Paths:
    """The directories of an agent of `scope` ("user" or "system"); one that is `given` moves those that lie in it."""
    given = given or {}
    if scope == "system":
        return Paths(
            config=Path("/etc", NAME),
            state=given.get("state", Path("/var/lib", NAME)),
            runtime=given.get("runtime", Path("/run", NAME)),
            cache=given.get("cache", Path("/var/cache", NAME)),
            logs=given.get("logs", Path("/var/log", NAME)),
        )
    state = given.get("state", _xdg(environ, "XDG_STATE_HOME", ".local/state"))
    # Without a login session there is no XDG_RUNTIME_DIR; sockets then lie beside the state.
    runtime = Path(environ.get("XDG_RUNTIME_DIR", ""))
    return Paths(
        config=_xdg(environ, "XDG_CONFIG_HOME", ".config"),
        state=state,
        runtime=given.get("runtime", runtime / NAME if runtime.is_absolute() else state / "run"),
        cache=given.get("cache", _xdg(environ, "XDG_CACHE_HOME", ".cache")),
        logs=given.get("logs", state / "logs"),
    )


def _xdg(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    """The XDG rules: a relative path in the variable is to be ignored."""
    given = Path(environ.get(variable, ""))
    if given.is_absolute():
        return given / NAME
    home = Path(environ.get("HOME", ""))
    return (home if home.is_absolute() else Path.home()) / fallback / NAME
