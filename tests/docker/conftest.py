"""One container engine and one registry for all tests here; each test begins without images, on a line in order."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.runtimes.contract", "tests.docker.runtime_bench")

from agent.references import ImageReference  # noqa: E402 - after the rewrite is registered
from tests.docker.parts import (  # noqa: E402
    MIB,
    Docker,
    Engine,
    Line,
    Missing,
    Podman,
    Registry,
    engine_image,
    random_image,
)
from tests.docker.runtime_bench import ContainerBench, make  # noqa: E402

#: 25 MiB in three layers: some seconds on a slow line, at once on a fast one.
LAYERS = (1 * MIB, 8 * MIB, 16 * MIB)


def unavailable(reason: str) -> None:
    """Skip; or fail, for who asked for these tests by name."""
    (pytest.fail if os.environ.get("REQUIRE_DOCKER") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def root() -> Iterator[Path]:
    """With a short path: sockets lie in it."""
    path = Path(tempfile.mkdtemp(prefix="agentd-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def own_engine(root: Path) -> Iterator[Docker]:
    (root / "docker").mkdir()
    engine = Docker(root / "docker", "--max-download-attempts", "2")
    try:
        engine.start()
        yield engine
    except Missing as reason:
        unavailable(str(reason))
    finally:
        engine.stop()


@pytest.fixture(scope="session")
def own_registry(root: Path) -> Iterator[Registry]:
    try:
        registry = Registry(root / "registry")
    except Missing as reason:
        unavailable(str(reason))
    registry.start()
    yield registry
    registry.kill()


@pytest.fixture(scope="session")
def own_line(own_registry: Registry) -> Iterator[Line]:
    line = Line(own_registry.port)
    yield line
    line.close()


Push = Callable[[Path, str], ImageReference]


@pytest.fixture(scope="session")
def push(own_engine: Docker, own_registry: Registry, own_line: Line) -> Push:
    """Build an image from a folder and push it as PATH:v1."""

    def run(folder: Path, path: str) -> ImageReference:
        name = f"127.0.0.1:{own_line.port}/{path}"
        own_engine.run("build", "--quiet", "--tag", f"{name}:v1", folder)
        own_engine.run("push", "--quiet", f"{name}:v1")
        own_engine.forget()
        return ImageReference(name, "v1")

    return run


@pytest.fixture(scope="session")
def plain_image(push: Push, root: Path) -> ImageReference:
    return push(random_image(root / "plain", *LAYERS), "org/plain")


@pytest.fixture(scope="session")
def served_image(push: Push, root: Path) -> ImageReference:
    """The embedded engine."""
    if not Path("/bin/busybox").exists():
        unavailable("no busybox to make an image with (scripts/test-docker installs it)")
    return push(engine_image(root / "served"), "org/llama-server")


@pytest.fixture
def line(own_line: Line, own_registry: Registry) -> Iterator[Line]:
    own_line.carried = 0
    yield own_line
    own_line.closed = own_line.stalled = False
    own_line.rate = 0.0
    if own_registry.process is not None and own_registry.process.poll() is not None:
        own_registry.start()


@pytest.fixture
def registry(own_registry: Registry) -> Registry:
    return own_registry


@pytest.fixture
def engine(own_engine: Docker) -> Docker:
    own_engine.forget()
    return own_engine


@pytest.fixture
def plain(plain_image: ImageReference, engine: Docker) -> ImageReference:
    return plain_image


@pytest.fixture
def served(served_image: ImageReference, engine: Docker) -> ImageReference:
    return served_image


def running(engine: Engine) -> Iterator[Engine]:
    engine.root.mkdir()
    try:
        engine.start()
        yield engine
    except Missing as reason:
        unavailable(str(reason))
    finally:
        engine.stop()


@pytest.fixture(scope="session")
def dockerd(root: Path) -> Iterator[Engine]:
    """Another one than that of the images' tests, which forget all images."""
    yield from running(Docker(root / "dockerd"))


@pytest.fixture(scope="session")
def podman_service(root: Path) -> Iterator[Engine]:
    yield from running(Podman(root / "podmand"))


@pytest.fixture(scope="session", params=["dockerd", "podman_service"])
def runner(request: Any) -> Engine:
    """Each of the engines that run instances."""
    found: Engine = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def bench(runner: Engine, tmp_path: Path) -> AsyncIterator[ContainerBench]:
    made = make(runner, runner.tools_image(), tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def docker_bench(dockerd: Engine, tmp_path: Path) -> AsyncIterator[ContainerBench]:
    """For what podman does in another way, or not at all."""
    made = make(dockerd, dockerd.tools_image(), tmp_path)
    yield made
    await made.close()
