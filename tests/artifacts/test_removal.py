"""What the cache holds and how it goes: real files, and processes that die in the middle."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.artifacts import cache, holdings, removal
from agent.artifacts.cache import Folder
from agent.artifacts.holdings import Holding
from agent.artifacts.locks import Lock
from tests.cache_factory import keep

ROOT = Path(__file__).parents[2]
C1, C2 = "1" * 40, "2" * 40
LOOKS = 3000  # two seconds; `Path.glob` raised within a tenth of it


def by_source(root: Path) -> dict[str, Holding]:
    return {
        holding.kept.source if holding.kept else "foreign" if holding.foreign else "rest": holding
        for holding in holdings.scan(root)
    }


def files(root: Path) -> set[str]:
    """Everything but locks."""
    found = (path for path in root.glob("**/*") if ".locks" not in path.parts)
    return {str(path.relative_to(root)) for path in found if not path.is_dir() or path.is_symlink()}


def test_a_variant_goes_with_all_that_is_its_alone(tmp_path: Path) -> None:
    keep(tmp_path, "a/b", C1, "", {"config.json": b"{}", "sub/model.safetensors": b"w" * 5000})
    holding = by_source(tmp_path)["hf:a/b"]
    assert (holding.whole, holding.bytes, len(holding.contents)) == (True, 5002, 2)
    assert removal.remove(tmp_path, holding) == 5002
    assert files(tmp_path) == set()
    assert holdings.scan(tmp_path) == ()


def test_what_another_variant_needs_stays(tmp_path: Path) -> None:
    keep(tmp_path, "a/b", C1, "Q4", {"q4.gguf": b"4" * 100})
    keep(tmp_path, "a/b", C1, "Q8", {"q8.gguf": b"8" * 300})
    keep(tmp_path, "a/b", C2, "Q8", {"q8.gguf": b"8" * 300})
    old = next(one for one in holdings.scan(tmp_path) if one.kept and (one.kept.commit, one.kept.variant) == (C1, "Q8"))
    assert removal.remove(tmp_path, old) == 0
    left = by_source(tmp_path)
    assert {(one.kept.commit, one.kept.variant) for one in left.values() if one.kept} == {(C1, "Q4"), (C2, "Q8")}
    assert all(one.whole for one in left.values())
    assert not (cache.repository(tmp_path, "a/b").snapshot(C1) / "q8.gguf").is_symlink()
    assert removal.remove(tmp_path, left["hf:a/b:Q8"]) == 300
    assert (cache.repository(tmp_path, "a/b").snapshot(C1) / "q4.gguf").read_bytes() == b"4" * 100


def test_what_goes_while_one_looks_is_not_seen_and_nothing_else_is_missed(tmp_path: Path) -> None:
    keep(tmp_path, "a/stays", C1, "", {"model.gguf": b"1" * 100})
    other = (
        "import itertools, sys, pathlib\n"
        "from agent.artifacts import holdings, removal\n"
        "from tests.cache_factory import keep\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "for count in itertools.count():\n"
        "    kept = keep(root, f'a/{count}', '1' * 40, '', {'model.gguf': b'2' * 10})\n"
        "    mine = (one for one in holdings.scan(root) if one.kept and one.kept.path == kept.path)\n"
        "    removal.remove(root, next(mine))\n"
    )
    with subprocess.Popen([sys.executable, "-c", other, str(tmp_path)], cwd=ROOT) as coming_and_going:
        try:
            seen = [frozenset(by_source(tmp_path)) for _ in range(LOOKS)]
            assert coming_and_going.poll() is None
        finally:
            coming_and_going.kill()
    assert all("hf:a/stays" in each for each in seen)
    assert len(set(seen)) > 1


def test_what_others_remove_meanwhile_is_no_error(tmp_path: Path) -> None:
    """A snapshot goes file by file by the hand of somebody else, and directories come and go beside it."""
    folder, done = cache.repository(tmp_path, "a/b"), threading.Event()

    def others() -> None:
        while not done.is_set():
            shutil.rmtree(folder.snapshot(C1), ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # what is empty is tidied away
                (folder.snapshot(C2) / "sub").mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder.snapshot(C2), ignore_errors=True)

    for _ in range(20):
        keep(tmp_path, "a/b", C1, "", {f"{number}.safetensors": b"w" for number in range(50)})
        (holding,) = (one for one in holdings.scan(tmp_path) if one.kept)
        done.clear()
        thread = threading.Thread(target=others)
        thread.start()
        try:
            removal.remove(tmp_path, holding)
        finally:
            done.set()
            thread.join()
        assert not folder.snapshot(C1).exists()
        assert "hf:a/b" not in by_source(tmp_path)


def test_a_name_of_a_commit_that_is_no_text_stays(tmp_path: Path) -> None:
    keep(tmp_path, "a/b", C1, "Q4", {"q4.gguf": b"4" * 100})
    odd = cache.repository(tmp_path, "a/b").path / "refs" / "odd"
    odd.write_bytes(b"\xff")
    assert removal.remove(tmp_path, by_source(tmp_path)["hf:a/b:Q4"]) == 100
    assert files(tmp_path) == {str(odd.relative_to(tmp_path))}


def test_a_file_that_changed_or_went_is_seen(tmp_path: Path) -> None:
    kept = keep(tmp_path, "a/b", C1, "Q4", {"q4.gguf": b"4" * 100})
    assert by_source(tmp_path)["hf:a/b:Q4"].whole
    blob = kept.path.resolve()
    blob.write_bytes(b"5" * 100)
    os.utime(blob, ns=(1, 1))
    assert not by_source(tmp_path)["hf:a/b:Q4"].whole
    blob.unlink()
    gone = by_source(tmp_path)["hf:a/b:Q4"]
    assert (gone.whole, gone.bytes) == (False, 0)
    assert removal.remove(tmp_path, gone) == 0
    assert files(tmp_path) == set()


def test_parts_of_a_pull_and_what_other_tools_put_there_are_told_apart(tmp_path: Path) -> None:
    folder = cache.repository(tmp_path, "a/b")
    keep(tmp_path, "a/b", C1, "Q4", {"q4.gguf": b"4" * 100})
    part = folder.blobs / ("d" * 64 + ".incomplete")
    with part.open("wb") as file:
        file.write(b"x" * 8192)
        file.truncate(1 << 20)
    part.with_name(part.name + ".parts").write_bytes(b"{}")
    other = folder.blobs / ("e" * 64)  # as the hub's own tools leave it
    other.write_bytes(b"e" * 50)
    folder.snapshot(C2).mkdir()
    (folder.snapshot(C2) / "other.json").symlink_to(f"../../blobs/{other.name}")
    foreign, rest = by_source(tmp_path)["foreign"], by_source(tmp_path)["rest"]
    assert (foreign.kept, foreign.bytes, len(foreign.links)) == (None, 50, 1)
    assert (rest.kept, rest.expected, rest.links) == (None, 1 << 20, ())
    assert 8192 <= rest.bytes < 65536
    assert removal.remove(tmp_path, rest) == rest.bytes
    assert other.exists()
    assert removal.remove(tmp_path, foreign) == 50
    assert [one.kept.source for one in holdings.scan(tmp_path) if one.kept] == ["hf:a/b:Q4"]
    assert not folder.snapshot(C2).exists()
    assert not [path for path in folder.blobs.iterdir() if "d" * 64 in path.name]


def test_a_file_that_somebody_fetches_stays(tmp_path: Path) -> None:
    folder = cache.repository(tmp_path, "a/b")
    folder.blobs.mkdir(parents=True)
    part = folder.blobs / ("d" * 64 + ".incomplete")
    part.write_bytes(b"x" * 100)
    part.with_name(part.name + ".parts").write_bytes(b"{}")
    lock = Lock(folder.locks / f"{'d' * 64}.lock")
    assert lock.acquire()
    try:
        assert removal.remove(tmp_path, by_source(tmp_path)["rest"]) == 0
        assert part.exists()
    finally:
        lock.release()
    assert removal.remove(tmp_path, by_source(tmp_path)["rest"]) == 100


def test_a_pin_lies_beside_its_record_and_goes_with_an_order(tmp_path: Path) -> None:
    keep(tmp_path, "a/b", C1, "Q4", {"q4.gguf": b"4"})
    for pinned in (True, True, False, False):
        holdings.pin(by_source(tmp_path)["hf:a/b:Q4"], pinned=pinned)
        assert by_source(tmp_path)["hf:a/b:Q4"].pinned is pinned


def test_what_was_seen_is_looked_at_again(tmp_path: Path) -> None:
    keep(tmp_path, "a/b", C1, "Q4", {"q4.gguf": b"4"})
    seen = by_source(tmp_path)["hf:a/b:Q4"]
    assert holdings.current(seen) == seen
    holdings.pin(seen, pinned=True)
    now = holdings.current(seen)
    assert now is not None
    assert (seen.pinned, now.pinned) == (False, True)
    removal.remove(tmp_path, seen)
    assert holdings.current(seen) is None


def test_nothing_outside_of_the_cache_is_ever_removed(tmp_path: Path) -> None:
    root, outside = tmp_path / "cache", tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_bytes(b"mine")
    kept = keep(root, "a/b", C1, "Q4", {"q4.gguf": b"4"})
    folder = cache.repository(root, "a/b")
    (folder.snapshot(C1) / "absolute").symlink_to(outside / "file")
    (folder.snapshot(C1) / "folder").symlink_to(outside)
    record = folder.record(C1, "Q4")
    record.write_text(record.read_text().replace(kept.files[0].blob, "../../../../precious/file"))
    for holding in holdings.scan(root):
        removal.remove(root, holding)
    assert (outside / "file").read_bytes() == b"mine"
    assert not folder.snapshot(C1).exists()


@pytest.mark.parametrize("point", ["removing", "removing-contents"])
def test_a_death_in_the_middle_leaves_nothing_that_is_believed_and_is_finished_later(
    tmp_path: Path, point: str
) -> None:
    keep(tmp_path, "a/b", C1, "", {"config.json": b"{}", "model.safetensors": b"w" * 5000})
    keep(tmp_path, "a/b", C2, "Q4", {"q4.gguf": b"4" * 100})
    script = (
        "import pathlib, sys\nfrom agent.artifacts import holdings, removal\nroot = pathlib.Path(sys.argv[1])\n"
        "removal.remove(root, next(one for one in holdings.scan(root) if one.kept.source == 'hf:a/b'))"
    )
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "AGENTD_FAILPOINTS": f"{point}=kill"}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environ, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    assert "hf:a/b" not in by_source(tmp_path)
    snapshot = cache.repository(tmp_path, "a/b").snapshot(C1)
    assert not snapshot.exists() or {path.name for path in snapshot.iterdir()} == {"config.json", "model.safetensors"}
    assert all(path.exists() for path in tmp_path.glob("hub/*/snapshots/*/*"))  # no link leads nowhere
    removal.finish(tmp_path, removal.begun(tmp_path))
    assert not removal.begun(tmp_path)
    assert list(by_source(tmp_path)) == ["hf:a/b:Q4"]
    assert by_source(tmp_path)["hf:a/b:Q4"].whole
    assert not [path for path in (tmp_path / "removing").glob("**/*") if path.is_file()]


def test_one_that_cannot_be_finished_holds_up_no_other(tmp_path: Path) -> None:
    for repo in ("a/b", "a/c"):
        kept = keep(tmp_path, repo, C1, "Q4", {"q4.gguf": repo.encode() * 50})
        record = holdings.folder_of(tmp_path, kept).record(C1, "Q4")
        moved = tmp_path / "removing" / record.relative_to(tmp_path)
        moved.parent.mkdir(parents=True)
        record.rename(moved)
    stuck, other = (cache.repository(tmp_path, repo) for repo in ("a/b", "a/c"))
    stuck.locks.parent.mkdir(parents=True)
    stuck.locks.write_text("no directory")
    with pytest.raises(FileExistsError):
        removal.finish(tmp_path, [stuck.path, other.path])
    assert removal.begun(tmp_path) == {stuck.path}
    assert not other.path.exists()


def test_fetching_again_after_a_death_is_not_undone(tmp_path: Path) -> None:
    """What was begun is finished by what is needed now, not by what was needed then."""
    kept = keep(tmp_path, "a/b", C1, "Q4", {"q4.gguf": b"4" * 100})
    folder: Folder = holdings.folder_of(tmp_path, kept)
    record = folder.record(C1, "Q4")
    moved = tmp_path / "removing" / record.relative_to(tmp_path)
    moved.parent.mkdir(parents=True)
    record.rename(moved)
    keep(tmp_path, "a/b", C1, "Q4", {"q4.gguf": b"4" * 100})
    assert removal.finish(tmp_path, ()) == 0
    assert removal.begun(tmp_path) == {folder.path}  # nothing of it was asked for
    assert removal.finish(tmp_path, [folder.path]) == 0
    assert by_source(tmp_path)["hf:a/b:Q4"].whole
