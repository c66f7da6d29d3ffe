"""The daemon's end of the watcher: what it tells when the watcher works, dies, hangs, lies, or has nothing to watch."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog

from agent.hardware import feed as feeds
from agent.hardware import vendors
from agent.hardware.feed import Feed
from agent.hardware.inventory import Detection, Device, DeviceProcess, Fault, Link, PciLink, Problem, Sample
from agent.hardware.messages import Message, encode
from tests.nvml.double import NvmlDouble

GPU = Device(
    "GPU-0", 0, "nvidia", "NVIDIA H100", 80 << 30, pci=PciLink("0000:1b:00.0", 1, 5, 16, 16), files=("/dev/nvidia0",)
)
DETECTED = Detection("nvidia", (GPU,), (Link("GPU-0", "GPU-1", "nvlink", 18),), problems=(Problem("X", "why"),))
SAMPLED = Sample("GPU-0", 1.5, 5, 10, (DeviceProcess(7, None, "me", "python"),), throttling=("sw-power-cap",))


class Heard:
    """A listener that keeps everything, and waits for what is expected."""

    def __init__(self) -> None:
        self.detections: list[Detection] = []
        self.samples: list[Sample] = []
        self.faults: list[Fault] = []
        self.watched: list[tuple[bool | None, str, str]] = []
        self._called = asyncio.Event()

    def detected(self, detection: Detection) -> None:
        self._keep(self.detections, detection)

    def sampled(self, sample: Sample) -> None:
        self._keep(self.samples, sample)

    def fault(self, fault: Fault) -> None:
        self._keep(self.faults, fault)

    def watcher(self, status: bool | None, reason: str, message: str) -> None:
        self._keep(self.watched, (status, reason, message))

    def _keep(self, calls: list[Any], call: Any) -> None:
        calls.append(call)
        self._called.set()

    @property
    def reasons(self) -> list[str]:
        return [reason for _, reason, _ in self.watched]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self._called.clear()
                await self._called.wait()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@contextlib.asynccontextmanager
async def running(feed: Feed) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(feed.run())
    try:
        yield task
    finally:
        await feed.close()
        if task.done() and not task.cancelled() and task.exception() is not None:
            await task


def saying(*lines: bytes, then: str = "sys.stdin.read()") -> Sequence[str]:
    """A program that says this in place of the watcher, and then does something: by default it waits for its end."""
    return sys.executable, "-c", f"import os, sys, time\nfor line in {lines!r}: os.write(1, line)\n{then}"


HELLO = encode(Message(vendors=("nvidia",)))


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    left = children()
    for child in left:
        child.kill()
    assert left == []


# What it reads


async def test_everything_that_the_watcher_says_arrives_as_it_was(heard: Heard) -> None:
    lines = [
        HELLO,
        encode(Message(detected=DETECTED)),
        encode(Message(sampled=SAMPLED)),
        encode(Message(fault=Fault("GPU-0", "xid", 79, 2.0, "fallen off the bus"))),
    ]
    feed = Feed(5, heard, saying(*lines))
    async with running(feed):
        assert await feed.first(deadline=30)
        await heard.until(lambda: bool(heard.faults))
    assert heard.detections == [DETECTED]
    assert heard.samples == [SAMPLED]
    assert heard.faults == [Fault("GPU-0", "xid", 79, 2.0, "fallen off the bus")]
    assert heard.watched == [(True, "Watching", "devices of nvidia are watched")]


async def test_lines_that_are_no_messages_are_counted_logged_once_and_cost_nothing_else(heard: Heard) -> None:
    garbage = [
        b"NVRM: hello\n",
        b"\xff\xfe\n",
        b"\n",
        b"[1]\n",
        b'{"sampled": {"device": 5}}\n',
        b"x" * (9 << 20) + b"\n",
    ]
    later = encode(Message(sampled=SAMPLED))
    # Several times the size that is read as a line, in pieces: each piece is one more line that is none.
    script = f"import os, sys\nos.write(1, {HELLO!r})\n"
    script += f"for line in {garbage[:-1]!r}: os.write(1, line)\n"
    script += f"sys.stdout.write('x' * (9 << 20) + '\\n'); sys.stdout.flush()\nos.write(1, {later!r})\nsys.stdin.read()"
    feed = Feed(5, heard, (sys.executable, "-c", script))
    with structlog.testing.capture_logs() as logs:
        async with running(feed):
            await heard.until(lambda: bool(heard.samples))
    assert heard.samples == [SAMPLED]
    assert feed.malformed >= len(garbage)
    assert [entry["line"] for entry in logs] == ["NVRM: hello"]


async def test_a_process_named_by_bytes_that_are_no_text_is_named_as_far_as_can_be(heard: Heard) -> None:
    sample = Sample("GPU-0", 1.0, processes=(DeviceProcess(1, 2, "me", os.fsdecode(b"a\xffb\nc")),))
    async with running(Feed(5, heard, saying(HELLO, encode(Message(sampled=sample))))):
        await heard.until(lambda: bool(heard.samples))
    assert heard.samples[0].processes == (DeviceProcess(1, 2, "me", "a?b\nc"),)


async def test_a_message_of_a_newer_watcher_is_read_as_far_as_it_is_known(heard: Heard) -> None:
    newer = encode(Message(sampled=SAMPLED)).replace(b'"device":', b'"fan_percent":40,"device":', 1)
    async with running(Feed(5, heard, saying(HELLO, newer))):
        await heard.until(lambda: bool(heard.samples))
    assert heard.samples == [SAMPLED]


async def test_a_watcher_that_only_babbles_is_replaced(heard: Heard) -> None:
    feed = Feed(5, heard, saying(HELLO, then="while True: os.write(1, b'garbage\\n' * 100)"))
    async with running(feed):
        await heard.until(lambda: "Restarting" in heard.reasons)
    assert "no messages" in heard.watched[1][2]


async def test_a_bug_of_the_listener_ends_the_feed_instead_of_hiding(heard: Heard) -> None:
    def broken(sample: Sample) -> None:
        raise RuntimeError("a bug")

    heard.sampled = broken  # type: ignore[method-assign]
    task = asyncio.create_task(Feed(5, heard, saying(HELLO, encode(Message(sampled=SAMPLED)))).run())
    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(task, 30)
    assert raised.group_contains(RuntimeError, match="a bug")


async def test_what_the_watcher_complains_of_is_logged_and_limited(heard: Heard) -> None:
    complaint = "\nfor n in range(1000): print('complaint', n, file=sys.stderr)"
    feed = Feed(5, heard, saying(then=complaint))
    with structlog.testing.capture_logs() as logs:
        async with running(feed):
            await heard.until(lambda: bool(heard.watched))
    assert [entry["line"] for entry in logs] == [f"complaint {n}" for n in range(feeds.LOG_LINES)]
    status, reason, message = heard.watched[0]
    assert (status, reason) == (False, "NotStartable")
    assert "complaint 999" in message


# How it ends


async def test_a_watcher_that_is_killed_is_told_and_started_again(heard: Heard) -> None:
    feed = Feed(5, heard, saying(HELLO, encode(Message(detected=DETECTED))))
    async with running(feed):
        await heard.until(lambda: len(heard.detections) == 1)
        children()[0].kill()
        await heard.until(lambda: len(heard.detections) == 2)
    assert heard.reasons == ["Watching", "Restarting", "Watching"]
    assert heard.watched[1] == (False, "Restarting", "the watcher was killed by SIGKILL; another is started in 1 s")


async def test_a_watcher_that_falls_silent_is_replaced(heard: Heard) -> None:
    alive = "while True: os.write(1, b'{}\\n'); time.sleep(0.05)"
    feed = Feed(0.1, heard, saying(HELLO, then=alive), silence=2.0)
    async with running(feed):
        await heard.until(lambda: heard.reasons[-1:] == ["Watching"])
        before = len(heard.reasons)  # on a busy machine, one may have been too slow to start
        children()[0].send_signal(signal.SIGSTOP)
        await heard.until(lambda: heard.reasons[before:][-1:] == ["Watching"])
    assert "said nothing for 2 s" in heard.watched[before][2]


async def test_a_watcher_that_cannot_be_started_is_told_with_the_reason(heard: Heard, tmp_path: Path) -> None:
    async with running(Feed(5, heard, [str(tmp_path / "missing")])):
        await heard.until(lambda: bool(heard.watched))
    status, reason, message = heard.watched[0]
    assert (status, reason) == (False, "NotStartable")
    assert "No such file" in message


async def test_delays_between_starts_grow(heard: Heard, tmp_path: Path) -> None:
    async with running(Feed(5, heard, [str(tmp_path / "missing")])):
        await heard.until(lambda: len(heard.watched) == 2)
    assert [message.rpartition(" in ")[2] for _, _, message in heard.watched] == ["1 s", "2 s"]


async def test_a_watcher_that_asks_to_be_replaced_is_replaced_without_a_word(heard: Heard, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    once = f"import pathlib; mark = pathlib.Path({str(mark)!r})\nif not mark.exists(): mark.touch(); sys.exit(75)\n"
    feed = Feed(
        5, heard, saying(HELLO, then=once + f"os.write(1, {encode(Message(sampled=SAMPLED))!r}); sys.stdin.read()")
    )
    async with running(feed):
        await heard.until(lambda: bool(heard.samples))
    assert heard.reasons == ["Watching"]


async def test_devices_of_a_vendor_that_the_next_watcher_does_not_find_are_gone(heard: Heard, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    script = (
        f"import os, sys, pathlib\nmark = pathlib.Path({str(mark)!r})\n"
        f"if mark.exists(): os.write(1, {encode(Message(vendors=('amd',)))!r}); sys.stdin.read()\n"
        f"mark.touch(); os.write(1, {HELLO + encode(Message(detected=DETECTED))!r}); sys.exit(3)"
    )
    async with running(Feed(5, heard, (sys.executable, "-c", script))):
        await heard.until(lambda: heard.reasons == ["Watching", "Restarting", "Watching"])
    assert heard.detections == [DETECTED, Detection("nvidia")]
    assert "exit status 3" in heard.watched[1][2]


async def test_a_cancelled_feed_leaves_no_process_even_a_stopped_one(heard: Heard) -> None:
    task = asyncio.create_task(Feed(5, heard, saying(HELLO)).run())
    await heard.until(lambda: bool(heard.watched))
    children()[0].send_signal(signal.SIGSTOP)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == []


@pytest.mark.slow
async def test_watchers_that_survive_sigkill_are_left_alone_and_no_third_is_started(
    heard: Heard, freezer: Freezer
) -> None:
    feed = Feed(0.1, heard, saying(HELLO), silence=0.3)
    async with running(feed):
        for number in (1, 2):
            await heard.until(lambda number=number: heard.reasons.count("Watching") == number)
            freezer.freeze(children())
        await heard.until(lambda: heard.reasons[-1] == "DriverHangs")
        assert "cannot be killed" in heard.watched[1][2]
        assert len(children()) == 2
        freezer.thaw()
        await heard.until(lambda: heard.reasons[-1] == "Watching" and len(children()) == 1)


class Freezer:
    """A cgroup (v1) whose processes not even SIGKILL ends until it is thawed: much as a hang inside the kernel."""

    def __init__(self, group: Path) -> None:
        self._group = group

    def freeze(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            (self._group / "cgroup.procs").write_text(str(process.pid))
        (self._group / "freezer.state").write_text("FROZEN")

    def thaw(self) -> None:
        (self._group / "freezer.state").write_text("THAWED")


@pytest.fixture
def freezer() -> Iterator[Freezer]:
    group = Path("/sys/fs/cgroup/freezer", f"llm-node-agent-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no writable freezer (cgroup v1) to make a process that cannot be killed: {error}")
    found = Freezer(group)
    yield found
    found.thaw()
    while (group / "cgroup.procs").read_text():
        time.sleep(0.01)
    group.rmdir()


# Nothing to watch


@pytest.fixture
def no_devices() -> None:
    if any(vendor.present() for vendor in vendors()):
        pytest.skip("this machine has devices")


async def test_a_node_without_devices_is_told_so_once_and_runs_no_watcher(heard: Heard, no_devices: None) -> None:
    feed = Feed(0.002, heard)
    async with running(feed):
        assert await feed.first(deadline=30)
        await asyncio.sleep(0.2)  # ten looks
        assert children() == []
        assert await feed.fresh("GPU-0", deadline=30) is None
    ((status, reason, message),) = heard.watched
    assert (status, reason) == (None, "NoDevices")
    assert "nvidia, amd, intel, apple" in message


async def test_a_watcher_that_finds_nothing_is_told_once_however_often_it_looks(heard: Heard, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    script = saying(encode(Message(vendors=())), then=f"open({str(runs)!r}, 'a').write('x')")
    feed = Feed(0.002, heard, script)
    async with running(feed):
        assert await feed.first(deadline=30)
        while not runs.exists() or len(runs.read_text()) < 3:
            await asyncio.sleep(0.02)
    assert heard.reasons == ["NoDevices"]


# Questions


async def test_nobody_answers_while_no_watcher_runs(heard: Heard, tmp_path: Path) -> None:
    feed = Feed(5, heard, [str(tmp_path / "missing")])
    assert await feed.fresh("GPU-0", deadline=30) is None
    async with running(feed):
        await heard.until(lambda: bool(heard.watched))
        assert await feed.fresh("GPU-0", deadline=30) is None
        assert not await feed.first(deadline=0.01)


async def test_who_waits_for_a_look_is_told_when_the_watcher_dies(heard: Heard) -> None:
    feed = Feed(5, heard, saying(HELLO))
    async with running(feed):
        await heard.until(lambda: bool(heard.watched))
        question = asyncio.create_task(feed.fresh("GPU-0", deadline=60))
        await asyncio.sleep(0)
        children()[0].kill()
        assert await question is None


async def test_a_look_that_is_not_answered_in_time_is_none(heard: Heard) -> None:
    feed = Feed(5, heard, saying(HELLO))
    async with running(feed):
        await heard.until(lambda: bool(heard.watched))
        assert await feed.fresh("GPU-0", deadline=0.05) is None


async def test_a_sample_that_was_under_way_when_asked_is_no_answer(heard: Heard) -> None:
    answer = "sys.stdin.readline(); os.write(1, OLD); os.write(1, NEW); sys.stdin.read()"
    old, new = Sample("GPU-0", 1.0), Sample("GPU-0", 2.0)
    names = f"OLD, NEW = {encode(Message(sampled=old))!r}, {encode(Message(sampled=new, token=1))!r}\n"
    feed = Feed(5, heard, saying(HELLO, then=names + answer))
    async with running(feed):
        await heard.until(lambda: bool(heard.watched))
        assert await feed.fresh("GPU-0", deadline=30) == new
    assert heard.samples == [old, new]


async def test_who_waits_for_a_device_that_does_not_answer_is_told_before_the_deadline(heard: Heard) -> None:
    silent = Sample("GPU-0", 1.0, problem=Problem("NoAnswer", "it hangs"))
    answer = f"sys.stdin.readline(); os.write(1, {encode(Message(sampled=silent, token=1))!r}); sys.stdin.read()"
    feed = Feed(5, heard, saying(HELLO, then=answer))
    async with running(feed):
        await heard.until(lambda: bool(heard.watched))
        assert await feed.fresh("GPU-0", deadline=600) is None  # longer than this test may take
    assert heard.samples == [silent]


# The real watcher


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvmlDouble:
    """This process, as its children do, finds NVIDIA GPUs."""
    made = NvmlDouble(tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


async def test_devices_are_watched_and_looked_at_anew_when_asked(heard: Heard, double: NvmlDouble) -> None:
    ids = double.gpus(2)
    feed = Feed(60, heard)
    async with running(feed):
        assert await feed.first(deadline=30)
        await heard.until(lambda: {sample.device for sample in heard.samples} == set(ids))
        double.take(1, pid=os.getpid(), memory=20 << 30)
        sample = await feed.fresh(ids[1], deadline=30)
        assert sample is not None
        assert sample.processes is not None
        assert [(process.pid, process.memory_bytes) for process in sample.processes] == [(os.getpid(), 20 << 30)]
        assert sample in heard.samples
        double.gpus(1)
        feed.detect()
        await heard.until(lambda: len(heard.detections[-1].devices) == 3)
    assert heard.reasons == ["Watching"]


async def test_a_device_that_is_not_there_is_answered_as_lost(heard: Heard, double: NvmlDouble) -> None:
    double.gpus(1)
    feed = Feed(60, heard)
    async with running(feed):
        assert await feed.first(deadline=30)
        sample = await feed.fresh("GPU-of-yesterday", deadline=30)
    assert sample is not None
    assert sample.problem is not None
    assert sample.problem.code == "DeviceLost"


async def test_hardware_that_appears_later_is_watched(heard: Heard, no_devices: None, tmp_path: Path) -> None:
    feed = Feed(0.05, heard)
    async with running(feed):
        await heard.until(lambda: heard.reasons == ["NoDevices"])
        double = NvmlDouble(tmp_path)
        double.gpus(1)
        os.environ.update(double.environment)
        try:
            await heard.until(lambda: bool(heard.samples))
        finally:
            for name in double.environment:
                del os.environ[name]
    assert heard.reasons == ["NoDevices", "Watching"]
