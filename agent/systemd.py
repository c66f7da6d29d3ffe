"""Talking to systemd (or to whoever set NOTIFY_SOCKET): readiness, one line of status, the watchdog."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> None:
    """Send e.g. `READY=1`. Does nothing where nobody listens; never blocks."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
        try:
            sender.sendto("\n".join(lines).encode(), address)
        except OSError:
            return  # systemd restarts or is gone; the next line will reach it


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear of us (WatchdogSec), or None."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    return microseconds / 1e6 if microseconds else None
