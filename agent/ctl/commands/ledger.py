"""`ledger`: what engines were seen to take of memory, beside what formulas say; and carrying that to other nodes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from agent.ctl import options
from agent.ctl.app import App
from agent.ctl.output import Column, Format, emit, size, table
from agent.ctl.rows import seconds, since
from agent.ctl.specs import read
from agent.ctl.values import plain, short
from agent.errors import InvalidArgument
from agent.frozen import frozen
from agent.v1 import agent_pb2 as pb

#: What makes measurements those of other memory: they are shown apart.
_KEY: Final = (
    "imported", "digest", "file_bytes", "architecture", "quantization", "engine", "engine_version", "task",
    "accelerator", "device_models", "layers", "ranks", "kv_cache_dtype", "max_num_seqs", "max_model_len",
    "max_num_batched_tokens", "extra_args",
)  # fmt: skip


@frozen
class Line:
    """One term of equal starts. `newest` is the last of them; the term is that of the start that took the most."""

    newest: pb.Measurement
    term: pb.MeasuredTerm
    starts: int


class Ledger(click.Group):
    """Without a subcommand it is `ls`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["ls", *args]
        return super().parse_args(ctx, args)


@options.with_help
@click.group(cls=Ledger, subcommand_metavar="[ls] | COMMAND [ARGS]...")
def ledger() -> None:
    """Show what engines took of memory, against what formulas say; or carry it to another node.

    Each start of an engine that became ready is measured. The next plan for the same model, engine and devices
    uses what was measured before what a formula says.

    Examples:
      agentctl ledger
      agentctl ledger export experience.json
      agentctl ledger import experience.json
    """


@options.with_help
@ledger.command()
@options.output()
@options.connects()
@click.pass_obj
def ls(app: App, *, form: Format) -> None:
    """Show each term of each kind of start: as the formula predicts it, and as it was measured.

    MEASURED is the most of all starts. ERROR is how far the formula is above (+) or below (-) it. `ls` may be left out.

    Example:
      agentctl ledger ls -o wide
    """
    found = app.reader().list_measurements()
    if not form.for_people:
        emit(_exported(found), form)
    elif found:
        click.echo(table(_columns(app.now()), lines(found), wide=form is Format.WIDE))
    else:
        click.echo("nothing was measured yet: it is, when an engine becomes ready", err=True)


@options.with_help
@ledger.command()
@click.argument("file", metavar="[FILE]", default="-", type=click.Path(dir_okay=False))
@options.connects()
@click.pass_obj
def export(app: App, *, file: str) -> None:
    """Write the ledger to FILE, or to standard output, as JSON that `agentctl ledger import` reads.

    It names models, devices, engines' arguments and this node.

    Example:
      agentctl ledger export experience.json
    """
    found = app.reader().list_measurements()
    text = json.dumps(_exported(found), indent=2, ensure_ascii=False)
    if file == "-":
        click.echo(text)
        return
    try:
        Path(file).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be written: {error.strerror}") from error
    click.echo(f"{len(found)} measurements written to {file}", err=True)


@options.with_help
@ledger.command("import")
@click.argument("file", metavar="FILE", shell_complete=options.complete_files)
@options.output(wide=False)
@options.connects()
@click.pass_obj
def import_(app: App, *, file: str, form: Format) -> None:
    """Take over what another node exported; FILE is a path, or - for standard input.

    Plans use it where this node has not measured the same itself. What is known already stays as it is.

    Example:
      agentctl ledger import experience.json
    """
    source = "standard input" if file == "-" else file
    answer = app.writer().import_measurements(_parsed(read(file), source))
    if not form.for_people:
        emit(plain(answer), form)
        return
    parts = [f"{answer.added_count} measurements imported"]
    parts += [f"{answer.known_count} known already"] if answer.known_count else []
    parts += [f"{answer.dropped_count} beyond what a node keeps"] if answer.dropped_count else []
    click.echo(", ".join(parts))


def lines(found: Iterable[pb.Measurement]) -> list[Line]:
    """Equal starts as one, by model; the terms in their order."""
    groups: dict[str, list[pb.Measurement]] = {}
    for one in sorted(found, key=lambda row: (row.imported, short(row.model), -seconds(row.measure_time))):
        groups.setdefault(json.dumps([str(getattr(one, field)) for field in _KEY]), []).append(one)
    return [line for group in groups.values() for line in _lines(group)]


def _lines(group: Sequence[pb.Measurement]) -> Iterable[Line]:
    largest: dict[tuple[str, str], pb.MeasuredTerm] = {}
    for one in group:
        for term in one.terms:
            place = (term.pool, term.term)
            if place not in largest or largest[place].measured_bytes < term.measured_bytes:
                largest[place] = term
    for (pool, _), term in sorted(largest.items(), key=lambda item: (item[0][0] != "host", item[0][0])):
        starts = sum(any((each.pool, each.term) == (pool, term.term) for each in one.terms) for one in group)
        yield Line(group[0], term, starts)


def _columns(now: float) -> tuple[Column[Line], ...]:
    return (
        Column("MODEL", lambda line: short(line.newest.model)),
        Column("ENGINE", lambda line: line.newest.engine),
        Column("VERSION", lambda line: line.newest.engine_version, wide=True),
        Column("LIMITS", lambda line: f"{line.newest.max_num_seqs} x {line.newest.max_model_len}"),
        Column("BATCH", lambda line: str(line.newest.max_num_batched_tokens), wide=True, right=True),
        Column("KV", lambda line: line.newest.kv_cache_dtype, wide=True),
        Column("DEVICE", _device),
        Column("TERM", lambda line: line.term.term),
        Column("PREDICTED", _predicted, right=True),
        Column("MEASURED", lambda line: size(line.term.measured_bytes), right=True),
        Column("ERROR", _error, right=True),
        Column("STARTS", lambda line: str(line.starts), right=True),
        Column("AGE", lambda line: since(line.newest.measure_time, now)),
        Column("SOURCE", lambda line: line.term.source, wide=True),
        Column("FROM", lambda line: line.newest.host if line.newest.imported else "here"),
    )


def _device(line: Line) -> str:
    """`host`, or a device's place and model; the CPU has no line of its own."""
    models, pool = line.newest.device_models, line.term.pool
    if pool == "host":
        return pool
    return f"{pool} {models[int(pool)]}" if pool.isdecimal() and int(pool) < len(models) else pool


def _predicted(line: Line) -> str:
    return size(line.term.formula_bytes) if line.term.HasField("formula_bytes") else ""


def _error(line: Line) -> str:
    term = line.term
    if not term.HasField("formula_bytes") or not term.measured_bytes:
        return ""
    return f"{(term.formula_bytes - term.measured_bytes) / term.measured_bytes:+.1%}"


def _exported(found: Iterable[pb.Measurement]) -> dict[str, Any]:
    return {"measurements": [plain(one) for one in found]}


def _parsed(text: str, source: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{source} is no JSON: {error}", hint="agentctl ledger export writes it") from error
    if not isinstance(data, dict):
        raise InvalidArgument(
            f"{source} must be an object with `measurements`", hint="agentctl ledger export writes it"
        )
    return data
