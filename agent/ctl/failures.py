"""What agentctl says when something went wrong, and the failures that exist only on this side of the API.

    error: <message>
      <field>: <rule>            one line for each broken rule
      evidence: <line>
    hint: <what to do next>

On stderr, never a traceback (AGENTCTL_DEBUG=1 shows it); with `-o json` the same as one JSON object.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from itertools import pairwise, takewhile
from typing import Any

import click

from agent.ctl.exits import Exit, exit_of
from agent.ctl.values import short
from agent.errors import AgentError, InvalidArgument
from agent.v1 import agent_pb2 as pb


class Usage(InvalidArgument):
    """The command line itself is wrong."""

    code = "usage"


class Timeout(AgentError):
    """What was waited for did not happen in time."""

    code = "timeout"


class Permission(AgentError):
    """The user may not open the socket that the command needs."""

    code = "permission"


class DeploymentFailed(AgentError):
    """A deployment that was waited for ended in FAILED."""

    code = "deployment_failed"

    def __init__(self, deployment: pb.Deployment) -> None:
        name, diagnosis = short(deployment.name), deployment.diagnosis
        cause = (
            f"{diagnosis.code}: {diagnosis.message}" if diagnosis.code else f"{deployment.reason}: {deployment.message}"
        )
        started = deployment.HasField("instance") or deployment.HasField("previous")
        hint = diagnosis.hint or f"agentctl describe {name}" + (f"; agentctl logs {name}" if started else "")
        if "restart" not in hint:
            hint = f"{hint.removesuffix('.')}; then `agentctl restart {name}`"
        super().__init__(f"deployment {name} failed: {cause}", hint=hint)
        self.diagnosis = diagnosis


def wants_json(args: Sequence[str]) -> bool:
    """Whether the command line asks for JSON; decided on its words, because usage errors come before parsing."""
    words = list(takewhile(lambda word: word != "--", args))
    together = any(word in {"-ojson", "--output=json"} for word in words)
    return together or any(option in {"-o", "--output"} and value == "json" for option, value in pairwise(words))


def report(error: AgentError, *, as_json: bool) -> Exit:
    """Prints `error` on stderr and returns the exit code for it."""
    code = exit_of(error)
    if as_json:
        import json  # noqa: PLC0415  (only `-o json` needs it)

        click.echo(json.dumps({"error": _plain(error, code)}), err=True)
    else:
        colour = False if os.environ.get("NO_COLOR") else None  # the command's context, which knows, is gone
        click.echo("\n".join(_lines(error)), err=True, color=colour)
    if os.environ.get("AGENTCTL_DEBUG"):
        click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
    return code


def _lines(error: AgentError) -> list[str]:
    first, *more = error.message.splitlines() or [type(error).__name__]
    lines = [click.style("error: ", fg="red", bold=True) + first, *(f"  {line}" for line in more)]
    lines += [f"  {one.field}: {one.rule}" for one in error.violations if one.rule not in error.message]
    if isinstance(error, DeploymentFailed):
        lines += [f"  evidence: {line}" for line in error.diagnosis.evidence.splitlines()]
    if error.hint:
        lines.append(click.style("hint: ", bold=True) + error.hint)
    return lines


def _plain(error: AgentError, code: Exit) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "code": error.code,
        "exit": int(code),
        "message": error.message,
        "violations": [{"field": violation.field, "rule": violation.rule} for violation in error.violations],
        "hint": error.hint,
    }
    if isinstance(error, DeploymentFailed):
        plain["evidence"] = error.diagnosis.evidence
        plain["diagnosis"] = error.diagnosis.code
    return plain
