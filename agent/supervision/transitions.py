"""The transition table, as data: every way in which a deployment changes its phase.

A row fires in one of its `source` phases, on one kind of observation (or none: a level rule), if its guard
holds; first match wins. `docs/reference/phases.md` is rendered from it (`python -m agent.supervision.transitions`),
and a property test walks it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from agent.frozen import frozen
from agent.status import Desired, Diagnosis, DiagnosisCode, Phase, ProbeKind, Severity, Verdict
from agent.supervision import machine as m
from agent.supervision.machine import Action, Goal, Observation, Rules, State

Guard = Callable[[State, Observation, Rules, float], bool]
Effect = Callable[[State, Observation, Rules, float], State]


@frozen
class Rule:
    """One row. `when` says the guard in words; `effect` may set what the phase alone does not say."""

    id: str  # also the event's reason code
    source: frozenset[Phase]
    target: Phase
    when: str
    guard: Guard
    message: str
    on: type[Observation] | None = None  # None: a level rule
    actions: tuple[Action, ...] = ()
    effect: Effect | None = None
    severity: Severity | None = Severity.INFO  # of its line in the history; None: not worth one

    def apply(self, state: State, seen: Observation, rules: Rules, now: float) -> State:
        """The state after this row."""
        moved = replace(
            state, phase=self.target, reason=self.id, message=self.message,
            entered=now if self.target is not state.phase else state.entered,
        )  # fmt: skip
        return self.effect(moved, seen, rules, now) if self.effect else moved


P = Phase
ALIVE = frozenset({P.LOADING, P.READY, P.UNREADY})
SERVING = frozenset({P.READY, P.UNREADY})
PREPARING = frozenset({P.PLANNING, P.FETCHING})
ENDING = frozenset({P.STOPPING, P.STUCK})
IDLE = frozenset({P.PENDING, P.BACKOFF, P.FAILED})


#: Out of memory is a class of its own: a second time with the same plan, no third try can help.
OOM = frozenset({DiagnosisCode.HOST_OOM, DiagnosisCode.DEVICE_OOM})
OOM_ATTEMPTS = 2


# Guards -----------------------------------------------------------------------------------------------------------


def always(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return True


def _wants(desired: Desired) -> Guard:
    return lambda state, seen, rules, now: state.want.desired is desired


def _run_newer(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return state.want.desired is Desired.RUN and state.tried != state.want.version


def _due(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return state.deadline is not None and now >= state.deadline


def _fatal(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return state.diagnosis is not None and state.diagnosis.fatal


def _going(goal: Goal) -> Guard:
    return lambda state, seen, rules, now: _goal_now(state) is goal


def _goal_now(state: State) -> Goal:
    """What the operator wants by now comes before what was meant when the stop began."""
    if state.want.desired is Desired.DELETE:
        return Goal.DELETE
    if state.want.desired is Desired.STOP:
        return Goal.STOP
    if state.tried != state.want.version or state.goal is not Goal.RETRY:
        return Goal.REPLACE
    return Goal.RETRY


def _spent(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return len(m.count_failure(state, rules, now).failures) >= rules.max_failures


def _retry(*guards: Guard) -> Guard:
    """A failed instance is gone, and it may be tried again unless another row says why not."""
    return lambda state, seen, rules, now: (
        _goal_now(state) is Goal.RETRY and all(guard(state, seen, rules, now) for guard in guards)
    )


def _once(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return not rules.restart


def _at_once(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return m.restart_delay(m.count_failure(state, rules, now), rules) == 0.0


def _fetched(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return isinstance(seen, m.Planned) and seen.fetched


def _started(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return isinstance(seen, m.Probed) and seen.kind is ProbeKind.STARTUP and seen.verdict is Verdict.PASS


def _outdated(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return state.outdated


def _outdated_drains(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return state.outdated and rules.drain > 0


def _unresponsive(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return m.unresponsive(state, rules, now)


def _inference_hangs(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return state.inference_fails >= rules.inference_failures


def _startup_over(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return now >= m.startup_deadline(state, rules)


def _survives(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return state.kills > 0 and _due(state, seen, rules, now)


def _unready(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return state.ready_fails >= rules.readiness_failures


def _ready_again(state: State, seen: Observation, rules: Rules, now: float) -> bool:
    return state.ready_passes >= rules.readiness_successes


# Effects ----------------------------------------------------------------------------------------------------------


def _attempt(state: State, seen: Observation, rules: Rules, now: float) -> State:
    """A new try at what is wanted now; a changed wish clears the history of failures."""
    changed = state.tried != state.want.version
    return replace(
        state, tried=state.want.version, goal=None, deadline=None, kills=0, was_ready=False,
        streak=0 if changed else state.streak, failures=() if changed else state.failures,
        ooms=0 if changed else state.ooms,
        diagnosis=None if changed else state.diagnosis,
    )  # fmt: skip


def _retrying(state: State, seen: Observation, rules: Rules, now: float) -> State:
    return _again(m.count_failure(state, rules, now), seen, rules, now)


def _launching(state: State, seen: Observation, rules: Rules, now: float) -> State:
    return replace(state, attempt=state.attempt + 1, progress_at=now)


def _loading(state: State, seen: Observation, rules: Rules, now: float) -> State:
    return replace(
        state, progress_at=now, ready_passes=0, ready_fails=0, live_fails=0, inference_fails=0, was_ready=False
    )


def _ready(state: State, seen: Observation, rules: Rules, now: float) -> State:
    return replace(state, was_ready=True, ready_at=now, alive_at=now, ready_fails=0, live_fails=0, diagnosis=None)


def _ending(seconds: Callable[[Rules], float]) -> Effect:
    """The instance shall end because the operator wants something else; `seconds` until the next step."""

    def effect(state: State, seen: Observation, rules: Rules, now: float) -> State:
        return replace(state, goal=_goal_now(replace(state, goal=Goal.REPLACE)), deadline=now + seconds(rules))

    return effect


def _stop_deadline(state: State, seen: Observation, rules: Rules, now: float) -> State:
    return replace(state, deadline=now + rules.stop)


def _fails(state: State, code: DiagnosisCode, sentence: str, deadline: float) -> State:
    """The instance is ended because it fails, and by `deadline`."""
    diagnosis = Diagnosis(code, sentence)
    return replace(state, goal=Goal.RETRY, deadline=deadline, diagnosis=diagnosis, message=sentence)


def _hung(state: State, seen: Observation, rules: Rules, now: float) -> State:
    """Killed at once: what does not answer for so long neither drains nor hears TERM, and a stopped process
    would not even get it."""
    silence = rules.liveness_period * rules.liveness_failures
    sentence = f"no answer to the liveness probe for {silence:g} s"
    return replace(_fails(state, DiagnosisCode.UNRESPONSIVE, sentence, now + m.KILL_LADDER[0]), kills=1)


def _mute(state: State, seen: Observation, rules: Rules, now: float) -> State:
    sentence = f"health answers, but {state.inference_fails} generations of one token failed in a row"
    return _fails(state, DiagnosisCode.INFERENCE_HANG, sentence, now + rules.stop)


def _slow(state: State, seen: Observation, rules: Rules, now: float) -> State:
    sentence = "the startup probe did not pass in time, and loading made no progress"
    return _fails(state, DiagnosisCode.STARTUP_TIMEOUT, sentence, now + rules.stop)


def _drifted(state: State, seen: Observation, rules: Rules, now: float) -> State:
    assert isinstance(seen, m.Drifted)
    return replace(
        state, goal=Goal.RETRY, deadline=now + rules.drain, diagnosis=seen.diagnosis, message=seen.diagnosis.message
    )


def _again(state: State, seen: Observation, rules: Rules, now: float) -> State:
    refused = state.diagnosis is not None and state.diagnosis.code is DiagnosisCode.STORE_FAILED
    return replace(_attempt(state, seen, rules, now), restarts=state.restarts + (not refused))


def _crashed(state: State, seen: Observation, rules: Rules, now: float) -> State:
    assert isinstance(seen, m.Exited)
    diagnosis = seen.diagnosis
    ooms = state.ooms + 1 if diagnosis.code in OOM else 0
    if ooms >= OOM_ATTEMPTS:
        diagnosis = Diagnosis(
            DiagnosisCode.DOES_NOT_FIT,
            f"out of memory {ooms} times in a row with the same plan: {diagnosis.message}",
            evidence=diagnosis.evidence,
            hint="Lower limits.max_model_len or limits.max_num_seqs, or give it more memory.",
        )
    return replace(
        state, goal=Goal.RETRY, deadline=now + m.KILL_LADDER[0], diagnosis=diagnosis, ooms=ooms,
        message=diagnosis.message,
    )  # fmt: skip


def _killed(state: State, seen: Observation, rules: Rules, now: float) -> State:
    pause = m.KILL_LADDER[min(state.kills, len(m.KILL_LADDER) - 1)]
    return replace(state, kills=state.kills + 1, deadline=now + pause)


def _failed(state: State, seen: Observation, rules: Rules, now: float) -> State:
    message = state.diagnosis.message if state.diagnosis else "failed"
    return replace(m.count_failure(state, rules, now), deadline=None, goal=None, message=message)


def _crash_loop(state: State, seen: Observation, rules: Rules, now: float) -> State:
    state = _failed(state, seen, rules, now)
    last = state.diagnosis
    cause = f"{last.code.value}: {last.message}" if last else "unknown"
    diagnosis = Diagnosis(
        DiagnosisCode.CRASH_LOOP,
        f"{len(state.failures)} failures within {rules.window:.0f} s; the last one: {cause}",
        evidence=last.evidence if last else "",
        hint=(last.hint if last else "") or "Mend the cause, then `agentctl restart`.",
    )
    return replace(state, diagnosis=diagnosis, message=diagnosis.message)


def _backoff(state: State, seen: Observation, rules: Rules, now: float) -> State:
    state = _failed(state, seen, rules, now)
    delay = m.restart_delay(state, rules)
    return replace(state, deadline=now + delay, message=f"{state.message}; next attempt in {delay:.1f} s")


def _settled(state: State, seen: Observation, rules: Rules, now: float) -> State:
    """Stopped: what failed before is history, and the same spec may be started again."""
    return replace(
        state, goal=None, deadline=None, kills=0, streak=0, failures=(), tried=(0, 0), diagnosis=None, was_ready=False
    )


# The table --------------------------------------------------------------------------------------------------------

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR
PREPARED = frozenset({P.PLANNING, P.FETCHING, P.STARTING})

EVENT_RULES: list[Rule] = [
    Rule("PlanReused", frozenset({P.PLANNING}), P.STARTING, "the plan holds and its files are whole", _fetched,
         "starting the engine", on=m.Planned, actions=(Action.LAUNCH,), effect=_launching, severity=None),
    Rule("Planned", frozenset({P.PLANNING}), P.FETCHING, "a plan fits", always,
         "fetching and verifying the model's files", on=m.Planned, actions=(Action.FETCH,)),
    Rule("Fetched", frozenset({P.FETCHING}), P.STARTING, "the files are whole", always,
         "starting the engine", on=m.Fetched, actions=(Action.LAUNCH,), effect=_launching, severity=None),
    Rule("Failed", PREPARED, P.FAILED, "no retry can mend it", _fatal,
         "failed", on=m.PrepareFailed, effect=_failed, severity=ERROR),
    Rule("CrashLoop", PREPARED, P.FAILED, "the budget of failures is spent", _spent,
         "too many failures", on=m.PrepareFailed, effect=_crash_loop, severity=ERROR),
    Rule("FailedOnce", PREPARED, P.FAILED, "restart policy is never", _once,
         "failed; restart policy is `never`", on=m.PrepareFailed, effect=_failed, severity=ERROR),
    Rule("BackOff", PREPARED, P.BACKOFF, "a retry may help", always,
         "failed", on=m.PrepareFailed, effect=_backoff, severity=WARNING),
    Rule("Rebooted", ALIVE | ENDING | {P.STARTING, P.DRAINING}, P.PLANNING, "the host restarted", always,
         "the host restarted; starting the engine again", on=m.Rebooted, actions=(Action.PREPARE,), effect=_attempt),
    Rule("NotLaunched", frozenset({P.STARTING}), P.PLANNING, "the agent died between intent and launch", always,
         "the agent restarted before the engine was started; starting it now",
         on=m.NotLaunched, actions=(Action.PREPARE,), effect=_attempt),
    Rule("Launched", frozenset({P.STARTING}), P.LOADING, "the process runs", always,
         "the engine loads the model", on=m.Launched, effect=_loading),
    Rule("Ready", frozenset({P.LOADING}), P.READY, "the startup probe passed", _started,
         "the engine answers", on=m.Probed, effect=_ready),
    Rule("LeftPlan", SERVING, P.DRAINING, "it left its plan, and policy says restart", always,
         "left its plan", on=m.Drifted, actions=(Action.DRAIN,), effect=_drifted, severity=WARNING),
    Rule("EngineExited", ALIVE | {P.STARTING}, P.STOPPING, "the engine ended by itself", always,
         "the engine ended", on=m.Exited, actions=(Action.REAP,), effect=_crashed, severity=WARNING),
    Rule("EngineStopped", ENDING | {P.DRAINING}, P.STOPPING, "it was asked to end", always,
         "the engine ended; waiting until all its processes are gone",
         on=m.Exited, actions=(Action.REAP,), severity=None),
    Rule("Drained", frozenset({P.DRAINING}), P.STOPPING, "no request is in flight", always,
         "drained; stopping", on=m.Drained, actions=(Action.TERM,), effect=_stop_deadline, severity=None),
    Rule("Deleted", ENDING, P.DELETED, "deletion is wanted", _going(Goal.DELETE),
         "deleted", on=m.Gone, actions=(Action.FORGET,)),
    Rule("Stopped", ENDING, P.STOPPED, "a stop is wanted", _going(Goal.STOP),
         "stopped by an operator", on=m.Gone, effect=_settled),
    Rule("Replacing", ENDING, P.PLANNING, "a new spec or an operator's restart", _going(Goal.REPLACE),
         "planning the replacement", on=m.Gone, actions=(Action.PREPARE,), effect=_attempt, severity=None),
    Rule("Failed", ENDING, P.FAILED, "no retry can mend it", _retry(_fatal),
         "failed", on=m.Gone, effect=_failed, severity=ERROR),
    Rule("FailedOnce", ENDING, P.FAILED, "restart policy is never", _retry(_once),
         "failed; restart policy is `never`", on=m.Gone, effect=_failed, severity=ERROR),
    Rule("CrashLoop", ENDING, P.FAILED, "the budget of failures is spent", _retry(_spent),
         "too many failures", on=m.Gone, effect=_crash_loop, severity=ERROR),
    Rule("Restarting", ENDING, P.PLANNING, "first failure after a healthy run", _retry(_at_once),
         "restarting at once: first failure after a healthy run",
         on=m.Gone, actions=(Action.PREPARE,), effect=_retrying),
    Rule("BackOff", ENDING, P.BACKOFF, "a retry may help, later", _retry(),
         "failed", on=m.Gone, effect=_backoff, severity=WARNING),
]  # fmt: skip

LEVEL_RULES: list[Rule] = [
    Rule("Deleted", IDLE | PREPARING | {P.STOPPED}, P.DELETED, "deletion is wanted, nothing runs",
         _wants(Desired.DELETE), "deleted", actions=(Action.CANCEL, Action.FORGET)),
    Rule("Stopped", IDLE | PREPARING, P.STOPPED, "a stop is wanted, nothing runs",
         _wants(Desired.STOP), "stopped by an operator", actions=(Action.CANCEL,), effect=_settled),
    Rule("Planning", frozenset({P.PENDING, P.STOPPED}), P.PLANNING, "it shall run",
         _wants(Desired.RUN), "planning", actions=(Action.PREPARE,), effect=_attempt, severity=None),
    Rule("TryingAgain", frozenset({P.BACKOFF, P.FAILED}), P.PLANNING, "a new spec or an operator's restart",
         _run_newer, "planning, with a clean history", actions=(Action.PREPARE,), effect=_attempt),
    Rule("PlanningAgain", PREPARING, P.PLANNING, "the spec changed meanwhile", _run_newer,
         "planning the new spec", actions=(Action.CANCEL, Action.PREPARE), effect=_attempt, severity=None),
    Rule("Retrying", frozenset({P.BACKOFF}), P.PLANNING, "the delay is over", _due,
         "trying again", actions=(Action.PREPARE,), effect=_again, severity=None),
    Rule("Unresponsive", SERVING, P.STOPPING, "no liveness answer for period x threshold", _unresponsive,
         "the engine does not answer", actions=(Action.KILL,), effect=_hung, severity=WARNING),
    Rule("InferenceHangs", SERVING, P.STOPPING, "the inference probe failed too often", _inference_hangs,
         "generation hangs", actions=(Action.TERM,), effect=_mute, severity=WARNING),
    Rule("Draining", SERVING, P.DRAINING, "it shall stop, or be replaced", _outdated_drains,
         "waiting for requests in flight", actions=(Action.DRAIN,), effect=_ending(lambda r: r.drain)),
    Rule("Stopping", SERVING | {P.LOADING}, P.STOPPING, "it shall stop, or be replaced", _outdated,
         "asked to end", actions=(Action.TERM,), effect=_ending(lambda r: r.stop)),
    Rule("DrainDeadline", frozenset({P.DRAINING}), P.STOPPING, "drain time is over", _due,
         "requests were still in flight at the end of the drain time; stopping",
         actions=(Action.TERM,), effect=_stop_deadline, severity=WARNING),
    Rule("StartupTimeout", frozenset({P.LOADING}), P.STOPPING, "not ready in time", _startup_over,
         "not ready in time", actions=(Action.TERM,), effect=_slow, severity=WARNING),
    Rule("Stuck", frozenset({P.STOPPING}), P.STUCK, "processes or device memory survive KILL", _survives,
         "not gone after SIGKILL; its memory, devices and port stay reserved",
         actions=(Action.KILL, Action.REAP), effect=_killed, severity=ERROR),
    Rule("Killing", frozenset({P.STOPPING}), P.STOPPING, "it did not end in time", _due,
         "did not end in time: SIGKILL", actions=(Action.KILL, Action.REAP), effect=_killed, severity=WARNING),
    Rule("KillingAgain", frozenset({P.STUCK}), P.STUCK, "still there", _due,
         "not gone after SIGKILL; its memory, devices and port stay reserved",
         actions=(Action.KILL, Action.REAP), effect=_killed, severity=None),
    Rule("NotReady", frozenset({P.READY}), P.UNREADY, "the readiness probe failed", _unready,
         "the readiness probe fails", severity=WARNING),
    Rule("ReadyAgain", frozenset({P.UNREADY}), P.READY, "the readiness probe passes", _ready_again,
         "the engine answers again"),
]  # fmt: skip


def render() -> str:
    """The table as Markdown, for docs/reference/phases.md."""
    lines = [
        "# Phases and transitions",
        "",
        "<!-- made by `python -m agent.supervision.transitions`; do not edit -->",
        "",
        "A deployment is in one phase. The first row that matches (phase, what was seen, condition) fires. Rows for",
        "any time look only at the state and the clock; they are tried after every observation and every timer.",
        "",
        "| from | on | if | to | does | reason |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for rule in (*EVENT_RULES, *LEVEL_RULES):
        cells = (
            ", ".join(sorted(phase.value for phase in rule.source)),
            rule.on.__name__ if rule.on else "any time",
            rule.when,
            rule.target.value,
            ", ".join(action.value for action in rule.actions) or "-",
            f"`{rule.id}`",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(render())
