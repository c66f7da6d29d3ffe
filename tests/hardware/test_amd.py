"""AMD GPUs out of sysfs: cards, bridges of several, partitions, processors with graphics, and trees that are broken."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from agent.hardware.amd import Amd
from agent.hardware.inventory import DeviceProcess, Driver, PciLink
from tests.hardware.trees import as_nobody, plant, write

GIB = 1024**3
CARD = "sys/devices/pci0000:00/0000:00:01.1/0000:01:00.0/0000:02:00.0/0000:03:00.0"
HALO = "sys/devices/pci0000:00/0000:00:08.1/0000:c6:00.0"
NODES = "sys/class/kfd/kfd/topology/nodes"


@pytest.fixture
def desktop(tmp_path: Path) -> Path:
    """A Radeon RX 7900 XTX beside a processor whose own graphics has two compute units."""
    return plant("rx7900xtx", tmp_path)


@pytest.fixture
def halo(tmp_path: Path) -> Path:
    """A processor whose graphics uses up to 96 GiB of the host's memory."""
    return plant("strix-halo", tmp_path)


def lines(*rows: str) -> str:
    return "\n".join(rows)


def test_a_host_without_amd_hardware_has_nothing_to_say(tmp_path: Path) -> None:
    amd = Amd(tmp_path)

    assert not amd.present()
    assert amd.detect().devices == amd.detect().problems == ()
    assert amd.detect().driver is None


def test_a_card_is_one_device_and_the_display_output_of_the_processor_is_none(desktop: Path) -> None:
    amd = Amd(desktop)

    (device,) = amd.detect().devices

    assert amd.present()
    assert device.id == "amd-f1b1c4d3a2e05967"
    assert device.name == "AMD Radeon RX 7900 XTX"
    assert device.architecture == "gfx1100"
    assert (device.memory_bytes, device.memory_kind) == (25753026560, "dedicated")
    assert device.files == ("/dev/kfd", "/dev/dri/renderD128")
    assert device.numa_node is None
    assert device.ecc is False
    assert device.power_limit_watts == 327


def test_the_link_of_a_card_is_the_one_outside_of_the_switch_that_is_on_it(desktop: Path) -> None:
    (device,) = Amd(desktop).detect().devices

    assert device.pci == PciLink("0000:03:00.0", generation=4, max_generation=4, width=8, max_width=16)


def test_a_sample_has_memory_load_power_clock_and_the_temperature_of_the_hottest_place(desktop: Path) -> None:
    amd = Amd(desktop)
    amd.detect()

    sample = amd.sample("amd-f1b1c4d3a2e05967")

    assert sample.problem is None
    assert (sample.memory_used, sample.memory_total) == (7 * GIB, 25753026560)
    assert (sample.utilization, sample.memory_utilization) == (87, 41)
    assert (sample.power_watts, sample.power_limit_watts) == (291, 327)
    assert sample.temperature_celsius == 74
    assert (sample.clock_mhz, sample.max_clock_mhz) == (2482, 2526)
    assert sample.ecc_uncorrected is None


def test_processes_that_hold_memory_are_named_whether_they_compute_or_draw(desktop: Path) -> None:
    """4711 computes; 4800 has only asked what devices there are; 4900 uses Vulkan, one client by two descriptors."""
    amd = Amd(desktop)
    amd.detect()

    assert amd.sample("amd-f1b1c4d3a2e05967").processes == (
        DeviceProcess(4711, 6 * GIB, "ada", "/opt/llama/llama-server"),
        DeviceProcess(4900, GIB // 2, "root", "vkcube"),
    )


def test_inside_of_a_container_the_process_ids_of_the_host_are_not_taken_for_its_own(desktop: Path) -> None:
    write(desktop, "proc/self/ns/pid", "-> pid:[4026532501]")
    amd = Amd(desktop)
    amd.detect()

    known = amd.sample("amd-f1b1c4d3a2e05967").processes
    shutil.rmtree(desktop / "proc/4711")
    shutil.rmtree(desktop / "proc/4900")

    assert known is not None
    assert [process.memory_bytes for process in known] == [6291000 * 1024, GIB // 2]  # what /proc itself tells
    assert fresh(desktop).sample("amd-f1b1c4d3a2e05967").processes is None


def fresh(root: Path) -> Amd:
    amd = Amd(root)
    amd.detect()
    return amd


def test_a_driver_that_comes_with_the_kernel_has_its_version(desktop: Path) -> None:
    assert Amd(desktop).detect().driver == Driver("amd", "6.14.0-33-generic")


def test_amds_own_driver_and_rocm_have_their_versions(tmp_path: Path) -> None:
    assert Amd(plant("mi210-8", tmp_path)).detect().driver == Driver("amd", "6.10.5", "ROCm 6.3.1")


def test_bridged_cards_reach_each_other_by_xgmi_and_the_others_over_the_sockets(tmp_path: Path) -> None:
    found = Amd(plant("mi210-8", tmp_path)).detect()

    assert [device.index for device in found.devices] == list(range(8))
    assert [device.numa_node for device in found.devices] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert {device.name for device in found.devices} == {"AMD Instinct MI210"}
    assert {device.architecture for device in found.devices} == {"gfx90a"}
    assert Counter((link.kind, link.lanes) for link in found.links) == {("xgmi", 1): 12, ("sys", 0): 16}
    first = {device.id for device in found.devices[:4]}
    assert all((link.kind == "xgmi") == ((link.a in first) == (link.b in first)) for link in found.links)
    assert all(link.a < link.b for link in found.links)


def test_errors_of_the_memory_and_pages_to_be_retired_are_counted(tmp_path: Path) -> None:
    retired = "0x00012a40 : 0x00001000 : R"
    failed = "0x00012a42 : 0x00001000 : F"
    amd = fresh(plant("mi210-8", tmp_path))
    (place,) = (tmp_path / "sys/devices").rglob("0000:26:00.0")
    write(place, "ras/gpu_vram_bad_pages", retired)
    (place,) = (tmp_path / "sys/devices").rglob("0000:43:00.0")
    write(place, "ras/gpu_vram_bad_pages", lines(retired, failed))

    healthy, sick = amd.sample("amd-4a6b0000c0de0000"), amd.sample("amd-4a6b0000c0de0505")

    assert (healthy.ecc_uncorrected, healthy.rows_remap_pending, healthy.rows_remap_failed) == (0, False, False)
    assert (sick.ecc_uncorrected, sick.rows_remap_pending, sick.rows_remap_failed) == (3, True, False)
    mended, broken = amd.sample("amd-4a6b0000c0de0101"), amd.sample("amd-4a6b0000c0de0202")
    assert (mended.rows_remap_pending, mended.rows_remap_failed) == (False, False)
    assert (broken.rows_remap_pending, broken.rows_remap_failed) == (False, True)


def test_partitions_are_devices_with_their_share_and_the_whole_gpu_is_none(tmp_path: Path) -> None:
    amd = Amd(plant("mi308x-cpx", tmp_path))

    found = amd.detect()

    assert [device.id for device in found.devices[:5]] == [
        "amd-2c7a4e10f00d0000.0",
        "amd-2c7a4e10f00d0000.1",
        "amd-2c7a4e10f00d0000.2",
        "amd-2c7a4e10f00d0000.3",
        "amd-2c7a4e10f00d1001.0",
    ]
    third = found.devices[2]
    assert (third.parent, third.slice_profile) == ("amd-2c7a4e10f00d0000", "cpx-nps1")
    assert third.memory_bytes == 48 * GIB
    assert third.files == ("/dev/kfd", "/dev/dri/renderD130")
    assert third.pci is not None
    assert third.pci.address == "0000:05:00.0"
    used = amd.sample(third.id)
    assert used.memory_used == 20 * GIB
    assert [process.pid for process in used.processes or ()] == [7007]
    assert amd.sample(found.devices[1].id).memory_used == 0
    assert used.power_watts is None  # the sensors are the whole GPU's


def test_partitions_of_one_gpu_are_near_and_those_of_two_are_linked_by_xgmi_too(tmp_path: Path) -> None:
    links = {(link.a[-6:], link.b[-6:]): link for link in Amd(plant("mi308x-cpx", tmp_path)).detect().links}

    assert len(links) == 28
    assert (links["0000.0", "0000.3"].kind, links["0000.0", "0000.3"].lanes) == ("xgmi", 1)
    assert (links["0000.1", "1001.2"].kind, links["0000.1", "1001.2"].lanes) == ("xgmi", 0)  # over others


def test_partitions_counted_in_the_topmost_bits_by_newer_kernels_are_the_same(tmp_path: Path) -> None:
    before = Amd(plant("mi308x-cpx", tmp_path)).detect().devices
    for node in range(2, 10):
        path = tmp_path / NODES / str(node) / "properties"
        rows = dict(row.split() for row in path.read_text().splitlines())
        location = int(rows["location_id"])
        rows["location_id"] = str((location & 7) << 28 | location & ~7)
        path.write_text(lines(*(" ".join(row) for row in rows.items())))

    assert Amd(tmp_path).detect().devices == before


def test_virtual_functions_that_tell_their_cards_number_stay_apart(tmp_path: Path) -> None:
    plant("mi210-8", tmp_path)
    for path in (tmp_path / "sys/devices").rglob("unique_id"):
        path.write_text("4a6b0000c0de0000\n")

    ids = [device.id for device in Amd(tmp_path).detect().devices]

    assert len(set(ids)) == 8
    assert ids[:2] == ["amd-4a6b0000c0de0000", "amd-0000:26:00.0"]


def test_virtual_functions_of_one_slot_are_gpus_and_no_partitions(tmp_path: Path) -> None:
    """As a virtual machine may see them: functions 0 and 1, where partitions have a number in the same place."""
    plant("mi308x-cpx", tmp_path)
    for node in (4, 5, 6, 7, 8, 9):
        shutil.rmtree(tmp_path / NODES / str(node))
    (first,) = (tmp_path / "sys/devices").rglob("0000:05:00.0")
    shutil.copytree(first, first.with_name("0000:05:00.1"), symlinks=True)
    write(tmp_path, "sys/bus/pci/devices/0000:05:00.1", f"-> {first.with_name('0000:05:00.1')}")

    found = Amd(tmp_path).detect().devices

    assert [(device.id, device.parent) for device in found] == [
        ("amd-2c7a4e10f00d0000", ""),
        ("amd-0000:05:00.1", ""),
    ]


def test_graphics_that_allocates_from_host_memory_is_unified_and_has_what_the_driver_lets_it_map(halo: Path) -> None:
    amd = Amd(halo)

    (device,) = amd.detect().devices
    sample = amd.sample(device.id)

    assert device.id == "amd-0000:c6:00.0"  # such a chip has no number of its own
    assert device.architecture == "gfx1151"
    assert (device.memory_bytes, device.memory_kind) == (96 * GIB, "unified")
    assert device.name == "Strix Halo [Radeon Graphics / Radeon 8050S Graphics / Radeon 8060S Graphics]"
    assert (sample.memory_used, sample.memory_total) == (20 * GIB, 96 * GIB)
    assert [process.memory_bytes for process in sample.processes or ()] == [21000000000]


def test_graphics_with_a_large_carve_out_has_that_and_leaves_host_memory_alone(halo: Path) -> None:
    """KFD then gives out the carve-out: 96 GiB of 128, and host memory is what is left."""
    write(halo, f"{HALO}/mem_info_vram_total", str(96 * GIB))
    write(halo, f"{HALO}/mem_info_vram_used", str(3 * GIB))
    write(halo, f"{HALO}/mem_info_gtt_total", str(16 * GIB))
    write(halo, f"{NODES}/1/mem_banks/0/properties", lines("heap_type 1", f"size_in_bytes {96 * GIB}", "flags 0"))
    amd = Amd(halo)

    (device,) = amd.detect().devices

    assert (device.memory_bytes, device.memory_kind) == (96 * GIB, "dedicated")
    assert amd.sample(device.id).memory_used == 3 * GIB


def test_the_whole_memory_of_an_mi300a_is_the_hosts_too(tmp_path: Path) -> None:
    plant("mi308x-cpx", tmp_path)
    for path in (tmp_path / "sys/devices").rglob("device"):
        write(path.parent, "device", "0x74a0")

    assert {device.memory_kind for device in Amd(tmp_path).detect().devices} == {"unified"}


def test_a_name_that_nobody_knows_is_not_guessed(desktop: Path) -> None:
    (desktop / "usr/share/libdrm/amdgpu.ids").unlink()

    (device,) = Amd(desktop).detect().devices

    assert device.name == "AMD gfx1100 (1002:744c)"


def test_a_gpu_without_a_driver_says_what_to_load(desktop: Path) -> None:
    shutil.rmtree(desktop / "sys/class/kfd")
    shutil.rmtree(desktop / "sys/module")
    for folder in (desktop / "sys/devices").rglob("0*"):
        (folder / "driver").unlink()

    found = Amd(desktop).detect()

    assert Amd(desktop).present()
    assert found.devices == ()
    assert [problem.code for problem in found.problems] == ["DriverNotLoaded"] * 2
    assert "0000:03:00.0 has no driver: load amdgpu" in found.problems[0].message


def test_a_gpu_that_was_given_to_a_virtual_machine_is_no_problem(desktop: Path) -> None:
    shutil.rmtree(desktop / "sys/class/kfd")
    for folder in (desktop / "sys/devices").rglob("0*"):
        write(folder, "driver", "-> ../../bus/pci/drivers/vfio-pci")

    assert Amd(desktop).detect().problems == ()


def test_a_driver_without_its_compute_part_is_said(desktop: Path) -> None:
    shutil.rmtree(desktop / "sys/class/kfd")

    found = Amd(desktop).detect()

    assert found.devices == ()
    assert {problem.code for problem in found.problems} == {"NoComputeNode"}


def test_gpus_that_the_device_cgroup_hides_are_counted_once(tmp_path: Path) -> None:
    """KFD refuses to read a node's files then; here they are not there, which reads the same."""
    plant("mi210-8", tmp_path)
    for node in range(2, 10):
        (tmp_path / NODES / str(node) / "gpu_id").unlink()

    found = Amd(tmp_path).detect()

    assert found.devices == ()
    (problem,) = found.problems
    assert problem.code == "NoPermission"
    assert "all 8 AMD GPUs are hidden from this container" in problem.message


def test_a_container_that_was_given_some_gpus_does_not_hear_of_the_others(tmp_path: Path) -> None:
    plant("mi210-8", tmp_path)
    for node in range(4, 10):
        (tmp_path / NODES / str(node) / "gpu_id").unlink()

    found = Amd(tmp_path).detect()

    assert [device.index for device in found.devices] == [0, 1]
    assert found.problems == ()


def test_device_files_that_are_missing_are_named_once_for_all_devices(tmp_path: Path) -> None:
    plant("mi210-8", tmp_path)
    shutil.rmtree(tmp_path / "dev")

    found = Amd(tmp_path).detect()

    assert len(found.devices) == 8
    (problem,) = found.problems
    assert problem.code == "NoDeviceFile"
    assert problem.message.startswith("/dev/kfd, /dev/dri/renderD128, /dev/dri/renderD129 and 6 more are missing")


def test_device_files_that_this_user_may_not_open_are_named(public_path: Path) -> None:
    plant("rx7900xtx", public_path)
    (public_path / "dev/kfd").chmod(0)

    with as_nobody():
        problems = Amd(public_path).detect().problems

    assert [problem.code for problem in problems] == ["NoPermission"]
    assert problems[0].message.startswith("/dev/kfd, /dev/dri/renderD128 are not to be opened by this user")


def test_a_card_that_left_the_bus_is_lost(desktop: Path) -> None:
    amd = fresh(desktop)
    shutil.rmtree(desktop / CARD)

    sample = amd.sample("amd-f1b1c4d3a2e05967")

    assert sample.problem is not None
    assert (sample.problem.code, sample.memory_used) == ("DeviceLost", None)
    assert amd.detect().devices == ()


def test_a_card_whose_registers_read_as_ones_is_lost(desktop: Path) -> None:
    (desktop / CARD / "config").write_bytes(b"\xff" * 64)

    sample = fresh(desktop).sample("amd-f1b1c4d3a2e05967")

    assert sample.problem is not None
    assert sample.problem.code == "DeviceLost"


def test_a_card_that_comes_back_is_sampled_again(desktop: Path) -> None:
    amd = fresh(desktop)
    (desktop / CARD / "config").write_bytes(b"\xff" * 64)
    amd.sample("amd-f1b1c4d3a2e05967")
    (desktop / CARD / "config").write_bytes(b"\x02\x10\x4c\x74" + bytes(60))

    assert amd.sample("amd-f1b1c4d3a2e05967").memory_used == 7 * GIB


def test_a_driver_that_does_not_tell_the_memory_gives_no_numbers(desktop: Path) -> None:
    amd = fresh(desktop)
    (desktop / CARD / "mem_info_vram_used").write_text("")

    sample = amd.sample("amd-f1b1c4d3a2e05967")

    assert sample.problem is not None
    assert sample.problem.code == "NoAnswer"
    assert sample.power_watts is None


def test_a_card_that_sleeps_is_not_woken_up_by_a_look(desktop: Path) -> None:
    """Sensors are read from the hardware; the memory's figures are the driver's own."""
    write(desktop, f"{CARD}/power/runtime_status", "suspended")
    write(desktop, f"{CARD}/mem_info_vram_used", "0")

    sample = fresh(desktop).sample("amd-f1b1c4d3a2e05967")

    assert sample.memory_used == 0
    assert sample.temperature_celsius is None
    assert sample.problem is None


def test_a_device_that_was_never_found_is_lost(desktop: Path) -> None:
    problem = Amd(desktop).sample("amd-f1b1c4d3a2e05967").problem

    assert problem is not None
    assert problem.code == "DeviceLost"


def test_waiting_for_faults_ends_when_the_driver_is_let_go(desktop: Path) -> None:
    amd = Amd(desktop)

    assert amd.faults(0) == ()
    amd.close()
    assert amd.faults(3600) == ()


@pytest.mark.parametrize("name", ["rx7900xtx", "mi308x-cpx", "strix-halo"])
@pytest.mark.parametrize("seed", range(3))
def test_broken_files_are_never_an_error(name: str, seed: int, tmp_path: Path) -> None:
    """Each file in turn empty, garbage, gone, or a folder (which reads as an error, as EIO does)."""
    plant(name, tmp_path)
    chance = random.Random(seed)
    garbage = ["", "\udcff\udcfe", "-1", "no\nsuch: thing\t:", "9" * 5000, "0x", "a b c d e f", "type 11\nnode_to x"]
    files = [path for path in sorted((tmp_path / "sys/devices").rglob("*")) if path.is_file() and not path.is_symlink()]
    files += sorted((tmp_path / "sys/class").rglob("*.*")) + sorted((tmp_path / NODES).rglob("properties"))
    files += [path for path in sorted((tmp_path / "proc").rglob("*")) if path.is_file() and not path.is_symlink()]
    amd = fresh(tmp_path)
    known = [device.id for device in amd.detect().devices]
    for path in chance.sample(files, len(files) // 3):
        match chance.randrange(3):
            case 0 if path.is_file():
                path.unlink()
                path.mkdir()
            case 1:
                path.unlink(missing_ok=True)
            case _:
                path.write_text(chance.choice(garbage), errors="surrogateescape")

    for id in known:
        amd.sample(id)
    found = amd.detect()
    for device in found.devices:
        amd.sample(device.id)

    assert found.vendor == "amd"
