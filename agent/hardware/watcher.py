"""`python -m agent.hardware.watcher`: looks at the devices and tells on stdout (`agent.hardware.messages`).

A process of its own, because calls into a driver may hang or crash. Each such call is made on a thread of its own; the
main thread asks, is answered and writes: it alone owns all state, and calls no driver. So a hanging device costs its
own thread and no other device's samples, and a hanging process falls silent: the daemon replaces it.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Generic, TypeVar

from agent.hardware import vendors
from agent.hardware.base import Vendor
from agent.hardware.inventory import Detection, Fault, Problem, Sample
from agent.hardware.messages import EXIT_REPLACE, PRESENCE_PERIODS, Message, encode

_T = TypeVar("_T")
#: Hands work over to the main thread.
_Post = Callable[[Callable[[], None]], None]

#: Seconds that one look at a device may take. A healthy one answers within milliseconds.
SAMPLE_DEADLINE = 2.0
#: Seconds that a detection may take. Without persistence mode, a driver wakes the GPUs at the first call: seconds each.
DETECT_DEADLINE = 10.0
#: Seconds between detections while all is well. What is lost or was sliced shows in the next sample, which brings a
#: detection at once; this one finds what no sample shows: a device that never was here. It costs as much as several
#: samples. While a device is missing or anything is wrong, there is one each period, so that its return is seen.
DETECT_SECONDS = 60.0
#: Least seconds between the end of a detection and the next one, unless the period is shorter.
DETECT_PAUSE = 1.0
#: Seconds that a driver is listened to for what it tells by itself, before it is asked again.
FAULTS_SECONDS = 10.0
#: Seconds after which a process whose library does not fit the driver is replaced: only a new one loads a new library.
REPLACE_SECONDS = 60.0


def main() -> int:
    """Watch until stdin ends. Returns 0 where there is nothing to watch."""
    faulthandler.enable(all_threads=False)  # a driver that crashes this process says where
    parser = argparse.ArgumentParser(prog="python -m agent.hardware.watcher", description="Watch the devices.")
    parser.add_argument("--period", type=float, required=True, metavar="SECONDS", help="time between samples")
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this process, which started it, ends")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        _end_with(arguments.parent)
    # What a library prints must not get between the messages.
    output = os.dup(1)
    os.dup2(2, 1)
    watcher = Watcher(arguments.period, output)
    threading.Thread(target=_obey, args=(watcher,), daemon=True).start()
    return watcher.run()


class _Call(Generic[_T]):
    """A call that may hang, made on a thread of its own whenever asked for. For use by the main thread only."""

    def __init__(self, work: Callable[[], _T], done: Callable[[_T], None], post: _Post) -> None:
        """`done` gets each result, on the main thread."""
        self.asked_at: float | None = None  # monotonic; None: idle
        self.late = False  # it was said that there is no answer
        self.took = 0.0  # seconds, the last time
        self._work = work
        self._done = done
        self._post = post
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self) -> None:
        self.asked_at = time.monotonic()
        self._orders.put(True)

    def end(self) -> None:
        self._orders.put(False)

    def overdue(self, deadline: float) -> float:
        """When (monotonic) to say that there is no answer; infinite if idle, or if it was said."""
        return float("inf") if self.asked_at is None or self.late else self.asked_at + deadline

    def _run(self) -> None:
        while self._orders.get():
            self._post(partial(self._answer, self._work()))

    def _answer(self, result: _T) -> None:
        self.took = time.monotonic() - (self.asked_at or 0.0)
        self.asked_at, self.late = None, False
        self._done(result)


class _Device:
    """The samples of one device, and who waits for one."""

    def __init__(self, vendor: Vendor, id: str, done: Callable[[_Device, Sample], None], post: _Post) -> None:
        self.id = id
        self.call = _Call(partial(_sample, vendor, id), partial(done, self), post)
        self.gone = False  # no longer among the devices, but its call hangs
        self.problem = ""  # code, in the last sample
        self.token = 0  # newest question that the look under way answers
        self.wanted = 0  # newest question that only the next look answers

    def ask(self) -> None:
        self.token, self.wanted = self.wanted, 0
        self.call.ask()


class _Part:
    """What is known of one vendor's devices."""

    def __init__(self, vendor: Vendor, pause: float) -> None:
        self.vendor = vendor
        self.pause = pause  # least seconds between detections
        self.detect: _Call[Detection]
        self.faults: _Call[tuple[Fault, ...]]
        self.devices: dict[str, _Device] = {}
        self.detected: Detection | None = None
        self.said: Detection | None = None
        self.due = 0.0  # when (monotonic) to detect again
        self.ended_at = 0.0  # of the last detection, monotonic
        self.again = False  # something changed while one was under way
        self.whole: set[str] = set()  # ids of all GPUs ever seen; slices are left out, they come and go for good

    def soon(self) -> None:
        """Detect as soon as may be."""
        self.again = self.detect.asked_at is not None
        self.due = min(self.due, self.ended_at + self.pause)

    def settled(self) -> bool:
        """Whether all that ever was here is, and is well."""
        if self.detected is None or self.detected.problems or any(device.problem for device in self.devices.values()):
            return False
        return self.whole <= {device.parent or device.id for device in self.detected.devices}


class Watcher:
    """The main thread's work: only `post` may be called on another one."""

    def __init__(self, period: float, output: int) -> None:
        """Writing to `output` may block: then nothing more is asked for, so that nothing piles up."""
        self._period = period
        self._output = output
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._absent = list(vendors())
        self._parts: list[_Part] = []
        self._started_at = self._beat_at = self._presence_at = time.monotonic()
        self._replace_at = float("inf")
        self._silent = True  # nothing was said since the last beat
        self._faults_said: set[tuple[str, str, int]] = set()  # since the last beat

    def post(self, work: Callable[[], None]) -> None:
        self._inbox.put(work)

    def run(self) -> int:
        """Returns the exit status."""
        self._look_for_vendors()
        self._say(Message(vendors=tuple(part.vendor.name for part in self._parts)))
        if not self._parts:
            return 0
        while (now := time.monotonic()) < self._replace_at:
            self._turn(now)
            try:
                work = self._inbox.get(timeout=max(0.0, self._due() - time.monotonic()))
            except queue.Empty:
                continue
            work()
        return EXIT_REPLACE

    def sample(self, id: str, token: int) -> None:
        """Answer with a look that begins after this."""
        for part in self._parts:
            if (device := part.devices.get(id)) is not None and not device.gone:
                device.wanted = token
                if device.call.asked_at is None:
                    device.ask()
                elif device.call.late:
                    self._say_no_sample(device)
                return
        if all(part.detected is not None for part in self._parts):
            problem = Problem("DeviceLost", "it was not there at the last detection", device=id)
        else:
            problem = Problem("NoAnswer", "devices are still looked for", device=id)
        self._say(Message(sampled=Sample(id, time.time(), problem=problem), token=token))

    def detect(self) -> None:
        """Look for devices anew."""
        for part in self._parts:
            part.soon()

    # What time brings

    def _due(self) -> float:
        """When (monotonic) `_turn` has something to do."""
        times = [self._beat_at, self._replace_at]
        for part in self._parts:
            times.append(part.due if part.detect.asked_at is None else part.detect.overdue(DETECT_DEADLINE))
            times += [device.call.overdue(SAMPLE_DEADLINE) for device in part.devices.values()]
        return min(times)

    def _turn(self, now: float) -> None:
        if self._beat_at <= now:
            self._beat_at += self._period
            if self._beat_at <= now:  # this process, or the host, stood still
                self._beat_at = now + self._period
            self._beat()
        for part in self._parts:
            if part.detect.asked_at is None and part.due <= now:
                part.again = False
                part.detect.ask()
            elif part.detect.overdue(DETECT_DEADLINE) <= now:
                part.detect.late = True
                self._say_no_detection(part)
            for device in part.devices.values():
                if device.call.overdue(SAMPLE_DEADLINE) <= now:
                    device.call.late = True
                    self._say_no_sample(device)

    def _beat(self) -> None:
        if self._silent:
            self._say(Message())
        self._silent = True
        self._faults_said.clear()
        if self._presence_at <= self._beat_at:
            self._look_for_vendors()
        for part in self._parts:
            for device in part.devices.values():
                if device.call.asked_at is None:
                    device.ask()
            if part.detected is not None and part.faults.asked_at is None:
                part.faults.ask()

    # What vendors answer

    def _look_for_vendors(self) -> None:
        self._presence_at = self._beat_at + PRESENCE_PERIODS * self._period
        for vendor in [vendor for vendor in self._absent if vendor.present()]:
            self._absent.remove(vendor)
            part = _Part(vendor, min(self._period, DETECT_PAUSE))
            part.detect = _Call(partial(_detect, vendor), partial(self._detected, part), self.post)
            part.faults = _Call(partial(_faults, vendor), partial(self._told, part), self.post)
            self._parts.append(part)

    def _detected(self, part: _Part, found: Detection) -> None:
        had_devices = part.detected is not None and part.detected.devices
        part.detected = found
        self._say_detected(part, found)
        self._watch(part, [device.id for device in found.devices])
        part.whole |= {device.id for device in found.devices if not device.parent}
        part.ended_at = time.monotonic()
        pause = part.pause if part.again else DETECT_SECONDS if part.settled() else self._period
        part.due = part.ended_at + pause
        if part.faults.asked_at is None:
            part.faults.ask()
        if any(problem.code == "VersionMismatch" for problem in found.problems):
            self._replace_at = part.ended_at if had_devices else self._started_at + REPLACE_SECONDS

    def _watch(self, part: _Part, ids: list[str]) -> None:
        """Have a thread for each of these devices, and no other; one that hangs is kept, its device may return."""
        for device in list(part.devices.values()):
            device.gone = device.id not in ids
            self._forget(part, device)
        for id in ids:
            if id not in part.devices:
                part.devices[id] = device = _Device(part.vendor, id, partial(self._sampled, part), self.post)
                device.ask()

    def _forget(self, part: _Part, device: _Device) -> None:
        if device.gone and device.call.asked_at is None:
            device.call.end()
            del part.devices[device.id]

    def _sampled(self, part: _Part, device: _Device, sample: Sample) -> None:
        if device.gone:
            self._forget(part, device)
            return
        self._say(Message(sampled=sample, token=device.token))
        if device.wanted:
            device.ask()
        problem = sample.problem.code if sample.problem else ""
        if problem != device.problem:
            device.problem = problem
            part.soon()

    def _told(self, part: _Part, faults: tuple[Fault, ...]) -> None:
        for fault in faults:
            # A sick GPU may tell the same thousands of times a second.
            if (key := (fault.device, fault.kind, fault.number)) not in self._faults_said:
                self._faults_said.add(key)
                self._say(Message(fault=fault))
                part.soon()
        # A driver that cannot be listened to now returns at once: it is asked again at the next beat.
        if faults or part.faults.took > FAULTS_SECONDS / 2:
            part.faults.ask()

    # What is said

    def _say_detected(self, part: _Part, detection: Detection) -> None:
        if detection != part.said:
            part.said = detection
            self._say(Message(detected=detection))

    def _say_no_detection(self, part: _Part) -> None:
        last = part.detected or Detection(part.vendor.name)
        message = f"the driver did not answer a detection within {DETECT_DEADLINE:g} s"
        problem = Problem("NoAnswer", message, vendor=last.vendor)
        self._say_detected(part, replace(last, problems=(*last.problems, problem)))

    def _say_no_sample(self, device: _Device) -> None:
        if device.gone:
            return
        message = f"the driver did not answer a look at it within {SAMPLE_DEADLINE:g} s"
        sample = Sample(device.id, time.time(), problem=Problem("NoAnswer", message, device=device.id))
        self._say(Message(sampled=sample, token=max(device.token, device.wanted)))
        device.problem, device.token, device.wanted = "NoAnswer", 0, 0

    def _say(self, message: Message) -> None:
        self._silent = False
        left = encode(message)
        while left:
            left = left[os.write(self._output, left) :]


# What runs on the drivers' threads


def _detect(vendor: Vendor) -> Detection:
    def failed(error: str) -> Detection:
        return Detection(vendor.name, problems=(Problem("InternalError", error, vendor=vendor.name),))

    return _guarded(vendor.detect, failed)


def _sample(vendor: Vendor, id: str) -> Sample:
    def failed(error: str) -> Sample:
        return Sample(id, time.time(), problem=Problem("InternalError", error, device=id))

    return _guarded(partial(vendor.sample, id), failed)


def _faults(vendor: Vendor) -> tuple[Fault, ...]:
    return _guarded(partial(vendor.faults, FAULTS_SECONDS), lambda _: ())


def _guarded(work: Callable[[], _T], failed: Callable[[str], _T]) -> _T:
    """A vendor's part raises nothing. If it does, that is a bug; its devices must not fall silent for it."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - the outermost frame of its thread
        sys.excepthook(type(error), error, error.__traceback__)
        return failed(f"{type(error).__name__}: {error}")


# The parent


def _end_with(parent: int) -> None:
    """End when the parent does, however it ends and however this process hangs."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - Linux only

        # PR_SET_PDEATHSIG. It is the thread that started this process whose end counts: the daemon's main one.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(0)


def _obey(watcher: Watcher) -> None:
    """Read commands. At their end this process ends, whatever its other threads hang in."""
    rest = b""
    while data := os.read(0, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            match line.decode("utf-8", "replace").split():
                case ["sample", id, token] if token.isdecimal():
                    watcher.post(partial(watcher.sample, id, int(token)))
                case ["detect"]:
                    watcher.post(watcher.detect)
                case _:
                    sys.stderr.write(f"not a command: {line[:100]!r}\n")
    os._exit(0)


if __name__ == "__main__":
    status = 0
    with contextlib.suppress(BrokenPipeError):  # the daemon is gone
        status = main()
    os._exit(status)  # the interpreter's own end would wait for threads that hang in a driver
