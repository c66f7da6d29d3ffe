"""What of the `docker` runtime needs no container engine; the rest is shown in tests/docker with real ones."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.runtimes import docker_config, docker_processes, docker_refusals, docker_state
from agent.runtimes.base import Adopted, Container, Identity, LaunchError, LaunchRequest, Mount, Resources
from agent.runtimes.docker_config import Surroundings
from agent.runtimes.docker_engine import Facts
from agent.runtimes.docker_processes import Box
from agent.status import DiagnosisCode, ExitStatus

REQUEST = LaunchRequest(
    Identity("node", "chat", 7, 1, "chat-1"), ("/bin/engine", "--port", "8000"), {"A": "1"}, Path("/d"), Path("/l"),
    Resources(memory_bytes=1024, cpus=1.5, pids=10),
)  # fmt: skip
CONTAINER = Container("sha256:1", "127.0.0.1", 8000, mounts=(Mount("/weights", "/weights"),))
DOCKER = Surroundings(Facts())
UUIDS = ("GPU-1", "MIG-2")
NAMES = ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=MIG-2"]


def host(container: Container, around: Surroundings) -> dict[str, Any]:
    found: dict[str, Any] = docker_config.created(REQUEST, container, around)["HostConfig"]
    return found


@pytest.mark.parametrize("container", [CONTAINER, replace(CONTAINER, read_only_root=True)])
def test_no_container_is_privileged_or_restarted_by_others(container: Container) -> None:
    made = host(container, DOCKER)
    assert (made["Privileged"], made["CapDrop"]) == (False, ["ALL"])
    assert "no-new-privileges" in made["SecurityOpt"]
    assert made["RestartPolicy"] == {"Name": "no"}
    assert made["NetworkMode"] == "llm-node-agent"


def test_selinux_neither_hides_weights_nor_gets_them_labelled_anew() -> None:
    mounts = (Mount("/home/someone/weights", "/weights"), Mount("/cache", "/cache", read_only=False))
    made = host(replace(CONTAINER, mounts=mounts), DOCKER)
    assert "label=disable" in made["SecurityOpt"]
    assert "Binds" not in made  # whose ":z" would
    assert [set(mount) for mount in made["Mounts"]] == [{"Type", "Source", "Target", "ReadOnly"}] * 2


@pytest.mark.parametrize(
    ("facts", "request_"),
    [
        (Facts(runtimes=frozenset({"nvidia"}), takes_cdi=True), ("nvidia", list(UUIDS))),
        (Facts(takes_cdi=True), ("cdi", NAMES)),
        (Facts(podman="5.4.0", takes_cdi=True), ("cdi", NAMES)),
    ],
)
def test_nvidias_devices_are_asked_for_by_uuid_in_the_way_that_the_engine_knows(
    facts: Facts, request_: tuple[str, list[str]]
) -> None:
    (made,) = host(replace(CONTAINER, gpus=UUIDS), Surroundings(facts))["DeviceRequests"]
    assert (made["Driver"], made["DeviceIDs"]) == request_


@pytest.mark.parametrize(
    ("facts", "message"), [(Facts(), "CDI is not switched on"), (Facts(podman="4.3.1"), "podman 4.3.1 gives no NVIDIA")]
)
def test_devices_that_the_engine_cannot_give_refuse_the_launch(facts: Facts, message: str) -> None:
    with pytest.raises(LaunchError, match=message) as refused:
        host(replace(CONTAINER, gpus=UUIDS), Surroundings(facts))
    assert refused.value.code == DiagnosisCode.TOOLKIT_MISSING
    assert refused.value.hint


@pytest.mark.parametrize(
    ("gpus", "facts", "visible"),
    [
        (UUIDS, Facts(runtimes=frozenset({"nvidia"})), "GPU-1,MIG-2"),
        (UUIDS, Facts(takes_cdi=True), "void"),
        ((), Facts(runtimes=frozenset({"nvidia"})), "void"),
        ((), Facts(), "void"),
    ],
)
def test_nvidias_runtime_gives_nothing_beyond_the_plan_where_it_is_the_default(
    gpus: tuple[str, ...], facts: Facts, visible: str
) -> None:
    made = docker_config.created(REQUEST, replace(CONTAINER, gpus=gpus), Surroundings(facts))
    assert f"NVIDIA_VISIBLE_DEVICES={visible}" in made["Env"]


def test_device_files_come_with_the_groups_that_own_them() -> None:
    made = host(replace(CONTAINER, device_files=("/dev/kfd",)), replace(DOCKER, groups=(44, 109)))
    assert made["Devices"] == [{"PathOnHost": "/dev/kfd", "PathInContainer": "/dev/kfd", "CgroupPermissions": "rw"}]
    assert made["GroupAdd"] == ["44", "109"]


def test_the_hash_tells_any_two_containers_apart_and_is_no_part_of_itself() -> None:
    def digest(request: LaunchRequest, container: Container) -> str:
        return str(docker_config.created(request, container, DOCKER)["Labels"][docker_config.CONFIG])

    changed = [
        (replace(REQUEST, argv=("/bin/engine",)), CONTAINER),
        (replace(REQUEST, environment={"A": "2"}), CONTAINER),
        (REQUEST, replace(CONTAINER, image="sha256:2")),
        (REQUEST, replace(CONTAINER, shm_bytes=1)),
    ]
    assert len({digest(REQUEST, CONTAINER), *(digest(*each) for each in changed)}) == 5
    assert digest(REQUEST, CONTAINER) == digest(REQUEST, CONTAINER)


@pytest.mark.parametrize("labels", [None, {}, {"llm-node-agent.node": "n"}])
def test_a_container_without_all_labels_is_nobodys(labels: dict[str, str] | None) -> None:
    assert docker_config.identity_of(labels) is None
    assert docker_config.identity_of(docker_config.labels(REQUEST.identity)) == REQUEST.identity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-21T16:05:52.497734142Z", 1795277152_497734142),
        ("2026-11-21T16:05:52Z", 1795277152_000000000),
        ("2026-11-21T17:05:52.5+01:00", 1795277152_500000000),
        ("0001-01-01T00:00:00Z", 0),
        ("yesterday", 0),
    ],
)
def test_times_are_read_to_the_nanosecond(text: str, expected: int) -> None:
    assert docker_state.nanoseconds(text) == expected


def test_a_container_that_never_ran_has_no_exit_status() -> None:
    state = {"Running": False, "ExitCode": 0, "StartedAt": "0001-01-01T00:00:00Z", "FinishedAt": "0001-01-01T00:00:00Z"}
    assert docker_state.ended({"State": state}) == ExitStatus()


LAUNCH_FAILED, DEVICE_FAILED = DiagnosisCode.LAUNCH_FAILED, DiagnosisCode.DEVICE_FAILED
DISK_FULL = DiagnosisCode.DISK_FULL
TOOLKIT_MISSING, DRIVER_UNSUPPORTED = DiagnosisCode.TOOLKIT_MISSING, DiagnosisCode.DRIVER_UNSUPPORTED


@pytest.mark.parametrize(
    ("said", "sentence", "code"),
    [
        ("Bind for 127.0.0.1:8000 failed: port is already allocated", "port 8000 of 127.0.0.1 is taken", LAUNCH_FAILED),
        ("No such image: sha256:1", "the image sha256:1 is gone", LAUNCH_FAILED),
        ("something new", "the container engine refuses: something new", LAUNCH_FAILED),
        ('could not select device driver "nvidia" with capabilities: [[gpu]]', "finds no nvidia-c", TOOLKIT_MISSING),
        ("fork/exec /usr/bin/nvidia-cdi-hook: no such file or directory", "finds no nvidia-c", TOOLKIT_MISSING),
        ("setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=GPU-1", "by its UUID", DEVICE_FAILED),
        ('CDI device injection failed: failed to stat CDI host device "/dev/nvidia7": no such file or directory',
         "as its CDI specification says", DEVICE_FAILED),
        ('error mounting "/usr/lib/libcuda.so.550.54" to rootfs: bind mount source stat: no such file or directory',
         "a file of the driver", DEVICE_FAILED),
        ("failed to fulfil mount request: open /usr/lib/libcuda.so.550.54.15: no such file or directory",
         "a file of the driver", DEVICE_FAILED),
        ("error running hook #0: exit status 1: nvidia-container-cli: device error: GPU-1: unknown device: unknown",
         "does not know a device", DEVICE_FAILED),
        ("nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.6, please update your driver",
         "the driver too old for the image", DRIVER_UNSUPPORTED),
        ("nvidia-container-cli: initialization error: nvml error: timeout: unknown", "cannot give the", DEVICE_FAILED),
    ],
)  # fmt: skip
def test_a_refusal_reads_as_what_it_means(said: str, sentence: str, code: DiagnosisCode) -> None:
    error = docker_refusals.launch_error(said, CONTAINER)
    assert sentence in str(error)
    assert error.code is code
    assert bool(error.hint) == (code is not LAUNCH_FAILED)


@pytest.mark.parametrize(
    ("said", "sentence", "code"),
    [
        # podman-container-tools/podman issues 27093, 3843, 19377, 19319, 22285, 27502; moby/moby issues 36473, 29638
        ("mkdir /var/lib/docker/overlay2/80b87cb3384f-init: no space left on device", "disk", DISK_FULL),
        ("creating container storage: creating read-write layer: write /var/lib/containers/x: no space left on device",
         "disk", DISK_FULL),
        ("mkdir /home/llm/.local/share/containers/storage/overlay/80b8: disk quota exceeded", "disk", DISK_FULL),
        ("allocating lock for new container: allocation failed; exceeded num_locks (2048)", "no lock", LAUNCH_FAILED),
        ("error allocating lock for new container: no space left on device", "no lock", LAUNCH_FAILED),
        ("mkdir /sys/fs/cgroup/memory/docker/74ad1f: no space left on device", "control group", LAUNCH_FAILED),
        ("crun: setrlimit `RLIMIT_MEMLOCK`: Operation not permitted: OCI permission denied", "ulimit", LAUNCH_FAILED),
        ("error setting rlimit type 8: operation not permitted", "ulimit", LAUNCH_FAILED),
        ("pasta failed with exit code 1:\nFailed to bind port 8000 (Address already in use) for option '-t 8000-8000'",
         "port 8000 of 127.0.0.1 is taken", LAUNCH_FAILED),
        ("pasta failed with exit code 1:\nFailed to bind port 80 (Permission denied) for option '-t 80-80'",
         "may not publish port", LAUNCH_FAILED),
        ("rootlessport cannot expose privileged port 80: listen tcp 0.0.0.0:80: bind: permission denied",
         "may not publish port", LAUNCH_FAILED),
        ("failed to bind host port for 192.0.2.7:8000:172.18.0.2:8000/tcp: cannot assign requested address",
         "this host has no address", LAUNCH_FAILED),
        ("stat /dev/kfd: no such file or directory", "a device file", DEVICE_FAILED),
        ('crun: {"msg":"error executing hook `/usr/bin/nvidia-ctk` (exit code: 1)","level":"error"}',
         "cannot give the", DEVICE_FAILED),
        ("crun: executable file `/usr/bin/nvidia-cdi-hook` not found: No such file or directory", "finds no nvidia-c",
         TOOLKIT_MISSING),
    ],
)  # fmt: skip
def test_what_fills_up_and_what_podman_says_otherwise_is_told_apart(
    said: str, sentence: str, code: DiagnosisCode
) -> None:
    error = docker_refusals.launch_error(said, CONTAINER)

    assert sentence in str(error)
    assert error.code is code
    assert error.hint or code is LAUNCH_FAILED


def test_only_a_port_that_is_taken_is_waited_for() -> None:
    assert docker_refusals.port_taken("Failed to bind port 8000 (Address already in use) for option '-t 8000-8000'")
    assert docker_refusals.port_taken("driver failed: failed to bind host port for 127.0.0.1:8000")
    assert not docker_refusals.port_taken("Failed to bind port 80 (Permission denied) for option '-t 80-80'")
    assert not docker_refusals.port_taken("failed to bind host port for 192.0.2.7: cannot assign requested address")


def test_a_long_refusal_is_cut_to_its_end_where_the_cause_is() -> None:
    said = (
        f"failed to create task: {'OCI runtime create failed: ' * 30}nvidia-container-cli: device error: unknown device"
    )
    error = docker_refusals.launch_error(said, CONTAINER)
    assert str(error).endswith("unknown device)")
    assert len(str(error)) < 400


def test_a_handle_survives_what_others_add_to_it() -> None:
    box = Box("id", "name", "hash", "/d", "now", 1, 2, "boot", ("/sys/fs/cgroup/x",), ("memory limit 1 MiB",))
    assert Box.from_data({**box.data(), "socket": "/run/docker.sock"}) == box
    with pytest.raises(ValueError, match="not the handle of a container"):
        Box.from_data({"pid": 1})


def test_a_process_outside_of_a_container_has_no_group_that_bears_its_id() -> None:
    assert docker_processes.groups(os.getpid(), "f" * 64) == ()


async def test_without_a_socket_nothing_is_imported_and_what_is_recorded_counts_as_running(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from agent.runtimes.base import Handle, Identity\n"
        "from agent.runtimes.docker import DockerRuntime\n"
        "from agent.runtimes.docker_processes import Box\n"
        "async def main():\n"
        "    told = []\n"
        "    runtime = DockerRuntime('node', '/no/such.sock', lambda *what: told.append(what))\n"
        "    handle = Handle('docker', Box('id', 'chat-1', 'hash', '/d').data())\n"
        "    found = await runtime.adopt(Identity('node', 'chat', 7, 1, 'chat-1'), handle, Path('/d'))\n"
        "    while not told: await asyncio.sleep(0.01)\n"
        "    print(type(found).__name__, told[0][0], 'requests' in sys.modules)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert output.decode().split() == [Adopted.__name__, "False", "False"]


async def test_a_folder_that_is_closed_to_the_agent_is_told_and_seen_to_be_open_again(tmp_path: Path) -> None:
    """In a process of its own, which may have to be somebody else: root enters every folder."""
    (tmp_path / "run").mkdir()
    code = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from agent.runtimes.docker import DockerRuntime\n"
        "async def main():\n"
        "    folder, us, told = Path(sys.argv[1]), os.geteuid(), ['']\n"
        "    runtime = DockerRuntime('node', f'{folder}/engine.sock', lambda *what: told.append(what[2]))\n"
        "    async def until(words):\n"
        "        while words not in told[-1]: await asyncio.sleep(0.01)\n"
        "    await runtime.forget(None, Path('/no/such/instance'))\n"
        "    await until('there is no socket')\n"
        "    folder.chmod(0)\n"
        "    os.seteuid(us or 65534)\n"
        "    await until('no permission to open')\n"
        "    os.seteuid(us)\n"
        "    folder.chmod(0o755)\n"
        "    await until('there is no socket')\n"
        "asyncio.run(asyncio.wait_for(main(), 20))\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, tmp_path / "run")
    assert await process.wait() == 0
