"""llmster, as `lm_studio_double.py` says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VERSION = "0.0.25-1"
#: `apiServerPorts.ts`, and any other where all of them are taken.
PORTS = (41343, 52993, 16141, 39414, 22931)


def studio() -> Path:
    return Path(os.environ["HOME"]).resolve() / ".lmstudio"


def internal(name: str) -> Path:
    return studio() / ".internal" / name


class Daemon:
    """What the control port can be asked for: methods by name, each with its parameters."""

    def __init__(self) -> None:
        self.loaded: dict[str, dict[str, object]] = {}
        self.http: ThreadingHTTPServer | None = None
        self.settings = json.loads(internal("http-server-config.json").read_text() or "{}")

    def info(self) -> object:
        return {"pid": os.getpid(), "isDaemon": True, "version": VERSION}

    def engines(self) -> object:
        names = sorted(path.name.rpartition("-") for path in (studio() / "extensions/backends").iterdir())
        return [f"{name}@{version}" for name, _, version in names]

    def selected(self) -> object:
        try:
            (one,) = json.loads(internal("backend-preferences-v1.json").read_text())
        except OSError:
            return ""
        return f"{one['name']}@{one['version']}"

    def select(self, engine: str) -> object:
        name, _, version = engine.partition("@")
        preferred = [{"model_format": "gguf", "name": name, "version": version}]
        return internal("backend-preferences-v1.json").write_text(json.dumps(preferred))

    def models(self) -> object:
        folder = studio() / "models"
        return [
            {"path": str(path.relative_to(folder)), "modelKey": path.parent.name} for path in folder.glob("*/*/*.gguf")
        ]

    def load(self, path: str, identifier: str, config: dict[str, object]) -> object:
        time.sleep(float(os.environ.get("LOAD_SECONDS", "0")))
        if error := os.environ.get("LOAD_FAILS"):
            raise OSError(error)
        if (studio() / "models" / path).read_bytes()[:4] != b"GGUF":
            raise OSError("Failed to load model. gguf_init_from_file: invalid magic characters")
        # Its workers lead sessions of their own, and here nobody ends them.
        worker = [sys.executable, "-S", "-c", "import time; time.sleep(1000)"]
        (studio() / "worker").write_text(str(subprocess.Popen(worker, start_new_session=True).pid))
        self.loaded[identifier] = config
        return None

    def start_http(self, port: int, address: str) -> object:
        if os.environ.get("OWN_SETTINGS") and not internal("seen").exists():
            internal("seen").touch()
            self.settings = {"justInTimeModelLoading": True}
        else:
            self.settings = json.loads(internal("http-server-config.json").read_text())
        internal("http-server-config.json").write_text(json.dumps(self.settings | {"port": port}))
        try:
            self.http = serve(address, port, Api, self)
        except OSError as error:
            raise OSError(f"listen EADDRINUSE: address already in use {address}:{port}") from error
        return None

    def stop_http(self) -> object:
        if self.http is not None:
            self.http.shutdown()
            self.http.server_close()
        return None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    daemon: Daemon


def serve(address: str, port: int, handler: type[BaseHTTPRequestHandler], daemon: Daemon) -> ThreadingHTTPServer:
    server = Server((address, port), handler)
    server.daemon = daemon
    threading.Thread(target=server.serve_forever, daemon=True, args=(0.02,)).start()
    return server


class Handler(BaseHTTPRequestHandler):
    server: Server

    def asked(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class Control(Handler):
    def do_GET(self) -> None:
        self.answer({"package": "@lmstudio/llmster", "version": VERSION})

    def do_POST(self) -> None:
        asked = self.asked()
        if self.headers["Passkey"] != internal("lms-key-2").read_text():
            self.answer("Failed to authenticate: Invalid passkey for lms CLI client.", 401)
            return
        try:
            self.answer(getattr(self.server.daemon, self.path[1:])(**asked))
        except OSError as error:
            self.answer(str(error), 500)


class Api(Handler):
    def do_GET(self) -> None:
        if (studio() / "hang").exists():
            time.sleep(1000)
        if self.path == "/lmstudio-greeting":
            self.answer({"lmstudio": True})
        elif self.path == "/api/v1/models":
            loaded = [{"id": name, "config": config} for name, config in self.server.daemon.loaded.items()]
            self.answer({"models": [{"key": "model", "loaded_instances": loaded}]})
        elif self.path == "/v1/models":
            self.answer({"data": [{"id": name} for name in self.server.daemon.loaded]})
        else:  # a 200, whatever is asked for
            self.answer({"error": f"Unexpected endpoint or method. (GET {self.path})"})

    def do_POST(self) -> None:
        asked = self.asked()
        with (studio() / "requests").open("a") as file:
            file.write(f"{self.path} {asked['model']}\n")
        daemon = self.server.daemon
        if daemon.settings.get("justInTimeModelLoading"):
            daemon.loaded.setdefault(asked["model"], {})
        if asked["model"] not in daemon.loaded:
            self.answer({"error": "No models loaded."}, 400)
        elif asked.get("stream"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for delta in ("one ", "two"):
                self.wfile.write(f"data: {json.dumps({'choices': [{'delta': {'content': delta}}]})}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
        else:
            self.answer({"choices": [{"text": "b"}]})


def main(folder: Path) -> int:
    internal("").mkdir(parents=True, exist_ok=True)
    lock = internal("llmster-pid.lock")
    if lock.exists() and Path("/proc", lock.read_text()).exists():
        print("LM Studio and llmster cannot run at the same time")
        return 1
    lock.write_text(str(os.getpid()))
    internal("http-server-config.json").touch()
    backends = studio() / "extensions/backends"
    backends.mkdir(parents=True, exist_ok=True)
    for engine in (folder / ".bundle").iterdir():  # what it brought along is moved
        if not (backends / engine.name).exists():
            engine.rename(backends / engine.name)
    internal("lms-key-2").write_text(os.urandom(8).hex())
    control = serve_control(Daemon())
    where = {"host": "127.0.0.1", "port": control.server_address[1], "pid": os.getpid()}
    internal("http-server.json").write_text(json.dumps(where))
    print(f"llmster {VERSION} is up", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        signal.pause()


def serve_control(daemon: Daemon) -> ThreadingHTTPServer:
    for port in PORTS:
        with contextlib.suppress(OSError):
            return serve("127.0.0.1", port, Control, daemon)
    return serve("127.0.0.1", 0, Control, daemon)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute().parent))
