"""Where a benchmark happens: one temporary directory, and an end for every process that was started in it.

Engines outlive the agent by design and peers put their children into sessions of their own, so the end does not
follow process trees: everything started here carries MARK in its environment, and that is looked for until nobody is
left.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from agent.runtimes import cgroups
from tests.gguf_factory import make_gguf
from tests.harness import Daemon, gone

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHER = ROOT / "agent/embedded/llama_server.py"
SMALL = ROOT / "scripts/_bench/small_engine.py"
MARK = "LLM_AGENT_BENCH"

#: An engine as everybody starts it: llama.cpp behind our launcher, or the small one; first it says its pid to whoever
#: measures.
#: A FIFO, because file times are as coarse as the kernel's tick, and the reader wakes within some microseconds.
ENGINE = """#!/bin/sh
[ -z "$STAMP" ] || echo $$ >"$STAMP"
exec {python} -E -P {program} "$@"
"""

END_SECONDS = 20.0
READY_SECONDS = 120.0  # of the last of twenty engines that load at the same time


@dataclass(frozen=True, slots=True)
class Place:
    root: Path
    model: Path
    engine: Path  # the real one
    small: Path

    def directory(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True)
        return path

    def node(self, name: str, **settings: Any) -> Daemon:
        """A node that is not started yet, whose engines are those of this place."""
        directory = self.directory(name)
        settings = {"engines": {"llama.cpp": {"binary": [str(self.engine)]}}, **settings}
        return Daemon(directory, self.model, **settings)

    def spawn(self, argv: Sequence[str], environ: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (self.root / "log").open("ab") as log:
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
                env={**os.environ, **(environ or {})}, start_new_session=True,
            )  # fmt: skip

    def end(self) -> None:
        """End everything that was started here, and see that it is gone; called after each part."""
        deadline = time.monotonic() + END_SECONDS
        while alive := self._alive():  # again, because a supervisor may just have started one more
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(alive, timeout=1)
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes survive SIGKILL: {alive}")

    def remove_cgroups(self) -> None:
        """An agent keeps its groups for its next start, which never comes for those in here."""
        for uid in self.root.glob("*/state/node.uid"):
            name = f"llm-node-agent-{uid.read_text()[:8]}"
            for location in cgroups.Cgroups.detect("auto", name).locations.values():
                if location.parent.name == name:
                    children = (str(child) for child in location.parent.iterdir() if child.is_dir())
                    cgroups.remove((*children, str(location.parent)))

    def _alive(self) -> list[psutil.Process]:
        mark, found = f"{MARK}={self.root}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError, psutil.Error):
                # An engine inherits nothing of the agent but gets a directory for temporary files, which is in here.
                environ = path.read_bytes()
                if mark in environ or f"TMPDIR={self.root}/".encode() in environ:
                    process = psutil.Process(int(path.parent.name))
                    if process.pid != os.getpid() and not gone(process.pid):
                        found.append(process)
        return found


@contextlib.contextmanager
def opened() -> Iterator[Place]:
    """A short path under /tmp: those of sockets are limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        root = Path(name)
        os.environ[MARK] = name  # for all that is started; the kernel does not show it as ours
        engine, small = root / "engine", root / "small-engine"
        for path, program in ((engine, LAUNCHER), (small, SMALL)):
            path.write_text(ENGINE.format(python=sys.executable, program=program))
            path.chmod(0o755)
        place = Place(root, make_gguf(root / "tiny.gguf"), engine, small)
        try:
            yield place
        finally:
            place.end()
            place.remove_cgroups()


def spec(place: Place, name: str, **fields: Any) -> dict[str, Any]:
    """A small deployment with the default probes; one thread, so that many of them leave the machine idle."""
    limits = {"max_num_seqs": 1, "max_model_len": 256, "threads": 1}
    return {"name": name, "model": f"file:{place.model}", "engine": "llama.cpp", "limits": limits, **fields}


def serve(place: Place, node: Daemon, count: int) -> None:
    """Bring `count` instances to READY."""
    names = [f"m{number}" for number in range(count)]
    with node.client() as client:
        for name in names:
            client.apply_deployment(spec(place, name))
    for name in names:
        node.wait(name, timeout=READY_SECONDS)


def milliseconds_since(began_ns: int) -> float:
    return (time.monotonic_ns() - began_ns) / 1e6
