"""Showing something once, or again and again as long as somebody looks (`--watch`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Final, Generic, NoReturn, TypeVar

import click

from agent.ctl.output import Format, emit
from agent.errors import Unavailable
from agent.frozen import frozen

Answer = TypeVar("Answer")

REFRESH_SECONDS: Final = 1.0  # ages are shown in seconds


@frozen
class View(Generic[Answer]):
    """How to ask for something, and how an answer looks to people and to programs."""

    ask: Callable[[], Answer]
    text: Callable[[Answer], str]
    data: Callable[[Answer], Any]


def show(view: View[Answer], answer: Answer, form: Format) -> None:
    """Prints one answer."""
    if form.for_people:
        click.echo(view.text(answer))
    else:
        emit(view.data(answer), form)


def refresh(view: View[Answer], form: Format) -> NoReturn:
    """On a terminal the screen is drawn over; elsewhere an answer is printed when it differs from the one before."""
    before, screen = None, sys.stdout.isatty() and form.for_people
    while True:
        try:
            answer = view.ask()
        except Unavailable as error:  # a restarting daemon comes back, and whoever watches wants to see it
            click.echo(f"{error.message.splitlines()[0]}; trying again", err=True)
            before = None
        else:
            if screen:
                lines = view.text(answer).splitlines()
                click.echo("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J", nl=False)
            elif answer != before:
                show(view, answer, form)
            before = answer
        time.sleep(REFRESH_SECONDS)
