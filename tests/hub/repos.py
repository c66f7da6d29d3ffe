"""What a hub of the tests holds: repositories with commits and files, and how the API describes them."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

#: Files from this size on are kept in LFS, and served by the CDN; smaller ones too, where their name says so.
LFS_BYTES = 1024 * 1024
LFS_NAMES = ("*.safetensors", "*.gguf", "*.bin", "*.pt")
CHUNK = 64 * 1024


@dataclass(frozen=True)
class File:
    """A file's content: bytes, or a path where they lie. `digest` is announced instead of the true one."""

    content: bytes | Path
    digest: str = ""
    lfs: bool = True

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @cached_property
    def sha256(self) -> str:
        if self.digest:
            return self.digest
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        with self.content.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    @cached_property
    def oid(self) -> str:
        """Git's name of the blob; of its pointer, if it is in LFS."""
        blob = self.sha256.encode() if self.lfs or isinstance(self.content, Path) else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield from (self.content[at : min(end, at + CHUNK)] for at in range(start, end, CHUNK))
            return
        with self.content.open("rb") as opened:
            opened.seek(start)
            while start < end and (piece := opened.read(min(CHUNK, end - start))):
                start += len(piece)
                yield piece


@dataclass
class Repo:
    """A model. Each change of its files is a commit; `main` is the last one."""

    name: str
    private: bool = False
    gated: str = ""  # "", auto, manual
    granted: set[str] = field(default_factory=set)  # tokens that may read it, where it is private or gated
    card: dict[str, Any] = field(default_factory=dict)  # front matter of the model card
    downloads: int = 0
    tags: tuple[str, ...] = ()  # besides those that follow from files and card
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branches and tags

    def commit(self, files: Mapping[str, bytes | Path | File | None]) -> str:
        """Add, replace and (None) remove files; the new commit's name."""
        now = dict(self.commits.get(self.refs.get("main", ""), {}))
        for path, content in files.items():
            now.pop(path, None)
            if content is not None:
                now[path] = content if isinstance(content, File) else _file(path, content)
        listed = json.dumps([len(self.commits), [(path, file.oid) for path, file in sorted(now.items())]])
        sha = hashlib.sha1(listed.encode()).hexdigest()
        self.commits[sha], self.refs["main"] = dict(sorted(now.items())), sha
        return sha

    def files(self, revision: str) -> tuple[str, dict[str, File]] | None:
        """The commit that a branch, tag, commit or the beginning of one means, and what is in it."""
        sha = self.refs.get(revision, revision)
        found = [each for each in self.commits if len(sha) >= 7 and each.startswith(sha)]
        return (found[0], self.commits[found[0]]) if len(found) == 1 else None


def _file(path: str, content: bytes | Path) -> File:
    named = any(fnmatch.fnmatch(path, pattern) for pattern in LFS_NAMES)
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    return File(content, lfs=named or size >= LFS_BYTES)


def refs_of(repo: Repo) -> dict[str, Any]:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in sorted(repo.refs.items())
    ]
    return {"branches": branches, "converts": [], "tags": []}


def entry_of(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    return entry | ({"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 134}} if file.lfs else {})


def tags_of(repo: Repo, files: Mapping[str, File]) -> list[str]:
    """As the hub makes them. It infers relations to base models that cards do not name; here the card names them."""
    base, relation = repo.card.get("base_model"), repo.card.get("base_model_relation")
    bases = base if isinstance(base, list) else [base] if base else []
    formats = [kind for kind in ("gguf", "safetensors") if any(name.endswith(f".{kind}") for name in files)]
    related = [f"base_model:{name}" for name in bases]
    return [*formats, *repo.tags, *related, *(f"base_model:{relation}:{name}" for name in bases if relation)]


#: What a listing has of each model where nothing else is asked for.
LISTED = ("likes", "private", "downloads", "tags", "createdAt")


def listed_of(repo: Repo, expand: Sequence[str]) -> dict[str, Any]:
    """A line of the listing: `_id`, `id`, and the properties that were asked for."""
    sha = repo.refs["main"]
    whole = info_of(repo, sha, repo.commits[sha], blobs=False)
    return {name: whole[name] for name in ("_id", "id", *(expand or LISTED)) if name in whole}


def info_of(repo: Repo, sha: str, files: Mapping[str, File], *, blobs: bool) -> dict[str, Any]:
    def sibling(path: str, file: File) -> dict[str, Any]:
        found: dict[str, Any] = {"rfilename": path}
        if blobs:
            found |= {"size": file.size, "blobId": file.oid}
            found |= {"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": 134}} if file.lfs else {}
        return found

    return {
        "_id": "0" * 24, "id": repo.name, "modelId": repo.name, "author": repo.name.partition("/")[0], "sha": sha,
        "private": repo.private, "gated": repo.gated or False, "disabled": False, "downloads": repo.downloads,
        "likes": 0,
        "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
        "tags": tags_of(repo, files), "cardData": repo.card,
        "siblings": [sibling(path, file) for path, file in files.items()], "spaces": [], "usedStorage": 0,
    }  # fmt: skip
