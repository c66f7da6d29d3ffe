"""file:/absolute/path: a model that lies on the node, a file or a directory with config.json and weights. Nothing is
copied, and there is no digest to check against.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.artifacts.base import ArtifactError, Fetched, SourcePolicy
from agent.models.parts import parts
from agent.status import Diagnosis, DiagnosisCode, Progress

#: Seconds until a look at a path counts as hung: network file systems answer within a few, or not at all.
DEADLINE = 20.0
#: At the top of every directory of a model is one of these files.
MARKS = frozenset({"config.json", "model.bin"})
#: How names end at the top of a directory with something else of models: what it is, says whoever reads it.
_PARTS = ("adapter_config.json", "model_index.json", ".gguf", ".safetensors")
#: Files below the directory of a model; the largest ones have some hundred.
MOST_FILES = 10_000


async def resolve(rest: str, policy: SourcePolicy) -> Fetched:
    """The file, where it is regular, readable and inside the allowed directories; or the directory, where all of its
    files are. Raises `ArtifactError`.
    """
    try:
        async with asyncio.timeout(DEADLINE):
            return await asyncio.to_thread(_look, Path(rest), policy)
    except TimeoutError:
        message = f"{rest} did not answer within {DEADLINE:g} s"
        raise ArtifactError(
            Diagnosis(DiagnosisCode.LAUNCH_FAILED, message, hint="its file system is slow or hangs")
        ) from None


async def fetch(rest: str, policy: SourcePolicy, progress: Callable[[Progress], None]) -> Fetched:
    """The same: the file is where it is. Raises `ArtifactError`."""
    del progress
    return await resolve(rest, policy)


def _look(path: Path, policy: SourcePolicy) -> Fetched:
    if not path.is_absolute():
        raise _missing(f"{path} is not an absolute path")
    try:
        folder = path.is_dir()
        if folder:
            _allow(Path(os.path.realpath(path, strict=True)), path, policy)
        size = sum(_size(file, policy) for file in (_files(path) if folder else parts(path)))
    except ValueError as error:
        raise _missing(f"{path}: {error}") from None
    except OSError as error:
        reason = "it is a loop of symbolic links" if error.errno == errno.ELOOP else error.strerror
        where = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        raise _missing(f"{path} cannot be opened: {reason}{where}") from None
    return Fetched(path, "", size, f"file:{path}")


def _files(folder: Path) -> Iterator[Path]:
    """What engines may open below a model's directory; not what tools hide there (.git, .cache). Nothing where it is no
    model's: there may be a whole file system below it. Raises `ArtifactError`.
    """
    top = os.listdir(folder)  # noqa: PTH208 - names are what is wanted
    if MARKS.isdisjoint(top):
        if not any(name.endswith(_PARTS) for name in top):
            raise _missing(f"{folder} has no config.json", hint="name a model's directory or GGUF file")
        return
    count = 0
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            count += 1
            if count > MOST_FILES:
                raise _missing(f"{folder} has more than {MOST_FILES} files; it is no model's directory")
            if not name.startswith("."):
                yield Path(parent, name)


def _raise(error: OSError) -> None:
    raise error


def _size(path: Path, policy: SourcePolicy) -> int:
    """Bytes of one file. Links are followed before the directories are checked: a link may point out of them."""
    real = Path(os.path.realpath(path, strict=True))  # unlike Path.resolve, an OSError for a loop in every Python
    _allow(real, path, policy)
    status = real.stat()
    if not stat.S_ISREG(status.st_mode):
        raise _missing(f"{path} is not a regular file")
    return status.st_size


def _allow(real: Path, path: Path, policy: SourcePolicy) -> None:
    """Raises `ArtifactError` for what lies outside of the allowed directories."""
    if policy.directories is not None and not any(
        real.is_relative_to(directory.resolve()) for directory in policy.directories
    ):
        allowed = ", ".join(map(str, policy.directories)) or "none"
        message = f"the node policy does not allow models in {real.parent}"
        hint = f"policy.model_directories allows: {allowed}"
        raise ArtifactError(Diagnosis(DiagnosisCode.POLICY_DENIED, message, str(path), hint))


def _missing(message: str, hint: str = "") -> ArtifactError:
    return ArtifactError(Diagnosis(DiagnosisCode.MODEL_MISSING, message, hint=hint))
