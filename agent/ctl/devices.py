"""Devices as people see and name them: lines, columns, details, the matrix of links, and which one is meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from agent.api.structs import struct_to_dict
from agent.ctl import rows
from agent.ctl.failures import Usage
from agent.ctl.output import Column, fields, size, table
from agent.ctl.values import short
from agent.errors import NotFound
from agent.v1 import agent_pb2 as pb

#: Characters of an id that are shown at least: a UUID with its vendor's prefix and first group, "GPU-5a1b2c3d".
BRIEF: Final = 12
#: Ids up to this length are shown whole: "amd-0000:c1:00.0".
WHOLE: Final = 16


def find(devices: Sequence[pb.Device], text: str) -> pb.Device:
    """The device with this id, or else index, or else beginning of its id.

    Raises `NotFound` where there is none, and `Usage` where several could be meant; both say which there are.
    """
    wanted = text.removeprefix("devices/")
    ways = (
        [device for device in devices if short(device.name) == wanted],
        [device for device in devices if wanted.isdecimal() and device.index == int(wanted)],
        [device for device in devices if wanted and short(device.name).lower().startswith(wanted.lower())],
    )
    found = next(filter(None, ways), [])
    if not found:
        known = f"there are: {_listed(devices)}" if devices else "this node has no devices"
        raise NotFound(f"there is no device {text}", hint=known)
    if len(found) > 1:
        raise Usage(f"{text} could be several devices", hint=f"give more of the id: {_listed(found)}")
    return found[0]


def brief(devices: Iterable[pb.Device]) -> dict[str, str]:
    """By resource name: the id, shortened as far as all stay different."""
    ids = {device.name: short(device.name) for device in devices}
    for length in range(BRIEF, max(map(len, ids.values()), default=0)):
        cut = {name: id if len(id) <= WHOLE else id[:length] for name, id in ids.items()}
        if len(set(cut.values())) == len(cut):
            return cut
    return ids


def lines(devices: Sequence[pb.Device]) -> Iterator[str]:
    """A line for each device, for `status`."""
    names = brief(devices)
    for device in devices:
        healthy = device.condition == pb.DEVICE_CONDITION_HEALTHY
        sick = "" if healthy else f", {rows.coloured(rows.device_condition(device))}"
        yield f"{device.index} {names[device.name]} {device.display_name}, {_memory(device)} used{sick}"


def trouble(devices: Sequence[pb.Device], now: float) -> Iterator[str]:
    """What is not well with the devices: conditions, and memory that did not come back."""
    names = brief(devices)
    for device in devices:
        who = f"device {device.index} {names[device.name]}"
        if device.condition != pb.DEVICE_CONDITION_HEALTHY:
            condition, since = rows.coloured(rows.device_condition(device)), rows.since(device.condition_time, now)
            yield f"! {who} is {condition} for {since}: {device.reason}: {device.message}"
        for hold in device.holds:
            if hold.ended:
                since = rows.since(hold.hold_time, now)
                yield f"! {who} is held for {hold.instance}, which has ended, for {since}: {hold.message}"


def columns(devices: Iterable[pb.Device], now: float, *, wide: bool) -> tuple[Column[pb.Device], ...]:
    """The columns of `devices`, `node` and `get devices`."""
    names = brief(devices)
    return (
        Column("INDEX", lambda d: str(d.index), right=True),
        Column("ID", lambda d: short(d.name) if wide else names[d.name]),
        Column("NAME", lambda d: d.display_name),
        Column("CONDITION", lambda d: rows.coloured(rows.device_condition(d))),
        Column("MEMORY", _memory, right=True),
        Column("RESERVED", lambda d: size(d.memory_reserved_bytes) if d.memory_reserved_bytes else "", right=True),
        Column("UTIL", lambda d: _unit(d, "utilization_percent", "%"), right=True),
        Column("TEMP", lambda d: _unit(d, "temperature_celsius", "C"), right=True),
        Column("POWER", _power, right=True),
        Column("CLOCK", lambda d: _unit(d, "clock_mhz", " MHz"), wide=True, right=True),
        Column("THROTTLING", lambda d: ", ".join(d.throttling), wide=True),
        Column("PCI", lambda d: _pci(_detail(d)), wide=True),
        Column("NUMA", lambda d: _plain(_detail(d).get("numa_node")), wide=True, right=True),
        Column("SAMPLED", lambda d: rows.since(d.sample_time, now), wide=True),
        Column("SINCE", lambda d: rows.since(d.condition_time, now), wide=True),
        Column("REASON", lambda d: d.reason, wide=True),
        Column("HELD BY", lambda d: ", ".join(map(_hold, d.holds))),
    )


def processes(devices: Sequence[pb.Device]) -> str:
    """Who holds memory of the devices: our instances by their ids, and strangers."""
    names = brief(devices)
    found = [(names[device.name], process) for device in devices for process in device.processes]
    told: tuple[Column[tuple[str, pb.DeviceProcess]], ...] = (
        Column("DEVICE", lambda row: row[0]),
        Column("PID", lambda row: str(row[1].pid), right=True),
        Column("MEMORY", lambda row: size(row[1].memory_bytes) if row[1].HasField("memory_bytes") else "", right=True),
        Column("USER", lambda row: row[1].user),
        Column("INSTANCE", lambda row: row[1].instance or "none of ours"),
        Column("COMMAND", lambda row: row[1].command),
    )
    silent = [names[device.name] for device in devices if not device.processes_known]
    parts = [table(told, found)] if found else []
    if silent:
        parts.append(f"the driver does not tell the processes of {', '.join(silent)}")
    return "\n".join(parts) or "no process holds memory of a device"


def details(device: pb.Device, now: float) -> str:
    """All of one device."""
    parts = [fields(_facts(device, now)), processes([device])]
    if device.holds:
        parts.insert(1, table(_holds(now), device.holds))
    return "\n\n".join(parts)


def topology(devices: Sequence[pb.Device], links: Iterable[dict[str, Any]]) -> str:
    """How the devices reach each other, in the words of `nvidia-smi topo -m`."""
    labels = {short(device.name): f"{device.vendor}{device.index}" for device in devices}
    if len(set(labels.values())) < len(labels):  # slices share the index of their GPU
        labels = {short(name): cut for name, cut in brief(devices).items()}
    kinds: dict[tuple[str, str], str] = {}
    for link in links:
        kinds[link["a"], link["b"]] = kinds[link["b"], link["a"]] = _link(link)
    first: Column[pb.Device] = Column("", lambda d: labels[short(d.name)])
    last: Column[pb.Device] = Column("NUMA", lambda d: _plain(_detail(d).get("numa_node")), right=True)
    return table((first, *(_reach(short(other.name), labels, kinds) for other in devices), last), devices)


def _reach(other: str, labels: dict[str, str], kinds: dict[tuple[str, str], str]) -> Column[pb.Device]:
    """One column of the matrix; a way that is not known stays empty."""
    return Column(labels[other], lambda d: "X" if short(d.name) == other else kinds.get((short(d.name), other), ""))


def _link(link: dict[str, Any]) -> str:
    kind, lanes = str(link["kind"]), link.get("lanes") or ""
    return f"NV{lanes}" if kind == "nvlink" else f"{kind.upper()}{lanes}"


def _facts(device: pb.Device, now: float) -> Iterator[tuple[str, str]]:
    detail = _detail(device)
    known = detail.get("facts") or {}
    condition = f"{rows.coloured(rows.device_condition(device))} for {rows.since(device.condition_time, now)}"
    yield "id", short(device.name)
    yield "index", str(device.index)
    yield "name", f"{device.display_name} ({device.vendor})"
    why = (device.reason, device.message) if device.condition != pb.DEVICE_CONDITION_HEALTHY else ()
    yield "condition", ": ".join(filter(None, (condition, *why)))
    yield "memory", f"{_memory(device)} used, {size(device.memory_reserved_bytes)} reserved" + _unified(detail)
    yield "utilization", _unit(device, "utilization_percent", "%")
    yield "temperature", _unit(device, "temperature_celsius", "C")
    yield "power", _power(device)
    yield "clock", _unit(device, "clock_mhz", " MHz")
    yield "throttling", ", ".join(device.throttling)
    yield "sampled", f"{rows.since(device.sample_time, now)} ago" if device.HasField("sample_time") else "not yet"
    yield "architecture", " ".join(filter(None, (detail.get("architecture"), detail.get("compute_capability"))))
    yield "slice", f"{detail['slice_profile']} of {detail.get('parent')}" if detail.get("slice_profile") else ""
    yield "pci", _pci(detail)
    yield "numa node", _plain(detail.get("numa_node"))
    yield "files", ", ".join(detail.get("files") or ())
    yield "ecc", _switch(detail.get("ecc"))
    yield "persistence", _switch(detail.get("persistence"))
    yield "known as", f"{known['id']}, for --hardware" if known.get("id") else ""


def _holds(now: float) -> tuple[Column[pb.DeviceHold], ...]:
    return (
        Column("HELD FOR", lambda h: short(h.deployment)),
        Column("INSTANCE", lambda h: h.instance),
        Column("MEMORY", lambda h: size(h.bytes), right=True),
        Column("ENDED", lambda h: "yes" if h.ended else "no"),
        Column("SINCE", lambda h: rows.since(h.hold_time, now)),
        Column("MESSAGE", lambda h: h.message),
    )


def _hold(hold: pb.DeviceHold) -> str:
    return f"{short(hold.deployment)} {size(hold.bytes)}" + (" (ended)" if hold.ended else "")


def _memory(device: pb.Device) -> str:
    used = size(device.memory_used_bytes) if device.HasField("memory_used_bytes") else "?"
    return f"{used} of {size(device.memory_total_bytes)}"


def _power(device: pb.Device) -> str:
    used, limit = _unit(device, "power_watts", " W"), _unit(device, "power_limit_watts", " W")
    return f"{used} of {limit}" if used and limit else used


def _unit(device: pb.Device, field: str, unit: str) -> str:
    return f"{getattr(device, field):.0f}{unit}" if device.HasField(field) else ""


def _pci(detail: dict[str, Any]) -> str:
    """`0000:1b:00.0, x16 of x16`."""
    pci = detail.get("pci") or {}
    lanes = f"x{pci['width']}" if pci.get("width") else ""
    if lanes and pci.get("max_width"):
        lanes += f" of x{pci['max_width']}"
    return ", ".join(filter(None, (pci.get("address"), lanes)))


def _unified(detail: dict[str, Any]) -> str:
    return ", shared with the host" if detail.get("memory_kind") == "unified" else ""


def _switch(value: bool | None) -> str:
    return {True: "on", False: "off", None: ""}[value]


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _detail(device: pb.Device) -> dict[str, Any]:
    return struct_to_dict(device.detail)


def _listed(devices: Iterable[pb.Device]) -> str:
    return ", ".join(f"{device.index} {short(device.name)} ({device.display_name})" for device in devices)
