"""The root of agentctl: which commands there are, and the one place where failures become words and exit codes.

A command's module is imported when it is called, so that `agentctl status` does not pay for the others.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

from agent import __version__
from agent.ctl import options
from agent.ctl.app import App
from agent.ctl.exits import Exit
from agent.ctl.failures import Usage, report, wants_json
from agent.errors import AgentError, FailedPrecondition

#: Command -> module in agent.ctl.commands, in the order of the help: look, do, ask why, the rest.
COMMANDS: Final[dict[str, str]] = {
    "status": "status",
    "serve": "serve",
    "apply": "apply",
    "plan": "plan",
    "fit": "fit",
    "node": "node",
    "devices": "devices",
    "doctor": "doctor",
    "ledger": "ledger",
    "artifacts": "artifacts",
    "get": "get",
    "describe": "describe",
    "delete": "lifecycle",
    "restart": "lifecycle",
    "stop": "lifecycle",
    "start": "lifecycle",
    "logs": "logs",
    "events": "events",
    "wait": "wait",
    "config": "config",
    "version": "version",
    "completion": "completion",
}


class Root(click.Group):
    """Finds commands when they are asked for, and turns every failure into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"agent.ctl.commands.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if near := _near(args[0]):
                raise click.UsageError(f"{error.message} Did you mean {near}?", ctx) from error
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, where a reader that went away can still be told from a fault
        except FailedPrecondition as error:
            from agent.ctl.versions import explained  # noqa: PLC0415  (only failures need it)

            raise explained(error, ctx.ensure_object(App)) from error
        except BrokenPipeError:
            # Python flushes stdout once more at its end, and would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(Exit.BROKEN_PIPE)
        return result

    def main(  # type: ignore[override]  # click's has two more by position, which nobody gives so
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        words = list(sys.argv[1:] if args is None else args)
        sys.exit(self._run(words, prog_name, {**extra, "standalone_mode": False}))

    def _run(self, words: list[str], prog_name: str | None, extra: dict[str, Any]) -> Exit:
        as_json = wants_json(words)
        if options.COMPLETE in os.environ:
            importlib.import_module("agent.ctl.bash")
        try:
            return Exit(super().main(words, prog_name, **extra) or Exit.OK)
        except (click.Abort, KeyboardInterrupt):
            return Exit.INTERRUPTED
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            return Exit.USAGE
        except Exception as error:  # noqa: BLE001  (the outermost place: a person gets a sentence, not a traceback)
            return report(_told(error), as_json=as_json)


def _near(word: str) -> str:
    """The command that was meant: the only one that begins so, or one that is spelled almost so."""
    import difflib  # noqa: PLC0415  (only a mistyped command needs it)

    longer = [name for name in COMMANDS if name.startswith(word)]
    near = longer if len(longer) == 1 else difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.7)
    return near[0] if near else ""


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"agentctl {__version__}")
        ctx.exit()


@options.with_help
@click.group(cls=Root)
@options.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version of agentctl and exit; the command `version` also asks the daemon.",
)
@options.socket
@options.call_timeout
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Serve models on this node, and see how they are.

    Works without any option when agentd runs for this user or for the system.

    Example:
      agentctl serve ./SmolLM2-135M-Instruct.Q4_1.gguf
      agentctl status
    """
    ctx.call_on_close(ctx.ensure_object(App).close)
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def main() -> None:
    """The entry point `agentctl`."""
    try:
        cli.main(prog_name="agentctl")
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # a reader that went away, or a full disk, was told of already
                stream.flush()
        # Python's own end takes milliseconds more, and gRPC's threads now and then complain during it.
        os._exit(int(end.code or 0))


def _told(error: Exception) -> AgentError:
    """Any error as one that can be reported."""
    if isinstance(error, AgentError):
        return error
    told: AgentError
    if isinstance(error, click.ClickException):
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "agentctl"
        told = Usage(error.format_message(), hint=f"{path} --help")
    else:
        hint = "AGENTCTL_DEBUG=1 shows where; please report it"
        told = AgentError(f"a fault in agentctl: {type(error).__name__}: {error}", hint=hint)
    told.__cause__ = error
    return told
