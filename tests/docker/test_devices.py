"""Containers with devices: real daemon, container engines, registry and engine; what is played is the hardware alone.

The NVML double is the driver. What gives a GPU to a container is a CDI specification of the test's, whose device nodes
are those of /dev/null; or programs in the place of NVIDIA's runtime and hook (tests/docker/device_parts.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.references import ImageReference
from agent.runtimes import docker_making
from agent.runtimes.base import LaunchError
from agent.v1 import agent_pb2 as pb
from tests.docker.conftest import running, unavailable
from tests.docker.device_parts import CdiDocker, NvidiaDocker, Old, OtherDocker, OtherHost
from tests.docker.parts import Engine, Line, Missing, Podman
from tests.docker.runtime_bench import ContainerBench, make
from tests.docker.test_serving import COMMAND, Node, plan_of
from tests.hardware.trees import plant
from tests.harness import PHASE, complete, wait_true
from tests.nvml.double import GIB, NvmlDouble
from tests.runtimes.contract import nothing

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(180)]

#: The image's engine is built for the CPU: what a GPU would do happens there, as in tests/harness.py.
ON_CPU = (
    'for word; do shift; case "$skip$word" in --device) set -- "$@" --device none; skip=skip ;; '
    '--n-gpu-layers|--split-mode|--tensor-split) skip=skip ;; skip*) skip= ;; *) set -- "$@" "$word" ;; esac; done; '
    'exec "$0" /engine/llama_server.py "$@"'
)
#: Group ids that are no group's name in the image: what owns the files on the host is what counts.
VIDEO, RENDER = 4044, 4105
H100 = "NVIDIA H100 80GB HBM3"
#: Quick to give up: a failure is looked at, not a backoff.
IMPATIENT = {"max_failures": 2, "initial_delay_seconds": 0.2}


def number(uuid: str) -> int:
    """Of the GPU, which the double writes into its UUID."""
    return int(uuid.split("-")[1], 16)


@dataclass
class Way:
    """One in which a container engine gives GPUs to containers."""

    engine: Engine
    folder: Path  # of CDI specifications
    nodes: Path

    def knows(self, *uuids: str) -> None:
        """Which GPUs the engine can give, from now on."""
        if isinstance(self.engine, NvidiaDocker):
            self.engine.known.write_text("\n".join(uuids))
            return
        self.nodes.mkdir(exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        for uuid in uuids:
            if not self.node(uuid).exists():
                os.mknod(self.node(uuid), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        devices = [{"name": uuid, "containerEdits": self._edits(uuid)} for uuid in uuids]
        text = json.dumps({"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices})
        part = self.file.with_suffix(".part")
        part.write_text(text)
        part.replace(self.file)

    @property
    def file(self) -> Path:
        return self.folder / f"agentd-test-{os.getpid()}.json"

    def node(self, uuid: str) -> Path:
        """On the host."""
        return self.nodes / f"nvidia{number(uuid)}"

    def _edits(self, uuid: str) -> dict[str, Any]:
        node = {"path": f"/dev/nvidia{number(uuid)}", "hostPath": str(self.node(uuid)), "permissions": "rw"}
        return {"env": [f"GIVEN_{number(uuid)}={uuid}"], "deviceNodes": [node]}


class DeviceNode(Node):
    """A node whose llama.cpp is an image for its devices."""

    accelerator = ""
    count = 0

    def __init__(self, root: Path, model: Path, engine: Engine, image: ImageReference) -> None:
        super().__init__(root, model, engine, image, daemon={"sample_seconds": 0.5})
        catalog = root / "engines.yaml"
        listed = yaml.safe_load(catalog.read_text())
        command = ["/bin/busybox", "sh", "-c", ON_CPU, COMMAND[0]]
        listed["engines"]["llama.cpp"][0] |= {"accelerators": [self.accelerator], "command": command}
        catalog.write_text(yaml.safe_dump(listed))

    def begin(self) -> None:
        self.start()
        self.wait_sampled()

    def wait_sampled(self) -> None:
        def sampled() -> bool:
            found = self.devices().values()
            return len(found) == self.count and all(each.HasField("sample_time") for each in found)

        wait_true(sampled, what="all devices sampled")

    def devices(self) -> dict[str, pb.Device]:
        with self.client() as client:
            return {each.name.rpartition("/")[2]: each for each in client.get_node().devices}

    def holders(self, uuid: str) -> set[str]:
        return {hold.deployment.rpartition("/")[2] for hold in self.devices()[uuid].holds}

    def inside(self, container: str, script: str) -> str:
        with self.engine.client() as api:
            made = api.exec_create(container, ["/bin/busybox", "sh", "-c", script], stderr=False)
            said: bytes = api.exec_start(made["Id"])
        return said.decode()

    def environment(self, deployment: pb.Deployment) -> dict[str, str]:
        """Of the first process of its container."""
        lines = Path(f"/proc/{deployment.instance.pid}/environ").read_bytes().decode().split("\0")
        return dict(each.split("=", 1) for each in lines if "=" in each)

    def failed(self) -> pb.Diagnosis:
        return self.wait(phase="failed", timeout=60).diagnosis


class GpuNode(DeviceNode):
    """With two of NVIDIA's."""

    accelerator, count = "cuda", 2

    def __init__(self, root: Path, model: Path, engine: Engine, image: ImageReference) -> None:
        super().__init__(root, model, engine, image)
        self.machine = NvmlDouble(root)
        self.gpus = self.machine.gpus(self.count, name=H100)

    def begin(self) -> None:
        self.start(environ=self.machine.environment)
        self.wait_sampled()

    def arrived(self, deployment: pb.Deployment) -> set[str]:
        """The GPUs that its container was given: in the environment of its first process, and as files to be opened."""
        said = self.environment(deployment)
        named = {value for name, value in said.items() if name.startswith("GIVEN_")}
        named |= {*said["NVIDIA_VISIBLE_DEVICES"].split(",")} - {"void"}
        script = "cd /dev; for file in nvidia*; do : < $file && echo $file; done"
        files = self.inside(deployment.instance.container, script).split()
        assert set(files) == {f"nvidia{number(uuid)}" for uuid in named}
        assert said["CUDA_VISIBLE_DEVICES"] == ",".join(plan_of(deployment)["devices"])
        return named


class AmdNode(DeviceNode):
    """With eight MI210 on a host of the test's; the sixth has faults."""

    accelerator, count = "rocm", 8

    def begin(self) -> None:
        assert isinstance(self.engine, OtherDocker)
        self.prefix = self.engine.host.prefix
        super().begin()


def made(engine: Engine, folder: Path | None = None) -> Iterator[Way]:
    try:
        for each in running(engine):
            yield Way(each, folder or engine.root / "cdi", engine.root / "nodes")
    except Old as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def nvidia(root: Path) -> Iterator[Way]:
    yield from made(NvidiaDocker(root / "nvidia"))


@pytest.fixture(scope="session")
def docker_cdi(root: Path) -> Iterator[Way]:
    yield from made(CdiDocker(root / "cdi"))


@pytest.fixture(scope="session")
def podman_cdi(root: Path, podman_service: Podman) -> Iterator[Way]:
    """podman reads the host's folders; this one is for specifications that last as long as the host is up."""
    if podman_service.version() < (5, 4):
        pytest.skip("CDI by Docker's API needs podman 5.4 or newer")
    way = Way(podman_service, Path("/var/run/cdi"), root / "nodes")
    existed = way.folder.exists()
    yield way
    way.file.unlink(missing_ok=True)
    if not existed and way.folder.exists():
        way.folder.rmdir()


@pytest.fixture(params=["nvidia", "docker_cdi", "podman_cdi"])
def way(request: Any) -> Way:
    found: Way = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["docker_cdi", "podman_cdi"])
def cdi(request: Any) -> Way:
    found: Way = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def make_node(
    tmp_path: Path, tiny_model: Path, served_image: ImageReference, line: Line
) -> Iterator[Callable[[Engine], GpuNode]]:
    del line  # which leads to the registry
    nodes: list[GpuNode] = []

    def make(engine: Engine) -> GpuNode:
        nodes.append(GpuNode(tmp_path, tiny_model, engine, served_image))
        return nodes[-1]

    yield make
    for node in nodes:
        node.cleanup()
        node.remove_containers()


@pytest.fixture
def hookless(root: Path) -> Iterator[Engine]:
    """Its toolkit was removed, and its settings were not."""
    yield from running(NvidiaDocker(root / "hookless", hook=False))


@pytest.fixture
def node(make_node: Callable[[Engine], GpuNode], way: Way) -> GpuNode:
    node = make_node(way.engine)
    way.knows(*node.gpus)
    node.begin()
    return node


def test_a_container_gets_exactly_the_gpu_of_its_plan_and_keeps_it_until_its_memory_is_back(node: GpuNode) -> None:
    ready = node.serve("a")
    (mine,) = plan_of(ready)["devices"]
    (other,) = {*node.gpus} - {mine}
    assert complete(ready.endpoint)["content"]
    assert node.arrived(ready) == {mine}

    node.machine.take(number(mine), ready.instance.pid, 300 * 1024**2)
    found = node.wait_until(lambda d: any(use.used_bytes for use in d.instance.device_uses), "a")
    assert [(use.device, use.planned) for use in found.instance.device_uses] == [(f"devices/{mine}", True)]
    (process,) = node.devices()[mine].processes
    assert process.instance == found.instance.name.rpartition("/")[2]
    assert (node.holders(mine), node.holders(other)) == ({"a"}, set())

    node.machine.take(number(mine), os.getpid(), 79 * GIB)  # a stranger's: no room for a second one
    wait_true(lambda: node.devices()[mine].memory_used_bytes > 79 * GIB, what="seen")
    second = node.serve("b")
    assert plan_of(second)["devices"] == [other]
    assert node.arrived(second) == {other}

    with node.client() as client:
        client.stop_deployment("a")
    wait_true(lambda: not Path(f"/proc/{ready.instance.pid}").exists(), what="ended")
    assert node.holders(mine) == {"a"}
    node.machine.give_back(number(mine))
    node.wait("a", phase="stopped")
    wait_true(lambda: (node.holders(mine), node.holders(other)) == (set(), {"b"}), what="free again")


def test_a_container_of_two_gpus_gets_both_and_so_does_its_replacement_which_the_next_agent_adopts(
    node: GpuNode,
) -> None:
    before = node.serve(devices=[*node.gpus])
    assert node.arrived(before) == {*node.gpus}
    os.kill(before.instance.pid, 9)
    after = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.restarts == 1, timeout=60)
    assert node.arrived(after) == {*node.gpus}

    node.kill()
    node.begin()
    wait_true(lambda: "Adopted" in node.reasons(), what="adopted")
    assert [node.holders(uuid) for uuid in node.gpus] == [{"m"}, {"m"}]
    assert node.arrived(node.get()) == {*node.gpus}


def test_a_container_for_the_cpu_gets_no_gpu(make_node: Callable[[Engine], GpuNode], nvidia: Way) -> None:
    """Where NVIDIA's runtime is the default one, and the image wants all of them."""
    node = make_node(nvidia.engine)
    nvidia.knows(*node.gpus)
    catalog = node.root / "engines.yaml"
    catalog.write_text(catalog.read_text().replace("- cuda", "- cpu"))
    node.begin()
    ready = node.serve(devices="cpu")
    assert node.arrived(ready) == set()
    assert isinstance(nvidia.engine, NvidiaDocker)
    assert nvidia.engine.asked.read_text().splitlines()[-1] == "runtime void"
    assert [node.holders(uuid) for uuid in node.gpus] == [set(), set()]


def test_a_gpu_that_the_engine_does_not_know_is_no_fault_of_the_inference_engine(
    make_node: Callable[[Engine], GpuNode], way: Way
) -> None:
    node = make_node(way.engine)
    known, unknown = node.gpus
    way.knows(known)
    node.begin()
    node.apply(runtime="docker", devices=[unknown], restart=IMPATIENT)
    diagnosis = node.failed()

    assert diagnosis.code == "crash_loop"
    assert "the last one: device_failed: " in diagnosis.message
    assert unknown in diagnosis.message
    assert "`nvidia-" in diagnosis.hint
    wait_true(lambda: node.holders(unknown) == set(), what="free again")
    assert node.containers() == []

    way.knows(known, unknown)
    with node.client() as client:
        client.restart_deployment("m")
    assert node.arrived(node.wait(timeout=60)) == {unknown}


def test_a_device_node_that_is_gone_is_named(make_node: Callable[[Engine], GpuNode], cdi: Way) -> None:
    node = make_node(cdi.engine)
    cdi.knows(*node.gpus)
    gone = cdi.node(node.gpus[0])
    gone.unlink()
    node.begin()
    node.apply(runtime="docker", devices=[node.gpus[0]], restart=IMPATIENT)
    diagnosis = node.failed()

    assert "the last one: device_failed: " in diagnosis.message
    assert str(gone) in diagnosis.message
    assert "nvidia-ctk cdi generate" in diagnosis.hint
    wait_true(lambda: node.holders(node.gpus[0]) == set(), what="free again")


def test_a_docker_whose_toolkit_is_gone_says_what_to_install(
    hookless: Engine, make_node: Callable[[Engine], GpuNode]
) -> None:
    node = make_node(hookless)
    node.begin()
    node.apply(runtime="docker")
    diagnosis = node.failed()

    assert (diagnosis.code, diagnosis.fatal) == ("toolkit_missing", True)
    assert "install nvidia-container-toolkit" in diagnosis.hint
    wait_true(lambda: [node.holders(uuid) for uuid in node.gpus] == [set(), set()], what="free")
    assert node.containers() == []


def test_a_podman_that_passes_over_requests_for_gpus_is_given_no_plan_with_them(
    make_node: Callable[[Engine], GpuNode], podman_service: Podman
) -> None:
    """Before 5.4 it would make a container without them, and say nothing."""
    if podman_service.version() >= (5, 4):
        pytest.skip("this one does not")
    node = make_node(podman_service)
    node.begin()
    node.apply(runtime="docker", devices=[node.gpus[0]])
    diagnosis = node.failed()

    assert diagnosis.code == "toolkit_missing"
    assert "podman 4." in diagnosis.message
    assert "podman 5.4 or newer" in diagnosis.message
    assert [node.holders(uuid) for uuid in node.gpus] == [set(), set()]


async def test_a_start_that_hangs_in_the_driver_is_told_from_a_container_engine_that_hangs(
    nvidia: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(nvidia.engine, NvidiaDocker)
    nvidia.knows("GPU-00000000-1")
    monkeypatch.setattr(docker_making, "START_SECONDS", 1.0)
    monkeypatch.setattr(docker_making, "ACT_SECONDS", 1.0)
    bench = make(nvidia.engine, nvidia.engine.tools_image(), tmp_path)
    request = bench.request("/bin/sh", "-c", "")
    assert request.container is not None
    request = replace(request, container=replace(request.container, gpus=("GPU-00000000-1",)))
    try:
        with nvidia.engine.stuck(), pytest.raises(LaunchError, match="the driver of a device may hang") as refused:
            await bench.runtime.launch(request, nothing)
        assert refused.value.code == "device_failed"
        async with asyncio.timeout(30):
            while await bench.runtime.find_all(bench.node):
                await asyncio.sleep(0.1)
    finally:
        await bench.close()


async def test_device_files_reach_an_engine_that_is_not_root_by_the_groups_that_own_them(
    bench: ContainerBench, tmp_path: Path
) -> None:
    for name, group in (("kfd", VIDEO), ("renderD128", RENDER), ("renderD129", RENDER)):
        os.mknod(tmp_path / name, stat.S_IFCHR, os.makedev(1, 3))
        (tmp_path / name).chmod(0o660)
        os.chown(tmp_path / name, 0, group)
    files = tuple(str(tmp_path / name) for name in ("kfd", "renderD128"))
    script = f"id -G; cd {tmp_path}; for file in *; do : < $file && : > $file && echo $file; done"
    request = bench.request("/bin/sh", "-c", "")
    assert request.container is not None
    container = replace(request.container, mounts=(), device_files=files, user="4711:4712")
    running = await bench.launch(replace(request, argv=("/bin/sh", "-c", script), container=container))
    await bench.exit(running)

    groups, *opened = (await bench.output(running)).splitlines()
    assert {*groups.split()} == {"4712", str(VIDEO), str(RENDER)}
    assert opened == ["kfd", "renderD128"]


@pytest.fixture
def amd_files(tmp_path: Path, request: Any) -> Path:
    """The files of eight MI210, below this folder: /dev/null by other names. One may be left out."""
    tree = plant("mi210-8", tmp_path / "host")
    shutil.rmtree(tree / "dev")
    (tree / "dev/dri").mkdir(parents=True)
    files = {"kfd": VIDEO} | {f"dri/renderD{128 + card}": RENDER for card in range(8)}
    files.pop(getattr(request, "param", ""), None)
    for file, group in files.items():
        os.mknod(tree / "dev" / file, stat.S_IFCHR, os.makedev(1, 3))
        (tree / "dev" / file).chmod(0o660)
        os.chown(tree / "dev" / file, 0, group)
    return tree


@pytest.fixture
def amd_docker(amd_files: Path, root: Path) -> Iterator[Engine]:
    try:
        host = OtherHost(amd_files)
    except Missing as reason:
        unavailable(str(reason))
    try:
        yield from running(OtherDocker(root / "amd", host))
    finally:
        host.close()
        shutil.rmtree(root / "amd")


@pytest.fixture
def amd_node(
    amd_docker: Engine, tmp_path: Path, tiny_model: Path, served_image: ImageReference, line: Line
) -> Iterator[AmdNode]:
    del line  # which leads to the registry
    node = AmdNode(tmp_path, tiny_model, amd_docker, served_image)
    yield node
    node.cleanup()
    node.remove_containers()


def test_a_container_gets_the_files_of_its_amd_gpus_and_the_groups_that_own_them(amd_node: AmdNode) -> None:
    amd_node.begin()
    cards = [*amd_node.devices()]
    ready = amd_node.serve(devices=[cards[3], cards[6]])
    assert complete(ready.endpoint)["content"]

    container = ready.instance.container
    script = "cd /dev; for file in kfd dri/*; do : < $file && echo $file $(stat -c %g $file); done"
    assert amd_node.inside(container, script).splitlines() == [
        f"kfd {VIDEO}", f"dri/renderD131 {RENDER}", f"dri/renderD134 {RENDER}"
    ]  # fmt: skip
    groups = next(
        line.split()[1:]
        for line in Path(f"/proc/{ready.instance.pid}/status").read_text().splitlines()
        if line.startswith("Groups:")
    )
    assert {str(VIDEO), str(RENDER)} <= {*groups}
    said = amd_node.environment(ready)
    assert (said["ROCR_VISIBLE_DEVICES"], said["NVIDIA_VISIBLE_DEVICES"]) == ("0,1", "void")
    assert {card for card in cards if amd_node.holders(card)} == {cards[3], cards[6]}


@pytest.mark.parametrize("amd_files", ["dri/renderD131"], indirect=True)
def test_an_amd_gpu_whose_file_is_gone_fails_as_a_device(amd_node: AmdNode) -> None:
    amd_node.begin()
    card = [*amd_node.devices()][3]
    amd_node.apply(runtime="docker", devices=[card], restart=IMPATIENT)
    diagnosis = amd_node.failed()

    assert "the last one: device_failed: the device file /dev/dri/renderD131" in diagnosis.message
    wait_true(lambda: amd_node.holders(card) == set(), what="free again")
    assert amd_node.containers() == []
