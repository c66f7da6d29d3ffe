"""`python -m agent.artifacts.looking`: what a model is, from the headers of its files at their source; none is kept.

Told by a job as JSON on stdin. Writes {"profile": ...}, or {"failed": ...} as fetching does. A process of its own: it
listens to strangers and parses what they say. Who asked ends it when it takes too long.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from agent.artifacts import selection
from agent.artifacts.access import SourceAccess
from agent.artifacts.coming import Wanted
from agent.artifacts.connections import ConnectionFailed, Connections
from agent.artifacts.errors import unavailable
from agent.artifacts.fetcher import Fetcher, diagnosed
from agent.artifacts.job import Job
from agent.artifacts.refusals import Changed
from agent.frozen import frozen
from agent.models import inspect
from agent.models.huggingface import read_model, weight_files
from agent.models.profile import ModelProfile
from agent.models.remote_files import RemoteFiles
from agent.origins import NotFollowed
from agent.retries import Again, patiently

#: Bytes of all headers together.
_MOST = 256 * 1024**2
#: Seconds of silence that end a request, and those before its second and third try.
_SILENCE, _PAUSES = 10.0, (0.5, 1.0)


class Place:
    """Where a model's files are, asked by several threads. Raises `ArtifactError`."""

    def __init__(self, job: Job, access: SourceAccess) -> None:
        self._job, self._access = job, access
        self._own, self._lock, self._received = threading.local(), threading.Lock(), 0
        self._until = time.monotonic() + job.stall_seconds

    def fetch(self, wanted: Wanted, offset: int, length: int) -> bytes:
        length = min(length, wanted.size - offset)
        if length <= 0:
            return b""
        with self._lock:
            self._received += length
        if self._received > _MOST:
            raise unavailable(f"{self._job.source}: its headers have more than {_MOST} bytes", "")
        try:
            return patiently(lambda: self._asked(wanted, offset, length), _PAUSES, self._until)
        except (Again, Changed) as error:
            raise unavailable(f"{self._job.source}: {error}") from None
        except NotFollowed as error:
            raise unavailable(f"{self._job.source}: {error}", "") from None

    def _asked(self, wanted: Wanted, offset: int, length: int) -> bytes:
        connections = getattr(self._own, "connections", None)
        if connections is None:
            connections = self._own.connections = Connections(self._access, _SILENCE)
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"} | (
            {"If-Match": wanted.etag} if wanted.etag else {}
        )
        answer = connections.get(wanted.url, headers)
        subject = f"{wanted.name} of {self._job.source}"
        try:
            if answer.status not in {200, 206}:
                raise self._access.refusal(answer.status, answer.headers, subject, self._job.kind)
            said = re.match(r"bytes (\d+)-", answer.headers.get("content-range", ""))
            if answer.status == 206 and (said is None or int(said[1]) != offset):
                raise unavailable(f"{subject}: another range came back than was asked for", "")
            skipped = offset if answer.status == 200 else 0  # all of it comes, where parts cannot be had
            data, room = bytearray(), memoryview(bytearray(64 * 1024))
            while len(data) < skipped + length and (count := answer.readinto(room)):
                data += room[:count]
        finally:
            answer.close()
        if len(data) < skipped + length:
            raise ConnectionFailed(f"{subject} ended early")
        return bytes(data[skipped : skipped + length])


@frozen
class _File:
    """One of them."""

    place: Place
    wanted: Wanted

    @property
    def size(self) -> int:
        return self.wanted.size

    def fetch(self, offset: int, length: int) -> bytes:
        return self.place.fetch(self.wanted, offset, length)


def look(fetcher: Fetcher) -> ModelProfile:
    """Raises `ArtifactError` and `ProfileError`."""
    job = fetcher.job
    listing = fetcher.listed()
    place = Place(job, fetcher.access)
    files = RemoteFiles({name: _File(place, wanted) for name, wanted in listing.files.items()})
    choice = selection.choose(tuple(files), job.variant, job.source, pickle=job.pickle)
    if choice.opened:
        label = f"{job.repo}/{choice.opened}"
        readers = [files[name] for name in choice.weights]
        return inspect.gguf_from(label, readers, sum(reader.size() for reader in readers))
    files.fetch_ahead(weight_files(files, job.source))
    return read_model(files, job.source)


def main() -> dict[str, Any]:
    job = Job.decode(sys.stdin.buffer.readline())
    inspect.limit()
    fetcher = Fetcher(job, lambda _: None)
    try:
        return {"profile": asdict(look(fetcher))}
    except Exception as error:  # noqa: BLE001 - the outermost frame: it is told
        return {"failed": asdict(diagnosed(error, job, fetcher.secrets))}


if __name__ == "__main__":
    output = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not get into the answer
    with os.fdopen(output, "w", encoding="utf-8") as answer:
        json.dump(main(), answer)
    os._exit(0)  # without waiting for threads that wait for a stranger
