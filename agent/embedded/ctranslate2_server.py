"""A server for CTranslate2, which is a library: completions as OpenAI's API has them, of one converted model.

Run by `agent.engines.ctranslate2` with the Python that `ctranslate2` and `tokenizers` are installed for; it imports
nothing of the agent. Each request is a batch of its own, for as many workers as there are sequences.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

#: What a request may say beside model, prompt and stream: the least, the most, the default.
NUMBERS: dict[str, tuple[float, float, float]] = {
    "max_tokens": (1, 1 << 30, 16), "temperature": (0, 100, 1.0), "top_p": (1e-6, 1, 1.0)
}  # fmt: skip


class Model:
    """The model with its tokenizer, and how busy it is."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._seats = threading.Semaphore(options.max_num_seqs)
        self._generator = self._tokenizer = cast("Any", None)
        self.loaded = False
        names = ("running", "waiting", "requests_total", "prompt_tokens_total", "generated_tokens_total")
        self.counts = dict.fromkeys(names, 0)
        self.card = {
            "id": options.served_name, "object": "model", "created": int(time.time()), "owned_by": "ctranslate2",
            "max_model_len": options.max_model_len, "max_num_seqs": options.max_num_seqs,
        }  # fmt: skip

    def load(self) -> None:
        options = self._options
        self._tokenizer = import_module("tokenizers").Tokenizer.from_file(str(Path(options.model, "tokenizer.json")))
        self._generator = import_module("ctranslate2").Generator(
            options.model, device=options.device, compute_type="default", inter_threads=options.max_num_seqs,
            intra_threads=max(1, options.threads // options.max_num_seqs),
        )  # fmt: skip
        sys.stderr.write(f"loaded {options.model}, computing in {self._generator.compute_type}\n")
        self.loaded = True

    def count(self, **changes: int) -> None:
        with self._lock:
            for name, change in changes.items():
                self.counts[name] += change

    @contextlib.contextmanager
    def seat(self) -> Iterator[None]:
        self.count(waiting=1, requests_total=1)
        self._seats.acquire()
        self.count(waiting=-1, running=1)
        try:
            yield
        finally:
            self.count(running=-1)
            self._seats.release()

    def prompt(self, body: dict[str, Any]) -> list[str]:
        """Its tokens. Raises `ValueError` that says what would be right."""
        name, longest = self._options.served_name, self._options.max_model_len
        if body.get("model", name) != name:
            raise ValueError(f"this server serves {name} and nothing else")
        if not isinstance(body.get("prompt"), str) or not body["prompt"]:
            raise ValueError("prompt must be a text")
        tokens: list[str] = self._tokenizer.encode(body["prompt"]).tokens
        if len(tokens) >= longest:
            raise ValueError(f"the prompt has {len(tokens)} tokens, and max_model_len is {longest}")
        self.count(prompt_tokens_total=len(tokens))
        return tokens

    def pieces(self, tokens: list[str], asked: dict[str, float]) -> Iterator[tuple[str, str | None]]:
        """The text as it comes, and at last why it ends. A character of several tokens comes with its last one."""
        room = min(int(asked["max_tokens"]), self._options.max_model_len - len(tokens))
        greedy = asked["temperature"] == 0
        steps = self._generator.generate_tokens(
            tokens, max_length=room, sampling_temperature=1 if greedy else asked["temperature"],
            sampling_topk=1 if greedy else 0, sampling_topp=1 if greedy else asked["top_p"],
        )  # fmt: skip
        ids: list[int] = []
        told = text = ""
        with contextlib.closing(steps):  # ends the computation where the client has gone
            for step in steps:
                ids.append(step.token_id)
                self.count(generated_tokens_total=1)
                text = self._tokenizer.decode(ids)
                if not text.endswith("\ufffd") and text != told:
                    yield text[len(told) :], None
                    told = text
        yield text[len(told) :], "length" if len(ids) >= room else "stop"


def numbers(body: dict[str, Any]) -> dict[str, float]:
    """Those of a request, checked. Raises `ValueError` that says what would be right."""
    if unknown := sorted(
        name for name in body.keys() - {*NUMBERS, "model", "prompt", "stream"} if body[name] is not None
    ):
        raise ValueError(f"{unknown[0]} is not supported here")
    found: dict[str, float] = {}
    for name, (least, most, default) in NUMBERS.items():
        value = default if body.get(name) is None else body[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"{name} must be a number from {least:g} to {most:g}")
        found[name] = value
    return found


class Handler(BaseHTTPRequestHandler):
    model: Model

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200 if self.model.loaded else 503, {"status": "ok" if self.model.loaded else "loading"})
        elif self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [self.model.card]})
        elif self.path == "/metrics":
            self._send(200, "".join(f"ctranslate2_{name} {value}\n" for name, value in self.model.counts.items()))
        else:
            self._send(404, {"error": "not found"})

    def do_POST(self) -> None:
        if self.path != "/v1/completions" or not self.model.loaded:
            known = self.path == "/v1/completions"
            self._send(503 if known else 404, {"error": "the model is loading" if known else "not found"})
            return
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
            if not isinstance(body, dict):
                raise ValueError("the body must be a JSON object")  # noqa: TRY004 - the client's mistake, as the others
            asked, tokens = numbers(body), self.model.prompt(body)
            with self.model.seat():
                self._complete(self.model.pieces(tokens, asked), stream=bool(body.get("stream")))
        except ValueError as error:
            self._send(400, {"error": str(error)})
        except ConnectionError:
            return  # the client has gone

    def _complete(self, pieces: Iterator[tuple[str, str | None]], *, stream: bool) -> None:
        if not stream:
            texts, reasons = zip(*pieces, strict=True)
            self._send(200, self._choice("".join(texts), reasons[-1]))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for text, reason in pieces:
            self.wfile.write(f"data: {json.dumps(self._choice(text, reason))}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _choice(self, text: str, reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "finish_reason": reason}
        return {"object": "text_completion", "model": self.model.card["id"], "choices": [choice]}

    def _send(self, status: int, content: object) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing: probes ask every few seconds."""


def main(arguments: Sequence[str]) -> None:
    if "--version" in arguments:
        cuda = ", cuda" if import_module("ctranslate2").get_cuda_device_count() else ""
        sys.stdout.write(f"version: ctranslate2 {version('ctranslate2')}, cpu{cuda}\n")
        return
    flags = argparse.ArgumentParser(prog="ctranslate2_server", allow_abbrev=False)
    for name in ("--model", "--served-name", "--host", "--device"):
        flags.add_argument(name, required=True)
    for name in ("--port", "--max-model-len", "--max-num-seqs", "--threads"):
        flags.add_argument(name, type=int, required=True)
    options = flags.parse_args(arguments)
    Handler.model = Model(options)
    ThreadingHTTPServer.request_queue_size = 128  # Python's 5 turns bursts into retries of a second
    server = ThreadingHTTPServer((options.host, options.port), Handler)
    threading.Thread(target=ending, args=(Handler.model.load,)).start()
    server.serve_forever()


def ending(step: Callable[[], None]) -> None:
    """Whatever fails here ends the server, and the log says it."""
    try:
        step()
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    ending(lambda: main(sys.argv[1:]))
