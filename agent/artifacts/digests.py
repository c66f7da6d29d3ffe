"""Digests of large files: hashed in a thread, and remembered on disk, so that a restart does not read them again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

from agent.artifacts.cache import replace
from agent.status import Progress

#: Bytes read at once: large enough that progress and cancellation cost nothing, small enough to stop within 10 ms.
CHUNK = 4 * 1024**2


async def sha256(path: Path, cache: Path, progress: Callable[[Progress], None]) -> str:
    """The file's SHA-256 in hexadecimal. Raises `OSError`. Cancellation stops the reading."""
    loop = asyncio.get_running_loop()
    cancelled = threading.Event()

    def report(done: int, total: int) -> None:
        loop.call_soon_threadsafe(progress, Progress("verifying", done, total))

    try:
        return await asyncio.to_thread(_remembered, path, cache / "digests", report, cancelled)
    finally:
        cancelled.set()


def _remembered(path: Path, folder: Path, report: Callable[[int, int], None], cancelled: threading.Event) -> str:
    status = path.stat()
    # Together these change whenever the content does, short of an attempt to deceive the file system's clock.
    identity: list[str | int] = [str(path), status.st_size, status.st_mtime_ns, status.st_ino]
    record = folder / (hashlib.sha256(str(path).encode()).hexdigest() + ".json")
    if (digest := _read(record, identity)) is not None:
        return digest
    digest = _hash(path, status.st_size, report, cancelled)
    if not cancelled.is_set():  # else it may be that of the beginning alone
        _write(record, {"file": identity, "sha256": digest})
    return digest


def _hash(path: Path, total: int, report: Callable[[int, int], None], cancelled: threading.Event) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while (chunk := file.read(CHUNK)) and not cancelled.is_set():
            digest.update(chunk)
            done += len(chunk)
            report(done, total)
    return digest.hexdigest()


def _read(record: Path, identity: list[str | int]) -> str | None:
    """The remembered digest, if the record is whole and of this very file."""
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        return str(known["sha256"]) if known["file"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(record: Path, content: dict[str, object]) -> None:
    """A cache that cannot be written only costs time, so its errors are not the caller's."""
    with contextlib.suppress(OSError):
        replace(record, json.dumps(content).encode())
