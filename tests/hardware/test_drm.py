"""Who uses a graphics device, out of /proc: of this machine's own processes, and of trees."""

from __future__ import annotations

import shutil
from pathlib import Path

from agent.hardware import drm
from tests.hardware.trees import as_nobody, write

CLIENT = "drm-driver:\txe\ndrm-client-id:\t{client}\ndrm-pdev:\t0000:03:00.0\ndrm-resident-vram0:\t{kib} KiB"
FILE = "/dev/dri/renderD128"


def client(root: Path, pid: int, descriptor: int, number: int, kib: int, file: str = FILE) -> None:
    write(root, f"proc/{pid}/fd/{descriptor}", f"-> {file}")
    write(root, f"proc/{pid}/fdinfo/{descriptor}", CLIENT.format(client=number, kib=kib))


def test_clients_of_one_process_are_added_up(tmp_path: Path) -> None:
    client(tmp_path, 10, 4, number=1, kib=100)
    client(tmp_path, 10, 5, number=2, kib=28)

    usage = drm.Clients(tmp_path).usage([FILE])

    assert usage.of("vram") == {10: 128 * 1024}
    assert usage.complete


def test_a_client_that_a_child_inherited_is_counted_once(tmp_path: Path) -> None:
    client(tmp_path, 10, 4, number=1, kib=100)
    client(tmp_path, 11, 4, number=1, kib=100)

    assert drm.Clients(tmp_path).usage([FILE]).of("vram") == {10: 100 * 1024}


def test_a_client_by_either_file_of_the_device_is_the_devices(tmp_path: Path) -> None:
    client(tmp_path, 10, 4, number=1, kib=100, file="/dev/dri/card0")
    client(tmp_path, 12, 4, number=9, kib=100, file="/dev/dri/renderD129")

    assert drm.Clients(tmp_path).usage([FILE, "/dev/dri/card0"]).of("vram") == {10: 100 * 1024}


def test_what_is_resident_counts_where_the_driver_tells_it(tmp_path: Path) -> None:
    memory = "drm-total-local0:\t8 GiB\ndrm-resident-local0:\t3 GiB\ndrm-memory-vram:\t7\ndrm-total-gtt:\t1 MiB"
    write(tmp_path, "proc/10/fd/4", f"-> {FILE}")
    write(tmp_path, "proc/10/fdinfo/4", f"drm-client-id:\t1\n{memory}")

    assert drm.Clients(tmp_path).usage([FILE]).by_pid == {10: {"local0": 3 * 1024**3, "vram": 7, "gtt": 1024**2}}


def test_processes_that_may_not_be_looked_at_make_it_incomplete(public_path: Path) -> None:
    client(public_path, 10, 4, number=1, kib=100)
    client(public_path, 11, 4, number=2, kib=100)
    (public_path / "proc/11/fd").chmod(0)

    with as_nobody():
        usage = drm.Clients(public_path).usage([FILE])

    assert usage.of("vram") == {10: 100 * 1024}
    assert not usage.complete


def test_devices_of_one_round_share_one_look(tmp_path: Path) -> None:
    """The processes are looked for once; what they use is asked anew."""
    client(tmp_path, 10, 4, number=1, kib=100)
    clients = drm.Clients(tmp_path, fresh=3600)
    clients.usage([FILE])
    client(tmp_path, 11, 4, number=2, kib=100)
    client(tmp_path, 10, 4, number=1, kib=50)

    assert clients.usage([FILE]).of("vram") == {10: 50 * 1024}


def test_a_process_that_ended_meanwhile_holds_nothing(tmp_path: Path) -> None:
    client(tmp_path, 10, 4, number=1, kib=100)
    clients = drm.Clients(tmp_path)
    clients.usage([FILE])
    shutil.rmtree(tmp_path / "proc/10")

    assert clients.usage([FILE]).of("vram") == {}


def test_this_machines_processes_can_be_looked_at() -> None:
    assert drm.Clients().usage(["/dev/dri/renderD999"]).by_pid == {}
