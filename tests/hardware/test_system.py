"""Settings of the host: of this machine, and as files tell them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.hardware.system import system
from tests.hardware.trees import as_nobody, write

ROOT = Path(__file__).parents[2]
FIRST = "-> pid:[4026531836]"


def test_this_machine_is_described() -> None:
    found = system()
    size = os.statvfs("/dev/shm")

    assert found.shm_bytes == size.f_blocks * size.f_frsize
    assert found.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert found.clock_synchronized in {True, False}


def test_limits_are_those_that_engines_would_inherit() -> None:
    code = "from agent.hardware.system import system; s = system(); print(s.open_files, s.locked_memory)"
    limits = "ulimit -Sn 123; ulimit -Sl unlimited 2>/dev/null || ulimit -Sl 64"
    done = subprocess.run(
        ["bash", "-c", f'{limits}; ulimit -Sl; exec "$0" -c "$1"', sys.executable, code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    told, (files, locked) = done.stdout.split()[0], done.stdout.split()[1:]

    assert files == "123"
    assert locked == ("-1" if told == "unlimited" else str(int(told) * 1024))


def test_nothing_is_said_of_what_is_not_there(tmp_path: Path) -> None:
    found = system(tmp_path)

    assert (found.nouveau_loaded, found.shm_bytes, found.in_container) == (None, None, None)
    assert found.device_cgroup_denies == ()


def test_nouveau_is_seen(tmp_path: Path) -> None:
    write(tmp_path, "sys/module/ext4/refcnt", "1")
    before = system(tmp_path).nouveau_loaded
    write(tmp_path, "sys/module/nouveau/refcnt", "0")

    assert (before, system(tmp_path).nouveau_loaded) == (False, True)


@pytest.mark.parametrize(
    ("files", "inside"),
    [
        ({"proc/self/ns/pid": FIRST}, False),
        ({"proc/self/ns/pid": "-> pid:[4026532501]"}, True),
        ({"proc/self/ns/pid": FIRST, ".dockerenv": ""}, True),  # docker run --pid=host
        ({"proc/self/ns/pid": FIRST, "run/.containerenv": ""}, True),
        ({"proc/self/ns/pid": FIRST, "run/systemd/container": "lxc"}, True),
    ],
)
def test_a_container_is_known_by_its_marks_or_its_processes(
    tmp_path: Path, files: dict[str, str], inside: bool
) -> None:
    for path, content in files.items():
        write(tmp_path, path, content)

    assert system(tmp_path).in_container is inside


def test_device_files_that_may_not_be_opened_are_named(public_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "kfd", "dri/renderD128", "dri/card0", "null"):
        write(public_path, f"dev/{name}", "")
        (public_path / "dev" / name).chmod(0o666)
    for name in ("nvidia1", "kfd", "dri/card0", "null"):
        (public_path / "dev" / name).chmod(0)

    with as_nobody():
        found = system(public_path)

    assert found.device_cgroup_denies == ("/dev/nvidia1", "/dev/kfd")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A group whose processes may not open /dev/null, in place of a GPU."""
    folder = Path(f"/sys/fs/cgroup/devices/agent-test-{os.getpid()}")
    try:
        folder.mkdir()
        (folder / "devices.deny").write_text("c 1:3 rwm")
    except OSError as error:
        pytest.skip(f"needs a writable cgroup of version 1 for devices: {error}")
    yield folder
    folder.rmdir()


def test_a_device_that_the_cgroup_denies_is_named_although_its_permissions_allow_it(
    cgroup: Path, tmp_path: Path
) -> None:
    """The same look as in a container without --device, and nothing is opened."""
    write(tmp_path, "dev/nvidia0", "-> /dev/null")
    write(tmp_path, "dev/nvidia1", "-> /dev/zero")
    code = (
        "import sys; from pathlib import Path; Path(sys.argv[1], 'cgroup.procs').write_text('0')\n"
        "from agent.hardware.system import system; print(*system(Path(sys.argv[2])).device_cgroup_denies)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, cgroup, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )

    assert done.stdout.split() == ["/dev/nvidia0"]
