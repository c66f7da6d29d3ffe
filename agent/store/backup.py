"""Keeps `agent.db.backup` fresh, in a thread of its own so that no write ever waits for it."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import structlog

from agent.store import files

#: Seconds between two backups: what a lost database costs at most, against a copy of a few MiB.
INTERVAL = 60.0

_log = structlog.get_logger(__name__)


class BackupKeeper:
    """Makes a backup soon after `poke`, and at most one in `interval` seconds."""

    def __init__(self, directory: Path, interval: float = INTERVAL) -> None:
        self._directory = directory
        self._interval = interval
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._failure = ""
        self._thread = threading.Thread(target=self._run, name="store-backup", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Something worth a backup has changed."""
        self._wanted.set()

    def close(self, timeout: float) -> None:
        """Stop, after the backup that is being made, if any; waits at most `timeout` seconds."""
        self._closing.set()
        self._wanted.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            if self._closing.is_set():
                return
            self._wanted.clear()
            self._back_up()
            if self._closing.wait(self._interval):
                return

    def _back_up(self) -> None:
        failure = ""
        try:
            files.back_up(self._directory)
        except (sqlite3.Error, OSError) as error:
            failure = str(error)
        if failure and failure != self._failure:
            _log.warning("store_backup_failed", directory=str(self._directory), problem=failure)
        self._failure = failure
