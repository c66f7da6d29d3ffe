"""What is removed to make room on the cache's disk, and why. Pure: the disk, the artifacts and the moment come in.

Two artifacts may share contents: what removing one frees depends on what went before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from agent.frozen import frozen


@frozen
class Candidate:
    """One artifact. Its `contents` are files by path, with their bytes on the disk."""

    key: str
    contents: Mapping[str, int]
    used_at: float  # Unix seconds
    whole: bool  # else a part of a pull, or what nobody recorded
    kept_for: str = ""  # why it must stay; "": nobody wants it


@frozen
class Marks:
    """`high`, `low`: fractions of the disk in use. Ages in seconds."""

    high: float
    low: float
    min_age: float
    partial_age: float


class Disk(NamedTuple):
    total: int
    free: int  # for the agent's user

    @property
    def used(self) -> float:
        """The fraction in use, as df counts it."""
        return 1 - self.free / self.total if self.total else 0.0

    def excess(self, mark: float) -> int:
        """Bytes in use above a mark."""
        return max(0, round((self.used - mark) * self.total))


@frozen
class Removal:
    key: str
    frees: int  # bytes, after those before it went
    reason: str


def abandoned(candidates: Iterable[Candidate], marks: Marks, now: float) -> Iterator[Removal]:
    """Parts of pulls that nobody goes on with."""
    for one in candidates:
        if not one.whole and not one.kept_for and now - one.used_at > marks.partial_age:
            reason = f"nobody went on with it for {age(now - one.used_at)}"
            yield Removal(one.key, sum(one.contents.values()), reason)


def everything(candidates: Sequence[Candidate], now: float) -> list[Removal]:
    """All that nobody wants."""
    return list(_removals(candidates, [one for one in candidates if not one.kept_for], now, "nobody wants it"))


def to_free(candidates: Sequence[Candidate], wanted: int, why: str, marks: Marks, now: float) -> list[Removal]:
    """What nobody wants, least recently used first, until `wanted` bytes are free. What would free nothing stays."""
    old = [one for one in candidates if not one.kept_for and now - one.used_at >= marks.min_age]
    going: list[Candidate] = []
    by_key, freed = {one.key: one for one in old}, 0
    for removal in _removals(candidates, old, now, why):
        if freed >= wanted:
            break
        going.append(by_key[removal.key])
        freed += removal.frees
    # One whose contents others still need helps nobody; one whose contents went with a later one did help.
    left = Counter(path for one in candidates for path in one.contents)
    left.subtract(path for one in going for path in one.contents)
    helpful = [one for one in going if any(not left[path] for path in one.contents)]
    return list(_removals(candidates, helpful, now, why))


def _removals(candidates: Sequence[Candidate], going: Sequence[Candidate], now: float, why: str) -> Iterator[Removal]:
    users = Counter(path for one in candidates for path in one.contents)
    for one in sorted(going, key=lambda one: (one.used_at, one.key)):
        users.subtract(one.contents.keys())
        frees = sum(count for path, count in one.contents.items() if not users[path])
        yield Removal(one.key, frees, f"{why}; last used {age(now - one.used_at)} ago")


def frees_alone(candidates: Sequence[Candidate]) -> dict[str, int]:
    """What removing each one of them, and no other, would free. By key."""
    users = Counter(path for one in candidates for path in one.contents)
    return {one.key: sum(count for path, count in one.contents.items() if users[path] == 1) for one in candidates}


def size(count: int) -> str:
    """For sentences: 1.5 GiB, 12 MiB."""
    for unit, name in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def age(seconds: float) -> str:
    for unit, letter in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {letter}"
    return f"{max(0, seconds):.0f} s"
