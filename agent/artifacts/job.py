"""What the daemon asks of the process that fetches, as JSON on its standard input."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Job:
    """One model to fetch. `source` is its reference; of a hub's repository or of a file by its URL."""

    source: str
    cache: str
    parent: int = 0  # pid of the daemon
    repo: str = ""
    revision: str = "main"
    variant: str = ""
    url: str = ""
    sha256: str = ""
    endpoint: str = ""
    token: str = field(default="", repr=False)
    offline: bool = False
    pickle: bool = False
    connections: int = 4
    bytes_per_second: int = 0  # 0: as fast as it goes
    stall_seconds: float = 60.0
    reserve_bytes: int = 0  # of the disk, that stay free

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def decode(line: bytes) -> Job:
        return Job(**json.loads(line))
