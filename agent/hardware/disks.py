"""The file systems that hold the agent's directories."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent.hardware import sysfs
from agent.hardware.inventory import Disk


def disks(directories: Mapping[str, Path], root: Path = Path("/")) -> tuple[Disk, ...]:
    """One entry a purpose ("state", "cache", ...); a directory that does not exist yet counts as its nearest parent
    that does. What cannot be looked at is left out.

    On a network file system whose server is gone, this hangs: the caller runs it in a thread, with a deadline. `root`
    is where /proc is found.
    """
    mounts = list(_mounts(sysfs.text(root / "proc/self/mountinfo")))
    found = (_disk(purpose, path, mounts) for purpose, path in directories.items())
    return tuple(disk for disk in found if disk is not None)


def _disk(purpose: str, path: Path, mounts: list[tuple[str, str]]) -> Disk | None:
    for place in (path.absolute(), *path.absolute().parents):
        try:
            real, size = place.resolve(strict=True), os.statvfs(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, RuntimeError):  # not allowed to look, a server that has forgotten the file, a loop of links
            return None
        # The deepest mount holds it; of several on one place, the last hides the others.
        above = [
            (len(Path(point).parts), order, kind)
            for order, (point, kind) in enumerate(mounts)
            if real.is_relative_to(point)
        ]
        return Disk(
            purpose=purpose,
            path=str(path),
            filesystem=max(above)[2] if above else "",
            total=size.f_blocks * size.f_frsize,
            free=size.f_bavail * size.f_frsize,
        )
    return None


def _mounts(mountinfo: str) -> Iterator[tuple[str, str]]:
    """(mount point, file system type), in the order of mounting. Format: proc_pid_mountinfo(5)."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ", 1)[0]
        if len(fields) > 4 and kind:
            yield re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]), kind
