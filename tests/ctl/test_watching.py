"""When a wait ends, and how."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.api.client import Client
from agent.api.mapping import deployment as message
from agent.ctl.failures import DeploymentFailed, Timeout
from agent.ctl.watching import Goal, follow, reached, wait_for
from agent.errors import FailedPrecondition, NotFound, Unavailable
from agent.status import DeploymentStatus, Desired, Phase
from agent.v1 import agent_pb2 as pb
from tests.ctl.conftest import Served
from tests.ctl.deployments import FAILED, LOADING, NOW, READY


def moved(deployment: DeploymentStatus, **changes: Any) -> pb.Deployment:
    return message(replace(deployment, **changes))


@pytest.mark.parametrize("goal", Goal)
@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.LOADING, Phase.BACKOFF, Phase.STOPPING, Phase.STUCK])
def test_a_deployment_under_way_is_no_goal(goal: Goal, phase: Phase) -> None:
    assert not reached(goal, moved(READY, phase=phase))


@pytest.mark.parametrize("goal", Goal)
def test_every_goal_is_reached_in_its_phase(goal: Goal) -> None:
    assert reached(goal, moved(READY, phase=Phase(goal)))


def test_ready_is_the_readiness_of_the_present_generation() -> None:
    assert not reached(Goal.READY, moved(READY, generation=4))


def test_waiting_for_ready_ends_with_the_diagnosis_of_a_failure() -> None:
    with pytest.raises(DeploymentFailed, match="does_not_fit: needs 24") as failure:
        reached(Goal.READY, message(FAILED))
    assert failure.value.hint.startswith("lower limits.max_model_len")


@pytest.mark.parametrize(("phase", "state"), [(Phase.DRAINING, "is being stopped"), (Phase.STOPPED, "is stopped")])
def test_waiting_for_ready_ends_where_it_shall_stop(phase: Phase, state: str) -> None:
    with pytest.raises(FailedPrecondition, match=f"deployment chat {state}") as error:
        reached(Goal.READY, moved(READY, phase=phase, desired=Desired.STOP))
    assert error.value.hint == "`agentctl start chat`"
    assert not reached(Goal.READY, moved(READY, phase=phase))  # it was started again


@pytest.mark.parametrize("started", [True, False])
def test_a_failure_without_a_hint_offers_logs_only_where_something_ran(started: bool) -> None:
    failed = replace(FAILED, instance=READY.instance if started else None, previous=None)
    assert failed.diagnosis is not None
    told = DeploymentFailed(message(replace(failed, diagnosis=replace(failed.diagnosis, hint="")))).hint
    name = FAILED.name
    assert ("agentctl logs" in told) == started
    assert told.startswith(f"agentctl describe {name}; ")
    assert told.endswith(f"then `agentctl restart {name}`")


def test_a_hint_that_is_a_sentence_goes_on_without_its_stop() -> None:
    assert FAILED.diagnosis is not None
    failed = replace(FAILED, diagnosis=replace(FAILED.diagnosis, hint="Free the port."))
    assert DeploymentFailed(message(failed)).hint == f"Free the port; then `agentctl restart {FAILED.name}`"


def test_waiting_for_a_deleted_deployment_ends() -> None:
    with pytest.raises(NotFound, match="deleted meanwhile"):
        reached(Goal.STOPPED, moved(READY, phase=Phase.DELETED))


@pytest.mark.parametrize("old", [READY, FAILED])
def test_the_state_before_a_change_is_no_answer_to_it(old: DeploymentStatus) -> None:
    assert not reached(Goal.READY, message(old), before=message(old))


@pytest.mark.parametrize("change", [{"since": NOW}, {"observed_generation": 4}, {"uid": "another"}, {"instance": None}])
def test_a_state_that_moved_is_an_answer(change: dict[str, Any]) -> None:
    assert reached(Goal.READY, moved(READY, generation=3, **change), before=message(READY))


def test_a_wait_sees_every_state_until_its_goal(served: Served) -> None:
    seen: list[str] = []
    served.put(LOADING)
    served.go_through(replace(LOADING, phase=Phase.UNREADY), replace(LOADING, phase=Phase.READY))
    with Client(served.control.path) as client:
        ready = wait_for(client, "embed", Goal.READY, seconds=30, report=lambda d: seen.append(pb.Phase.Name(d.phase)))
    assert seen == ["PHASE_LOADING", "PHASE_UNREADY", "PHASE_READY"]
    assert ready is not None
    assert ready.phase == pb.PHASE_READY


def test_a_wait_ends_in_time(served: Served) -> None:
    served.put(LOADING)
    with (
        Client(served.control.path) as client,
        pytest.raises(Timeout, match=r"embed is not ready after 0\.2 s; it is LOADING: the process runs"),
    ):
        wait_for(client, "embed", Goal.READY, seconds=0.2, report=lambda _: None)


def test_what_does_not_exist_is_deleted_and_never_ready(served: Served) -> None:
    with Client(served.control.path) as client:
        assert wait_for(client, "nobody", Goal.DELETED, seconds=30, report=lambda _: None) is None
        with pytest.raises(NotFound):
            wait_for(client, "nobody", Goal.READY, seconds=30, report=lambda _: None)


def test_a_wait_outlives_a_restart_of_the_daemon(served: Served) -> None:
    served.put(LOADING)

    def restart(deployment: pb.Deployment) -> None:
        if deployment.phase == pb.PHASE_LOADING:
            served.restart()
            served.put(replace(LOADING, phase=Phase.READY))

    with Client(served.control.path) as client:
        assert wait_for(client, "embed", Goal.READY, seconds=30, report=restart) is not None


def test_events_go_on_after_a_restart_of_the_daemon_and_none_is_lost(served: Served) -> None:
    served.do(lambda: served.node.happen("First"))
    with Client(served.control.path) as client:
        stream = follow(client, "", events_only=True)
        assert next(stream).HasField("synced")
        served.restart()
        served.do(lambda: served.node.happen("Meanwhile"))
        assert next(stream).event.reason == "Meanwhile"


def test_a_daemon_that_was_never_there_is_no_reason_to_wait(served: Served) -> None:
    served.wait(served.server.stop(grace_seconds=0))
    with Client(served.control.path) as client, pytest.raises(Unavailable):
        wait_for(client, "embed", Goal.READY, seconds=30, report=lambda _: None)
