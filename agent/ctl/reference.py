"""Writes docs/reference/cli.md out of the commands themselves; a test fails where it is not what they say.

python -m agent.ctl.reference
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Final

import click

from agent.ctl.exits import MEANING
from agent.ctl.main import cli

PAGE: Final = Path(__file__).parents[2] / "docs/reference/cli.md"

_INTRODUCTION: Final = """
# agentctl

<!-- Made by `python -m agent.ctl.reference`; do not edit. -->

## Which daemon

The first of these sockets on which somebody listens:

1. `--socket PATH`, or else the variable `AGENTD_SOCKET`; if one of them is given, no other is tried
2. `control.sock` of this user's agentd: in `$XDG_RUNTIME_DIR/llm-node-agent`, or without that variable in
   `~/.local/state/llm-node-agent/run`
3. `control.sock` of the system's agentd: in `/run/llm-node-agent`
4. `readonly.sock` of the two, in the same order, for commands that only look. `plan` is none of them: it opens files
   that the caller names, with the daemon's rights

## Output

Results go to stdout; progress, warnings and errors go to stderr. Colours and moving lines are for terminals only;
`NO_COLOR` turns colours off. `-o` takes `table`, `wide` (more columns where there are more), `json` and `yaml`; `plan`
also draws `svg`.

JSON and YAML are the messages of the API (`proto/agent/v1/agent.proto`) in the proto JSON mapping, with these
differences: fields are named as in the .proto file (`observed_generation`), 64-bit integers are numbers, fields
without presence are always there, and a resource has an `id` beside its `name`: `deployments/chat` has the id `chat`.
Times are RFC 3339, in UTC. A list of resources is an object with one field: `{"deployments": [...]}`.

An error is `error: ` and a sentence, the broken rules one a line, and `hint: ` with what to do next. With `-o json` it
is an object on stderr: `{"error": {"code", "exit", "message", "violations": [{"field", "rule"}], "hint"}}`. For a
failed deployment it has `diagnosis` and `evidence` as well. An `apply` that ends half way prints what it did, too.
`AGENTCTL_DEBUG=1` adds the traceback.

## Completion

    source <(agentctl completion bash)                                       # ~/.bashrc
    source <(agentctl completion zsh)                                        # ~/.zshrc
    agentctl completion fish > ~/.config/fish/completions/agentctl.fish
"""


def page() -> str:
    """The whole page."""
    return "\n".join((_INTRODUCTION.strip(), *_exits(), "", "## Commands", *_commands(cli, "agentctl"))).rstrip() + "\n"


def _exits() -> Iterator[str]:
    yield "\n## Exit codes\n\n| code | meaning |\n| --- | --- |"
    for code, meaning in MEANING.items():
        yield f"| {int(code)} | {meaning} |"


def _commands(command: click.Command, path: str, parent: click.Context | None = None) -> Iterator[str]:
    with click.Context(command, parent=parent, info_name=path.rpartition(" ")[2]) as ctx:
        yield from _section(command, path, ctx)
        if isinstance(command, click.Group):
            for name in command.list_commands(ctx):
                inner = command.get_command(ctx, name)
                assert inner is not None  # it was listed
                yield from _commands(inner, f"{path} {name}", ctx)


def _section(command: click.Command, path: str, ctx: click.Context) -> Iterator[str]:
    yield f"\n### {path}\n\n    {path} {' '.join(command.collect_usage_pieces(ctx))}\n"
    yield _markdown(command.help or "")
    asked = (param for param in command.params if param.name != "help")
    records = filter(None, (param.get_help_record(ctx) for param in asked))
    rows = [record for record in records if record[1]]  # arguments have no text of their own
    if rows:
        yield "\n| option | |\n| --- | --- |"
        for names, text in rows:
            yield f"| `{_cell(names)}` | {_cell(text)} |"


def _markdown(text: str) -> str:
    """Help as Markdown: what click keeps as it is (the examples) becomes code."""
    paragraphs = []
    for paragraph in cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            _, *lines = paragraph.removeprefix("\b\n").splitlines()
            paragraphs.append("\n".join(f"    {line.strip()}" for line in lines))
        else:
            paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Writes the page."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
