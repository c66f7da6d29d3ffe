"""`python -m agent.artifacts.fetcher`: fetches a model into the cache; told by JSON on stdin, tells by JSON on stdout.

A process of its own: the daemon's memory and event loop see no files, and what is killed here costs nobody anything.
Each line that it writes is one of

    {"progress": [STEP, DONE, TOTAL]}                    at least one a second
    {"fetched": {"path": ..., "digest": ..., "bytes": ...}}
    {"failed": {"code": ..., "message": ..., "evidence": ..., "hint": ...}, "lacking": BYTES}    of the disk

Further lines that it reads are {"bytes_per_second": N}; at their end it ends.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from agent.artifacts import cache
from agent.artifacts.access import HubAccess, Plain, SourceAccess, asking
from agent.artifacts.cache import Folder, Kept, KeptFile
from agent.artifacts.coming import Listing, Wanted
from agent.artifacts.errors import ArtifactError, missing, refused, unavailable
from agent.artifacts.job import Job
from agent.artifacts.refusals import Changed
from agent.artifacts.space import Reservation, full
from agent.artifacts.throttle import Throttle
from agent.artifacts.transfer import Options, Transfer
from agent.models.errors import ProfileError
from agent.retries import Again
from agent.status import Diagnosis, DiagnosisCode

_T = TypeVar("_T")

#: Seconds between two lines of progress.
_PERIOD = 0.5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
#: Engines and the daemon go first where the cores are short: who pulls waits anyway. Not SCHED_IDLE: beside an engine
#: that computes on all cores, a pull keeps a sixtieth of them, where that would leave it a three-hundredth.
_NICE = 19
#: A model that changes at its source while it comes is listed so often.
_LISTINGS = 3
#: Who lists the files of each kind of source, and says how these are asked for: `connect(job)`.
_LISTERS = {
    "s3": "agent.artifacts.listing_s3", "gs": "agent.artifacts.listing_gs", "oci": "agent.artifacts.listing_oci",
    "ollama": "agent.artifacts.listing_oci", "ms": "agent.artifacts.listing_ms",
}  # fmt: skip
_DISK_REFUSES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Fetcher:
    """One job."""

    def __init__(self, job: Job, say: Callable[[dict[str, Any]], None]) -> None:
        self.job = job
        self.throttle = Throttle(job.bytes_per_second)
        self._say, self._said_at = say, 0.0
        self._root = Path(job.cache)
        self._reserved = Reservation(self._root, job.reserve_bytes)
        self.access: SourceAccess = HubAccess(job.endpoint, job.token) if job.kind == "hf" else Plain()
        self._lister: Callable[[], Listing] | None = None

    @property
    def secrets(self) -> tuple[str, ...]:
        """What nobody may be told."""
        return (*filter(None, [self.job.token]), *self.access.secrets)

    @property
    def lacking(self) -> int:
        """Bytes by which the disk was too full."""
        return self._reserved.lacking

    def run(self) -> Kept:
        """Raises `ArtifactError`, `ProfileError` and `OSError`."""
        self._root.mkdir(parents=True, exist_ok=True)
        try:
            ways = {"hf": self._from_hub, "url": self._from_url}
            kept = ways.get(self.job.kind, self._from_elsewhere)()
        finally:
            self._reserved.release()
        return kept

    # A hub

    def _from_hub(self) -> Kept:
        job = self.job
        folder = job.folder
        if job.offline:
            return self._in_place(folder, f"{job.source} is not on this node, and it may not be fetched: offline")
        from agent.artifacts.listing import ask  # noqa: PLC0415 - half a second that offline nodes do not need

        try:
            listing = self._patiently(lambda: ask(job))
        except ArtifactError as error:
            if error.diagnosis.code != DiagnosisCode.SOURCE_UNAVAILABLE:
                raise
            with contextlib.suppress(ArtifactError, ProfileError):
                return self._in_place(folder, "")
            raise
        return self._fetch(folder, listing)

    def _from_elsewhere(self) -> Kept:
        """Another source: its lister knows how it is asked."""
        job, changed = self.job, ""
        for _ in range(_LISTINGS):
            try:
                return self._fetch(job.folder, self.listed())
            except Changed as error:
                changed = str(error)
        raise unavailable(f"{job.source}: {changed}, again and again")

    def listed(self) -> Listing:
        """What is there now, of a source that is neither a hub nor a URL. Raises `ArtifactError` and `Changed`."""
        if self.job.offline:
            message = f"{self.job.source} is not on this node, and it may not be fetched: offline"
            raise missing(message, "see fetch.offline")
        if self._lister is None:
            self.access, self._lister = importlib.import_module(_LISTERS[self.job.kind]).connect(self.job)
        lister: Callable[[], Listing] = self._lister
        return self._patiently(lister)

    def _fetch(self, folder: Folder, listing: Listing) -> Kept:
        from agent.artifacts import selection  # noqa: PLC0415 - a quarter of a second that URLs do not need

        job, files = self.job, listing.files
        choice = selection.choose(tuple(files), job.variant, job.source, pickle=job.pickle)
        transfer = self._transfer(folder)
        found = self._transferred(transfer, listing, (*choice.companions, *choice.weights))
        if selection.INDEX in choice.companions:
            index = folder.blobs / found[selection.INDEX].blob
            found = self._transferred(transfer, listing, selection.shards(tuple(files), index, job.source))
        commit = listing.commit or _commit(found.values())
        return self._keep(folder, commit, found.values(), choice.opened, job.revision)

    def _transfer(self, folder: Folder) -> Transfer:
        job = self.job
        options = Options(self.access, job.connections, job.stall_seconds, job.source)
        return Transfer(folder, options, self.throttle, self._progress)

    def _transferred(self, transfer: Transfer, listing: Listing, names: Sequence[str]) -> dict[str, KeptFile]:
        files = self._patiently(lambda: listing.detailed([listing.files[name] for name in names]))
        needed = transfer.needed(files)
        self._reserved.take(needed, self.job.source)
        try:
            return dict(transfer.fetch(files))
        except OSError as error:
            if error.errno not in _DISK_REFUSES:
                raise
            status, needed = os.statvfs(self._root), transfer.needed(files)
            free = status.f_bavail * status.f_frsize
            self._reserved.lacking = max(1, needed + self.job.reserve_bytes - free)
            raise full(self._root, needed, free, 0, 0, self.job.source) from None

    def _in_place(self, folder: Folder, problem: str) -> Kept:
        """What somebody else put into the cache, the hub's own tool above all: verified by the names of its blobs."""
        from agent.artifacts import selection  # noqa: PLC0415 - as above

        job = self.job
        commit = folder.commit(job.revision)
        snapshot, names = folder.snapshot(commit), folder.names(commit)
        if not names:
            hint = (
                "copy it from the cache of a machine that has it, or name its files as file:/...; fetch.offline and "
                "HF_HUB_OFFLINE decide whether the hub is asked"
            )
            raise missing(problem or "nothing is there", hint)
        choice = selection.choose(names, job.variant, job.source, pickle=job.pickle)
        chosen = [*choice.companions, *choice.weights]
        if selection.INDEX in choice.companions:
            chosen += selection.shards(names, snapshot / selection.INDEX, job.source)
        files = {name: _placed(snapshot, name) for name in chosen}
        found = self._transferred(self._transfer(folder), Listing(commit, files), chosen)
        return self._keep(folder, commit, found.values(), choice.opened, "")

    def _keep(self, folder: Folder, commit: str, files: Iterable[KeptFile], opened: str, revision: str) -> Kept:
        """Make a variant visible: links, then the revision's name, then the record that it is whole."""
        found, snapshot, job = tuple(sorted(files, key=lambda file: file.name)), folder.snapshot(commit), self.job
        for file in found:
            _link(snapshot / file.name, folder.blobs / file.blob)
        for directory in {(snapshot / file.name).parent for file in found} | {snapshot.parent}:
            cache.sync(directory)
        if revision and revision != commit:
            cache.replace(folder.path / "refs" / revision, commit.encode())
        called = job.repo if job.kind == "hf" else job.source.partition("#")[0]
        kept = Kept(job.source, called, commit, job.variant, snapshot / opened, cache.digest_of(found), found)
        cache.write(folder, kept)
        if folder.kept(commit, job.variant) is None:
            raise unavailable(f"{job.source} was removed from {job.cache} while it was fetched")
        return kept

    # A URL

    def _from_url(self) -> Kept:
        job = self.job
        if job.offline:
            raise missing(f"{job.source} is not on this node, and it may not be fetched: offline", "see fetch.offline")
        folder = job.folder
        wanted = self._patiently(self._ask)
        found = self._transferred(self._transfer(folder), Listing("", {wanted.name: wanted}), [wanted.name])
        return self._keep(folder, _commit(found.values()), found.values(), wanted.name, "main")

    def _ask(self) -> Wanted:
        """How long the file is."""
        job, parts = self.job, urlsplit(self.job.url)
        with asking(self.access, job) as connections:
            answer = connections.get(job.url, {"Range": "bytes=0-0"})
        if answer.status not in {200, 206}:
            raise self.access.refusal(answer.status, answer.headers, job.source, parts.hostname or "")
        said = re.search(r"/(\d{1,18})$", answer.headers.get("content-range", ""))
        size = answer.length if answer.status == 200 else int(said[1]) if said else None
        if size is None:
            raise unavailable(f"{job.source}: {parts.hostname} does not say how long the file is", "")
        name = unquote(parts.path).rpartition("/")[2]
        if not cache.is_plain(name):
            raise missing(f"{job.source}: {name[:80]!r} is no name for a file")
        digest = f"sha256:{job.sha256}" if job.sha256 else ""
        return Wanted(name, job.url, size, digest, job.sha256)

    # Both

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        """Ask until there is an answer, or `stall_seconds` went by with none."""
        began, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                return ask()
            except Again as error:
                wait = max(error.wait, pause)
                if time.monotonic() + wait > began + max(self.job.stall_seconds, error.wait + 1):
                    raise unavailable(f"{self.job.source}: {error}") from None
            until = time.monotonic() + wait
            while time.monotonic() < until:
                self._progress("waiting for the source", 0, 0)
                time.sleep(min(_PERIOD, max(0.0, until - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _progress(self, step: str, done: int, total: int) -> None:
        if (now := time.monotonic()) - self._said_at >= _PERIOD:
            self._said_at = now
            self._say({"progress": [step, done, total]})
            if total:
                self._reserved.left(total - done)


def _placed(snapshot: Path, name: str) -> Wanted:
    """A file of a snapshot that somebody else made: the name of its blob says what it must be."""
    path = snapshot / name
    blob = path.resolve()
    form = {40: "git", 64: "sha256"}.get(len(blob.name), "")
    if not form or not re.fullmatch(r"[0-9a-f]+", blob.name) or blob.parent != (snapshot.parent.parent / "blobs"):
        raise missing(f"{path} is not in the cache as the hub's tools write it", "name it as file:/absolute/path")
    return Wanted(name, "", blob.stat().st_size, f"{form}:{blob.name}", blob.name)


def _link(path: Path, blob: Path) -> None:
    """Link to a blob, at once and relative: a cache may be moved. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(blob, path.parent)
    if path.is_symlink() and str(path.readlink()) == target:
        return
    temporary = cache.beside(path)
    temporary.symlink_to(target)
    temporary.replace(path)


def _commit(files: Iterable[KeptFile]) -> str:
    """Of what comes from a source that knows none: the same for the same contents."""
    form, _, digest = cache.digest_of(tuple(files)).partition(":")
    return digest if form == "sha256" else hashlib.sha256(digest.encode()).hexdigest()


def diagnosed(error: Exception, job: Job, secrets: Sequence[str] = ()) -> Diagnosis:
    """What went wrong, without secrets, wherever they may have got into a message."""
    match error:
        case ArtifactError() | ProfileError():
            found = error.diagnosis
        case OSError() if error.errno in _DISK_REFUSES:
            message = f"{job.source} cannot be kept in {job.cache}: {error.strerror}"
            hint = "free some of that disk, or move directories.cache to a larger one"
            found = refused(DiagnosisCode.DISK_FULL, message, hint).diagnosis
        case OSError():
            where = f" ({error.filename})" if error.filename else ""
            message = f"{job.source} cannot be kept in {job.cache}: {error.strerror or error}{where}"
            found = refused(DiagnosisCode.LAUNCH_FAILED, message, "the agent's user needs to write there").diagnosis
        case _:
            message = f"{job.source}: the fetching process failed: {type(error).__name__}: {error}"
            found = refused(DiagnosisCode.LAUNCH_FAILED, message).diagnosis
    texts = [found.message, found.evidence, found.hint]
    for secret in filter(None, (job.token, *secrets)):
        texts = [text.replace(secret, "***") for text in texts]
    return Diagnosis(found.code, *texts)


def main() -> None:
    job = Job.decode(sys.stdin.buffer.readline())
    _end_with(job.parent)
    os.nice(_NICE)
    output = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not get between the messages

    def say(message: dict[str, Any]) -> None:
        left = json.dumps(message).encode() + b"\n"
        while left:
            left = left[os.write(output, left) :]

    fetcher = Fetcher(job, say)
    threading.Thread(target=_obey, args=(fetcher,), daemon=True).start()
    try:
        kept = fetcher.run()
    except Exception as error:  # noqa: BLE001 - the outermost frame: it is told
        say({"failed": asdict(diagnosed(error, job, fetcher.secrets)), "lacking": fetcher.lacking})
    else:
        say({"fetched": {"path": str(kept.path), "digest": kept.digest, "bytes": kept.bytes}})


def _obey(fetcher: Fetcher) -> None:
    """Read orders. At their end this process ends, whatever its other threads hang in."""
    for line in sys.stdin.buffer:
        with contextlib.suppress(ValueError, KeyError):
            fetcher.throttle.rate = int(json.loads(line)["bytes_per_second"])
    os._exit(0)


def _end_with(parent: int) -> None:
    """End when the daemon does, however it ends and however this process hangs."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - Linux only

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent and os.getppid() != parent:  # it ended before
        os._exit(0)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the daemon is gone
        main()
    os._exit(0)  # without waiting for threads that hang in a disk or a connection
