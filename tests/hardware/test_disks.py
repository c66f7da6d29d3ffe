"""The file systems of directories: of this machine, and as mountinfo tells them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.hardware.disks import disks
from tests.hardware.trees import as_nobody, write


def mountinfo(root: Path, *mounts: tuple[str, str]) -> Path:
    """Lines as in proc_pid_mountinfo(5), with an optional field on every second one."""
    optional = ("", "shared:1 ")
    rows = [
        f"{30 + number} 1 8:{number} / {point} rw,relatime {optional[number % 2]}- {kind} /dev/sda{number} rw"
        for number, (point, kind) in enumerate(mounts)
    ]
    write(root, "proc/self/mountinfo", "\n".join(rows))
    return root


def test_each_purpose_has_its_file_system_with_what_this_user_may_fill(tmp_path: Path) -> None:
    size = os.statvfs(tmp_path)

    state, cache = disks({"state": tmp_path, "cache": Path("/dev/shm")})

    assert (state.purpose, state.path) == ("state", str(tmp_path))
    assert state.total == size.f_blocks * size.f_frsize
    assert state.free == pytest.approx(size.f_bavail * size.f_frsize, rel=0.05)
    assert state.filesystem
    assert (cache.purpose, cache.filesystem) == ("cache", "tmpfs")


def test_a_directory_that_is_not_there_yet_is_on_its_nearest_parents_disk(tmp_path: Path) -> None:
    (found,) = disks({"models": tmp_path / "not/yet/there"})
    (parent,) = disks({"models": tmp_path})

    assert found.path == str(tmp_path / "not/yet/there")
    assert (found.filesystem, found.total) == (parent.filesystem, parent.total)


def test_a_file_in_the_way_counts_as_its_own_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    assert len(disks({"models": tmp_path / "file/below"})) == 1


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ([("/", "ext4"), ("{tmp}", "xfs"), ("{tmp}/deep", "zfs")], "xfs"),
        ([("{tmp}", "xfs"), ("/", "ext4")], "xfs"),  # the order is that of mounting
        ([("/", "rootfs"), ("/", "ext4")], "ext4"),  # the later one hides the first
        ([("{tmp}", "xfs"), ("{tmp}", "nfs4")], "nfs4"),
        ([("{tmp}er", "xfs"), ("/", "ext4")], "ext4"),  # begins alike, but is another folder
        ([], ""),
    ],
)
def test_the_deepest_mount_above_a_directory_holds_it(tmp_path: Path, mounts: list[tuple[str, str]], kind: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    root = mountinfo(tmp_path, *((point.format(tmp=place), name) for point, name in mounts))

    assert disks({"state": place}, root)[0].filesystem == kind


def test_a_mount_point_with_a_space_is_read(tmp_path: Path) -> None:
    place = tmp_path / "a disk"
    place.mkdir()
    root = mountinfo(tmp_path, ("/", "ext4"), (str(place).replace(" ", r"\040"), "btrfs"))

    assert disks({"state": place}, root)[0].filesystem == "btrfs"


def test_a_link_is_on_the_disk_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    root = mountinfo(tmp_path, ("/", "ext4"), (str(tmp_path / "real"), "xfs"))

    assert disks({"state": tmp_path / "link"}, root)[0].filesystem == "xfs"


def test_a_directory_that_may_not_be_looked_at_is_left_out(public_path: Path) -> None:
    (public_path / "closed/state").mkdir(parents=True)
    (public_path / "closed").chmod(0)

    with as_nobody():
        found = disks({"state": public_path / "closed/state", "cache": public_path})

    assert [disk.purpose for disk in found] == ["cache"]


def test_a_loop_of_links_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")

    assert disks({"state": tmp_path / "loop/x"}) == ()


@pytest.mark.parametrize("content", ["", "- \n-", "1 2 3 4", "1 2 3 4 / - "])
def test_a_table_of_mounts_that_cannot_be_understood_tells_nothing(tmp_path: Path, content: str) -> None:
    write(tmp_path, "proc/self/mountinfo", content)

    assert disks({"state": tmp_path}, tmp_path)[0].filesystem == ""
