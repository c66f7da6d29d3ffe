"""`artifacts`: the weights on this node, and making room for others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from agent.api.client import Client
from agent.ctl import artifacts as shown
from agent.ctl import options, rows
from agent.ctl.app import App
from agent.ctl.changes import request_id
from agent.ctl.output import Column, Format, emit, size, table
from agent.ctl.refreshing import View, refresh
from agent.ctl.specs import by_catalog, resolve_model
from agent.ctl.values import plain, short
from agent.errors import AgentError, NotFound, Unavailable
from agent.v1 import agent_pb2 as pb


class Artifacts(click.Group):
    """Without a subcommand it is `ls`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["ls", *args]
        return super().parse_args(ctx, args)


def artifact_names(command: options.Command) -> options.Command:
    decorate = click.argument(
        "names", metavar="REF...", nargs=-1, required=True, shell_complete=options.complete_artifacts
    )
    return decorate(command)


@options.with_help
@click.group(cls=Artifacts, subcommand_metavar="[ls] | COMMAND [ARGS]...")
def artifacts() -> None:
    """Show the weights and engine images on this node, fetch weights, or make room.

    REF is a reference (hf:owner/name:variant), or the ID of one artifact.

    Examples:
      agentctl artifacts
      agentctl artifacts pull hf:unsloth/Qwen3-8B-GGUF:Q4_K_M
      agentctl artifacts gc --dry-run
    """


@options.with_help
@artifacts.command()
@options.watch
@options.output()
@options.connects()
@click.pass_obj
def ls(app: App, *, watch: bool, form: Format) -> None:
    """Show what is here, last used first: how much of it, who uses it, and who wants it. `ls` may be left out.

    Images are the container engine's: it removes them (docker rmi). They are those of the catalog's repositories, and
    those that deployments use; unknown, with the reason, where the container engine cannot be asked.

    STATE is complete, a percentage of what a pull has brought so far, changed (files went or changed since they were
    verified), or external (outside of the cache: the agent only reads it). FREES is what removing it alone would free.

    Example:
      agentctl artifacts ls -o wide
    """
    client, wide = app.reader(), form is Format.WIDE
    view = View(client.get_artifacts, lambda found: _text(found, app.now(), wide=wide), _data)
    if watch:
        refresh(view, form)
    found = view.ask()
    if not form.for_people:
        emit(_data(found), form)
        return
    rows.show("artifacts", list(found.artifacts), shown.columns(app.now()), form)
    for one in found.artifacts:
        if one.state == pb.ARTIFACT_STATE_UNKNOWN:
            click.echo(f"! {one.source}: {one.kept_for}", err=True)
    if found.HasField("disk"):
        click.echo(shown.disk(found.disk), err=True)


@options.with_help
@artifacts.command()
@click.argument("model", metavar="REF", shell_complete=options.complete_models)
@options.output(wide=False)
@options.connects()
@click.pass_obj
def pull(app: App, *, model: str, form: Format) -> None:
    """Fetch a model's weights into the cache, as a deployment does.

    REF may also be a name of the catalog (qwen3-8b). Without a variant it is the one that a deployment on this node
    would get. A pull that is under way is joined. After Ctrl-C it stops, unless a deployment wants the same; what came
    is kept, and the same command goes on from there.

    Examples:
      agentctl artifacts pull hf:Qwen/Qwen3-0.6B
      agentctl artifacts pull qwen3-8b:q4_k_m
    """
    reference, _ = resolve_model(model, by_catalog(app.writer))
    last: pb.PullArtifactResponse | None = None
    with shown.reporting(quiet=not form.for_people) as report:
        try:
            for last in app.writer().pull_artifact(reference):
                if not last.HasField("artifact"):
                    report(last)
        except KeyboardInterrupt:
            where = shown.so_far(last.progress) if last is not None else ""
            click.echo(
                f"\ninterrupted{where and f' at {where}'}: what came is kept, and the same command goes on", err=True
            )
            raise
        except Unavailable as error:
            if last is None:
                raise
            hint = f"{error.hint}; what came is kept, and the same command goes on".removeprefix("; ")
            raise Unavailable(error.message, hint=hint) from error
    if last is None:
        raise AgentError(f"the pull of {reference} ended without an answer")
    if not form.for_people:
        emit(plain(last), form)
    elif last.HasField("artifact"):
        one = last.artifact
        click.echo(f"{one.source} is here: {size(one.size_bytes)} in {shown.files(one)}, {one.path}")
    else:
        click.echo(f"{last.reference} is on this node: it lies outside of the cache")


@options.with_help
@artifacts.command()
@artifact_names
@options.output(wide=False)
@options.connects()
@click.pass_obj
def pin(app: App, *, names: tuple[str, ...], form: Format) -> None:
    """Never remove artifacts to make room, nor by `rm`.

    Example:
      agentctl artifacts pin hf:Qwen/Qwen3-0.6B
    """
    client = app.writer()
    _each(client, names, client.pin_artifact, "is pinned", form)


@options.with_help
@artifacts.command()
@artifact_names
@options.output(wide=False)
@options.connects()
@click.pass_obj
def unpin(app: App, *, names: tuple[str, ...], form: Format) -> None:
    """Let artifacts go again, when nobody wants them and room is needed.

    Example:
      agentctl artifacts unpin hf:Qwen/Qwen3-0.6B
    """
    client = app.writer()
    _each(client, names, client.unpin_artifact, "is not pinned", form)


@options.with_help
@artifacts.command()
@artifact_names
@options.output(wide=False)
@options.connects()
@click.pass_obj
def rm(app: App, *, names: tuple[str, ...], form: Format) -> None:
    """Remove artifacts from the cache.

    What an engine runs with, what a deployment wants (stopped ones too) and what is pinned is refused. When one of
    several names does not exist, none is removed.

    Example:
      agentctl artifacts rm hf:unsloth/Qwen3-8B-GGUF:Q4_K_M
    """
    client = app.writer()
    wanted = _found(client, names)
    done = [client.delete_artifact(one.name, request_id=request_id()) for one in wanted]
    if form.for_people:
        for one in done:
            click.echo(f"{one.source} is removed: {size(one.freed_bytes)} freed")
    else:
        emit({"removed": [plain(one) for one in done]}, form)


@options.with_help
@artifacts.command()
@options.option("--dry-run", is_flag=True, help="Only show what would go.")
@options.option("--all", "everything", is_flag=True, help="All that nobody wants, however full the disk and new it is.")
@options.output(wide=False)
@options.connects()
@click.pass_obj
def gc(app: App, *, dry_run: bool, everything: bool, form: Format) -> None:
    """Remove what nobody wants, least recently used first, until the disk has room: down to artifacts.disk_low.

    What is in use, desired by a deployment, pinned, or newer than artifacts.min_age_seconds stays. The daemon does the
    same by itself above artifacts.disk_high, and for a pull that lacks room.

    Examples:
      agentctl artifacts gc --dry-run
      agentctl artifacts gc --all
    """
    answer = app.writer().collect_artifacts(dry_run=dry_run, everything=everything)
    if not form.for_people:
        emit(plain(answer), form)
        return
    if answer.removed:
        click.echo(table(_GOING, answer.removed))
    verb = "would be freed" if dry_run else "freed"
    click.echo(f"{size(answer.freed_bytes)} {verb}; {answer.message}", err=not answer.removed)


_GOING: tuple[Column[pb.CollectedArtifact], ...] = (
    Column("REFERENCE", lambda one: one.artifact.source),
    Column("ID", lambda one: short(one.artifact.name)),
    Column("FREES", lambda one: size(one.freed_bytes), right=True),
    Column("WHY", lambda one: one.reason),
)


def _each(client: Client, names: Iterable[str], change: Callable[[str], pb.Artifact], done: str, form: Format) -> None:
    changed = [change(one.name) for one in _found(client, names)]
    if form.for_people:
        for one in changed:
            click.echo(f"{one.source} {done}")
    else:
        emit({"artifacts": [plain(one) for one in changed]}, form)


def _found(client: Client, names: Iterable[str]) -> list[pb.Artifact]:
    """All of them are looked up before the first is touched. What has one reference with another keeps its name: the
    daemon refuses it, and names both."""
    known = client.list_artifacts()
    found: dict[str, pb.Artifact] = {}  # by the daemon's name: one may be named in several ways
    for name in names:
        same = [one for one in known if name in (short(one.name), one.name) or one.source in (name, f"hf:{name}")]
        if not same:
            raise NotFound(f"this node holds no artifact {name}", hint="agentctl artifacts ls shows what it holds")
        one = same[0] if len(same) == 1 else pb.Artifact(name=name)
        found[one.name] = one
    return list(found.values())


def _text(found: pb.ListArtifactsResponse, now: float, *, wide: bool) -> str:
    lines = [table(shown.columns(now), found.artifacts, wide=wide) if found.artifacts else "no artifacts"]
    if found.HasField("disk"):
        lines.append(shown.disk(found.disk))
    return "\n".join(lines)


def _data(found: pb.ListArtifactsResponse) -> dict[str, object]:
    data = plain(found)
    del data["next_page_token"]
    return data
