"""What is asked of a Unix socket before it is used: whether a path can be one's, and whether somebody listens there."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

from agent.errors import FieldViolation, InvalidArgument

MAX_PATH_BYTES = 107  # sockaddr_un.sun_path has 108 bytes, one of them for the final NUL
PROBE_SECONDS = 1.0  # connecting to a local socket takes microseconds; a full backlog blocks


def listens(path: Path) -> bool:
    """Whether somebody listens at the socket. Raises OSError for all that connecting meets but a refusal."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except (TimeoutError, BlockingIOError):
            return True  # the backlog is full: a listener that hangs
    return True


def check_length(path: Path, field: str) -> None:
    """Raises InvalidArgument for `field` if no socket can have this path."""
    size = len(os.fsencode(path))
    if size > MAX_PATH_BYTES:
        rule = f"has {size} bytes; a Unix socket's path may have {MAX_PATH_BYTES}: choose a shorter directory"
        raise InvalidArgument(f"{field} {rule}: {path}", violations=(FieldViolation(field, rule),))
