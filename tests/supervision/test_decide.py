"""The state machine, walked without any process: playbooks of what is seen and what follows, and its invariants."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.status import Desired, Diagnosis, DiagnosisCode, ExitStatus, Phase, ProbeKind, Verdict
from agent.supervision import machine as m
from agent.supervision.decide import decide
from agent.supervision.machine import Action, Observation, Rules, State, Want
from agent.supervision.transitions import EVENT_RULES, LEVEL_RULES, render

RULES = Rules(
    restart=True, initial_delay=1, max_delay=300, jitter=0.2, reset_after=600, max_failures=5, window=1800,
    startup_base=120, startup_max=1800, startup_rate=100 * 2**20, readiness_successes=1, readiness_failures=2,
    liveness_period=10, liveness_failures=6, inference_failures=3, drain=30, stop=30,
)  # fmt: skip
RUN = Want(Desired.RUN, 1, 0)
CRASH = m.Exited(ExitStatus(code=1), Diagnosis(DiagnosisCode.CRASHED, "died"))
PASS = m.Probed(ProbeKind.STARTUP, Verdict.PASS)
READY_PASS, READY_FAIL = (m.Probed(ProbeKind.READINESS, verdict) for verdict in (Verdict.PASS, Verdict.FAIL))
LIVE_PASS, LIVE_FAIL = (m.Probed(ProbeKind.LIVENESS, verdict) for verdict in (Verdict.PASS, Verdict.FAIL))
UP: tuple[Observation, ...] = (m.Woken(), m.Planned(1, fetched=False), m.Fetched(), m.Launched(), PASS)


@dataclass
class Play:
    """A deployment on stage: `see` plays observations at a time, and remembers what was done."""

    state: State = field(default_factory=lambda: State("uid", RUN))
    rules: Rules = RULES
    now: float = 1000.0
    actions: list[Action] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def see(self, *seen: Observation, after: float = 0.0) -> Play:
        self.now += after
        self.actions, self.reasons = [], []
        for observation in seen:
            decision = decide(self.state, observation, self.rules, self.now)
            self.state = decision.state
            self.actions += decision.actions
            self.reasons += [fired.rule.id for fired in decision.fired]
        return self

    def crash(self, after: float = 0.0) -> Play:
        return self.see(CRASH, m.Gone(), after=after)

    def want(self, desired: Desired = Desired.RUN, generation: int = 1, serial: int = 0) -> Play:
        return self.see(m.Wanted(Want(desired, generation, serial)))

    @property
    def phase(self) -> Phase:
        return self.state.phase

    @property
    def delay(self) -> float:
        assert self.state.deadline is not None
        return self.state.deadline - self.now


def ready(**changes: object) -> Play:
    return Play(rules=replace(RULES, **changes)).see(*UP)  # type: ignore[arg-type]


def test_the_way_from_pending_to_ready_does_each_step_once() -> None:
    play = ready()
    assert play.phase is Phase.READY
    assert play.actions == [Action.PREPARE, Action.FETCH, Action.LAUNCH]
    assert (play.state.attempt, play.state.restarts) == (1, 0)


def test_first_failure_after_a_healthy_run_restarts_at_once() -> None:
    play = ready().crash(after=5)
    assert play.phase is Phase.PLANNING
    assert play.actions == [Action.REAP, Action.PREPARE]
    assert play.state.restarts == 1


def test_delays_follow_the_curve_and_the_budget_ends_it() -> None:
    play, delays = ready(jitter=0.0), []
    for _ in range(4):
        play.crash()
        delays.append(0.0 if play.phase is Phase.PLANNING else play.delay)
        if play.phase is Phase.BACKOFF:
            play.see(m.Woken(), after=play.delay)
        play.see(*UP[1:])
    play.crash()
    assert delays == [0.0, 1.0, 2.0, 4.0]
    assert play.phase is Phase.FAILED
    assert play.state.diagnosis is not None
    assert play.state.diagnosis.code is DiagnosisCode.CRASH_LOOP
    assert "crashed: died" in play.state.diagnosis.message


def test_an_engine_that_was_never_ready_waits_from_the_first_failure_on() -> None:
    play = Play(rules=replace(RULES, jitter=0.0)).see(*UP[:-1]).crash()
    assert (play.phase, play.delay) == (Phase.BACKOFF, 1.0)


def test_jitter_stays_within_its_part_and_differs_between_deployments() -> None:
    delays = {Play(State(f"uid{i}", RUN)).see(*UP[:-1]).crash().delay for i in range(50)}
    assert len(delays) > 40
    assert all(0.8 <= delay <= 1.2 for delay in delays)


def test_a_long_healthy_run_clears_the_history() -> None:
    play = ready().crash().see(*UP[1:]).crash(after=601)
    assert play.phase is Phase.PLANNING
    assert len(play.state.failures) == 1


def test_old_failures_leave_the_window() -> None:
    play = ready(reset_after=10_000, window=100)
    for _ in range(20):
        play.crash(after=60)
        while play.phase is not Phase.READY:
            play.see(m.Woken(), after=max(0.0, play.delay) if play.state.deadline else 0).see(*UP[1:])
    assert play.phase is Phase.READY


@pytest.mark.parametrize("code", sorted(m_code for m_code in DiagnosisCode if Diagnosis(m_code, "").fatal))
def test_what_no_retry_mends_fails_at_once(code: DiagnosisCode) -> None:
    play = Play().see(*UP[:-1], m.Exited(ExitStatus(code=1), Diagnosis(code, "x")), m.Gone())
    assert (play.phase, play.state.diagnosis and play.state.diagnosis.code) == (Phase.FAILED, code)


def test_second_out_of_memory_with_the_same_plan_does_not_fit() -> None:
    oom = m.Exited(ExitStatus(oom_killed=True), Diagnosis(DiagnosisCode.HOST_OOM, "killed"))
    play = ready().see(oom, m.Gone())
    assert play.phase is Phase.PLANNING
    play.see(*UP[1:], oom, m.Gone())
    assert play.phase is Phase.FAILED
    assert play.state.diagnosis is not None
    assert play.state.diagnosis.code is DiagnosisCode.DOES_NOT_FIT


def test_restart_policy_never_means_one_try() -> None:
    assert ready(restart=False).crash().phase is Phase.FAILED


def test_a_silent_engine_is_killed_when_period_times_threshold_is_over() -> None:
    play = ready().see(*[LIVE_FAIL] * 5, after=59)
    assert play.phase is Phase.READY
    play.see(LIVE_FAIL, after=1)
    assert (play.phase, play.actions) == (Phase.STOPPING, [Action.KILL])
    assert play.state.diagnosis is not None
    assert play.state.diagnosis.code is DiagnosisCode.UNRESPONSIVE
    assert (
        play.see(m.Exited(ExitStatus(signal=9), Diagnosis(DiagnosisCode.KILLED, "")), m.Gone()).phase is Phase.PLANNING
    )


def test_an_agent_that_slept_does_not_take_its_own_silence_for_the_engines() -> None:
    assert ready().see(m.Woken(), after=900).phase is Phase.READY


def test_an_answer_in_between_starts_the_count_again() -> None:
    play = ready().see(*[LIVE_FAIL] * 5, after=50).see(LIVE_PASS, after=5).see(LIVE_FAIL, after=6)
    assert play.phase is Phase.READY


def test_readiness_takes_out_of_service_without_a_restart() -> None:
    play = ready().see(READY_FAIL)
    assert play.phase is Phase.READY
    assert play.see(READY_FAIL).phase is Phase.UNREADY
    assert play.see(READY_PASS).phase is Phase.READY
    assert play.state.restarts == 0


def test_hung_generation_is_a_failure_of_its_own() -> None:
    fail = m.Probed(ProbeKind.INFERENCE, Verdict.FAIL)
    play = ready().see(fail, fail)
    assert play.phase is Phase.READY
    play.see(fail)
    assert (play.phase, play.actions) == (Phase.STOPPING, [Action.TERM])


def test_startup_deadline_grows_with_bytes_and_with_progress_and_is_capped() -> None:
    loading = (m.Woken(), m.Planned(100 * 100 * 2**20, fetched=False), m.Fetched(), m.Launched())
    play = Play().see(*loading)
    assert m.startup_deadline(play.state, RULES) == play.now + 120 + 100
    assert play.see(m.Woken(), after=219).phase is Phase.LOADING
    assert play.see(m.LoadMoved()).see(m.Woken(), after=119).phase is Phase.LOADING
    assert play.see(m.Woken(), after=2).phase is Phase.STOPPING
    play = Play().see(*loading)
    while play.phase is Phase.LOADING:
        play.see(m.LoadMoved(), after=60)
    assert play.now == 1000 + 1800


def test_a_stop_drains_then_asks_then_kills_then_says_stuck() -> None:
    play = ready().want(Desired.STOP)
    assert (play.phase, play.actions) == (Phase.DRAINING, [Action.DRAIN])
    assert play.see(m.Woken(), after=30).actions == [Action.TERM]
    assert play.see(m.Woken(), after=30).actions == [Action.KILL, Action.REAP]
    assert play.phase is Phase.STOPPING
    pauses = []
    for _ in range(5):
        pauses.append(play.delay)
        play.see(m.Woken(), after=play.delay)
        assert play.phase is Phase.STUCK
    assert pauses == [5, 20, 80, 80, 80]
    assert play.see(m.Gone()).phase is Phase.STOPPED


def test_a_stop_during_backoff_and_planning_is_a_stop() -> None:
    for play in (Play().see(m.Woken()), Play().see(*UP[:-1]).crash()):
        assert play.want(Desired.STOP).phase is Phase.STOPPED
        assert play.want(Desired.RUN).phase is Phase.PLANNING


def test_a_crash_while_stopping_is_not_a_failure() -> None:
    play = ready().want(Desired.STOP).see(CRASH, m.Gone())
    assert (play.phase, play.state.failures) == (Phase.STOPPED, ())


def test_a_new_generation_replaces_the_instance_without_counting_a_restart() -> None:
    play = ready().want(generation=2)
    play.see(m.Drained(), m.Exited(ExitStatus(code=0), Diagnosis(DiagnosisCode.EXITED, "")), m.Gone())
    assert (play.phase, play.state.restarts, play.state.tried) == (Phase.PLANNING, 0, (2, 0))


def test_a_failed_deployment_waits_for_a_new_spec_or_a_restart() -> None:
    fatal = m.PrepareFailed(Diagnosis(DiagnosisCode.MODEL_MISSING, "x"))
    for want in ({"generation": 2}, {"serial": 1}):
        play = Play().see(m.Woken(), fatal)
        assert play.see(m.Woken(), after=10_000).phase is Phase.FAILED
        play.want(**want)
        assert (play.phase, play.state.failures, play.state.diagnosis) == (Phase.PLANNING, (), None)


def test_a_store_that_refuses_costs_no_budget_but_waits() -> None:
    refused = m.PrepareFailed(Diagnosis(DiagnosisCode.STORE_FAILED, "disk full"))
    play = ready().crash()
    for _ in range(30):
        play.see(m.Planned(1, fetched=True), refused)
        assert play.phase is Phase.BACKOFF
        play.see(m.Woken(), after=play.delay)
    assert play.see(*UP[1:]).phase is Phase.READY


def test_an_engine_that_left_its_plan_is_drained_and_restarted_and_costs_budget() -> None:
    play = ready().see(m.Drifted(Diagnosis(DiagnosisCode.OFF_BUDGET, "uses 40 GiB")))
    assert (play.phase, play.actions, play.delay) == (Phase.DRAINING, [Action.DRAIN], RULES.drain)
    play.see(m.Drained(), m.Exited(ExitStatus(code=0), Diagnosis(DiagnosisCode.EXITED, "")), m.Gone())
    assert (play.phase, play.state.restarts, len(play.state.failures)) == (Phase.PLANNING, 1, 1)


def test_a_reboot_is_nobodys_failure() -> None:
    state = m.restored(ready().state, 5.0, same_boot=False)
    play = Play(state, now=5.0).see(m.Rebooted())
    assert (play.phase, play.state.failures, play.state.restarts) == (Phase.PLANNING, (), 0)


def test_an_intent_without_a_launch_is_tried_again_as_a_new_attempt() -> None:
    play = Play().see(*UP[:3])
    assert (play.phase, play.state.attempt) == (Phase.STARTING, 1)
    play.see(m.NotLaunched(), m.Planned(1, fetched=True))
    assert (play.phase, play.state.attempt) == (Phase.STARTING, 2)


def test_the_page_in_the_docs_is_the_table() -> None:
    from pathlib import Path

    page = Path(__file__).parents[2] / "docs/reference/phases.md"
    assert page.read_text() == render(), "run: python -m agent.supervision.transitions > docs/reference/phases.md"


# Properties -------------------------------------------------------------------------------------------------------

WANTS = st.builds(Want, st.sampled_from(Desired), st.integers(1, 3), st.integers(0, 3))
DIAGNOSES = st.builds(Diagnosis, st.sampled_from(DiagnosisCode), st.just("x"))
OBSERVATIONS = st.one_of(
    st.just(m.Woken()), st.builds(m.Wanted, WANTS), st.builds(m.Planned, st.integers(0, 2**40), st.booleans()),
    st.just(m.Fetched()), st.builds(m.PrepareFailed, DIAGNOSES), st.just(m.Launched()), st.just(m.NotLaunched()),
    st.just(m.Rebooted()), st.builds(m.Probed, st.sampled_from(ProbeKind), st.sampled_from(Verdict)),
    st.just(m.LoadMoved()), st.just(m.Drained()), st.builds(m.Exited, st.just(ExitStatus(code=1)), DIAGNOSES),
    st.just(m.Gone()), st.builds(m.Drifted, DIAGNOSES),
)  # fmt: skip
LIVE = {Phase.LOADING, Phase.READY, Phase.UNREADY, Phase.DRAINING, Phase.STOPPING, Phase.STUCK}


@settings(max_examples=400)
@given(st.lists(st.tuples(OBSERVATIONS, st.floats(0, 400)), max_size=40))
def test_any_history_keeps_the_invariants(history: list[tuple[Observation, float]]) -> None:
    """No second launch while an instance may live; no launch unless running is wanted; deleted is the end."""
    state, now = State("uid", RUN), 0.0
    for seen, after in history:
        now += after
        before, decision = state, decide(state, seen, RULES, now)
        state = decision.state
        if Action.LAUNCH in decision.actions:
            assert before.phase in {Phase.PLANNING, Phase.FETCHING}
            assert state.want.desired is Desired.RUN
            assert state.attempt == before.attempt + 1
        if before.phase is Phase.DELETED:
            assert state.phase is Phase.DELETED
        if before.phase in LIVE and state.phase not in LIVE:
            assert isinstance(seen, (m.Gone, m.Rebooted)), "a live instance is left only when it is gone"
        assert len(decision.fired) <= 6
        wake = m.next_wake(state, RULES)
        if state.phase in {Phase.BACKOFF, Phase.DRAINING, Phase.STOPPING, Phase.STUCK, Phase.LOADING}:
            assert wake is not None, "nothing waits for ever"


@settings(max_examples=200)
@given(st.lists(st.tuples(OBSERVATIONS, st.floats(0, 400)), max_size=40))
def test_from_anywhere_a_stop_and_a_delete_arrive(history: list[tuple[Observation, float]]) -> None:
    """However it got where it is: with processes that obey KILL, a deletion ends within the ladder's time."""
    state, now = State("uid", RUN), 0.0
    for seen, after in history:
        now += after
        state = decide(state, seen, RULES, now).state
    todo: list[Observation] = [m.Wanted(replace(state.want, desired=Desired.DELETE))]
    if state.phase is Phase.STARTING:
        todo.insert(0, m.Launched())
    for _ in range(40):
        if state.phase is Phase.DELETED:
            return
        decision = decide(state, todo.pop(0) if todo else m.Woken(), RULES, now)
        state = decision.state
        if Action.KILL in decision.actions or state.phase is Phase.STUCK:
            todo += [CRASH, m.Gone()]
        now += 35
    raise AssertionError(f"still {state.phase}")


def test_every_row_of_the_table_can_fire() -> None:
    """A dead row is a mistake."""
    for rule in (*EVENT_RULES, *LEVEL_RULES):
        assert any(_fires(rule.id, phase) for phase in rule.source), rule.id


def _fires(rule_id: str, phase: Phase) -> bool:
    """Whether the row can fire in `phase`, for some state, rules and observation out of a coarse grid."""
    now = 10_000.0
    wants = [RUN, *(replace(RUN, desired=desired) for desired in Desired), replace(RUN, generation=9)]
    changes: list[dict[str, object]] = [
        {}, {"was_ready": True}, {"kills": 1}, {"inference_fails": 9}, {"live_fails": 9}, {"ready_fails": 9},
        {"ready_passes": 9}, {"failures": (now,) * 9, "streak": 9},
        {"diagnosis": Diagnosis(DiagnosisCode.BAD_FLAG, "x")},
    ]  # fmt: skip
    seen = [
        m.Drifted(Diagnosis(DiagnosisCode.OFF_BUDGET, "x")),
        m.Woken(), m.Planned(1, fetched=True), m.Planned(1, fetched=False), m.Fetched(), m.Launched(), m.NotLaunched(),
        m.Rebooted(), PASS, m.Drained(), CRASH, m.Gone(), m.PrepareFailed(Diagnosis(DiagnosisCode.CRASHED, "x")),
        m.PrepareFailed(Diagnosis(DiagnosisCode.BAD_FLAG, "x")),
    ]  # fmt: skip
    rules = [RULES, replace(RULES, restart=False), replace(RULES, drain=0)]
    for want, change, goal in itertools.product(wants, changes, (None, *m.Goal)):
        state = State("uid", want, phase=phase, tried=(1, 0), goal=goal, deadline=now - 1, **change)  # type: ignore[arg-type]
        for observation, rule_set in itertools.product(seen, rules):
            if any(fired.rule.id == rule_id for fired in decide(state, observation, rule_set, now).fired):
                return True
    return False
