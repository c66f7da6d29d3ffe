"""Small files of /proc and /sys, read without surprises.

Any of them may be missing, empty, hold garbage, or fail with EIO, EPERM or EBUSY while a driver is in trouble: what
cannot be read is "" or None, and nothing here raises. A read may block as long as the driver behind the file does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path


def text(path: Path) -> str:
    """Without the white space around it; "" when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """A whole number, decimal or 0x…; None when the file is missing or says something else ("max")."""
    return integer(text(path))


def integer(value: str) -> int | None:
    """The same, of text that is at hand."""
    try:
        return int(value, 16 if value.startswith("0x") else 10)
    except ValueError:
        return None


def table(path: Path) -> dict[str, int]:
    """Lines of a name and a number each, as in a cgroup's memory.stat and in KFD's `properties`."""
    rows = (line.split() for line in text(path).splitlines())
    pairs = ((row[0], integer(row[1])) for row in rows if len(row) == 2)
    return {name: value for name, value in pairs if value is not None}


def folders(path: Path, pattern: str = "*") -> list[Path]:
    """What is in a folder and matches, in the order of the numbers in the names (card2 before card10)."""
    try:
        found = list(path.glob(pattern))
    except OSError:
        return []
    return sorted(found, key=lambda entry: [int(part) if part.isdecimal() else part for part in _parts(entry.name)])


def _parts(name: str) -> list[str]:
    """Text and digits in turn, text first, so that any two names compare."""
    return re.split(r"([0-9]+)", name)


def link(path: Path) -> str:
    """What a symbolic link says; "" when it is none."""
    try:
        return str(path.readlink())
    except OSError:
        return ""


def accessible(path: Path) -> bool:
    """Whether this process may open a device file for reading and writing.

    access(2) asks the permission bits and, in a container, the device cgroup too (the kernel's `inode_permission`), and
    unlike open(2) it calls no driver: to open a GPU's file may wake the GPU up, or hang.
    """
    return os.access(path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids)
