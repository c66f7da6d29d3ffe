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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from agent.artifacts import selection
from agent.artifacts.access import SourceAccess
from agent.artifacts.coming import Listing, Wanted
from agent.artifacts.connections import ConnectionFailed, Connections, NotFollowed
from agent.artifacts.errors import unavailable
from agent.artifacts.fetcher import Fetcher, diagnosed
from agent.artifacts.job import Job
from agent.artifacts.refusals import Again, Changed
from agent.models import inspect
from agent.models.huggingface import read_model, weight_files
from agent.models.profile import ModelProfile
from agent.models.reader import Reader

#: Bytes of a file that are asked for first: nearly all safetensors headers are shorter.
_BEGINNING = 128 * 1024
#: Bytes of all headers together.
_MOST = 256 * 1024**2
#: Files that are looked at at once, and tries of each request.
_AT_ONCE, _TRIES = 8, 3
_SILENCE = 10.0


class RemoteFile:
    """A `Reader` over one file of a source. What was read of its beginning is kept: headers are read in steps."""

    def __init__(self, files: RemoteFiles, wanted: Wanted) -> None:
        self._files, self._wanted = files, wanted
        self._beginning = b""

    def size(self) -> int:
        return self._wanted.size

    def read(self, offset: int, length: int) -> bytes:
        have = len(self._beginning)
        if offset > have:
            return self._files.fetch(self._wanted, offset, length)
        if offset + length > have:
            more = max(offset + length - have, 0 if have else _BEGINNING)
            self._beginning += self._files.fetch(self._wanted, have, more)
        return self._beginning[offset : offset + length]


class RemoteFiles(Mapping[str, Reader]):
    """A model's files at their source. Raises `ArtifactError`."""

    def __init__(self, job: Job, access: SourceAccess, listing: Listing) -> None:
        self._job, self._access = job, access
        self._files = {name: RemoteFile(self, wanted) for name, wanted in listing.files.items()}
        self._own, self._lock, self._received = threading.local(), threading.Lock(), 0

    def __getitem__(self, name: str) -> RemoteFile:
        return self._files[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def fetch_ahead(self, names: Sequence[str]) -> None:
        """Read the beginnings of several files at once."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda name: self._files[name].read(0, 8), names):
                pass

    def fetch(self, wanted: Wanted, offset: int, length: int) -> bytes:
        length = min(length, wanted.size - offset)
        if length <= 0:
            return b""
        with self._lock:
            self._received += length
        if self._received > _MOST:
            raise unavailable(f"{self._job.source}: its headers have more than {_MOST} bytes", "")
        for tries_left in reversed(range(_TRIES)):
            try:
                return self._asked(wanted, offset, length)
            except (Again, Changed, ConnectionFailed) as error:
                if not tries_left:
                    raise unavailable(f"{self._job.source}: {error}") from None
            except NotFollowed as error:
                raise unavailable(f"{self._job.source}: {error}", "") from None
        raise AssertionError  # the last try returned or raised

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


def look(fetcher: Fetcher) -> ModelProfile:
    """Raises `ArtifactError` and `ProfileError`."""
    job = fetcher.job
    listing = fetcher.listed()
    files = RemoteFiles(job, fetcher.access, listing)
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
