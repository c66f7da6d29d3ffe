"""The real daemon for tests: started as a process, asked over its real sockets, killed without mercy.

Everything of it lies in one temporary directory. `Daemon.cleanup` ends every process that carries the node's
identity, whatever a test left behind, and reports what it had to end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

from agent.api.client import Client
from agent.errors import AgentError, Unavailable
from agent.v1 import agent_pb2 as pb

#: An engine binary that misbehaves on request: MODE in the deployment's environment says how. Beside a file `devices`
#: it claims to be built for these: what a GPU would do happens on the CPU, and the NVML double says the rest.
WRAPPER = """#!/bin/sh
if [ -e "${{0%/*}}/devices" ]; then
    case "$1" in
    --list-devices) cat "${{0%/*}}/devices"; exit 0 ;;
    --help) echo "--n-gpu-layers N  --split-mode MODE  --tensor-split SHARES" ;;
    esac
    for word; do
        shift
        case "$skip$word" in
        --device) set -- "$@" --device none; skip=skip ;;
        --n-gpu-layers|--split-mode|--tensor-split) skip=skip ;;
        skip*) skip= ;;
        *) set -- "$@" "$word" ;;
        esac
    done
fi
case "$MODE" in
exit1) echo 'error: something broke' >&2; exit 1 ;;
exit0) exit 0 ;;
never) exec sleep 1000 ;;
ignore-term) trap '' TERM ;;
badflag) set -- "$@" --no-such-flag ;;
oom) exec {python} -c "x = []
while True: x.append(bytearray(1 << 20))" ;;
crash-after) ({python} -c "import time; time.sleep($DELAY)"; kill -9 $$) & ;;
esac
case "$1" in --version) ;; *) [ -z "$GATE" ] || while [ ! -e "$GATE" ]; do sleep 0.05; done ;; esac
exec {python} -m agent.embedded.llama_server "$@"
"""

#: Seconds for what shall come, less than pytest gives to a test: only a failure takes them, or a very busy machine.
PATIENCE = 40.0

#: Short periods, so that a test sees soon what an operator sees in a minute; an engine that is only slow fails none.
FAST_PROBES: dict[str, Any] = {
    "startup": {"period_seconds": 0.1},
    "readiness": {"period_seconds": 2, "timeout_seconds": 2},
    "liveness": {"period_seconds": 2, "timeout_seconds": 2, "failure_threshold": 4},
    "inference": {"enabled": False},
}

PHASE = {number: name.removeprefix("PHASE_").lower() for name, number in pb.Phase.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def first_port() -> int:
    """Of a range of 150 that this process has for itself: below those that Linux gives to clients (32768 on), and apart
    from the other workers of a parallel run."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = 12_000 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return 20_000 + worker * share + (os.getpid() * 131 + int(time.time() * 10)) % (share - 150)


class Daemon:
    """One node in `root`. `start` may be called again after any kind of end: that is what is tested."""

    def __init__(self, root: Path, model: Path, **settings: Any) -> None:
        self.root = root
        self.model = model
        self.process: subprocess.Popen[bytes] | None = None
        self.prefix: tuple[str, ...] = ()  # a program that executes it
        self.control = root / "run" / "control.sock"
        self.readonly = root / "run" / "readonly.sock"
        wrapper = root / "engine"
        wrapper.write_text(WRAPPER.format(python=sys.executable))
        wrapper.chmod(0o755)
        first = first_port()
        config: dict[str, Any] = {
            "directories": {name: str(root / folder) for name, folder in
                            (("state", "state"), ("runtime", "run"), ("cache", "cache"), ("logs", "logs"))},
            "engines": {"llama.cpp": {"binary": [str(wrapper)]}},
            "policy": {"ports": {"first": first, "last": first + 150}, "host_memory_reserve_bytes": 0},
        }  # fmt: skip
        _merge(config, settings)
        self.config = root / "agentd.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.log = root / "agentd.log"

    # The process

    def start(self, *arguments: str, environ: Mapping[str, str] | None = None, wait: bool = True) -> Daemon:
        # Compiled modules are what an installed agent has: without them a start takes twice as long.
        dropped = ("AGENTD_", "PYTHONDONTWRITEBYTECODE")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(dropped)} | dict(environ or {})
        with self.log.open("ab") as log:
            command = [*self.prefix, sys.executable, "-m", "agent.daemon", "--user", "--config", str(self.config)]
            self.process = subprocess.Popen([*command, *arguments], stdout=log, stderr=log, env=environment)
        if wait:
            self.wait_up()
        return self

    def wait_up(self, timeout: float = PATIENCE) -> None:
        deadline = time.monotonic() + timeout
        while True:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"agentd ended with {self.process.returncode}:\n{self.log_tail()}")
            with contextlib.suppress(AgentError), self.client() as client:
                client.check_health()
                return
            assert time.monotonic() < deadline, f"agentd is not up:\n{self.log_tail()}"
            time.sleep(0.01)

    def claim_devices(self, *names: str) -> None:
        """Let the engine say that it was built for CUDA and sees these."""
        lines = [f"  CUDA{n}: {name} (81559 MiB, 81000 MiB free)" for n, name in enumerate(names)]
        (self.root / "devices").write_text("\n".join(["Available devices:", *lines, ""]))

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = PATIENCE) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout)

    def log_tail(self) -> str:
        return self.log.read_text()[-4000:] if self.log.exists() else ""

    def cleanup(self) -> list[psutil.Process]:
        """End everything. Returns what was still alive of the engines."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        left = self.engines()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        # Not wait_procs: whoever inherits them may take a second to reap, and a zombie holds nothing.
        wait_true(lambda: all(gone(process.pid) for process in left), what="engines ended")
        _remove_cgroups(self.root)
        return left

    # What it serves

    def client(self, timeout: float = 10.0) -> Client:
        return Client(self.control, timeout=timeout)

    def spec(self, name: str = "m", **fields: Any) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "name": name, "model": f"file:{self.model}", "task": "chat", "engine": "llama.cpp",
            "limits": {"max_num_seqs": 1, "max_model_len": 256, "threads": 1}, "probes": FAST_PROBES,
            "drain_seconds": 5, "stop_seconds": 5,
        }  # fmt: skip
        return _merge(spec, fields)

    def apply(self, name: str = "m", **fields: Any) -> pb.Deployment:
        with self.client() as client:
            return client.apply_deployment(self.spec(name, **fields)).deployment

    def get(self, name: str = "m") -> pb.Deployment:
        with self.client() as client:
            return client.get_deployment(name)

    def wait(self, name: str = "m", phase: str = "ready", timeout: float = PATIENCE) -> pb.Deployment:
        return self.wait_until(lambda d: PHASE[d.phase] == phase, name, timeout, what=phase)

    def wait_until(
        self, check: Callable[[pb.Deployment], bool], name: str = "m", timeout: float = PATIENCE, what: str = "so"
    ) -> pb.Deployment:
        """Watch until `check` holds; over restarts of the daemon, too."""
        deadline, last = time.monotonic() + timeout, None
        while time.monotonic() < deadline:
            with contextlib.suppress(Unavailable), self.client() as client:
                for change in client.watch(name, timeout=max(0.1, deadline - time.monotonic())):
                    if change.HasField("deployment"):
                        last = change.deployment
                        if check(last):
                            return last
        raise AssertionError(f"{name} is not {what}: {last}\n{self.log_tail()}")

    def events(self, name: str = "") -> list[pb.Event]:
        with self.client() as client:
            return client.list_events(name, limit=1000)

    def reasons(self, name: str = "m") -> list[str]:
        return [event.reason for event in self.events(name)]

    # What really runs

    def engines(self) -> list[psutil.Process]:
        """Every live process that carries this node's identity, shims included."""
        uid_file = self.root / "state" / "node.uid"
        if not uid_file.exists():
            return []
        mark = f"LLM_NODE_AGENT_NODE={uid_file.read_text().strip()}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError, psutil.Error):
                if mark in path.read_bytes().split(b"\0"):
                    process = psutil.Process(int(path.parent.name))
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
        return found

    def servers(self, name: str = "m") -> list[psutil.Process]:
        """The engine processes of one deployment, without their shims."""
        found = []
        for process in self.engines():
            with contextlib.suppress(psutil.Error):
                is_engine = "agent.embedded.llama_server" in process.cmdline()
                if is_engine and process.environ().get("LLM_NODE_AGENT_DEPLOYMENT") == name:
                    found.append(process)
        return found


def complete(endpoint: str, timeout: float = 10.0) -> dict[str, Any]:
    """A real completion of one token; raises `OSError` when it fails. The grammar makes random weights speak text."""
    import urllib.request

    body = {"prompt": "hello", "n_predict": 4, "grammar": "root ::= [a-z ]+", "cache_prompt": False}
    request = urllib.request.Request(
        endpoint + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return dict(json.load(reply))


class Traffic(threading.Thread):
    """A client that never stops asking, with `pause` seconds between; `failures` are the answers it did not get."""

    def __init__(self, endpoint: str, pause: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.endpoint = endpoint
        self.pause = pause
        self.answers = 0
        self.failures: list[str] = []
        self._halt = threading.Event()

    def run(self) -> None:
        while not self._halt.wait(self.pause):
            try:
                complete(self.endpoint)
                self.answers += 1
            except OSError as error:
                self.failures.append(repr(error))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._halt.set()
        self.join(20)


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of `into` with `other` laid over it, also in place."""
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), Mapping):
            into[key] = _merge(dict(into[key]), value)
        else:
            into[key] = value
    return into


def wait_true(check: Callable[[], Any], timeout: float = PATIENCE, what: str = "") -> Any:
    """Poll what has no event of its own."""
    deadline = time.monotonic() + timeout
    while not (value := check()):
        assert time.monotonic() < deadline, f"never came true: {what or check}"
        time.sleep(0.005)
    return value


def gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody reaped yet has."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _remove_cgroups(root: Path) -> None:
    """The groups of this node, which a daemon keeps for the next one."""
    uid_file = root / "state" / "node.uid"
    if uid_file.exists():
        name = f"llm-node-agent-{uid_file.read_text().strip()[:8]}"
        for parent, folders, _ in os.walk("/sys/fs/cgroup"):  # goes on where another test's group vanishes
            if name in folders:
                top = Path(parent, name)
                for folder in (*top.glob("*/"), top):
                    with contextlib.suppress(OSError):
                        folder.rmdir()


def daemon(root: Path, model: Path, **settings: Any) -> Iterator[Daemon]:
    """For fixtures: a node that is certain to be gone afterwards."""
    node = Daemon(root, model, **settings)
    try:
        yield node
    finally:
        node.cleanup()
