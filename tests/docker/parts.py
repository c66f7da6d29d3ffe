"""Real parts on loopback: a container engine, a registry, a line between them that can be slow or dead, and images.

The engine has its socket, data and cgroups for itself. Its registry is reached through `Line`, because engines take
only loopback registries without TLS, and because registries of the real world are far away.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
import xllamacpp

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024**2

#: Who may read a registry with users: `reader` with this password, whose bcrypt hash is the only kind that it takes.
PASSWORD = "canary-registry-4711"
_HASH = "$2b$05$abcdefghijklmnopqrstuuGBIfqmHo0GUM.JNNzAGSWTZA6btKTQ2"


#: What an image of tools has besides busybox itself.
TOOLS = ("sh", "cat", "dd", "echo", "id", "kill", "mkdir", "setsid", "sleep", "touch")


class Missing(Exception):
    """Why a part cannot be had here."""


def wait(check: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
    """Poll until `check` is true; returns its value."""
    deadline = time.monotonic() + timeout
    while not (value := check()):
        assert time.monotonic() < deadline, f"never {what}"
        time.sleep(0.02)
    return value


#: Below those of agents in tests and those that Linux gives to clients, and each only once for a while: some are bound
#: long after they were chosen.
_PORTS = itertools.cycle(range(10000 + os.getpid() % 5000, 20000))


def free_port() -> int:
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a cycle does not end")


class Engine:
    """A container engine of its own in `root`, which must have a short path. `kill`, `stop`ped with SIGSTOP, `start`ed
    again: it is the same one, with the same data."""

    name = ""
    tools: tuple[str, ...] = ()

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "engine.sock"
        self.log = root / "engine.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._tools = ""

    def command(self) -> list[str | Path]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def start(self) -> None:
        """Raises `Missing` where none can run."""
        if os.geteuid() != 0:
            raise Missing(f"starting {self.name} needs root")
        if missing := [tool for tool in self.tools if shutil.which(tool) is None]:
            raise Missing(f"not installed: {', '.join(missing)} (scripts/test-docker installs what is missing)")
        with self.log.open("ab") as log:
            # It ends with the tests, even if they are killed.
            command = ["setpriv", "--pdeathsig", "TERM", *self.command()]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment())
        deadline = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < deadline:
            if self.answers():
                return
            time.sleep(0.05)
        raise Missing(f"{self.name} does not start: {self.log.read_text()[-1000:]}")

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """The Docker SDK's, as somebody else on this host would use it."""
        api = docker.APIClient(base_url=f"unix://{self.socket}", version="1.41", timeout=30)
        try:
            yield api
        finally:
            api.close()

    def clear(self) -> None:
        """All containers, and the networks that would stay on the host."""
        with self.client() as api:
            for each in api.containers(all=True):
                api.remove_container(each["Id"], v=True, force=True)
            for each in api.networks():
                if each["Name"] not in {"bridge", "host", "none", "podman"}:
                    api.remove_network(each["Id"])

    def tools_image(self) -> str:
        """The id of an image with a shell and little else; made once."""
        if self._tools:
            return self._tools
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for folder in ("bin", "tmp"):
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
                tar.addfile(entry)
            tar.add("/bin/busybox", "bin/busybox")
            for tool in TOOLS:
                entry = tarfile.TarInfo(f"bin/{tool}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
        path = self.root / "tools.tar"
        path.write_bytes(packed.getvalue())
        with self.client() as api:
            api.import_image_from_file(str(path), repository="localhost/tools", tag="v1")
            self._tools = next(str(each["Id"]) for each in api.images() if "localhost/tools" in str(each["RepoTags"]))
        return self._tools

    def version(self) -> tuple[int, ...]:
        """Of the program, which need not run."""
        said = subprocess.run([self.tools[0], "--version"], capture_output=True, text=True, check=True).stdout
        return tuple(map(int, re.findall(r"\d+", said)[:2]))

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(str(self.socket))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(100)
        return False

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(30)
        self.after_kill()

    def after_kill(self) -> None:
        """What it leaves, and would trip over."""

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            with contextlib.suppress(docker.errors.DockerException, OSError):
                self.clear()
            self.process.terminate()
            self.process.wait(30)
        self.after_stop()

    def after_stop(self) -> None:
        """What it leaves: mounts."""
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((mount for mount in mounts if mount.startswith(f"{self.root}/")), reverse=True):
            if mount != str(self.root / "full"):
                subprocess.run(["umount", mount], check=False, capture_output=True)


class Docker(Engine):
    name = "docker"
    tools = ("dockerd", "docker", "setpriv")

    def __init__(self, root: Path, *options: str) -> None:
        super().__init__(root)
        self.group = f"agentd-test-{os.getpid()}-{root.name}"
        self.options = options
        self.data = root / "data"

    def command(self) -> list[str | Path]:
        return [
            "dockerd", "--host", f"unix://{self.socket}", "--pidfile", self.root / "pid",
            "--data-root", self.data, "--exec-root", self.root / "exec",
            "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false",
            "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{self.group}", *self.options,
        ]  # fmt: skip

    def run(self, *arguments: str | Path, timeout: float = 60.0) -> str:
        command = ["docker", "--host", f"unix://{self.socket}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode != 0:
            raise AssertionError(f"{command}: {done.stderr}")
        return done.stdout.strip()

    def images(self) -> set[str]:
        listed = self.run("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}}@{{.Digest}}")
        return set(listed.splitlines())

    def forget(self) -> None:
        """All images."""
        if ids := set(self.run("images", "--quiet", "--no-trunc").split()):
            self.run("rmi", "--force", *ids)

    def after_kill(self) -> None:
        # Its containerd dies with it. Where the first process does not reap, dockerd would take that for alive.
        (self.root / "exec/containerd/containerd.pid").unlink(missing_ok=True)

    def after_stop(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((self.root / "exec/containerd/containerd.pid").read_text()), signal.SIGKILL)
        super().after_stop()
        tree = Path("/sys/fs/cgroup")  # of v2, or with one hierarchy of v1 in each folder
        tops = [*tree.glob(self.group), *tree.glob(f"*/{self.group}")]
        for group in sorted((path for top in tops for path in (top, *top.rglob("*/"))), reverse=True):
            with contextlib.suppress(OSError):
                group.rmdir()


class Podman(Engine):
    """podman's service of the Docker Engine API."""

    name = "podman"
    tools = ("podman", "setpriv")

    def command(self) -> list[str | Path]:
        registries = self.root / "registries.conf"
        registries.write_text(
            "unqualified-search-registries = []\n[[registry]]\nlocation = '127.0.0.1'\ninsecure = true\n"
        )
        settings = self.root / "containers.conf"
        # Networks of its own; and limits, for what podman takes for the highest ones needs CAP_SYS_RESOURCE.
        settings.write_text(
            '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
            f"[network]\nnetwork_config_dir = '{self.root}/networks'\n"
        )
        os.environ["CONTAINERS_REGISTRIES_CONF"] = str(registries)
        os.environ["CONTAINERS_CONF"] = str(settings)
        return [
            "podman", "--root", self.root / "data", "--runroot", self.root / "run", "--storage-driver", "overlay",
            "system", "service", "--time=0", f"unix://{self.socket}",
        ]  # fmt: skip


class Registry:
    """Debian's docker-registry (distribution), where wanted with users."""

    def __init__(self, root: Path, *, users: bool = False) -> None:
        if shutil.which("docker-registry") is None:
            raise Missing("not installed: docker-registry (scripts/test-docker installs what is missing)")
        self.root = root
        self.port = free_port()
        root.mkdir(parents=True, exist_ok=True)
        auth = ""
        if users:
            (root / "users").write_text(f"reader:{_HASH}\n")
            auth = f"auth: {{htpasswd: {{realm: test, path: {root}/users}}}}\n"
        (root / "config.yml").write_text(
            f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {root}/data}}, delete: {{enabled: true}}}}\n"
            f'http: {{addr: "127.0.0.1:{self.port}"}}\nlog: {{level: warn}}\n{auth}'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "docker-registry", "serve", self.root / "config.yml"],
                stdout=log, stderr=log,
            )  # fmt: skip
        wait(self.listens, "a registry that listens")

    def listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def blob(self, digest: str) -> Path:
        kind, _, name = digest.partition(":")
        return self.root / "data/docker/registry/v2/blobs" / kind / name[:2] / name / "data"

    def manifest(self, repository: str, tag: str) -> dict[str, Any]:
        accept = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
        url = f"http://127.0.0.1:{self.port}/v2/{repository}/manifests/{tag}"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as answer:
            body = answer.read()
            return {**json.loads(body), "digest": f"sha256:{hashlib.sha256(body).hexdigest()}"}


class Line:
    """A TCP port that leads to another one, at `rate` bytes a second to the client; `cut` breaks what is open,
    `closed` refuses what is new, and `stalled` lets nothing through."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.rate = 0.0  # 0: no limit
        self.closed = self.stalled = False
        self.carried = 0  # bytes to clients
        self.accepted = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for connection in tuple(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.closed = True
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                if self.closed:
                    client.close()
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self.target), 5)
                    server.settimeout(None)
                except OSError:
                    client.close()
                    continue
                self._open |= {client, server}
                threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, slowly: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16 * 1024):
                while self.stalled and not self.closed:
                    time.sleep(0.02)
                if slowly:
                    self.carried += len(data)
                    if self.rate:
                        time.sleep(len(data) / self.rate)
                sink.sendall(data)
        for end in (source, sink):
            self._open.discard(end)
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            if not slowly:
                end.close()


def engine_image(folder: Path) -> Path:
    """What an image of the embedded engine is built from: llama.cpp out of its wheel, behind the agent's own launcher,
    on this interpreter with its library and exactly the shared objects that they need."""
    python, library = Path(sys.executable).resolve(), Path(sysconfig.get_paths()["stdlib"])
    engine, root = Path(xllamacpp.__file__).parent, folder / "context"
    skipped = shutil.ignore_patterns(
        "__pycache__", "test", "tests", "idlelib", "ensurepip", "site-packages", "config-*"
    )
    shutil.copytree(library, root / f"python{library}", ignore=skipped)
    shutil.copytree(engine, root / "engine/engine/xllamacpp", ignore=skipped)
    shutil.copytree(next(engine.parent.glob("xllamacpp-*.dist-info")), root / "engine/engine/xllamacpp.dist-info")
    shutil.copy(ROOT / "agent/embedded/llama_server.py", root / "engine/engine/llama_server.py")
    objects = [python, *engine.rglob("*.so*"), *(library / "lib-dynload").glob("*.so")]
    for name in {python, *shared_objects(objects)}:
        if not name.is_relative_to(engine) and not name.is_relative_to(engine.parent):
            target = root / f"python{name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, target)
    (root / "tools/bin").mkdir(parents=True)
    (root / "tools/tmp").mkdir()
    shutil.copy("/bin/busybox", root / "tools/bin/busybox")
    (root / "Dockerfile").write_text(
        "FROM scratch\nCOPY python/ /\nCOPY engine/ /\nCOPY tools/ /\n"
        f"ENV PYTHONHOME={sys.base_prefix} PYTHONPATH=/engine\n"
        "ENV NVIDIA_VISIBLE_DEVICES=all\n"  # as images have that are built on CUDA's
        f'ENTRYPOINT ["{python}", "/engine/llama_server.py"]\n'
    )
    return root


def shared_objects(objects: Iterable[Path]) -> set[Path]:
    """What the loader needs for these."""
    command: list[str | Path] = ["ldd", *objects]
    linked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    return {Path(word) for word in linked.split() if word.startswith("/") and ":" not in word}


def import_vllm(engine: Docker, script: Path, name: str) -> None:
    """Make the image `name` out of the virtual environment with this `vllm`, each file where it is here. What its users
    see is as in the maker's image for CPUs (docker/Dockerfile.cpu): root, the environment on PATH, `vllm serve`."""
    environment = script.parent.parent
    python = (script.parent / "python").resolve()
    asked: list[str | Path] = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['stdlib'])"]
    library = Path(subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.strip())
    tool = Path(shutil.which("lscpu") or "/usr/bin/lscpu")  # vLLM asks it for the cores
    objects = [python, tool, *environment.rglob("*.so*"), *(library / "lib-dynload").glob("*.so")]
    needed = {tool, *(found for found in shared_objects(objects) if not found.is_relative_to(environment))}
    links = (link for link in python.parent.iterdir() if link.resolve() == python)
    command = [
        "docker", "--host", f"unix://{engine.socket}", "import",
        "--change", f"ENV PATH={script.parent}:/usr/bin:/bin", "--change", f"ENV VIRTUAL_ENV={environment}",
        "--change", 'ENTRYPOINT ["vllm", "serve"]', "-", name,
    ]  # fmt: skip
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as importing,
        tarfile.open(fileobj=importing.stdin, mode="w|") as tar,
    ):
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
        shell = tarfile.TarInfo("bin/sh")
        shell.type, shell.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(shell)
        tar.add("/bin/busybox", "bin/busybox")
        for path in (environment, *links):
            tar.add(path)
        tar.add(library, filter=lambda entry: None if "/site-packages/" in entry.name else entry)
        tar.dereference = True
        for path in needed:
            tar.add(path)
    if importing.returncode != 0:
        raise AssertionError(f"{command}: {importing.returncode}")


def random_image(folder: Path, *layers: int) -> Path:
    """What an image with layers of these sizes in bytes is built from. No two are alike, and none can be compressed."""
    folder.mkdir(parents=True)
    for number, size in enumerate(layers):
        (folder / f"part{number}").write_bytes(os.urandom(size))
    copies = "".join(f"COPY part{number} /\n" for number in range(len(layers)))
    (folder / "Dockerfile").write_text(f'FROM scratch\n{copies}CMD ["/none"]\n')
    return folder
