"""Machines with a real systemd: containers whose first process it is, in a container engine of the tests' own.

The engine (dockerd) has its socket, data and cgroups for itself and no network; the machines see this checkout, its
virtual environment and its interpreter read-only at their own paths, so what runs is what is being tested.
`boot.sh` says how systemd gets a cgroup tree without touching the host's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd" / "agentd.service"
HERE = Path(__file__).parent
PREFIX = Path(sys.base_prefix)

#: Where the unit looks for the agent.
INSTALLED = "/opt/llm-node-agent"
AGENTCTL = f"{INSTALLED}/bin/agentctl"

TOOLS = ("docker", "dockerd", "mmdebstrap", "setpriv")
#: What the interpreter, gRPC and the engine need beside systemd. An interpreter of the distribution comes along itself.
PACKAGES = ("systemd-sysv", "dbus", "libpython3-stdlib", "libexpat1", "libstdc++6", "libgomp1")

#: What the tests deploy: with a secret, and with limits that the kernel may or may not enforce.
SECRET = "not-for-the-journal-4711"
SPEC = """
name: {name}
model: file:{model}
limits: {{max_num_seqs: 1, max_model_len: 256, threads: 1, memory_bytes: 1GiB, pids: 100}}
secrets: {{ENGINE_TOKEN: {{file: /etc/llm-node-agent/token}}}}
"""

#: Asks until its stdin ends, then tells how that went.
TRAFFIC = """
import json, sys
from tests.harness import Traffic
with Traffic(sys.argv[1], pause=0.02) as traffic:
    print("asking", flush=True)
    sys.stdin.read()
print(json.dumps({"answers": traffic.answers, "failures": traffic.failures}))
"""


class NoEngine(Exception):
    """Why there can be no container engine here."""


def cached_rootfs(release: str) -> Path:
    """A small Debian with systemd, as a tar file. Made once, which takes about half a minute, and kept."""
    packages = [*PACKAGES, *(["python3"] if Path("/usr") == PREFIX else [])]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-node-agent-tests"
    tar = cache / f"{release}-{'-'.join(packages)}.tar"
    if not tar.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = tar.with_name(f"{os.getpid()}.partial.tar")
        try:
            _run("mmdebstrap", "--quiet", "--variant=essential", "--dpkgopt=force-unsafe-io",
                 f"--include={','.join(packages)}", release, partial, timeout=280)  # fmt: skip
            partial.rename(tar)
        finally:
            partial.unlink(missing_ok=True)
    return tar


class Docker:
    """A container engine of its own in `root`, which must have a short path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.group = f"agentd-test-{os.getpid()}"
        self._socket = f"unix://{root}/docker.sock"
        self._log = root / "dockerd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises `NoEngine` where none can run."""
        if os.geteuid() != 0:
            raise NoEngine("starting a container engine needs root")
        if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
            raise NoEngine(f"not installed: {', '.join(missing)} (scripts/test-systemd installs what is missing)")
        with self._log.open("wb") as log:
            # It ends with the tests, even if they are killed.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "dockerd", "--host", self._socket,
                 "--data-root", self.root / "data", "--exec-root", self.root / "exec", "--pidfile", self.root / "pid",
                 "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false",
                 "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{self.group}"],
                stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < deadline:
            if subprocess.run(self.command("version"), capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise NoEngine(f"dockerd does not start: {self._log.read_text()[-1000:]}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _run("umount", self.root / "data")  # dockerd binds it to itself
        shutil.rmtree(self.root)
        for group in self.groups():
            group.rmdir()

    def groups(self) -> list[Path]:
        """The cgroups of this engine and all below them, innermost first."""
        tree = Path("/sys/fs/cgroup")  # of v2, or with one hierarchy of v1 in each folder
        tops = [*tree.glob(self.group), *tree.glob(f"*/{self.group}")]
        return sorted((path for top in tops for path in (top, *top.rglob("*/"))), reverse=True)

    def mounts(self) -> list[str]:
        return [line for line in Path("/proc/mounts").read_text().splitlines() if f"{self.root}/" in line]

    def command(self, *arguments: str | Path) -> list[str | Path]:
        return ["docker", "--host", self._socket, *arguments]

    def run(self, *arguments: str | Path, timeout: float = 60.0, **more: Any) -> str:
        return _run(*self.command(*arguments), timeout=timeout, **more)


@dataclass(frozen=True)
class Serving:
    """A deployment that answers, as far as nothing of it may change while only the agent dies."""

    endpoint: str
    instance: str
    pid: int
    started: str  # the kernel's start time of the process: a pid may be used again
    restarts: int


class Machine:
    """One machine. `boot` and `reboot` leave it with systemd running; `agentd` is installed, enabled, not started."""

    def __init__(self, docker: Docker, release: str, models: Path) -> None:
        self.docker = docker
        self.release = release
        docker.run("import", cached_rootfs(release), f"node:{release}")
        binds = {HERE / "boot.sh", ROOT, models, Path(sys.prefix), PREFIX} - {Path("/usr")}
        docker.run(
            "create", "--name", release, "--hostname", release, "--network", "none", "--cgroupns", "private",
            "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
            "--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp", "--stop-signal", "SIGRTMIN+3",
            "--env", "container=docker", "--workdir", ROOT,
            *(f"--volume={path}:{path}:ro" for path in sorted(binds)), f"node:{release}", HERE / "boot.sh",
        )  # fmt: skip

    # The machine

    def boot(self) -> None:
        self.docker.run("start", self.release)
        self.wait(lambda: self.run("systemctl", "is-system-running", check=False) in {"running", "degraded"}, "booted")

    def reboot(self, *, cleanly: bool) -> None:
        """With a shutdown or without one; a new boot id, an empty /run and the same disk follow."""
        how = ("stop", "--time", "60") if cleanly else ("kill",)
        self.docker.run(*how, self.release, timeout=90)
        self.docker.run("wait", self.release)
        self.boot()

    def remove(self) -> None:
        self.docker.run("rm", "--force", self.release)

    def run(self, *command: str | Path, **more: Any) -> str:
        """The stdout of a command in the machine, as root. Raises `CalledProcessError` with its stderr in a note."""
        return self.docker.run("exec", "--interactive", self.release, *command, **more).rstrip("\n")

    def python(self, code: str, *arguments: str) -> str:
        return self.run(f"{INSTALLED}/bin/python", "-c", code, *arguments)

    def write(self, path: str, text: str) -> None:
        self.run("sh", "-c", 'mkdir -p "$(dirname "$0")" && cat >"$0"', path, stdin=text)

    def kill(self, sig: str, pid: int) -> None:
        self.run("sh", "-c", f"kill -{sig} {pid}")

    def read(self, path: str) -> str:
        return self.run("cat", path)

    def wait(self, check: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
        """Poll until `check` is true; returns its value."""
        deadline = time.monotonic() + timeout
        while not (value := check()):
            assert time.monotonic() < deadline, f"never {what}:\n{self.run('journalctl', '--no-pager', '-n', '60')}"
            time.sleep(0.1)
        return value

    # systemd

    def install(self) -> None:
        """As an administrator would: the agent where the unit expects it, the unit, enabled. Only the pause before a
        restart is a shorter one, so that tests need not wait for it."""
        self.run("ln", "-s", sys.prefix, INSTALLED)
        self.write("/etc/systemd/system/agentd.service", UNIT.read_text())
        self.write("/etc/systemd/system/agentd.service.d/restart.conf", "[Service]\nRestartSec=200ms\n")
        self.systemctl("daemon-reload")
        self.systemctl("enable", "agentd")

    def systemctl(self, *arguments: str, **more: Any) -> str:
        try:
            return self.run("systemctl", *arguments, **more)
        except subprocess.CalledProcessError as error:
            error.add_note(self.run("journalctl", "--no-pager", "--lines=20", "--unit=agentd"))
            raise

    def show(self, name: str) -> str:
        """One property of the unit."""
        return self.systemctl("show", "--property", name, "--value", "agentd")

    @property
    def version(self) -> int:
        """Of systemd."""
        return int(self.systemctl("--version").split()[1])

    @property
    def main_pid(self) -> int:
        return int(self.show("MainPID"))

    def cursor(self) -> str:
        """A place in the journal: what is logged from now on."""
        return str(json.loads(self.run("journalctl", "--output=json", "-n", "1"))["__CURSOR"])

    def journal(self, *arguments: str) -> list[dict[str, Any]]:
        """What the unit and systemd about it logged."""
        text = self.run("journalctl", "--output=json", "--all", "--unit=agentd", *arguments)
        return [json.loads(line) for line in text.splitlines()]

    def messages(self, cursor: str) -> list[str]:
        return [str(entry["MESSAGE"]) for entry in self.journal(f"--after-cursor={cursor}")]

    # The agent

    def ctl(self, *arguments: str, **more: Any) -> dict[str, Any]:
        return dict(json.loads(self.run(AGENTCTL, *arguments, "--output", "json", **more)))

    def apply(self, name: str, model: Path) -> None:
        self.run(AGENTCTL, "apply", "-f", "-", stdin=SPEC.format(name=name, model=model))

    def serving(self, name: str = "m") -> Serving:
        """What serves now; waits until it is ready."""
        got = self.ctl("wait", "--for", "ready", "--timeout", "60s", name)["deployment"]
        pid = int(got["instance"]["pid"])
        return Serving(got["endpoint"], got["instance"]["id"], pid, self.started(pid), got["restarts"])

    def started(self, pid: int) -> str:
        return self.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[19]

    @contextlib.contextmanager
    def traffic(self, endpoint: str) -> Iterator[None]:
        """A client that never stops asking meanwhile. Fails if one of its questions was not answered."""
        command = self.docker.command("exec", "--interactive", self.release, f"{INSTALLED}/bin/python", "-c", TRAFFIC)
        with subprocess.Popen([*command, endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            try:
                assert client.stdout is not None
                assert client.stdout.readline() == "asking\n"
                yield
                told = json.loads(client.communicate(timeout=30)[0])
            finally:
                client.kill()
        assert told["failures"] == []
        assert told["answers"] > 0


def _run(*command: str | Path, timeout: float = 60.0, check: bool = True, stdin: str | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, input=stdin)
    if check and done.returncode != 0:
        error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        error.add_note(done.stderr)
        raise error
    return done.stdout
