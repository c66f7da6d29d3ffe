"""kill -9 of the daemon, again and again, while an operator and misfortune change everything but one deployment.

The moments come out of a seed, which is printed: CHAOS_SEED repeats them (as far as a machine does things twice at
the same pace), CHAOS_KILLS sets their number.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil
import pytest

from agent.errors import AgentError, FailedPrecondition, NotFound, Unavailable
from agent.v1 import agent_pb2 as pb
from tests.harness import PHASE, Daemon, Traffic, wait_true

KILLS = int(os.environ.get("CHAOS_KILLS", "100"))
NAMES = ("a", "b", "c")
#: Crashes are frequent here and must not end in FAILED; what takes time is made short.
RESTART = {"initial_delay_seconds": 0.1, "max_delay_seconds": 0.3, "max_failures": 1000}
#: Seconds between two looks at what runs, and between two requests: two cores have to do for everything.
WATCH_PERIOD = 0.03
TRAFFIC_PAUSE = 0.02


@dataclass
class Truth:
    """What the operator knows of one deployment: the last acknowledged answer, and a change without an answer."""

    acknowledged: pb.Deployment | None = None
    unanswered: Callable[[pb.Deployment | None, pb.Deployment | None], bool] | None = None

    def check(self, now: pb.Deployment | None) -> None:
        """Nothing acknowledged is lost; a change without an answer was made completely, or not at all."""
        before, self.acknowledged = self.acknowledged, now
        same = _same(before, now)
        made = self.unanswered is not None and self.unanswered(before, now)
        self.unanswered = None
        assert same or made, f"acknowledged:\n{before}\nfound:\n{now}"


def _same(before: pb.Deployment | None, now: pb.Deployment | None) -> bool:
    if before is None or before.desired == pb.DESIRED_DELETE:
        return now is None or (before is not None and now.etag == before.etag)
    # The etag covers identity, generation, desired state and the restarts that were asked for.
    return now is not None and (now.etag, now.spec) == (before.etag, before.spec)


class Operator(threading.Thread):
    """Changes deployments at random, one at a time, and checks before each change what is there."""

    def __init__(self, node: Daemon, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self.node = node
        self.chance = chance
        self.truths = {name: Truth() for name in NAMES}
        self.done: Counter[str] = Counter()
        self.crashed: set[str] = set()  # ids of the instances that we killed
        self.error: BaseException | None = None
        self._halt = threading.Event()
        self._round = 0

    def run(self) -> None:
        try:
            while not self._halt.is_set():
                with contextlib.suppress(Unavailable), self.node.client() as client:
                    self._one(client, self.chance.choice(NAMES))
                self._halt.wait(self.chance.uniform(0, 0.2))
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self._halt.set()
        self.join(30)
        assert not self.is_alive()
        if self.error:
            raise self.error

    def _one(self, client: Any, name: str) -> None:
        truth = self.truths[name]
        now = find(client, name)
        truth.check(now)
        if now is None:
            action = "apply"
        elif now.desired == pb.DESIRED_DELETE:
            return
        else:
            action = self.chance.choices(
                ("apply", "stop", "start", "restart", "delete", "crash"), (3, 2, 3, 2, 1, 9), k=1
            )[0]
        if action == "crash":
            self._crash()
        else:
            self._change(client, truth, action, name)
            self.done[action] += 1

    def _change(self, client: Any, truth: Truth, action: str, name: str) -> None:
        self._round += 1
        request = f"{action}-{self._round}"
        if action == "apply":
            spec = self.node.spec(name, restart=RESTART, environment={"ROUND": str(self._round)})
            call = partial(client.apply_deployment, spec, request_id=request)
        else:
            call = partial(getattr(client, f"{action}_deployment"), name, request_id=request)
        made = _made(action, str(self._round))
        truth.unanswered = made
        try:
            answer = call()
            answer = answer.deployment if action == "apply" else answer
        except FailedPrecondition:
            truth.unanswered = None  # refused: nothing changed
            return
        assert made(truth.acknowledged, answer), f"{action} was answered with\n{answer}"
        truth.acknowledged, truth.unanswered = answer, None
        truth.check(find(client, name))  # and whoever asks now is told the same

    def _crash(self) -> None:
        """kill -9 of one server, if any is there by now."""
        servers = [process for name in NAMES for process in self.node.servers(name)]
        if servers:
            victim = self.chance.choice(servers)
            with contextlib.suppress(psutil.Error):
                self.crashed.add(victim.environ()["LLM_NODE_AGENT_INSTANCE"])
                victim.kill()


def _made(action: str, number: str) -> Callable[[pb.Deployment | None, pb.Deployment | None], bool]:
    """Whether a deployment went from one state to the other by this change, and by nothing else."""

    def made(before: pb.Deployment | None, now: pb.Deployment | None) -> bool:
        if action == "delete":
            return now is None or now.desired == pb.DESIRED_DELETE
        if now is None:
            return False
        if action == "apply":
            generation = before.generation + 1 if before is not None and before.uid == now.uid else 1
            return (now.generation, now.spec["environment"]["ROUND"]) == (generation, number)
        desired = pb.DESIRED_STOP if action == "stop" else pb.DESIRED_RUN
        return before is not None and (now.uid, now.generation, now.desired) == (before.uid, before.generation, desired)

    return made


def find(client: Any, name: str) -> pb.Deployment | None:
    try:
        return client.get_deployment(name)
    except NotFound:
        return None


@dataclass
class Watcher:
    """Looks all the time at what really runs, past the daemon."""

    node: Daemon
    steady: int
    looks: int = 0
    wrong: list[str] = field(default_factory=list)

    def look(self) -> None:
        live: dict[str, dict[str, psutil.Process]] = {}
        for process in self.node.engines():
            with contextlib.suppress(psutil.Error, KeyError):
                environment = process.environ()
                runs = live.setdefault(environment["LLM_NODE_AGENT_DEPLOYMENT"], {})
                runs[environment["LLM_NODE_AGENT_INSTANCE"]] = process
        for name, runs in live.items():
            # While we looked, one may have ended and another begun: all must be there now, at one moment.
            if len(runs) > 1 and sum(map(_alive, runs.values())) > 1:
                self.wrong.append(f"two instances of {name} at a time: {sorted(runs)}")
        if not psutil.pid_exists(self.steady):
            self.wrong.append("the steady engine is gone")
        self.looks += 1

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        halt = threading.Event()

        def watch() -> None:
            while not halt.wait(WATCH_PERIOD):
                self.look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            halt.set()
            thread.join(40)


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def kill_at_random_moments(node: Daemon, chance: random.Random, operator: Operator) -> None:
    """A third of the kills hit the daemon while it starts, the others while it works."""
    for _ in range(KILLS):
        if chance.random() < 1 / 3:
            time.sleep(chance.uniform(0, 0.6))
        else:
            node.wait_up()
            time.sleep(min(chance.expovariate(2.5), 2.0))
        assert operator.error is None, operator.error
        node.kill()
        node.start(wait=False)
    node.wait_up()


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(900)  # a busy machine needs several times the usual minute and a half
def test_a_hundred_deaths_of_the_agent_cost_nothing(node: Daemon) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"CHAOS_SEED={seed} CHAOS_KILLS={KILLS}")
    chance = random.Random(seed)
    node.config.write_text(node.config.read_text() + "logs: {attempts: 1000}\n")  # keep the record of every run
    node.start().apply("steady")
    steady = node.wait("steady")
    operator = Operator(node, random.Random(chance.random()))
    watcher = Watcher(node, steady.instance.pid)
    with Traffic(steady.endpoint, TRAFFIC_PAUSE) as traffic, watcher.watching():
        operator.start()
        try:
            kill_at_random_moments(node, chance, operator)
        finally:
            operator.stop()
        wait_true(lambda: settled(node), timeout=30, what="everything is as it is wanted")
    print(f"{dict(operator.done)}, {len(operator.crashed)} crashes, {watcher.looks} looks, {traffic.answers} answers")

    assert watcher.wrong == []
    assert traffic.failures == []
    assert traffic.answers > KILLS
    after = node.get("steady")
    assert (after.instance.pid, after.restarts, after.etag) == (steady.instance.pid, 0, steady.etag)
    with node.client() as client:
        for name, truth in operator.truths.items():
            truth.check(find(client, name))
        # No engine failed that was not made to: nothing healthy was restarted.
        runs = [run for d in client.list_deployments() for run in client.list_instances(d.name)]
    failed = {run.name.rpartition("/")[2]: run.diagnosis for run in runs if run.diagnosis.code}
    assert {id: found for id, found in failed.items() if id not in operator.crashed} == {}
    # No orphan: what runs is what status shows, one shim and one server each.
    live = {run.pid for run in runs if run.live}
    assert {process.pid for name in ("steady", *NAMES) for process in node.servers(name)} == live
    assert len(node.engines()) == 2 * len(live)


def settled(node: Daemon) -> bool:
    """Whether each deployment has come to rest in the phase that is wanted."""
    with contextlib.suppress(AgentError), node.client() as client:
        return all(
            PHASE[found.phase] == ("ready" if found.desired == pb.DESIRED_RUN else "stopped")
            for found in client.list_deployments()
        )
    return False
