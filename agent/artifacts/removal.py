"""Takes something out of the cache, so that a death at any line leaves nothing half-visible.

1. The record moves below `removing/`, durably: from then on nobody believes that the artifact is here.
2. What engines and the hub's tools open goes: a snapshot as a whole, by one rename; where others share it, its own
   links, that of the first file first.
3. Contents that nothing needs any more go, each under the lock that whoever fetches it holds.

What was begun and not finished is finished by `finish`. No two of these run at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from agent import failpoints
from agent.artifacts import cache, holdings
from agent.artifacts.cache import Folder, Kept
from agent.artifacts.holdings import INCOMPLETE, NOTES, Holding
from agent.artifacts.locks import Lock

_REMOVING = "removing"


def remove(root: Path, holding: Holding) -> int:
    """Bytes that became free. What is being fetched at the moment stays. Raises `OSError`."""
    folder = holding.folder
    if holding.kept is None:
        freed = _take_out(root, folder, holding.links, holding.contents)
        _tidy(folder)
        return freed
    record = folder.record(holding.kept.commit, holding.kept.variant)
    moved = root / _REMOVING / record.relative_to(root)
    moved.parent.mkdir(parents=True, exist_ok=True)
    record.replace(moved)
    cache.sync(moved.parent)
    cache.sync(record.parent)
    failpoints.hit("removing")
    return _carry_out(root, folder, holding.kept, moved)


def begun(root: Path) -> set[Path]:
    """Folders of repositories from which something was to go that is not gone. Raises `OSError`."""
    records = cache.below(root / _REMOVING / "fetched", 3, ".json")
    return {root / record.parent.parent.name / record.parent.name for record in records}


def finish(root: Path, paths: Iterable[Path]) -> int:
    """Carry out what was begun in these folders, by a dead process or one that failed. Returns the bytes that became
    free. Raises `OSError` in the end, for one that cannot be finished."""
    freed, failed = 0, None
    for path in paths:
        try:
            freed += _finish(root, Folder(root, path.parent.name, path.name))
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed
    if (rest := root / _REMOVING / "snapshots").exists():
        _rmtree(rest)
    return freed


def _finish(root: Path, folder: Folder) -> int:
    freed = 0
    for moved in cache.below(root / _REMOVING / folder.records.relative_to(root), 1, ".json"):
        kept = cache.read(moved)
        if kept is None:
            moved.unlink(missing_ok=True)
        else:
            freed += _carry_out(root, folder, kept, moved)
    return freed


def _carry_out(root: Path, folder: Folder, kept: Kept, moved: Path) -> int:
    others = [other for path in cache.below(folder.records, 1, ".json") if (other := cache.read(path)) is not None]
    snapshot = folder.snapshot(kept.commit)
    shared = {file.name for other in others if other.commit == kept.commit for file in other.files}
    names = [file.name for file in kept.files if file.name not in shared and cache.is_plain(file.name)]
    links = [snapshot / name for name in names]
    needed = {file.blob for other in others for file in other.files}
    contents = [
        folder.blobs / file.blob
        for file in kept.files
        if file.blob not in needed and cache.is_plain(file.blob) and "/" not in file.blob
    ]
    freed = _take_out(root, folder, links, contents)
    _tidy(folder)
    moved.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        moved.parent.rmdir()
    return freed


def _take_out(root: Path, folder: Folder, links: Iterable[Path], contents: Iterable[Path]) -> int:
    going = list(links)
    there = holdings.linked(folder)
    for snapshot in {_snapshot(folder, path) for path in going}:
        if all(path in going for path in there if path.is_relative_to(snapshot)):
            _hide(root, folder, snapshot)
    for path in going:
        path.unlink(missing_ok=True)
    failpoints.hit("removing-contents")
    freed = 0
    still = set(holdings.linked(folder).values())
    for path in contents:
        if path not in still:
            freed += _drop(folder, path)
    return freed


def _snapshot(folder: Folder, path: Path) -> Path:
    return folder.path / "snapshots" / path.relative_to(folder.path / "snapshots").parts[0]


def _hide(root: Path, folder: Folder, snapshot: Path) -> None:
    """The whole directory, at once."""
    if not snapshot.is_dir() or snapshot.is_symlink():
        return
    hidden = root / _REMOVING / "snapshots" / f"{folder.path.name}--{snapshot.name}"
    hidden.parent.mkdir(parents=True, exist_ok=True)
    if hidden.exists():
        _rmtree(hidden)
    with contextlib.suppress(FileNotFoundError):  # somebody else removes it, too
        snapshot.replace(hidden)
        _rmtree(hidden)


def _rmtree(path: Path) -> None:
    """What goes meanwhile is gone as well. Raises other `OSError`s."""
    import shutil  # noqa: PLC0415 - 5 ms that the daemon's start does not pay

    def failed(_function: Callable[..., Any], _path: str, raised: tuple[Any, BaseException, Any]) -> None:
        if not isinstance(raised[1], FileNotFoundError):
            raise raised[1]

    shutil.rmtree(path, onerror=failed)


def _drop(folder: Folder, path: Path) -> int:
    """Bytes of a content that is gone now; 0 where somebody fetches it."""
    lock = Lock(folder.locks / f"{path.name.removesuffix(INCOMPLETE)}.lock")
    if path.parent == folder.blobs and not lock.acquire():
        return 0
    try:
        used = holdings.used(path, path.lstat())
        path.unlink()
        if path.name.endswith(INCOMPLETE):
            path.with_name(path.name.removesuffix(INCOMPLETE) + NOTES).unlink(missing_ok=True)
        return used
    except FileNotFoundError:
        return 0
    finally:
        lock.release()


def _tidy(folder: Folder) -> None:
    """Names of commits that are not here any more, and directories without anything. `Path.glob` of Python 3.11 raises
    where one goes meanwhile."""
    for parent, _, names in os.walk(folder.path / "refs"):
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(OSError, ValueError):  # a name of others may hold anything
                if path.is_file() and not folder.snapshot(path.read_text(encoding="utf-8").strip()).is_dir():
                    path.unlink()
    directories = [Path(parent) for parent, _, _ in os.walk(folder.path, topdown=False)]  # follows no links
    for path in (*directories, folder.records):
        with contextlib.suppress(OSError):
            path.rmdir()
