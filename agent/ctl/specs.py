"""Specs out of what a person gives: flags of `serve` and `plan`, or files of `apply`.

Only shape is checked here; the rules are the daemon's, so that there is one answer to what is valid.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from agent.api.client import Client
from agent.ctl.failures import Usage
from agent.ctl.options import Word, option
from agent.errors import FieldViolation, InvalidArgument, NotFound
from agent.frozen import frozen

Command = TypeVar("Command", bound=Callable[..., Any])

#: Bytes of a file of specs, of a configuration, or of an export of the ledger; real ones have far less.
MOST_BYTES: Final = 16 * 1024**2
#: What a model reference may begin with. A name of the catalog may have a colon, too: `qwen3:8b`.
SCHEMES: Final = frozenset(
    {"file", "package", "hf", "https", "http", "s3", "gs", "oci", "ollama", "ms", "gateway"}
)  # fmt: skip
#: `owner/name`, with a revision or quantization behind it.
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+([@:].*)?", re.ASCII)
#: The tail of a weight file's name that says how it is quantized: `.Q4_K_M`, `-F16`. It is no part of a good name.
_QUANTIZATION: Final = re.compile(r"[-._](?:i?q\d\w*|bf16|f16|f32|gguf)$", re.IGNORECASE)

#: A number as YAML has it, too.
_WHOLE: Final = re.compile("0|[1-9][0-9]{0,15}")

#: Flag, the field of the spec that it sets, its type, and its help.
_Flag = tuple[str, str, Any, str]
_TASKS: Final = ("chat", "completion", "embedding", "rerank")
AIMS: Final = (
    "auto", "throughput", "latency", "long-context", "structured-output", "shared-prefixes", "development",
)  # fmt: skip
RUNTIMES: Final = ("auto", "process", "docker")
ENGINES: Final = (
    "llama.cpp", "vllm", "sglang", "tensorrt-llm", "nim", "tgi", "mlx-lm", "ollama", "lm-studio", "ctranslate2",
    "litellm",
)  # fmt: skip
TASK: Final[_Flag] = ("--task", "task", click.Choice(_TASKS), "What the model is used for.")
#: Hints, which shape what nobody asked for.
WORKLOAD: Final[tuple[_Flag, ...]] = (
    ("--aim", "workload.aim", click.Choice(AIMS), "What matters most; it ranks engines."),
    ("--concurrency", "workload.concurrency", int, "Requests that are expected at the same time."),
    ("--context", "workload.context_tokens", int, "Tokens of a long request with its answer."),
)
_FLAGS: Final[tuple[_Flag, ...]] = (
    ("--name", "name", str, "Name of the deployment. Default: made from the model's."),
    ("--engine", "engine", Word("auto", *ENGINES), "Engine, or auto."),
    ("--runtime", "runtime", Word(*RUNTIMES), "process, docker, or auto."),
    ("--image", "image", str, "Image to run the engine in, with registry and tag; needs --engine."),
    TASK,
    ("--quantization", "quantization", str, "Quantization, or auto."),
    ("--max-num-seqs", "limits.max_num_seqs", int, "Sequences served at the same time."),
    ("--max-model-len", "limits.max_model_len", int, "Tokens of context for each sequence."),
    ("--kv-cache-dtype", "limits.kv_cache_dtype", str, "Data type of the KV cache."),
    ("--devices", "devices", Word("auto", "cpu"), "auto, cpu, or device ids with commas between."),
    ("--port", "port", Word("auto"), "Port to listen on, or auto."),
    *WORKLOAD,
)

#: The reference and the task of the model that a name of the catalog means. Raises `NotFound` with the nearest names.
Named = Callable[[str], tuple[str, str]]


def spec_flags(command: Command) -> Command:
    """Adds the flags that describe a deployment, and --set for every other field."""
    command = option(
        "--set",
        "sets",
        multiple=True,
        metavar="FIELD=VALUE",
        help="Any field of the spec by its dotted path; VALUE is YAML. May be repeated.",
    )(command)
    return with_flags(_FLAGS, command)


def with_flags(flags: Sequence[_Flag], command: Command) -> Command:
    """Adds flags that set fields of a spec."""
    for flag, field, kind, text in reversed(flags):
        command = option(flag, field.replace(".", "__"), type=kind, help=text)(command)
    return command


def build(model: str, flags: Mapping[str, Any], sets: Iterable[str], named: Named) -> dict[str, Any]:
    """The spec for `model`. Raises `Usage` for flags that contradict it, and for a --set that is no assignment."""
    further = [_assignment(one) for one in sets]
    reference, task = resolve_model(model, named)
    spec: dict[str, Any] = {"name": default_name(reference), "model": reference} | ({"task": task} if task else {})
    spec = assigned(spec, flags)
    for field, value in further:
        _assign(spec, field, value)
    _check_quantization(spec, model)
    return spec


def _assignment(text: str) -> tuple[str, Any]:
    field, separator, value = text.partition("=")
    if not separator or not all(field.split(".")):
        raise Usage(
            f"--set {text}: not of the form FIELD=VALUE", hint="for example --set probes.liveness.period_seconds=5"
        )
    if _WHOLE.fullmatch(value):
        return field, int(value)
    from agent.documents import load_value  # noqa: PLC0415  (YAML, which no whole number needs)

    return field, load_value(value, f"--set {field}")


def assigned(spec: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with what the flags say; those that were not given are None."""
    for _, field, _, _ in _FLAGS:
        value = flags.get(field.replace(".", "__"))
        if value is not None:
            _assign(spec, field, _typed(field, value))
    return spec


def _check_quantization(spec: Mapping[str, Any], model: str) -> None:
    asked, named = str(spec.get("quantization", "auto")), _variant_of(str(spec["model"]))
    if named and asked.lower() not in {"auto", named.lower()}:
        raise Usage(f"{model} names the quantization {named}, and --quantization {asked} another one")


def _variant_of(reference: str) -> str:
    """What stands behind the colon of `hf:owner/name:Q4_K_M`."""
    return reference.partition(":")[2].partition(":")[2] if reference.startswith("hf:") else ""


def resolve_model(model: str, named: Named) -> tuple[str, str]:
    """A reference with its scheme (of a local path, of a repository of the hub, of a name in the catalog), and the task
    of a model of the catalog.

    A path becomes absolute here: the daemon's working directory is another one.
    """
    scheme, colon, rest = model.partition(":")
    if colon and (scheme in SCHEMES or rest.startswith("/")):  # another scheme is the daemon's to refuse
        return model, ""  # a file whose name begins like a scheme is given as ./file
    path = os.path.expanduser(model)  # noqa: PTH111 - `Path.expanduser` raises where there is no home
    if model.startswith(("/", "./", "../", "~")) or model.lower().endswith(".gguf") or os.path.exists(path):  # noqa: PTH110 - `Path.exists` raises for a long name
        # The name stays: links in caches point at names without suffix.
        return f"file:{Path(path).parent.resolve() / Path(path).name}", ""
    try:
        return named(model)
    except NotFound:
        if _REPOSITORY.fullmatch(model) is None:
            raise
    return f"hf:{model}", ""


def by_catalog(client: Callable[[], Client]) -> Named:
    """Names as the daemon's catalog knows them; it is asked only for what can be one."""

    def named(text: str) -> tuple[str, str]:
        try:
            found = client().resolve_model(text)
        except InvalidArgument as error:  # its field is the API's
            raise Usage("MODEL " + "; ".join(violation.rule for violation in error.violations)) from error
        return found.reference, found.model.task

    return named


def default_name(reference: str) -> str:
    """A valid deployment name from a model reference: `file:/m/Qwen2.5-0.5B.Q4_K_M.gguf` -> `qwen2-5-0-5b`."""
    scheme, _, rest = reference.partition(":")
    match scheme:
        case "gateway":  # not called like those that it forwards to: these names are taken
            return scheme
        case "hf" | "ms":
            rest = re.split("[@:]", rest, maxsplit=1)[0]
        case "oci" | "ollama":  # a tag says of which size it is, and becomes a part of the name
            rest = rest.partition("@")[0].removesuffix(":latest")
        case "https" | "http" | "s3" | "gs":
            rest = re.split("[?#]", rest, maxsplit=1)[0]
    stem = rest.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    slug = re.sub(r"[^a-z0-9]+", "-", _QUANTIZATION.sub("", stem).lower()).strip("-")
    return slug[:63].rstrip("-") or "model"


@frozen
class Document:
    """A spec, and where it was read: `chat.yaml, document 2 (embed)`."""

    spec: dict[str, Any]
    place: str


def read_all(files: Iterable[str]) -> list[Document]:
    """All documents of all files (`-`: standard input), in order.

    Raises `NotFound` for a file that is not there, and `InvalidArgument` for what is not YAML, for a deployment that
    two documents describe (the later one would win silently), and for a port that two deployments want.
    """
    from agent.spec import load_specs  # noqa: PLC0415  (pydantic and YAML: 100 ms that only files pay)

    documents: list[Document] = []
    claimed: dict[tuple[str, Any], str] = {}
    for file in files:
        source = "standard input" if file == "-" else file
        specs = load_specs(read(file), source)
        for position, spec in enumerate(specs, 1):
            name, port = str(spec.get("name", "")), spec.get("port")
            part = f", document {position}" if len(specs) > 1 else ""
            place = f"{source}{part} ({name or 'no name'})"
            for field, value in (("name", name), ("port", port if isinstance(port, int) else "")):
                if value and (other := claimed.get((field, value))):
                    violation = FieldViolation(field, f"{value!r} is also in {other}")
                    raise InvalidArgument(f"{place}: two documents with one {field}", violations=(violation,))
                claimed[field, value] = place
            documents.append(Document(spec, place))
    if not documents:
        raise InvalidArgument("there is no deployment in " + ", ".join(files))
    return documents


def read(file: str) -> str:
    """The text of a file, or of standard input for `-`. Raises `NotFound` and `InvalidArgument`."""
    try:
        with nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise InvalidArgument(f"{file}: larger than {MOST_BYTES >> 20} MiB: is it a model, not what describes one?")
        return content.decode()
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
        devices = [device.strip() for device in value.split(",")]
        if not all(devices):
            raise Usage(f"--devices {value!r}: an id is empty", hint="auto, cpu, or device ids with commas between")
        return devices
    return value


def _assign(spec: dict[str, Any], field: str, value: Any) -> None:
    *parents, last = field.split(".")
    for parent in parents:
        spec = spec.setdefault(parent, {})
        if not isinstance(spec, dict):
            raise Usage(f"--set {field}: {parent} is already set to a plain value")
    spec[last] = value
