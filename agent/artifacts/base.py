"""What every source of models shares: the policy that it obeys, what it returns, and how it fails."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.status import Diagnosis


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """What the node allows. `directories` bounds file:, None means anywhere; `cache` keeps what was verified."""

    schemes: frozenset[str]
    directories: tuple[Path, ...] | None
    cache: Path


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model's first (mostly only) file. `digest` is "" where the source publishes none."""

    path: Path
    digest: str
    bytes: int
    source: str


class ArtifactError(Exception):
    """The artifact cannot be had; `diagnosis` says why."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.message)
        self.diagnosis = diagnosis
