"""`plan`: what would be done, within which memory, and why, without doing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import click

from agent.ctl import options, plans
from agent.ctl.app import App
from agent.ctl.bars import bars
from agent.ctl.comparing import Candidate, side_by_side
from agent.ctl.hardware import described
from agent.ctl.output import Format, emit
from agent.ctl.specs import Named, build, by_catalog, read_all, spec_flags
from agent.ctl.svg import drawing
from agent.ctl.values import plain
from agent.errors import FailedPrecondition


@options.with_help
@click.command()
@click.argument("models", metavar="[MODEL|FILE]...", nargs=-1, shell_complete=options.complete_models)
@options.option(
    "-f",
    "--file",
    metavar="FILE",
    shell_complete=options.complete_files,
    help="A spec instead of MODEL; - is standard input.",
)
@spec_flags
@options.hardware
@options.option("--compare", is_flag=True, help="Two or more, side by side in one table.")
@options.option("--explain", is_flag=True, help="Also each term and reason, and the alternatives that were rejected.")
@options.output(wide=False, svg=True)
@options.connects()
@click.pass_obj
def plan(
    app: App,
    /,
    *,
    models: tuple[str, ...],
    file: str | None,
    sets: tuple[str, ...],
    form: Format,
    **flags: Any,
) -> None:
    """Show what would be done for MODEL or a spec, without doing it.

    MODEL is a path, a reference with a scheme, a repository of the hub (owner/name, and :quantization behind it), or a
    name of the catalog. A FILE of specs ends in .yaml. With --compare it fails only if none of them fits.

    Examples:
      agentctl plan /models/chat.gguf --max-model-len 8192
      agentctl plan qwen3-8b --hardware rtx4090 --explain
      agentctl plan -f chat.yaml --hardware h100-sxm:8 -o svg
      agentctl plan --compare qwen3-8b qwen3-14b chat.yaml --concurrency 16
    """
    hardware, compare, explain = (flags.pop(name) for name in ("hardware", "compare", "explain"))
    _check(models, file, changed=bool(sets) or any(value is not None for value in flags.values()))
    machine = None if hardware is None else described(hardware)
    named = by_catalog(app.writer)
    asked = list(_asked(models or (file or "-",), flags, sets, named, given=file is not None))
    if compare and len(asked) < 2:
        raise click.UsageError("--compare needs two or more")
    client = app.writer()  # planning opens the files that the caller names: not for those who may only look
    found = [Candidate(title, client.plan_deployment(spec, hardware=machine)) for title, spec in asked]
    if form is Format.SVG:
        click.echo(_drawn(found, hardware), nl=False)
    elif not form.for_people:
        data = [plain(one.answer) for one in found]
        emit(data[0] if len(data) == 1 else {"plans": data}, form)
    else:
        if hardware is not None and any(one.plan for one in found):
            click.echo(f"for described hardware, not for this node: {hardware}\n")
        click.echo(side_by_side(found)) if compare else _tell(found, explain=explain)
    refused = [(one.answer.refusal, spec) for one, (_, spec) in zip(found, asked, strict=True) if one.plan is None]
    if refused and (not compare or len(refused) == len(found)):
        refusal, spec = refused[0]
        raise FailedPrecondition(f"{spec.get('name')}: {refusal.code}: {refusal.message}", hint=refusal.hint)


def _check(models: tuple[str, ...], file: str | None, *, changed: bool) -> None:
    if bool(models) == (file is not None):
        raise click.UsageError("give either MODEL or --file")
    if changed and all(map(_is_file, models)):
        raise click.UsageError("with a file the spec comes from the file; flags that change it go with MODEL")


def _is_file(argument: str) -> bool:
    return argument.endswith((".yaml", ".yml"))


def _asked(
    arguments: tuple[str, ...], flags: dict[str, Any], sets: tuple[str, ...], named: Named, *, given: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each spec is called here, and the spec. `given`: the argument is a file, whatever its name."""
    for argument in arguments:
        if given or _is_file(argument):
            yield from ((str(one.spec.get("name", "")), one.spec) for one in read_all([argument]))
        else:
            yield argument, build(argument, flags, sets, named)


def _tell(found: Sequence[Candidate], *, explain: bool) -> None:
    """Plans, and refusals as far as more than one sentence is to be said of them."""
    for one in found:
        text = plans.text(one.answer, explain=explain) if one.plan else plans.refusal(one.answer)
        if text:
            click.echo(text + "\n" * (len(found) > 1))


def _drawn(found: Sequence[Candidate], hardware: str | None) -> str:
    """The memory of all plans as one drawing."""
    shown = []
    for one in found:
        if (plan := one.plan) is not None:
            mark = f"{one.title}: " if len(found) > 1 else ""
            shown += [replace(bar, title=mark + bar.title) for bar in bars(plan, one.answer.pools)]
    plan = found[0].plan
    heading = "Memory" if plan is None or len(found) > 1 else f"{plan.variant.source} on {plan.engine}"
    return drawing(heading + (f", {hardware}" if hardware else ""), shown)
