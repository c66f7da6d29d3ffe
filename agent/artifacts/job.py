"""What the daemon asks of the process that fetches, as JSON on its standard input."""

from __future__ import annotations

import json
from dataclasses import asdict, field
from pathlib import Path

from agent.artifacts import cache
from agent.artifacts.cache import Folder
from agent.frozen import frozen


@frozen
class Job:
    """One model to fetch. `source` is its reference."""

    source: str
    cache: str
    kind: str = "hf"  # of source: says who lists its files, and where they lie in the cache
    parent: int = 0  # pid of the daemon
    repo: str = ""  # what the source calls the model, without scheme, revision and variant
    revision: str = "main"
    variant: str = ""
    url: str = ""  # of kind "url" only
    sha256: str = ""  # that the reference demands
    endpoint: str = ""  # address of the source; "": its own
    region: str = ""
    token: str = field(default="", repr=False)
    credentials: str = ""  # path of a file with them; "": none, or as the source's own library finds them
    offline: bool = False
    pickle: bool = False
    connections: int = 4
    bytes_per_second: int = 0  # 0: as fast as it goes
    stall_seconds: float = 60.0
    reserve_bytes: int = 0  # of the disk, that stay free

    @property
    def folder(self) -> Folder:
        """Where its files lie."""
        root = Path(self.cache)
        if self.kind == "url":
            return cache.of_url(root, self.url)
        return cache.repository(root, self.repo) if self.kind == "hf" else cache.of_kind(root, self.kind, self.repo)

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def decode(line: bytes) -> Job:
        return Job(**json.loads(line))
