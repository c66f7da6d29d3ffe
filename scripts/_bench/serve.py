"""From `agentctl serve MODEL` to the first answer of the engine, with image and weights at hand, beside a direct launch
of the same engine with the same arguments: natively, and in containers of dockerd and podman. The model is the random
one that loads in no time, so that what is left is the agent's part; natively also the one that the quickstart serves.

Natively there is a floor too: a Python that imports what any client of this kind must and makes one call, before the
same launch.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import yaml

from agent.runtimes import docker_config, docker_engine
from agent.runtimes.base import Container, Identity, LaunchRequest, Mount
from agent.v1 import agent_pb2 as pb
from scripts._bench import containers
from scripts._bench.figures import Figure, Sample, Target
from scripts._bench.place import ROOT, Place, milliseconds_since
from tests.docker.parts import Docker, Engine, Missing, Podman
from tests.harness import Daemon, free_port, wait_true

# Of the other part about containers this one needs how it makes an image and a node.
# ruff: noqa: SLF001

PART = "serve"
RUNS, QUICK_RUNS = 9, 2
WAIT_SECONDS = 60.0
TIMES = 1.2
NAME = "m"
#: Seconds after which an agent that was just started has rehearsed.
REHEARSED_SECONDS = 4.0

#: Starts the engine with these arguments at once, and ends it when left.
Launch = Callable[[list[str]], AbstractContextManager[object]]

#: Calls the agent at the socket that is its argument.
BARE_CLIENT = """
import os, sys, click, grpc
from agent.v1 import agent_pb2 as pb
channel = grpc.insecure_channel(f"unix:{sys.argv[1]}")
path = "/agent.v1.DeploymentService/ListDeployments"
channel.unary_unary(path, pb.ListDeploymentsRequest.SerializeToString)(pb.ListDeploymentsRequest())
os._exit(0)
"""

#: What the quickstart serves.
EXAMPLE = ROOT / "configs/examples/smollm2.yaml"


@dataclass(frozen=True, slots=True)
class Asked:
    """What `agentctl serve` is asked for."""

    model: str
    runtime: str
    settings: tuple[str, ...] = ("limits.max_num_seqs=1", "limits.max_model_len=256", "limits.threads=1")


def measure(place: Place, *, quick: bool) -> list[Figure]:
    runs = QUICK_RUNS if quick else RUNS

    def native(argv: list[str]) -> AbstractContextManager[object]:
        return _native(place, argv)

    figures = [_figure("natively", runs, place.node("serve"), Asked(str(place.model), "process"), native)]
    if (known := _known()) is not None:
        figures.append(_figure("SmolLM2-135M, natively", runs, place.node("serve-known"), known, native))
    figures.append(_first(runs, place.node("serve-first"), Asked(str(place.model), "process")))
    for kind in (Docker, Podman):
        with tempfile.TemporaryDirectory(prefix="b-", ignore_cleanup_errors=True) as name:
            engine = kind(Path(name))
            try:
                engine.start()
                containers._build(engine)
                node = containers._node(place, engine, "serve")
                with _contained(place, engine) as launch:
                    figures.append(_figure(f"in {engine.name}", runs, node, Asked(str(place.model), "docker"), launch))
            except Missing as reason:
                sys.stderr.write(f"bench: serving in {kind.name} is left out: {reason}\n")
            finally:
                engine.stop()
    return figures


def _known() -> Asked | None:
    """The model of the quickstart, which `scripts/setup` brings with a package."""
    spec = yaml.safe_load(EXAMPLE.read_text())
    package = spec["model"].removeprefix("package:").partition("/")[0]
    if importlib.util.find_spec(package) is None:
        sys.stderr.write(f"bench: serving {spec['model']} is left out: {package} is not installed\n")
        return None
    return Asked(spec["model"], "process", tuple(f"limits.{name}={value}" for name, value in spec["limits"].items()))


def _figure(where: str, runs: int, node: Daemon, asked: Asked, launch: Launch) -> Figure:
    own, direct, bare = [], [], []
    node.start()
    try:
        argv, port = _warm(node, asked)
        for _ in range(runs):
            other = free_port()
            words = [str(other) if word == str(port) else word for word in argv]
            began = time.monotonic_ns()
            with launch(words):
                direct.append(_answered(other, began))
            own.append(_served(node, asked, port))
            if asked.runtime == "process":
                bare.append(_called(node) + direct[-1])
    finally:
        node.cleanup()
    target = Target(f"at most {TIMES} x the direct launch", TIMES * Sample.of(direct).median)
    others = {"direct launch": Sample.of(direct), **({"bare call, then that": Sample.of(bare)} if bare else {})}
    return Figure(PART, f"agentctl serve to the first 200, {where}", "ms", Sample.of(own), others, target)


def _first(runs: int, node: Daemon, asked: Asked) -> Figure:
    """The first deployment of an agent, which has rehearsed."""
    own = []
    try:
        _, port = _warm(node.start(), asked)
        for _ in range(runs):
            node.stop()
            node.start()
            time.sleep(REHEARSED_SECONDS)
            own.append(_served(node, asked, port))
    finally:
        node.cleanup()
    return Figure(PART, "of the first model after the agent's start, natively", "ms", Sample.of(own))


def _called(node: Daemon) -> float:
    """Milliseconds of a client that does nothing else."""
    began = time.monotonic_ns()
    subprocess.run([sys.executable, "-c", BARE_CLIENT, str(node.control)], check=True, cwd=ROOT)
    return milliseconds_since(began)


def _warm(node: Daemon, asked: Asked) -> tuple[list[str], int]:
    """The command that the agent gives the engine, and the port, which it will give it again."""
    with _serving(node, asked):
        pass
    instance = node.get(NAME).instance
    assert instance.pid, "the engine's process is not seen"
    argv = containers._argv(instance.pid)
    _delete(node)
    return argv, instance.port


def _served(node: Daemon, asked: Asked, port: int) -> float:
    """Milliseconds. A container is asked from its start on, as one that is launched directly is: whoever asks before
    that has the host look for it in vain, and dockerd's proxy finds it a second later."""
    began = time.monotonic_ns()
    with _serving(node, asked):
        if asked.runtime == "docker":
            node.wait_until(lambda deployment: deployment.phase in {pb.PHASE_LOADING, pb.PHASE_READY}, name="")
        took = _answered(port, began)
    _delete(node)
    return took


@contextlib.contextmanager
def _serving(node: Daemon, asked: Asked) -> Iterator[None]:
    """Until the command has ended, which waits until its deployment is ready."""
    command = [str(Path(sys.executable).with_name("agentctl")), "--socket", str(node.control), "serve", asked.model,
               "--name", NAME, "--engine", "llama.cpp", "--runtime", asked.runtime]  # fmt: skip
    command += [word for each in asked.settings for word in ("--set", each)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield
        if process.wait(WAIT_SECONDS) != 0:
            raise RuntimeError(f"agentctl serve ended with {process.returncode}; see {node.log}")


def _delete(node: Daemon) -> None:
    with node.client() as client:
        client.delete_deployment(NAME)
        wait_true(lambda: not client.list_deployments(), WAIT_SECONDS, "the deployment is gone")


def _answered(port: int, began: int) -> float:
    """Milliseconds until health is 200."""
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return milliseconds_since(began)
        connection.close()
        if milliseconds_since(began) > WAIT_SECONDS * 1000:
            raise TimeoutError(f"nobody answers at port {port}")
        time.sleep(0.002)


@contextlib.contextmanager
def _native(place: Place, argv: list[str]) -> Iterator[None]:
    process = place.spawn(argv)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _contained(place: Place, engine: Engine) -> Iterator[Launch]:
    """Launches in containers that are made as the agent makes its own, by two calls."""
    around = docker_config.Surroundings(docker_engine.Engine(str(engine.socket)).facts(devices=False))
    with engine.client() as api:
        image = next(
            each["Id"] for each in api.images() if any("llama-server" in tag for tag in each["RepoTags"] or ())
        )
        image = image if image.startswith("sha256:") else f"sha256:{image}"

        @contextlib.contextmanager
        def launch(argv: list[str]) -> Iterator[None]:
            port = int(argv[argv.index("--port") + 1])
            mounts = (Mount(str(place.model), str(place.model)),)
            container = Container(image, "127.0.0.1", port, mounts=mounts, read_only_root=True)
            request = LaunchRequest(Identity("bench", NAME, 1, 1, "direct"), tuple(argv), {}, place.root, place.root)
            id = api.create_container_from_config(docker_config.created(request, container, around), "direct")["Id"]
            api.start(id)
            try:
                yield
            finally:
                api.remove_container(id, force=True)

        yield launch
