"""Engine images through a real container engine, from a real registry that is slow, dies, lies and refuses."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.artifacts.errors import ArtifactError
from agent.artifacts.images import ImagePolicy, PulledImage, pull
from agent.references import ImageReference
from agent.settings import ImagesConfig
from agent.status import Diagnosis, DiagnosisCode, Progress
from tests.docker.conftest import LAYERS, unavailable
from tests.docker.parts import MIB, PASSWORD, Docker, Engine, Line, Missing, Podman, Registry, random_image, wait

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(120)]

TOTAL = sum(LAYERS)


def policy(engine: Engine, **config: Any) -> ImagePolicy:
    """Impatient: faults in tests are short."""
    settings = {"retry_seconds": 0.2, "stall_seconds": 30.0, "answer_seconds": 20.0, "disk_reserve_bytes": 0}
    return ImagePolicy(engine.socket, ImagesConfig(**{**settings, **config}))


class Watch:
    """Progress as it came; tells when bytes flow."""

    def __init__(self) -> None:
        self.told: list[Progress] = []

    def __call__(self, progress: Progress) -> None:
        self.told.append(progress)

    async def until(self, done: int) -> None:
        """`done` bytes are here."""
        async with asyncio.timeout(30):
            while not any(each.step.startswith("fetching") and each.done >= done for each in self.told):
                await asyncio.sleep(0.02)

    @property
    def fetched(self) -> list[int]:
        return [each.done for each in self.told if each.step.startswith("fetching")]


async def refused(image: ImageReference, policy: ImagePolicy, watch: Watch | None = None) -> Diagnosis:
    with pytest.raises(ArtifactError) as caught:
        await pull(image, policy, watch or Watch())
    return caught.value.diagnosis


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "agent.artifacts.image_puller" in child.cmdline()
    ]


async def test_a_real_engines_image_is_pulled_whole_and_serves(
    engine: Docker, registry: Registry, line: Line, served: ImageReference, tiny_model: Path
) -> None:
    watch = Watch()
    line.rate = 100 * MIB

    pulled = await pull(served, policy(engine), watch)

    manifest = registry.manifest("org/llama-server", "v1")
    size = sum(layer["size"] for layer in manifest["layers"])
    assert pulled.digest == manifest["digest"]
    assert watch.told[-1] == Progress("unpacking the image", size, size)
    assert watch.fetched == sorted(watch.fetched)
    assert engine.images() == {f"{served}@{pulled.digest}"}  # with its tag: a prune leaves it alone
    name = engine.run(
        "run", "--detach", "--network", "none", "--volume", f"{tiny_model}:/model.gguf:ro", pulled.id,
        "--model", "/model.gguf", "--port", "8080",
    )  # fmt: skip
    try:
        ask = ("exec", name, "/bin/busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/health")
        wait(lambda: succeeds(engine, *ask), f"healthy: {engine.run('logs', name)}")
    finally:
        engine.run("rm", "--force", name)


def succeeds(engine: Docker, *command: str) -> bool:
    try:
        return "ok" in engine.run(*command)
    except AssertionError:
        return False


async def test_an_image_that_is_here_is_taken_without_asking_its_registry(
    engine: Docker, line: Line, plain: ImageReference
) -> None:
    first = await pull(plain, policy(engine), Watch())
    line.closed = True
    by_tag = await pull(plain, policy(engine), Watch())
    by_digest = await pull(replace(plain, digest=first.digest), policy(engine), Watch())
    offline = await pull(plain, policy(engine, offline=True), Watch())

    assert first.present is False
    assert by_tag == by_digest == offline == replace(first, present=True)


async def test_a_registry_that_dies_in_the_middle_and_comes_back_costs_no_byte_twice(
    engine: Docker, registry: Registry, line: Line, plain: ImageReference
) -> None:
    line.rate = 8 * MIB
    watch = Watch()

    async def die() -> None:
        await watch.until(TOTAL // 3)
        registry.kill()
        line.cut()
        registry.start()  # not in a thread of a pool: its processes end with it

    async with asyncio.TaskGroup() as group:
        group.create_task(die())
        pulling = group.create_task(pull(plain, policy(engine), watch))

    assert pulling.result().digest == registry.manifest("org/plain", "v1")["digest"]
    assert watch.fetched == sorted(watch.fetched)
    assert TOTAL <= line.carried < TOTAL + 2 * MIB  # what was on its way, and manifests


async def test_a_registry_that_stays_away_is_given_up_and_found_again_when_it_is_back(
    engine: Docker, registry: Registry, line: Line, plain: ImageReference
) -> None:
    registry.kill()
    watch = Watch()

    found = await refused(plain, policy(engine, tries=3), watch)
    registry.start()

    assert found.code == DiagnosisCode.SOURCE_UNAVAILABLE
    assert f"{plain} cannot be pulled" in found.message
    assert found.fatal is False
    assert len(watch.told) == 2  # two pauses between three tries
    assert all(each.step.startswith("waiting") for each in watch.told)
    assert (await pull(plain, policy(engine), Watch())).present is False


async def test_a_line_that_carries_nothing_more_is_noticed_and_the_pull_goes_on_when_it_does(
    engine: Docker, line: Line, plain: ImageReference
) -> None:
    line.rate = 8 * MIB
    watch = Watch()

    async def stall() -> None:
        await watch.until(TOTAL // 4)
        line.stalled = True
        async with asyncio.timeout(30):
            while not (said := [each for each in watch.told if each.step.startswith("waiting")]):
                await asyncio.sleep(0.05)
        assert "nothing came from the registry for 2 s" in said[0].step
        line.stalled, line.rate = False, 0.0
        line.cut()

    async with asyncio.TaskGroup() as group:
        group.create_task(stall())
        pulling = group.create_task(pull(plain, policy(engine, stall_seconds=2.0), watch))

    assert pulling.result().present is False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tag": "v2"}, "manifest unknown"),
        ({"digest": f"sha256:{'1' * 64}"}, "manifest unknown"),
        ({"path": "/org/nobody"}, ""),
    ],
)
async def test_what_the_registry_does_not_have_is_missing_and_not_tried_again(
    engine: Docker, line: Line, plain: ImageReference, change: dict[str, str], said: str
) -> None:
    if path := change.pop("path", ""):
        change["repository"] = plain.registry + path
    watch = Watch()

    found = await refused(replace(plain, **change), policy(engine), watch)

    assert found.code == DiagnosisCode.IMAGE_MISSING
    assert said in found.evidence
    assert watch.told == []


async def test_a_layer_that_was_changed_in_the_registry_is_refused_by_its_digest(
    engine: Docker, registry: Registry, line: Line, push: Any, tmp_path: Path
) -> None:
    image = push(random_image(tmp_path / "changed", MIB, 2 * MIB), "org/changed")
    blob = registry.blob(registry.manifest("org/changed", "v1")["layers"][-1]["digest"])
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)

    found = await refused(image, policy(engine))

    assert found.code == DiagnosisCode.IMAGE_CORRUPT, found
    assert found.fatal is True
    assert engine.images() == set()


async def test_an_image_for_another_machine_is_refused(engine: Docker, line: Line, plain: ImageReference) -> None:
    found = await refused(replace(plain, architecture="riscv64"), policy(engine))

    assert found.code == DiagnosisCode.CPU_UNSUPPORTED
    assert "riscv64" in found.message


async def test_a_mirror_stands_for_its_registry(engine: Docker, line: Line, plain: ImageReference) -> None:
    named = replace(plain, repository="docker.io/org/plain")
    only = policy(engine, mirrors={"docker.io": plain.registry}, repositories=["docker.io/org"])

    pulled = await pull(named, only, Watch())

    assert pulled.reference == str(plain)
    assert (await refused(replace(plain, repository="docker.io/other/x"), only)).code == DiagnosisCode.POLICY_DENIED


async def test_offline_an_image_that_is_not_here_is_missing_and_nobody_is_asked(
    engine: Docker, line: Line, plain: ImageReference
) -> None:
    found = await refused(plain, policy(engine, offline=True))

    assert (found.code, line.carried) == (DiagnosisCode.IMAGE_MISSING, 0)
    assert "docker load" in found.hint


# Credentials


@pytest.fixture(scope="module")
def guarded(root: Path, own_engine: Docker, own_registry: Registry) -> Any:
    """A registry that wants to know who asks, with an image in it."""
    registry = Registry(root / "guarded", users=True)
    registry.start()
    name = f"127.0.0.1:{registry.port}/org/guarded"
    own_engine.run("build", "--quiet", "--tag", f"{name}:v1", random_image(root / "guarded-image", MIB))
    own_engine.run("login", "--username", "reader", "--password", PASSWORD, f"127.0.0.1:{registry.port}")
    own_engine.run("push", "--quiet", f"{name}:v1")
    own_engine.run("logout", f"127.0.0.1:{registry.port}")
    own_engine.forget()
    yield ImageReference(name, "v1")
    registry.kill()


def credentials(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def auths(image: ImageReference, password: str) -> dict[str, Any]:
    return {"auths": {image.registry: {"auth": base64.b64encode(f"reader:{password}".encode()).decode()}}}


async def test_a_registry_gets_the_operators_credentials_and_nothing_else_sees_them(
    engine: Docker, guarded: ImageReference, tmp_path: Path
) -> None:
    path = credentials(tmp_path / "config.json", auths(guarded, PASSWORD))
    watch, seen = Watch(), []

    async def look() -> None:
        while True:
            seen.extend(" ".join(child.cmdline()) + str(child.environ()) for child in children())
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look())
    pulled = await pull(guarded, policy(engine, credentials=str(path)), watch)
    looking.cancel()

    secrets = (PASSWORD, auths(guarded, PASSWORD)["auths"][guarded.registry]["auth"])
    shown = [*seen, str(watch.told), str(pulled), engine.log.read_text()]
    assert seen
    assert [text for text in shown if any(secret in text for secret in secrets)] == []


async def test_credentials_in_the_home_of_the_user_are_not_the_operators(
    engine: Docker, guarded: ImageReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".docker").mkdir()
    credentials(tmp_path / ".docker/config.json", auths(guarded, PASSWORD))
    monkeypatch.setenv("HOME", str(tmp_path))

    assert (await refused(guarded, policy(engine))).code == DiagnosisCode.IMAGE_DENIED


@pytest.mark.parametrize("password", [None, "wrong"])
async def test_a_registry_that_refuses_says_so_at_once_and_names_the_setting(
    engine: Docker, guarded: ImageReference, tmp_path: Path, password: str | None
) -> None:
    path = str(credentials(tmp_path / "config.json", auths(guarded, password))) if password else None

    found = await refused(guarded, policy(engine, credentials=path))

    assert found.code == DiagnosisCode.IMAGE_DENIED
    assert found.fatal is True
    assert "images.credentials" in found.hint


async def test_credentials_that_cannot_be_read_are_told_without_their_content(
    engine: Docker, guarded: ImageReference, tmp_path: Path
) -> None:
    broken = [str(tmp_path / "absent")]
    for number, content in enumerate([f'{{"auths": "{PASSWORD}', [PASSWORD], {"auths": {"x": PASSWORD}},
                                      {"auths": {guarded.registry: {"auth": PASSWORD}}}]):  # fmt: skip
        broken.append(str(credentials(tmp_path / str(number), content)))

    found = [await refused(guarded, policy(engine, credentials=path)) for path in broken]

    assert {each.code for each in found} == {DiagnosisCode.SECRET_MISSING}
    assert [path in each.message for path, each in zip(broken, found, strict=True)] == [True] * 5
    assert PASSWORD not in str(found)


async def test_a_credential_helper_is_asked_and_its_failure_told_without_its_words(
    engine: Docker, guarded: ImageReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.dumps({"Username": "reader", "Secret": PASSWORD})
    for name, does in (("good", f"echo '{answer}'"), ("bad", f"echo {PASSWORD}; exit 1")):
        helper = tmp_path / f"docker-credential-{name}"
        helper.write_text(f"#!/bin/sh\n{does}\n")
        helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    files = [credentials(tmp_path / name, {"credHelpers": {guarded.registry: name}}) for name in ("good", "bad")]

    failed = await refused(guarded, policy(engine, credentials=str(files[1])))
    pulled = await pull(guarded, policy(engine, credentials=str(files[0])), Watch())

    assert pulled.digest
    assert (failed.code, PASSWORD in str(failed)) == (DiagnosisCode.SECRET_MISSING, False)


# The disk


@pytest.fixture(scope="module")
def small(root: Path) -> Any:
    """A container engine whose disk has 24 MiB, of which it takes a few itself: less than the plain image needs."""
    place = root / "small"
    (place / "data").mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", place / "data"], check=False)
    if done.returncode != 0:
        unavailable("no tmpfs can be mounted")
    engine = Docker(place, "--max-download-attempts", "1")
    try:
        engine.start()
        yield engine
    finally:
        engine.stop()
        subprocess.run(["umount", "--lazy", place / "data"], check=False)


async def test_an_image_that_does_not_fit_is_refused_with_the_numbers_before_its_first_byte(
    small: Docker, line: Line, plain: ImageReference
) -> None:
    found = await refused(replace(plain, bytes=TOTAL), policy(small, disk_reserve_bytes=MIB))

    assert found.code == DiagnosisCode.DISK_FULL
    assert "needs about 0.07 GiB (0.02 GiB compressed) in " in found.message
    assert "1.00 MiB must stay free" in found.message
    assert str(small.data) in found.hint
    assert line.carried < MIB // 10  # the manifest at most


async def test_a_pull_of_unknown_size_ends_before_it_takes_what_must_stay_free(
    small: Docker, line: Line, plain: ImageReference
) -> None:
    line.rate = 2 * MIB

    found = await refused(plain, policy(small, disk_reserve_bytes=10 * MIB))

    assert found.code == DiagnosisCode.DISK_FULL
    assert "10.00 MiB must stay free" in found.message
    assert os.statvfs(small.data).f_bavail > 0


async def test_a_disk_that_fills_up_is_told_as_such_and_leaves_nothing(
    small: Docker, line: Line, plain: ImageReference
) -> None:
    found = await refused(plain, policy(small))

    assert found.code == DiagnosisCode.DISK_FULL, found
    assert small.images() == set()
    wait(lambda: os.statvfs(small.data).f_bavail * 4096 > 12 * MIB, "the space is back")


# Several, and none


async def test_two_who_want_one_image_share_one_pull(engine: Docker, line: Line, plain: ImageReference) -> None:
    line.rate = 16 * MIB
    shared, first, second = policy(engine), Watch(), Watch()

    async def both() -> list[PulledImage]:
        async with asyncio.TaskGroup() as group:
            one = group.create_task(pull(plain, shared, first))
            await first.until(MIB)
            two = group.create_task(pull(plain, shared, second))
            await second.until(MIB)
            assert len(children()) == 1
        return [one.result(), two.result()]

    one, two = await both()

    assert one == two
    assert first.told[-1] == second.told[-1]
    assert line.carried < TOTAL + MIB


async def test_a_pull_ends_when_the_last_who_waits_leaves_and_no_process_is_left(
    engine: Docker, line: Line, plain: ImageReference
) -> None:
    line.rate = 4 * MIB
    shared, first, second = policy(engine), Watch(), Watch()
    one = asyncio.create_task(pull(plain, shared, first))
    two = asyncio.create_task(pull(plain, shared, second))
    await second.until(MIB)

    one.cancel()
    await asyncio.wait([one])
    assert len(children()) == 1
    before = second.fetched[-1]
    await second.until(before + MIB)
    two.cancel()
    await asyncio.wait([two])

    assert children() == []
    line.rate = 0.0
    assert (await pull(plain, shared, Watch())).present is False


async def test_a_pulling_process_that_is_killed_is_replaced(engine: Docker, line: Line, plain: ImageReference) -> None:
    line.rate = 8 * MIB
    watch = Watch()

    async def kill() -> None:
        await watch.until(TOTAL // 4)
        (child,) = children()
        child.kill()
        line.rate = 0.0

    async with asyncio.TaskGroup() as group:
        group.create_task(kill())
        pulling = group.create_task(pull(plain, policy(engine), watch))

    assert pulling.result().present is False
    assert any("the pulling process ended with status -9" in each.step for each in watch.told)


PULLER = """
import asyncio, sys
from pathlib import Path
from agent.artifacts.images import ImagePolicy, pull
from agent.references import ImageReference
from agent.settings import ImagesConfig
socket, repository = sys.argv[1:]
policy = ImagePolicy(Path(socket), ImagesConfig(disk_reserve_bytes=0))
asyncio.run(pull(ImageReference(repository, "v1"), policy, lambda progress: print(progress, flush=True)))
"""


async def test_a_killed_daemon_leaves_no_process_and_the_next_one_pulls(
    engine: Docker, line: Line, plain: ImageReference
) -> None:
    line.rate = 4 * MIB
    with subprocess.Popen(
        [sys.executable, "-c", PULLER, engine.socket, plain.repository], stdout=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        (child,) = children()
        daemon.kill()
    wait(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child gone")

    line.rate = 0.0
    assert (await pull(plain, policy(engine), Watch())).present is False


# The container engine


async def test_a_hung_container_engine_is_named_and_the_pull_goes_on_when_it_does(
    engine: Docker, line: Line, plain: ImageReference
) -> None:
    line.rate = 8 * MIB
    watch = Watch()

    async def hang() -> None:
        await watch.until(TOTAL // 4)
        engine.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(40):
                while not (said := [each for each in watch.told if each.step.startswith("waiting")]):
                    await asyncio.sleep(0.05)
        finally:
            engine.signal(signal.SIGCONT)
        assert f"the container engine at {engine.socket} does not answer" in said[0].step
        line.rate = 0.0

    async with asyncio.TaskGroup() as group:
        group.create_task(hang())
        pulling = group.create_task(pull(plain, policy(engine, stall_seconds=2.0), watch))

    assert pulling.result().present is False


async def test_a_container_engine_that_hangs_for_good_ends_the_pull_with_its_diagnosis(
    engine: Docker, line: Line, plain: ImageReference
) -> None:
    engine.signal(signal.SIGSTOP)
    try:
        found = await refused(plain, policy(engine, answer_seconds=1.0, tries=1))
    finally:
        engine.signal(signal.SIGCONT)

    assert found.code == DiagnosisCode.RUNTIME_UNAVAILABLE
    assert "systemctl restart docker" in found.hint
    assert children() == []


async def test_a_container_engine_that_is_killed_in_the_middle_is_found_again_after_its_restart(
    engine: Docker, line: Line, plain: ImageReference
) -> None:
    line.rate = 8 * MIB
    watch = Watch()

    async def die() -> None:
        await watch.until(TOTAL // 4)
        engine.kill()
        engine.start()
        line.rate = 0.0

    async with asyncio.TaskGroup() as group:
        group.create_task(die())
        pulling = group.create_task(pull(plain, policy(engine, tries=20), watch))

    assert pulling.result().present is False
    assert any("the container engine at" in each.step for each in watch.told)


async def test_where_no_container_engine_listens_is_told_with_what_to_do(tmp_path: Path) -> None:
    config = ImagesConfig(tries=1)

    found = await refused(ImageReference("docker.io/org/any", "v1"), ImagePolicy(tmp_path / "none.sock", config))

    assert found.code == DiagnosisCode.RUNTIME_UNAVAILABLE
    assert "systemctl status docker" in found.hint


# podman


@pytest.fixture(scope="module")
def podman(root: Path) -> Any:
    (root / "podman").mkdir()
    engine = Podman(root / "podman")
    try:
        engine.start()
        yield engine
    except Missing as reason:
        unavailable(str(reason))
    finally:
        engine.stop()


async def test_podman_pulls_as_well(podman: Podman, registry: Registry, line: Line, plain: ImageReference) -> None:
    digest = registry.manifest("org/plain", "v1")["digest"]
    watch = Watch()

    first = await pull(plain, policy(podman), watch)
    line.closed = True
    second = await pull(replace(plain, digest=digest), policy(podman), Watch())

    assert (first.digest, first.present) == (digest, False)
    assert second == replace(first, present=True)


@pytest.mark.parametrize(
    ("change", "code"),
    [({"tag": "v2"}, DiagnosisCode.IMAGE_MISSING), ({"digest": f"sha256:{'1' * 64}"}, DiagnosisCode.IMAGE_MISSING)],
)
async def test_podmans_refusals_mean_the_same(
    podman: Podman, line: Line, plain: ImageReference, change: dict[str, str], code: DiagnosisCode
) -> None:
    assert (await refused(replace(plain, **change), policy(podman))).code == code


async def test_podmans_registry_that_refuses_says_so(podman: Podman, guarded: ImageReference, tmp_path: Path) -> None:
    found = await refused(guarded, policy(podman))
    path = credentials(tmp_path / "config.json", auths(guarded, PASSWORD))

    assert found.code == DiagnosisCode.IMAGE_DENIED
    assert (await pull(guarded, policy(podman, credentials=str(path)), Watch())).digest
