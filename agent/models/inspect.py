"""`python -m agent.models.inspect PATH`: prints a `ModelProfile` as JSON, or {"code": ..., "message": ...}.

A process of its own, because it parses untrusted files, some of them with numpy: the daemon stays small, and a file
that makes a parser loop or swell costs nobody else anything.
"""

from __future__ import annotations

import contextlib
import json
import resource
import struct
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from agent.models.errors import ProfileError
from agent.models.from_gguf import BadHeader, profile_of
from agent.models.huggingface import read_folder
from agent.models.parts import parts
from agent.models.profile import ModelProfile

if TYPE_CHECKING:
    from agent.models import header as headers

#: Python, numpy and the views of one header, or the entries of one safetensors header; the mapped files come on top.
ADDRESS_SPACE = 2 * 1024**3
CPU_SECONDS = 30


def main(path: Path) -> dict[str, object]:
    """The profile, or the error, as data."""
    try:
        if path.is_dir():
            return asdict(read_folder(path))
        files = parts(path)
        return asdict(_profile(path, files, sum(file.stat().st_size for file in files)))
    except OSError as error:
        return {"code": "model_missing", "message": f"{error.filename or path} cannot be read: {error.strerror}"}
    except MemoryError:
        return {"code": "model_corrupt", "message": f"{path}: its header asks for more memory than any real one"}
    except _Refused as refused:
        return {"code": refused.code, "message": f"{path}: {refused}"}
    except ProfileError as error:
        return {"code": error.diagnosis.code.value, "message": error.diagnosis.message, "hint": error.diagnosis.hint}


class _Refused(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _profile(path: Path, files: tuple[Path, ...], size: int) -> ModelProfile:
    from agent.models import header as headers  # noqa: PLC0415 - numpy and gguf, and only after the limits are set

    try:
        read = [headers.Header(file) for file in files]
        return _from_headers(path, read, size)
    except headers.Unsupported as error:
        raise _Refused("model_unsupported", str(error)) from error
    except (headers.Corrupt, BadHeader) as error:
        raise _Refused("model_corrupt", str(error)) from error
    except (IndexError, struct.error) as error:
        raise _Refused("model_corrupt", "the file ends inside of its header: it is truncated") from error
    except (ValueError, KeyError, OverflowError) as error:  # a UnicodeDecodeError is a ValueError
        raise _Refused("model_corrupt", f"its header is damaged ({error})") from error


def _from_headers(path: Path, read: list[headers.Header], size: int) -> ModelProfile:
    first, tensors = read[0], [tensor for header in read for tensor in header.rows]
    if (kind := first.text("general.type")) not in {"", "model"}:
        raise _Refused("model_unsupported", f"it holds no model of its own but a {kind}")
    if (promised := first.number("split.count", 1)) != len(read) and promised > 1:
        raise _Refused("model_missing", f"its header promises {promised} parts, its name {len(read)}")
    if first.byte_order != "I":
        raise _Refused("model_unsupported", "it is written for the other byte order")
    level = first.level() or _most_bytes(tensors)
    return profile_of(path, first, tensors, size=size, level=level)


def _most_bytes(tensors: list[headers.Tensor]) -> str:
    """The type that most bytes have, where the header does not say what was asked for."""
    by_type: Counter[str] = Counter()
    for tensor in tensors:
        by_type[tensor.kind] += tensor.bytes
    return by_type.most_common(1)[0][0] if by_type else ""


def limit(path: Path) -> None:
    """Bound this process, before numpy is imported: its memory beyond the mapped files, and its time."""
    with contextlib.suppress(OSError, ValueError):  # `main` says what is wrong with the path
        files = () if path.is_dir() else parts(path)  # only GGUF files are mapped
        space = ADDRESS_SPACE + sum(file.stat().st_size for file in files)
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))


if __name__ == "__main__":
    limit(Path(sys.argv[1]))
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
