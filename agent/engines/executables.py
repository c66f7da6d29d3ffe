"""Finding an engine's native executable, and asking it about itself: once, and never for longer than a deadline."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from agent.engines.base import DEVICE_VARIABLES, Located

#: Seconds for an answer. A large binary on a cold network disk needs some; one that hangs must not hold planning up.
DEADLINE = 10.0
#: Seconds for which "no device" is believed while device files are there: the driver may have been sick.
RECHECK = 60.0
#: Seconds for a list of options: vLLM imports PyTorch for it.
LIST_DEADLINE = 180.0
#: An answer with fewer is an error message.
FEWEST_OPTIONS = 10
#: Device files of accelerators, as the kernel drivers of NVIDIA, AMD and Intel make them.
DEVICE_FILES = ("nvidia*", "kfd", "dri/renderD*")

#: The first line of a script that pip wrote, or what it writes where the path is too long for one.
_SHEBANG = re.compile(rb"#!\s*(?:/bin/sh\s+'''exec' \"?)?([^\s\"]*python[\w.]*)")

#: What was printed and when (monotonic seconds), by command and by what the answer depends on.
_answers: dict[tuple[tuple[str, ...], tuple[object, ...]], tuple[str, float]] = {}
#: Questions for options that are on their way.
_asking: dict[tuple[tuple[str, ...], tuple[object, ...]], threading.Thread] = {}
_starting = threading.Lock()  # two deployments of a new node ask at the same time
_OPTION = re.compile(r"(?<![\w-])--?[A-Za-z](?:[\w.-]*\w)?")
#: Processes that KILL did not end, by executable: they hang in a driver, and so would the next one.
_stuck: dict[str, subprocess.Popen[bytes]] = {}


def configured_or_on_path(configured: Sequence[str] | None, name: str) -> tuple[tuple[str, ...], str] | None:
    """The argv prefix and where it comes from ("config", "path"). A configured one that is no executable file is
    not replaced by another: the operator's choice is kept, and None says that it cannot run.
    """
    if configured:
        found = shutil.which(configured[0])
        return ((os.path.abspath(found), *configured[1:]), "config") if found else None  # noqa: PTH100 - keeps links
    found = shutil.which(name)
    return ((os.path.abspath(found),), "path") if found else None  # noqa: PTH100 - keeps links


def version(argv: tuple[str, ...], pattern: re.Pattern[str]) -> str:
    """What `argv --version` says, by the pattern's first group; "unknown" where it fails or does not answer in time.

    Remembered until the file changes.
    """
    match = pattern.search(_ask((*argv, "--version"), _fingerprint(argv[0])))
    return match[1].strip() if match else "unknown"


def devices(argv: tuple[str, ...], option: str, has_any: Callable[[str], bool]) -> str:
    """What `argv option` prints about devices; "" where it fails or does not answer in time.

    Remembered until the file or the host's device files change: asking takes memory on every device for a moment. An
    answer without devices is asked for again after a while, where device files are there.
    """
    files = tuple(sorted(str(file) for pattern in DEVICE_FILES for file in Path("/dev").glob(pattern)))
    return _ask((*argv, option), (*_fingerprint(argv[0]), *files), lambda answer: not files or has_any(answer))


def options(located: Located) -> frozenset[str] | None:
    """The options that this very executable knows, as far as it was asked before; None: not known. Takes no time."""
    if located.options is not None or not located.lists:
        return located.options
    answer, _ = _answers.get(_listing(located), ("", 0.0))
    return _spellings(answer)


def learn(located: Located, wait: float) -> frozenset[str] | None:
    """As `options`, after asking where nobody did. Some engines need a minute for it: the question goes on in the
    background when `wait` (seconds) is over, with the lowest priority, and the answer is there the next time.
    """
    key = _listing(located)
    if located.options is None and located.lists and key not in _answers:
        with _starting:
            if key not in _asking:
                _asking[key] = threading.Thread(target=_learn, args=(key,), daemon=True, name="options")
                _asking[key].start()
        _asking[key].join(wait)
    return options(located)


def _learn(key: tuple[tuple[str, ...], tuple[object, ...]]) -> None:
    _answers[key] = _printed(key[0], LIST_DEADLINE, nice=True), time.monotonic()


def _listing(located: Located) -> tuple[tuple[str, ...], tuple[object, ...]]:
    """The version too: an engine below an interpreter changes while that stays."""
    return (*located.argv, *located.lists), (*_fingerprint(located.argv[0]), located.version)


@lru_cache(maxsize=16)
def _spellings(answer: str) -> frozenset[str] | None:
    """None for an answer that is no list of options."""
    found = frozenset(_OPTION.findall(answer))
    return found if len(found) >= FEWEST_OPTIONS else None


def python_of(executable: str) -> str:
    """The Python of a console script; the file itself where it is none, so that a Python may be named as well; "" where
    it cannot be read."""
    try:
        with Path(executable).open("rb") as file:
            head = file.read(512)
    except OSError:
        return ""
    if not head.startswith(b"#!"):
        return executable
    match = _SHEBANG.match(head)
    return match[1].decode(errors="replace") if match else ""


def _fingerprint(path: str) -> tuple[int, ...]:
    try:
        status = Path(path).stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _ask(argv: tuple[str, ...], state: tuple[object, ...], final: Callable[[str], bool] = lambda _: True) -> str:
    """All that it prints, remembered for this `state`; an answer that is not final, for a while only."""
    answer, asked_at = _answers.get((argv, state), ("", -RECHECK))
    if (argv, state) not in _answers or (not final(answer) and time.monotonic() - asked_at >= RECHECK):
        answer = _printed(argv)
        _answers[argv, state] = answer, time.monotonic()
    return answer


def _printed(argv: tuple[str, ...], deadline: float = DEADLINE, *, nice: bool = False) -> str:
    """All that it prints; "" where it cannot run or does not end in time."""
    stuck = _stuck.get(argv[0])
    if stuck is not None and stuck.poll() is None:
        return ""
    # What the agent was started with must not hide devices: an instance gets variables of its own.
    environment = {name: value for name, value in os.environ.items() if name not in DEVICE_VARIABLES}
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except OSError:
        return ""
    try:
        if nice:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, 19)
        return process.communicate(timeout=deadline)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        _end(argv[0], process)
        return ""


def _end(executable: str, process: subprocess.Popen[bytes]) -> None:
    """Kill it with all that it started. One that hangs in the kernel is left behind: waiting could be for ever."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        _stuck[executable] = process
