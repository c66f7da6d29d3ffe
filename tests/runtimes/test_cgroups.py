import os
import signal
import subprocess
from pathlib import Path

import pytest

from agent.runtimes import cgroups
from agent.runtimes.base import Resources
from agent.runtimes.cgroups import Cgroups, Location, Mount

LIMITS = Resources(memory_bytes=96 << 20, cpus=0.5, pids=9)


def content(*path: object) -> str:
    return Path(*map(str, path)).read_text().strip()


def test_limits_are_in_force_and_said(limiting: Cgroups) -> None:
    group = limiting.create("limits", LIMITS)
    version = limiting.locations["memory"].version
    sentences = ["memory limit 96 MiB", "CPU limit 0.5 cores", "process limit 9"]
    assert [s.partition(", swap")[0] for s in group.enforcement] == [
        f"{s} enforced by cgroup v{version}" for s in sentences
    ]
    directories = {name: location.parent / "limits" for name, location in limiting.locations.items()}
    files = {1: ("memory.limit_in_bytes", "cpu.cfs_quota_us"), 2: ("memory.max", "cpu.max")}[version]
    assert content(directories["memory"], files[0]) == str(96 << 20)
    assert content(directories["cpu"], files[1]).split()[0] == "50000"
    assert content(directories["pids"], "pids.max") == "10"  # the shim is one
    cgroups.remove(group.paths)
    assert not any(path.exists() for path in directories.values())


def test_an_instance_without_limits_is_tracked_in_one_group(limiting: Cgroups) -> None:
    group = limiting.create("free", Resources())
    assert len(group.paths) == 1
    assert group.enforcement == ()
    assert cgroups.members(group.paths) == ()
    cgroups.remove(group.paths)
    assert cgroups.members(group.paths) is None


@pytest.mark.parametrize("which", ["limiting", "unified"])
def test_who_joined_is_listed_until_gone_and_keeps_the_group_from_removal(
    which: str, request: pytest.FixtureRequest
) -> None:
    group = request.getfixturevalue(which).create("joined", Resources())
    join = f'echo 0 >"{group.entrances[0]}"; echo joined; exec sleep 1000'
    with subprocess.Popen(["/bin/sh", "-c", join], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert cgroups.members(group.paths) == (process.pid,)
        cgroups.remove(group.paths)
        assert Path(group.paths[0]).exists()
        process.kill()
    assert cgroups.members(group.paths) == ()
    cgroups.remove(group.paths)
    assert not Path(group.paths[0]).exists()


def test_cgroup_v2_kills_all_members_at_once(unified: Cgroups) -> None:
    group = unified.create("killed", Resources())
    join = f'echo 0 >"{group.entrances[0]}"; setsid sleep 1000 & echo joined; wait'
    with subprocess.Popen(["/bin/sh", "-c", join], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(cgroups.members(group.paths) or ()) == 2
        cgroups.kill(group.paths)
        assert process.wait() == -signal.SIGKILL
    cgroups.remove(group.paths)
    assert not Path(group.paths[0]).exists()


def test_empty_groups_of_a_crash_are_swept_unless_alive_young_or_used(
    limiting: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, left = limiting.create("alive", Resources()), limiting.create("left", LIMITS)
    assert limiting.sweep_empty({"alive"}) == ()
    monkeypatch.setattr(cgroups, "SWEEP_MIN_AGE_SECONDS", 0.0)
    with subprocess.Popen(
        ["/bin/sh", "-c", f'echo 0 >"{left.entrances[0]}"; echo; read x'], stdin=-1, stdout=-1
    ) as user:
        assert user.stdout is not None
        user.stdout.readline()
        assert left.paths[0] not in limiting.sweep_empty({"alive"})
    assert left.paths[0] in limiting.sweep_empty({"alive"})
    assert [Path(path).exists() for path in (*kept.paths, *left.paths)] == [True, False, False, False]
    cgroups.remove(kept.paths)


def test_switched_off_means_no_group_and_says_so() -> None:
    off = Cgroups.detect("off", "unused")
    group = off.create("instance", Resources(pids=3))
    assert group.paths == group.entrances == ()
    assert group.enforcement == ("process limit 3 not enforced: cgroups are switched off by configuration",)


def test_a_group_that_cannot_be_limited_does_not_count_as_limited(tmp_path: Path) -> None:
    plain = Location(2, tmp_path)  # a directory, in which the kernel puts no files
    group = Cgroups({"memory": plain}).create("instance", Resources(memory_bytes=2**20))
    assert group.paths == ()
    assert group.enforcement[0].startswith("memory limit 1 MiB not enforced: ")
    assert "memory.max" in group.enforcement[0]


def test_limits_are_written_in_the_words_of_cgroup_v2(tmp_path: Path) -> None:
    (tmp_path / "instance").mkdir()
    for name in ("memory.max", "cpu.max", "pids.max"):
        (tmp_path / "instance" / name).touch()
    place = Location(2, tmp_path)
    group = Cgroups(dict.fromkeys(cgroups.CONTROLLERS, place), {}, place).create("instance", LIMITS)
    assert group.paths == (str(tmp_path / "instance"),)
    assert group.entrances == (f"{tmp_path}/instance/cgroup.procs",)
    assert [content(tmp_path, "instance", name) for name in ("memory.max", "cpu.max", "pids.max")] == [
        str(96 << 20),
        "50000 100000",
        "10",
    ]
    assert "swap not limited" in group.enforcement[0]


@pytest.mark.parametrize(
    ("text", "killed"),
    [("low 0\nmax 7\noom 2\noom_kill 0\n", False), ("oom 2\noom_kill 1\noom_group_kill 0\n", True), ("", False)],
)
def test_an_oom_kill_is_read_from_the_events_of_cgroup_v2(tmp_path: Path, text: str, killed: bool) -> None:
    (tmp_path / "memory.events").write_text(text)
    assert cgroups.oom_killed((str(tmp_path),)) is killed


class Tree:
    """Directories laid out as a cgroup v2 file system would be; only its kernel is missing."""

    def __init__(self, top: Path, own: str, *, processes: tuple[int, ...], real_root: bool = False) -> None:
        self.top, self.own = top, top / own
        self.own.mkdir(parents=True, exist_ok=True)
        if not real_root:
            (top / "cgroup.type").write_text("domain\n")
        (top / "cgroup.subtree_control").touch()
        (self.own / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in processes))

    def delegate(self, group: Path) -> None:
        try:
            os.setxattr(group, "user.delegate", b"1")
        except OSError:
            pytest.skip("the temporary directory's file system has no user attributes")

    def place(self) -> Path:
        for group in (self.own / "agent",):
            group.mkdir(exist_ok=True)
            (group / "cgroup.procs").touch()
        return cgroups._place_v2(Mount(self.top, self.own), "name")


def test_a_leaf_of_a_delegated_unit_puts_engines_beside_it(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "system.slice/agentd.service/agent", processes=(os.getpid(),))
    tree.delegate(tree.own.parent)
    assert tree.place() == tree.own.parent / "engines"


@pytest.mark.skipif(os.geteuid() != 0, reason="others may not write to the root")
def test_root_makes_groups_at_the_root_of_the_hierarchy(tmp_path: Path) -> None:
    assert Tree(tmp_path, "system.slice/agentd.service", processes=(1,), real_root=True).place() == tmp_path / "name"


def test_alone_in_a_container_the_agent_moves_into_a_leaf(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "", processes=(os.getpid(),))
    assert tree.place() == tmp_path / "engines"
    assert content(tmp_path, "agent", "cgroup.procs") == "0"


def test_a_group_shared_with_others_is_left_as_it_is(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "", processes=(os.getpid(), 1))
    with pytest.raises(cgroups._Unusable, match="shared with other processes"):
        tree.place()
    assert content(tmp_path, "agent", "cgroup.procs") == ""


def test_what_nobody_delegated_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(cgroups._Unusable, match="is not delegated"):
        Tree(tmp_path, "user.slice/session-1.scope", processes=(os.getpid(),)).place()


def test_a_service_that_systemd_could_not_start_again_is_refused(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "app.slice/agentd.service", processes=(os.getpid(),))
    tree.delegate(tree.own)
    with pytest.raises(cgroups._Unusable, match="DelegateSubgroup="):
        tree.place()


def proc(root: Path, groups: str, mounts: str) -> Path:
    (root / "cgroup").write_text(groups)
    (root / "mountinfo").write_text(mounts)
    return root


def test_a_hierarchy_that_only_others_may_write_gives_its_reason(tmp_path: Path) -> None:
    mounts = "30 20 0:26 / /proc rw,relatime shared:9 - cgroup cgroup rw,pids\n"  # in /proc nobody can make anything
    found = Cgroups.detect("auto", "name", proc(tmp_path, "3:pids:/user\n", mounts))
    assert found.locations == {}
    assert found.tracking is None
    assert found.problems["pids"].startswith("no writable cgroup (")
    assert found.problems["memory"] == "the kernel offers no such cgroup controller"


def test_controllers_are_found_where_a_container_sees_only_a_part(tmp_path: Path) -> None:
    point = tmp_path / "cpu,cpuacct"
    point.mkdir()
    mounts = f"30 20 0:26 /docker/ab {point} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    found = Cgroups.detect("auto", "name", proc(tmp_path, "3:cpu,cpuacct:/docker/ab\n1:name=systemd:/\n", mounts))
    assert found.locations == {"cpu": Location(1, point / "name")}
    assert found.tracking == Location(1, point / "name")


def test_nothing_is_found_where_there_is_no_cgroup_at_all(tmp_path: Path) -> None:
    found = Cgroups.detect("auto", "name", proc(tmp_path, "", "22 1 0:21 / /proc rw - proc proc rw\n"))
    assert set(found.problems) == set(cgroups.CONTROLLERS)
