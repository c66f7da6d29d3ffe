"""The files of a model: a GGUF may be split into parts that are named after each other."""

from __future__ import annotations

import os
import re
from pathlib import Path

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf")


def is_split(path: str) -> bool:
    """Whether the model that `path` opens has more files than that."""
    return _PART.fullmatch(os.path.basename(path)) is not None  # noqa: PTH119 - planning asks it for each candidate


def parts(path: Path) -> tuple[Path, ...]:
    """All files of the model that `path` opens, whether they exist or not. Raises `ValueError` for a later part."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    if int(match["number"]) != 1:
        raise ValueError(f"it is part {int(match['number'])} of a split model: name the first one, -00001-of-")
    total = int(match["total"])
    return tuple(path.with_name(f"{match['stem']}-{n:05}-of-{total:05}.gguf") for n in range(1, total + 1))
