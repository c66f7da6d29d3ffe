"""One step of the state machine: pure, total, and the only place that changes a `State`.

1. `absorb` takes the observation's facts (probe verdicts, wanted state, progress) into the state;
2. the first matching row of `EVENT_RULES` for (phase, observation) fires, if any;
3. rows of `LEVEL_RULES` fire until none matches: they look only at the state and the time, so that a
   missed wake-up is healed by the next one.
"""

from __future__ import annotations

from agent.frozen import frozen
from agent.supervision.machine import Action, Observation, Rules, State, absorb
from agent.supervision.transitions import EVENT_RULES, LEVEL_RULES, Rule

#: The longest chain of rows that one observation sets off is 4 (a property test walks it); 8 bounds a mistake.
MAX_CHAIN = 8


@frozen
class Fired:
    """A row that fired, with the message that the state had right after it."""

    rule: Rule
    message: str


@frozen
class Decision:
    """The new state, what to do in this order, and why."""

    state: State
    actions: tuple[Action, ...] = ()
    fired: tuple[Fired, ...] = ()


def decide(state: State, seen: Observation, rules: Rules, now: float) -> Decision:
    """Any observation in any phase has an answer (often: nothing changes). `now` is CLOCK_BOOTTIME, seconds."""
    state = absorb(state, seen, rules, now)
    actions: list[Action] = []
    fired: list[Fired] = []
    rows = [rule for rule in EVENT_RULES if rule.on is type(seen)]
    for _ in range(MAX_CHAIN):
        rule = next((r for r in rows if state.phase in r.source and r.guard(state, seen, rules, now)), None)
        if rule is not None:
            state = rule.apply(state, seen, rules, now)
            actions.extend(rule.actions)
            fired.append(Fired(rule, state.message))
        elif rows is LEVEL_RULES:
            break
        rows = LEVEL_RULES
    return Decision(state, tuple(actions), tuple(fired))
