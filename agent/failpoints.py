"""Named places at which a test may make the daemon die, fail or wait: crash-safety is proved, not claimed.

`AGENTD_FAILPOINTS="after-intent=kill@2,store-write=error"`: the second time that `after-intent` is reached the
daemon kills itself; every `store-write` raises. Unset (always, in production) a point costs one dict look-up.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass


class FailPointError(OSError):
    """What an `error` fail point raises: it looks like the operating system refusing."""


@dataclass(slots=True)
class _Point:
    action: str
    nth: int  # fires at this pass; 0: at every one
    passes: int = 0


def _parse(text: str) -> dict[str, _Point]:
    points = {}
    for entry in filter(None, text.split(",")):
        name, _, rest = entry.partition("=")
        action, _, nth = rest.partition("@")
        if action not in {"kill", "error"}:
            raise ValueError(f"AGENTD_FAILPOINTS: {entry!r}: the action must be `kill` or `error`")
        points[name] = _Point(action, int(nth or 0))
    return points


_POINTS = _parse(os.environ.get("AGENTD_FAILPOINTS", ""))


def hit(name: str) -> None:
    """Pass the point `name`. Raises `FailPointError`, or does not return, when a test armed it."""
    point = _POINTS.get(name)
    if point is None:
        return
    point.passes += 1
    if point.nth not in (0, point.passes):
        return
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise FailPointError(f"fail point {name}")
