import asyncio
import itertools
import resource
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.runtimes import logs
from tests.small_disk import small_disk


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "1.log"


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A log on a file system of 1 MiB."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        yield disk / "1.log"


def fill(log: Path) -> int:
    """Write until the disk is full, to its last byte; returns how many lines."""
    with log.open("ab", buffering=0) as file:
        for number in itertools.count():
            try:
                file.write(f"line {number:010}\n".encode())
            except OSError:
                return number
    raise AssertionError


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def everything(log: Path) -> str:
    """All parts, oldest first."""
    numbers = sorted((int(p.suffix[1:]) for p in log.parent.glob(f"{log.name}.[0-9]*")), reverse=True)
    return "".join(log.with_name(f"{log.name}.{n}").read_text() for n in numbers) + log.read_text()


async def collect(log: Path, tail_lines: int = 0) -> str:
    chunks = logs.follow(log, tail_lines=tail_lines, follow=False, ended=lambda: True)
    return b"".join([chunk async for chunk in chunks]).decode()


async def head(chunks: AsyncIterator[bytes]) -> bytes:
    return await anext(chunks)


def test_a_small_log_is_left_alone(log: Path) -> None:
    append(log, "12345")
    assert not logs.rotate(log, 5, 3)
    assert not logs.rotate(log.with_name("none"), 5, 3)
    assert [p.name for p in log.parent.iterdir()] == [log.name]


def test_rotation_keeps_the_newest_files_in_order(log: Path) -> None:
    for number in range(5):
        append(log, f"part {number}\n")
        assert logs.rotate(log, 1, 3)
    append(log, "now\n")
    assert everything(log) == "part 3\npart 4\nnow\n"
    assert len(list(log.parent.iterdir())) == 3


def test_one_file_keeps_nothing_but_itself(log: Path) -> None:
    append(log, "old\n")
    assert logs.rotate(log, 1, 1)
    assert log.read_text() == ""
    assert list(log.parent.iterdir()) == [log]


def test_fewer_files_than_before_removes_the_surplus(log: Path) -> None:
    for number in range(4):
        append(log, f"{number}\n")
        logs.rotate(log, 1, 5)
    append(log, "4\n")
    logs.rotate(log, 1, 2)
    assert everything(log) == "4\n"


def test_a_writer_that_keeps_the_log_open_goes_on_at_its_new_beginning(log: Path) -> None:
    with log.open("a") as writer:
        writer.write("before\n")
        writer.flush()
        logs.rotate(log, 1, 2)
        writer.write("after\n")
    assert log.read_text() == "after\n"


def test_under_a_chatty_writer_order_is_kept_and_no_line_comes_twice(log: Path) -> None:
    script = 'i=0; while [ $i -lt 40000 ]; do echo "line $i"; i=$((i+1)); done'
    with log.open("a") as file, subprocess.Popen(["/bin/sh", "-c", script], stdout=file) as writer:
        while writer.poll() is None:
            logs.rotate(log, 50_000, 1000)
    lines = everything(log).splitlines()
    numbers = [int(line.rpartition(" ")[2]) for line in lines if line.startswith("line ")]
    assert all(earlier < later for earlier, later in itertools.pairwise(numbers))
    assert len(list(log.parent.iterdir())) > 3
    # What is written between the last copy and the truncation is lost: a line or two for each rotation, but many when
    # a loaded machine takes the CPU away in between.
    assert len(numbers) > 20_000


def test_on_a_full_disk_old_parts_go_for_the_newest(full: Path) -> None:
    for text in ("oldest\n" * 10_000, "old\n" * 50_000, "new\n" * 50_000):
        append(full, text)
        assert logs.rotate(full, 1, 9)
    append(full, "now\n" * 50_000)
    fill(full.with_name("other"))
    assert logs.rotate(full, 1, 9)
    assert [set(part.read_text().split()) for part in sorted(full.parent.glob("1.log.*"))] == [{"now"}, {"new"}]
    assert full.read_text() == ""


@pytest.mark.parametrize("files", [1, 3])
async def test_a_log_that_filled_the_disk_keeps_its_end_and_gives_the_room_back(full: Path, files: int) -> None:
    lines = fill(full)
    size = full.stat().st_size
    chunks = logs.follow(full, tail_lines=0, follow=True, ended=lambda: True)
    followed = await anext(chunks)
    assert logs.rotate(full, 1, files)
    assert sum(part.stat().st_size for part in full.parent.iterdir()) <= size / 8
    assert {part.name for part in full.parent.iterdir()} == ({"1.log", "1.log.1"} if files > 1 else {"1.log"})
    append(full, "after\n")
    told = logs.tail_text(full).splitlines()
    assert told[-1] == "after"
    assert files == 1 or told[-2] == f"line {lines - 1:010}"
    followed += b"".join([chunk async for chunk in chunks])
    assert followed.endswith(b"\nafter\n")
    assert len(set(followed.splitlines())) == len(followed.splitlines())  # nothing comes twice


def test_a_rotation_that_fails_leaves_the_log_and_nothing_beside_it(log: Path) -> None:
    append(log, "a line\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            logs.rotate(log, 1, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.read_text() == "a line\n"
    assert list(log.parent.iterdir()) == [log]


def test_removing_takes_all_parts_and_nothing_else(log: Path) -> None:
    append(log.with_name("11.log"), "of another instance")
    for number in range(3):
        append(log, f"{number}\n")
        logs.rotate(log, 1, 3)
    logs.remove(log)
    assert [p.name for p in log.parent.iterdir()] == ["11.log"]
    logs.remove(log)


def test_the_tail_reaches_into_rotated_parts_and_survives_any_bytes(log: Path) -> None:
    assert logs.tail_text(log) == ""
    log.write_bytes(b"first \xff\n")
    logs.rotate(log, 1, 3)
    append(log, "second\n")
    assert logs.tail_text(log) == "first \ufffd\nsecond\n"
    assert logs.tail_text(log, 9) == "\ufffd\nsecond\n"
    assert logs.tail_text(log, 4) == "ond\n"


def test_the_head_begins_in_the_oldest_part_that_is_kept(log: Path) -> None:
    assert logs.head_text(log, 9) == ""
    log.write_bytes(b"first \xff\n")
    logs.rotate(log, 1, 3)
    append(log, "second\n")
    logs.rotate(log, 1, 3)
    append(log, "third\n")
    assert logs.head_text(log, 99) == "first \ufffd\nsecond\nthird\n"
    assert logs.head_text(log, 11) == "first \ufffd\nsec"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    parts=st.lists(st.text("ab\n", max_size=12), min_size=1, max_size=3),
    tail_lines=st.integers(min_value=1, max_value=12),
)
def test_the_last_lines_are_those_of_all_parts_together(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], tail_lines: int
) -> None:
    log = tmp_path_factory.mktemp("tail") / "1.log"
    for number, text in enumerate(reversed(parts)):
        log.with_name(f"1.log.{number}" if number else "1.log").write_text(text)
    whole = "".join(parts)
    expected = "".join(whole.splitlines(keepends=True)[-tail_lines:])
    assert asyncio.run(collect(log, tail_lines)) == expected


async def test_lines_are_found_across_chunks(log: Path) -> None:
    append(log, "".join(f"line {number}\n" for number in range(30_000)))
    assert await collect(log, 20_000) == "".join(f"line {number}\n" for number in range(10_000, 30_000))


async def test_without_following_the_log_ends_where_it_ends(log: Path) -> None:
    assert await collect(log) == ""
    append(log, "one\ntwo\n")
    logs.rotate(log, 1, 3)
    append(log, "three\n")
    assert await collect(log) == "one\ntwo\nthree\n"
    assert await collect(log, 2) == "two\nthree\n"
    assert await collect(log, -1) == ""


async def test_a_follower_sees_what_is_written_until_the_end_and_then_stops(log: Path) -> None:
    ended = False
    append(log, "old\n")
    chunks = logs.follow(log, tail_lines=-1, follow=True, ended=lambda: ended)
    first = asyncio.create_task(head(chunks))
    await asyncio.sleep(0)  # lets it begin; where it begins is decided in a thread
    while not first.done():
        append(log, "new\n")
        await asyncio.sleep(0.01)
    append(log, "last words\n")
    ended = True
    rest = b"".join([chunk async for chunk in chunks])
    assert b"old" not in await first
    assert rest.endswith(b"last words\n")


async def test_a_follower_waits_for_a_log_that_does_not_exist_yet(log: Path) -> None:
    chunks = logs.follow(log, tail_lines=0, follow=True, ended=log.exists)
    first = asyncio.create_task(head(chunks))
    await asyncio.sleep(0.01)
    append(log, "here\n")
    assert await first == b"here\n"
    assert [chunk async for chunk in chunks] == []


async def test_a_slow_reader_misses_nothing_when_the_log_is_rotated_twice_meanwhile(log: Path) -> None:
    lines = [f"line {number:06}\n" for number in range(30_000)]
    append(log, "".join(lines[:10_000]))
    chunks = logs.follow(log, tail_lines=0, follow=True, ended=lambda: True)
    received = await anext(chunks)
    assert len(received) < log.stat().st_size
    for begin in (10_000, 20_000):
        logs.rotate(log, 1, 3)
        append(log, "".join(lines[begin : begin + 10_000]))
    received += b"".join([chunk async for chunk in chunks])
    assert received.decode() == "".join(lines)


async def test_a_reader_that_rotations_overtook_goes_on_with_what_is_left(log: Path) -> None:
    append(log, "a" * 70_000 + "\n")
    chunks = logs.follow(log, tail_lines=0, follow=True, ended=lambda: True)
    await anext(chunks)
    for text in ("lost\n", "kept\n", "now\n"):
        logs.rotate(log, 1, 2)
        append(log, text)
    assert b"".join([chunk async for chunk in chunks]) == b"kept\nnow\n"


async def test_a_log_that_somebody_else_truncated_is_read_from_its_beginning(log: Path) -> None:
    ended = False
    append(log, "a longer line\n")
    chunks = logs.follow(log, tail_lines=0, follow=True, ended=lambda: ended)
    await anext(chunks)
    log.write_text("short\n")
    assert await anext(chunks) == b"short\n"
    ended = True
    assert [chunk async for chunk in chunks] == []


async def test_a_follower_of_a_chatty_rotated_log_sees_exactly_what_the_parts_hold(log: Path) -> None:
    done = threading.Event()

    def write() -> None:
        for number in range(3_000):
            append(log, f"line {number}\n")
            if number % 300 == 299:
                logs.rotate(log, 1_000, 100)
        done.set()

    writer = asyncio.create_task(asyncio.to_thread(write))
    chunks = logs.follow(log, tail_lines=0, follow=True, ended=done.is_set)
    received = b"".join([chunk async for chunk in chunks]).decode()
    await writer
    assert received == everything(log) == "".join(f"line {number}\n" for number in range(3_000))
