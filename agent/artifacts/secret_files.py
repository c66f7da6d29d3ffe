"""Reading what holds a key or token: short files of the operator's, on storage that may be dead."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

#: A key or token is short; more than this is a mistaken file.
MAX_BYTES = 64 * 1024
#: Storage that needs longer for one hangs (seconds).
DEADLINE = 5.0

#: Threads that hang in a file: while one does, no second one is sent after it.
_hanging: dict[Path, Thread] = {}


def read(path: Path) -> bytes:
    """What the file holds, a byte more than `MAX_BYTES` at most. Not for the event loop: it waits for storage. Raises
    `OSError`, also where that does not answer."""
    answers: SimpleQueue[bytes | OSError] = SimpleQueue()

    def work() -> None:
        try:
            answers.put(_content(path))
        except OSError as error:
            answers.put(error)

    silent = TimeoutError(errno.ETIMEDOUT, f"its storage does not answer within {DEADLINE:g} s")
    if (last := _hanging.get(path)) is not None and last.is_alive():
        raise silent
    thread = Thread(target=work, name=f"secret {path}", daemon=True)
    thread.start()
    try:
        answer = answers.get(timeout=DEADLINE)
    except Empty:
        _hanging[path] = thread
        raise silent from None
    if isinstance(answer, OSError):
        raise answer
    return answer


def _content(path: Path) -> bytes:
    # Without O_NONBLOCK, to open a pipe waits for who writes into it.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.read(MAX_BYTES + 1)
