"""Model profiles for the daemon: cheap checks here, headers in a short-lived subprocess, answers remembered.

Files are untrusted, their storage may hang, and a hub is a stranger: nothing is opened that could block (FIFOs,
devices), every step has a deadline, and the memory of parsers and connections is another process's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import stat
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from agent.models.errors import ProfileError
from agent.models.parts import parts
from agent.models.profile import ModelProfile
from agent.models.repository import Question, Related, Repository
from agent.status import Diagnosis, DiagnosisCode

__all__ = ["ProfileError", "Profiles"]

#: Seconds. A header is read in 0.3 s from a warm cache; the rest is for disks that must spin up and network storage.
DEADLINE = 30.0
#: Seconds that a killed inspection has to be gone, before it is left to the kernel.
KILL_DEADLINE = 2.0
#: Profiles kept, least recently used first out: a node serves a handful of models.
REMEMBERED = 64

#: Entries of a model's directory.
MOST_FILES = 10_000

#: Bytes of a GGUF file's fixed part: magic, version, number of tensors, number of keys.
_START = 24

#: Identity of a file's content, as far as the file system tells: path, size, mtime in ns, inode.
Fingerprint = tuple[str, int, int, int]

#: Seconds that what a hub has is taken for what it still has, and how many of its answers are kept.
FRESH = 300.0
REMEMBERED_ANSWERS = 32
#: Seconds beyond a question's own bound: the process starts, parses what came last, and answers.
_MARGIN = 5.0

_ROOT = str(Path(__file__).parent.parent.parent)
_ERROR = TypeAdapter(dict[Annotated[str, Field(pattern="^(code|message|hint)$")], str])
#: What of the environment says how strangers are reached: proxies, and whose certificates are trusted.
_NETWORK = (
    "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip

T = TypeVar("T")


class Profiles:
    """Profiles by file content. Safe for use by several tasks of one event loop."""

    def __init__(self) -> None:
        self._remembered: OrderedDict[tuple[Fingerprint, ...], ModelProfile] = OrderedDict()
        self._answers: OrderedDict[tuple[str, Question, int], tuple[float, Any]] = OrderedDict()

    async def profile(self, path: Path) -> ModelProfile:
        """What the model at `path` (all its parts) is. Raises `ProfileError`."""
        try:
            async with asyncio.timeout(DEADLINE):
                key = await asyncio.to_thread(_check_all, path)
                if (known := self._remembered.get(key)) is None:
                    known = await _inspect(_profiles, [str(path)], f"the header of {path}")
        except TimeoutError:
            message = f"the header of {path} could not be read within {DEADLINE:g} s"
            raise ProfileError(
                Diagnosis(DiagnosisCode.LAUNCH_FAILED, message, hint="its storage is slow or hangs")
            ) from None
        self._remembered[key] = known
        self._remembered.move_to_end(key)
        while len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return known

    async def remote(self, question: Question, token: str = "") -> Repository:
        """What a hub has: its variants with their profiles, from headers alone. Raises `ProfileError`.

        The token reaches the subprocess in its environment; nothing else sees it.
        """
        return await self._asked("--hub", _repositories, question, token)

    async def quantized(self, question: Question, token: str = "") -> Related:
        """The quantized forms of a model that a hub lists. Raises `ProfileError`. The token: as above."""
        return await self._asked("--quantized", _related, question, token)

    async def _asked(self, what: str, form: Callable[[], TypeAdapter[T]], question: Question, token: str) -> T:
        key, now = (what, question, hash(token)), asyncio.get_running_loop().time()
        if (known := self._answers.get(key)) is not None and now - known[0] < FRESH:
            found: T = known[1]
            return found
        seconds = question.bounds.seconds
        variables = {name: value for name in _NETWORK if (value := os.environ.get(name))}
        variables |= {"MALLOC_ARENA_MAX": "2"}  # arenas of its threads count against the address space
        variables |= {"HF_TOKEN": token} if token else {}
        arguments = [what, json.dumps(asdict(question))]
        try:
            async with asyncio.timeout(seconds + _MARGIN):
                found = await _inspect(form, arguments, f"hf:{question.repo}", variables)
        except TimeoutError:
            message = f"hf:{question.repo} could not be read from {question.endpoint} within {seconds:g} s"
            raise _refusal(DiagnosisCode.SOURCE_UNAVAILABLE, message, "try again later") from None
        self._answers[key] = (now, found)
        self._answers.move_to_end(key)
        while len(self._answers) > REMEMBERED_ANSWERS:
            self._answers.popitem(last=False)
        return found


def _check_all(path: Path) -> tuple[Fingerprint, ...]:
    """Refuse what is no model without parsing it, and identify each file's content. Raises `ProfileError`."""
    if os.path.isdir(path):  # noqa: PTH112 - `Path.is_dir` raises where the parent may not be searched
        return _check_folder(path)
    try:
        files = parts(path)
    except ValueError as error:
        raise _refusal(DiagnosisCode.MODEL_UNSUPPORTED, f"{path}: {error}") from None
    return tuple(_check(file, len(files)) for file in files)


def _check_folder(path: Path) -> tuple[Fingerprint, ...]:
    """A model in Hugging Face's layout: whatever file changes, it is another model."""
    found = []
    try:
        for directory in (path, path / "1_Pooling"):
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name) if directory.is_dir() else []
            if len(entries) > MOST_FILES:
                message = f"{path} has {len(entries)} entries; a model has less than {MOST_FILES}"
                raise _refusal(DiagnosisCode.MODEL_UNSUPPORTED, message)
            for entry in entries:
                status = entry.stat()
                found.append((entry.path, status.st_size, status.st_mtime_ns, status.st_ino))
    except OSError as error:
        raise _unreadable(path, error, 1) from None
    return tuple(found)


def _check(path: Path, of_parts: int) -> Fingerprint:
    try:
        # Non-blocking, or a FIFO without a writer would hold this thread for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error, of_parts) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _refusal(DiagnosisCode.MODEL_MISSING, f"{path} is a pipe, socket or device, not a model file")
        _check_start(path, os.read(descriptor, _START))
    except OSError as error:
        raise _unreadable(path, error, of_parts) from None
    finally:
        os.close(descriptor)
    return str(path), status.st_size, status.st_mtime_ns, status.st_ino


def _check_start(path: Path, head: bytes) -> None:
    if not head:
        raise _refusal(DiagnosisCode.MODEL_CORRUPT, f"{path} is empty", "fetch the model again")
    if head[:4] != b"GGUF":
        message = f"{path} is not a GGUF file: it begins with {head[:4]!r}"
        raise _refusal(
            DiagnosisCode.MODEL_CORRUPT, message, "name a GGUF file, or the directory of a model with config.json"
        )
    if len(head) < _START:
        raise _refusal(
            DiagnosisCode.MODEL_CORRUPT, f"{path} is truncated inside of its header", "fetch the model again"
        )
    version = int.from_bytes(head[4:8], "little")
    if version not in {2, 3}:
        raise _refusal(DiagnosisCode.MODEL_UNSUPPORTED, f"{path} is of GGUF version {version}; 2 and 3 are served")


def _unreadable(path: Path, error: OSError, of_parts: int) -> ProfileError:
    if error.errno == errno.ELOOP:
        return _refusal(DiagnosisCode.MODEL_MISSING, f"{path} is a loop of symbolic links")
    if of_parts > 1 and error.errno == errno.ENOENT:
        return _refusal(DiagnosisCode.MODEL_MISSING, f"{path}, one of {of_parts} parts of the model, is missing")
    hint = "the agent's user needs read permission" if error.errno == errno.EACCES else ""
    return _refusal(DiagnosisCode.MODEL_MISSING, f"{path} cannot be opened: {error.strerror}", hint)


def _refusal(code: DiagnosisCode, message: str, hint: str = "") -> ProfileError:
    return ProfileError(Diagnosis(code, message, hint=hint))


def parsed(data: object, subject: str) -> ModelProfile:
    """A profile that another process told as data. Raises `ProfileError`."""
    try:
        return _profiles().validate_json(json.dumps(data))
    except (ValidationError, ValueError):
        raise _refusal(
            DiagnosisCode.MODEL_CORRUPT, f"{subject} cannot be read: what its header says is no model"
        ) from None


# Built when the first answer comes, not when the daemon starts.


@cache
def _profiles() -> TypeAdapter[ModelProfile]:
    return TypeAdapter(ModelProfile)


@cache
def _repositories() -> TypeAdapter[Repository]:
    return TypeAdapter(Repository)


@cache
def _related() -> TypeAdapter[Related]:
    return TypeAdapter(Related)


async def _inspect(
    form: Callable[[], TypeAdapter[T]],
    arguments: Sequence[str],
    subject: str,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> T:
    """Run `agent.models.inspect`. Raises `ProfileError`; cancellation (a deadline) kills the process."""
    try:
        output = await _output([sys.executable, "-P", "-m", "agent.models.inspect", *arguments], variables)
    except OSError as failure:
        message = f"{subject} cannot be read: the process that parses it cannot be started: {failure.strerror}"
        hint = "the limits of the agent's unit on tasks and memory may be reached"
        raise _refusal(DiagnosisCode.LAUNCH_FAILED, message, hint) from None
    try:
        return form().validate_json(output)
    except ValidationError:
        pass
    try:
        error = _ERROR.validate_json(output)
        raise _refusal(DiagnosisCode(error["code"]), error["message"], error.get("hint", ""))
    except (ValidationError, KeyError, ValueError):
        # Killed by its own limits (CPU seconds, address space), or by the kernel.
        message = f"{subject} cannot be read: the parser gave up on it"
        raise _refusal(DiagnosisCode.MODEL_CORRUPT, message, "fetch the model again") from None


async def _output(argv: Sequence[str], variables: Mapping[str, str]) -> bytes:
    """The standard output of a command. The process is gone, or killed, when this returns or raises."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",
        # Without BLAS threads, whose stacks would count against the address space.
        env={"PYTHONPATH": _ROOT, "PATH": os.defpath, "OPENBLAS_NUM_THREADS": "1", **variables},
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            with contextlib.suppress(TimeoutError):  # a process that waits for dead storage cannot be waited for
                await asyncio.wait_for(process.wait(), KILL_DEADLINE)
    return output
