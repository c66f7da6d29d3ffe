"""A device's condition follows what was seen of it; a quarantine is lifted by an operator, and by nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.hardware import health as rules
from agent.hardware import xids
from agent.hardware.health import Health, Presence
from agent.hardware.inventory import Fault, Problem, Sample
from agent.hardware.xids import xid
from agent.status import DeviceCondition as C

GOOD = Sample("GPU-1", at=0.0, memory_used=1, ecc_uncorrected=0, rows_remap_pending=False, rows_remap_failed=False)
OLD = replace(GOOD, rows_remap_pending=None, rows_remap_failed=None)  # a GPU that does not remap rows
HOT = replace(GOOD, throttling=("sw-power-cap", "hw-thermal-slowdown"))
HANGS = Sample("GPU-1", at=0.0, problem=Problem("NoAnswer", "the driver did not answer within 2 s"))
GONE = Sample("GPU-1", at=0.0, problem=Problem("DeviceLost", "GPU is lost"))


def fault(number: int) -> Fault:
    return Fault("GPU-1", "xid", number, at=0.0)


ECC = Fault("GPU-1", "ecc", 0, at=0.0, message="a memory error")


def after(*seen, health: Health | None = None) -> Health:
    """One thing a second, from 1 on."""
    health = health or Health()
    for now, thing in enumerate(seen, 1):
        health = rules.assess(health, thing, float(now))
    return health


def state(health: Health) -> tuple[C, str]:
    return health.condition, health.reason


# Samples


def test_a_device_is_unknown_until_it_was_sampled_and_then_healthy():
    assert state(Health()) == (C.UNKNOWN, "NotSampled")
    assert state(after(GOOD)) == (C.HEALTHY, "Healthy")
    assert after(GOOD).since == 1


def test_since_is_when_the_condition_or_its_reason_changed():
    health = after(GOOD, GOOD, HANGS, HANGS)
    assert (health.since, *state(health)) == (3, C.UNKNOWN, "NoAnswer")
    assert health.message == "the driver did not answer within 2 s"
    assert after(GONE, health=health).since == 1


def test_a_device_that_does_not_answer_is_unknown_and_healthy_when_it_answers_again():
    assert state(after(GOOD, HANGS)) == (C.UNKNOWN, "NoAnswer")
    assert state(after(GOOD, HANGS, GOOD)) == (C.HEALTHY, "Healthy")


def test_without_a_sample_for_three_periods_nothing_is_known():
    health = after(GOOD)
    assert rules.overdue(health, 15.0, 5.0, 9.0) == health
    stale = rules.overdue(health, 15.1, 5.0, 9.0)
    assert state(stale) == (C.UNKNOWN, "Stale")
    assert state(after(GOOD, health=stale)) == (C.HEALTHY, "Healthy")


def test_an_old_no_answer_is_not_renamed_when_it_gets_stale():
    assert state(rules.overdue(after(GOOD, HANGS), 60.0, 5.0, 9.0)) == (C.UNKNOWN, "NoAnswer")


@pytest.mark.parametrize("lost", [GONE, Presence.VANISHED])
def test_a_lost_device_that_comes_back_is_healthy_again(lost):
    assert state(after(GOOD, lost)) == (C.LOST, "DeviceLost")
    assert state(after(GOOD, lost, lost)) == (C.LOST, "DeviceLost")
    assert state(after(GOOD, lost, Presence.RETURNED)) == (C.HEALTHY, "Healthy")
    assert state(after(GOOD, lost, GOOD)) == (C.HEALTHY, "Healthy")


def test_a_device_that_hung_before_it_was_lost_is_unknown_when_it_is_back_until_it_was_sampled():
    assert state(after(HANGS, Presence.VANISHED, Presence.RETURNED)) == (C.UNKNOWN, "NotSampled")


# Slowdowns


def test_a_slowdown_counts_after_three_samples_and_is_over_after_six_good_ones():
    assert state(after(GOOD, HOT, HOT)) == (C.HEALTHY, "Healthy")
    hot = after(GOOD, HOT, HOT, HOT)
    assert state(hot) == (C.DEGRADED, "ThermalSlowdown")
    assert state(after(*[GOOD] * 5, health=hot)) == (C.DEGRADED, "ThermalSlowdown")
    assert state(after(*[GOOD] * 6, health=hot)) == (C.HEALTHY, "Healthy")


def test_a_slowdown_that_comes_and_goes_does_not_flap():
    hot = after(*[HOT] * 3)
    for _ in range(5):
        hot = after(GOOD, GOOD, GOOD, HOT, health=hot)
        assert state(hot) == (C.DEGRADED, "ThermalSlowdown")
    assert state(after(*[HOT, HOT, GOOD] * 5)) == (C.HEALTHY, "Healthy")


@pytest.mark.parametrize("word", ["hw-power-brake", "hw-power-brake-slowdown"])
def test_a_power_brake_is_a_slowdown_too(word):
    assert state(after(*[replace(GOOD, throttling=(word,))] * 3)) == (C.DEGRADED, "PowerBrake")


def test_what_software_does_about_power_is_no_slowdown():
    words = ("sw-power-cap", "applications-clocks", "sync-boost")
    assert state(after(*[replace(GOOD, throttling=words)] * 9)) == (C.HEALTHY, "Healthy")


# Memory errors


def test_uncorrected_errors_degrade_a_gpu_that_remaps_rows_until_its_reset():
    two = replace(GOOD, ecc_uncorrected=2)
    health = after(GOOD, two)
    assert state(health) == (C.DEGRADED, "UncorrectedErrors")
    assert health.message.startswith("2 uncorrected memory errors")
    assert state(after(GOOD, health=health)) == (C.HEALTHY, "Healthy")


@pytest.mark.parametrize("bad", [replace(OLD, ecc_uncorrected=1), ECC])
def test_an_uncorrected_error_quarantines_a_gpu_that_does_not_remap_rows(bad):
    health = after(OLD, bad)
    assert state(health) == (C.QUARANTINED, "UncorrectedErrors")
    assert health.sticks
    assert state(after(OLD, health=health)) == (C.QUARANTINED, "UncorrectedErrors")


def test_an_ecc_event_degrades_a_gpu_that_remaps_rows_until_its_reset():
    pending = replace(GOOD, rows_remap_pending=True)
    assert state(after(GOOD, ECC, GOOD)) == (C.DEGRADED, "UncorrectedErrors")
    assert state(after(GOOD, ECC, pending, GOOD)) == (C.HEALTHY, "Healthy")
    assert state(after(GOOD, ECC, GOOD, Presence.VANISHED, Presence.RETURNED)) == (C.HEALTHY, "Healthy")


def test_a_gpu_that_does_not_say_for_once_whether_it_remaps_rows_is_one_that_does():
    assert state(after(GOOD, replace(OLD, ecc_uncorrected=1))) == (C.DEGRADED, "UncorrectedErrors")


def test_an_ecc_event_before_the_first_sample_is_judged_by_that():
    assert state(after(ECC)) == (C.UNKNOWN, "NotSampled")
    assert state(after(ECC, Presence.VANISHED, Presence.RETURNED, OLD)) == (C.QUARANTINED, "UncorrectedErrors")
    assert state(after(ECC, GOOD)) == (C.DEGRADED, "UncorrectedErrors")
    assert state(after(ECC, OLD)) == (C.QUARANTINED, "UncorrectedErrors")


def test_a_pending_remap_degrades_and_a_failed_one_quarantines():
    assert state(after(replace(GOOD, rows_remap_pending=True))) == (C.DEGRADED, "RowRemapPending")
    assert state(after(replace(GOOD, rows_remap_pending=True), GOOD)) == (C.HEALTHY, "Healthy")
    assert state(after(replace(GOOD, rows_remap_failed=True), GOOD)) == (C.QUARANTINED, "RowRemapFailed")


# XIDs


@pytest.mark.parametrize("number", [13, 31, 43, 45, 154, 100_000])
def test_errors_of_applications_and_unknown_ones_change_nothing(number):
    assert after(GOOD, fault(number)) == after(GOOD)
    assert rules.explained(fault(number)).startswith(f"XID {number}, ")


@pytest.mark.parametrize("number", [46, 48, 62, 64, 95, 119, 120, 140, 143])
def test_fatal_errors_quarantine(number):
    health = after(GOOD, fault(number), GOOD, Presence.VANISHED, Presence.RETURNED, GOOD)
    assert state(health) == (C.QUARANTINED, f"Xid{number}")
    assert health.message == xid(number).message


@pytest.mark.parametrize("number", [74, 92, 94])
def test_contained_errors_degrade_until_a_reset_is_seen(number):
    health = after(GOOD, fault(number), GOOD, GOOD)
    assert state(health) == (C.DEGRADED, f"Xid{number}")
    back = after(Presence.VANISHED, Presence.RETURNED, GOOD, health=health)
    assert state(back) == (C.HEALTHY, "Healthy")
    remapped = after(replace(GOOD, rows_remap_pending=True), GOOD, health=health)
    assert state(remapped) == (C.HEALTHY, "Healthy")
    counted_anew = after(replace(GOOD, ecc_uncorrected=3), GOOD, health=health)
    assert state(counted_anew) == (C.HEALTHY, "Healthy")


def test_a_recorded_remap_counts_as_long_as_the_driver_does_not_say_that_none_is_pending():
    assert state(after(OLD, fault(63), OLD)) == (C.DEGRADED, "Xid63")
    assert state(after(GOOD, fault(63))) == (C.DEGRADED, "Xid63")
    assert state(after(GOOD, fault(63), GOOD)) == (C.HEALTHY, "Healthy")


def test_a_gpu_off_the_bus_is_lost_and_quarantined_when_it_is_back():
    health = after(GOOD, fault(79))
    assert state(health) == (C.LOST, "Xid79")
    assert state(after(Presence.VANISHED, health=health)) == (C.LOST, "Xid79")
    back = after(Presence.RETURNED, GOOD, health=health)
    assert state(back) == (C.QUARANTINED, "Xid79")
    assert state(rules.released(back, 9.0)) == (C.HEALTHY, "Healthy")


def test_a_lost_device_says_that_it_is_quarantined_too():
    health = after(GOOD, fault(48), Presence.VANISHED)
    assert state(health) == (C.LOST, "DeviceLost")
    assert health.message.endswith("quarantined, too")


def test_the_first_ground_of_a_quarantine_stays():
    assert state(after(GOOD, fault(95), fault(48))) == (C.QUARANTINED, "Xid95")


# Operators


def test_an_operator_quarantines_and_releases():
    health = rules.quarantined(after(GOOD), "fan rattles", 7.0)
    assert (health.since, *state(health)) == (7, C.QUARANTINED, "OperatorQuarantine")
    assert "fan rattles" in health.message
    assert state(after(GOOD, health=health)) == (C.QUARANTINED, "OperatorQuarantine")
    assert state(rules.released(health, 8.0)) == (C.HEALTHY, "Healthy")


def test_a_quarantine_holds_while_the_device_does_not_answer():
    health = rules.quarantined(after(GOOD), "x", 7.0)
    assert state(rules.overdue(after(HANGS, health=health), 60.0, 5.0, 9.0)) == (C.QUARANTINED, "OperatorQuarantine")


def test_released_errors_do_not_quarantine_again_and_new_ones_do():
    three, four = replace(OLD, ecc_uncorrected=3), replace(OLD, ecc_uncorrected=4)
    health = rules.released(after(OLD, three), 5.0)
    assert state(health) == (C.HEALTHY, "Healthy")
    assert state(after(three, three, health=health)) == (C.HEALTHY, "Healthy")
    more = after(three, four, health=health)
    assert state(more) == (C.QUARANTINED, "UncorrectedErrors")
    assert more.message.startswith("1 uncorrected memory error:")


def test_after_a_driver_reload_released_errors_count_anew():
    health = rules.released(after(OLD, replace(OLD, ecc_uncorrected=3)), 5.0)
    assert state(after(OLD, replace(OLD, ecc_uncorrected=1), health=health)) == (C.QUARANTINED, "UncorrectedErrors")


def test_a_released_remap_failure_is_still_told_but_quarantines_no_more():
    failed = replace(GOOD, rows_remap_failed=True)
    health = rules.released(after(failed), 5.0)
    assert state(after(failed, health=health)) == (C.DEGRADED, "RowRemapFailed")


# Restarts


def restarted(health: Health, now: float = 50.0) -> Health:
    return rules.from_json(rules.to_json(health), now)


def test_a_quarantine_and_its_time_survive_a_restart():
    health = after(GOOD, fault(48), Presence.VANISHED)
    again = restarted(health)
    assert (again.since, *state(again)) == (2, C.QUARANTINED, "Xid48")
    assert again.message == xid(48).message
    assert rules.to_json(again) == rules.to_json(health)


def test_what_was_released_stays_released_after_a_restart():
    bad = replace(OLD, ecc_uncorrected=3)
    assert state(after(bad, health=restarted(rules.released(after(bad), 5.0)))) == (C.HEALTHY, "Healthy")
    failed = replace(GOOD, rows_remap_failed=True)
    assert after(failed, health=restarted(rules.released(after(failed), 5.0))).condition is C.DEGRADED


def test_a_release_before_the_first_sample_is_one_of_what_was_counted_before_the_restart():
    bad = replace(OLD, ecc_uncorrected=3)
    assert state(after(bad, health=rules.released(restarted(after(bad)), 51.0))) == (C.HEALTHY, "Healthy")


def test_a_device_without_a_past_leaves_no_record():
    for health in (Health(), after(GOOD, HANGS), after(GOOD, fault(94)), after(*[HOT] * 4), after(GONE)):
        assert rules.to_json(health) == ""
    assert state(rules.from_json("", 50.0)) == (C.UNKNOWN, "NotSampled")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "7",
        '"x"',
        "null",
        '{"reason": "x"}',
        '{"reason": "x", "message": "y", "at": NaN}',
        '{"errors": "many"}',
    ],
)
def test_a_record_that_cannot_be_read_is_a_quarantine(text):
    health = rules.from_json(text, 50.0)
    assert (health.since, *state(health)) == (50, C.QUARANTINED, "RecordDamaged")


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_no_record_stops_the_daemon(text):
    rules.from_json(text, 50.0)


# What always holds

SEEN = st.sampled_from(
    [HANGS, GONE, ECC, Presence.VANISHED, Presence.RETURNED, *map(fault, (13, 48, 63, 79, 94, 154))]
) | st.builds(
    lambda base, errors, pending, failed, hot: replace(
        base,
        ecc_uncorrected=errors,
        rows_remap_pending=None if base is OLD else pending,
        rows_remap_failed=None if base is OLD else failed,
        throttling=("hw-thermal-slowdown",) if hot else (),
    ),
    base=st.sampled_from([GOOD, OLD]),
    errors=st.none() | st.integers(0, 3),
    pending=st.booleans(),
    failed=st.booleans(),
    hot=st.booleans(),
)


@given(st.lists(SEEN, max_size=12), st.integers(0, 12))
def test_only_a_release_lifts_a_quarantine(seen, when):
    health = Health()
    for number, thing in enumerate(seen):
        before = health.quarantine
        health = rules.assess(health, thing, float(number))
        if number == when:
            health = restarted(health)
        assert before is None or health.quarantine == before
        assert (health.condition in {C.QUARANTINED, C.LOST}) if health.sticks else health.condition is not C.QUARANTINED


@given(st.sampled_from([GOOD, OLD]), st.data())
def test_whether_a_device_is_quarantined_does_not_depend_on_the_order_of_what_was_seen(kind, data):
    """Of one device, which always or never keeps account of bad memory, and was sampled at last."""
    of_kind = SEEN.filter(lambda thing: not isinstance(thing, Sample) or thing.problem or _like(thing, kind))
    seen = data.draw(st.lists(of_kind, max_size=8))
    other = data.draw(st.permutations(seen))
    assert after(*seen, kind).sticks == after(*other, kind).sticks


def _like(sample: Sample, kind: Sample) -> bool:
    return (sample.rows_remap_pending is None) == (kind.rows_remap_pending is None)


@given(st.lists(SEEN, max_size=12))
def test_a_reason_is_a_stable_word_and_every_bad_condition_has_a_sentence(seen):
    health = after(*seen)
    assert health.reason.isalnum()
    assert health.reason[0].isupper()
    assert bool(health.message) == (health.condition is not C.HEALTHY)


# The table of XIDs


def test_each_xid_stands_in_the_table_once():
    assert len(list(xids._rows())) == len(xids.XIDS) > 100
    assert list(xids.XIDS) == sorted(xids.XIDS)


def test_every_xid_says_what_happened_and_what_to_do():
    for number, error in xids.XIDS.items():
        assert error.message.startswith(f"XID {number}, ")
        assert error.what
        assert error.advice
