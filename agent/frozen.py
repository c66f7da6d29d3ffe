"""Records: frozen dataclasses with slots, whose classes are made in half the time.

`dataclass` writes six methods of each class as text and compiles them, at every start of the daemon: with a hundred and
more records a fifth of it. Comparing, hashing and printing need no text of their own. It takes them a little longer, so
that planning, which the start does not import and which compares all the time, has its dataclasses as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

C = TypeVar("C")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[C]) -> type[C]:
    """`@dataclass(frozen=True, slots=True)`: the same to whoever uses it, also `fields`, `replace` and `asdict`."""
    made = dataclass(frozen=True, slots=True, eq=False, repr=False)(cls)
    declared = fields(made)  # type: ignore[arg-type]  # it is a dataclass now
    values = _values([each.name for each in declared if each.compare])
    shown = [each.name for each in declared if each.repr]

    def equal(self: object, other: object) -> bool:
        return values(self) == values(other) if self.__class__ is other.__class__ else NotImplemented

    def hashed(self: object) -> int:
        return hash(values(self))

    def printed(self: object) -> str:
        content = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"{self.__class__.__qualname__}({content})"

    for name, method in (("__eq__", equal), ("__hash__", hashed), ("__repr__", printed)):
        if vars(cls).get(name) is None:
            setattr(made, name, method)
    return made


def _values(names: list[str]) -> Callable[[object], Any]:
    """Reads what counts when records are compared; of several fields, a tuple."""
    return attrgetter(*names) if names else lambda _: ()
