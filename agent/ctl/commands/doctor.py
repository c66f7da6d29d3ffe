"""`doctor`: what is wrong with this host, and what to do about it, as a report to read or to paste."""

from __future__ import annotations

import datetime as dt
import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from logging import CRITICAL
from pathlib import Path
from typing import Any, Final, Literal

import click

from agent import __version__
from agent.api import mapping
from agent.api.structs import struct_from_dict, struct_to_dict
from agent.ctl import devices, options, rows
from agent.ctl.app import App
from agent.ctl.commands.node import host
from agent.ctl.exits import Exit
from agent.ctl.output import Format, emit, fields, table
from agent.ctl.values import plain
from agent.ctl.versions import HINT, difference
from agent.errors import AgentError, InvalidArgument
from agent.frozen import frozen
from agent.v1 import agent_pb2 as pb

WIDTH: Final = 100  # characters of a message's line: it is read in terminals, mails and issue trackers

#: By level, worst first: the heading, and the word in the last line.
_LEVELS: Final = {
    pb.FINDING_LEVEL_ERROR: ("ERRORS", "error"),
    pb.FINDING_LEVEL_WARNING: ("WARNINGS", "warning"),
    pb.FINDING_LEVEL_UNKNOWN: ("NOT KNOWN", "not known"),
    pb.FINDING_LEVEL_NOTE: ("NOTES", "note"),
    pb.FINDING_LEVEL_OK: ("OK", "ok"),
}


@frozen
class Report:
    """What was looked at, and what was found. Without a daemon, `unreachable` says why there is none."""

    node: pb.Node
    findings: Sequence[pb.Finding]
    unreachable: str = ""


@options.with_help
@click.command()
@options.output(wide=False)
@options.connects()
@click.pass_obj
def doctor(app: App, *, form: Format) -> Exit:
    """Report what is wrong with this host, and what to do about each thing.

    The daemon looks; where none answers, agentctl looks itself, with your rights. Exits with 10 when there is an
    error, else with 0. The report holds names of programs, users and directories, and no secrets.

    Examples:
      agentctl doctor
      agentctl doctor > report.txt
      agentctl doctor -o json | jq '.findings[] | select(.level == "FINDING_LEVEL_ERROR")'
    """
    report = _report(app)
    if form.for_people:
        click.echo(text(report, app.now()))
    else:
        emit(_data(report), form)
    found = any(finding.level == pb.FINDING_LEVEL_ERROR for finding in report.findings)
    return Exit.ERRORS_FOUND if found else Exit.OK


def text(report: Report, now: float) -> str:
    """The report for people."""
    found, inventory = report.node, struct_to_dict(report.node.inventory)
    parts = [fields((*_versions(report, now), *host(found, inventory)))]
    if report.unreachable:
        parts.insert(0, "agentd was not reachable: agentctl looked itself, with your rights")
    if found.devices:
        parts.append(table(devices.columns(found.devices, now, wide=False), found.devices))
    if len(found.devices) > 1:
        parts.append(devices.topology(found.devices, inventory.get("links") or ()))
    for level, (heading, _) in _LEVELS.items():
        if listed := [finding for finding in report.findings if finding.level == level]:
            word = click.style(heading, fg=rows.COLOURS.get(rows.level(listed[0])))
            parts.append(f"{word}\n{fields(map(_told, listed), '  ')}")
    return "\n\n".join([*parts, _summary(report.findings)])


def _versions(report: Report, now: float) -> Iterator[tuple[str, str]]:
    daemon = f"{report.node.version}, {report.node.scope}, up {rows.since(report.node.start_time, now)}"
    yield "agentctl", __version__
    yield "agentd", "not reachable" if report.unreachable else daemon
    yield "date", dt.datetime.fromtimestamp(now, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    yield "node", report.node.host


def _told(finding: pb.Finding) -> tuple[str, str]:
    lines = _wrapped(finding.message)
    if finding.remedy:
        first, *more = _wrapped(finding.remedy)
        lines += [f"-> {first}", *(f"   {line}" for line in more)]
    return finding.check, "\n".join(lines)


def _wrapped(words: str) -> list[str]:
    return [
        part
        for line in words.splitlines()
        for part in textwrap.wrap(line, WIDTH, break_long_words=False, break_on_hyphens=False)
    ]


def _summary(findings: Sequence[pb.Finding]) -> str:
    """`1 error, 2 warnings, 11 ok`."""
    counted = Counter(finding.level for finding in findings)
    plural = {pb.FINDING_LEVEL_ERROR, pb.FINDING_LEVEL_WARNING, pb.FINDING_LEVEL_NOTE}
    words = (
        f"{counted[level]} {word}" + ("s" if level in plural and counted[level] != 1 else "")
        for level, (_, word) in _LEVELS.items()
        if counted[level]
    )
    return ", ".join(words)


def _data(report: Report) -> dict[str, Any]:
    return {
        "agentctl": __version__,
        "agentd": report.node.version or None,
        "node": plain(report.node),
        "findings": [plain(finding) for finding in report.findings],
    }


def _report(app: App) -> Report:
    """The daemon's, or else our own: the one command that must not fail because the daemon does."""
    try:
        client = app.reader()
        node, findings = client.get_node(), list(client.run_doctor().findings)
    except AgentError as error:
        return _local(app, error)
    said = difference(node.version)
    level = pb.FINDING_LEVEL_WARNING if said else pb.FINDING_LEVEL_OK
    agentd = pb.Finding(check="agentd", level=level, message=said or f"{node.version} answers", remedy=said and HINT)
    return Report(node, [agentd, *findings])


def _local(app: App, error: AgentError) -> Report:
    """The same checks, run here."""
    from agent.hardware import doctor as local  # noqa: PLC0415  (some 100 ms that only a missing daemon costs)

    findings = [pb.Finding(check="agentd", level=pb.FINDING_LEVEL_ERROR, message=error.message, remedy=error.hint)]
    scope: Literal["user", "system"] = "system" if os.geteuid() == 0 else "user"
    directories, broken = _directories(app, scope)
    with _silent():
        inventory, found = local.examine(directories)
    node = pb.Node(
        name="node",
        host=inventory.hostname,
        scope=scope,
        inventory=struct_from_dict(asdict(inventory)),
        memory_total_bytes=inventory.memory.total,
        memory_available_bytes=inventory.memory.available,
        devices=[mapping.device(device) for device in found],
    )
    findings += broken
    findings += mapping.findings(local.diagnose(inventory, found)).findings
    return Report(node, findings, unreachable=error.message)


@contextmanager
def _silent() -> Iterator[None]:
    """Without log lines between the report's: what matters of them is a finding."""
    import structlog  # noqa: PLC0415  (only without a daemon)

    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


def _directories(app: App, scope: Literal["user", "system"]) -> tuple[dict[str, Path], list[pb.Finding]]:
    """The directories of the agent that would run here, and what keeps its configuration from being read."""
    from agent.config import default_paths, load_config  # noqa: PLC0415  (pydantic)

    try:
        places: Any = load_config(scope, environ=app.environ).config.directories
        broken = []
    except InvalidArgument as error:
        places = default_paths(scope, app.environ)
        told = "; ".join(f"{violation.field}: {violation.rule}" for violation in error.violations) or error.message
        remedy = f"agentctl config check --scope {scope}"
        broken = [pb.Finding(check="configuration", level=pb.FINDING_LEVEL_ERROR, message=told, remedy=remedy)]
    return {"state": places.state, "cache": places.cache, "logs": places.logs}, broken
