"""What goes when the disk fills: in which order, how much, and never what somebody wants."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.supervision import garbage
from agent.supervision.garbage import Candidate, Disk, Marks, Removal

GIB = 1024**3
HOUR, DAY = 3600.0, 86_400.0
NOW = 1_700_000_000.0
MARKS = Marks(high=0.9, low=0.8, min_age=HOUR, partial_age=7 * DAY)


def held(key: str, days: float = 3, *, gib: int = 1, kept_for: str = "", whole: bool = True) -> Candidate:
    return Candidate(key, {f"/{key}": gib * GIB}, NOW - days * DAY, whole, kept_for)


def going(candidates: list[Candidate], gib: int) -> list[str]:
    return [one.key for one in garbage.to_free(candidates, gib * GIB, "full", MARKS, NOW)]


def test_the_least_recently_used_goes_first_and_no_more_than_is_needed() -> None:
    found = [held("new", 1), held("old", 9), held("older", 10), held("mid", 5)]
    assert going(found, 2) == ["older", "old"]
    assert going(found, 99) == ["older", "old", "mid", "new"]


def test_what_somebody_wants_stays_however_old_it_is() -> None:
    found = [held("wanted", 400, kept_for="deployment chat wants it"), held("free", 1)]
    assert going(found, 99) == ["free"]
    assert [one.key for one in garbage.everything(found, NOW)] == ["free"]


def test_what_was_used_lately_stays_unless_all_shall_go() -> None:
    found = [held("fresh", 0.9 / 24)]
    assert going(found, 1) == []
    assert [one.key for one in garbage.everything(found, NOW)] == ["fresh"]


def test_the_disk_counts_as_df_counts_it() -> None:
    disk = Disk(total=100 * GIB, free=5 * GIB)
    assert round(disk.used, 3) == 0.95
    assert (disk.excess(0.8), disk.excess(0.95), disk.excess(0.99)) == (15 * GIB, 0, 0)
    assert Disk(0, 0).excess(0.9) == 0


def test_shared_contents_become_free_with_the_last_of_their_users() -> None:
    weights, card = {"/weights": 4 * GIB}, {"/card": GIB}
    first = Candidate("first", weights, NOW - 9 * DAY, True)
    second = Candidate("second", weights | card, NOW - 8 * DAY, True)
    assert [(one.key, one.frees) for one in garbage.to_free([first, second], GIB, "full", MARKS, NOW)] == [
        ("first", 0), ("second", 5 * GIB),
    ]  # fmt: skip
    assert garbage.frees_alone([first, second]) == {"first": 0, "second": GIB}


def test_what_would_free_nothing_stays() -> None:
    pinned = Candidate("pinned", {"/weights": 4 * GIB}, NOW - 9 * DAY, True, "it is pinned")
    same = Candidate("same", {"/weights": 4 * GIB}, NOW - 9 * DAY, True)
    assert going([pinned, same, held("other", 1)], 1) == ["other"]
    assert going([pinned, same], 1) == []


def test_a_pull_that_nobody_goes_on_with_ages_out() -> None:
    found = [
        held("rests", 6, whole=False), held("left", 8, whole=False), held("whole", 99),
        held("wanted", 99, whole=False, kept_for="deployment chat wants it"),
    ]  # fmt: skip
    assert list(garbage.abandoned(found, MARKS, NOW)) == [Removal("left", GIB, "nobody went on with it for 8 d")]


candidates = st.lists(
    st.builds(
        Candidate,
        key=st.uuids().map(str),
        contents=st.dictionaries(st.sampled_from("abcdef"), st.just(GIB), min_size=1),
        used_at=st.floats(NOW - 9 * DAY, NOW),
        whole=st.booleans(),
        kept_for=st.sampled_from(["", "", "it is pinned"]),
    ),
    max_size=8,
    unique_by=lambda one: one.key,
)


@given(candidates, st.integers(1, 8))
def test_nothing_wanted_goes_and_what_is_said_to_be_freed_is_what_is_left_without_users(
    found: list[Candidate], gib: int
) -> None:
    chosen = garbage.to_free(found, gib * GIB, "full", MARKS, NOW)
    gone = {one.key for one in chosen}
    left = {path for one in found if one.key not in gone for path in one.contents}
    free = {path for one in found for path in one.contents} - left
    assert not any(one.kept_for or NOW - one.used_at < HOUR for one in found if one.key in gone)
    assert sum(one.frees for one in chosen) == len(free) * GIB
    # Each of them helps: without it, less would be free.
    for one in found:
        if one.key in gone:
            assert free & one.contents.keys()
