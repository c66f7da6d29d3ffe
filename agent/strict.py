"""What a person writes becomes frozen data, or an error that says where it is wrong and what would be right.

`Strict` is the base of the models of specs and of the node configuration; `validate` is the only way in. It turns
every complaint of pydantic into a `FieldViolation`: a dotted path and a rule with what was found instead, such as
`limits.max_num_seqs: must be at least 1 (got 0)`. Values of private sections (secrets, environment) are never
repeated, because errors end in logs and events.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from agent.errors import FieldViolation, InvalidArgument

#: An answer names at most this many problems, and repeats at most this much of a key or value: errors travel in
#: gRPC trailers, which peers cut off at 8 KiB.
MAX_VIOLATIONS = 8
MAX_ECHO = 60
MAX_PATH = 120

#: Tags of discriminated unions begin with this and are left out of paths.
TAG = "|"


class Strict(BaseModel):
    """Frozen; no conversions between types; unknown keys are errors; NaN and infinity are not numbers."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        defer_build=True,  # start-up time: sections are built as parts of the whole, not each on its own too
    )

    #: Top-level keys below which errors do not repeat what was written.
    private: ClassVar[frozenset[str]] = frozenset()


M = TypeVar("M", bound=Strict)


def validate(model: type[M], data: object, root: str, origin: Callable[[str], str] = lambda _: "") -> M:
    """The data as a `model`. Raises `InvalidArgument`.

    `root` names the whole where no single field is to blame; `origin` says where the value of a field was written.
    """
    try:
        return model.model_validate(dict(data) if isinstance(data, Mapping) else data)
    except ValidationError as error:
        problems = _without_echoes(error.errors(include_url=False))
    # Outside of the handler: pydantic's error repeats what was written, and must not be carried along as context.
    violations = [_violation(model, problem, root) for problem in problems[:MAX_VIOLATIONS]]
    told = (FieldViolation(found.field, found.rule + origin(found.field)) for found in violations)
    raise invalid(*told, more=len(problems) - 1)


def invalid(*violations: FieldViolation, more: int = 0) -> InvalidArgument:
    """One error for all broken rules; its message is the first of them, and how many `more` there are."""
    message = f"{violations[0].field}: {violations[0].rule}"
    if more:
        message += f" (and {more} more problem{'s' if more > 1 else ''})"
    return InvalidArgument(message, violations=violations)


def broken(rule: str, field: str | None = None) -> PydanticCustomError:
    """To raise in a validator: `rule` says what is valid, and what was found is added to it.

    With `field` the rule stands as it is: on that field of the model, or with "" on the value itself.
    """
    return PydanticCustomError("rule", "{rule}", {"rule": rule, "field": field})


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    names = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    return names[matches[0]] if matches else None


def unknown(kind: str, word: str, known: Sequence[str]) -> str:
    """The rule that an unknown word broke: the nearest known one, or all of them."""
    near = nearest(word, known)
    advice = f"did you mean {near!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown {kind} {echo(word)}; {advice}"


def sections(model: type[Strict], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[Strict]]]:
    """Each model in `model` that a person sees as a section, itself first, with its path."""
    yield path, model
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Strict):
            yield from sections(field.annotation, (*path, name))


def dotted(path: Iterable[str | int]) -> str:
    """`("policy", "engines", 0)` -> `policy.engines[0]`, whatever the keys contain."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_printable(part)}" for part in path).removeprefix(".")
    return text if len(text) <= MAX_PATH else text[: MAX_PATH - 1] + "…"


def echo(value: object) -> str:
    """A value as it may appear in an error: short, on one line, printable."""
    if isinstance(value, int) and abs(value) >= 10**MAX_ECHO:
        return "a huge number"  # Python refuses to print thousands of digits
    text = f"'{_printable(value)}'" if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= MAX_ECHO else text[: MAX_ECHO - 1] + "…"


def plain(number: float) -> str:
    """A number as a person writes it: 300 and 0.25, not 300.0 and 2.592e+06."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]


#: What each kind of complaint of pydantic means, with the names that pydantic gives to the bounds.
_RULES: Mapping[str, str] = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping of names to values",
    "enum": "must be {expected}",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_type": "must be a whole number",
    "invalid_key": "keys must be strings",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "missing": "is required",
    "model_type": "must be a mapping of keys to values",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} character",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode text",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entry",
    "tuple_type": "must be a list",
}
_SELF_EVIDENT = frozenset({"missing", "too_long", "too_short"})


def _without_echoes(problems: Sequence[ErrorDetails]) -> Sequence[ErrorDetails]:
    """A wrong entry does not make its list too short as well."""
    inside = {problem["loc"][:-1] for problem in problems}
    return [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in inside]


def _violation(model: type[Strict], problem: ErrorDetails, root: str) -> FieldViolation:
    kind, context = problem["type"], problem.get("ctx", {})
    path = [part for part in problem["loc"] if not str(part).startswith(TAG) and part != "[key]"]
    private = bool(path) and path[0] in model.private
    if kind == "extra_forbidden":
        rule = unknown("key", str(path[-1]), _keys(model, path[:-1])) if path else "unknown key"
    elif kind == "rule":
        own = context["field"] is not None or "[key]" in problem["loc"]
        path += [context["field"]] if context["field"] else []
        rule = context["rule"] + ("" if own else _found(problem["input"], kind, private=private))
    else:
        values = {name: plain(value) if isinstance(value, float) else value for name, value in context.items()}
        rule = _RULES[kind].format(**values) if kind in _RULES else problem["msg"]
        rule += "" if kind in _SELF_EVIDENT else _found(problem["input"], kind, private=private)
        rule += _meant(problem["input"], context)
    if private:  # `NAME=value` written as one key must not end in a log
        path = [part.partition("=")[0] if isinstance(part, str) else part for part in path]
    return FieldViolation(dotted(path) or root, rule)


def _keys(model: type[Strict], path: Sequence[str | int]) -> Sequence[str]:
    """The keys that are known at `path`."""
    for part in path:
        field = model.model_fields.get(str(part))
        model = (model_in(field.annotation) if field else None) or model
    return tuple(model.model_fields)


def model_in(annotation: Any) -> type[Strict] | None:
    """The model in `Model`, `Model | None` or `dict[str, Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)


_KINDS: Sequence[tuple[type | tuple[type, ...], str]] = (
    (bool, "a boolean"),
    ((int, float), "a number"),
    (str, "a string"),
    (Mapping, "a mapping"),
    ((list, tuple), "a list"),
)
_ADVICE: Mapping[tuple[str, str], str] = {
    ("string_type", "a boolean"): "; YAML reads no, off, on and yes as booleans: put it in quotes",
    ("string_type", "a number"): ": put it in quotes",
    ("int_type", "a string"): ": write a number, without quotes",
    ("float_type", "a string"): ": write a number, without quotes",
    ("bool_type", "a string"): ": write it without quotes",
}


def _found(value: object, problem: str, *, private: bool) -> str:
    if value is None:
        return " (got nothing)"
    kind = next((name for types, name in _KINDS if isinstance(value, types)), "something else")
    shown = kind if private or not isinstance(value, str | int | float) else echo(value)
    advice = _ADVICE.get((problem, kind), "")
    return f" (got {shown}{f', {kind}' if advice and shown != kind else ''}{advice})"


def _meant(value: object, context: Mapping[str, Any]) -> str:
    """`; did you mean 'chat'?` where one word out of a few was expected."""
    near = nearest(value, re.findall(r"'([^']*)'", context.get("expected", ""))) if isinstance(value, str) else None
    return f"; did you mean {near!r}?" if near else ""
