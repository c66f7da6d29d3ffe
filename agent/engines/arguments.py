"""What an adapter needs to judge extra arguments: an engine's recorded options, and the ones that it refuses.

A record is a text file beside the adapter: the spellings of one option a line, then how many values it takes: a number,
or ? (none or one), * (any number), + (one or more).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from agent.errors import FieldViolation

#: Values of an option of variable length: the least and the most.
_MANY = 1_000_000
_VARIABLE = {"?": (0, 1), "*": (0, _MANY), "+": (1, _MANY)}
_NUMBER = re.compile(r"-\d")


@dataclass(frozen=True, slots=True)
class Options:
    """The options that an engine knows: how many values each spelling takes (at least, at most), and why it may not be
    passed.
    """

    values: Mapping[str, tuple[int, int]]
    refused: Mapping[str, str]
    joins: bool = False  # the engine takes --flag=value too

    @classmethod
    def read(cls, record: str, refused: Mapping[str, str], *, joins: bool = False) -> Options:
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
        return cls({spelling: _arity(row[-1]) for row in rows for spelling in row[:-1]}, sentences, joins)

    def check(self, arguments: Sequence[str]) -> Iterator[FieldViolation]:
        """The rules that `arguments` break, by position (`extra_args[i]`)."""
        index = 0
        while index < len(arguments):
            flag, joined, _ = arguments[index].partition("=")
            rule, taken = self._rule(flag, bool(joined)), 0
            if not joined and flag in self.values:
                taken = self._taken(flag, arguments[index + 1 :])
                rule = rule or self._missing(flag, taken)
                taken = max(taken, self.values[flag][0])
            if rule:
                yield FieldViolation(f"extra_args[{index}]", rule)
            index += 1 + taken

    def _rule(self, flag: str, joined: bool) -> str:
        if flag in self.refused:
            return f"{flag} may not be given: {self.refused[flag]}"
        if flag not in self.values:
            if not flag.startswith("-"):
                return f"{flag!r} is not a flag; the engine takes no positional arguments"
            return f"unknown flag {flag}{self._guess(flag)}"
        if joined and not self.joins:
            return f"{flag} and its value must be two items of the list: the engine does not split at '='"
        if joined and self.values[flag][1] == 0:
            return f"{flag} takes no value"
        return ""

    def _guess(self, flag: str) -> str:
        nearest = next(iter(difflib.get_close_matches(flag, self.values, n=1)), "")
        if nearest in self.refused:  # to name another one would lead further away
            return f"; nor may {nearest} be given: {self.refused[nearest]}"
        return f"; did you mean {nearest}?" if nearest else ""

    def _taken(self, flag: str, following: Sequence[str]) -> int:
        """How many of the following items are its values: up to the next flag, which the engine may swallow."""
        least, most = self.values[flag]
        taken = 0
        for value in following[:most]:
            variable = taken >= least and value.startswith("-") and not _NUMBER.match(value)
            if variable or value.partition("=")[0] in self.values:
                break
            taken += 1
        return taken

    def _missing(self, flag: str, taken: int) -> str:
        least, most = self.values[flag]
        if taken >= least:
            return ""
        return f"{flag} takes {'at least ' if most > least else ''}{least} value{'s' if least > 1 else ''}"


def _arity(text: str) -> tuple[int, int]:
    return _VARIABLE[text] if text in _VARIABLE else (int(text), int(text))
