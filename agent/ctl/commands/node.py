"""`node`: what this host has, on one page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click

from agent.api.structs import struct_to_dict
from agent.ctl import devices, options, rows
from agent.ctl.app import App
from agent.ctl.commands.status import node_trouble
from agent.ctl.hardware import described
from agent.ctl.output import Format, fields, size, table
from agent.ctl.refreshing import View, refresh, show
from agent.ctl.values import plain
from agent.v1 import agent_pb2 as pb


@options.with_help
@click.command()
@options.hardware
@options.watch
@options.output()
@options.connects()
@click.pass_obj
def node(app: App, *, hardware: str | None, watch: bool, form: Format) -> None:
    """Show what this host has, what of it is free, and what is wrong with it.

    With --hardware it is a host that you describe: what plans for it go by.

    Examples:
      agentctl node --watch
      agentctl node --hardware h100-sxm:8
      agentctl node -o json | jq .inventory
    """
    client = app.reader()
    ask = client.get_node
    if hardware is not None:
        if watch:
            raise click.UsageError("described hardware does not change: --watch is for the real one")
        wanted = described(hardware)
        ask = lambda: client.simulate_node(wanted)  # noqa: E731  (the same question to another node)
    view = View(ask, lambda found: page(found, app.now(), wide=form is Format.WIDE), plain)
    if watch:
        refresh(view, form)
    show(view, view.ask(), form)


def page(found: pb.Node, now: float, *, wide: bool) -> str:
    """All that is known of a node, for people."""
    inventory = struct_to_dict(found.inventory)
    parts = [fields((*_agent(found, now), *host(found, inventory)))]
    problems = list(_problems(inventory))
    if trouble := "\n".join([*problems, *node_trouble(found, now, said="DevicesDetected" if problems else "")]):
        parts.append(trouble)
    if found.devices:
        parts.append(table(devices.columns(found.devices, now, wide=wide), found.devices, wide=wide))
    return "\n\n".join(parts)


def host(found: pb.Node, inventory: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The host in lines; of an inventory that an older daemon sends, what is there."""
    yield "simulated", str(inventory.get("simulated", ""))
    system = _line(inventory.get("os"), inventory.get("kernel"))
    yield "os", _line(system, _bracketed(inventory.get("machine")), sep=" ")
    yield "cpu", _cpu(inventory)
    yield "flags", " ".join(inventory.get("cpu_flags") or ())
    yield "numa", "\n".join(map(_numa, inventory.get("numa") or ()))
    yield "memory", _memory(found, inventory)
    yield "disks", "\n".join(map(_disk, inventory.get("disks") or ()))
    yield "containers", "\n".join(map(_runtime, inventory.get("containers") or ())) or "none: engines run as processes"
    yield "drivers", "\n".join(map(_driver, inventory.get("drivers") or ()))


def _agent(found: pb.Node, now: float) -> Iterator[tuple[str, str]]:
    yield "node", f"{found.host} ({found.scope}), agentd {found.version}, up {rows.since(found.start_time, now)}"
    yield "deployments", f"{found.deployment_count}, {found.ready_count} of them ready"


def _problems(inventory: dict[str, Any]) -> Iterator[str]:
    for problem in inventory.get("problems") or ():
        whose = problem.get("device") or problem.get("vendor") or "devices"
        yield click.style(f"! {whose}: ", fg="red") + f"{problem['code']}: {problem['message']}"


def _cpu(inventory: dict[str, Any]) -> str:
    cores, threads, quota = (inventory.get(key) for key in ("physical_cores", "logical_cores", "cpu_quota"))
    counted = f"{cores} cores, {threads} threads" if cores and threads else ""
    return _line(inventory.get("cpu_model"), counted, f"limited to {quota:g} cores' time" if quota else "")


def _numa(node: dict[str, Any]) -> str:
    return f"node {node['id']}: cpus {ranges(node['cpus'])}, {size(node['memory_bytes'])}"


def ranges(numbers: Iterable[int]) -> str:
    """`0-3,8`: as the kernel lists CPUs."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _memory(found: pb.Node, inventory: dict[str, Any]) -> str:
    available, total = size(found.memory_available_bytes), size(found.memory_total_bytes)
    swap = (inventory.get("memory") or {}).get("swap")
    reserved = f"{size(found.memory_reserved_bytes)} reserved"
    return _line(f"{available} available of {total}", reserved, f"{size(swap)} of swap" if swap else "")


def _disk(disk: dict[str, Any]) -> str:
    free = f"{size(disk['free'])} free of {size(disk['total'])}"
    return f"{disk['purpose']}: {free}, {disk['filesystem']} at {disk['path']}"


def _runtime(runtime: dict[str, Any]) -> str:
    what = _line(runtime["name"], runtime.get("version"), sep=" ")
    if runtime.get("problem"):
        return f"{what}: cannot be used: {runtime['problem']}"
    cdi = ", ".join(runtime.get("cdi_devices") or ())
    return _line(f"{what} ({', '.join(runtime.get('runtimes') or ())})", f"CDI {cdi}" if cdi else "")


def _driver(driver: dict[str, Any]) -> str:
    return _line(driver["vendor"], driver["version"], _bracketed(driver.get("api")), sep=" ")


def _bracketed(text: str | None) -> str:
    return f"({text})" if text else ""


def _line(*parts: str | None, sep: str = ", ") -> str:
    return sep.join(filter(None, parts))
