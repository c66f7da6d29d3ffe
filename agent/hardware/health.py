"""How a device is: its condition, out of samples, faults and what detection says of its presence.

Pure. One immutable `Health` a device, and a function for each thing that can happen to it. What sticks (a quarantine)
is lifted by `released` only, an operator's act; all else heals when what it stands on is gone. Until a release, whether
a device is quarantined does not depend on the order of what was seen of it.

Uncorrected memory errors are not all alike. Where the driver keeps account of bad rows and pages (it answers
`rows_remap_pending`: NVIDIA since Ampere, AMD with page retirement) it takes them out of use, and NVIDIA tells what it
could not contain as an XID, which quarantines; so their number alone is Degraded there. Elsewhere it is a quarantine:
nothing says that the bad cell is not used again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any

from agent.frozen import frozen
from agent.hardware.inventory import Fault, Sample
from agent.hardware.xids import Effect, Xid, xid
from agent.status import DeviceCondition

#: Samples in a row with a hardware slowdown that make a device Degraded: one is a spike, three last.
HOT_SAMPLES = 3
#: Samples in a row without one that lift it. More than above, so that it does not flap at the limit.
COOL_SAMPLES = 6
#: Periods without a sample after which nothing is known any more: one may be late, two may be chance.
STALE_PERIODS = 3


class Presence(StrEnum):
    """What detection says of a device that was known."""

    VANISHED = "vanished"
    RETURNED = "returned"


@frozen
class Ground:
    """One reason for a condition: a stable CamelCase code, and a sentence that says what to do."""

    reason: str
    message: str


NOT_SAMPLED = Ground("NotSampled", "not looked at yet")
STALE = Ground("Stale", "no sample for a while: its driver hangs, or the watcher is being replaced")
LOST = Ground("DeviceLost", "not found any more: check power and seat of the card, and the kernel's log")
REMAP_FAILED = Ground("RowRemapFailed", "bad memory could not be replaced by spare memory: replace the GPU")
REMAP_PENDING = Ground(
    "RowRemapPending", "bad memory is out of use until a reset brings in spare memory: reset it soon"
)
RECORD_DAMAGED = Ground("RecordDamaged", "the record of its quarantine is damaged: check the device, then release it")
#: By what the driver's word for it begins with.
SLOWDOWNS: Mapping[str, Ground] = {
    "hw-thermal-slowdown": Ground(
        "ThermalSlowdown", "too hot, so that the hardware slows it down: check fans, airflow and the room"
    ),
    "hw-power-brake": Ground(
        "PowerBrake", "the power supply slows it down: check its capacity, and the node's power limits"
    ),
}


@frozen
class Health:
    """The state of one device. The first four are for others; the rest is what they are made from."""

    condition: DeviceCondition = DeviceCondition.UNKNOWN
    reason: str = NOT_SAMPLED.reason
    message: str = NOT_SAMPLED.message
    since: float = 0.0  # Unix seconds
    quarantine: Ground | None = None  # sticks
    quarantined_at: float = 0.0  # Unix seconds
    absent: Ground | None = None
    silent: Ground | None = NOT_SAMPLED
    until_reset: tuple[int, ...] = ()  # XIDs, in order of arrival
    slowdown: Ground | None = None
    hot: int = 0  # samples in a row with a slowdown
    cool: int = 0  # and without
    errors: int = 0  # uncorrected errors since the driver was loaded, as last seen
    errors_released: int = 0  # how many of them an operator has seen and released
    error_told: bool = False  # the driver told one by itself, and no reset was seen since
    remaps: bool | None = None  # whether the driver keeps account of bad memory; None: not sampled yet
    remap_pending: bool = False
    remap_failed: bool = False
    remap_failure_released: bool = False

    @property
    def sticks(self) -> bool:
        """Whether only an operator lifts it, also after a restart."""
        return self.quarantine is not None


def assess(health: Health, seen: Sample | Fault | Presence, now: float) -> Health:
    """After what was seen. A fault of a whole GPU is to be told to each of its slices. `now`: Unix seconds."""
    match seen:
        case Fault():
            health = _faulted(health, seen, now)
        case Sample(problem=None):
            health = _with_quarantine(_with_slowdown(_sampled(health, seen), seen), now)
        case Sample(problem=problem) if problem is not None:
            ground = Ground(problem.code, problem.message)
            health = _gone(health, ground) if problem.code == LOST.reason else replace(health, silent=ground)
        case Presence.VANISHED:
            health = _gone(health, LOST)
        case Presence.RETURNED:  # with a driver that began anew, or after a reset; it answers, so old silence is over
            health = replace(_reset(health), absent=None, silent=health.silent and NOT_SAMPLED)
    return _settled(health, now)


def overdue(health: Health, silence: float, period: float, now: float) -> Health:
    """After `silence` seconds without a sample (by a monotonic clock), of which one is due in each `period`."""
    stale = silence > STALE_PERIODS * period
    return _settled(replace(health, silent=health.silent or STALE), now) if stale else health


def quarantined(health: Health, why: str, now: float) -> Health:
    """By an operator's order."""
    return _settled(_quarantine(health, Ground("OperatorQuarantine", f"quarantined by an operator: {why}"), now), now)


def released(health: Health, now: float) -> Health:
    """An operator says that the device is good. What is counted by now does not quarantine it again."""
    freed = replace(
        health,
        quarantine=None,
        quarantined_at=0.0,
        until_reset=(),
        error_told=False,
        errors_released=health.errors,
        remap_failure_released=health.remap_failed,
    )
    return _settled(freed, now)


def explained(fault: Fault) -> str:
    """What happened and what to do about it, for the event that tells it."""
    return xid(fault.number).message if fault.kind == "xid" else fault.message


def to_json(health: Health) -> str:
    """What must survive a restart of the daemon, as JSON; "" when there is nothing."""
    kept: dict[str, Any] = {}
    if health.quarantine is not None:
        kept = {"reason": health.quarantine.reason, "message": health.quarantine.message, "at": health.quarantined_at}
        # So that a release before the first sample is one of what was counted.
        kept |= {"errors": health.errors, "remap_failed": health.remap_failed}
    if health.errors_released:
        kept["errors_released"] = health.errors_released
    if health.remap_failure_released:
        kept["remap_failure_released"] = True
    return json.dumps(kept) if kept else ""


def from_json(text: str, now: float) -> Health:
    """The inverse, for a device that was not sampled yet. Text that cannot be read quarantines: it may have been."""
    try:
        kept = json.loads(text) if text else {}
        at = float(kept.get("at", now))
        if not math.isfinite(at):
            raise ValueError(at)
        health = Health(
            since=now,
            quarantine=Ground(str(kept["reason"]), str(kept["message"])) if "reason" in kept else None,
            quarantined_at=at if "reason" in kept else 0.0,
            errors=int(kept.get("errors", 0)),
            errors_released=int(kept.get("errors_released", 0)),
            remap_failed=bool(kept.get("remap_failed", False)),
            remap_failure_released=bool(kept.get("remap_failure_released", False)),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        at, health = now, Health(since=now, quarantine=RECORD_DAMAGED, quarantined_at=now)
    return _settled(health, at)


def _sampled(health: Health, sample: Sample) -> Health:
    """The device answers."""
    errors = health.errors if sample.ecc_uncorrected is None else sample.ecc_uncorrected
    if errors < health.errors or (health.remap_pending and sample.rows_remap_pending is False):
        health = _reset(health)
    until_reset = health.until_reset
    if sample.rows_remap_pending is False:  # XID 63 says the same, and what the driver says by now is newer
        until_reset = tuple(number for number in until_reset if number != 63)
    return replace(
        health,
        absent=None,
        silent=None,
        until_reset=until_reset,
        errors=errors,
        errors_released=min(health.errors_released, errors),
        remaps=health.remaps or sample.rows_remap_pending is not None,
        remap_pending=bool(sample.rows_remap_pending),
        remap_failed=bool(sample.rows_remap_failed),
    )


def _reset(health: Health) -> Health:
    """The GPU was reset, or its driver loaded anew: what waited for that is over."""
    return replace(health, until_reset=(), error_told=health.error_told and not health.remaps)


def _with_slowdown(health: Health, sample: Sample) -> Health:
    words = " ".join(sample.throttling)
    ground = next((SLOWDOWNS[word] for word in SLOWDOWNS if word in words), None)
    if ground is None:
        cool = health.cool + 1
        return replace(health, hot=0, cool=cool, slowdown=None if cool >= COOL_SAMPLES else health.slowdown)
    hot = health.hot + 1
    return replace(health, hot=hot, cool=0, slowdown=ground if hot >= HOT_SAMPLES else health.slowdown)


def _with_quarantine(health: Health, now: float) -> Health:
    """Quarantined for what is counted and nobody has released."""
    if health.remap_failed and not health.remap_failure_released:
        return _quarantine(health, REMAP_FAILED, now)
    if _new_errors(health) and health.remaps is False:
        return _quarantine(health, _errors(health), now)
    return health


def _faulted(health: Health, fault: Fault, now: float) -> Health:
    if fault.kind == "ecc":
        return _with_quarantine(replace(health, error_told=True), now)
    error = xid(fault.number)
    if error.effect is Effect.UNTIL_RESET and error.number not in health.until_reset:
        health = replace(health, until_reset=(*health.until_reset, error.number))
    if error.effect in {Effect.QUARANTINE, Effect.LOST}:
        health = _quarantine(health, _ground(error), now)
    if error.effect is Effect.LOST:
        health = _gone(health, _ground(error))
    return health


def _ground(error: Xid) -> Ground:
    return Ground(f"Xid{error.number}", error.message)


def _new_errors(health: Health) -> int:
    """Uncorrected errors that nobody has released."""
    return max(health.errors - health.errors_released, int(health.error_told))


def _errors(health: Health) -> Ground:
    count = _new_errors(health)
    advice = "work may go on, reset it soon" if health.remaps else "reset it, then release it"
    return Ground("UncorrectedErrors", f"{count} uncorrected memory error{'s' * (count > 1)}: {advice}")


def _quarantine(health: Health, ground: Ground, now: float) -> Health:
    """The first ground stays: what follows is mostly its consequence, and stands in the events."""
    return health if health.quarantine else replace(health, quarantine=ground, quarantined_at=now)


def _gone(health: Health, ground: Ground) -> Health:
    return replace(health, absent=health.absent or ground, slowdown=None, hot=0, cool=0)


def _settled(health: Health, now: float) -> Health:
    condition, ground = next(_grounds(health), (DeviceCondition.HEALTHY, Ground("Healthy", "")))
    message = ground.message
    if condition is DeviceCondition.LOST and health.quarantine not in {None, ground}:
        message += "; when it is back it is quarantined, too"
    unchanged = (condition, ground.reason) == (health.condition, health.reason)
    return replace(
        health,
        condition=condition,
        reason=ground.reason,
        message=message,
        since=health.since if unchanged else now,
    )


def _grounds(health: Health) -> Iterator[tuple[DeviceCondition, Ground]]:
    """All that is wrong, what matters most first."""
    if health.absent is not None:
        yield DeviceCondition.LOST, health.absent
    if health.quarantine is not None:
        yield DeviceCondition.QUARANTINED, health.quarantine
    if health.silent is not None:
        yield DeviceCondition.UNKNOWN, health.silent
    if health.remap_failed:
        yield DeviceCondition.DEGRADED, REMAP_FAILED
    for number in health.until_reset:
        yield DeviceCondition.DEGRADED, _ground(xid(number))
    if health.remap_pending:
        yield DeviceCondition.DEGRADED, REMAP_PENDING
    if _new_errors(health):
        yield DeviceCondition.DEGRADED, _errors(health)
    if health.slowdown is not None:
        yield DeviceCondition.DEGRADED, health.slowdown
