"""Options and arguments that several commands share, and the types that read them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import click
from click import shell_completion

from agent.ctl.app import App
from agent.ctl.completion import artifact_references, deployment_names, device_ids, hardware_models, model_names
from agent.ctl.output import Format

Command = TypeVar("Command", bound=Callable[..., Any])
Documented = TypeVar("Documented", bound=click.Command)

#: The variable by which a shell asks for completions; click makes it of the command's name.
COMPLETE: Final = "_AGENTCTL_COMPLETE"

#: What `get` shows, beside single deployments.
KINDS: Final = ("deployments", "instances", "events", "artifacts", "devices", "node")

#: What can be done to a device, beside looking at it.
DEVICE_ACTIONS: Final = ("quarantine", "release")

_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType[float]):
    """Seconds, as a number or with a unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", str(value))
        seconds = float(found[1]) * _UNITS[found[2] or ""] if found else 0.0
        if seconds <= 0:
            self.fail(f"{value!r} is not a positive number of seconds, nor one with a unit: 90s, 5m, 1h", param, ctx)
        return seconds


DURATION: Final = Duration()


class Word(click.types.StringParamType):
    """Any text, of which the shell completes what is known here. What is valid is the daemon's to say."""

    def __init__(self, *known: str) -> None:
        self.known = known

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[shell_completion.CompletionItem]:
        return [shell_completion.CompletionItem(one) for one in self.known if one.startswith(incomplete.lower())]


class Option(click.Option):
    """Its help is taken as it is: click cleans one with `inspect`, whose import is a tenth of a command's start."""

    def __init__(self, *declarations: Any, **settings: Any) -> None:
        text = settings.pop("help", None)
        super().__init__(*declarations, **settings)
        self.help = text


option = partial(click.option, cls=Option)


def with_help(command: Documented) -> Documented:
    """Adds --help, and keeps the lines of the examples in it as they are: click would make a paragraph of them."""
    command.help = re.sub(r"\n\n( *)(?=Example)", "\n\n\\1\b\n\\1", command.help or "")
    command.add_help_option = False  # click's own is no `Option` of ours, and its text is looked for in catalogs
    text = "Show this message and exit."
    command.params.append(
        Option(["-h", "--help"], is_flag=True, is_eager=True, expose_value=False, callback=_show_help, help=text)
    )
    return command


def _show_help(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def connects(*, waits: bool = False) -> Callable[[Command], Command]:
    """Adds --socket, and --timeout for each call; commands that wait have a --timeout of their own."""

    def decorate(command: Command) -> Command:
        if not waits:
            command = call_timeout(command)
        return socket(command)

    return decorate


def socket(command: Command) -> Command:
    return option(
        "--socket",
        metavar="PATH",
        expose_value=False,
        callback=_store("socket"),
        help="Socket of the daemon. Default: AGENTD_SOCKET, then this user's daemon, then the system's.",
    )(command)


def call_timeout(command: Command) -> Command:
    return option(
        "--timeout",
        type=DURATION,
        metavar="DURATION",
        expose_value=False,
        callback=_store("timeout"),
        help="How long the daemon may take for one answer.  [default: 10s]",
    )(command)


def output(*, wide: bool = True, svg: bool = False) -> Callable[[Command], Command]:
    """Adds -o. `wide=False` for commands whose table has no more columns; they read it as `table`."""
    names = "more columns, " if wide else ""
    picture = ", or a picture" if svg else ""
    return option(
        "-o",
        "--output",
        "form",
        type=click.Choice([one for one in Format if svg or one is not Format.SVG], case_sensitive=False),
        default="table",
        show_default=True,
        help=f"A table for people, {names}or JSON or YAML for programs{picture}.",
    )


def watch(command: Command) -> Command:
    return option("-w", "--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")(command)


def hardware(command: Command) -> Command:
    return option(
        "--hardware",
        metavar="MODEL[:COUNT]|FILE",
        shell_complete=complete_hardware,
        help="Described hardware instead of this node's: h100-sxm:8, or a YAML file.",
    )(command)


def waiting(command: Command) -> Command:
    """Adds --wait and the --timeout that limits it."""
    wait = option("--wait", is_flag=True, help="Return when it is done, or failed.")
    return wait(wait_timeout(command))


def wait_timeout(command: Command) -> Command:
    return option(
        "--timeout",
        type=DURATION,
        metavar="DURATION",
        default="10m",  # a large model on a slow disk loads for minutes; a wait without an end helps nobody
        show_default=True,
        help="How long to wait.",
    )(command)


def name(command: Command) -> Command:
    return click.argument("name", metavar="NAME", shell_complete=complete_names)(command)


def names(command: Command) -> Command:
    return click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_names)(command)


def complete_names(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[shell_completion.CompletionItem]:
    """Names of deployments, without those that are on the line already."""
    taken = ctx.params.get(param.name or "") or ()
    known = deployment_names(ctx.ensure_object(App))
    return [shell_completion.CompletionItem(one) for one in known if one.startswith(incomplete) and one not in taken]


def complete_kinds_and_names(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[shell_completion.CompletionItem]:
    """For `get`: kinds and names first, names after a kind."""
    kinds = () if ctx.params.get(param.name or "") else KINDS
    return [shell_completion.CompletionItem(kind) for kind in kinds if kind.startswith(incomplete)] + complete_names(
        ctx, param, incomplete
    )


def complete_devices(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[shell_completion.CompletionItem]:
    """Ids of devices; where a device may be left out, what else can stand in its place."""
    actions = () if param.required else DEVICE_ACTIONS
    known = (*actions, *device_ids(ctx.ensure_object(App)))
    return [shell_completion.CompletionItem(one) for one in known if one.startswith(incomplete)]


def complete_artifacts(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[shell_completion.CompletionItem]:
    """References of what the cache holds, without those that are on the line already."""
    taken = ctx.params.get(param.name or "") or ()
    known = dict.fromkeys(artifact_references(ctx.ensure_object(App)))
    return [shell_completion.CompletionItem(one) for one in known if one.startswith(incomplete) and one not in taken]


def complete_models(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[shell_completion.CompletionItem]:
    """Names of the catalog; files, where none begins so."""
    known = model_names(ctx.ensure_object(App)) if "/" not in incomplete else []
    found = [shell_completion.CompletionItem(one) for one in known if one.startswith(incomplete.lower())]
    return found or complete_files(ctx, param, incomplete)


def complete_hardware(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[shell_completion.CompletionItem]:
    """GPUs that can be described by their name; files, where none begins so."""
    found = [shell_completion.CompletionItem(one) for one in hardware_models() if one.startswith(incomplete.lower())]
    return found or complete_files(ctx, param, incomplete)


def complete_files(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[shell_completion.CompletionItem]:
    return [shell_completion.CompletionItem(incomplete, type="file")]


def _store(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """A callback that keeps an option in the App; the one given with the command wins over the one before it."""

    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(ctx.ensure_object(App), attribute, value)

    return callback
