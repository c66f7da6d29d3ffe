"""The bandwidth that a pull may take."""

from __future__ import annotations

import threading
import time

from agent.artifacts import intake


class Throttle:
    """At most so many bytes a second over all connections; may be changed while they run."""

    def __init__(self, bytes_per_second: int) -> None:
        self.rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def spend(self, count: int) -> None:
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self.rate
            wait = self._free_at - now
        time.sleep(wait)

    @property
    def piece(self) -> int:
        """Bytes to read at once, so that a pause stays short."""
        return min(intake.BUFFER, max(4096, self.rate // 8)) if self.rate else intake.BUFFER
