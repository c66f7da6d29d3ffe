"""Stands for the executable `ollama`, which no package registry has: the commands that the launcher uses and the routes
that the adapter asks, as their source says (v0.33: `cmd/cmd.go`, `server/routes.go`, `server/sched.go`). It computes
nothing.

A model is served out of a store, and loaded by the first request for it: in LOAD_SECONDS, as long as that client stays,
or not at all, for the reason in LOAD_FAILS. All requests for it are kept in a file `requests` of the store.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VERSION = "0.33.3"


def store() -> Path:
    return Path(os.environ["OLLAMA_MODELS"])


def address() -> tuple[str, int]:
    host, _, port = os.environ["OLLAMA_HOST"].rpartition(":")
    return host.strip("[]"), int(port)


def layers(name: str) -> dict[str, Path]:
    """The files of a model by the last part of their type. Raises `OSError` where the store does not have it."""
    model, _, tag = name.partition(":")
    namespace, _, short = model.rpartition("/")
    path = store() / "manifests/registry.ollama.ai" / (namespace or "library") / short / (tag or "latest")
    manifest = json.loads(path.read_text())
    found = {}
    for layer in (manifest["config"], *manifest["layers"]):
        blob = store() / "blobs" / layer["digest"].replace(":", "-")
        if blob.stat().st_size != layer["size"]:
            raise OSError(f"{blob} has not the size of its layer")
        found[layer["mediaType"].rpartition(".")[2]] = blob
    return found


class Server(ThreadingHTTPServer):
    daemon_threads = True
    address_family = socket.AF_INET6 if ":" in os.environ.get("OLLAMA_HOST", "").rpartition(":")[0] else socket.AF_INET

    def __init__(self) -> None:
        super().__init__(address(), Handler)
        self.loaded = ""
        self.loading = threading.Lock()

    def load(self, name: str, client: socket.socket) -> None:
        """Raises `OSError`: there is no such model, it cannot be loaded, or who asked for it has gone."""
        with self.loading:
            if self.loaded == name:
                return
            found = layers(name)
            json.loads(found["v1+json"].read_text())  # the config
            assert set(json.loads(found["params"].read_text())) == {"num_gpu", "num_thread", "num_batch"}
            end = time.monotonic() + float(os.environ.get("LOAD_SECONDS", "0"))
            while time.monotonic() < end:
                if select.select([client], [], [], 0.02)[0]:
                    said("aborted load")
                    raise OSError("client connection closed before llama-server finished loading, aborting load")
            if error := os.environ.get("LOAD_FAILS"):
                raise OSError(error)
            if found["model"].read_bytes()[:4] != b"GGUF":
                raise OSError("llama-server process has terminated: exit status 1: invalid magic characters")
            self.loaded = name


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path == "/api/ps":
            length = int(os.environ["OLLAMA_CONTEXT_LENGTH"])
            models = [{"name": f"{self.server.loaded}:latest", "context_length": length}] if self.server.loaded else []
            self.answer({"models": models})
        elif self.path == "/api/version":
            self.answer({"version": VERSION})
        else:
            self.answer({}, 404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said(f"{self.path} {asked.get('prompt', asked.get('input', ''))!r}")
        try:
            self.server.load(asked["model"], self.connection)
        except FileNotFoundError:
            self.answer({"error": f"model '{asked['model']}' not found"}, 404)
        except OSError as error:
            sys.stderr.write(f'time=0 level=INFO source=sched.go msg="Load failed" error="{error}"\n')
            self.answer({"error": str(error)}, 500)
        else:
            self.answer({"response": "b", "embeddings": [[0.0]], "done": True})

    def answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def said(line: str) -> None:
    with (store() / "requests").open("a") as file:
        file.write(f"{line}\n")


def ask(path: str, body: dict[str, object] | None = None) -> None:
    """Raises `OSError`."""
    host, port = address()
    url = f"http://[{host}]:{port}{path}" if ":" in host else f"http://{host}:{port}{path}"
    data = None if body is None else json.dumps(body).encode()
    urllib.request.urlopen(urllib.request.Request(url, data), timeout=None if body else 5).close()


def serve() -> int:
    keys = Path(os.environ["HOME"], ".ollama")
    keys.mkdir(exist_ok=True)
    (keys / "id_ed25519").touch()
    try:
        server = Server()
    except OSError as error:
        print(f"Error: listen tcp {os.environ['OLLAMA_HOST']}: bind: {error.strerror.lower()}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print(f"Listening on {os.environ['OLLAMA_HOST']} (version {VERSION})", file=sys.stderr, flush=True)
    server.serve_forever()
    return 0


def run(name: str, prompt: str) -> int:
    path, key = ("/api/embed", "input") if prompt else ("/api/generate", "prompt")
    print("\x1b[?25l⠋ \x1b[K", end="", file=sys.stderr)
    try:
        ask(path, {"model": name, key: prompt})
    except urllib.error.HTTPError as error:
        print(f"\x1b[?25hError: {error.code}: {json.load(error)['error']}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str]) -> int:
    match arguments:
        case ["--version"]:
            print(f"Warning: could not connect to a running Ollama instance\nWarning: client version is {VERSION}")
            return 0
        case ["serve"]:
            return serve()
        case ["list"]:
            try:
                ask("/api/version")
            except OSError as error:
                print(f"Error: {error}", file=sys.stderr)
                return 1
            return 0
        case ["run", "--", name, *prompt]:
            return run(name, " ".join(prompt))
    print(f"Error: unknown command {arguments}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
