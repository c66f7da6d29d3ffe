"""What every source of models shares: the policy that it obeys, what it returns, and how it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from pathlib import Path

from agent.artifacts.errors import ArtifactError
from agent.artifacts.pulls import Pulls
from agent.frozen import frozen
from agent.settings import FetchConfig, ImagesConfig

__all__ = ["ArtifactError", "Fetched", "SourcePolicy"]


@frozen
class SourcePolicy:
    """What the node allows. `directories` bounds file:, None means anywhere; `cache` keeps what was verified."""

    schemes: frozenset[str]
    directories: tuple[Path, ...] | None
    cache: Path
    organisations: frozenset[str] | None = None  # owners of repositories, in lower case; None: all
    pickle: bool = False  # whether weights that can run code may be fetched
    fetching: FetchConfig = field(default_factory=FetchConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)  # whose registries hold models as well
    token: Callable[[], str] = str  # the hub's token, read anew for each pull; "": none
    pulls: Pulls = field(default_factory=Pulls)  # those under way


@frozen
class Fetched:
    """A model's first (mostly only) file, or the directory of a model of several. `digest` is "" where the source
    publishes none; of a directory it is that of the list of its files."""

    path: Path
    digest: str
    bytes: int
    source: str
