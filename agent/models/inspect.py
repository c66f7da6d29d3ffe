"""`python -m agent.models.inspect FILE`: prints a `ModelProfile` as JSON, or {"code": ..., "message": ...}.

A process of its own, because it maps an untrusted file with numpy: the daemon stays small, and a file that makes a
parser loop or swell costs nobody else anything.
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

from agent.models.parts import parts
from agent.models.profile import ModelProfile

if TYPE_CHECKING:
    from agent.models import header as headers

#: Python, numpy and the views of one header; the mapped files come on top.
ADDRESS_SPACE = 2 * 1024**3
CPU_SECONDS = 30


def main(path: Path) -> dict[str, object]:
    """The profile, or the error, as data."""
    try:
        files = parts(path)
        size = sum(file.stat().st_size for file in files)
        return asdict(_profile(path, files, size))
    except OSError as error:
        return {"code": "model_missing", "message": f"{error.filename or path} cannot be read: {error.strerror}"}
    except MemoryError:
        return {"code": "model_corrupt", "message": f"{path}: its header asks for more memory than any real one"}
    except _Refused as refused:
        return {"code": refused.code, "message": f"{path}: {refused}"}


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
    except headers.Corrupt as error:
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
    architecture = first.text("general.architecture")
    key = architecture + "."
    layers, width = first.number(key + "block_count"), first.number(key + "embedding_length")
    heads = max(first.numbers(key + "attention.head_count"), default=0)
    kv_heads = first.numbers(key + "attention.head_count_kv") or first.numbers(key + "attention.head_count") or [0]
    head = width // heads if heads else 0
    sizes = {tensor.name: tensor.bytes for tensor in tensors}
    return ModelProfile(
        path=str(path),
        format="gguf",
        architecture=architecture,
        name=first.text("general.name"),
        quantization=_quantization(first, tensors),
        file_bytes=size,
        tensor_bytes=sum(sizes.values()),
        parameters=sum(tensor.elements for tensor in tensors),
        layers=layers,
        embedding_length=width,
        feed_forward_length=max(first.numbers(key + "feed_forward_length"), default=0),
        heads=heads,
        kv_heads=tuple(kv_heads * layers if len(kv_heads) == 1 else kv_heads),
        key_length=first.number(key + "attention.key_length", head),
        value_length=first.number(key + "attention.value_length", head),
        context_length=first.number(key + "context_length"),
        vocabulary=first.count("tokenizer.ggml.tokens") or first.number(key + "vocab_size", 0),
        sliding_window=first.number(key + "attention.sliding_window", 0),
        experts=first.number(key + "expert_count", 0),
        embedding_bytes=sizes.get("token_embd.weight", 0),
        output_bytes=sizes.get("output.weight", 0),
        has_chat_template=bool(first.text("tokenizer.chat_template")),
        pooling=_POOLING.get(first.number(key + "pooling_type", -1), ""),
    )


#: `enum llama_pooling_type` in llama.h
_POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}


def _quantization(first: headers.Header, tensors: list[headers.Tensor]) -> str:
    """The file type's name (Q4_K_M), or the type that most bytes have where the header does not say or is unknown."""
    import gguf  # noqa: PLC0415 - see _profile

    try:
        name = gguf.LlamaFileType(first.number("general.file_type", -1)).name
    except ValueError:
        by_type: Counter[str] = Counter()
        for tensor in tensors:
            by_type[tensor.kind] += tensor.bytes
        return by_type.most_common(1)[0][0] if by_type else ""
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def limit(path: Path) -> None:
    """Bound this process, before numpy is imported: its memory beyond the mapped files, and its time."""
    with contextlib.suppress(OSError, ValueError):  # `main` says what is wrong with the path
        space = ADDRESS_SPACE + sum(file.stat().st_size for file in parts(path))
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))


if __name__ == "__main__":
    limit(Path(sys.argv[1]))
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
