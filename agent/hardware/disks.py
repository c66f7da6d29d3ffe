"""The file systems that hold the agent's directories."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.hardware.inventory import Disk
from agent.mounts import Mounted, mounted


def disks(directories: Mapping[str, Path], root: Path = Path("/")) -> tuple[Disk, ...]:
    """One entry a purpose ("state", "cache", ...); a directory that does not exist yet counts as its nearest parent
    that does. What cannot be looked at is left out.

    On a network file system whose server is gone, this hangs: the caller runs it in a thread, with a deadline. `root`
    is where /proc is found.
    """
    mounts = []
    with contextlib.suppress(OSError):
        mounts = list(mounted((root / "proc/self/mountinfo").read_bytes()))
    found = (_disk(purpose, path, mounts) for purpose, path in directories.items())
    return tuple(disk for disk in found if disk is not None)


def _disk(purpose: str, path: Path, mounts: Sequence[Mounted]) -> Disk | None:
    for place in (path.absolute(), *path.absolute().parents):
        try:
            real, size = place.resolve(strict=True), os.statvfs(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, RuntimeError):  # not allowed to look, a server that has forgotten the file, a loop of links
            return None
        # The deepest mount holds it; of several on one place, the last hides the others.
        above = [
            (len(Path(mount.point).parts), order, mount.kind)
            for order, mount in enumerate(mounts)
            if real.is_relative_to(mount.point)
        ]
        return Disk(
            purpose=purpose,
            path=str(path),
            filesystem=max(above)[2] if above else "",
            total=size.f_blocks * size.f_frsize,
            free=size.f_bavail * size.f_frsize,
        )
    return None
