"""`completion`: scripts that teach a shell to complete agentctl."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from agent.ctl import options


@options.with_help
@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, *, shell: str) -> None:
    """Print the completion script for a shell. Names of deployments are completed, too.

    Examples:
      source <(agentctl completion bash)
      agentctl completion fish > ~/.config/fish/completions/agentctl.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # the choice above names only shells that click knows
    click.echo(kind(ctx.find_root().command, {}, "agentctl", options.COMPLETE).source())
