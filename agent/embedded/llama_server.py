"""llama-server out of the `xllamacpp` wheel: the same flags, log lines and exit statuses, without a native binary.

Started by `agent.engines.llama_cpp` as a program of its own (by path, so that neither the working directory nor
an installed `agent` package matters); it imports nothing of the agent. It takes the flags below and no others: an
unknown one ends it with status 1 and llama-server's own line.

The wheel holds Python's interpreter lock during the load, so a Python signal handler could not run before its end.
SIGTERM and SIGINT therefore keep their default action while the model loads and end the process at once, as they
do with the real server; after the load they stop the server and the status is 0. The main thread then sleeps in a
read of a pipe that only a signal writes to: an idle instance costs no wake-ups.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version as distribution_version
from typing import Any

#: names and values of ggml's enum, for the KV cache: `enum ggml_type` in ggml.h
CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
#: `enum llama_flash_attn_type` and `enum llama_pooling_type` in llama.h
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}

_STOP = (signal.SIGTERM, signal.SIGINT)


class UsageError(Exception):
    """A flag that llama-server would refuse; the message is the line that it would print."""


Setter = Callable[[Any, str], None]


def _field(path: str, convert: Callable[[str], Any]) -> Setter:
    """Set the dotted attribute `path` of the parameters."""

    def apply(params: Any, value: str) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            params = getattr(params, parent)
        setattr(params, name, convert(value))

    return apply


def _constant(path: str, value: Any) -> Setter:
    return _field(path, lambda _: value)


def _rerank(params: Any, _: str) -> None:
    params.embedding = True
    params.pooling_type = POOLING["rank"]


def _no_device(_: Any, value: str) -> None:
    if value != "none":
        raise ValueError("this build has no devices")


#: flags with one value
_OPTIONS: dict[str, Setter] = {
    "-m --model": _field("model.path", str),
    "-a --alias": _field("model_alias", lambda names: set(names.split(","))),
    "--host": _field("hostnames", lambda hosts: hosts.split(",")),
    "--port": _field("port", int),
    "-c --ctx-size": _field("n_ctx", int),
    "-np --parallel": _field("n_parallel", int),
    "-b --batch-size": _field("n_batch", int),
    "-ub --ubatch-size": _field("n_ubatch", int),
    "-t --threads": _field("cpuparams.n_threads", int),
    "-tb --threads-batch": _field("cpuparams_batch.n_threads", int),
    "--threads-http": _field("n_threads_http", int),
    "-ctk --cache-type-k": _field("cache_type_k", CACHE_TYPES.__getitem__),
    "-ctv --cache-type-v": _field("cache_type_v", CACHE_TYPES.__getitem__),
    "-fa --flash-attn": _field("flash_attn_type", FLASH_ATTENTION.__getitem__),
    "-fit --fit": _field("fit_params", {"on": True, "off": False}.__getitem__),
    "-cram --cache-ram": _field("cache_ram_mib", int),
    "-ctxcp --ctx-checkpoints": _field("n_ctx_checkpoints", int),
    "--sse-ping-interval": _field("sse_ping_interval", int),
    "--cors-origins": _field("cors_origins", str),
    "--pooling": _field("pooling_type", POOLING.__getitem__),
    "-dev --device": _no_device,
    "-to --timeout": _field("timeout_read", int),
    "-n --predict --n-predict": _field("n_predict", int),
    "-s --seed": _field("sampling.seed", int),
    "--temp --temperature": _field("sampling.temp", float),
    "--top-k": _field("sampling.top_k", int),
    "--top-p": _field("sampling.top_p", float),
    "--min-p": _field("sampling.min_p", float),
    "--rope-freq-base": _field("rope_freq_base", float),
    "--rope-freq-scale": _field("rope_freq_scale", float),
    "--cache-reuse": _field("n_cache_reuse", int),
    "-lv --verbosity --log-verbosity": _field("verbosity", int),
}
#: flags without a value
_FLAGS: dict[str, Setter] = {
    "-no-kvu --no-kv-unified": _constant("kv_unified", False),
    "--metrics": _constant("endpoint_metrics", True),
    "--slots": _constant("endpoint_slots", True),
    "--no-ui --no-webui": _constant("ui", False),
    "--offline": _constant("offline", True),
    "--embedding --embeddings": _constant("embedding", True),
    "--rerank --reranking": _rerank,
    "--warmup": _constant("warmup", True),
    "--no-warmup": _constant("warmup", False),
    "--jinja": _constant("use_jinja", True),
    "--no-jinja": _constant("use_jinja", False),
    "-nr --no-repack": _constant("no_extra_bufts", True),
    "--no-cache-prompt": _constant("cache_prompt", False),
    "--context-shift": _constant("ctx_shift", True),
    "--check-tensors": _constant("check_tensors", True),
}


def _spellings(table: dict[str, Setter]) -> dict[str, Setter]:
    return {name: setter for names, setter in table.items() for name in names.split()}


def spellings() -> frozenset[str]:
    """All that `parse` takes."""
    return frozenset({*_spellings(_OPTIONS), *_spellings(_FLAGS)})


def parse(arguments: Sequence[str], params: Any) -> None:
    """Apply the command line to `params` (an `xllamacpp.CommonParams`). Raises `UsageError`."""
    options, flags = _spellings(_OPTIONS), _spellings(_FLAGS)
    rest = iter(arguments)
    for argument in rest:
        if argument in flags:
            flags[argument](params, "")
        elif argument in options:
            _apply(argument, options[argument], params, next(rest, None))
        else:
            raise UsageError(f"error: invalid argument: {argument}")


def _apply(name: str, setter: Setter, params: Any, value: str | None) -> None:
    if value is None:
        raise UsageError(f'error while handling argument "{name}": expected value for argument')
    try:
        setter(params, value)
    except (KeyError, ValueError, OverflowError) as error:
        raise UsageError(f'error while handling argument "{name}": {error}') from None


def version() -> str:
    """The version line. The last number of the wheel's version is the build of llama.cpp in it."""
    wheel = distribution_version("xllamacpp")
    return f"version: {wheel.rpartition('.')[2]} (xllamacpp {wheel})"


def wait_for_stop() -> None:
    """Return at the first SIGTERM or SIGINT; a second one ends the process."""
    # The server's native threads may receive the signal, and then no call in the main thread is interrupted:
    # the pipe wakes it, whichever thread was hit.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for stop in _STOP:
        signal.signal(stop, lambda *_: None)
    os.read(reader, 1)
    # A stop waits for requests whose clients stay connected, so a second signal must not wait with it.
    for stop in _STOP:
        signal.signal(stop, signal.SIG_DFL)


def main(arguments: Sequence[str]) -> int:
    if "--version" in arguments:
        sys.stdout.write(f"{version()}\n")
        return 0
    if "--help" in arguments:
        sys.stdout.write("".join(f"{name}\n" for name in sorted(spellings())))
        return 0
    xllamacpp = import_module("xllamacpp")  # 60 ms that `--version` does not need
    params = xllamacpp.CommonParams()
    try:
        parse(arguments, params)
        if not params.model.path:
            raise UsageError("error: --model is required")
    except UsageError as error:
        return _fail(error)
    # In the environment, as with llama-server: a key in argv could be read by every user of the host.
    params.api_keys = [key for key in os.environ.get("LLAMA_API_KEY", "").split(",") if key]
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:  # the server has printed the cause before
        return _fail(error)
    wait_for_stop()
    del server  # its destructor stops the server
    return 0


def _fail(error: Exception) -> int:
    sys.stderr.write(f"{error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
