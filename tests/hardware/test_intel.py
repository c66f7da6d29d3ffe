"""Intel's cards: sysfs trees, and a C library that answers in the place of the kernel driver, in processes of their own
because the library goes before libc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.hardware.intel import Intel
from tests.hardware.trees import as_nobody, plant, write

GIB = 1024**3
ROOT = Path(__file__).parents[2]
A770 = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:03:00.0"
CARD = "intel-0000:03:00.0"
#: Detect, sample the first device, run what the test gives, sample it again; print both.
LOOK = """
import dataclasses, json, sys
from pathlib import Path
from agent.hardware.intel import Intel
root = Path(sys.argv[1])
intel = Intel(root)
found = intel.detect()
first = intel.sample(found.devices[0].id) if found.devices else None
exec(sys.argv[2])
second = intel.sample(found.devices[0].id) if found.devices else None
print(json.dumps([dataclasses.asdict(one) if one else None for one in (found, first, second)]))
"""


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("drm") / "drm_double.so"
    source = Path(__file__).with_name("drm_double.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source, "-ldl"], check=True)
    return library


def look(
    driver: Path, root: Path, between: str = "", **card: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What detection and two samples found, with an Intel card of that memory behind every render node."""
    environ = {**os.environ, "LD_PRELOAD": str(driver), **{f"CARD_{key.upper()}": str(card[key]) for key in card}}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, root, between],
        env=environ,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        timeout=30,
    )
    found, first, second = json.loads(done.stdout)
    return found, first or {}, second or {}


def test_a_host_without_a_card_has_nothing_to_say(tmp_path: Path) -> None:
    assert not Intel(tmp_path).present()
    assert Intel(tmp_path).detect().problems == ()


def test_graphics_inside_of_the_processor_is_no_device(tmp_path: Path) -> None:
    plant("arc-a770", tmp_path)
    (tmp_path / "sys/bus/pci/devices/0000:03:00.0").unlink()

    assert not Intel(tmp_path).present()
    assert Intel(tmp_path).detect().devices == ()


def test_a_card_under_i915_is_asked_for_its_memory(driver: Path, tmp_path: Path) -> None:
    found, sample, _ = look(driver, plant("arc-a770", tmp_path), bytes=16 * GIB, used=9 * GIB)

    (device,) = found["devices"]
    assert (device["id"], device["name"], device["index"]) == (CARD, "DG2 [Arc A770]", 0)
    assert (device["memory_bytes"], device["memory_kind"]) == (16 * GIB, "dedicated")
    assert device["files"] == ["/dev/dri/renderD129"]
    assert device["power_limit_watts"] == 190
    assert found["driver"] == {"vendor": "intel", "version": "i915 6.12.48", "api": ""}
    assert found["problems"] == []
    assert (sample["memory_used"], sample["memory_total"]) == (9 * GIB, 16 * GIB)
    assert sample["temperature_celsius"] == 61
    assert (sample["clock_mhz"], sample["max_clock_mhz"]) == (2400, 2400)
    assert sample["throttling"] == ["sw-power-cap"]
    assert sample["problem"] is None


def test_the_link_of_a_card_is_that_of_its_switch_and_not_of_the_hosts_port(driver: Path, tmp_path: Path) -> None:
    """Both are Intel's here; the GPU's own link, inside of the card, always says 2.5 GT/s and one lane."""
    found, *_ = look(driver, plant("arc-a770", tmp_path), bytes=16 * GIB)

    assert found["devices"][0]["pci"] == {
        "address": "0000:03:00.0",
        "generation": 4,
        "max_generation": 4,
        "width": 8,
        "max_width": 16,
    }


def test_two_cards_under_xe_behind_one_switch_are_near(driver: Path, tmp_path: Path) -> None:
    found, sample, _ = look(driver, plant("arc-b580", tmp_path), bytes=12 * GIB, used=10 * GIB)

    assert [device["memory_bytes"] for device in found["devices"]] == [12 * GIB] * 2
    assert [device["numa_node"] for device in found["devices"]] == [0, 0]
    assert [(link["a"], link["b"], link["kind"]) for link in found["links"]] == [
        ("intel-0000:05:00.0", "intel-0000:08:00.0", "pix")
    ]
    assert sample["memory_used"] == 10 * GIB
    assert (sample["temperature_celsius"], sample["power_limit_watts"]) == (52, 190)
    assert (sample["clock_mhz"], sample["max_clock_mhz"]) == (2850, 2850)
    assert sample["throttling"] == []
    assert [(process["pid"], process["memory_bytes"]) for process in sample["processes"]] == [(880, 9 * GIB)]


@pytest.mark.parametrize(("tree", "held"), [("arc-a770", 7 * GIB), ("arc-b580", 9 * GIB)])
def test_who_may_not_look_at_performance_sees_what_processes_hold(
    driver: Path, tmp_path: Path, tree: str, held: int
) -> None:
    """Both drivers answer "nothing is used" then, which is not believed."""
    found, sample, _ = look(driver, plant(tree, tmp_path), bytes=16 * GIB)

    assert found["devices"][0]["memory_bytes"] == 16 * GIB
    assert sample["memory_used"] == held


def test_a_size_in_sysfs_needs_no_question(tmp_path: Path) -> None:
    """Out-of-tree i915. No library answers here: the render node is a plain file."""
    plant("arc-a770", tmp_path)
    write(tmp_path, f"{A770}/drm/card1/lmem_total_bytes", str(16 * GIB))

    (device,) = Intel(tmp_path).detect().devices

    assert device.memory_bytes == 16 * GIB


def test_the_tiles_of_a_card_are_added_up(tmp_path: Path) -> None:
    plant("arc-b580", tmp_path)
    for folder in (tmp_path / "sys/devices").rglob("tile0"):
        for tile in range(2):
            write(folder.parent, f"tile{tile}/physical_vram_size_bytes", str(64 * GIB))

    assert [device.memory_bytes for device in Intel(tmp_path).detect().devices] == [128 * GIB] * 2


def test_a_card_that_has_no_memory_of_its_own_is_no_device(driver: Path, tmp_path: Path) -> None:
    found, *_ = look(driver, plant("arc-b580", tmp_path), bytes=0)

    assert (found["devices"], found["problems"]) == ([], [])


def test_power_is_the_energy_between_two_samples(driver: Path, tmp_path: Path) -> None:
    """The counter goes up by a thousand joules; how long the samples are apart, they say themselves."""
    plant("arc-a770", tmp_path)
    between = f"(root / {f'{A770}/hwmon/hwmon4/energy1_input'!r}).write_text('11000000000')"

    _, first, second = look(driver, tmp_path, between, bytes=16 * GIB)

    assert first["power_watts"] is None
    assert second["power_watts"] == pytest.approx(1000 / (second["at"] - first["at"]))


def test_an_energy_counter_that_begins_anew_gives_no_power(driver: Path, tmp_path: Path) -> None:
    plant("arc-a770", tmp_path)
    between = f"(root / {f'{A770}/hwmon/hwmon4/energy1_input'!r}).write_text('5')"

    assert look(driver, tmp_path, between, bytes=16 * GIB)[2]["power_watts"] is None


def test_a_card_that_refuses_every_question_does_not_answer(driver: Path, tmp_path: Path) -> None:
    plant("arc-a770", tmp_path)
    between = "import os; os.environ['CARD_ERROR'] = '125'"  # ECANCELED, as of a wedged card

    _, first, second = look(driver, tmp_path, between, bytes=16 * GIB)

    assert first["problem"] is None
    assert second["problem"]["code"] == "NoAnswer"
    assert "Operation canceled" in second["problem"]["message"]
    assert second["memory_used"] is None


@pytest.mark.parametrize(("error", "code"), [(13, "NoPermission"), (5, "NoAnswer")])
def test_a_card_whose_memory_is_not_told_is_a_problem_and_no_device(
    driver: Path, tmp_path: Path, error: int, code: str
) -> None:
    found, *_ = look(driver, plant("arc-a770", tmp_path), bytes=16 * GIB, error=error)

    assert found["devices"] == []
    assert [problem["code"] for problem in found["problems"]] == [code]
    assert "0000:03:00.0" in found["problems"][0]["message"]


def test_a_missing_render_node_is_said(tmp_path: Path) -> None:
    plant("arc-a770", tmp_path)
    shutil.rmtree(tmp_path / "dev")

    (problem,) = Intel(tmp_path).detect().problems

    assert problem.code == "NoDeviceFile"


def test_a_card_without_a_driver_is_said_and_one_that_was_given_away_is_not(tmp_path: Path) -> None:
    plant("arc-b580", tmp_path)
    first, second = ((tmp_path / "sys/bus/pci/devices" / name).resolve() for name in ("0000:05:00.0", "0000:08:00.0"))
    (first / "driver").unlink()
    write(second, "driver", "-> ../../bus/pci/drivers/vfio-pci")

    (problem,) = Intel(tmp_path).detect().problems

    assert (problem.code, problem.vendor) == ("DriverNotLoaded", "intel")
    assert "0000:05:00.0" in problem.message


def test_a_card_that_left_the_bus_is_lost(driver: Path, tmp_path: Path) -> None:
    between = "import shutil; shutil.rmtree(root / 'sys/devices')"

    _, _, second = look(driver, plant("arc-a770", tmp_path), between, bytes=16 * GIB)

    assert second["problem"]["code"] == "DeviceLost"


def test_a_card_that_sleeps_is_not_asked(driver: Path, tmp_path: Path) -> None:
    plant("arc-a770", tmp_path)
    write(tmp_path, f"{A770}/drm/card1/lmem_total_bytes", str(16 * GIB))
    write(tmp_path, f"{A770}/power/runtime_status", "suspended")

    _, sample, _ = look(driver, tmp_path, bytes=16 * GIB, used=15 * GIB, error=5)

    assert sample["problem"] is None
    assert sample["memory_used"] == 7 * GIB  # what processes hold
    assert sample["temperature_celsius"] is None


def test_what_processes_hold_is_not_known_where_some_are_hidden(public_path: Path) -> None:
    """The card sleeps, so that nobody but /proc is asked."""
    plant("arc-a770", public_path)
    write(public_path, f"{A770}/drm/card1/lmem_total_bytes", str(16 * GIB))
    write(public_path, f"{A770}/power/runtime_status", "suspended")
    shutil.rmtree(public_path / "proc/2100/fd")
    (public_path / "proc/2100/fd").mkdir(mode=0)
    intel = Intel(public_path)
    intel.detect()

    with as_nobody():
        sample = intel.sample(CARD)

    assert (sample.memory_used, sample.processes, sample.problem) == (None, None, None)


@pytest.mark.parametrize("content", ["", "\udcff\udcfe", "-1", "9" * 5000, "word another\nword"])
def test_broken_files_are_never_an_error(tmp_path: Path, content: str) -> None:
    plant("arc-b580", tmp_path)
    for folder in (tmp_path / "sys/devices").rglob("tile0"):
        write(folder, "physical_vram_size_bytes", str(12 * GIB))
    intel = Intel(tmp_path)
    known = [device.id for device in intel.detect().devices]
    for path in [path for top in ("sys", "proc") for path in (tmp_path / top).rglob("*")]:
        if path.is_file() and not path.is_symlink() and path.name != "class":
            path.write_text(content, errors="surrogateescape")

    for id in known:
        intel.sample(id)

    assert intel.detect().vendor == "intel"


def test_waiting_for_faults_ends_when_the_driver_is_let_go(tmp_path: Path) -> None:
    intel = Intel(tmp_path)

    assert intel.faults(0) == ()
    intel.close()
    assert intel.faults(3600) == ()
