"""Container engines on this host: Docker and podman, by what they answer on their Unix sockets.

`GET /_ping` (Docker's API, which podman speaks too) tells by its headers who answers, and Docker's `GET /info` the
rest, without a library: this only says what is there, `agent.runtimes` does the work. CDI devices are listed by newer
Docker; else they are read from the specifications (github.com/cncf-tags/container-device-interface). Blocks, for
`DEADLINE` an engine at most: the daemon calls it in a thread.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent import podman
from agent.hardware import sysfs
from agent.hardware.inventory import ContainerRuntime

#: Seconds for both answers of one engine. An idle one takes milliseconds; /info counts images and containers.
DEADLINE = 2.0
#: An answer that is longer is none: /info has some 10 KiB.
_LONGEST = 4 * 1024**2
_CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")


def containers(
    root: Path = Path("/"), environ: Mapping[str, str] | None = None, deadline: float = DEADLINE
) -> tuple[ContainerRuntime, ...]:
    """Every engine that is installed, also those that cannot be used. `root` is where sockets and specifications are
    found, `environ` tells of others (DOCKER_HOST, XDG_RUNTIME_DIR) and of the commands (PATH)."""
    environ = os.environ if environ is None else environ
    found: list[ContainerRuntime] = []
    seen: set[Path] = set()
    for name, address in _sockets(environ):
        path = root / address.lstrip("/")
        try:
            real, exists = path.resolve(), path.is_socket()
        except PermissionError:
            found.append(ContainerRuntime(name, address, problem="no permission to look at the socket"))
            continue
        except (OSError, RuntimeError):  # a loop of links
            continue
        if exists and real not in seen:
            seen.add(real)
            found.append(_engine(name, address, path, deadline, root))
    remote = environ.get("DOCKER_HOST", "")
    if remote and not remote.startswith("unix://"):
        scheme = remote.partition("://")[0]
        problem = (
            f"DOCKER_HOST says {scheme}: only engines of this host are used, by a socket (unix:///run/docker.sock)"
        )
        found.append(ContainerRuntime("docker", "", problem=problem))
    names = {engine.name for engine in found}
    found += [engine for engine in _without_socket(environ) if engine.name not in names]
    return tuple(found)


def _sockets(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(engine, path): the operator's choice, the system's, the user's own. A service has no XDG_RUNTIME_DIR."""
    if environ.get("DOCKER_HOST", "").startswith("unix://"):
        yield "docker", environ["DOCKER_HOST"].removeprefix("unix://")
    own = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    yield "docker", "/var/run/docker.sock"
    yield "docker", f"{own}/docker.sock"
    yield "podman", "/run/podman/podman.sock"
    yield "podman", f"{own}/podman/podman.sock"


def _without_socket(environ: Mapping[str, str]) -> Iterator[ContainerRuntime]:
    """Installed, but not listening."""
    path = environ.get("PATH")
    if shutil.which("dockerd", path=path):
        yield ContainerRuntime("docker", "", problem="dockerd is installed and does not run: there is no socket")
    if shutil.which("podman", path=path):
        problem = "podman is installed and has no socket: `systemctl enable --now podman.socket`"
        yield ContainerRuntime("podman", "", problem=problem)


def _engine(name: str, address: str, path: Path, deadline: float, root: Path) -> ContainerRuntime:
    until = time.monotonic() + deadline
    try:
        headers, _ = _get(path, "/_ping", until)
        if number := headers.get("libpod-api-version", ""):  # also behind a docker.sock that podman-docker links to it
            # The API's version is podman's own. For /version and /info it runs programs: up to four seconds.
            name, info = "podman", {}
        else:
            info = _object("/info", _get(path, "/info", until)[1])
            number = str(info.get("ServerVersion") or "")
    except PermissionError:
        return ContainerRuntime(name, address, problem="no permission to open the socket")
    except (ConnectionRefusedError, FileNotFoundError):
        return ContainerRuntime(name, address, problem="it does not run: nothing listens on the socket")
    except TimeoutError:
        return ContainerRuntime(name, address, problem=f"it does not answer within {deadline:g} s")
    except (OSError, ValueError) as error:
        return ContainerRuntime(name, address, problem=f"its answer cannot be used: {error}")
    runtimes = info.get("Runtimes")
    return ContainerRuntime(
        name=name,
        socket=address,
        version=number,
        runtimes=tuple(sorted(map(str, runtimes))) if isinstance(runtimes, dict) else (),
        cdi_devices=_cdi(name, number, info, root),
    )


def _get(path: Path, resource: str, until: float) -> tuple[dict[str, str], bytes]:
    """Headers, by names in lower case, and body of the answer. HTTP/1.0: it is not in chunks, and ends with the
    connection. Raises `OSError`, among them `TimeoutError` after `until` (monotonic), or `ValueError`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_left(until))
        connection.connect(str(path))
        connection.sendall(f"GET {resource} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = bytearray()
        while True:
            connection.settimeout(_left(until))
            part = connection.recv(64 * 1024)
            if not part:
                break
            answer += part
            if len(answer) > _LONGEST:
                raise ValueError(f"{resource} is longer than {_LONGEST} bytes")
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    status, *lines = head.decode(errors="replace").split("\r\n")
    if not re.match(r"HTTP/1\.[01] 200\b", status):
        raise ValueError(f"{resource} answers {status or 'nothing'!r}")
    pairs = (line.partition(":") for line in lines)
    return {name.lower(): value.strip() for name, _, value in pairs}, body


def _object(resource: str, body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        raise ValueError(f"{resource} answers no JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"{resource} answers no JSON object")  # noqa: TRY004 - of their text, not of our call
    return value


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _cdi(name: str, version: str, info: dict[str, Any], root: Path) -> tuple[str, ...]:
    """Docker from 28.2 says what it found; older ones where they look, if CDI is switched on. podman always looks."""
    if name == "podman" and not podman.takes_cdi(version):
        return ()
    listed = info.get("DiscoveredDevices")
    if isinstance(listed, list) and listed:
        devices = [device for device in listed if isinstance(device, dict) and device.get("Source") == "cdi"]
        return tuple(sorted({str(device["ID"]) for device in devices if "ID" in device}))
    folders = info.get("CDISpecDirs") if name == "docker" else _CDI_FOLDERS
    return cdi_devices(folders, root) if isinstance(folders, (list, tuple)) else ()


def cdi_devices(folders: list[str] | tuple[str, ...] = _CDI_FOLDERS, root: Path = Path("/")) -> tuple[str, ...]:
    """What the specifications in these folders offer: "nvidia.com/gpu=all"."""
    names: set[str] = set()
    for folder in folders:
        for path in sysfs.folders(root / str(folder).lstrip("/")):
            if path.suffix == ".json":
                names |= _from_json(sysfs.text(path))
            elif path.suffix in {".yaml", ".yml"}:
                names |= _from_yaml(sysfs.text(path))
    return tuple(sorted(names))


def _from_json(text: str) -> set[str]:
    try:
        specification = json.loads(text)
        kind, devices = specification["kind"], specification["devices"]
        return {f"{kind}={device['name']}" for device in devices}
    except (ValueError, LookupError, TypeError):
        return set()


def _from_yaml(text: str) -> set[str]:
    """Kind and names, by lines: a specification of eight GPUs has thousands, which a YAML parser takes a second for.

    The names wanted are keys of the items of `devices` themselves; deeper ones belong to something else. Specifications
    are written by programs, in block style.
    """
    kind, names = "", set()
    section, column = "", -1
    for line in text.splitlines():
        match = re.match(r"^( *)(- +)?([A-Za-z]+):(?: +(.*))?$", line)
        if match is None:
            continue
        indent, dash, key, value = len(match[1]), match[2] or "", match[3], _scalar(match[4] or "")
        if indent == 0 and not dash:
            section, column = key, -1
            if key == "kind":
                kind = value
        elif section == "devices":
            if dash and column < 0:
                column = indent + len(dash)
            if indent + len(dash) == column and key == "name":
                names.add(value)
    return {f"{kind}={name}" for name in names if kind and name}


def _scalar(value: str) -> str:
    """Without quotes or a comment."""
    quoted = re.match(r"""^(["'])(.*?)\1""", value)
    return quoted[2] if quoted else value.split(" #", 1)[0].strip()
