"""The cache of fetched weights, in the layout of the hub's own tools, so that these and the engines use it offline.

    hub/models--OWNER--NAME/blobs/DIGEST            content, named by its digest as the hub announces it
    hub/models--OWNER--NAME/snapshots/COMMIT/FILE   links to blobs: what an engine opens
    hub/models--OWNER--NAME/refs/REVISION           the commit that a branch or tag was, when it was fetched
    hub/.locks/models--OWNER--NAME/DIGEST.lock      held (flock) while a blob is being fetched
    urls/..., s3/..., oci/...                       the same for other sources, a folder for each
    fetched/...                                     what is whole: written last, and the only thing that is believed

A file that changed after it was verified has another size, time or inode than its record: it is verified anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.frozen import frozen

#: Bytes of a record: a name and a digest for each file of a model.
_MOST_RECORD = 16 * 1024**2
#: A model has less files.
MOST_FILES = 10_000
_COMMIT = re.compile(r"[0-9a-f]{40,64}")


@frozen
class KeptFile:
    """One verified file of a snapshot."""

    name: str  # in the repository
    blob: str  # name of its content
    digest: str  # "sha256:..."; "git:..." for small files of a hub, "md5:..." where a source knows nothing better
    size: int
    modified: int  # ns
    inode: int


@frozen
class Kept:
    """A variant that is whole on this node."""

    source: str  # the reference by which it was fetched
    repo: str  # "owner/name", or the URL
    commit: str
    variant: str
    path: Path  # what an engine opens: a directory, or the first GGUF file
    digest: str
    files: tuple[KeptFile, ...]
    used_at: float = 0.0  # Unix seconds: when it was fetched, or last asked for before a start
    verified_at: float = 0.0  # Unix seconds: when its record was written

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


class Folder:
    """One repository's part of the cache, or one URL's."""

    def __init__(self, root: Path, kind: str, name: str) -> None:
        self.path = root / kind / name
        self.locks = root / kind / ".locks" / name
        self.records = root / "fetched" / kind / name
        self.blobs = self.path / "blobs"

    def snapshot(self, commit: str) -> Path:
        return self.path / "snapshots" / commit

    def commit(self, revision: str) -> str:
        """The commit that a revision was; "" where that is not known."""
        if _COMMIT.fullmatch(revision) and self.path.parent.name == "hub":  # elsewhere a tag may look like one
            return revision
        try:
            text = (self.path / "refs" / revision).read_text(encoding="utf-8")[:65].strip()
        except (OSError, ValueError):
            return ""
        return text if _COMMIT.fullmatch(text) else ""

    def record(self, commit: str, variant: str) -> Path:
        """Where it is written that a variant is whole. Names of variants differ in case, some file systems do not."""
        key = hashlib.sha256(f"{commit}:{variant}".encode()).hexdigest()[:16]
        return self.records / f"{key}.json"

    def kept(self, commit: str, variant: str) -> Kept | None:
        """The variant, if it is whole and no file of it changed since it was verified."""
        kept = read(self.record(commit, variant))
        if kept is None or (kept.commit, kept.variant) != (commit, variant):
            return None
        snapshot = self.snapshot(commit)
        return kept if all(_unchanged(snapshot / file.name, file) for file in kept.files) else None

    def names(self, commit: str) -> list[str]:
        """The files of a snapshot, whoever put them there: paths in it, sorted, at most `MOST_FILES`."""
        snapshot = self.snapshot(commit)
        paths = (Path(parent, name) for parent, _, names in os.walk(snapshot) for name in names)
        found = (str(path.relative_to(snapshot)) for path in paths if path.is_file())
        return sorted(found)[:MOST_FILES] if commit else []

    def verified(self) -> dict[str, KeptFile]:
        """What is known of blobs that are as they were when they were verified, by their names."""
        found: dict[str, KeptFile] = {}
        for record in below(self.records, 1, ".json"):
            kept = read(record)
            for file in kept.files if kept else ():
                if file.blob not in found and _unchanged(self.blobs / file.blob, file):
                    found[file.blob] = file
        return found


def repository(root: Path, repo: str) -> Folder:
    return Folder(root, "hub", "models--" + repo.replace("/", "--"))


def of_url(root: Path, url: str) -> Folder:
    return Folder(root, "urls", _name(url.partition("://")[2].partition("/")[0], url))


def of_kind(root: Path, kind: str, repo: str) -> Folder:
    """Of a source that has a folder for each of its models."""
    return Folder(root, kind, _name(repo, repo))


def _name(readable: str, exact: str) -> str:
    """Of a folder: part for people, part so that it is one of its own."""
    return f"{re.sub(r'[^A-Za-z0-9.-]', '-', readable)[:100]}--{hashlib.sha256(exact.encode()).hexdigest()[:24]}"


def identify(path: Path, name: str, digest: str) -> KeptFile:
    """The record of a blob that was verified. Raises `OSError`."""
    status = path.stat()
    return KeptFile(name, path.name, digest, status.st_size, status.st_mtime_ns, status.st_ino)


def digest_of(files: tuple[KeptFile, ...]) -> str:
    """One digest for a model: its file's, or that of the sorted lines `digest name` of several."""
    if len(files) == 1:
        return files[0].digest
    lines = "".join(sorted(f"{file.digest} {file.name}\n" for file in files))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def is_plain(name: str) -> bool:
    """Whether a file of a source may have this name here: it stays inside of its snapshot, whatever it is."""
    parts = name.split("/")
    return (
        name.isprintable()
        and "\\" not in name
        and len(name.encode()) <= 500
        and not any(part in {"", ".", ".."} or len(part.encode()) > 200 for part in parts)
    )


def write(folder: Folder, kept: Kept) -> None:
    """Say that it is whole: durable, and at once or not at all. Raises `OSError`."""
    data = asdict(kept) | {"path": str(kept.path.relative_to(folder.path)), "verified_at": time.time()}
    del data["used_at"]
    replace(folder.record(kept.commit, kept.variant), json.dumps(data).encode())


def replace(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all, durably. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def beside(path: Path) -> Path:
    """A name in the same folder for what becomes `path`, nobody else's: not even that of a process in another container
    which shares the cache and has our number.
    """
    return path.with_name(f".{path.name[:150]}.{secrets.token_hex(8)}")


def sync(directory: Path) -> None:
    """Make the names in a directory durable. Raises `OSError`."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def touch(folder: Folder, kept: Kept) -> None:
    """Remember that it is used now. A cache that cannot be written is used as it is."""
    with contextlib.suppress(OSError):
        os.utime(folder.record(kept.commit, kept.variant))


def contents(root: Path) -> tuple[Kept, ...]:
    """All that was fetched to its end, whole by now or not; last used first."""
    found = [kept for path in below(root / "fetched", 3, ".json") if (kept := read(path)) is not None]
    return tuple(sorted(found, key=lambda kept: -kept.used_at))


def below(path: Path, depth: int, ending: str = "") -> list[Path]:
    """What lies that many directories deep, with a name that ends so. What goes while one looks is not seen, nor what
    may not be opened: `Path.glob` of Python 3.11 raises for the first. Raises other `OSError`s of the disk."""
    try:
        found = list(path.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    if depth > 1:
        return [one for each in found for one in below(each, depth - 1, ending)]
    return [one for one in found if one.name.endswith(ending)]


def read(record: Path) -> Kept | None:
    """None for what is not there, damaged, or not a record."""
    try:
        if (status := record.stat()).st_size > _MOST_RECORD:
            return None
        data: dict[str, Any] = json.loads(record.read_bytes())
        files = tuple(KeptFile(**file) for file in data["files"])
        kind, name = record.parent.parent.name, record.parent.name
        path = record.parents[3] / kind / name / data["path"]
        return Kept(**{**data, "files": files, "path": path, "used_at": status.st_mtime})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _unchanged(path: Path, file: KeptFile) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    seen = (status.st_size, status.st_mtime_ns, status.st_ino)
    return stat.S_ISREG(status.st_mode) and seen == (file.size, file.modified, file.inode)
