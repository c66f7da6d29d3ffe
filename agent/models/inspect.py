"""`python -m agent.models.inspect PATH`: prints a `ModelProfile` as JSON, or {"code": ..., "message": ...}.

With `--hub QUESTION` a `Repository`: what a hub has; with `--quantized QUESTION` a `Related`: quantized forms that it
lists. The token, where there is one, is HF_TOKEN in the environment.

A process of its own, because it parses untrusted files, some of them with numpy, and listens to strangers: the daemon
stays small, and what makes a parser loop or swell costs nobody else anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.models.ctranslate2 import is_converted, read_converted
from agent.models.errors import ProfileError, corrupt, missing, unsupported
from agent.models.from_gguf import BadHeader, profile_of
from agent.models.huggingface import read_folder
from agent.models.parts import parts
from agent.models.profile import ModelProfile
from agent.models.reader import Reader
from agent.models.repository import Bounds, Question

if TYPE_CHECKING:
    from agent.models import header as headers

#: Python, numpy and the views of one header, or the entries of one safetensors header; the mapped files come on top.
ADDRESS_SPACE = 2 * 1024**3
CPU_SECONDS = 30


def main(path: Path) -> dict[str, object]:
    """The profile, or the error, as data."""
    return _answered(str(path), lambda: asdict(_local(path)))


def main_hub(question: Question, token: str) -> dict[str, object]:
    """What the hub has, or the error, as data."""
    from agent.models.hub import Hub  # noqa: PLC0415 - TLS and threads, for which local files have no use
    from agent.models.remote import read_repository  # noqa: PLC0415

    def read() -> dict[str, object]:
        with Hub(question.endpoint, token, question.bounds) as hub:
            return asdict(read_repository(hub, question, gguf_from))

    return _answered(f"hf:{question.repo}", read)


def main_quantized(question: Question, token: str) -> dict[str, object]:
    """What the hub lists, or the error, as data."""
    from agent.models.hub import Hub  # noqa: PLC0415 - as above
    from agent.models.remote import read_quantized  # noqa: PLC0415

    def read() -> dict[str, object]:
        with Hub(question.endpoint, token, question.bounds) as hub:
            return asdict(read_quantized(hub, question))

    return _answered(f"the quantized forms of hf:{question.repo}", read)


def _answered(subject: str, read: Callable[[], dict[str, object]]) -> dict[str, object]:
    try:
        return read()
    except OSError as error:
        return {"code": "model_missing", "message": f"{error.filename or subject} cannot be read: {error.strerror}"}
    except MemoryError:
        return {"code": "model_corrupt", "message": f"{subject}: its header asks for more memory than any real one"}
    except _TooLate as error:
        return {"code": "source_unavailable", "message": f"{subject}: {error}", "hint": "try again later"}
    except ProfileError as error:
        return {"code": error.diagnosis.code.value, "message": error.diagnosis.message, "hint": error.diagnosis.hint}


class _TooLate(Exception):
    """The deadline came in the middle of something that does not look at it."""


def _local(path: Path) -> ModelProfile:
    if path.is_dir():
        return read_converted(path) if is_converted(path) else read_folder(path)
    files = parts(path)
    size = sum(file.stat().st_size for file in files)
    return _gguf(str(path), lambda headers: [headers.Header(file) for file in files], size)


def gguf_from(label: str, files: Sequence[Reader], size: int) -> ModelProfile:
    """The profile of a GGUF model of which only the headers are read. Raises `ProfileError`."""
    return _gguf(label, lambda headers: [headers.begun(file) for file in files], size)


def _gguf(label: str, read: Callable[[Any], list[headers.Header]], size: int) -> ModelProfile:
    """`read` is given the module that reads headers."""
    from agent.models import header as headers  # noqa: PLC0415 - numpy and gguf, and only after the limits are set

    try:
        return _from_headers(label, read(headers), size)
    except headers.Unsupported as error:
        raise unsupported(f"{label}: {error}") from None
    except (headers.Corrupt, BadHeader) as error:
        raise corrupt(f"{label}: {error}") from None
    except (IndexError, struct.error):
        raise corrupt(f"{label}: the file ends inside of its header: it is truncated") from None
    except (ValueError, KeyError, OverflowError) as error:  # a UnicodeDecodeError is a ValueError
        raise corrupt(f"{label}: its header is damaged ({error})") from None


def _from_headers(label: str, read: list[headers.Header], size: int) -> ModelProfile:
    first, tensors = read[0], [tensor for header in read for tensor in header.rows]
    if (kind := first.text("general.type")) not in {"", "model"}:
        raise unsupported(f"{label}: it holds no model of its own but a {kind[:60]}")
    if (promised := first.number("split.count", 1)) != len(read) and promised > 1:
        raise missing(f"{label}: its header promises {promised} parts, its name {len(read)}")
    if first.byte_order != "I":
        raise unsupported(f"{label}: it is written for the other byte order")
    level = first.level() or _most_bytes(tensors)
    return profile_of(Path(label), first, tensors, size=size, level=level)


def _most_bytes(tensors: list[headers.Tensor]) -> str:
    """The type that most bytes have, where the header does not say what was asked for."""
    by_type: Counter[str] = Counter()
    for tensor in tensors:
        by_type[tensor.kind] += tensor.bytes
    return by_type.most_common(1)[0][0] if by_type else ""


def limit(mapped: Sequence[Path] = ()) -> None:
    """Bound this process, before numpy is imported: its memory beyond the mapped files, and its time."""
    space = ADDRESS_SPACE + sum(file.stat().st_size for file in mapped)
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))


def _mapped(path: Path) -> tuple[Path, ...]:
    with contextlib.suppress(OSError, ValueError):  # `main` says what is wrong with the path
        return () if path.is_dir() else tuple(file for file in parts(path) if file.is_file())  # only GGUF files
    return ()


def _alarm(seconds: float) -> None:
    """Interrupt whatever the main thread waits for: a peer that sends a byte now and then, above all."""

    def ring(_number: int, _frame: object) -> None:
        raise _TooLate(f"the hub did not finish within {seconds:g} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def run(arguments: Sequence[str]) -> dict[str, object]:
    """What the command line asks for."""
    ask = {"--hub": main_hub, "--quantized": main_quantized}.get(arguments[0])
    if ask is None:
        limit(_mapped(Path(arguments[0])))
        return main(Path(arguments[0]))
    limit()
    data = json.loads(arguments[1])
    question = Question(**{**data, "bounds": Bounds(**data["bounds"])})
    _alarm(question.bounds.seconds)
    return ask(question, os.environ.get("HF_TOKEN", ""))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(sys.argv[1:])))
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads that wait for a hub
