"""The daemon's end of the watcher: starts it, reads what it sees, and replaces it when it crashes or falls silent.

Runs on the event loop and never waits for a driver. A watcher that not even SIGKILL ends hangs inside the kernel; it is
left alone, and its end noticed if it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import TypeAdapter, ValidationError

from agent.frozen import frozen
from agent.hardware import vendors
from agent.hardware.inventory import Detection, Fault, Sample
from agent.hardware.messages import EXIT_REPLACE, PRESENCE_PERIODS, Message

#: Least seconds without a message after which a watcher counts as hung. It says something each period.
SILENCE_SECONDS = 10.0
#: Seconds until a watcher that ended is started again; doubled each time, and forgotten when one lived for a while.
FIRST_DELAY, MAX_DELAY, HEALTHY_AFTER = 1.0, 60.0, 60.0
#: Seconds that a killed watcher has to be gone.
KILL_DEADLINE = 2.0
#: Watchers that survive SIGKILL, until no other is started. After the first, the sick device may be the only one that
#: is out of reach; a second that hangs says that the driver is.
MAX_STUCK = 2
#: Bytes of one message. A device with a thousand processes takes some 200 KiB.
MAX_LINE = 4 * 1024 * 1024
#: Lines that are no messages, until their writer is replaced: it would keep the daemon busy.
MAX_MALFORMED = 1000
#: Lines that are read before others get their turn: one takes some 20 microseconds.
LINES_AT_ONCE = 50
#: Lines of the watcher's stderr that are logged in a minute, and characters of each.
LOG_LINES, LOG_WIDTH = 20, 500
#: Bytes of questions that wait for a watcher to read them; one that reads none hangs.
MAX_QUESTIONS = 65536

_ROOT = str(Path(__file__).parent.parent.parent)
_log = structlog.get_logger(__name__)


class Listener(Protocol):
    """Who is told. Calls come on the event loop, and must not block it."""

    def detected(self, detection: Detection) -> None:
        """A vendor's devices are these: whenever something differs, and from each new watcher."""

    def sampled(self, sample: Sample) -> None: ...

    def fault(self, fault: Fault) -> None: ...

    def watcher(self, status: bool | None, reason: str, message: str) -> None:
        """Whether devices are watched: True they are, None there are none, False they are not at the moment."""


@frozen
class _End:
    """How a watcher ended: why (a reason as `Listener.watcher` gets it), and a sentence about it."""

    reason: str
    message: str = ""


class Feed:
    """Devices of this host as they are, told to a listener."""

    def __init__(
        self,
        period: float,
        listener: Listener,
        command: Sequence[str] | None = None,
        *,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        """Sample every `period` seconds. `command` is run in place of the watcher, whether or not hardware is here."""
        self.malformed = 0  # lines that were no messages, in all
        self._period = period
        self._listener = listener
        self._command = command
        self._silence = max(3 * period, silence)
        self._vendors = vendors() if command is None else ()
        self._process: asyncio.subprocess.Process | None = None
        self._runner: asyncio.Task[None] | None = None
        self._heard_at = 0.0  # monotonic, last message of the process
        self._greeted = False  # it said whose detections will follow
        self._absent = False  # it said that there are none
        self._babbles = False  # it wrote too much that is no message
        self._stuck: set[asyncio.Task[int]] = set()
        self._told: tuple[bool | None, str, str] | None = None
        self._detected: set[str] = set()  # vendors of which devices were told
        self._awaited: set[str] = set()  # vendors whose first detection is not there yet
        self._first = asyncio.Event()
        self._tokens = count(1)
        self._questions: dict[int, tuple[str, asyncio.Future[Sample | None]]] = {}
        self._last_words = ""  # last line of its stderr
        self._logged_since, self._logged = 0.0, 0  # lines of stderr

    async def run(self) -> None:
        """Feed the listener until cancelled; in a task of its own. Leaves no process, but those that cannot be killed.
        What the listener raises comes out here."""
        self._runner = asyncio.current_task()
        delay = FIRST_DELAY
        while True:
            if self._command is None and not any(vendor.present() for vendor in self._vendors):
                self._tell_absent()
                await asyncio.sleep(PRESENCE_PERIODS * self._period)
                continue
            if len(self._stuck) >= MAX_STUCK:
                message = (
                    f"{MAX_STUCK} watchers hang in a driver and cannot be killed; no other is started before one ends"
                )
                self._tell(False, "DriverHangs", message)
                await asyncio.wait(self._stuck, return_when=asyncio.FIRST_COMPLETED)
                continue
            started = time.monotonic()
            end = await self._watch()
            if time.monotonic() - started > HEALTHY_AFTER:
                delay = FIRST_DELAY
            if end.reason == "NoDevices":
                self._tell_absent()
                await asyncio.sleep(PRESENCE_PERIODS * self._period)
                continue
            if end.reason != "Replaced":
                self._tell(False, end.reason, f"{end.message}; another is started in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_DELAY)

    async def first(self, deadline: float) -> bool:
        """Wait until each vendor has answered once, at most `deadline` seconds. Returns whether all have."""
        try:
            async with asyncio.timeout(deadline):
                return await self._first.wait()
        except TimeoutError:
            return False

    async def fresh(self, device: str, deadline: float) -> Sample | None:
        """A look at the device that begins after this call; None if it does not answer in time, or nobody looks.
        The listener gets it, too."""
        token = next(self._tokens)
        answer: asyncio.Future[Sample | None] = asyncio.get_running_loop().create_future()
        if not self._ask(f"sample {device} {token}"):
            return None
        self._questions[token] = device, answer
        try:
            async with asyncio.timeout(deadline):
                return await answer
        except TimeoutError:
            return None
        finally:
            self._questions.pop(token, None)

    def detect(self) -> None:
        """Have devices looked for at once, not just when next due."""
        self._ask("detect")

    async def close(self) -> None:
        """End `run`, and the watcher with it. Does nothing if it has ended."""
        if self._runner is not None and not self._runner.done():
            self._runner.cancel()
            await asyncio.wait([self._runner], timeout=2 * KILL_DEADLINE)

    # The process

    async def _watch(self) -> _End:
        """Run one watcher to its end."""
        self._greeted, self._absent, self._babbles, self._last_words = False, False, False, ""
        self._heard_at = time.monotonic()
        try:
            process = await asyncio.create_subprocess_exec(
                *(self._command or self._watcher()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=MAX_LINE,
                cwd="/",
                env=_environment(),
                start_new_session=True,  # ^C on a terminal is meant for the daemon
            )
        except OSError as error:
            return _End("NotStartable", f"the watcher cannot be started: {error.strerror or error}")
        exited = asyncio.create_task(process.wait())
        self._process = process
        try:
            async with asyncio.TaskGroup() as group:
                readers = [group.create_task(self._read(process)), group.create_task(self._log(process))]
                silent = await self._silent(exited)
                self._process = None
                await self._kill(process, exited)
                if exited.done():  # last words may still be in the pipes; a child that it left may hold these open
                    await asyncio.wait(readers, timeout=KILL_DEADLINE)
                for reader in readers:
                    reader.cancel()
            return self._end(process, silent=silent)
        finally:
            self._process = None
            for _, answer in self._questions.values():
                if not answer.done():
                    answer.set_result(None)
            await self._kill(process, exited)

    def _watcher(self) -> Sequence[str]:
        period, parent = str(self._period), str(os.getpid())
        return sys.executable, "-P", "-m", "agent.hardware.watcher", "--period", period, "--parent", parent

    async def _silent(self, exited: asyncio.Task[int]) -> bool:
        """Wait until the process ends, or says nothing for too long: then true."""
        while (left := self._heard_at + self._silence - time.monotonic()) > 0:
            await asyncio.wait([exited], timeout=left)
            if exited.done():
                return False
        return True

    async def _kill(self, process: asyncio.subprocess.Process, exited: asyncio.Task[int]) -> None:
        if exited.done() or exited in self._stuck:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.wait([exited], timeout=KILL_DEADLINE)
        if not exited.done():
            self._stuck.add(exited)
            exited.add_done_callback(self._stuck.discard)

    def _end(self, process: asyncio.subprocess.Process, *, silent: bool) -> _End:
        code, words = process.returncode, f": {self._last_words}" if self._last_words else ""
        if silent:
            left = "" if code is not None else f", and process {process.pid} hangs in a driver and cannot be killed"
            return _End("Restarting", f"the watcher said nothing for {self._silence:g} s{left}")
        if self._babbles:
            return _End("Restarting", "the watcher wrote what are no messages")
        if code == 0 and self._absent:
            return _End("NoDevices")
        if code == EXIT_REPLACE:
            return _End("Replaced")
        ended = f"was killed by {_signal(-code)}" if code is not None and code < 0 else f"ended with exit status {code}"
        if not self._greeted:
            return _End("NotStartable", f"the watcher {ended} before it said anything{words}")
        return _End("Restarting", f"the watcher {ended}{words}")

    # What it says

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        malformed = 0
        async for line in _lines(process.stdout):
            if (message := _decode(line)) is not None:
                self._heard_at = time.monotonic()
                self._take(message)
                continue
            if not malformed:
                _log.warning("the watcher wrote what is no message; further such lines are counted", line=_text(line))
            malformed += 1
            self.malformed += 1
            if malformed == MAX_MALFORMED:
                self._babbles = True
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return

    async def _log(self, process: asyncio.subprocess.Process) -> None:
        async for line in _lines(process.stderr):
            if not (words := _text(line)):
                continue
            self._last_words = words
            if (now := time.monotonic()) - self._logged_since > 60:
                self._logged_since, self._logged = now, 0
            self._logged += 1
            if self._logged <= LOG_LINES:
                _log.warning("watcher", line=words)

    def _take(self, message: Message) -> None:
        if message.vendors is not None:
            self._greet(message.vendors)
        if message.detected is not None:
            self._detected.add(message.detected.vendor)
            self._listener.detected(message.detected)
            self._awaited.discard(message.detected.vendor)
            if not self._awaited:
                self._first.set()
        if message.sampled is not None:
            self._listener.sampled(message.sampled)
            self._answer(message.sampled, message.token)
        if message.fault is not None:
            self._listener.fault(message.fault)

    def _greet(self, names: tuple[str, ...]) -> None:
        self._greeted, self._absent, self._awaited = True, not names, set(names)
        self._tell_gone(self._detected.difference(names))
        if names:
            self._tell(True, "Watching", f"devices of {', '.join(names)} are watched")

    def _answer(self, sample: Sample, token: int) -> None:
        answered = sample.problem is None or sample.problem.code != "NoAnswer"
        for asked, (device, answer) in self._questions.items():
            if asked <= token and device == sample.device and not answer.done():
                answer.set_result(sample if answered else None)

    def _ask(self, question: str) -> bool:
        """Whether there is a watcher that may read it."""
        stdin = self._process.stdin if self._process is not None else None
        if stdin is None or stdin.transport.get_write_buffer_size() > MAX_QUESTIONS:
            return False
        stdin.write(question.encode() + b"\n")
        return True

    # What the listener is told

    def _tell(self, status: bool | None, reason: str, message: str) -> None:
        if self._told != (status, reason, message):
            self._told = status, reason, message
            self._listener.watcher(status, reason, message)

    def _tell_absent(self) -> None:
        self._tell_gone(set(self._detected))
        names = ", ".join(vendor.name for vendor in self._vendors)
        self._tell(None, "NoDevices", f"no hardware and no driver of {names} is here")
        self._first.set()

    def _tell_gone(self, names: set[str]) -> None:
        for name in names:
            self._detected.discard(name)
            self._listener.detected(Detection(name))


def _environment() -> dict[str, str]:
    """The daemon's own: it may say where a driver's library is."""
    path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[bytes]:
    """Until its end. Of one that is too long, an empty one is left."""
    assert stream is not None
    for number in count(1):
        try:
            if not (line := await stream.readline()):
                return
            yield line
        except ValueError:
            yield b""
        if number % LINES_AT_ONCE == 0:  # reading what has come already gives nobody else a turn
            await asyncio.sleep(0)


def _text(line: bytes) -> str:
    return line[:LOG_WIDTH].decode("utf-8", "replace").strip()


@cache
def _messages() -> TypeAdapter[Message]:
    """Made at the first message: it takes 8 ms, and a node without devices has none. Faster than plain Python."""
    return TypeAdapter(Message)


def _decode(line: bytes) -> Message | None:
    try:
        return _messages().validate_json(line)
    except ValidationError:
        return None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
