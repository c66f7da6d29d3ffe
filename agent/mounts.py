"""What /proc/PID/mountinfo says: proc_pid_mountinfo(5)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple


class Mounted(NamedTuple):
    """One mount: what of its file system is seen (`root`), where (`point`), and that file system's type and options."""

    root: str
    point: str
    kind: str
    options: str


def mounted(mountinfo: bytes) -> Iterator[Mounted]:
    """In the order of mounting; what is no line of it is left out."""
    for line in os.fsdecode(mountinfo).split("\n"):
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) > 4 and len(right) > 2:
            yield Mounted(_plain(left[3]), _plain(left[4]), right[0], right[2])


def _plain(path: str) -> str:
    r"""Blanks, newlines and backslashes are written as \040, \012 and \134."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), path)
