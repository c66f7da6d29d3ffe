"""Specs out of what a person gives: flags of `serve` and `plan`, or files of `apply`.

Only shape is checked here; the rules are the daemon's, so that there is one answer to what is valid.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from agent.ctl.failures import Usage
from agent.errors import FieldViolation, InvalidArgument, NotFound

Command = TypeVar("Command", bound=Callable[..., Any])

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*:")
#: The tail of a weight file's name that says how it is quantized: `.Q4_K_M`, `-F16`. It is no part of a good name.
_QUANTIZATION: Final = re.compile(r"[-._](?:i?q\d\w*|bf16|f16|f32)$", re.IGNORECASE)

#: Flag, the field of the spec that it sets, its type, and its help.
_FLAGS: Final[tuple[tuple[str, str, Any, str], ...]] = (
    ("--name", "name", str, "Name of the deployment. Default: made from the model's."),
    ("--engine", "engine", str, "Engine, or auto."),
    ("--task", "task", click.Choice(["chat", "completion", "embedding", "rerank"]), "What the model is used for."),
    ("--quantization", "quantization", str, "Quantization, or auto."),
    ("--max-num-seqs", "limits.max_num_seqs", int, "Sequences served at the same time."),
    ("--max-model-len", "limits.max_model_len", int, "Tokens of context for each sequence."),
    ("--kv-cache-dtype", "limits.kv_cache_dtype", str, "Data type of the KV cache."),
    ("--devices", "devices", str, "auto, cpu, or device ids with commas between."),
    ("--port", "port", str, "Port to listen on, or auto."),
)


def spec_flags(command: Command) -> Command:
    """Adds the flags that describe a deployment, and --set for every other field."""
    command = click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="FIELD=VALUE",
        help="Any field of the spec by its dotted path; VALUE is YAML. May be repeated.",
    )(command)
    for flag, field, kind, text in reversed(_FLAGS):
        command = click.option(flag, field.replace(".", "__"), type=kind, help=text)(command)
    return command


def build(model: str, flags: dict[str, Any], sets: Iterable[str]) -> dict[str, Any]:
    """The spec for `model`. Raises `Usage` for a --set that is no assignment."""
    reference = resolve_model(model)
    spec: dict[str, Any] = {"name": default_name(reference), "model": reference}
    for _, field, _, _ in _FLAGS:
        value = flags.get(field.replace(".", "__"))
        if value is not None:
            _assign(spec, field, _typed(field, value))
    for assignment in sets:
        from agent.documents import load_value  # noqa: PLC0415  (YAML: only --set pays for it)

        field, separator, text = assignment.partition("=")
        if not separator or not all(field.split(".")):
            raise Usage(
                f"--set {assignment}: not of the form FIELD=VALUE",
                hint="for example --set probes.liveness.period_seconds=5",
            )
        _assign(spec, field, load_value(text, f"--set {field}"))
    return spec


def resolve_model(model: str) -> str:
    """A reference with its scheme. A path becomes absolute here: the daemon's working directory is another one."""
    if _SCHEME.match(model):
        return model  # a file whose name begins like a scheme is given as ./file
    path = Path(model)
    return f"file:{path.parent.resolve() / path.name}"  # the name stays: links in caches point at names without suffix


def default_name(reference: str) -> str:
    """A valid deployment name from a model reference: `file:/m/Qwen2.5-0.5B.Q4_K_M.gguf` -> `qwen2-5-0-5b`."""
    stem = reference.rpartition("/")[2].rpartition(":")[2].removesuffix(".gguf")
    slug = re.sub(r"[^a-z0-9]+", "-", _QUANTIZATION.sub("", stem).lower()).strip("-")
    return slug[:63].rstrip("-") or "model"


def read_all(files: Iterable[str]) -> list[dict[str, Any]]:
    """All documents of all files (`-`: standard input), in order.

    Raises `NotFound` for a file that is not there, and `InvalidArgument` for what is not YAML, and for a
    deployment that two documents describe: the later one would win silently.
    """
    from agent.spec import load_specs  # noqa: PLC0415  (pydantic and YAML: 100 ms that only files pay)

    specs: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    for file in files:
        source = "standard input" if file == "-" else file
        for spec in load_specs(read(file), source):
            name = str(spec.get("name", ""))
            if name and name in seen:
                violation = FieldViolation("name", f"{name!r} is also in {seen[name]}; a deployment is described once")
                raise InvalidArgument(f"{source}: two documents for one deployment", violations=(violation,))
            seen[name] = source
            specs.append(spec)
    if not specs:
        raise InvalidArgument("there is no deployment in " + ", ".join(files))
    return specs


def read(file: str) -> str:
    """The text of a file, or of standard input for `-`. Raises `NotFound` and `InvalidArgument`."""
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InvalidArgument(f"{file}: {error.strerror}") from None


def _typed(field: str, value: Any) -> Any:
    """The value as YAML would have it: a port may be a number, devices may be a list."""
    if field == "port" and value.isdecimal():
        return int(value)
    if field == "devices" and value not in {"auto", "cpu"}:
        return [device.strip() for device in value.split(",")]
    return value


def _assign(spec: dict[str, Any], field: str, value: Any) -> None:
    *parents, last = field.split(".")
    for parent in parents:
        spec = spec.setdefault(parent, {})
        if not isinstance(spec, dict):
            raise Usage(f"--set {field}: {parent} is already set to a plain value")
    spec[last] = value
