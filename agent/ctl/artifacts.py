"""Artifacts as tables, and how far a pull is: with its rate, and the time that it still takes."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click

from agent.ctl import rows
from agent.ctl.output import Column, age, size
from agent.ctl.progress import WIDTH
from agent.ctl.values import short
from agent.v1 import agent_pb2 as pb

#: Seconds over which a rate is taken: shorter ones jump, longer ones hide that it stands still.
WINDOW: Final = 10.0
#: Where no terminal is, a line is written each time that so much more is there.
STEP_PERCENT: Final = 10

Report = Callable[[pb.PullArtifactResponse], None]


def columns(now: float) -> tuple[Column[pb.Artifact], ...]:
    return (
        Column("REFERENCE", lambda one: one.source),
        Column("ID", lambda one: short(one.name)),
        Column("STATE", state),
        Column("FORMAT", lambda one: f"{one.format} {one.quantization}".strip()),
        Column("SIZE", lambda one: size(one.size_bytes), right=True),
        Column("FILES", lambda one: str(one.file_count or ""), wide=True, right=True),
        Column("PINNED", lambda one: "yes" if one.pinned else ""),
        Column("USED BY", lambda one: ", ".join(map(short, one.used_by))),
        Column("DESIRED BY", lambda one: ", ".join(map(short, one.desired_by))),
        Column("LAST USED", lambda one: rows.since(one.use_time, now)),
        Column("VERIFIED", lambda one: rows.since(one.verify_time, now), wide=True),
        Column("FREES", lambda one: size(one.free_bytes) if one.disk_bytes else "", wide=True, right=True),
        Column("REVISION", lambda one: one.revision[:12], wide=True),
        Column("PATH", lambda one: one.path, wide=True),
        Column("DIGEST", lambda one: one.digest, wide=True),
    )


def state(one: pb.Artifact) -> str:
    """`complete`, `45%` of a partial one, `changed`, `external`."""
    if one.state == pb.ARTIFACT_STATE_PARTIAL and one.size_bytes:
        return f"{min(99, one.disk_bytes * 100 // one.size_bytes)}%"
    word = rows.word(pb.ArtifactState.DESCRIPTOR, one.state).lower()
    return click.style(word, fg="yellow") if one.state == pb.ARTIFACT_STATE_CHANGED else word


def files(one: pb.Artifact) -> str:
    return "1 file" if one.file_count == 1 else f"{one.file_count} files"


def disk(of: pb.CacheDisk) -> str:
    """How full the cache's disk is, and what that means."""
    used = 1 - of.free_bytes / of.total_bytes if of.total_bytes else 0.0
    marks = f"room is made above {of.high:.0%}, down to {of.low:.0%}"
    return f"{of.path}: {used:.0%} of the disk is in use, {size(of.free_bytes)} are free; {marks}"


class Rate:
    """Bytes a second, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, at: float, done: int) -> None:
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # another step, or a file that had to be begun anew
        self._seen.append((at, done))
        while len(self._seen) > 2 and at - self._seen[0][0] > WINDOW:
            self._seen.popleft()

    def per_second(self) -> float:
        """0 while it is not known."""
        (began, first), (ended, last) = (self._seen[0], self._seen[-1]) if self._seen else ((0.0, 0), (0.0, 0))
        return (last - first) / (ended - began) if ended > began else 0.0

    def left(self, total: int) -> float | None:
        """Seconds to the end; None where nobody knows."""
        rate = self.per_second()
        return max(0, total - self._seen[-1][1]) / rate if rate and total else None


def so_far(step: pb.Progress) -> str:
    """`45% of 1.2 GiB`; nothing while the size is not known."""
    total = step.total_bytes
    return f"{min(step.done_bytes, total) * 100 // total}% of {size(total)}" if total else ""


def told(message: pb.PullArtifactResponse, rate: Rate) -> str:
    """`fetching 45% of 1.2 GiB, 85.0 MiB/s, 8s left`."""
    step = message.progress
    if not step.total_bytes:
        return step.step or "asking the source"
    parts = [
        f"{step.step} {min(step.done_bytes, step.total_bytes) * 100 // step.total_bytes}% of {size(step.total_bytes)}"
    ]
    if speed := rate.per_second():
        parts.append(f"{size(round(speed))}/s")
    if (left := rate.left(step.total_bytes)) is not None:
        parts.append(f"{age(left)} left")
    return ", ".join(parts)


@contextmanager
def reporting(*, quiet: bool) -> Iterator[Report]:
    """A function to call with each message of a pull: one moving line on a terminal, a line now and then elsewhere."""
    rate, began = Rate(), time.monotonic()
    moving = sys.stderr.isatty()
    last: tuple[str, str, int] | None = None

    def report(message: pb.PullArtifactResponse) -> None:
        nonlocal last
        step = message.progress
        if step.total_bytes:
            rate.see(time.monotonic(), step.done_bytes)
        if moving:
            _draw(message, rate, time.monotonic() - began)
            return
        percent = step.done_bytes * 100 // step.total_bytes if step.total_bytes else 0
        news = (message.reference, step.step, percent // STEP_PERCENT)
        if news != last:
            last = news
            click.echo(f"{message.reference}: {told(message, rate)}", err=True)

    try:
        yield (lambda _: None) if quiet else report
    finally:
        if moving and not quiet:
            click.echo("\r\x1b[K", nl=False, err=True)


def _draw(message: pb.PullArtifactResponse, rate: Rate, seconds: float) -> None:
    step, bar = message.progress, ""
    if step.total_bytes:
        done = min(WIDTH, WIDTH * step.done_bytes // step.total_bytes)
        bar = f"{'█' * done}{'░' * (WIDTH - done)} "
    columns = shutil.get_terminal_size().columns - 1
    click.echo(f"\r\x1b[K{bar}{told(message, rate)}  {seconds:.0f}s"[: columns + 4], nl=False, err=True)
