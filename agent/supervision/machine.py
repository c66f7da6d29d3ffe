"""The instance state machine's vocabulary and arithmetic: state, observations, actions, deadlines, backoff.

No I/O, no clock, no hidden randomness. `transitions.py` is the table over these words, `decide.py` the step.
All times are seconds of CLOCK_BOOTTIME: they survive the agent (not a reboot) and do not jump.
"""

from __future__ import annotations

import random
from dataclasses import replace
from enum import StrEnum

from agent.frozen import frozen
from agent.spec import DeploymentSpec
from agent.status import Desired, Diagnosis, DiagnosisCode, ExitStatus, Phase, ProbeKind, Verdict

#: Pauses after each KILL that did not help, in seconds; the last one repeats (the kill ladder of reliability.md).
KILL_LADDER = (5.0, 20.0, 80.0)


class Goal(StrEnum):
    """What follows once the present instance is gone."""

    RETRY = "retry"  # it failed: account for it, then start again or give up
    REPLACE = "replace"  # a new generation or an operator's restart: start again, no failure
    STOP = "stop"
    DELETE = "delete"


@frozen
class Want:
    """What the operator wants; an instance was made for one (generation, serial)."""

    desired: Desired
    generation: int
    serial: int

    @property
    def version(self) -> tuple[int, int]:
        return (self.generation, self.serial)


@frozen
class Rules:
    """The numbers of a spec that decisions depend on (seconds and counts)."""

    restart: bool
    initial_delay: float
    max_delay: float
    jitter: float
    reset_after: float
    max_failures: int
    window: float
    startup_base: float
    startup_max: float
    startup_rate: float  # bytes per second of the slowest storage that is expected
    readiness_successes: int
    readiness_failures: int
    liveness_period: float
    liveness_failures: int
    inference_failures: int
    drain: float
    stop: float

    @classmethod
    def of(cls, spec: DeploymentSpec) -> Rules:
        probes, restart = spec.probes, spec.restart
        return cls(
            restart=restart.policy == "always",
            initial_delay=restart.initial_delay_seconds,
            max_delay=restart.max_delay_seconds,
            jitter=restart.jitter,
            reset_after=restart.reset_after_seconds,
            max_failures=restart.max_failures,
            window=restart.window_seconds,
            startup_base=probes.startup.base_seconds,
            startup_max=probes.startup.max_seconds,
            startup_rate=probes.startup.read_bytes_per_second,
            readiness_successes=probes.readiness.success_threshold,
            readiness_failures=probes.readiness.failure_threshold,
            liveness_period=probes.liveness.period_seconds,
            liveness_failures=probes.liveness.failure_threshold,
            inference_failures=probes.inference.failure_threshold,
            drain=spec.drain_seconds,
            stop=spec.stop_seconds,
        )


@frozen
class State:
    """Everything a decision may look at. Stored with the deployment; `restored` says what a new agent forgets."""

    uid: str
    want: Want
    phase: Phase = Phase.PENDING
    reason: str = "Accepted"
    message: str = "accepted; nothing was tried yet"
    entered: float = 0.0  # when this phase began
    tried: tuple[int, int] = (0, 0)  # (generation, serial) of the present or last attempt
    attempt: int = 0  # number of the present or last instance; never reused
    restarts: int = 0  # instances started because an earlier one failed
    goal: Goal | None = None
    deadline: float | None = None  # of DRAINING, STOPPING, STUCK and BACKOFF
    kills: int = 0  # KILLs sent to the present instance
    bytes_to_load: int = 0
    progress_at: float = 0.0  # last time that loading was seen to move
    was_ready: bool = False  # the present instance reached READY
    ready_at: float = 0.0
    alive_at: float = 0.0  # last success of the liveness probe
    ready_passes: int = 0
    ready_fails: int = 0
    live_fails: int = 0
    inference_fails: int = 0
    streak: int = 0  # failures since the last long healthy run: the exponent of the delay
    failures: tuple[float, ...] = ()  # times of failures within the crash-loop window
    ooms: int = 0  # out-of-memory ends in a row, for the same plan
    diagnosis: Diagnosis | None = None

    @property
    def outdated(self) -> bool:
        """Whether the present instance is not what is wanted now."""
        return self.want.desired is not Desired.RUN or self.tried != self.want.version


# Observations -----------------------------------------------------------------------------------------------------


@frozen
class Woken:
    """A timer ran out, or the periodic tick: look again."""


@frozen
class Wanted:
    want: Want


@frozen
class Planned:
    bytes_to_load: int
    fetched: bool  # the artifact is known to be whole already: no fetching needed


@frozen
class Fetched:
    pass


@frozen
class PrepareFailed:
    """Planning, fetching or launching failed before a process existed."""

    diagnosis: Diagnosis


@frozen
class Launched:
    pass


@frozen
class NotLaunched:
    """After the agent's restart: the intent was recorded, but no process was ever created."""


@frozen
class Rebooted:
    """After the host's restart: nothing that ran before runs any more, and no engine is to blame."""


@frozen
class Probed:
    """The answer to a probe; `also`: other kinds that the same request speaks for."""

    kind: ProbeKind
    verdict: Verdict
    detail: str = ""
    also: tuple[ProbeKind, ...] = ()


@frozen
class Drifted:
    """It left its plan in a way that policy answers with a restart, or a device of it is gone."""

    diagnosis: Diagnosis


@frozen
class LoadMoved:
    """Bytes were read or the log grew since the last look."""


@frozen
class Drained:
    """No request is in flight any more."""


@frozen
class Exited:
    """The main process ended; `diagnosis` is what it means if nobody asked for it."""

    exit: ExitStatus
    diagnosis: Diagnosis


@frozen
class Gone:
    """Every process of the instance is gone."""


Observation = (
    Woken
    | Wanted
    | Planned
    | Fetched
    | PrepareFailed
    | Launched
    | NotLaunched
    | Rebooted
    | Probed
    | Drifted
    | LoadMoved
    | Drained
    | Exited
    | Gone
)


class Action(StrEnum):
    """What the actor must do, in the order given."""

    CANCEL = "cancel"  # abandon planning and fetching
    PREPARE = "prepare"  # plan
    FETCH = "fetch"
    LAUNCH = "launch"  # record the intent, start, record the handle
    DRAIN = "drain"  # watch for the last request
    TERM = "term"
    KILL = "kill"
    REAP = "reap"  # the main process is gone: see that everything else is, too
    FORGET = "forget"  # drop the deployment's records


def absorb(state: State, seen: Observation, rules: Rules, now: float) -> State:
    """Take the observation's facts into the state, without any transition."""
    match seen:
        case Wanted(want):
            return replace(state, want=want)
        case Probed(kind, verdict, _, also):
            for each in (kind, *also):
                state = _absorb_probe(state, each, verdict, now)
            return state
        case LoadMoved():
            return replace(state, progress_at=now)
        case Planned(size):
            return replace(state, bytes_to_load=size)
        case PrepareFailed(diagnosis):
            return replace(state, diagnosis=diagnosis)
    healthy = state.phase is Phase.READY and state.streak and now - state.ready_at >= rules.reset_after
    return replace(state, streak=0, failures=()) if healthy else state


def _absorb_probe(state: State, kind: ProbeKind, verdict: Verdict, now: float) -> State:
    if verdict is Verdict.UNKNOWN:  # the prober itself failed, or cannot tell: keep what is known
        return state
    passed = verdict is Verdict.PASS
    match kind:
        case ProbeKind.READINESS:
            return replace(
                state,
                ready_passes=state.ready_passes + 1 if passed else 0,
                ready_fails=0 if passed else state.ready_fails + 1,
            )
        case ProbeKind.LIVENESS:
            return (
                replace(state, alive_at=now, live_fails=0)
                if passed
                else replace(state, live_fails=state.live_fails + 1)
            )
        case ProbeKind.INFERENCE:
            return replace(state, inference_fails=0 if passed else state.inference_fails + 1)
        case ProbeKind.STARTUP:
            return state


def startup_deadline(state: State, rules: Rules) -> float:
    """When loading has taken too long: base + bytes / rate, moved on by progress, never later than the maximum."""
    planned = state.entered + rules.startup_base + state.bytes_to_load / rules.startup_rate
    return min(max(planned, state.progress_at + rules.startup_base), state.entered + rules.startup_max)


def liveness_deadline(state: State, rules: Rules) -> float:
    """When the engine has been silent for period x threshold since its last answer."""
    return state.alive_at + rules.liveness_period * rules.liveness_failures


def unresponsive(state: State, rules: Rules, now: float) -> bool:
    """Silent for long enough, *and* seen to fail: an agent that slept itself has no failed probes to show."""
    return state.live_fails >= max(1, rules.liveness_failures - 1) and now >= liveness_deadline(state, rules)


def restart_delay(state: State, rules: Rules) -> float:
    """Seconds to wait after the failure just counted. The first one after a healthy run costs nothing."""
    if state.was_ready and state.streak <= 1:
        return 0.0
    doublings = min(state.streak - (2 if state.was_ready else 1), 30)
    delay = min(rules.initial_delay * 2.0 ** max(doublings, 0), rules.max_delay)
    # Seeded by identity and attempt: many hosts that fail together spread out, and a replay decides the same.
    spread = random.Random(f"{state.uid}:{state.attempt}").uniform(1 - rules.jitter, 1 + rules.jitter)
    return delay * spread


def count_failure(state: State, rules: Rules, now: float) -> State:
    """Add a failure to the history. A store that refuses writes is not the engine's fault: it costs no budget."""
    if state.diagnosis is not None and state.diagnosis.code is DiagnosisCode.STORE_FAILED:
        return replace(state, streak=min(state.streak + 1, 6))
    if state.was_ready and now - state.ready_at >= rules.reset_after:
        state = replace(state, streak=0, failures=())
    recent = tuple(at for at in state.failures if now - at < rules.window)
    return replace(state, streak=state.streak + 1, failures=(*recent, now))


def next_wake(state: State, rules: Rules) -> float | None:
    """The earliest time at which a level rule could fire by itself; None: only an observation can change anything."""
    times: list[float] = []
    if state.phase in (Phase.DRAINING, Phase.STOPPING, Phase.STUCK, Phase.BACKOFF) and state.deadline is not None:
        times.append(state.deadline)
    if state.phase is Phase.LOADING:
        times.append(startup_deadline(state, rules))
    if state.phase in (Phase.READY, Phase.UNREADY) and state.live_fails:
        times.append(liveness_deadline(state, rules))
    return min(times, default=None)


def replanning(state: State) -> State:
    """Planning and fetching do not outlive the agent: they begin again."""
    return replace(state, phase=Phase.PLANNING)


def restored(state: State, now: float, *, same_boot: bool) -> State:
    """What a new agent takes over: the history, not the counters of probes that it did not make itself."""
    fresh = replace(state, alive_at=now, live_fails=0, inference_fails=0, ready_fails=0, ready_passes=0)
    if same_boot:
        return fresh
    # Another boot: the old clock means nothing, and whatever failed before the reboot is not held against it.
    return replace(
        fresh, entered=now, ready_at=now, progress_at=now, streak=0, failures=(), kills=0,
        deadline=now if state.deadline is not None else None,
    )  # fmt: skip
