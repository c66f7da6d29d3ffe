"""Exit codes of agentctl: one for each class of failure, so that a script can branch without reading text.

The table in docs/reference/cli.md is generated from here. Values are promised: never renumber one.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from agent.errors import AgentError


class Exit(IntEnum):
    """What agentctl ends with."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    PRECONDITION = 5
    UNREACHABLE = 6
    TIMEOUT = 7
    PERMISSION = 8
    DEPLOYMENT_FAILED = 9
    ERRORS_FOUND = 10
    INTERRUPTED = 130  # 128 + SIGINT, as shells say it
    BROKEN_PIPE = 141  # 128 + SIGPIPE, as for every program in front of `head`


MEANING: Final[dict[Exit, str]] = {
    Exit.OK: "It is done.",
    Exit.UNEXPECTED: "A fault in agentctl or agentd that has no class of its own.",
    Exit.USAGE: "Wrong usage, or a spec or configuration that breaks a rule. Nothing was changed.",
    Exit.NOT_FOUND: "The named deployment, instance, model or file does not exist.",
    Exit.CONFLICT: "It was changed by somebody else, or the name serves something else. Read again, then retry.",
    Exit.PRECONDITION: "The node cannot do it now: no room, policy, no weights, disk full, stopped, older daemon.",
    Exit.UNREACHABLE: "No agentd answers: not running, still starting, or hung.",
    Exit.TIMEOUT: "What was waited for did not happen within --timeout. It may still happen.",
    Exit.PERMISSION: "The socket may not be opened, or is the read-only one.",
    Exit.DEPLOYMENT_FAILED: "The deployment ended in FAILED; the diagnosis is printed.",
    Exit.ERRORS_FOUND: "`agentctl doctor` found at least one error. Warnings and notes leave it at 0.",
    Exit.INTERRUPTED: "Interrupted with Ctrl-C. What was asked of the daemon goes on; a pull stops, to be resumed.",
    Exit.BROKEN_PIPE: "The reader of our output went away.",
}

#: By `AgentError.code`. "timeout", "permission" and "deployment_failed" exist only on this side of the API.
BY_CODE: Final[dict[str, Exit]] = {
    "internal": Exit.UNEXPECTED,
    "usage": Exit.USAGE,
    "invalid_argument": Exit.USAGE,
    "not_found": Exit.NOT_FOUND,
    "conflict": Exit.CONFLICT,
    "failed_precondition": Exit.PRECONDITION,
    "store": Exit.PRECONDITION,
    "unavailable": Exit.UNREACHABLE,
    "timeout": Exit.TIMEOUT,
    "read_only": Exit.PERMISSION,
    "permission": Exit.PERMISSION,
    "deployment_failed": Exit.DEPLOYMENT_FAILED,
}


def exit_of(error: AgentError) -> Exit:
    """The exit code for `error`; a code of a newer daemon that we do not know is `UNEXPECTED`."""
    return BY_CODE.get(error.code, Exit.UNEXPECTED)
