"""What an adapter needs to judge extra arguments: an engine's recorded options, and the ones that it refuses.

A record is a text file beside the adapter: the spellings of one option a line, then how many values it takes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from agent.errors import FieldViolation


@dataclass(frozen=True, slots=True)
class Options:
    """The options that an engine knows: how many values each spelling takes, and why it may not be passed."""

    values: Mapping[str, int]
    refused: Mapping[str, str]

    @classmethod
    def read(cls, record: str, refused: Mapping[str, str]) -> Options:
        """Read the record of that name in `agent.engines`. `refused` maps spellings (several in one key, separated
        by spaces) to a sentence; it holds for all spellings of the same options. Raises `KeyError` for an option
        that the record lacks, so that the two cannot drift apart.
        """
        text = resources.files("agent.engines").joinpath(record).read_text(encoding="utf-8")
        rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
        aliases = {spelling: row[:-1] for row in rows for spelling in row[:-1]}
        sentences = {
            alias: sentence for keys, sentence in refused.items() for key in keys.split() for alias in aliases[key]
        }
        return cls({spelling: int(row[-1]) for row in rows for spelling in row[:-1]}, sentences)

    def check(self, arguments: Sequence[str]) -> Iterator[FieldViolation]:
        """The rules that `arguments` break, by position (`extra_args[i]`)."""
        index = 0
        while index < len(arguments):
            flag, joined, _ = arguments[index].partition("=")
            rule = self._rule(flag, bool(joined)) or self._missing(flag, arguments[index + 1 :])
            if rule:
                yield FieldViolation(f"extra_args[{index}]", rule)
            index += 1 + self.values.get(flag, 0)

    def _rule(self, flag: str, joined: bool) -> str:
        if flag in self.refused:
            return f"{flag} may not be given: {self.refused[flag]}"
        if flag not in self.values:
            if not flag.startswith("-"):
                return f"{flag!r} is not a flag; the engine takes no positional arguments"
            nearest = difflib.get_close_matches(flag, self.values.keys() - self.refused.keys(), n=1)
            return f"unknown flag {flag}" + (f"; did you mean {nearest[0]}?" if nearest else "")
        if joined:
            return f"{flag} and its value must be two items of the list: the engine does not split at '='"
        return ""

    def _missing(self, flag: str, following: Sequence[str]) -> str:
        """A value that is missing, or that is the next flag, which the engine would swallow."""
        wanted = self.values[flag]
        if len(following) < wanted or any(value in self.values for value in following[:wanted]):
            return f"{flag} takes {wanted} value{'s' if wanted > 1 else ''}"
        return ""
