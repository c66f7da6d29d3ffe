"""MLX LM's own server with what a supervised one needs: it serves one model, within limits, and ends when it is broken.

Run by `agent.engines.mlx_lm` with the Python that mlx-lm is installed for; it imports nothing of the agent. Flags other
than those of `parser` go to `mlx_lm.server` as they are. On its own (0.32.2) that server

* loads whatever model, draft or adapter a request names, in place of the one that was planned;
* takes prompts of any length, and any number of requests at once;
* answers its health with 200 before the model is loaded, stays alive for ever when loading fails or its port is taken;
* says nothing of what it does, and lists the models of the user's cache instead of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

#: What MLX computes with is a distribution of its own.
BACKENDS = {"mlx-metal": "metal", "mlx-cuda-12": "cuda", "mlx-cuda-13": "cuda", "mlx-cpu": "cpu"}
#: What a request may call the model besides its name: mlx-lm's own word for the one of the command line.
DEFAULT = "default_model"
#: Connections that the kernel holds until they are accepted. Python's 5 turns bursts into retries of a second.
BACKLOG = 128
LOADING = '{"status": "loading", "error": "the model is being loaded"}'

Original = Callable[..., Any]


class Seats:
    """As many requests as there are sequences are computed; the others wait."""

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)
        self._lock = threading.Lock()
        self.running = self.waiting = self.requests = self.prompt_tokens = 0

    def count(self, **changes: int) -> None:
        with self._lock:
            for name, change in changes.items():
                setattr(self, name, getattr(self, name) + change)

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        self.count(waiting=1, requests=1)
        self._free.acquire()
        self.count(waiting=-1, running=1)
        try:
            yield
        finally:
            self.count(running=-1)
            self._free.release()

    def metrics(self) -> str:
        """Prometheus' text format."""
        with self._lock:
            gauges = {"running": self.running, "waiting": self.waiting}
            counters = {"requests_total": self.requests, "prompt_tokens_total": self.prompt_tokens}
        return "".join(
            f"# TYPE mlx_lm_{name} {kind}\nmlx_lm_{name} {value}\n"
            for kind, values in (("gauge", gauges), ("counter", counters))
            for name, value in values.items()
        )


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="mlx_server", allow_abbrev=False)
    flags.add_argument("--served-name", required=True)
    flags.add_argument("--max-model-len", type=int, required=True, help="tokens of prompt and answer together")
    flags.add_argument("--max-num-seqs", type=int, required=True, help="requests that are computed at once")
    flags.add_argument("--device", choices=("cpu", "gpu"), required=True)
    return flags


class Rules:
    """What stands around the methods of `mlx_lm.server`: each gets the original and its object first."""

    def __init__(self, ours: argparse.Namespace) -> None:
        self._ours = ours
        self._seats = Seats(ours.max_num_seqs)
        self._loaded = threading.Event()
        self._card = {
            "id": ours.served_name, "object": "model", "created": int(time.time()), "owned_by": "mlx-lm",
            "max_model_len": ours.max_model_len, "max_num_seqs": ours.max_num_seqs,
        }  # fmt: skip

    def adapt(self, server: Any) -> None:
        """Raises `AttributeError` in a version without one of the methods."""
        _wrap(server.ModelProvider, "load_default", self.load_default)
        _wrap(server.ModelProvider, "load", self.load)
        _wrap(server.ResponseGenerator, "_tokenize", self.tokenize)
        _wrap(server.ResponseGenerator, "_run_generate", self.generate)
        _wrap(server.APIHandler, "handle_completion", self.complete)
        _wrap(server.APIHandler, "do_GET", self.answer)
        _wrap(server.APIHandler, "log_request", self.log)
        server.ThreadingHTTPServer.request_queue_size = BACKLOG

    def load_default(self, original: Original, provider: Any) -> None:
        original(provider)
        self._loaded.set()

    def load(self, original: Original, provider: Any, model: str, adapter: Any = None, draft: Any = None) -> Any:
        name = self._ours.served_name
        if model not in {name, DEFAULT} or adapter is not None or draft not in {None, DEFAULT}:
            raise ValueError(f"this server serves {name} and nothing else")
        return original(provider, DEFAULT, None, DEFAULT)

    def tokenize(self, original: Original, generator: Any, tokenizer: Any, request: Any, args: Any) -> Any:
        found = original(generator, tokenizer, request, args)
        prompt, longest = len(found[0]), self._ours.max_model_len
        if prompt >= longest:
            raise ValueError(f"the prompt has {prompt} tokens, and max_model_len is {longest}")
        args.max_tokens = min(args.max_tokens, longest - prompt)
        self._seats.count(prompt_tokens=prompt)
        return found

    def generate(self, original: Original, generator: Any) -> None:
        original(generator)
        if generator._generation_failed:  # noqa: SLF001 - it has written why, and would answer 503 for ever
            os._exit(1)

    def complete(self, original: Original, handler: Any, request: Any, stop_words: Any) -> None:
        if not self._loaded.is_set():
            _reply(handler, 503, LOADING)
            return
        with self._seats.taken():
            original(handler, request, stop_words)

    def answer(self, original: Original, handler: Any) -> None:
        if handler.path == "/metrics":
            _reply(handler, 200, self._seats.metrics())
        elif handler.path == "/v1/models":
            _reply(handler, 200, json.dumps({"object": "list", "data": [self._card]}))
        elif handler.path == "/health" and not self._loaded.is_set():
            _reply(handler, 503, LOADING)
        else:
            original(handler)

    def log(self, original: Original, handler: Any, *arguments: Any) -> None:
        if handler.command != "GET":  # probes, every few seconds
            original(handler, *arguments)


def _reply(handler: Any, status: int, body: str) -> None:
    handler._set_completion_headers(status)  # noqa: SLF001 - mlx-lm's own way to answer
    handler.end_headers()
    handler.wfile.write(body.encode())


def _wrap(owner: Any, name: str, around: Original) -> None:
    """Replace a method by `around`, which gets the original first."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        return around(original, self, *arguments, **named)

    setattr(owner, name, method)


def versions() -> str:
    """The line that the adapter reads, like `version: mlx-lm 0.32.2, mlx 0.32.4, cpu`."""
    found = [f"mlx-lm {version('mlx-lm')}", f"mlx {version('mlx')}"]
    for distribution, backend in BACKENDS.items():
        with contextlib.suppress(PackageNotFoundError):
            version(distribution)
            found.append(backend)
    return f"version: {', '.join(found)}\n"


def main(arguments: Sequence[str]) -> None:
    if "--version" in arguments:
        sys.stdout.write(versions())
        return
    if "--help" in arguments:  # both lists of flags
        parser().print_help()
        sys.stdout.flush()
        with contextlib.suppress(ModuleNotFoundError):
            _run(import_module("mlx_lm.server"), ["--help"])
        return
    ours, theirs = parser().parse_known_args(arguments)
    mlx = import_module("mlx.core")
    mlx.set_default_device(getattr(mlx, ours.device))
    server = import_module("mlx_lm.server")
    Rules(ours).adapt(server)
    _run(server, theirs)


def _run(server: Any, arguments: Sequence[str]) -> None:
    sys.argv = ["mlx_lm.server", *arguments]
    server.main()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception:  # noqa: BLE001 - whatever it is: the generating thread would keep the process alive
        traceback.print_exc()
        os._exit(1)
