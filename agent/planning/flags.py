"""Flags that the very executable does not know, whatever its version: found before its start, by its own list. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from agent.engines.base import Engine, Located
from agent.planning.plan import Plan
from agent.status import Diagnosis, DiagnosisCode

_FLAG = re.compile(r"--?[A-Za-z][\w.-]*")


def unknown(arguments: Iterable[str], options: frozenset[str]) -> list[str]:
    """The flags among the arguments that are not in the list. `-` and `_` are one to the parsers that mix them."""
    known = {_plain(option) for option in options}
    flags = (argument.partition("=")[0] for argument in arguments)
    return [flag for flag in flags if _FLAG.fullmatch(flag) and _plain(flag) not in known]


def problem(plan: Plan, engine: Engine, located: Located) -> Diagnosis | None:
    """Why the plan's command would end with "unknown argument"; None where it does not, or where nobody knows."""
    if located.options is None:
        return None
    arguments = engine.command(plan, "127.0.0.1", 1).argv[len(plan.binary) :]
    lacking = unknown(arguments, located.options)
    if not lacking:
        return None
    own = [flag for flag in lacking if flag not in _flags(plan.extra_args)]
    if own:
        message = f"{sentence(own[0], located, engine.name)}, and the agent needs it"
        hint = f"install a version of {engine.name} that docs/reference/engines names, or choose another engine"
        return Diagnosis(DiagnosisCode.BAD_FLAG, message, hint=hint)
    return Diagnosis(DiagnosisCode.BAD_FLAG, sentence(lacking[0], located, engine.name), hint="change extra_args")


def sentence(flag: str, located: Located, engine: str) -> str:
    nearest = difflib.get_close_matches(flag, located.options or (), n=1, cutoff=0.75)
    guess = f"; the nearest that it knows is {nearest[0]}" if nearest else ""
    return f"{engine} {located.version} ({located.argv[0]}) does not know {flag}{guess}"


def _flags(arguments: Sequence[str]) -> set[str]:
    return {argument.partition("=")[0] for argument in arguments}


def _plain(flag: str) -> str:
    return flag.replace("_", "-")
