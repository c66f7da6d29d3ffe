"""What the cache holds, file by file: who shares a content with whom, and what removing something would free.

A holding is a variant with its record, the parts of pulls that did not come to their end, or what other tools put into
a repository's folder: the hub's own use the same layout, and may share the cache.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from agent.artifacts import cache
from agent.artifacts.cache import Folder, Kept
from agent.frozen import frozen

#: What fetching leaves beside a file that is not whole.
INCOMPLETE, NOTES = ".incomplete", ".incomplete.parts"


@frozen
class Holding:
    """Something that can be removed as one. Two of them may need the same content."""

    folder: Folder
    kept: Kept | None  # None: no record names it
    whole: bool  # it has a record, and is as it was verified
    links: tuple[Path, ...]  # files below `snapshots` that are its alone
    contents: Mapping[Path, int]  # files that it needs -> bytes on the disk
    expected: int  # bytes of all its files when they are whole, as far as that is known
    touched_at: float  # Unix seconds: last used; of what has no record, last written
    pinned: bool = False
    foreign: bool = False  # other tools put it there

    @property
    def key(self) -> str:
        """The same as long as it is there, and another for each."""
        place = f"{self.folder.path.parent.name}/{self.folder.path.name}"
        if self.kept is not None:
            return f"{place}@{self.kept.commit}:{self.kept.variant}"
        return f"{place}@" if self.foreign else place

    @property
    def bytes(self) -> int:
        """On the disk."""
        return sum(self.contents.values())


class _Size(NamedTuple):
    used: int  # bytes on the disk
    whole: int  # bytes when it is whole
    written_at: float


def scan(root: Path) -> tuple[Holding, ...]:
    """All of the cache; last used first. What goes while one looks is not seen."""
    records: dict[Path, list[Kept]] = {}
    for kept in cache.contents(root):
        records.setdefault(folder_of(root, kept).path, []).append(kept)
    paths = set(records) | {path for path in cache.below(root, 2) if _is_folder(path)}
    found = [
        holding
        for path in paths
        for holding in _of_folder(Folder(root, path.parent.name, path.name), records.get(path, []))
    ]
    return tuple(sorted(found, key=lambda holding: (-holding.touched_at, holding.key)))


def folder_of(root: Path, kept: Kept) -> Folder:
    """Where it lies."""
    kind, name = kept.path.relative_to(root).parts[:2]
    return Folder(root, kind, name)


def current(holding: Holding) -> Holding | None:
    """With its pin as it is now; None where its record is gone. Raises `OSError`."""
    if holding.kept is None:
        return holding
    if not holding.folder.record(holding.kept.commit, holding.kept.variant).exists():
        return None
    return replace(holding, pinned=_pin(holding.folder, holding.kept).exists())


def pin(holding: Holding, *, pinned: bool) -> None:
    """Say, durably and beside its record, that it is not to be removed; or that it may be. Raises `OSError`."""
    assert holding.kept is not None  # others cannot be named for long
    path = _pin(holding.folder, holding.kept)
    if pinned:
        cache.replace(path, b"")
    else:
        path.unlink(missing_ok=True)
        cache.sync(path.parent)


def _pin(folder: Folder, kept: Kept) -> Path:
    return folder.record(kept.commit, kept.variant).with_suffix(".pin")


def linked(folder: Folder) -> dict[Path, Path]:
    """Each file of the snapshots, and the content that it stands for: of a link its blob, of another file itself."""
    found = {}
    for parent, _, names in os.walk(folder.path / "snapshots"):  # follows no links
        for name in names:
            path = Path(parent, name)
            with contextlib.suppress(OSError):
                target = Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path
                found[path] = target if target.parent == folder.blobs else path
    return found


def used(path: Path, status: os.stat_result) -> int:
    """Bytes of a content on the disk. What is being fetched has its final length from the beginning, and holes."""
    return min(status.st_blocks * 512, status.st_size) if path.name.endswith(INCOMPLETE) else status.st_size


def _is_folder(path: Path) -> bool:
    return (path / "blobs").exists() or (path / "snapshots").exists()


def _of_folder(folder: Folder, records: Sequence[Kept]) -> Iterator[Holding]:
    links = linked(folder)
    sizes = dict(_sizes([*_files(folder.blobs), *(path for path, content in links.items() if path == content)]))
    claims: dict[Path, int] = {}  # file of a snapshot -> number of records that name it
    for kept in records:
        for path in _named(folder, kept):
            claims[path] = claims.get(path, 0) + 1
    for kept in records:
        blobs = {folder.blobs / file.blob for file in kept.files}
        yield Holding(
            folder, kept, whole=folder.kept(kept.commit, kept.variant) is not None,
            links=tuple(path for path in _named(folder, kept) if claims[path] == 1),
            contents={blob: sizes[blob].used for blob in blobs if blob in sizes},
            expected=kept.bytes, touched_at=kept.used_at, pinned=_pin(folder, kept).exists(),
        )  # fmt: skip
    named = {folder.blobs / file.blob for kept in records for file in kept.files}
    loose = {path: content for path, content in links.items() if path not in claims}
    # What a record names may be linked from elsewhere too: then it is needed there as well.
    theirs = {path for path in {*loose.values(), *(sizes.keys() - named)} if path in sizes and not _ours(path, loose)}
    if theirs or loose:
        yield _rest(folder, {path: sizes[path] for path in theirs}, tuple(loose))
    if parts := sizes.keys() - named - theirs:
        yield _rest(folder, {path: sizes[path] for path in parts})


def _ours(path: Path, loose: Mapping[Path, Path]) -> bool:
    """Whether a content without a record is of a pull of ours, which links what it brought when it has all of it."""
    if path.name.endswith(INCOMPLETE):
        return path.with_name(path.name.removesuffix(INCOMPLETE) + NOTES).exists()
    return path not in loose.values()


def _rest(folder: Folder, sizes: Mapping[Path, _Size], links: tuple[Path, ...] | None = None) -> Holding:
    return Holding(
        folder, None, whole=False, links=links or (), contents={path: size.used for path, size in sizes.items()},
        expected=sum(size.whole for size in sizes.values()),
        touched_at=max((size.written_at for size in sizes.values()), default=0.0), foreign=links is not None,
    )  # fmt: skip


def _named(folder: Folder, kept: Kept) -> list[Path]:
    return [folder.snapshot(kept.commit) / file.name for file in kept.files]


def _files(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [entry for entry in path.iterdir() if not entry.name.endswith(NOTES)]
    return []


def _sizes(paths: Iterable[Path]) -> Iterator[tuple[Path, _Size]]:
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                yield path, _Size(used(path, status), status.st_size, status.st_mtime)
