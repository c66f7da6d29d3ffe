"""What `@frozen` makes is what `@dataclass(frozen=True, slots=True)` makes."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, replace

import pytest

from agent.frozen import frozen

# A dataclass decorator writes into the class that it is given: each gets one of its own.


def point() -> type:
    class Point:
        x: int
        y: int = 0
        note: str = field(default="", compare=False, repr=False)

    return Point


def one() -> type:
    class One:
        x: int

    return One


def nothing() -> type:
    class Nothing:
        pass

    return Nothing


def own() -> type:
    class Own:
        x: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, type(self)) and self.x % 2 == other.x % 2  # type: ignore[attr-defined]

        def __hash__(self) -> int:
            return self.x % 2

        def __repr__(self) -> str:
            return f"<{self.x}>"

    return Own


@frozen
class Kept:
    """At the top of the module, where pickle finds it."""

    x: int
    y: tuple[int, ...] = ()


CASES = [
    (point, [(1,), (1, 0), (1, 2), (2, 1), (1, 0, "said")]),
    (one, [(1,), (2,), ("one",)]),
    (nothing, [()]),
    (own, [(1,), (2,), (3,)]),
]


@pytest.mark.parametrize(("declared", "contents"), CASES, ids=[declared.__name__ for declared, _ in CASES])
def test_it_compares_hashes_and_prints_as_a_dataclass_does(declared, contents):
    ours, theirs = frozen(declared()), dataclass(frozen=True, slots=True)(declared())

    assert [repr(ours(*each)) for each in contents] == [repr(theirs(*each)) for each in contents]
    for first in contents:
        for second in contents:
            equal = theirs(*first) == theirs(*second)
            assert (ours(*first) == ours(*second)) is equal
            assert (hash(ours(*first)) == hash(ours(*second))) is equal


def test_records_of_two_classes_are_never_equal():
    assert frozen(one())(1) != frozen(one())(1)
    assert frozen(one())(1) != 1


def test_it_cannot_be_changed_and_has_no_other_fields():
    record = Kept(1)

    with pytest.raises(FrozenInstanceError):
        record.x = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del record.x
    assert not hasattr(record, "__dict__")


def test_the_tools_for_dataclasses_take_it():
    record = Kept(1, (2, 3))

    assert replace(record, x=4) == Kept(4, (2, 3))
    assert asdict(record) == {"x": 1, "y": (2, 3)}
    assert pickle.loads(pickle.dumps(record)) == copy.deepcopy(record) == record
    match record:
        case Kept(x, y):
            assert (x, y) == (1, (2, 3))
