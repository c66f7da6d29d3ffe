"""Fetching from a hub that speaks the real protocol, by its real client: whole, verified, or a clear diagnosis."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import hf_hub_download, snapshot_download

from agent.artifacts import cache, fetcher, intake, partial
from agent.artifacts.cache import Kept
from agent.artifacts.fetcher import Fetcher
from agent.artifacts.locks import Lock
from agent.status import DiagnosisCode as Code
from tests.hub.repos import File
from tests.hub.server import Fault, gated, redirect, too_many

MIB = 1024**2
BIG = random.Random(1).randbytes(6 * MIB + 123)
SAFETENSORS = {
    "config.json": b"{}", "tokenizer.json": b'{"t": 1}', "model.safetensors": BIG, "README.md": b"read me",
    "modeling.py": b"import os", "original/consolidated.00.pth": b"pickle", ".gitattributes": b"", "empty.json": b"",
}  # fmt: skip
LEVELS = {"m-Q4_K_M.gguf": BIG, "m-Q8_0.gguf": b"GGUF8", "mmproj-F16.gguf": b"GGUF", "README.md": b"x"}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a file of some MiB has several."""
    monkeypatch.setattr(partial, "PART", MIB)
    monkeypatch.setattr(intake, "BUFFER", 64 * 1024)
    monkeypatch.setattr(fetcher, "_FIRST_PAUSE", 0.05)


def contents(kept: Kept) -> dict[str, bytes]:
    root = kept.path if kept.path.is_dir() else kept.path.parent
    return {file.name: (root / file.name).read_bytes() for file in kept.files}


def blobs(pulling) -> list[str]:
    return sorted(path.name for path in pulling.cache.glob("hub/*/blobs/*"))


# What is fetched


def test_a_gguf_level_is_fetched_without_the_others(pulling, hub):
    commit = hub.repo("org/m", LEVELS).refs["main"]

    kept = pulling.fetch("org/m:Q4_K_M")

    assert kept.path == pulling.cache / f"hub/models--org--m/snapshots/{commit}/m-Q4_K_M.gguf"
    assert kept.path.read_bytes() == BIG
    assert kept.digest == "sha256:" + hashlib.sha256(BIG).hexdigest()
    assert [path.name for path in kept.path.parent.iterdir()] == ["m-Q4_K_M.gguf"]
    assert (pulling.cache / "hub/models--org--m/refs/main").read_text() == commit
    assert blobs(pulling) == [hashlib.sha256(BIG).hexdigest()]


def test_a_file_that_the_hub_keeps_by_xet_comes_over_plain_http(pulling, hub):
    hub.repo("org/m", LEVELS)
    link = f'<{hub.endpoint}/api/models/org/m/xet-read-token/main>; rel="xet-auth"'
    hub.fail(Fault("*/resolve/*", headers={"X-Xet-Hash": "5" * 64, "Link": link}))

    assert pulling.fetch("org/m:Q4_K_M").path.read_bytes() == BIG
    assert not hub.asked("*xet*")


def test_a_model_in_safetensors_is_its_weights_and_what_engines_need_beside_them(pulling, hub):
    hub.repo("org/m", SAFETENSORS)

    kept = pulling.fetch("org/m")

    wanted = ("config.json", "tokenizer.json", "model.safetensors", "empty.json")
    assert contents(kept) == {name: SAFETENSORS[name] for name in wanted}
    assert kept.path.is_dir()


def test_all_parts_of_a_split_file_come_and_the_first_is_opened(pulling, hub):
    hub.repo("org/m", {f"q/m-Q8_0-0000{n}-of-00003.gguf": b"GGUF%d" % n for n in (1, 2, 3)})

    kept = pulling.fetch("org/m:Q8_0")

    assert kept.path.name == "m-Q8_0-00001-of-00003.gguf"
    assert [path.read_bytes() for path in sorted(kept.path.parent.iterdir())] == [b"GGUF1", b"GGUF2", b"GGUF3"]


def test_the_shards_are_those_of_the_index(pulling, hub):
    shards = {f"model-{n:05}-of-00300.safetensors": b"%d" % (n % 7) for n in range(1, 301)}
    index = json.dumps({"weight_map": {f"t{n}": name for n, name in enumerate(shards)}}).encode()
    hub.repo("org/m", {"config.json": b"{}", "model.safetensors.index.json": index, "x.safetensors": b"no", **shards})

    kept = pulling.fetch("org/m")

    assert contents(kept) == {"config.json": b"{}", "model.safetensors.index.json": index, **shards}
    assert len(hub.asked("/cdn/*")) == 7  # equal contents come once


def test_an_absurd_index_is_refused(pulling, hub):
    shards = [f"model-{n:05}-of-10000.safetensors" for n in range(10_000)]
    index = json.dumps({"weight_map": {f"t{n}": name for n, name in enumerate(shards)}}).encode()
    hub.repo("org/m", {"config.json": b"{}", "model.safetensors.index.json": index})

    found = pulling.refused("org/m")

    assert found.code in {Code.MODEL_UNSUPPORTED, Code.MODEL_CORRUPT}
    assert "4096 files" in found.message


def test_a_revision_is_pinned_and_a_branch_that_goes_on_changes_nothing(pulling, hub):
    repo = hub.repo("org/m", LEVELS)
    first = repo.refs["main"]
    kept = pulling.fetch("org/m:Q4_K_M")
    repo.commit({"m-Q4_K_M.gguf": b"another"})

    folder = cache.repository(pulling.cache, "org/m")
    assert folder.kept(folder.commit("main"), "Q4_K_M") == folder.kept(first, "Q4_K_M")
    assert pulling.fetch(f"org/m@{first}:Q4_K_M").path == kept.path
    assert contents(pulling.fetch("org/m:Q4_K_M"))["m-Q4_K_M.gguf"] == b"another"


def test_a_level_that_is_not_there_is_missing_with_those_that_are(pulling, hub):
    hub.repo("org/m", LEVELS)

    found = pulling.refused("org/m:Q3_K_M")

    assert found.code == Code.MODEL_MISSING
    assert "m-Q8_0.gguf" in found.hint


def test_pickle_is_refused_until_the_policy_allows_it(pulling, hub):
    hub.repo("org/m", {"config.json": b"{}", "pytorch_model.bin": b"pickle", "training_args.bin": b"more"})

    found = pulling.refused("org/m")

    assert found.code == Code.POLICY_DENIED
    assert "pytorch_model.bin" in found.message
    assert "policy.pickle" in found.hint
    assert contents(pulling.fetch("org/m", pickle=True)) == {"config.json": b"{}", "pytorch_model.bin": b"pickle"}


@pytest.mark.parametrize(
    "name", ["../../x.gguf", "/etc/x.gguf", "a/../../x.gguf", "a\\x.gguf", "a//x.gguf", "\nx.gguf"]
)
def test_a_file_whose_name_leads_elsewhere_is_not_seen(pulling, hub, name):
    hub.repo("org/m", {name: b"GGUF", "good-Q8_0.gguf": b"GGUF good"})

    assert contents(pulling.fetch("org/m")) == {"good-Q8_0.gguf": b"GGUF good"}
    assert not list(pulling.cache.parent.rglob("x.gguf"))


def test_a_link_that_lies_where_a_file_would_be_written_is_not_followed(pulling, hub, tmp_path):
    hub.repo("org/m", LEVELS)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    folder = cache.repository(pulling.cache, "org/m")
    folder.blobs.mkdir(parents=True)
    (folder.blobs / f"{hashlib.sha256(BIG).hexdigest()}.incomplete").symlink_to(victim)

    found = pulling.refused("org/m:Q4_K_M")

    assert "link" in found.message
    assert victim.read_bytes() == b"precious"


# Faults


def resumed(hub) -> list[int]:
    """Where requests for parts began."""
    ranges = [request.headers.get("range", "bytes=0-") for request in hub.asked("/cdn/*")]
    return [int(re.findall(r"\d+", each)[0]) for each in ranges]


@pytest.mark.parametrize("fault", [{"reset_at": 700_001}, {"cut_at": 700_001}, {"stall_at": 700_001}])
def test_a_connection_that_breaks_or_falls_silent_is_taken_up_where_it_was(pulling, hub, fault):
    hub.repo("org/m", LEVELS)
    hub.fail(Fault("/cdn/*", times=1, after=1, **fault))

    kept = pulling.fetch("org/m:Q4_K_M", connections=1, stall_seconds=6.0)

    assert kept.path.read_bytes() == BIG
    (taken_up,) = {*resumed(hub)} - {n * MIB for n in range(7)} or {MIB}
    assert taken_up == MIB + 700_001 or "reset_at" in fault  # a reset throws away what was not read yet


@pytest.mark.parametrize(
    ("path", "status"), [("/api/*", 500), ("/api/*", 503), ("*/resolve/*", 502), ("/cdn/*", 500), ("/cdn/*", 408)]
)
def test_an_outage_that_passes_is_waited_for(pulling, hub, status, path):
    hub.repo("org/m", LEVELS)
    hub.fail(Fault(path, times=2, status=status, body=b""))

    assert pulling.fetch("org/m:Q8_0").path.read_bytes() == b"GGUF8"


def test_too_many_requests_are_obeyed(pulling, hub):
    hub.repo("org/m", LEVELS)
    hub.fail(too_many(2, path="/cdn/*"))

    assert pulling.fetch("org/m:Q8_0", stall_seconds=1.9).path.read_bytes() == b"GGUF8"


@pytest.mark.parametrize("path", ["/api/*", "/cdn/*"])
def test_a_wait_beyond_all_patience_is_told(pulling, hub, path):
    hub.repo("org/m", LEVELS)
    hub.fail(too_many(7200, path=path))

    found = pulling.refused("org/m:Q8_0")

    assert found.code == Code.SOURCE_UNAVAILABLE
    assert "7200 s" in found.message


@pytest.mark.parametrize("path", ["/api/*", "*/resolve/*", "/cdn/*"])
def test_an_outage_that_does_not_pass_ends_the_pull_with_its_reason(pulling, hub, path):
    hub.repo("org/m", LEVELS)
    hub.fail(Fault(path, status=503, body=b""))

    found = pulling.refused("org/m:Q8_0", stall_seconds=1.5)

    assert found.code == Code.SOURCE_UNAVAILABLE
    assert not found.fatal
    assert "503" in found.message


def test_a_hub_that_is_not_there_is_told(pulling, hub):
    found = pulling.refused("org/m", endpoint="http://127.0.0.1:1", stall_seconds=1.0)

    assert found.code == Code.SOURCE_UNAVAILABLE
    assert "refused" in found.message


def test_a_flipped_bit_is_caught_and_nothing_is_visible(pulling, hub):
    hub.repo("org/m", LEVELS)
    for position in (0, 3_000_000, len(BIG) - 1):
        hub.heal()
        hub.fail(Fault("/cdn/*", flip_at=position))

        found = pulling.refused("org/m:Q4_K_M")

        assert found.code == Code.MODEL_CORRUPT
        assert hashlib.sha256(BIG).hexdigest() in found.evidence
        assert blobs(pulling) == []
    hub.heal()
    assert pulling.fetch("org/m:Q4_K_M").path.read_bytes() == BIG


def test_a_flipped_bit_in_a_small_file_is_caught_by_gits_own_digest(pulling, hub):
    hub.repo("org/m", SAFETENSORS)
    hub.fail(Fault("*/resolve/*/tokenizer.json", flip_at=3))

    assert pulling.refused("org/m").code == Code.MODEL_CORRUPT


def test_a_file_that_is_not_what_is_announced_is_corrupt(pulling, hub):
    hub.repo("org/m", {"m-Q8_0.gguf": File(b"GGUF8", digest="0" * 64)})

    found = pulling.refused("org/m:Q8_0")

    assert (found.code, found.fatal) == (Code.MODEL_CORRUPT, True)


def test_a_file_that_changes_while_it_comes_is_begun_anew(pulling, hub):
    hub.repo("org/m", LEVELS)
    hub.fail(Fault("/cdn/*", times=2, after=2, etag="another"))

    assert pulling.fetch("org/m:Q4_K_M", connections=1).path.read_bytes() == BIG
    assert resumed(hub).count(0) >= 2


def test_a_file_that_never_stops_changing_is_given_up(pulling, hub):
    hub.repo("org/m", LEVELS)
    for n in range(50):
        hub.fail(Fault("/cdn/*", times=1, etag=f"e{n}"))

    found = pulling.refused("org/m:Q4_K_M", connections=1)

    assert found.code == Code.SOURCE_UNAVAILABLE
    assert "changed" in found.message


def test_a_server_without_ranges_is_read_in_one_piece(pulling, hub):
    hub.repo("org/m", LEVELS)
    hub.fail(Fault("/cdn/*", ignore_range=True))

    assert pulling.fetch("org/m:Q4_K_M").path.read_bytes() == BIG


def test_an_address_that_expired_is_asked_for_again(pulling, hub):
    hub.repo("org/m", LEVELS)
    hub.fail(Fault("/cdn/*", times=1, after=2, status=403, body=b"expired"))

    assert pulling.fetch("org/m:Q4_K_M", connections=1).path.read_bytes() == BIG
    assert len(hub.asked("*/resolve/*")) == 2  # else the hub is asked once a file


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (redirect("/org/m/resolve/main/m-Q8_0.gguf", path="*/resolve/*"), "redirects more than"),
        (redirect("ftp://127.0.0.1/x", path="*/resolve/*"), "no address that is followed"),
        (Fault("/cdn/*", headers={"Content-Encoding": "gzip"}), "compressed"),
        (Fault("*/resolve/*", headers={"X-Linked-Etag": f'"{"1" * 64}"'}), "the hub lists it as"),
        (Fault("/api/*", body=b"<html>", status=200), "as a hub does"),
        (Fault("/cdn/*", status=418), "status 418"),
    ],
)
def test_what_is_no_hub_is_told_with_what_it_did(pulling, hub, fault, words):
    hub.repo("org/m", LEVELS)
    hub.fail(fault)

    found = pulling.refused("org/m:Q8_0")

    assert found.code in {Code.SOURCE_UNAVAILABLE, Code.MODEL_CORRUPT}
    assert words in found.message


# Who may read


def test_a_gated_model_says_what_to_do(pulling, hub):
    hub.repo("org/m", LEVELS, gated="manual", granted={"good"})
    hub.tokens |= {"good", "other"}

    for token in ("", "other"):
        found = pulling.refused("org/m:Q8_0", token=token)
        assert found.code == Code.MODEL_GATED
        assert "model's page" in found.hint
    assert pulling.fetch("org/m:Q8_0", token="good").path.read_bytes() == b"GGUF8"


def test_a_token_is_for_the_hub_and_not_for_its_cdn(pulling, hub):
    hub.repo("org/m", LEVELS, private=True, granted={"good"})
    hub.tokens.add("good")

    pulling.fetch("org/m:Q4_K_M", token="good")

    assert all(request.headers["authorization"] == "Bearer good" for request in hub.requests if request.origin == "hub")
    assert not [request for request in hub.asked("/cdn/*") if "authorization" in request.headers]


@pytest.mark.parametrize(
    ("reference", "token", "code", "words"),
    [
        ("no/model", "", Code.MODEL_MISSING, "may not be seen"),
        ("no/model", "good", Code.MODEL_MISSING, "may not be seen"),
        ("org/m@v9", "", Code.MODEL_MISSING, "no such revision"),
        ("org/m", "bad", Code.MODEL_GATED, "does not know the token"),
    ],
)
def test_what_the_hub_refuses_is_told(pulling, hub, reference, token, code, words):
    hub.repo("org/m", LEVELS)
    hub.tokens.add("good")

    found = pulling.refused(reference, token=token)

    assert found.code == code
    assert words in found.message


def test_a_hub_that_forbids_the_files_only_is_gated(pulling, hub):
    hub.repo("org/m", LEVELS)
    hub.fail(gated())

    assert pulling.refused("org/m:Q8_0").code == Code.MODEL_GATED


# What is here already


def end_at(hub, position: int, before: int = 0) -> None:
    """The hub dies when one connection that fetches parts in order is there; `before`: requests for something else."""
    requests = before + position // MIB
    hub.fail(Fault("/cdn/*", times=1, after=requests, cut_at=position % MIB))
    hub.fail(Fault("/cdn/*", after=requests, status=503, body=b""))


def test_what_was_begun_is_taken_up_by_the_next_pull(pulling, hub):
    hub.repo("org/m", LEVELS)
    end_at(hub, 3 * MIB + 500_000)
    pulling.refused("org/m:Q4_K_M", connections=1, stall_seconds=1.5)
    begun, hub.requests[:] = len(hub.asked("/cdn/*")), []
    hub.heal()

    assert pulling.fetch("org/m:Q4_K_M", connections=1).path.read_bytes() == BIG
    assert begun > 3
    assert min(resumed(hub)) >= 3 * MIB + 500_000


def test_what_was_begun_and_damaged_since_comes_again(pulling, hub):
    hub.repo("org/m", LEVELS)
    end_at(hub, 3 * MIB + 500_000)
    pulling.refused("org/m:Q4_K_M", connections=1, stall_seconds=1.5)
    hub.heal()
    (begun,) = pulling.cache.glob("hub/*/blobs/*.incomplete")
    with begun.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")

    assert pulling.fetch("org/m:Q4_K_M").path.read_bytes() == BIG


@pytest.mark.parametrize("notes", [b"", b"{}", b"\0" * 2000, b'{"size": 6291579, "part": 1048576, "etag": 3}'])
def test_damaged_notes_only_cost_time(pulling, hub, notes):
    hub.repo("org/m", LEVELS)
    folder = cache.repository(pulling.cache, "org/m")
    folder.blobs.mkdir(parents=True)
    (folder.blobs / f"{hashlib.sha256(BIG).hexdigest()}.incomplete").write_bytes(b"x" * len(BIG))
    (folder.blobs / f"{hashlib.sha256(BIG).hexdigest()}.incomplete.parts").write_bytes(notes)

    assert pulling.fetch("org/m:Q4_K_M").path.read_bytes() == BIG


def test_a_file_that_was_changed_in_the_cache_is_noticed_and_fetched_again(pulling, hub):
    hub.repo("org/m", LEVELS)
    kept = pulling.fetch("org/m:Q4_K_M")
    engine = kept.path.open("rb")  # which goes on with what it opened
    kept.path.resolve().write_bytes(BIG[:-1] + b"!")
    folder = cache.repository(pulling.cache, "org/m")
    assert folder.kept(kept.commit, "Q4_K_M") is None

    assert pulling.fetch("org/m:Q4_K_M").path.read_bytes() == BIG
    with engine:
        assert engine.read()[-1:] == b"!"


def test_two_pulls_of_one_file_fetch_it_once(pulling, hub):
    hub.repo("org/m", LEVELS)
    references = ["org/m:Q4_K_M", "org/m@main:Q4_K_M", f"org/m@{hub.repos['org/m'].refs['main']}:Q4_K_M"]

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda reference: pulling.fetch(reference, bytes_per_second=16 * MIB), references))

    assert {kept.path.read_bytes() == BIG for kept in found} == {True}
    assert sorted(resumed(hub)) == [n * MIB for n in range(7)]


def test_a_pull_waits_for_a_living_owner_and_names_it_when_it_hangs(pulling, hub):
    hub.repo("org/m", LEVELS)
    held = Lock(pulling.cache / f"hub/.locks/models--org--m/{hashlib.sha256(BIG).hexdigest()}.lock")
    assert held.acquire()

    found = pulling.refused("org/m:Q4_K_M", stall_seconds=1.5)

    assert found.code == Code.SOURCE_UNAVAILABLE
    assert re.search(r"process \d+ \(.+\) holds a file of it", found.message)
    timer = threading.Timer(0.3, held.release)
    timer.start()
    assert pulling.fetch("org/m:Q4_K_M").path.read_bytes() == BIG


# The hub's own tools


def test_the_hubs_own_tool_uses_the_cache_offline(pulling, hub):
    commit = hub.repo("org/m", SAFETENSORS).refs["main"]
    kept = pulling.fetch("org/m")

    found = snapshot_download("org/m", cache_dir=pulling.cache / "hub", local_files_only=True)

    assert Path(found) == kept.path == pulling.cache / f"hub/models--org--m/snapshots/{commit}"


def test_the_hubs_own_tool_and_we_fetch_into_one_cache_at_one_time(pulling, hub):
    hub.repo("org/m", LEVELS)

    def other() -> str:
        return hf_hub_download("org/m", "m-Q4_K_M.gguf", cache_dir=pulling.cache / "hub", endpoint=hub.endpoint)

    with ThreadPoolExecutor() as pool:
        theirs = [pool.submit(other) for _ in range(2)]
        ours = [pool.submit(pulling.fetch, "org/m:Q4_K_M") for _ in range(2)]
        paths = {str(each.result()) for each in theirs} | {str(each.result().path) for each in ours}

    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == BIG
    assert blobs(pulling) == [hashlib.sha256(BIG).hexdigest()]


def test_a_small_file_is_written_by_many_at_once_and_stays_whole(tmp_path):
    path = tmp_path / "refs/main"

    with ThreadPoolExecutor(8) as pool:
        written = [pool.submit(cache.replace, path, b"commit") for _ in range(200)]

    assert [each.result() for each in written] == [None] * 200
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == {"main": b"commit"}


def test_what_the_hubs_own_tool_brought_is_verified_before_it_is_believed(pulling, hub):
    hub.repo("org/m", SAFETENSORS)
    snapshot_download("org/m", cache_dir=pulling.cache / "hub", endpoint=hub.endpoint)

    kept = pulling.fetch("org/m", offline=True)
    assert contents(kept)["model.safetensors"] == BIG

    (pulling.cache / "fetched").rename(pulling.cache / "gone")
    (kept.path / "model.safetensors").resolve().write_bytes(BIG[:-1] + b"!")
    found = pulling.refused("org/m", offline=True)
    assert found.code == Code.MODEL_CORRUPT
    assert "model.safetensors" in found.message


def test_offline_what_is_not_here_is_missing(pulling, hub):
    hub.repo("org/m", LEVELS)

    found = pulling.refused("org/m", offline=True)

    assert found.code == Code.MODEL_MISSING
    assert "offline" in found.message
    assert not hub.requests


def test_without_its_hub_what_lies_in_the_cache_is_used(pulling, hub):
    hub.repo("org/m", SAFETENSORS)
    snapshot_download("org/m", cache_dir=pulling.cache / "hub", endpoint=hub.endpoint)

    kept = pulling.fetch("org/m", endpoint="http://127.0.0.1:1", stall_seconds=1.5)

    assert contents(kept)["model.safetensors"] == BIG


# The disk


def test_what_does_not_fit_is_refused_before_the_first_byte_with_the_numbers(pulling, hub):
    hub.repo("org/m", LEVELS)

    found = pulling.refused("org/m:Q4_K_M", reserve_bytes=1024**5)

    assert found.code == Code.DISK_FULL
    assert re.search(r"needs 6\.00 MiB in .*, where .* GiB are free, 1048576\.00 GiB must stay free", found.message)
    assert not hub.asked("/cdn/*")
    assert [path.name for path in (pulling.cache / "reserved").iterdir()] == ["lock"]


def test_a_full_disk_at_any_write_is_told_and_the_next_pull_goes_on(pulling, hub):
    """Here every file of this process is full at some length, as a quota would make it."""
    hub.repo("org/m", LEVELS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (10, 2000, 100_000, 2 * MIB + 17, 5 * MIB):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            found = pulling.refused("org/m:Q4_K_M", connections=2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert found.code == Code.DISK_FULL
        assert "MiB are free" in found.message or "GiB are free" in found.message
        assert cache.repository(pulling.cache, "org/m").kept(hub.repos["org/m"].refs["main"], "Q4_K_M") is None
        assert not [*pulling.cache.glob("hub/*/snapshots/*/*")]

    assert pulling.fetch("org/m:Q4_K_M").path.read_bytes() == BIG


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
@pytest.mark.parametrize("room", [3, 5, 8])
def test_a_disk_that_strangers_fill_meanwhile_is_told_with_the_numbers(pulling, hub, room):
    hub.repo("org/m", LEVELS)
    pulling.cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", pulling.cache], check=True)
    hub.fail(Fault("/cdn/*", stall_at=0))

    def fill() -> None:
        """Once the room was promised, and before anything comes."""
        while not hub.asked("/cdn/*"):
            time.sleep(0.01)
        (pulling.cache / "stranger").write_bytes(bytes((16 - room) * MIB))
        hub.heal()

    stranger = threading.Thread(target=fill)
    stranger.start()
    try:
        if room < 6:
            found = pulling.refused("org/m:Q4_K_M", stall_seconds=6.0)
            stranger.join()
            assert found.code == Code.DISK_FULL
            assert "free" in found.hint
            (pulling.cache / "stranger").unlink()
        assert pulling.fetch("org/m:Q4_K_M", stall_seconds=6.0).path.read_bytes() == BIG
        assert pulling.refused("org/m:Q8_0", reserve_bytes=16 * MIB).code == Code.DISK_FULL
    finally:
        stranger.join()
        subprocess.run(["umount", pulling.cache], check=True)


def test_bandwidth_is_shared_by_all_connections(pulling, hub):
    hub.repo("org/m", LEVELS)
    said: list[Any] = []

    Fetcher(pulling.job("org/m:Q4_K_M", bytes_per_second=2 * MIB), said.append).run()

    done = [message["progress"][1] for message in said]
    assert done == sorted(done)
    assert len(done) >= 3  # three seconds, told twice a second


# URLs


def test_a_url_is_fetched_and_verified(pulling, hub):
    commit = hub.repo("org/m", LEVELS).refs["main"]
    url, digest = f"{hub.cdn}/cdn/org/m/{commit}/m-Q4_K_M.gguf", hashlib.sha256(BIG).hexdigest()

    known = Fetcher(pulling.url(url, sha256=digest), print).run()
    assert (known.path.name, known.digest, known.path.read_bytes()) == ("m-Q4_K_M.gguf", f"sha256:{digest}", BIG)
    with pytest.raises(Exception, match="not what its source announces"):
        Fetcher(pulling.url(url, sha256="0" * 64), print).run()


def test_a_url_without_a_digest_is_named_by_the_one_it_has(pulling, hub):
    commit = hub.repo("org/m", LEVELS).refs["main"]
    url = f"{hub.cdn}/cdn/org/m/{commit}/m-Q4_K_M.gguf"
    end_at(hub, 3 * MIB + 500_000, before=1)
    with pytest.raises(Exception, match="nothing came"):
        Fetcher(pulling.url(url, connections=1, stall_seconds=1.5), print).run()
    hub.heal()
    hub.requests.clear()

    kept = Fetcher(pulling.url(url, connections=1), print).run()

    assert kept.digest == "sha256:" + hashlib.sha256(BIG).hexdigest()
    assert min(resumed(hub)[1:]) >= 3 * MIB
