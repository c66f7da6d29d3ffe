"""Stands for LM Studio's daemon and its command line, which no package registry has: what the launcher and the adapter
use of them. `lms` is as its source says (2026-08-13: `createClient.ts`, `localAPIServer.ts`, subcommands; lmstudio-js:
`findOrStartLlmster.ts`): how it finds a daemon, wakes one, proves itself. llmster is as others saw it
(docs/reference/engines/lm-studio.md). Its control port speaks HTTP instead of WebSockets, and it computes nothing.

A model is loaded in LOAD_SECONDS, or not at all for the reason in LOAD_FAILS. OWN_SETTINGS: at its first start the HTTP
server puts its own settings in place of what it finds. OLD_LMS: an `lms` of before July 2026. With a file `hang` in its
home no request is answered any more; a file `requests` there has those for tokens.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VERSION = "0.0.25-1"
#: `apiServerPorts.ts`, and any other where all of them are taken.
PORTS = (41343, 52993, 16141, 39414, 22931)
CPU_ENGINE = "llama.cpp-linux-x86_64-avx2"


def install(home: Path, *engines: str) -> Path:
    """What the installer leaves below `home`, with these engines already in their place. The path of `lms`."""
    studio = home / ".lmstudio"
    daemon = Path(__file__).with_name("lm_studio_daemon_double.py")
    for program, double in (("bin/lms", Path(__file__)), (f"llmster/{VERSION}/llmster", daemon)):
        path = studio / program
        path.parent.mkdir(parents=True)
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {double} "$0" "$@"\n')
        path.chmod(0o755)
    (studio / f"llmster/{VERSION}/.bundle/{CPU_ENGINE}-2.31.2").mkdir(parents=True)
    (studio / f"llmster/{VERSION}/.bundle/{CPU_ENGINE}-2.31.2/llama-server").touch()
    for engine in engines:
        (studio / f"extensions/backends/{engine}").mkdir(parents=True)
        (studio / f"extensions/backends/{engine}/llama-server").touch()
    (studio / ".internal").mkdir()
    place = {"path": str(studio / f"llmster/{VERSION}/llmster"), "argv": [], "cwd": str(studio / f"llmster/{VERSION}")}
    (studio / ".internal/llmster-install-location.json").write_text(json.dumps(place))
    return studio / "bin/lms"


def studio() -> Path:
    return Path(os.environ["HOME"]).resolve() / ".lmstudio"


def internal(name: str) -> Path:
    return studio() / ".internal" / name


def ask(port: object, method: str, path: str, body: object = None, key: str = "") -> tuple[int, Any]:
    """Status and content: by hand, because this is started many times. Raises `OSError`."""
    data = json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.0\r\nPasskey: {key}\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(str(port))), 3) as connection:
        connection.settimeout(None)
        connection.sendall(head.encode() + data)
        answer = connection.makefile("rb").read()
    head, _, content = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


def answers(port: object) -> bool:
    try:
        return "package" in ask(port, "GET", "/lms-status")[1]
    except (OSError, ValueError):
        return False


def told(path: Path) -> object:
    try:
        return json.loads(path.read_text())["port"]
    except (OSError, ValueError):
        return None


def find() -> object:
    """The port of a daemon; None where there is none."""
    named = os.environ.get("LMS_API_SERVER_INFO_PATH")
    if named is not None and "OLD_LMS" not in os.environ:
        return port if answers(port := told(Path(named))) else None
    hint = () if "OLD_LMS" in os.environ else (told(internal("http-server.json")),)
    return next((port for port in (*hint, *PORTS) if answers(port)), None)


def client() -> object:
    """The port of a daemon, which is woken where there is none."""
    if (port := find()) is None and "LMS_API_SERVER_INFO_PATH" in os.environ:
        raise OSError(f"Failed to connect using {os.environ['LMS_API_SERVER_INFO_PATH']}.")
    if port is None:
        place = json.loads(internal("llmster-install-location.json").read_text())
        quiet = subprocess.DEVNULL
        subprocess.Popen(
            [place["path"]], cwd=place["cwd"], start_new_session=True, stdin=quiet, stdout=quiet, stderr=quiet
        )
        while (port := find()) is None:
            time.sleep(0.05)
    return port


def call(method: str, **parameters: object) -> Any:
    """Raises `OSError`."""
    status, content = ask(client(), "POST", f"/{method}", parameters, internal("lms-key-2").read_text())
    if status != 200:
        raise OSError(content)
    return content


def lms(arguments: list[str]) -> int:
    match arguments:
        case ["daemon", "status", "--json"] if find() is None:
            print('{"status":"not-running"}')
        case ["daemon", "status" | "up", "--json"]:
            info = call("info")
            print(json.dumps({"status": "running", "pid": info["pid"], "isDaemon": True}, separators=(",", ":")))
        case ["runtime", "ls"]:
            print("LLM ENGINE".ljust(60) + "SELECTED    MODEL FORMAT")
            selected = call("selected")
            for engine in call("engines"):
                print(engine.ljust(60) + ("✓" if engine == selected else " ") + "           GGUF")
        case ["runtime", "select", engine]:
            if engine not in call("engines"):
                print(f"No installed runtime extensions found matching: {engine}")
                return 1
            call("select", engine=engine)
            print(f"Selected {engine} for GGUF")
        case ["ls", "--json"]:
            print(json.dumps(call("models"), separators=(",", ":")))
        case _:
            return act(arguments)
    return 0


def act(arguments: list[str]) -> int:
    match arguments:
        case ["load", path, "--exact", "--local", "--yes", *options]:
            given = dict(zip(options[::2], options[1::2], strict=True))
            print(f"\x1b[?25l\rLoading {path} ⠋", end="")
            if path not in [model["path"] for model in call("models")]:
                raise OSError(f'No model found with path being exactly "{path}".')
            length, parallel = int(given["--context-length"]), int(given["--parallel"])
            config = {"context_length": length, "parallel": parallel, "gpu": given["--gpu"]}
            call("load", path=path, identifier=given["--identifier"], config=config)
        case ["server", "start", "--port", port, "--bind", address]:
            call("start_http", port=int(port), address=address)
            with socket.create_connection((address, int(port)), 5):
                print(f"Success! Server is now running on port {port}")
        case ["server", "stop"]:
            call("stop_http")
        case _:
            raise OSError(f"unknown command {arguments}")
    return 0


def main(arguments: list[str]) -> int:
    try:
        return lms(arguments)
    except OSError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
