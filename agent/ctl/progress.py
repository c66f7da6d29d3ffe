"""Progress of a wait, on stderr: one moving line on a terminal, one line for each change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from agent.ctl import rows
from agent.ctl.output import size
from agent.ctl.values import short
from agent.ctl.watching import Report
from agent.v1 import agent_pb2 as pb

#: Cells of the bar: with names and sizes the line stays below 80 columns.
WIDTH = 24


@contextmanager
def reporting(*, quiet: bool = False, asked: str = "") -> Iterator[Report]:
    """A function to call with each state of the deployment that is waited for. `asked`: what was just asked for, of
    which an interrupted wait says that it goes on."""
    try:
        if quiet:
            yield lambda _: None
        elif sys.stderr.isatty():
            with _moving_line() as report:
                yield report
        else:
            yield _Lines()
    except KeyboardInterrupt:
        if asked and not quiet:
            ways = f"`agentctl wait {asked}` waits again, `agentctl delete {asked}` ends it"
            click.echo(f"interrupted; {asked} goes on: {ways}", err=True)
        raise


class _Lines:
    """Writes a line when the phase, its reason or the step changes; bytes alone are no news in a log."""

    def __init__(self) -> None:
        self.told: tuple[object, ...] = ()

    def __call__(self, deployment: pb.Deployment) -> None:
        told = (deployment.name, deployment.phase, deployment.reason, deployment.progress.step)
        if told != self.told:
            self.told = told
            click.echo(_line(deployment), err=True)


def _line(deployment: pb.Deployment) -> str:
    step = rows.progress(deployment)
    why = deployment.message or deployment.reason
    return f"{short(deployment.name)} {rows.phase(deployment)}" + (f" ({step})" if step else "") + f": {why}"


@contextmanager
def _moving_line() -> Iterator[Report]:
    """One line that is drawn over with each state, and gone at the end."""
    import shutil  # noqa: PLC0415  (it imports each kind of compression)

    began = time.monotonic()

    def report(deployment: pb.Deployment) -> None:
        step = deployment.progress
        told = f"{short(deployment.name)} {rows.phase(deployment)} {step.step or deployment.reason}"
        if step.total_bytes:
            done = min(WIDTH, WIDTH * step.done_bytes // step.total_bytes)
            told += f" {'█' * done}{'░' * (WIDTH - done)} {size(step.done_bytes)} of {size(step.total_bytes)}"
        columns = shutil.get_terminal_size().columns - 1
        line = f"{told}  {time.monotonic() - began:.0f}s"[:columns]
        click.echo(f"\r\x1b[K{line}", nl=False, err=True)

    try:
        yield report
    finally:
        click.echo("\r\x1b[K", nl=False, err=True)
