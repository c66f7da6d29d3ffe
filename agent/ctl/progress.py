"""Progress of a wait, on stderr: one moving line on a terminal, one line for each change elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from agent.ctl import rows
from agent.ctl.output import size
from agent.ctl.values import short
from agent.ctl.watching import Report
from agent.v1 import agent_pb2 as pb


@contextmanager
def reporting(*, quiet: bool = False) -> Iterator[Report]:
    """A function to call with each state of the deployment that is waited for."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _moving_line() as report:
            yield report
    else:
        yield _Lines()


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
    from rich.console import Console  # noqa: PLC0415  (75 ms that only a wait on a terminal pays)
    from rich.markup import escape  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[counted]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("asking", total=None, counted="")

        def report(deployment: pb.Deployment) -> None:
            step = deployment.progress
            told = f"{short(deployment.name)} {rows.phase(deployment)} {step.step or deployment.reason}"
            counted = f"{size(step.done_bytes)} of {size(step.total_bytes)}" if step.total_bytes else ""
            bar.update(
                task,
                description=escape(told),
                total=step.total_bytes or None,
                completed=step.done_bytes,
                counted=counted,
            )

        yield report
