"""Finding an engine's native executable, and asking it for its version once."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

#: Seconds. A large binary on a cold network disk needs some; one that hangs must not hold planning up.
VERSION_DEADLINE = 10.0


def configured_or_on_path(configured: Sequence[str] | None, name: str) -> tuple[tuple[str, ...], str] | None:
    """The argv prefix and where it comes from ("config", "path"). A configured one that is no executable file is
    not replaced by another: the operator's choice is kept, and None says that it cannot run.
    """
    if configured:
        found = shutil.which(configured[0])
        return ((os.path.abspath(found), *configured[1:]), "config") if found else None  # noqa: PTH100 - keeps links
    found = shutil.which(name)
    return ((os.path.abspath(found),), "path") if found else None  # noqa: PTH100 - keeps links


def version(argv: tuple[str, ...], pattern: re.Pattern[str]) -> str:
    """What `argv --version` says, by the pattern's first group; "unknown" where it fails or does not answer in time.

    Remembered until the file changes.
    """
    try:
        file = Path(argv[0]).stat()
    except OSError:
        return "unknown"
    return _version(argv, pattern, (file.st_ino, file.st_size, file.st_mtime_ns))


@functools.lru_cache(maxsize=32)
def _version(argv: tuple[str, ...], pattern: re.Pattern[str], _file: tuple[int, ...]) -> str:
    try:
        done = subprocess.run(
            [*argv, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=VERSION_DEADLINE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    match = pattern.search(done.stdout.decode(errors="replace"))
    return match[1].strip() if match else "unknown"
