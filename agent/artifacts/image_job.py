"""What the daemon asks of the process that pulls an image, and what that one answers: lines of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum

from agent.frozen import frozen


class Stage(StrEnum):
    """What is waited for. The process says when it begins a new one."""

    ENGINE = "engine"  # the container engine, for what it knows itself
    REGISTRY = "registry"  # the container engine, which asks the registry
    PULL = "pull"  # bytes


@frozen
class ImageJob:
    """One image to pull, policy applied: its repository is the mirror's, where there is one."""

    socket: str
    repository: str
    tag: str
    digest: str = ""
    architecture: str = ""
    expected: int = 0  # compressed bytes, about; 0: not known
    credentials: str = ""  # path; "": none
    offline: bool = False
    answer_seconds: float = 60.0
    reserve_bytes: int = 0  # of the container engine's disk, that stay free

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}"

    @property
    def pinned(self) -> str:
        """By digest where that is known."""
        return f"{self.repository}@{self.digest}" if self.digest else self.name

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def decode(line: bytes) -> ImageJob:
        return ImageJob(**json.loads(line))
