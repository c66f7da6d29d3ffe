"""`fit`: what of the catalog this node can serve, best first."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import click

from agent.ctl import options
from agent.ctl.app import App
from agent.ctl.fitting import COLUMNS, best_first, fits
from agent.ctl.hardware import described
from agent.ctl.output import Format, emit, table
from agent.ctl.specs import TASK, WORKLOAD, assigned, with_flags
from agent.ctl.values import plain
from agent.v1 import agent_pb2 as pb

QUIET_SECONDS: Final = 1.0  # what is done sooner needs no word of it


def _flags(command: Any) -> Any:
    return with_flags((TASK, *WORKLOAD), command)


@options.with_help
@click.command()
@_flags
@options.hardware
@options.option("--all", "everything", is_flag=True, help="Also what does not fit, the nearest to it first.")
@options.output()
@options.connects()
@click.pass_obj
def fit(app: App, /, *, everything: bool, hardware: str | None, form: Format, **flags: Any) -> None:
    """Show which models of the catalog fit this node, best first.

    Whole on devices comes before partly, and that before the CPU; of these the larger model first. REQUESTS is how many
    requests of CONTEXT tokens each the cache holds at the same time. Without --task each model is planned for its own.

    Examples:
      agentctl fit
      agentctl fit --hardware rtx4090 --task chat --context 16384
      agentctl fit --hardware h100-sxm:8 --concurrency 64 --all -o wide
    """
    machine = None if hardware is None else described(hardware)
    stream = app.reader().fit_catalog(assigned({}, flags), hardware=machine)
    found = best_first(_shown(stream, quiet=not form.for_people))
    shown = [one for one in found if everything or fits(one)]
    if not form.for_people:
        emit({"models": [plain(one) for one in shown]}, form)
        return
    if hardware is not None and shown:
        click.echo(f"for described hardware, not for this node: {hardware}\n")
    if shown:
        click.echo(table(COLUMNS, shown, wide=form is Format.WIDE))
    if len(shown) < len(found):
        rest = f"{len(found) - len(shown)} of {len(found)} models do not fit"
        click.echo(f"{rest}; --all shows them, `agentctl plan MODEL` says why", err=True)


def _shown(stream: Iterable[pb.FitCatalogResponse], *, quiet: bool) -> Iterator[pb.FitCatalogResponse]:
    """The same, with progress on stderr: a moving line on a terminal, and one line elsewhere."""
    began, told = time.monotonic(), False
    moving = sys.stderr.isatty()
    for one in stream:
        yield one
        if not quiet and time.monotonic() - began > QUIET_SECONDS and (moving or not told):
            told = True
            line = f"planning: {one.number} of {one.count} models"
            click.echo(f"\r\x1b[K{line}" if moving else line, nl=not moving, err=True)
    if told and moving:
        click.echo("\r\x1b[K", nl=False, err=True)
