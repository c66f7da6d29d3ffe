"""Files of the kernel, read as the kernel gives them."""

from __future__ import annotations

import array
import fcntl
import os
import termios
import threading
import time
from pathlib import Path

from agent.runtimes import procfs


def test_a_file_that_comes_in_pieces_is_read_to_its_end(tmp_path: Path) -> None:
    """As lists do (mountinfo, cgroup.procs): each read brings whole lines, at most a page of them."""
    os.mkfifo(tmp_path / "list")

    def write() -> None:
        writer = os.open(tmp_path / "list", os.O_WRONLY)
        os.write(writer, b"first\n")
        left = array.array("i", [1])
        while left[0]:  # it was read
            time.sleep(0.01)
            fcntl.ioctl(writer, termios.FIONREAD, left)
        os.write(writer, b"second\n")
        os.close(writer)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()

    assert procfs.read(str(tmp_path / "list")) == b"first\nsecond\n"
    thread.join()


def test_what_is_gone_is_none(tmp_path: Path) -> None:
    assert procfs.read(str(tmp_path / "none")) is None
