"""`devices`: the node's accelerators, and taking one out of use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from agent.api.client import Client
from agent.api.structs import struct_to_dict
from agent.ctl import devices as shown
from agent.ctl import options
from agent.ctl.app import App
from agent.ctl.output import Format, emit, table
from agent.ctl.refreshing import View, refresh, show
from agent.ctl.values import ordered, plain, short
from agent.v1 import agent_pb2 as pb

device_argument = click.argument("device", metavar="DEVICE", shell_complete=options.complete_devices)


class Devices(click.Group):
    """Without a subcommand it is `list`, so that `agentctl devices 0` looks at a device."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["list", *args]
        return super().parse_args(ctx, args)


@options.with_help
@click.group(cls=Devices, subcommand_metavar="[list] [DEVICE] | COMMAND [ARGS]...")
def devices() -> None:
    """Show the devices of this node, or take one out of use.

    DEVICE is an id, the beginning of one, or an index, where that says which one is meant.

    Examples:
      agentctl devices
      agentctl devices 0
      agentctl devices quarantine 3 --reason "rows to be remapped"
    """


@options.with_help
@devices.command("list")
@click.argument("device", metavar="[DEVICE]", required=False, shell_complete=options.complete_devices)
@options.option("--processes", is_flag=True, help="Also who holds memory of the devices, strangers included.")
@options.option("--topology", is_flag=True, help="How the devices reach each other, as a matrix.")
@options.watch
@options.output()
@options.connects()
@click.pass_obj
def list_(app: App, *, device: str | None, processes: bool, topology: bool, watch: bool, form: Format) -> None:
    """Show all devices, or one with all that is known of it.

    RESERVED is what plans may use, HELD BY whose plans. `list` may be left out.

    Examples:
      agentctl devices list -o wide
      agentctl devices GPU-5a1b
      agentctl devices --processes --watch
      agentctl devices --topology
    """
    if topology and (device or processes):
        raise click.UsageError("--topology is of all devices, and is shown alone")
    client, wide = app.reader(), form is Format.WIDE
    view: View[Any]
    if topology:
        view = View(client.get_node, _matrix, _links)
    elif device:
        view = View(lambda: _one(client, device), lambda found: shown.details(found, app.now()), plain)
    else:
        view = View(
            client.list_devices,
            lambda found: _text(found, app.now(), wide=wide, processes=processes),
            lambda found: {"devices": [plain(one) for one in found]},
        )
    if watch:
        refresh(view, form)
    show(view, view.ask(), form)


@options.with_help
@devices.command()
@device_argument
@options.option("--reason", metavar="TEXT", required=True, help="Why, for those who find it quarantined.")
@options.output(wide=False)
@options.connects()
@click.pass_obj
def quarantine(app: App, *, device: str, reason: str, form: Format) -> None:
    """Let no plan have a device any more. What runs on it goes on.

    It lasts, over restarts of the daemon and of the host, until `agentctl devices release`.

    Example:
      agentctl devices quarantine GPU-5a1b --reason "a fan is loud"
    """
    client = app.writer()
    changed = client.quarantine_device(_one(client, device).name, reason)
    _tell(changed, f"device {changed.index} {short(changed.name)} is quarantined", form)


@options.with_help
@devices.command()
@device_argument
@options.output(wide=False)
@options.connects()
@click.pass_obj
def release(app: App, *, device: str, form: Format) -> None:
    """Lift the quarantine of a device.

    You say that it is good: what is held on it for instances that ended is free, too. If its fault shows again, it
    is quarantined again.

    Example:
      agentctl devices release GPU-5a1b
    """
    client = app.writer()
    changed = client.release_device(_one(client, device).name)
    _tell(changed, f"device {changed.index} {short(changed.name)} is released", form)


def _one(client: Client, text: str) -> pb.Device:
    return shown.find(client.list_devices(), text)


def _tell(device: pb.Device, done: str, form: Format) -> None:
    if form.for_people:
        click.echo(done)
    else:
        emit(plain(device), form)


def _text(found: Sequence[pb.Device], now: float, *, wide: bool, processes: bool) -> str:
    if not found:
        return "no devices: engines run on the CPU; agentctl doctor says why, where there should be some"
    parts = [table(shown.columns(found, now, wide=wide), found, wide=wide)]
    if processes:
        parts.append(shown.processes(found))
    if trouble := "\n".join(shown.trouble(found, now)):
        parts.append(trouble)
    return "\n\n".join(parts)


def _matrix(node: pb.Node) -> str:
    links = struct_to_dict(node.inventory).get("links") or ()
    return shown.topology(node.devices, links) if node.devices else "no devices"


def _links(node: pb.Node) -> dict[str, Any]:
    return {"links": ordered(struct_to_dict(node.inventory).get("links") or [])}
