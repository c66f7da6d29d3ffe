"""Container engines by their sockets: a real dockerd, and recorded answers of others on a real socket."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.hardware.containers import cdi_devices, containers
from agent.hardware.inventory import ContainerRuntime
from agent.supervision.hardware import well
from tests.hardware.trees import as_nobody, write

#: Docker 20.10 on Debian 12, shortened to what is looked at and a little more.
DOCKER_20 = {
    "/_ping": "OK",
    "/info": {
        "ServerVersion": "20.10.24+dfsg1",
        "Runtimes": {"io.containerd.runc.v2": {"path": "runc"}, "runc": {"path": "runc"}},
        "DefaultRuntime": "runc",
    },
}
#: Composed from the API's documentation (v1.50): CDI devices are listed since Docker 28.2.
DOCKER_28 = {
    "/_ping": "OK",
    "/info": {
        "ServerVersion": "28.3.2",
        "Runtimes": {"nvidia": {"path": "nvidia-container-runtime"}, "runc": {"path": "runc"}},
        "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
        "DiscoveredDevices": [
            {"Source": "cdi", "ID": "nvidia.com/gpu=all"},
            {"Source": "cdi", "ID": "nvidia.com/gpu=0"},
            {"Source": "other", "ID": "x"},
        ],
    },
}
#: podman as it answers a greeting (4.3, with another number); nothing else is asked.
PODMAN = {"/_ping": "OK"}
PODMAN_HEADERS = "Libpod-Api-Version: 5.4.2\r\nServer: Libpod/5.4.2 (linux)\r\n"
#: As nvidia-ctk writes it: keys in the order of the alphabet, or in that of the specification with wider indents.
SORTED = """---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
  hooks:
  - args:
    - nvidia-cdi-hook
    - create-symlinks
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/bin/nvidia-smi
    hostPath: /usr/bin/nvidia-smi
    name: not-a-device
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      name: not-a-device
    env:
    - "name: not-a-device"
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: GPU-6ab0d4a5-b7d7-4e4b-9d3a-0f1f3ed6a4f5
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: all
kind: nvidia.com/gpu
"""
INDENTED = """cdiVersion: 0.3.0
kind: nvidia.com/gpu  # WSL
devices:
    - name: all
      annotations:
          name: not-a-device
      containerEdits:
          deviceNodes:
              - path: /dev/dxg
containerEdits:
    env:
        - NVIDIA_VISIBLE_DEVICES=void
"""
AMD = (
    '{"cdiVersion": "0.6.0", "kind": "amd.com/gpu", "devices": [{"name": "0", "containerEdits": {}}, {"name": "all"}]}'
)


class Engine:
    """Speaks enough HTTP on a Unix socket to give recorded answers; each request is a connection of its own."""

    def __init__(self, path: Path, answer: Callable[[str], bytes]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.asked: list[str] = []
        self._answer = answer
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(4096).decode().split("\r\n")[0])
                connection.sendall(self._answer(self.asked[-1].split()[1]))

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


@pytest.fixture
def engine() -> Iterator[Callable[..., Engine]]:
    """Starts an engine with the given answers: by question, or by a function."""
    running: list[Engine] = []

    def start(path: Path, answers: dict[str, Any] | Callable[[str], bytes]) -> Engine:
        headers = PODMAN_HEADERS if answers is PODMAN else "Server: Docker/20.10.24 (linux)\r\n"
        known = answers if callable(answers) else lambda question: http(answers[question], headers)
        running.append(Engine(path, known))
        return running[-1]

    yield start
    for one in running:
        one.close()


def http(value: Any, headers: str) -> bytes:
    """As Go's server answers HTTP/1.0."""
    head = f"HTTP/1.0 200 OK\r\nApi-Version: 1.41\r\n{headers}\r\n"
    return head.encode() + (value if isinstance(value, str) else json.dumps(value)).encode()


def look(root: Path, **environ: str) -> tuple[ContainerRuntime, ...]:
    return containers(root, {"PATH": "", **environ})


def test_a_host_without_engines_has_none(tmp_path: Path) -> None:
    assert look(tmp_path) == ()


def test_docker_says_its_version_and_runtimes(public_path: Path, engine: Callable[..., Engine]) -> None:
    docker = engine(public_path / "var/run/docker.sock", DOCKER_20)

    assert look(public_path) == (
        ContainerRuntime("docker", "/var/run/docker.sock", "20.10.24+dfsg1", ("io.containerd.runc.v2", "runc")),
    )
    assert docker.asked == ["GET /_ping HTTP/1.0", "GET /info HTTP/1.0"]


def test_a_newer_docker_lists_its_devices_itself(public_path: Path, engine: Callable[..., Engine]) -> None:
    engine(public_path / "var/run/docker.sock", DOCKER_28)
    write(public_path, "etc/cdi/amd.json", AMD)

    (docker,) = look(public_path)

    assert docker.runtimes == ("nvidia", "runc")
    assert docker.cdi_devices == ("nvidia.com/gpu=0", "nvidia.com/gpu=all")


def test_a_docker_that_says_where_it_looks_has_what_is_there(public_path: Path, engine: Callable[..., Engine]) -> None:
    info = DOCKER_28["/info"] | {"DiscoveredDevices": None, "CDISpecDirs": ["/etc/cdi"]}
    engine(public_path / "var/run/docker.sock", DOCKER_28 | {"/info": info})
    write(public_path, "etc/cdi/amd.json", AMD)
    write(public_path, "var/run/cdi/nvidia.yaml", SORTED)

    (docker,) = look(public_path)

    assert docker.cdi_devices == ("amd.com/gpu=0", "amd.com/gpu=all")


def test_a_docker_without_cdi_has_no_such_devices_whatever_is_there(
    public_path: Path, engine: Callable[..., Engine]
) -> None:
    engine(public_path / "var/run/docker.sock", DOCKER_20)
    write(public_path, "etc/cdi/nvidia.yaml", SORTED)

    assert look(public_path)[0].cdi_devices == ()


def test_podman_is_known_by_its_answer_and_reads_the_specifications(
    public_path: Path, engine: Callable[..., Engine]
) -> None:
    """Behind the socket that DOCKER_HOST names. It is only greeted: for more it runs programs, which takes seconds."""
    asked = engine(public_path / "run/podman/podman.sock", PODMAN).asked
    write(public_path, "etc/cdi/nvidia.yaml", INDENTED)

    (podman,) = look(public_path, DOCKER_HOST="unix:///run/podman/podman.sock")

    assert (podman.name, podman.version, podman.socket) == ("podman", "5.4.2", "/run/podman/podman.sock")
    assert asked == ["GET /_ping HTTP/1.0"]
    assert podman.cdi_devices == ("nvidia.com/gpu=all",)


def test_a_podman_that_passes_over_cdi_devices_has_none(public_path: Path, engine: Callable[..., Engine]) -> None:
    """Before 5.4, containers that Docker's API makes of it get none, and nothing is said."""
    headers = PODMAN_HEADERS.replace("5.4.2", "5.3.1")
    engine(public_path / "run/podman/podman.sock", lambda question: http(PODMAN[question], headers))
    write(public_path, "etc/cdi/nvidia.yaml", INDENTED)

    (podman,) = look(public_path)

    assert (podman.version, podman.cdi_devices) == ("5.3.1", ())


def test_the_users_own_engines_are_found_too(public_path: Path, engine: Callable[..., Engine]) -> None:
    engine(public_path / "run/user/7/docker.sock", DOCKER_20)
    engine(public_path / "run/user/7/podman/podman.sock", PODMAN)

    found = look(public_path, XDG_RUNTIME_DIR="/run/user/7")

    assert [(one.name, one.socket) for one in found] == [
        ("docker", "/run/user/7/docker.sock"),
        ("podman", "/run/user/7/podman/podman.sock"),
    ]


def test_one_socket_by_two_names_is_one_engine(public_path: Path, engine: Callable[..., Engine]) -> None:
    engine(public_path / "run/docker.sock", DOCKER_20)
    write(public_path, "var/run", "-> ../run")

    assert len(look(public_path, DOCKER_HOST="unix:///run/docker.sock")) == 1


def test_an_engine_on_another_host_is_not_used(tmp_path: Path) -> None:
    (docker,) = look(tmp_path, DOCKER_HOST="tcp://user:secret@10.0.0.1:2376")

    assert docker.problem.startswith("DOCKER_HOST says tcp: only engines of this host are used")
    assert "secret" not in docker.problem


def test_an_engine_that_does_not_run_is_said(public_path: Path) -> None:
    path = public_path / "var/run/docker.sock"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))

    assert look(public_path)[0].problem == "it does not run: nothing listens on the socket"


def test_a_socket_that_may_not_be_opened_is_said(public_path: Path, engine: Callable[..., Engine]) -> None:
    engine(public_path / "var/run/docker.sock", DOCKER_20)
    engine(public_path / "run/podman/podman.sock", PODMAN)
    (public_path / "var/run/docker.sock").chmod(0)
    (public_path / "run/podman").chmod(0)

    with as_nobody():
        docker, podman = look(public_path)

    assert (docker.name, docker.problem) == ("docker", "no permission to open the socket")
    assert (podman.name, podman.problem) == ("podman", "no permission to look at the socket")


def test_an_engine_that_hangs_is_given_up(public_path: Path) -> None:
    """It takes the connection and never answers."""
    path = public_path / "var/run/docker.sock"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()

        (docker,) = containers(public_path, {"PATH": ""}, deadline=0.05)

    assert docker.problem == "it does not answer within 0.05 s"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "answers 'nothing'"),
        (b"\xff\x00garbage", "answers"),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n{}", "'HTTP/1.1 500 Internal Server Error'"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "answers no JSON"),
        (b"HTTP/1.0 200 OK\r\n\r\n[]", "answers no JSON object"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 4 * 1024**2, "is longer than"),
    ],
)
def test_answers_that_make_no_sense_are_a_problem_of_that_engine(
    public_path: Path, engine: Callable[..., Engine], answer: bytes, problem: str
) -> None:
    engine(public_path / "var/run/docker.sock", lambda _: answer)

    (docker,) = look(public_path)

    assert problem in docker.problem
    assert docker.version == ""


@pytest.mark.parametrize(
    "info",
    [{}, {"Runtimes": []}, {"Runtimes": None, "CDISpecDirs": "x"}, {"DiscoveredDevices": [1, {"Source": "cdi"}]}],
)
def test_fields_of_other_types_are_left_out(
    public_path: Path, engine: Callable[..., Engine], info: dict[str, Any]
) -> None:
    engine(public_path / "var/run/docker.sock", {"/_ping": "OK", "/info": info})

    (docker,) = look(public_path)

    assert (docker.runtimes, docker.cdi_devices, docker.problem) == ((), (), "")


def test_an_engine_that_is_installed_and_does_not_listen_is_said(public_path: Path) -> None:
    for name in ("dockerd", "podman"):
        write(public_path, f"bin/{name}", "#!/bin/sh")
        (public_path / "bin" / name).chmod(0o755)

    docker, podman = look(public_path, PATH=str(public_path / "bin"))

    assert (docker.name, docker.socket) == ("docker", "")
    assert "dockerd is installed and does not run" in docker.problem
    assert "systemctl enable --now podman.socket" in podman.problem


@pytest.mark.parametrize("text", [SORTED, INDENTED])
def test_specifications_are_read_as_a_yaml_parser_reads_them(tmp_path: Path, text: str) -> None:
    write(tmp_path, "etc/cdi/nvidia.yaml", text)
    parsed = yaml.safe_load(text)

    assert cdi_devices(root=tmp_path) == tuple(sorted(f"{parsed['kind']}={one['name']}" for one in parsed["devices"]))


@pytest.mark.parametrize(
    "text", ["", "kind", "devices:\n- name: x", "kind: a\ndevices: {}", "\udcff", "{", '{"kind": 1}']
)
@pytest.mark.parametrize("suffix", ["json", "yaml", "yml", "txt"])
def test_specifications_that_cannot_be_understood_offer_nothing(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"etc/cdi/x.{suffix}"
    path.parent.mkdir(parents=True)
    path.write_text(text, errors="surrogateescape")

    assert cdi_devices(root=tmp_path) == ()


def test_an_engine_without_a_socket_is_no_reason_to_ask_another_again() -> None:
    docker, silent = ContainerRuntime("docker", "/run/docker.sock"), ContainerRuntime("podman", "", problem="no socket")
    hung = ContainerRuntime("podman", "/run/podman/podman.sock", problem="it does not answer")
    assert well((docker, silent))
    assert not any(map(well, [(), (silent,), (docker, hung)]))


@pytest.fixture
def dockerd(public_path: Path) -> Iterator[Path]:
    """A Docker of its own, without a network, beside any other."""
    program = shutil.which("dockerd")
    if program is None or os.geteuid() != 0:
        pytest.skip("needs dockerd, and root")
    path = public_path / "docker.sock"
    folders = [f"--{name}={public_path / name}" for name in ("data-root", "exec-root", "pidfile")]
    process = subprocess.Popen(
        [program, *folders, f"--host=unix://{path}", "--iptables=false", "--bridge=none", "--storage-driver=vfs"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:  # ends with the process
        said.append(line)
        if "API listen on" in line:
            break
    drain = threading.Thread(target=process.stdout.read)
    drain.start()
    if process.poll() is not None:
        pytest.skip(f"dockerd does not run here: {said[-1:]}")
    yield path
    process.terminate()
    process.wait(30)
    drain.join()
    process.stdout.close()


@pytest.mark.slow
def test_a_real_docker_answers(dockerd: Path) -> None:
    told = subprocess.run(
        ["docker", "--host", f"unix://{dockerd}", "version", "--format", "{{.Server.Version}}"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    found = containers(environ={"PATH": "", "DOCKER_HOST": f"unix://{dockerd}"})

    ours = next(one for one in found if one.socket == str(dockerd))
    assert (ours.name, ours.version, ours.problem) == ("docker", told.stdout.strip(), "")
    assert "runc" in ours.runtimes
