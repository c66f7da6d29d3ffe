"""Engines in containers: from a crash to the replacement, beside the same container engine's own `--restart=always`;
and how long until twenty of them are shown again by a restarted agent.

Each container engine (dockerd, podman) is one of the tests' own, with its data in a temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from agent.runtimes import docker_config, docker_engine
from agent.runtimes.base import Container, Identity, LaunchRequest, Mount
from scripts._bench.adoption import serving
from scripts._bench.crash import answers
from scripts._bench.figures import Figure, Sample, Target
from scripts._bench.place import Place, milliseconds_since, spec
from scripts._bench.startup import notified, start_until_ready
from tests.docker.parts import Docker, Engine, Missing, Podman, engine_image
from tests.harness import Daemon, free_port, wait_true

PART = "containers"
RUNS, QUICK_RUNS = 7, 1
ADOPTIONS, QUICK_ADOPTIONS = 5, 1
MANY, QUICK_MANY = 20, 3
#: dockerd takes a container that ran for less as failing again, and waits longer.
HEALTHY_SECONDS = 10.5
WAIT_SECONDS = 60.0
TIMES = 1.2

IMAGE, TAG = "localhost/bench/llama-server", "v1"
COMMAND = [str(Path(sys.executable).resolve()), "/engine/llama_server.py"]


def measure(place: Place, *, quick: bool) -> list[Figure]:
    figures: list[Figure] = []
    for kind in (Docker, Podman):
        with tempfile.TemporaryDirectory(prefix="b-", ignore_cleanup_errors=True) as name:
            engine = kind(Path(name))
            try:
                engine.start()
                _build(engine)
                figures.append(_crash(place, engine, QUICK_RUNS if quick else RUNS))
                figures.append(_adoption(place, engine, quick=quick))
            except Missing as reason:
                sys.stderr.write(f"bench: containers of {kind.name} are left out: {reason}\n")
            finally:
                engine.stop()
    return figures


def _build(engine: Engine) -> None:
    context = engine_image(engine.root / "image")
    with engine.client() as api:
        for line in api.build(path=str(context), tag=f"{IMAGE}:{TAG}", decode=True):
            if "error" in line:
                raise RuntimeError(line["error"])
    shutil.rmtree(context.parent)


def _node(place: Place, engine: Engine, name: str) -> Daemon:
    directory = place.directory(f"containers-{engine.name}-{name}")
    catalog = directory / "engines.yaml"
    listed = {"repository": IMAGE, "tag": TAG, "accelerators": ["cpu"], "architectures": ["amd64", "arm64"],
              "command": COMMAND}  # fmt: skip
    catalog.write_text(yaml.safe_dump({"engines": {"llama.cpp": [listed]}}))
    return Daemon(
        directory,
        place.model,
        containers={"socket": str(engine.socket)},
        catalog={"engines": str(catalog)},
        images={"disk_reserve_bytes": 0, "offline": True},
    )


def _crash(place: Place, engine: Engine, runs: int) -> Figure:
    node = _node(place, engine, "crash").start()
    own: list[float] = []
    peer: list[float] = []
    with _ended(node), node.client() as client:
        client.apply_deployment(spec(place, "m", runtime="docker", restart={"reset_after_seconds": 0.5}))
        instance = node.wait("m", timeout=WAIT_SECONDS).instance
        with _always(place, engine, instance.port) as port:
            for run in range(runs):
                turns = [(own, instance.port), (peer, port)]
                for taken, of in turns if run % 2 else reversed(turns):
                    time.sleep(HEALTHY_SECONDS)  # also so that nobody is measured while the other's engine loads
                    taken.append(_crashed(of))
                    wait_true(lambda: answers(of), WAIT_SECONDS, f"the replacement at port {of} answers")  # noqa: B023
    always = f"{engine.name} --restart=always"
    target = Target(f"at most {TIMES} x {always}", TIMES * Sample.of(peer).median)
    what = f"SIGKILL of an engine to exec of its replacement, {engine.name}"
    return Figure(PART, what, "ms", Sample.of(own), {always: Sample.of(peer)}, target)


@contextlib.contextmanager
def _always(place: Place, engine: Engine, port: int) -> Iterator[int]:
    """A container that is made in the same way as the agent's own, but that the container engine restarts."""
    other = free_port()
    argv = [str(other) if word == str(port) else word for word in _argv(_engine_of(port))]
    with engine.client() as api:
        image = next(each["Id"] for each in api.images() if f"{IMAGE}:{TAG}" in (each["RepoTags"] or ()))
        image = image if image.startswith("sha256:") else f"sha256:{image}"
        container = Container(image, "127.0.0.1", other, mounts=(Mount(str(place.model), str(place.model)),),
                              read_only_root=True)  # fmt: skip
        request = LaunchRequest(Identity("bench", "m", 1, 1, "always"), tuple(argv), {}, place.root, place.root)
        around = docker_config.Surroundings(docker_engine.Engine(str(engine.socket)).facts(devices=False))
        config = docker_config.created(request, container, around)
        config["HostConfig"]["RestartPolicy"] = {"Name": "always"}
        id = api.create_container_from_config(config, "always")["Id"]
        api.start(id)
        try:
            wait_true(lambda: _engine_of(other), WAIT_SECONDS, "the container that restarts always")
            yield other
        finally:
            api.remove_container(id, force=True)


def _crashed(port: int) -> float:
    """Milliseconds until another process serves this port in its container. The agent's replacement keeps the port."""
    before = _engine_of(port)
    began = time.monotonic_ns()
    os.kill(before, signal.SIGKILL)
    wait_true(lambda: _engine_of(port) not in {0, before}, WAIT_SECONDS, f"a replacement at port {port}")
    return milliseconds_since(began)


def _engine_of(port: int) -> int:
    """The pid of the engine that is told to listen at this port; 0 while there is none. Inits are told as well."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - asked every few milliseconds
        if name.isdigit():
            argv = _argv(int(name))
            if argv[: len(COMMAND)] == COMMAND and str(port) in argv:
                return int(name)
    return 0


def _argv(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    return []


def _adoption(place: Place, engine: Engine, *, quick: bool) -> Figure:
    many = QUICK_MANY if quick else MANY
    node = _node(place, engine, "adoption").start()
    shown = []
    with _ended(node):
        names = [f"m{number}" for number in range(many)]
        with node.client() as client:
            for name in names:
                client.apply_deployment(spec(place, name, runtime="docker"))
        for name in names:
            node.wait(name, timeout=3 * WAIT_SECONDS)
        pids = serving(node)
        with notified(place) as here:
            for _ in range(QUICK_ADOPTIONS if quick else ADOPTIONS):
                node.kill()
                began = time.monotonic_ns()
                start_until_ready(node, here)
                wait_true(lambda: serving(node) == pids, WAIT_SECONDS, "the same engines are READY")
                shown.append(milliseconds_since(began))
    what = f"exec of agentd to all {many} containers shown READY with the same pids, {engine.name}"
    return Figure(PART, what, "ms", Sample.of(shown), target=Target("at most 2 s", 2000))


@contextlib.contextmanager
def _ended(node: Daemon) -> Iterator[None]:
    try:
        yield
    finally:
        node.cleanup()
