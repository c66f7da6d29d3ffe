"""Machines as text: the files of /sys, /proc and /dev that a vendor's part reads, one machine a file under trees/.

A line is a path, a tab, and the content. In it, \\n and \\0 stand for a line break and a zero byte; "-> target" makes a
link. Lines that begin with # say what machine it is, and where its layout is known from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TREES = Path(__file__).parent / "trees"


def plant(name: str, root: Path) -> Path:
    """Unpack the machine below `root`."""
    for line in (TREES / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            path, _, content = line.partition("\t")
            write(root, path, content.replace("\\n", "\n").replace("\\0", "\0"))
    return root


def write(root: Path, path: str, content: str) -> None:
    """Make or replace one file or link."""
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    if content.startswith("-> "):
        place.symlink_to(content.removeprefix("-> "))
    else:
        place.write_text(content + "\n" if content else "", encoding="utf-8")


@contextmanager
def as_nobody() -> Iterator[None]:
    """As a user whom the permissions of files hold for: what root may do says nothing."""
    if os.geteuid() != 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
